//! The machine's memory, and how much of it we can still allocate.

use std::ffi::CString;
use std::mem::MaybeUninit;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::cgroup::{Cgroup, Limit};
use super::error::Error;
use super::fields;
use super::root::{Root, read_if_visible};

/// The memory of the machine, in bytes. `None` if the kernel does not say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Host {
    /// RAM (MemTotal).
    pub memory_total: Option<u64>,
    /// Memory that can be allocated without swapping (MemAvailable, Linux 3.14).
    pub memory_available: Option<u64>,
    /// Shared memory in RAM, with files in tmpfs (Shmem).
    pub shmem: Option<u64>,
    /// The size of swap (SwapTotal).
    pub swap_total: Option<u64>,
    /// Free swap (SwapFree).
    pub swap_free: Option<u64>,
    /// The limit on committed memory, which applies if `overcommit_memory` is 2 (CommitLimit).
    pub commit_limit: Option<u64>,
    /// Committed memory (Committed_AS).
    pub committed: Option<u64>,
    /// How the kernel overcommits: 0 by a heuristic, 1 always, 2 never more than the limit (vm.overcommit_memory).
    pub overcommit_memory: Option<i32>,
    /// The default size of a huge page (Hugepagesize).
    pub huge_page_size: Option<u64>,
    /// The number of huge pages of that size (HugePages_Total), not bytes.
    pub huge_pages_total: Option<u64>,
    /// The number of huge pages that are not allocated (HugePages_Free).
    pub huge_pages_free: Option<u64>,
    /// The number of free huge pages that are reserved (HugePages_Rsvd).
    pub huge_pages_reserved: Option<u64>,
    /// The number of processes that the OOM killer has killed since boot (oom_kill in vmstat, Linux 4.13).
    pub oom_kills: Option<u64>,
    /// The size of the file system for POSIX shared memory (/dev/shm).
    pub dev_shm_size: Option<u64>,
    /// The free space in that file system.
    pub dev_shm_available: Option<u64>,
}

impl Host {
    /// Reads the memory of the machine whose file systems are below `root`.
    pub fn read(root: &Root) -> Result<Self, Error> {
        let read = |path| read_if_visible(&root.path(path)).map(Option::unwrap_or_default);
        let meminfo = read("/proc/meminfo")?;
        let vmstat = read("/proc/vmstat")?;
        let overcommit_memory = read("/proc/sys/vm/overcommit_memory")?;
        let (dev_shm_size, dev_shm_available) = space(&root.path("/dev/shm")).unzip();
        Ok(Host {
            oom_kills: fields::flat_keyed(&vmstat, b"oom_kill"),
            overcommit_memory: fields::signed(&overcommit_memory),
            dev_shm_size,
            dev_shm_available,
            ..Host::parse(&meminfo)
        })
    }

    /// Parses a whole meminfo file. Unknown keys and lines of another form are skipped.
    fn parse(meminfo: &[u8]) -> Self {
        let mut host = Host::default();
        for line in fields::lines(meminfo) {
            let Some((key, value)) = fields::key(line) else { continue };
            let bytes = || fields::kilobytes(value)?.checked_mul(1024);
            match key {
                b"MemTotal" => host.memory_total = bytes(),
                b"MemAvailable" => host.memory_available = bytes(),
                b"Shmem" => host.shmem = bytes(),
                b"SwapTotal" => host.swap_total = bytes(),
                b"SwapFree" => host.swap_free = bytes(),
                b"CommitLimit" => host.commit_limit = bytes(),
                b"Committed_AS" => host.committed = bytes(),
                b"Hugepagesize" => host.huge_page_size = bytes(),
                b"HugePages_Total" => host.huge_pages_total = fields::number(value),
                b"HugePages_Free" => host.huge_pages_free = fields::number(value),
                b"HugePages_Rsvd" => host.huge_pages_reserved = fields::number(value),
                _ => {}
            }
        }
        host
    }

    /// How much more memory we can allocate without swapping, and the cgroup that sets this limit, or `None` if the
    /// machine sets it. `used` is what of a cgroup's usage is not to be reclaimed for that. The whole is `None` if the
    /// headroom is unknown: our cgroups are hidden, or one has a limit but hides its usage.
    pub fn headroom<'a>(
        &self,
        cgroups: Option<&'a [Cgroup]>,
        used: fn(&Cgroup) -> Option<u64>,
    ) -> Option<(u64, Option<&'a Cgroup>)> {
        let mut least = (self.memory_available?, None);
        for cgroup in cgroups? {
            if let Limit::Bytes(limit) = cgroup.limit? {
                let left = limit.saturating_sub(used(cgroup)?);
                if left < least.0 {
                    least = (left, Some(cgroup));
                }
            }
        }
        Some(least)
    }
}

/// The size of a file system, and its free space.
fn space(path: &Path) -> Option<(u64, u64)> {
    let path = CString::new(path.as_os_str().as_bytes()).ok()?;
    let mut space = MaybeUninit::uninit();
    // SAFETY: the path ends with a NUL, and the struct is ours to fill.
    if unsafe { libc::statvfs(path.as_ptr(), space.as_mut_ptr()) } != 0 {
        return None;
    }
    // SAFETY: statvfs() has not failed, and so has filled it.
    let space: libc::statvfs = unsafe { space.assume_init() };
    // A tmpfs without a limit reports 0.
    let size = space.f_blocks.checked_mul(space.f_frsize).filter(|&size| size > 0)?;
    Some((size, space.f_bavail.checked_mul(space.f_frsize)?))
}

