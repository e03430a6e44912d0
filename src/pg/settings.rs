//! The settings of pg_meminfo.

use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};

use pg_sys::GucContext::{PGC_POSTMASTER, PGC_USERSET};
use pgrx_pg_sys as pg_sys;

/// The variable of `pg_meminfo.readers`. Postgres writes it in the main thread, and only that thread reads it.
static READERS: AtomicI32 = AtomicI32::new(1);

/// The maximum number of threads that read processes at the same time (`pg_meminfo.readers`).
pub fn readers() -> usize {
    READERS.load(Ordering::Relaxed) as usize
}

/// The variable of `pg_meminfo.set_ptracer`. Postgres writes it when the server starts.
static SET_PTRACER: AtomicBool = AtomicBool::new(true);

/// Whether the processes of the cluster may read each other's memory where Yama restricts that
/// (`pg_meminfo.set_ptracer`).
pub fn set_ptracer() -> bool {
    SET_PTRACER.load(Ordering::Relaxed)
}

/// Whether the library is being loaded by shared_preload_libraries.
pub fn is_preloading() -> bool {
    // SAFETY: a plain variable.
    unsafe { pg_sys::process_shared_preload_libraries_in_progress }
}

/// Defines the settings. Called when the library is loaded.
pub fn define() {
    // SAFETY: the texts and the variable live as long as the process, because a library is never unloaded. There are no
    // hooks for Postgres to call.
    unsafe {
        pg_sys::DefineCustomIntVariable(
            c"pg_meminfo.readers".as_ptr(),
            c"Sets how many processes' files are read at the same time.".as_ptr(),
            c"With 1, the session reads them itself, one after the other. With more, it starts that many threads for the length \
              of the call."
                .as_ptr(),
            READERS.as_ptr(),
            1,
            1,
            16,
            PGC_USERSET,
            0,
            None,
            None,
            None,
        );
    }
    // This one has a meaning only then, and Postgres does not let it be defined later.
    if is_preloading() {
        // SAFETY: as above.
        unsafe {
            pg_sys::DefineCustomBoolVariable(
                c"pg_meminfo.set_ptracer".as_ptr(),
                c"Lets the server's processes read each other's memory where Yama's ptrace_scope is 1.".as_ptr(),
                c"Each process names the postmaster as its tracer (PR_SET_PTRACER), so that descendants of the postmaster, and no \
                  other processes, may read it."
                    .as_ptr(),
                SET_PTRACER.as_ptr(),
                true,
                PGC_POSTMASTER,
                0,
                None,
                None,
                None,
            );
        }
    }
    // SAFETY: the text ends with a NUL.
    unsafe { pg_sys::MarkGUCPrefixReserved(c"pg_meminfo".as_ptr()) };
}
