//! The right to read another process's memory, which the kernel grants to whoever may trace the process, and which of
//! the kernel's rules denies it.
//!
//! Where Yama's ptrace_scope is 1, as on Ubuntu, a process may read only its own descendants, unless the other names a
//! tracer by PR_SET_PTRACER: then the tracer and the tracer's descendants may. So if each process of a cluster names
//! the postmaster, they may read each other, and no other process of the user gains anything.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::sync::atomic::{AtomicI32, Ordering};

use super::process::Pid;
use super::root::Root;

/// Which rule of the kernel denies reading a process's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Obstacle {
    /// The process is not dumpable.
    NotDumpable,
    /// Yama's ptrace_scope is 1: the process must be a descendant of ours, or must name a tracer.
    YamaRestricted,
    /// Yama's ptrace_scope is 2 or 3: only administrators may trace, or nobody.
    YamaAdministrators,
    /// Something else: AppArmor, SELinux, a seccomp filter.
    Other,
}

impl Obstacle {
    /// Why this process may not be read. To be asked only when it has been denied.
    pub fn of(root: &Root, pid: Pid) -> Self {
        // The files of a process that is not dumpable belong to root, though not their directory.
        let owner = fs::metadata(root.path(format!("/proc/{pid}/status"))).map(|status| status.uid());
        // SAFETY: always succeeds.
        let user = unsafe { libc::geteuid() };
        if owner.is_ok_and(|owner| owner != user) {
            return Obstacle::NotDumpable;
        }
        let scope = fs::read(root.path("/proc/sys/kernel/yama/ptrace_scope")).unwrap_or_default();
        match scope.trim_ascii() {
            b"1" => Obstacle::YamaRestricted,
            b"2" | b"3" => Obstacle::YamaAdministrators,
            _ => Obstacle::Other,
        }
    }
}

/// The process whose descendants may read us.
static TRACER: AtomicI32 = AtomicI32::new(0);

/// Lets the descendants of this process read its memory, and that of each process that it forks from now on. To be
/// called once.
pub fn allow_descendants() {
    TRACER.store(std::process::id() as Pid, Ordering::Relaxed);
    name_tracer();
    // SAFETY: the handler only makes a system call, and the library is never unloaded. Without memory for the handler,
    // the processes stay as they were.
    unsafe { libc::pthread_atfork(None, None, Some(in_child)) };
}

/// Runs in each new process.
unsafe extern "C" fn in_child() {
    name_tracer();
}

fn name_tracer() {
    let tracer = TRACER.load(Ordering::Relaxed) as libc::c_ulong;
    // SAFETY: PR_SET_PTRACER takes a pid. Without Yama it fails, and is not needed.
    unsafe { libc::prctl(libc::PR_SET_PTRACER, tracer, 0, 0, 0) };
}

#[cfg(test)]
mod tests {
    use super::super::test_support::MadeUpRoot;
    use super::*;

    #[test]
    fn obstacles() {
        let root = MadeUpRoot::new(&[("proc/7/status", "")]);
        assert_eq!(Obstacle::of(&root.root(), 7), Obstacle::Other);
        for (scope, expected) in [
            ("0\n", Obstacle::Other),
            ("1\n", Obstacle::YamaRestricted),
            ("2\n", Obstacle::YamaAdministrators),
            ("3\n", Obstacle::YamaAdministrators),
        ] {
            root.write("proc/sys/kernel/yama/ptrace_scope", scope);
            assert_eq!(Obstacle::of(&root.root(), 7), expected);
        }
        // As root we can give a file to another user.
        if std::os::unix::fs::chown(root.path().join("proc/7/status"), Some(12345), None).is_ok() {
            assert_eq!(Obstacle::of(&root.root(), 7), Obstacle::NotDumpable);
        }
    }
}
