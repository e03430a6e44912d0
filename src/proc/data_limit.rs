//! RLIMIT_DATA: how much private memory that it can write to a process may map (Linux 4.7). The kernel compares it with
//! VmData of `/proc/PID/status`: the heap and private mappings, touched or not, but neither shared memory nor stacks.
//! Only the soft limit is changed here, and never to more than the hard one.

use std::fs::File;
use std::io::{self, Read};
use std::ptr;

use super::own_memory::parse_statm;
use super::process::Pid;
use super::system;

/// No limit.
pub const UNLIMITED: u64 = libc::RLIM_INFINITY;

/// This process's limit, in bytes. It may be read in a signal handler.
pub fn own() -> u64 {
    let mut limit = libc::rlimit { rlim_cur: UNLIMITED, rlim_max: UNLIMITED };
    // SAFETY: the kernel fills the structure. It cannot fail.
    unsafe { libc::getrlimit(libc::RLIMIT_DATA, &raw mut limit) };
    limit.rlim_cur
}

/// Sets this process's limit, in bytes.
pub fn set_own(limit: u64) -> io::Result<()> {
    set(0, limit)
}

/// Sets the limit of a process of the same user, in bytes.
pub fn set(pid: Pid, limit: u64) -> io::Result<()> {
    let mut old = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    call(pid, ptr::null(), &raw mut old)?;
    let new = libc::rlimit { rlim_cur: limit.min(old.rlim_max), rlim_max: old.rlim_max };
    if new.rlim_cur == old.rlim_cur { Ok(()) } else { call(pid, &raw const new, ptr::null_mut()) }
}

/// Whether the kernel may refuse memory to this process for another reason: a limit on its address space, or one on
/// what all processes commit (vm.overcommit_memory = 2). Allocates nothing.
pub fn other_limits_apply() -> bool {
    let mut limit = libc::rlimit { rlim_cur: UNLIMITED, rlim_max: UNLIMITED };
    // SAFETY: the kernel fills the structure. It cannot fail.
    unsafe { libc::getrlimit(libc::RLIMIT_AS, &raw mut limit) };
    let mut mode = [0];
    let is_read = File::open("/proc/sys/vm/overcommit_memory").and_then(|mut file| file.read(&mut mode)).is_ok();
    limit.rlim_cur != UNLIMITED || (is_read && mode == *b"2")
}

fn call(pid: Pid, new: *const libc::rlimit, old: *mut libc::rlimit) -> io::Result<()> {
    // SAFETY: each pointer is null or points to a structure.
    let status = unsafe { libc::prlimit(pid, libc::RLIMIT_DATA, new, old) };
    if status == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// How much of it this process has mapped, in bytes, with its stack. Allocates nothing.
pub fn own_mapped() -> Option<u64> {
    let mut bytes = [0; 128];
    let length = File::open("/proc/self/statm").ok()?.read(&mut bytes).ok()?;
    Some(parse_statm(&bytes[..length])?.data * system::page_size())
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    fn status(field: &str) -> u64 {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let value = status.lines().find_map(|line| line.strip_prefix(field)).unwrap();
        value.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
    }

    #[test]
    fn what_is_mapped_is_what_the_kernel_counts() {
        let before = own_mapped().unwrap();
        let block = vec![0_u8; 100 << 20];
        let after = own_mapped().unwrap();
        // Other tests run at the same time.
        let counted = status("VmData:") + status("VmStk:");
        assert!(after.abs_diff(counted) < 64 << 20, "{after} {counted}");
        assert!(after + (32 << 20) > before + block.len() as u64);
    }

    #[test]
    fn a_limit_is_kept_by_the_kernel_and_never_above_the_hard_one() {
        let script = "ulimit -d 900000; sleep 100";
        let mut child = Command::new("sh").args(["-c", script]).spawn().unwrap();
        let pid = child.id() as Pid;
        let limits = || std::fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
        let line = || limits().lines().find(|line| line.starts_with("Max data size")).unwrap().to_string();
        let start = std::time::Instant::now();
        while !line().contains("921600000") {
            assert!(start.elapsed().as_secs() < 60, "{}", line());
        }
        set(pid, 100 << 20).unwrap();
        assert_eq!(line().split_whitespace().nth(3), Some("104857600"));
        set(pid, UNLIMITED).unwrap();
        assert_eq!(line().split_whitespace().skip(3).take(2).collect::<Vec<_>>(), ["921600000", "921600000"]);
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(set(pid, UNLIMITED).is_err());
    }

    #[test]
    fn more_than_the_limit_is_refused() {
        let script = "ulimit -S -d 100000; x=$(head -c 200000000 /dev/zero | tr '\\0' x)";
        let output = Command::new("bash").args(["-c", script]).output().unwrap();
        assert!(!output.status.success());
        assert!(String::from_utf8_lossy(&output.stderr).contains("cannot allocate"), "{output:?}");
    }
}
