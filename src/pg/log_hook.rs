//! What the postmaster writes to the log about its children.
//!
//! The frame of the hook is plain, as those of [`super::hooks`]: another extension's hook may raise an ERROR through
//! it.
#![allow(ffi_unwind_calls)]

use core::ffi::CStr;
use std::sync::OnceLock;

use pgrx_pg_sys as pg_sys;

/// The message about a child that was ended by a signal, before it is translated.
const TERMINATED: &CStr = c"%s (PID %d) was terminated by signal %d: %s";

/// Is told of messages. It must not unwind, and allocates nothing: it is called in the postmaster.
pub trait Observer: 'static {
    /// A child was ended by a signal. The message is that of the log; the detail may have the query, and may be
    /// missing.
    fn child_was_terminated(message: &[u8], detail: Option<&[u8]>);
}

type Hook = unsafe extern "C-unwind" fn(*mut pg_sys::ErrorData);

static NEXT: OnceLock<Option<Hook>> = OnceLock::new();

/// Lets an observer be told. Called once, when the postmaster loads the library.
pub fn install<O: Observer>() {
    // SAFETY: a plain variable, which only the main thread uses.
    NEXT.set(unsafe { pg_sys::emit_log_hook }).expect("called once");
    // SAFETY: as above.
    unsafe { pg_sys::emit_log_hook = Some(emit::<O>) };
}

unsafe extern "C-unwind" fn emit<O: Observer>(data: *mut pg_sys::ErrorData) {
    // SAFETY: a plain variable.
    let is_postmaster = !unsafe { pg_sys::IsUnderPostmaster };
    if is_postmaster {
        // SAFETY: Postgres passes a valid record.
        let data = unsafe { &*data };
        if text(data.message_id) == Some(TERMINATED.to_bytes())
            && let Some(message) = text(data.message)
        {
            O::child_was_terminated(message, text(data.detail));
        }
    }
    if let Some(Some(next)) = NEXT.get() {
        // SAFETY: called as Postgres would.
        unsafe { next(data) };
    }
}

fn text<'a>(text: *const core::ffi::c_char) -> Option<&'a [u8]> {
    // SAFETY: it is null, or ends with a NUL and lives as long as the call of the hook.
    (!text.is_null()).then(|| unsafe { CStr::from_ptr(text) }.to_bytes())
}
