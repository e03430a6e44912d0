//! What system calls say about the running system: page size, kernel release, clocks.

use std::ffi::CStr;
use std::mem::MaybeUninit;

/// The size of a page, in bytes.
pub(super) fn page_size() -> u64 {
    // SAFETY: asks for a constant of the system.
    (unsafe { libc::sysconf(libc::_SC_PAGESIZE) }) as u64
}

/// Whether the kernel's release is at least `wanted`. False if the release is unknown.
pub(super) fn release_is_at_least(wanted: (u32, u32)) -> bool {
    let mut names = MaybeUninit::uninit();
    // SAFETY: the names are ours to fill.
    if unsafe { libc::uname(names.as_mut_ptr()) } != 0 {
        return false;
    }
    // SAFETY: uname() has not failed, and so has filled them.
    let names: libc::utsname = unsafe { names.assume_init() };
    // SAFETY: the kernel ends it with a NUL.
    let release = unsafe { CStr::from_ptr(names.release.as_ptr()) };
    is_at_least(&release.to_string_lossy(), wanted)
}

fn is_at_least(release: &str, wanted: (u32, u32)) -> bool {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map_while(|number| number.parse().ok());
    matches!((numbers.next(), numbers.next()), (Some(major), Some(minor)) if (major, minor) >= wanted)
}

/// The length, in microseconds, of the clock ticks in which `/proc` counts time. USER_HZ is 100 on every architecture
/// that we support.
pub(super) const TICK: i64 = 1_000_000 / 100;

/// When the system was started, in microseconds since the epoch.
pub(super) fn boot_time() -> i64 {
    let now = |clock| {
        let mut time = MaybeUninit::uninit();
        // SAFETY: the time is ours to fill. Both clocks exist since Linux 2.6.39, so it is filled.
        unsafe { libc::clock_gettime(clock, time.as_mut_ptr()) };
        // SAFETY: as above.
        let time: libc::timespec = unsafe { time.assume_init() };
        time.tv_sec * 1_000_000 + time.tv_nsec / 1000
    };
    let read_clocks = || {
        let (before, real, after) = (now(libc::CLOCK_BOOTTIME), now(libc::CLOCK_REALTIME), now(libc::CLOCK_BOOTTIME));
        (after - before, real - before.midpoint(after))
    };
    // Use the best of several readings, because we may lose the processor between reading the two clocks.
    let mut best = read_clocks();
    for _ in 0..10 {
        if best.0 < 1000 {
            break;
        }
        best = best.min(read_clocks());
    }
    best.1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_of_kernels() {
        for (release, expected) in [
            ("6.18.5\n", true),
            ("4.2.0-rc1", true),
            ("4.1.99", false),
            ("3.10.0-1160.el7", false),
            ("10.0", true),
            ("", false),
        ] {
            assert_eq!(is_at_least(release, (4, 2)), expected, "{release}");
        }
    }
}
