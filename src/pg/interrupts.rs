//! Cancel, statement_timeout and terminate.

use pgrx_pg_sys as pg_sys;

/// What CHECK_FOR_INTERRUPTS() does: raises the ERROR or FATAL that somebody has asked for, if so.
pub fn check() {
    // SAFETY: a signal handler writes it, hence the volatile read of a word.
    let pending = unsafe { (&raw const pg_sys::InterruptPending).read_volatile() };
    if pending != 0 {
        // SAFETY: we hold no lock and are at a point where we may unwind.
        unsafe { pg_sys::ProcessInterrupts() };
    }
}
