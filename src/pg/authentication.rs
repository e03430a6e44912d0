//! The moment at which a client backend lets its client in.
//!
//! The frame of the hook is plain, as those of [`super::hooks`].
#![allow(ffi_unwind_calls)]

use core::ffi::{c_int, c_void};
use std::sync::OnceLock;

use pgrx_pg_sys as pg_sys;

type Hook = unsafe extern "C-unwind" fn(*mut c_void, c_int);

unsafe extern "C" {
    static mut ClientAuthentication_hook: Option<Hook>;
}

static NEXT: OnceLock<Option<Hook>> = OnceLock::new();
static OBSERVER: OnceLock<fn()> = OnceLock::new();

/// Lets a function be called in each client backend, and in each process that sends WAL. It must not unwind. Called
/// once, when the postmaster loads the library.
pub fn install(observer: fn()) {
    OBSERVER.set(observer).expect("called once");
    // SAFETY: a plain variable, which only the main thread uses.
    NEXT.set(unsafe { ClientAuthentication_hook }).expect("called once");
    // SAFETY: as above.
    unsafe { ClientAuthentication_hook = Some(authenticated) };
}

unsafe extern "C-unwind" fn authenticated(port: *mut c_void, status: c_int) {
    if let Some(Some(next)) = NEXT.get() {
        // SAFETY: called as Postgres would.
        unsafe { next(port, status) };
    }
    // Others are about to be turned away.
    if status == pg_sys::STATUS_OK as c_int
        && let Some(observer) = OBSERVER.get()
    {
        observer();
    }
}
