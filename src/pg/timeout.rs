//! A function that is called every few milliseconds, in a signal handler.

use core::ffi::c_int;
use std::sync::atomic::{AtomicI32, Ordering};

use pgrx_pg_sys as pg_sys;

// utils/timeout.h is not among the bindings. None of these functions raises an ERROR.
unsafe extern "C-unwind" {
    fn RegisterTimeout(id: c_int, handler: unsafe extern "C-unwind" fn()) -> c_int;
    fn enable_timeout_every(id: c_int, first: pg_sys::TimestampTz, delay: c_int);
    fn disable_timeout(id: c_int, keep_indicator: bool);
}

/// Any number from USER_TIMEOUT on makes Postgres choose a free one. USER_TIMEOUT is 12 or 13, depending on the
/// version.
const ANY_ID: c_int = 20;

/// The number that Postgres has chosen.
static ID: AtomicI32 = AtomicI32::new(-1);

/// Starts to call `handler` every `milliseconds`. It must not do anything that a signal handler may not do.
#[allow(ffi_unwind_calls)] // as in hooks.rs
pub fn start(handler: unsafe extern "C-unwind" fn(), milliseconds: i32) {
    if ID.load(Ordering::Relaxed) < 0 {
        // SAFETY: the function lives as long as the process.
        ID.store(unsafe { RegisterTimeout(ANY_ID, handler) }, Ordering::Relaxed);
    }
    // SAFETY: reads the clock.
    let now = unsafe { pg_sys::GetCurrentTimestamp() };
    // SAFETY: the timeout is registered.
    unsafe { enable_timeout_every(ID.load(Ordering::Relaxed), now + i64::from(milliseconds) * 1000, milliseconds) };
}

/// Stops it.
#[allow(ffi_unwind_calls)] // as above
pub fn stop() {
    let id = ID.load(Ordering::Relaxed);
    if id >= 0 {
        // SAFETY: the timeout is registered.
        unsafe { disable_timeout(id, false) };
    }
}
