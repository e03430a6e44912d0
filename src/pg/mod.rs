//! Postgres's side: the C ABI. Nothing here knows `/proc`.
//!
//! # Rules of this boundary
//!
//! Postgres enters only through [`fmgr`], where a guard turns a Rust panic into an ERROR. We enter Postgres only through
//! functions of `pgrx_pg_sys`, each of which catches Postgres's longjmp and goes on as an unwind, so that our
//! destructors run and descriptors close. Hence:
//!
//! - no call through a function pointer, and no `extern` block of our own: those would jump over our frames;
//! - no ERROR swallowed: it stays on Postgres's error stack until the guard rethrows it;
//! - no `Drop` that calls Postgres: it may run while an ERROR is under way;
//! - nothing that outlives the process relies on `Drop`: FATAL runs none.

pub mod access;
pub mod backends;
pub mod compat;
pub mod encoding;
pub mod error;
pub mod fd;
pub mod fmgr;
pub mod interrupts;
pub mod main_segment;
pub mod rows;
pub mod settings;
