//! The recorder: what held memory at any time of the past, also before the server crashed.
//!
//! A background worker takes samples and writes them to files in `pg_stat_tmp`, which a crash leaves as they are, and
//! base backups leave out. Sessions read the files without asking it. The postmaster notes which of its children were
//! ended by a signal; the worker makes incidents of that when it has started again.

mod deaths;
pub mod files;
pub mod history;
mod sampler;
mod worker;

use pgrx_pg_sys as pg_sys;

use crate::pg::{background_worker, log_hook, settings, this_process};

/// Starts all of it. Called when the postmaster loads the library.
pub fn install() {
    if settings::recorder() && !this_process::is_upgrade() {
        log_hook::observe::<deaths::Postmaster>();
        background_worker::register(c"pg_meminfo recorder", c"pg_meminfo_recorder_main");
    }
}

/// The main function of the worker.
// SAFETY: the name is the one that the worker is registered with, and no other object in this library has it.
#[unsafe(no_mangle)]
unsafe extern "C-unwind" fn pg_meminfo_recorder_main(_: pg_sys::Datum) {
    // SAFETY: Postgres is the caller, and there is nothing else in this frame.
    unsafe { pg_sys::panic::pgrx_extern_c_guard(background_worker::run::<worker::Recorder>) }
}
