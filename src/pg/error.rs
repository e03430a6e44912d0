//! Messages to the user, and the one map from failures to SQLSTATEs.

use std::borrow::Cow;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::atomic::{AtomicI64, Ordering};

use pg_sys::elog::PgLogLevel;
use pg_sys::errcodes::PgSqlErrorCode;
use pg_sys::panic::ErrorReport;
use pgrx_pg_sys as pg_sys;

/// Raises an ERROR. It unwinds to the entry guard, which hands it to Postgres.
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
    let path = storable(path);
    // The system's own texts are in the language and the encoding of lc_messages, which need not be the database's.
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

/// Raises the ERROR for a file that could be read, and made no sense.
#[track_caller]
pub fn raise_malformed(path: &Path, detail: &impl ToString) -> ! {
    let message = format!("could not parse file \"{}\"", storable(path));
    raise(PgSqlErrorCode::ERRCODE_DATA_CORRUPTED, message, Some(detail.to_string()))
}

/// A path for a message. A data directory's name need not be valid in the database's encoding, and what is valid there need not
/// be UTF-8.
fn storable(path: &Path) -> String {
    path.as_os_str().as_bytes().escape_ascii().to_string()
}

/// Makes room for so many more elements, or raises the ERROR for a lack of memory; a `Vec` alone would abort, and the whole
/// cluster with it.
pub fn reserve<T>(vec: &mut Vec<T>, additional: usize) {
    if vec.try_reserve(additional).is_err() {
        raise(PgSqlErrorCode::ERRCODE_OUT_OF_MEMORY, "out of memory", None);
    }
}

/// Emits a WARNING.
pub fn warn(message: String, hint: &'static str) {
    let report = ErrorReport::new(PgSqlErrorCode::ERRCODE_WARNING, message, "pg_meminfo").set_hint(hint);
    // Reporting can itself fail, for example if the client's encoding lacks a character of the context, and the functions
    // that it calls are none of those that turn an ERROR into an unwind.
    // SAFETY: this is the main thread. The report is freed before errfinish(), where Postgres can fail. Only palloc of its texts
    // comes before that, and fails if there are no few hundred bytes left.
    unsafe { pg_sys::ffi::pg_guard_ffi_boundary(move || report.report(PgLogLevel::WARNING)) };
}

/// Emits a WARNING, unless this statement has emitted one of this kind before. For functions that are called once for
/// each of many processes.
pub fn warn_once_a_statement(message: String, hint: &'static str) {
    /// When the statement started that emitted the last one; a client's statement is known by that.
    static LAST: AtomicI64 = AtomicI64::new(i64::MIN);
    // SAFETY: reads a plain variable.
    let statement = unsafe { pg_sys::GetCurrentStatementStartTimestamp() };
    if LAST.swap(statement, Ordering::Relaxed) != statement {
        warn(message, hint);
    }
}
