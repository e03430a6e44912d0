//! Messages to the user. Only this file maps failures to SQLSTATEs.

use std::borrow::Cow;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::atomic::{AtomicI64, Ordering};

use pg_sys::elog::PgLogLevel;
use pg_sys::errcodes::PgSqlErrorCode;
use pg_sys::panic::ErrorReport;
use pgrx_pg_sys as pg_sys;

/// Raises an ERROR. It unwinds to the entry guard, which passes it to Postgres.
#[track_caller]
pub fn raise(code: PgSqlErrorCode, message: impl Into<Cow<'static, str>>, detail: Option<String>) -> ! {
    let mut report = ErrorReport::new(code, message, "pg_meminfo");
    if let Some(detail) = detail {
        report = report.set_detail(detail);
    }
    report.report(PgLogLevel::ERROR);
    unreachable!("an ERROR does not return")
}

/// Raises the ERROR for a file that could not be read, with the SQLSTATE that errcode_for_file_access() would choose.
#[track_caller]
pub fn raise_file_access(path: &Path, source: &io::Error) -> ! {
    let path = printable(path);
    // Not strerror(): its texts are in the language and encoding of lc_messages, which may differ from the database's.
    let (code, reason) = match source.raw_os_error() {
        Some(libc::EACCES) => (PgSqlErrorCode::ERRCODE_INSUFFICIENT_PRIVILEGE, "Permission denied".to_string()),
        Some(libc::ENOENT) => (PgSqlErrorCode::ERRCODE_UNDEFINED_FILE, "No such file or directory".to_string()),
        Some(libc::EMFILE) => (PgSqlErrorCode::ERRCODE_INSUFFICIENT_RESOURCES, "Too many open files".to_string()),
        Some(libc::ENFILE) => {
            (PgSqlErrorCode::ERRCODE_INSUFFICIENT_RESOURCES, "Too many open files in system".to_string())
        }
        Some(libc::ENOMEM) => (PgSqlErrorCode::ERRCODE_OUT_OF_MEMORY, "Cannot allocate memory".to_string()),
        Some(libc::EIO) => (PgSqlErrorCode::ERRCODE_IO_ERROR, "Input/output error".to_string()),
        Some(libc::EISDIR) => (PgSqlErrorCode::ERRCODE_WRONG_OBJECT_TYPE, "Is a directory".to_string()),
        Some(errno) => (PgSqlErrorCode::ERRCODE_INTERNAL_ERROR, format!("operating system error {errno}")),
        None if source.kind() == io::ErrorKind::OutOfMemory => {
            (PgSqlErrorCode::ERRCODE_OUT_OF_MEMORY, "Cannot allocate memory".to_string())
        }
        None => (PgSqlErrorCode::ERRCODE_INTERNAL_ERROR, source.to_string()),
    };
    raise(code, format!("could not read file \"{path}\": {reason}"), None)
}

/// Raises the ERROR for a file whose content could not be parsed.
#[track_caller]
pub fn raise_malformed(path: &Path, detail: &impl ToString) -> ! {
    let message = format!("could not parse file \"{}\"", printable(path));
    raise(PgSqlErrorCode::ERRCODE_DATA_CORRUPTED, message, Some(detail.to_string()))
}

/// A path for a message. A data directory's name may be invalid in the database's encoding, and a name that is valid
/// there may still not be UTF-8.
fn printable(path: &Path) -> String {
    path.as_os_str().as_bytes().escape_ascii().to_string()
}

/// Reserves room for `additional` more elements, or raises the ERROR for a lack of memory. A plain `Vec` would abort
/// the process instead, and the postmaster would restart the whole cluster.
pub fn reserve<T>(vec: &mut Vec<T>, additional: usize) {
    if vec.try_reserve(additional).is_err() {
        raise_out_of_memory();
    }
}

/// Raises the ERROR for a lack of memory.
#[track_caller]
pub fn raise_out_of_memory() -> ! {
    raise(PgSqlErrorCode::ERRCODE_OUT_OF_MEMORY, "out of memory", None)
}

/// Emits a WARNING.
pub fn warn(message: String, hint: &'static str) {
    let report = ErrorReport::new(PgSqlErrorCode::ERRCODE_WARNING, message, "pg_meminfo").set_hint(hint);
    // Reporting can itself raise an ERROR, for example if the client's encoding lacks a character of the context. The
    // functions that pgrx calls to report do not turn an ERROR into an unwind, so the boundary guard here does.
    // SAFETY: this is the main thread. The report is freed before errfinish() is called. Before that, Postgres can fail
    // only in palloc() of the texts, if not even a few hundred bytes are left.
    unsafe { pg_sys::ffi::pg_guard_ffi_boundary(move || report.report(PgLogLevel::WARNING)) };
}

/// Writes a message to the log, and goes on.
pub fn log(message: String, detail: Option<String>) {
    let mut report = ErrorReport::new(PgSqlErrorCode::ERRCODE_SUCCESSFUL_COMPLETION, message, "pg_meminfo");
    if let Some(detail) = detail {
        report = report.set_detail(detail);
    }
    // SAFETY: as in warn().
    unsafe { pg_sys::ffi::pg_guard_ffi_boundary(move || report.report(PgLogLevel::LOG)) };
}

/// Writes to the log that something failed with a file, and goes on.
pub fn log_file(path: &Path, what: &str, source: &io::Error) {
    log(format!("{what} \"{}\": {source}", printable(path)), None);
}

/// Writes to the log that a panic, or an ERROR of Postgres, has been caught that must not fail the statement. Removes
/// the ERROR from Postgres's stack of errors.
pub fn forget(consequence: &str) {
    // SAFETY: whoever handles another ERROR at this moment has copied it before.
    unsafe { pg_sys::FlushErrorState() };
    log(consequence.to_string(), None);
}

/// Emits a message for developers if someone will see it.
pub fn debug(message: impl FnOnce() -> String) {
    // SAFETY: compares the level with two settings.
    if unsafe { pg_sys::message_level_is_interesting(PgLogLevel::DEBUG1 as i32) } {
        let report = ErrorReport::new(PgSqlErrorCode::ERRCODE_SUCCESSFUL_COMPLETION, message(), "pg_meminfo");
        // SAFETY: as in warn().
        unsafe { pg_sys::ffi::pg_guard_ffi_boundary(move || report.report(PgLogLevel::DEBUG1)) };
    }
}

/// Emits a WARNING unless the current statement has already emitted one. For functions that are called once for each of
/// many processes.
pub fn warn_once_a_statement(message: String, hint: &'static str) {
    /// The start time of the statement that emitted the last WARNING. It identifies a statement of the client.
    static LAST: AtomicI64 = AtomicI64::new(i64::MIN);
    // SAFETY: reads a plain variable.
    let statement = unsafe { pg_sys::GetCurrentStatementStartTimestamp() };
    if LAST.swap(statement, Ordering::Relaxed) != statement {
        warn(message, hint);
    }
}
