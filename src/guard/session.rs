//! What a session does for the guard: it keeps its own limit, and obeys only orders that mean its statement.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicI64, Ordering};

use crate::model::guard::End;
use crate::pg::{settings, signals, this_process};

use super::shared::{Slot, guards};

/// The slot of this process. Only client backends and parallel workers have one.
static SLOT: OnceLock<&'static Slot> = OnceLock::new();

/// The statement that the guard has ended, by its start. 0 if it has ended none.
static ENDED: AtomicI64 = AtomicI64::new(0);

/// The slot of this process, if it has one. It may be called in a signal handler.
pub fn slot() -> Option<&'static Slot> {
    SLOT.get().copied()
}

/// A client has been let in.
pub fn attach() {
    if !this_process::is_wal_sender() {
        take(settings::guard::session_memory_limit());
        signals::filter(is_meant);
    }
}

fn take(limit: Option<u64>) {
    if let Some(slot) = guards().and_then(|guards| guards.take(limit, settings::guard::guard_exempt()))
        && SLOT.set(slot).is_ok()
    {
        slot.apply();
        // Its pid can be that of another process soon.
        this_process::at_exit(leave);
    }
}

fn leave() {
    if let Some(slot) = slot() {
        slot.leave();
    }
}

/// The session has got this limit, in bytes, or none. A parallel worker gets that of its leader. In all other
/// processes nothing happens: in a client backend until it has been let in, when it gets the limit.
pub fn limit_to(limit: Option<u64>) {
    match slot().zip(guards()) {
        Some((slot, guards)) => slot.set_base(guards.base(limit)),
        None if this_process::is_parallel_worker() => take(limit),
        None => {}
    }
}

/// The guard is to leave this session alone, or not.
pub fn exempt(is_exempt: bool) {
    if let Some(slot) = slot() {
        slot.set_exempt(is_exempt);
    }
}

/// Whether a signal is to be handled: one of the guard's only if it means the statement that is being executed. Called
/// in the signal handler.
fn is_meant(signal: i32, sender: i32) -> bool {
    let (Some(slot), Some(guards)) = (slot(), guards()) else { return true };
    if sender == 0 || sender != guards.pid.load(Ordering::SeqCst) {
        return true;
    }
    let statement = this_process::statement_start();
    let end = if signal == libc::SIGINT { End::Cancel } else { End::Terminate };
    let is_meant = slot.has_order(statement, end);
    if is_meant {
        ENDED.store(statement, Ordering::SeqCst);
    }
    is_meant
}

/// Whether the guard has ended the statement that is being executed.
pub fn is_ended() -> bool {
    ENDED.load(Ordering::SeqCst) == this_process::statement_start()
}
