//! Messages on their way to the log: what the postmaster says about its children, and ERRORs that are to say more.
//!
//! The frame of the hook is plain, as those of [`super::hooks`]: another extension's hook may raise an ERROR through
//! it.
#![allow(ffi_unwind_calls)]

use core::ffi::{CStr, c_char, c_int};
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

/// Changes what an ERROR says. It must not unwind, and relies on no memory: there may be none left.
pub type Editor = fn(&mut Report);

/// An ERROR or a FATAL, before it is written to the log and sent to the client.
#[derive(Debug)]
pub struct Report(*mut pg_sys::ErrorData);

type Told = fn(&[u8], Option<&[u8]>);

type Hook = unsafe extern "C-unwind" fn(*mut pg_sys::ErrorData);

static NEXT: OnceLock<Option<Hook>> = OnceLock::new();
static OBSERVER: OnceLock<Told> = OnceLock::new();
static EDITOR: OnceLock<Editor> = OnceLock::new();

/// Lets an observer be told. Called once, when the postmaster loads the library.
pub fn observe<O: Observer>() {
    OBSERVER.set(O::child_was_terminated).expect("called once");
    install();
}

/// Lets ERRORs be changed. Called once, when the postmaster loads the library.
pub fn edit(editor: Editor) {
    EDITOR.set(editor).expect("called once");
    install();
}

fn install() {
    // SAFETY: a plain variable, which only the main thread uses.
    let next = unsafe { pg_sys::emit_log_hook };
    if NEXT.set(next).is_ok() {
        // SAFETY: as above.
        unsafe { pg_sys::emit_log_hook = Some(emit) };
    }
}

unsafe extern "C-unwind" fn emit(data: *mut pg_sys::ErrorData) {
    // SAFETY: a plain variable.
    let is_postmaster = !unsafe { pg_sys::IsUnderPostmaster };
    if is_postmaster {
        // SAFETY: Postgres passes a valid record.
        let data = unsafe { &*data };
        if text(data.message_id) == Some(TERMINATED.to_bytes())
            && let Some(message) = text(data.message)
            && let Some(observer) = OBSERVER.get()
        {
            observer(message, text(data.detail));
        }
    } else if let Some(editor) = EDITOR.get() {
        // SAFETY: as above.
        let level = unsafe { (*data).elevel };
        if level >= pg_sys::elog::PgLogLevel::ERROR as c_int {
            editor(&mut Report(data));
        }
    }
    if let Some(Some(next)) = NEXT.get() {
        // SAFETY: called as Postgres would.
        unsafe { next(data) };
    }
}

impl Report {
    fn data(&self) -> &pg_sys::ErrorData {
        // SAFETY: Postgres passes a valid record to the hook, and this lives no longer.
        unsafe { &*self.0 }
    }

    /// The message before it is translated.
    pub fn message_id(&self) -> Option<&[u8]> {
        text(self.data().message_id)
    }

    /// Whether its SQLSTATE is out_of_memory.
    pub fn is_out_of_memory(&self) -> bool {
        self.data().sqlerrcode == pg_sys::errcodes::PgSqlErrorCode::ERRCODE_OUT_OF_MEMORY as c_int
    }

    /// The detail.
    pub fn detail(&self) -> Option<&[u8]> {
        text(self.data().detail)
    }

    /// Whether it has a hint.
    pub fn has_hint(&self) -> bool {
        !self.data().hint.is_null()
    }

    /// Sets the message. If there is no memory for a copy, it stays as it is.
    pub fn set_message(&mut self, message: &CStr) {
        if let Some(copy) = self.copy(message) {
            // SAFETY: as in data().
            unsafe { (*self.0).message = copy };
        }
    }

    /// Sets the detail, likewise.
    pub fn set_detail(&mut self, detail: &CStr) {
        if let Some(copy) = self.copy(detail) {
            // SAFETY: as in data().
            unsafe { (*self.0).detail = copy };
        }
    }

    /// Sets the hint, likewise.
    pub fn set_hint(&mut self, hint: &CStr) {
        if let Some(copy) = self.copy(hint) {
            // SAFETY: as in data().
            unsafe { (*self.0).hint = copy };
        }
    }

    /// A copy in the report's memory context, for which Postgres keeps some memory: it frees the texts of a FATAL. The
    /// former text is left to that context, which is emptied soon.
    fn copy(&self, text: &CStr) -> Option<*mut c_char> {
        let bytes = text.to_bytes_with_nul();
        let (context, flags) = (self.data().assoc_context, pg_sys::MCXT_ALLOC_NO_OOM as c_int);
        // SAFETY: the context is that of the report. With this flag, a lack of memory is no ERROR.
        let copy = unsafe { pg_sys::MemoryContextAllocExtended(context, bytes.len(), flags) }.cast::<c_char>();
        if copy.is_null() {
            return None;
        }
        // SAFETY: it has that size.
        unsafe { core::ptr::copy_nonoverlapping(bytes.as_ptr().cast(), copy, bytes.len()) };
        Some(copy)
    }
}

fn text<'a>(text: *const c_char) -> Option<&'a [u8]> {
    // SAFETY: it is null, or ends with a NUL and lives as long as the call of the hook.
    (!text.is_null()).then(|| unsafe { CStr::from_ptr(text) }.to_bytes())
}
