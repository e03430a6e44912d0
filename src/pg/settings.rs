//! The settings of pg_meminfo.

use std::sync::atomic::{AtomicI32, Ordering};

use pg_sys::GucContext::PGC_USERSET;
use pgrx_pg_sys as pg_sys;

/// The variable of `pg_meminfo.readers`. Postgres writes it in the main thread, and only that thread reads it.
static READERS: AtomicI32 = AtomicI32::new(1);

/// The maximum number of threads that read processes at the same time (`pg_meminfo.readers`).
pub fn readers() -> usize {
    READERS.load(Ordering::Relaxed) as usize
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
    // SAFETY: the text ends with a NUL.
    unsafe { pg_sys::MarkGUCPrefixReserved(c"pg_meminfo".as_ptr()) };
}
