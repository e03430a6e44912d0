//! Query cancel, statement_timeout and termination.

use pgrx_pg_sys as pg_sys;

/// Does what CHECK_FOR_INTERRUPTS() does: raises the ERROR or FATAL that has been requested, if any.
pub fn check() {
    let pending = &raw const pg_sys::InterruptPending;
    // SAFETY: the variable lives as long as the process. The read is volatile because a signal handler writes it.
    if unsafe { pending.read_volatile() } != 0 {
        // SAFETY: we hold no lock and are at a point where we may unwind.
        unsafe { pg_sys::ProcessInterrupts() };
    }
}
