//! The interface to Postgres: its C ABI. Nothing here knows `/proc`.
//!
//! # Rules of this boundary
//!
//! Postgres calls us only through [`fmgr`], where a guard turns a Rust panic into an ERROR. We call Postgres only
//! through functions of `pgrx_pg_sys`. Each of them catches Postgres's longjmp and continues as an unwind, so that our
//! destructors run and descriptors are closed. Therefore:
//!
//! - No calls through function pointers and no `extern` blocks of our own: a longjmp from there would skip our frames.
//!   [`hooks`] is the exception, with [`shared_memory`], [`log_hook`], [`authentication`] and [`timeout`]: their frames
//!   may be skipped. [`signals`] calls the handlers of Postgres, which raise no ERROR.
//!   Functions that never raise an ERROR are declared where they are used for each statement.
//! - No ERROR is swallowed: it stays on Postgres's error stack until the guard rethrows it. [`error::forget`] is the
//!   exception, for what hooks do beside a statement, which must not fail because of it. It takes the ERROR off the
//!   stack, and this process follows no statements any more, so whatever has failed is not tried again. What runs there
//!   is our own bookkeeping alone, and a lock that it holds is released while the ERROR unwinds: nothing is left for a
//!   rollback to undo.
//! - No `Drop` calls Postgres: it may run while an ERROR is being raised.
//! - Nothing that outlives the process relies on `Drop`: FATAL does not run destructors.

pub mod access;
pub mod authentication;
pub mod backend_status;
pub mod backends;
pub mod background_worker;
pub mod compat;
pub mod encoding;
pub mod error;
pub mod fd;
pub mod fmgr;
pub mod hooks;
pub mod interrupts;
pub mod log_hook;
pub mod main_segment;
pub mod memory_contexts;
pub mod rows;
pub mod settings;
pub mod shared_memory;
pub mod signals;
pub mod this_process;
pub mod timeout;
pub mod transactions;
