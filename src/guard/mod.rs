//! The guard: an ERROR in one session instead of the OOM killer, which would end all of them.
//!
//! Each session keeps its own limit, `pg_meminfo.session_memory_limit`, by RLIMIT_DATA ([`session`]). While memory runs
//! short, the recorder lowers these limits and chooses whose statement is ended ([`controller`], which carries out what
//! [`crate::model::guard`] decides). The two know of each other by shared memory ([`shared`]). What a session says of
//! the ERROR is in [`message`].

pub mod controller;
mod message;
mod session;
pub mod shared;

use crate::pg::settings::guard::{Observer, observe};
use crate::pg::{authentication, hooks, log_hook, shared_memory, transactions};

/// Starts all of it. Called when the postmaster loads the library.
pub fn install() {
    shared_memory::install::<shared::Guards>();
    observe(Observer { session_memory_limit: session::limit_to, guard_exempt: session::exempt });
    authentication::install(session::attach);
    transactions::before_commit(session::lift);
    hooks::before_rollback(session::lift);
    hooks::before_next(session::before_statement);
    log_hook::edit(message::edit);
}
