//! Reserves file descriptors that Postgres does not open itself, so that it does not open too many of its own.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use pgrx_pg_sys as pg_sys;

/// Takes note of descriptors that stay open until the process ends.
pub fn keep(count: usize) {
    for _ in 0..count {
        // SAFETY: it increments a counter, and may close files that Postgres opens again when they are needed.
        unsafe { pg_sys::ReserveExternalFD() };
    }
}

/// Reserves `each` descriptors for each of up to `wanted` threads. Then calls `run` with the number of threads for
/// which there were enough descriptors, possibly zero. Releases the descriptors when `run` returns or unwinds.
pub fn reserve<R>(wanted: usize, each: usize, run: impl FnOnce(usize) -> R) -> R {
    // SAFETY: it only increments a counter, and returns false if it did not.
    let acquired = (0..wanted * each).take_while(|_| unsafe { pg_sys::AcquireExternalFD() }).count();
    // If an ERROR unwinds through here, the counter must still be restored. A Drop cannot do that, because it must not
    // call Postgres.
    let result = catch_unwind(AssertUnwindSafe(|| run(acquired / each)));
    for _ in 0..acquired {
        // SAFETY: acquired above. This only decrements the counter and cannot fail.
        unsafe { pg_sys::ReleaseExternalFD() };
    }
    result.unwrap_or_else(|unwinding| resume_unwind(unwinding))
}
