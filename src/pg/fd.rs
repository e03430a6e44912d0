//! File descriptors that Postgres does not open itself and must know of, lest it open too many.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use pgrx_pg_sys as pg_sys;

/// Reserves `each` descriptors for each of up to `wanted` units, and runs a function with the number of units for which there
/// are enough: zero if there are too few for one. They are released when it returns or unwinds.
pub fn reserve<R>(wanted: usize, each: usize, run: impl FnOnce(usize) -> R) -> R {
    // SAFETY: it only counts; false says that it did not.
    let acquired = (0..wanted * each).take_while(|_| unsafe { pg_sys::AcquireExternalFD() }).count();
    // An ERROR unwinds through here, and must find the count as it was. To release in a Drop would be to call Postgres while
    // unwinding.
    let result = catch_unwind(AssertUnwindSafe(|| run(acquired / each)));
    for _ in 0..acquired {
        // SAFETY: it was acquired above. This only counts, too, and cannot fail.
        unsafe { pg_sys::ReleaseExternalFD() };
    }
    result.unwrap_or_else(|unwinding| resume_unwind(unwinding))
}
