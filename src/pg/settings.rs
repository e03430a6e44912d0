//! The settings of pg_meminfo: what users can SET.

use std::sync::atomic::{AtomicI32, Ordering};

use pg_sys::GucContext::PGC_USERSET;
use pgrx_pg_sys as pg_sys;

/// The variable of `pg_meminfo.readers`. Postgres writes it, in the thread in which all of our calls are.
static READERS: AtomicI32 = AtomicI32::new(1);

/// The number of threads that may read processes at the same time (`pg_meminfo.readers`).
pub fn readers() -> usize {
    READERS.load(Ordering::Relaxed) as usize
}

/// Makes the settings known to Postgres. For the library's start.
pub fn define() {
    // SAFETY: the texts and the variable live as long as the process, which never unloads a library, and without hooks
    // nothing else is called.
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
