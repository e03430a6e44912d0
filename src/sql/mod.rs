//! The SQL functions, one file for each family: each asks `cluster` or `proc`, and makes rows, WARNINGs and ERRORs of the answer.
//!
//! # Released symbols
//!
//! A server can run this library with a database whose extension is still at an older version, until ALTER EXTENSION UPDATE. So
//! a C symbol, once it is in a release, keeps its columns, and a function of the old script that names it goes on working. A
//! function whose columns change gets a new symbol, with the version in its name (`pg_meminfo_host_1_1`), to which the
//! upgrade script points; the old symbol stays, with its own `rows!`. `tests/releases/` has the functions of each release, and
//! a test calls them all.

mod cluster;
mod host;
mod private;
mod processes;
mod report;
mod segments;
mod smaps;
