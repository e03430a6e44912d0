//! What each statement needs at its peak: hooks watch the statements of each process, and a table in shared memory
//! keeps those that have needed much.
//!
//! This needs the library in shared_preload_libraries. Nothing here ever fails a statement: what goes wrong is logged,
//! and statements are no longer followed.

pub mod saved;
mod session;
pub mod shared;

use crate::pg::{hooks, settings, shared_memory, transactions};

/// Starts all of it. Called when the postmaster loads the library.
pub fn install() {
    shared_memory::install::<shared::Statements>();
    hooks::install::<session::Observer>();
    transactions::install::<session::Observer>();
    settings::observe_statements(session::observe_setting);
    session::observe_setting(settings::statements());
}
