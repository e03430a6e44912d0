//! Messages to the user, and the one map from failures to SQLSTATEs.

use std::borrow::Cow;
use std::io;
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
    let code = match source.raw_os_error() {
        Some(libc::EACCES | libc::EPERM) => PgSqlErrorCode::ERRCODE_INSUFFICIENT_PRIVILEGE,
        Some(libc::ENOENT) => PgSqlErrorCode::ERRCODE_UNDEFINED_FILE,
        Some(libc::EMFILE | libc::ENFILE) => PgSqlErrorCode::ERRCODE_INSUFFICIENT_RESOURCES,
        Some(libc::ENOMEM) => PgSqlErrorCode::ERRCODE_OUT_OF_MEMORY,
        Some(libc::EIO) => PgSqlErrorCode::ERRCODE_IO_ERROR,
        Some(libc::ENOTDIR | libc::EISDIR) => PgSqlErrorCode::ERRCODE_WRONG_OBJECT_TYPE,
        _ => PgSqlErrorCode::ERRCODE_INTERNAL_ERROR,
    };
    let reason = source.to_string();
    // Postgres's %m has the text alone, without the number that Rust adds.
    let reason = reason.split(" (os error").next().unwrap_or_default();
    raise(code, format!("could not read file \"{}\": {reason}", path.display()), None)
}

/// Emits a WARNING.
pub fn warn(message: String, hint: &'static str) {
    ErrorReport::new(PgSqlErrorCode::ERRCODE_WARNING, message, "pg_meminfo").set_hint(hint).report(PgLogLevel::WARNING);
}

/// Emits a WARNING, unless this statement has emitted one of this kind before. For functions that are called once for
/// each of many processes.
pub fn warn_once_a_statement(message: String, hint: &'static str) {
    /// When the statement started that emitted the last one; a client's statement is known by that.
    static LAST: AtomicI64 = AtomicI64::new(0);
    // SAFETY: reads a plain variable.
    let statement = unsafe { pg_sys::GetCurrentStatementStartTimestamp() };
    if LAST.swap(statement, Ordering::Relaxed) != statement {
        warn(message, hint);
    }
}
