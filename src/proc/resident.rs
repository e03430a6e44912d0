//! The private memory of many processes, again and again: each one's `/proc/PID/statm` is kept open, which makes a
//! reading four times as fast as opening it. If there are more processes than files may be open, the files of the
//! others are opened each time.

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt;

use super::own_memory::{Statm, parse_statm};
use super::process::Pid;
use super::root::Root;
use super::system;

/// What has been read of a process.
#[derive(Debug)]
struct Kept {
    /// A descriptor of the process that had the pid when it was opened: it never shows another one. `None` if too many
    /// are open.
    statm: Option<File>,
    /// Tells processes apart that have had the same pid.
    start: i64,
    private: u64,
    /// Private memory from which growth counts.
    base: u64,
    /// Whether it was among the processes of the last round.
    is_current: bool,
}

/// The processes.
#[derive(Debug)]
pub struct Resident {
    root: Root,
    page_size: u64,
    /// How many files may be kept open.
    max_open: usize,
    processes: HashMap<Pid, Kept>,
}

/// So many descriptors are for everything else.
const OTHER_DESCRIPTORS: u64 = 100;

/// What a process holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    /// Private memory in RAM (resident minus shared pages of statm, which is RssAnon), in bytes.
    pub private: u64,
    /// By how much that has grown since [`Resident::count_growth_from_here`], in bytes, or since the first reading.
    pub growth: i64,
    /// Private address space that it can write to, with its stack, in bytes.
    pub mapped: u64,
}

impl Resident {
    /// No processes yet.
    pub fn new(root: Root) -> Self {
        let max_open = descriptor_limit().rlim_cur.saturating_sub(OTHER_DESCRIPTORS) as usize;
        Resident { root, page_size: system::page_size(), max_open, processes: HashMap::new() }
    }

    /// What a process holds. `start` says when it was started, so that another one with its pid is not taken for it.
    /// `None` if it has exited or cannot be read.
    pub fn read(&mut self, pid: Pid, start: i64) -> Option<Held> {
        let known = self.processes.get(&pid).is_some_and(|kept| kept.start == start);
        let open = |root: &Root| File::open(root.path(format!("/proc/{pid}/statm"))).ok();
        if !known {
            let statm = if self.processes.len() < self.max_open { Some(open(&self.root)?) } else { None };
            self.processes.insert(pid, Kept { statm, start, private: 0, base: 0, is_current: false });
        }
        let kept = self.processes.get_mut(&pid)?;
        let opened = if kept.statm.is_none() { open(&self.root) } else { None };
        let mut bytes = [0; 128];
        // Of a process that has been reaped, this fails. That of a zombie is all zeros.
        let length = kept.statm.as_ref().or(opened.as_ref())?.read_at(&mut bytes, 0).ok()?;
        let Statm { resident, shared, data } = parse_statm(&bytes[..length])?;
        if resident == 0 {
            return None;
        }
        let private = resident.saturating_sub(shared) * self.page_size;
        if !known {
            kept.base = private;
        }
        let growth = private.wrapping_sub(kept.base) as i64;
        kept.private = private;
        kept.is_current = true;
        Some(Held { private, growth, mapped: data * self.page_size })
    }

    /// From now on, growth is counted from what was read last.
    pub fn count_growth_from_here(&mut self) {
        self.processes.values_mut().for_each(|kept| kept.base = kept.private);
    }

    /// Closes the files of processes that have not been read since the last call.
    pub fn close_others(&mut self) {
        self.processes.retain(|_, kept| std::mem::take(&mut kept.is_current));
    }
}

