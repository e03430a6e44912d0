//! The SQL functions, one file for each group of functions. Each file gets its data from `cluster` or `proc` and turns
//! it into rows, WARNINGs and ERRORs.
//!
//! # Released symbols
//!
//! Until ALTER EXTENSION UPDATE, a server can run this library with a database whose extension is still at an older
//! version. Therefore a C symbol that has been released keeps its columns, so that the functions of the old script
//! still work. A function whose columns change gets a new symbol, with the version in its name (`pg_meminfo_host_1_1`),
//! which the upgrade script uses. The old symbol stays, with its own `rows!`. `tests/releases/` lists the functions of
//! each release, and a test calls all of them.

mod cluster;
mod contexts;
mod guard;
mod history;
mod host;
mod private;
mod processes;
mod report;
mod segments;
mod smaps;
mod statements;

use pg_sys::errcodes::PgSqlErrorCode;
use pgrx_pg_sys as pg_sys;

use crate::pg::error;
use crate::statements::shared;

/// Raises an ERROR unless the library is in shared_preload_libraries.
fn require_preloaded() {
    if !shared::is_there() {
        error::raise(
            PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
            "pg_meminfo must be loaded via \"shared_preload_libraries\"",
            None,
        );
    }
}
