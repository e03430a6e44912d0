//! Cancel, statement_timeout and terminate.

use pgrx_pg_sys as pg_sys;

/// What CHECK_FOR_INTERRUPTS() does: raises the ERROR or FATAL that somebody has asked for, if so.
pub fn check() {
    let pending = &raw const pg_sys::InterruptPending;
    // SAFETY: it lives as long as the process. A signal handler writes it, hence volatile.
    if unsafe { pending.read_volatile() } != 0 {
        // SAFETY: we hold no lock and are at a point where we may unwind.
        unsafe { pg_sys::ProcessInterrupts() };
    }
}