/// Lets malloc keep some MB for this process from the start, so that it need not ask the kernel for memory when there
/// is none: an allocation that fails would abort the process, and the postmaster would restart all of its children.
#[cfg(target_env = "gnu")]
pub fn reserve_memory() {
    const RESERVE: usize = 8 << 20;
    // Smaller blocks come from the heap, which is not given back below twice that.
    // SAFETY: sets a parameter of malloc.
    unsafe { libc::mallopt(libc::M_MMAP_THRESHOLD, 2 * RESERVE as libc::c_int) };
    // SAFETY: as above.
    unsafe { libc::mallopt(libc::M_TRIM_THRESHOLD, 2 * RESERVE as libc::c_int) };
    let mut reserve: Vec<u8> = Vec::new();
    if reserve.try_reserve_exact(RESERVE).is_ok() {
        std::hint::black_box(&reserve);
    }
}

/// Does nothing: only with glibc's malloc is it known how.
#[cfg(not(target_env = "gnu"))]
pub fn reserve_memory() {}

fn descriptor_limit() -> libc::rlimit {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the kernel fills the structure. It cannot fail.
    unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) };
    limit
}

/// Lets this process open as many files as the administrator permits.
pub fn raise_descriptor_limit() {
    let mut limit = descriptor_limit();
    limit.rlim_cur = limit.rlim_max;
    // SAFETY: it only reads the structure. If it fails, fewer files can be opened.
    unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) };
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Write};
    use std::process::{Child, Command, Stdio};

    use super::*;

    /// A shell that holds 40 MB more after each line that it reads. Nobody else uses its memory.
    fn growing_child() -> (Child, impl FnMut()) {
        let script = "echo; while read -r line; do x=$x$(head -c 41000000 /dev/zero | tr '\\0' x); echo; done";
        let mut child =
            Command::new("sh").args(["-c", script]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (mut input, mut output) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
        output.read_line(&mut String::new()).unwrap();
        let grow = move || {
            writeln!(input).unwrap();
            output.read_line(&mut String::new()).unwrap();
        };
        (child, grow)
    }

    #[test]
    fn private_memory_is_that_of_status() {
        let (mut child, mut grow) = growing_child();
        let pid = child.id() as Pid;
        let mut resident = Resident::new(Root::default());
        let first = resident.read(pid, 1).unwrap();
        assert_eq!(first.growth, 0);
        assert!(first.mapped >= first.private, "{first:?}");
        grow();
        let second = resident.read(pid, 1).unwrap();
        assert_eq!(second.growth, second.private as i64 - first.private as i64);
        // Some kernels leave out what a processor has counted for itself.
        assert!(second.growth >= 40_000_000, "{second:?}");
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let anon = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
        let anon: u64 = anon.trim().trim_end_matches(" kB").parse().unwrap();
        // The kernel counts on each processor for itself.
        assert!(second.private.abs_diff(anon * 1024) < 1 << 20, "{second:?} {anon}");
        resident.count_growth_from_here();
        assert_eq!(resident.read(pid, 1).unwrap().growth, 0);
        // Another process with the same pid has not grown.
        grow();
        assert_eq!(resident.read(pid, 2).unwrap().growth, 0);
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn more_processes_than_files_may_be_open() {
        let mut child = Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        let mut resident = Resident { max_open: 1, ..Resident::new(Root::default()) };
        for pid in [std::process::id() as Pid, child.id() as Pid] {
            for _ in 0..2 {
                while resident.read(pid, 1).is_none() {}
            }
        }
        assert_eq!(resident.processes.values().filter(|kept| kept.statm.is_some()).count(), 1);
        drop(child.stdin.take());
        child.wait().unwrap();
        assert_eq!(resident.read(child.id() as Pid, 1), None);
    }

    #[test]
    fn one_that_has_exited() {
        let mut child = Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        let pid = child.id() as Pid;
        let mut resident = Resident::new(Root::default());
        while resident.read(pid, 1).is_none() {}
        child.kill().unwrap();
        while resident.read(pid, 1).is_some() {}
        // Reaped, and perhaps reused.
        child.wait().unwrap();
        assert_eq!(resident.read(pid, 1), None);
        resident.close_others();
        resident.close_others();
        assert!(resident.processes.is_empty());
    }
}
