//! `/proc/PID/status`: the kernel's memory counters of a process. The kernel does not walk page tables for them, so
//! they cost the same however much memory the process uses.

use super::buffer::Buffer;
use super::error::Error;
use super::fields;
use super::process::Process;

/// A process's memory counters, and how the OOM killer ranks the process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// The memory counters.
    pub status: Status,
    /// How likely the OOM killer is to choose the process (oom_score).
    pub oom_score: Option<i32>,
    /// The adjustment that is added to the OOM killer's score (oom_score_adj).
    pub oom_score_adj: Option<i32>,
}

impl Counters {
    /// Reads the counters of a process.
    pub fn read(process: &Process, buffer: &mut Buffer) -> Result<Self, Error> {
        let [score, adj, status] = process.read_small([c"oom_score", c"oom_score_adj", c"status"], buffer)?;
        let status = Status::parse(status).of_a_living_process()?;
        Ok(Counters { status, oom_score: fields::signed(score), oom_score_adj: fields::signed(adj) })
    }
}

/// Memory counters of a process, in bytes. `None` if the kernel does not print the key, or not with a number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// Size of the address space (VmSize).
    pub virtual_size: Option<u64>,
    /// Resident memory (VmRSS): the sum of `rss_anon`, `rss_file` and `rss_shmem`.
    pub rss: Option<u64>,
    /// The largest resident size so far (VmHWM).
    pub peak_rss: Option<u64>,
    /// Resident anonymous memory (RssAnon, Linux 4.5).
    pub rss_anon: Option<u64>,
    /// Resident file mappings (RssFile, Linux 4.5).
    pub rss_file: Option<u64>,
    /// Resident shared memory (RssShmem, Linux 4.5).
    pub rss_shmem: Option<u64>,
    /// Anonymous memory in swap (VmSwap).
    pub swap: Option<u64>,
    /// Memory in hugetlb pages (HugetlbPages, Linux 4.4).
    pub hugetlb: Option<u64>,
    /// Memory that is locked in RAM (VmLck).
    pub locked: Option<u64>,
    /// Page tables (VmPTE).
    pub page_tables: Option<u64>,
    /// The number of threads (Threads), not bytes.
    pub threads: Option<u64>,
}

impl Status {
    /// Reads the status of a process.
    pub fn read(process: &Process, buffer: &mut Buffer) -> Result<Self, Error> {
        let [status] = process.read_small([c"status"], buffer)?;
        Status::parse(status).of_a_living_process()
    }

    /// [`Error::Gone`] if the process has no address space. That replaces [`Process::revalidate`]: an exiting process
    /// gives up its address space, and status was read through the descriptor by which the process is pinned.
    fn of_a_living_process(self) -> Result<Self, Error> {
        if self.virtual_size.is_some() { Ok(self) } else { Err(Error::Gone) }
    }

    /// Parses a whole status file. Unknown keys and lines of another form are skipped.
    pub fn parse(text: &[u8]) -> Self {
        let mut status = Status::default();
        for line in fields::lines(text) {
            let Some((key, value)) = fields::key(line) else { continue };
            let bytes = || fields::kilobytes(value)?.checked_mul(1024);
            match key {
                b"VmSize" => status.virtual_size = bytes(),
                b"VmRSS" => status.rss = bytes(),
                b"VmHWM" => status.peak_rss = bytes(),
                b"RssAnon" => status.rss_anon = bytes(),
                b"RssFile" => status.rss_file = bytes(),
                b"RssShmem" => status.rss_shmem = bytes(),
                b"VmSwap" => status.swap = bytes(),
                b"HugetlbPages" => status.hugetlb = bytes(),
                b"VmLck" => status.locked = bytes(),
                b"VmPTE" => status.page_tables = bytes(),
                b"Threads" => status.threads = fields::number(value),
                _ => {}
            }
        }
        status
    }
}

#[cfg(any(test, feature = "oracle"))]
pub mod naive;

#[cfg(test)]
mod tests {
    use std::fs;

    use proptest::prelude::*;

    use super::super::test_support::{Running, our_tree};
    use super::*;

    #[test]
    fn a_backend() {
        let status = Status::parse(
            b"Name:\tpostgres\nUmask:\t0077\nVmPeak:\t  222840 kB\nVmSize:\t  222836 kB\nVmLck:\t       0 kB\nVmHWM:\t   28216 kB\n\
              VmRSS:\t   28200 kB\nRssAnon:\t    3100 kB\nRssFile:\t   20100 kB\nRssShmem:\t    5000 kB\nVmPTE:\t     164 kB\n\
              VmSwap:\t       8 kB\nHugetlbPages:\t    2048 kB\nThreads:\t1\nvoluntary_ctxt_switches:\t7\n",
        );
        let kilobytes = |number: u64| Some(number * 1024);
        let expected = Status {
            virtual_size: kilobytes(222836),
            rss: kilobytes(28200),
            peak_rss: kilobytes(28216),
            rss_anon: kilobytes(3100),
            rss_file: kilobytes(20100),
            rss_shmem: kilobytes(5000),
            swap: kilobytes(8),
            hugetlb: kilobytes(2048),
            locked: kilobytes(0),
            page_tables: kilobytes(164),
            threads: Some(1),
        };
        assert_eq!(status, expected);
    }

    #[test]
    fn keys_that_a_kernel_does_not_print_are_absent() {
        let status = Status::parse(
            b"VmSize:\t  222836 kB\nVmRSS:\t   28200 MB\nThreads:\t1 kB\nVmPTE:\t99999999999999999999 kB\n",
        );
        assert_eq!(status, Status { virtual_size: Some(222836 * 1024), ..Status::default() });
        assert_eq!(Status::parse(b""), Status::default());
    }

    #[test]
    fn our_own() {
        let status = Status::parse(&fs::read("/proc/self/status").unwrap());
        let rss = status.rss.unwrap();
        assert_eq!(status.rss_anon.unwrap() + status.rss_file.unwrap() + status.rss_shmem.unwrap(), rss);
        assert!(rss <= status.peak_rss.unwrap() && rss <= status.virtual_size.unwrap());
        assert!(status.threads.unwrap() >= 1);
    }

    #[test]
    fn counters_of_processes() {
        let mut child = Running::waiting();
        let process = our_tree().pin(child.pid()).unwrap();
        let mut buffer = Buffer::default();
        let counters = Counters::read(&process, &mut buffer).unwrap();
        let adj = fs::read_to_string(format!("/proc/{}/oom_score_adj", child.pid())).unwrap();
        assert_eq!(counters.oom_score_adj, Some(adj.trim().parse().unwrap()));
        assert!(counters.oom_score.unwrap() >= 0);
        assert!(counters.status.rss.unwrap() > 0);
        child.kill();
        assert!(matches!(Counters::read(&process, &mut buffer), Err(Error::Gone)), "a zombie");
        child.reap();
        assert!(matches!(Counters::read(&process, &mut buffer), Err(Error::Gone)), "reaped");
    }

    proptest! {
        #[test]
        fn agrees_with_the_oracle(
            lines in prop::collection::vec(
                "(VmSize|VmRSS|VmHWM|RssAnon|RssFile|RssShmem|VmSwap|HugetlbPages|VmLck|VmPTE|Threads|VmPin|Name|):?[\t ]{0,3}[0-9]{0,21}( kB)?", 0..20),
        ) {
            naive::assert_agrees(lines.join("\n").as_bytes());
        }
    }
}