#[cfg(any(test, feature = "oracle"))]
pub mod naive;

#[cfg(test)]
mod tests {
    use super::super::cgroup::Version;
    use super::super::cgroup::tests::unknown;
    use super::super::test_support::MadeUpRoot;
    use super::*;

    #[test]
    fn this_machine() {
        let host = Host::read(&Root::default()).unwrap();
        assert!(host.memory_available.unwrap() <= host.memory_total.unwrap());
        assert!(host.swap_free <= host.swap_total);
        assert!(matches!(host.overcommit_memory, Some(0..=2)));
        let total = libc_memory();
        assert_eq!(host.memory_total, Some(total));
    }

    /// The RAM according to sysinfo(2).
    fn libc_memory() -> u64 {
        let mut info = MaybeUninit::<libc::sysinfo>::uninit();
        // SAFETY: the struct is ours to fill.
        assert_eq!(unsafe { libc::sysinfo(info.as_mut_ptr()) }, 0);
        // SAFETY: sysinfo() has not failed, and so has filled it.
        let info = unsafe { info.assume_init() };
        info.totalram * u64::from(info.mem_unit)
    }

    #[test]
    fn a_tree() {
        let tree = MadeUpRoot::new(&[
            (
                "proc/meminfo",
                "MemTotal:       24684096 kB\nMemAvailable:   23446544 kB\nShmem:              96 kB\nSwapTotal:          1024 kB\nSwapFree:            512 kB\n\
                 CommitLimit:    12342048 kB\nCommitted_AS:     518628 kB\nHugePages_Total:     200\nHugePages_Free:      150\n\
                 HugePages_Rsvd:       30\nHugePages_Surp:        0\nHugepagesize:       2048 kB\nHugetlb:          409600 kB\n",
            ),
            ("proc/vmstat", "nr_free_pages 7\noom_kill 3\noom_killed 4\n"),
            ("proc/sys/vm/overcommit_memory", "2\n"),
        ]);
        let host = Host::read(&tree.root()).unwrap();
        let kilobytes = |number: u64| Some(number * 1024);
        let expected = Host {
            memory_total: kilobytes(24684096),
            memory_available: kilobytes(23446544),
            shmem: kilobytes(96),
            swap_total: kilobytes(1024),
            swap_free: kilobytes(512),
            commit_limit: kilobytes(12342048),
            committed: kilobytes(518628),
            overcommit_memory: Some(2),
            huge_page_size: kilobytes(2048),
            huge_pages_total: Some(200),
            huge_pages_free: Some(150),
            huge_pages_reserved: Some(30),
            oom_kills: Some(3),
            dev_shm_size: None,
            dev_shm_available: None,
        };
        assert_eq!(host, expected);
    }

    #[test]
    fn agrees_with_the_oracle_on_real_machines() {
        naive::assert_agrees(include_bytes!("../../tests/fixtures/linux-3.10.meminfo"));
        naive::assert_agrees(include_bytes!("../../tests/fixtures/linux-6.6.meminfo"));
        naive::assert_agrees(&std::fs::read("/proc/meminfo").unwrap());
    }

    #[test]
    fn a_file_system_without_a_size_has_none() {
        assert_eq!(space(Path::new("/proc")), None);
        assert_eq!(space(Path::new("/no such place")), None);
    }

    #[test]
    fn an_old_kernel_prints_fewer_keys() {
        let tree = MadeUpRoot::new(&[("proc/meminfo", "MemTotal:  1000 kB\nMemFree:  900 kB\n")]);
        let host = Host::read(&tree.root()).unwrap();
        assert_eq!(host, Host { memory_total: Some(1_024_000), ..Host::default() });
        assert_eq!(host.headroom(Some(&[]), Cgroup::working_set), None);
    }

    fn cgroup(limit: Option<Limit>, usage: u64, inactive_file: Option<u64>) -> Cgroup {
        Cgroup { limit, usage: Some(usage), inactive_file, ..unknown(&usage.to_string(), Version::Two) }
    }

    #[test]
    fn headroom_is_the_least() {
        let host = Host { memory_available: Some(1000), ..Host::default() };
        let unlimited = cgroup(Some(Limit::Unlimited), 5000, Some(0));
        assert_eq!(host.headroom(Some(std::slice::from_ref(&unlimited)), Cgroup::working_set), Some((1000, None)));

        let wide = cgroup(Some(Limit::Bytes(5000)), 500, Some(100));
        assert_eq!(host.headroom(Some(&[unlimited.clone(), wide.clone()]), Cgroup::working_set), Some((1000, None)));

        // The ancestor has the larger limit, but less of it is left.
        let own = cgroup(Some(Limit::Bytes(900)), 300, Some(100));
        let ancestor = cgroup(Some(Limit::Bytes(2000)), 1900, Some(300));
        let cgroups = [own, unlimited, ancestor, wide];
        assert_eq!(host.headroom(Some(&cgroups), Cgroup::working_set), Some((400, Some(&cgroups[2]))));

        let exceeded = [cgroup(Some(Limit::Bytes(100)), 150, Some(10))];
        assert_eq!(host.headroom(Some(&exceeded), Cgroup::working_set), Some((0, Some(&exceeded[0]))));
        assert_eq!(host.headroom(Some(&[cgroup(Some(Limit::Bytes(100)), 50, None)]), Cgroup::working_set), None);
        assert_eq!(host.headroom(Some(&[cgroup(None, 50, Some(0))]), Cgroup::working_set), None);
        assert_eq!(host.headroom(None, Cgroup::working_set), None);
    }
}
