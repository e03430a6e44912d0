//! What a session does for the guard: it keeps its own limit, and obeys only orders that mean its statement.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};

use crate::model::guard::End;
use crate::pg::{backend_status, hooks, settings, signals, this_process, transactions};

use super::shared::{Slot, guards};

/// The slot of this process. Only client backends and parallel workers have one.
static SLOT: OnceLock<&'static Slot> = OnceLock::new();

/// The last signal was an order of the guard that is obeyed: 1 more than the number of the [`End`]. 0 if it was not.
static OBEYED: AtomicI32 = AtomicI32::new(0);

/// The slot of this process, if it has one. It may be called in a signal handler.
pub fn slot() -> Option<&'static Slot> {
    SLOT.get().copied()
}

/// A client is let in.
pub fn attach() {
    if !this_process::is_wal_sender() {
        take(settings::guard::session_memory_limit());
        signals::filter(is_meant);
    }
}

fn take(limit: Option<u64>) {
    let Some(guards) = guards() else { return };
    if let Some(slot) = guards.take(limit, settings::guard::guard_exempt())
        && SLOT.set(slot).is_ok()
    {
        guards.apply(slot);
        this_process::at_exit(lift);
        this_process::at_last(leave);
    }
}

/// The process leaves shared memory. Its pid can be that of another one soon.
fn leave() {
    if let Some(slot) = slot() {
        slot.leave();
    }
}

/// Lifts the limit until the transaction has ended: a commit or a rollback must not fail for want of memory. Postgres
/// has no way out then but a PANIC, which ends all sessions. If it does not end, but waits for the client's ROLLBACK,
/// this is until the next statement.
pub fn lift() {
    if let Some((slot, guards)) = slot().zip(guards())
        && guards.is_limited(slot)
        && transactions::call_at_last(lower)
    {
        guards.lift(slot);
        hooks::call_before_next();
    }
}

fn lower() {
    if let Some((slot, guards)) = slot().zip(guards()) {
        guards.lower(slot);
        lift_before_temporary_tables_go();
    }
}

/// When a session exits, it undoes its transaction before it removes its temporary tables, and that is before what has
/// been registered earlier.
fn lift_before_temporary_tables_go() {
    static IS_REGISTERED: AtomicBool = AtomicBool::new(false);
    if this_process::has_temporary_tables() && !IS_REGISTERED.swap(true, Ordering::Relaxed) {
        this_process::at_exit(lift);
    }
}

/// Something is about to be planned or executed, for the first time in this process, or for the first time since the
/// limit was lifted.
pub fn before_statement() {
    match slot() {
        Some(_) => lower(),
        None => join_leader(),
    }
}

/// A parallel worker of a session gets a slot, unless it has one.
pub fn join_leader() {
    if slot().is_none() {
        limit_worker(settings::guard::session_memory_limit());
    }
}

/// A parallel worker of a session gets a slot, and this limit.
fn limit_worker(limit: Option<u64>) {
    let is_for_session = || {
        let leader = this_process::leader().map(|(_, pid)| pid);
        guards().is_some_and(|guards| guards.used().any(|(pid, _)| Some(pid) == leader))
    };
    if this_process::is_parallel_worker() && is_for_session() {
        take(limit);
    }
}

/// The session has got this limit, in bytes, or none. A parallel worker gets that of its leader. In all other
/// processes nothing happens: in a client backend until it has been let in, when it gets the limit.
pub fn limit_to(limit: Option<u64>) {
    match slot().zip(guards()) {
        Some((slot, guards)) => {
            slot.set_base(guards.base(limit));
            guards.apply(slot);
            lift_before_temporary_tables_go();
        }
        None => limit_worker(limit),
    }
}

/// The guard is to leave this session alone, or not.
pub fn exempt(is_exempt: bool) {
    if let Some((slot, guards)) = slot().zip(guards()) {
        slot.set_exempt(is_exempt);
        guards.apply(slot);
    }
}

/// Whether a signal is to be handled: one of the guard's only if it means what the session executes. Called in the
/// signal handler.
fn is_meant(signal: i32, sender: i32) -> bool {
    let (Some(slot), Some(guards)) = (slot(), guards()) else { return true };
    let end = if signal == libc::SIGINT { End::Cancel } else { End::Terminate };
    if sender == 0 || sender != guards.pid.load(Ordering::SeqCst) {
        OBEYED.store(0, Ordering::SeqCst);
        return true;
    }
    let Some(statement) = backend_status::own_statement() else { return false };
    // A new message may have arrived that pg_stat_activity does not show yet. For a session that is to be terminated it
    // makes no difference.
    let is_current = end == End::Terminate || this_process::statement_start() == statement;
    let is_meant = is_current && slot.has_order(statement, end);
    if is_meant {
        OBEYED.store(end as i32 + 1, Ordering::SeqCst);
    }
    is_meant
}

/// Whether the guard is the reason why the session ends its statement, or itself. Asked once.
pub fn was_told(end: End) -> bool {
    OBEYED.compare_exchange(end as i32 + 1, 0, Ordering::SeqCst, Ordering::SeqCst).is_ok()
}
