//! The statements of this process.

use std::cell::{Cell, UnsafeCell};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering, compiler_fence};

use crate::model::statements::executions::{Abort, Execution, Needs, Start};
use crate::model::statements::follower::Follower;
use crate::model::statements::meter::{HEAVY, Mark, Peak, Probe, Sample};
use crate::model::statements::table::{Call, Key};
use crate::pg::hooks::{self, Planning, Query, Text, Utility};
use crate::pg::{error, fd, settings, this_process, timeout, transactions};
use crate::proc::clock::Clock;
use crate::proc::own_memory::OwnMemory;

use super::shared::{self, Slot, Workers};

/// Plans that are cheaper than this end soon, so their memory is not looked at while they run.
const COSTLY: f64 = 1000.0;

/// A statement that is being executed.
#[derive(Debug)]
struct Statement {
    key: Key,
    /// It has no query id of its own, as the query of a cursor, and counts only if none is around it when it ends.
    is_part: bool,
    text: Text,
    /// Whether the text is still valid while an ERROR is handled.
    outlives_error: bool,
    growth_planning: u64,
    workers: Workers,
}

/// What is known of a query that has been planned, until it is executed.
#[derive(Debug)]
struct Planned {
    query_id: i64,
    depth: usize,
    needs: Needs,
}

/// The memory of this process. Before its mark is lowered, others are told how high it was.
#[derive(Debug)]
struct Memory {
    own: OwnMemory,
    slot: Option<&'static Slot>,
    mark: u64,
    /// The files could not be opened, and are not tried again.
    has_no_files: bool,
}

impl Probe for Memory {
    fn mark(&mut self) -> Mark {
        let mark = self.own.mark();
        self.mark = mark.resident;
        mark
    }

    fn sample(&mut self) -> Option<Sample> {
        if !self.own.is_open() && !self.has_no_files {
            self.own.open();
            self.has_no_files = !self.own.is_open();
            if self.own.is_open() {
                fd::keep(2);
            }
        }
        let sample = self.own.sample();
        if let Some((slot, sample)) = self.slot.zip(sample) {
            slot.keep_peak_private(sample.private);
        }
        sample
    }

    fn tell(&mut self, peak: Peak) {
        if let Some(slot) = self.slot {
            slot.keep_peak_private(peak.at_least);
        }
    }

    fn lower_mark(&mut self) -> bool {
        if let Some(slot) = self.slot {
            slot.keep_peak_rss(self.mark);
        }
        self.own.lower_mark()
    }

    fn is_open(&self) -> bool {
        self.own.is_open()
    }
}

/// What this process does.
struct Session {
    clock: Clock,
    follower: Follower<Memory, Statement>,
    planned: Option<Planned>,
    /// The last heavy statement of the client, and what the session held before it.
    last_heavy: Option<(Key, u64)>,
    is_ticking: bool,
    is_worker: bool,
    /// The largest growth in a parallel worker.
    worker_growth: u64,
    /// What this process held when it was first looked at, in bytes.
    first_private: u64,
    /// Whether a statement has been executed since the last transaction.
    has_executed: bool,
}

/// The session of this process, from its first statement on.
struct Place(UnsafeCell<Option<Session>>);

// SAFETY: only the main thread and its signal handler use it, and never at the same time: see IS_BUSY.
unsafe impl Sync for Place {}

static SESSION: Place = Place(UnsafeCell::new(None));

/// Whether the main thread is using the session. The signal handler then leaves it alone.
static IS_BUSY: AtomicBool = AtomicBool::new(false);

/// Whether something has failed in this process, so that nothing is followed any more.
static HAS_FAILED: AtomicBool = AtomicBool::new(false);

/// What the session has not been told yet. Nearly every statement is small, and what happens next after its start is
/// its end. Such a one is only noted here, for one look at the clock. If anything else happens first, the session is
/// told all of it.
#[repr(align(64))]
struct Latest {
    /// The query that has started or gone on last, or its planning. 0 if there is nothing to tell.
    id: Cell<usize>,
    /// It has started, and the session does not know.
    is_new: Cell<bool>,
    /// It has just been started or run to its end. So it waits, unless it is the next to go on.
    is_paused: Cell<bool>,
    /// The session knows of nothing that has not ended, and needs no sample before the next start.
    is_quiet: Cell<bool>,
    /// The session knows of something that has not ended.
    has_open: Cell<bool>,
    /// When the client's message arrived by which it has started.
    since: Cell<u64>,
    /// How it has started.
    noted: Cell<Noted>,
}

/// What is noted of a start.
#[derive(Clone, Copy)]
struct Noted {
    handler: usize,
    level: i32,
    user: u32,
    query_id: i64,
    text: Text,
    outlives_error: bool,
}

// SAFETY: only the main thread uses it, and not in its signal handler.
unsafe impl Sync for Latest {}

static LATEST: Latest = Latest {
    id: Cell::new(0),
    is_new: Cell::new(false),
    is_paused: Cell::new(false),
    is_quiet: Cell::new(false),
    has_open: Cell::new(false),
    since: Cell::new(0),
    noted: Cell::new(Noted { handler: 0, level: 0, user: 0, query_id: 0, text: Text::NONE, outlives_error: false }),
};

impl Latest {
    /// Takes note of the start of something that is to be noted. False if it is not.
    #[inline]
    fn note(&self, id: usize, query_id: i64, text: Text) -> bool {
        if !self.is_quiet.get() || self.id.get() != 0 {
            return false;
        }
        self.id.set(id);
        self.is_new.set(true);
        self.since.set(this_process::message_arrived());
        self.noted.set(Noted {
            handler: hooks::error_handler(),
            level: transactions::level(),
            user: this_process::user(),
            query_id: or_reported(query_id),
            text,
            outlives_error: text.outlives_error(),
        });
        true
    }

    /// The end of what was noted. False if the session must be told of it.
    #[inline]
    fn forget(&self, id: usize) -> bool {
        if self.id.get() != id {
            return false;
        }
        self.is_paused.set(false);
        if !self.is_new.get() {
            self.id.set(0);
            return false;
        }
        // SAFETY: see Place. The signal handler is not called before the session is told.
        let session = unsafe { &mut *SESSION.0.get() }.as_mut();
        let is_light = session.is_some_and(|session| session.follower.is_light(self.since.get(), session.clock.now()));
        if is_light {
            self.id.set(0);
            self.is_new.set(false);
        }
        is_light
    }

    /// Tells the session.
    #[inline]
    fn tell(&self, session: &mut Session) {
        let id = self.id.replace(0);
        if id == 0 {
            return;
        }
        if self.is_new.replace(false) {
            let Noted { handler, level, user, query_id, text, outlives_error } = self.noted.get();
            let start = Start { id, handler, level, outlives_transaction: false, shared_may_shrink: false };
            let key = Key { user, database: this_process::database(), query_id, toplevel: 1 };
            session.start(self.since.get(), start, None, Statement::new(key, false, text, outlives_error));
        }
        if self.is_paused.replace(false) {
            session.follower.wait(session.clock.now(), id);
            session.stop_ticking_if_idle();
        }
    }

    /// Nothing is followed any more.
    fn give_up(&self) {
        self.id.set(0);
        self.is_new.set(false);
        self.is_quiet.set(false);
        self.has_open.set(false);
    }
}

/// Whether statements are to be followed.
#[inline]
pub fn is_watching() -> bool {
    settings::statements() || has_open()
}

/// Whether something that was started has not ended.
#[inline]
fn has_open() -> bool {
    LATEST.id.get() != 0 || LATEST.has_open.get()
}

/// Statements are to be followed from now on, or not. Query ids are computed from the first time on.
pub fn observe_setting(is_on: bool) {
    if is_on {
        hooks::enable_query_ids();
        hooks::watch();
    }
}

/// Runs something with the session, if there is one. No panic and no ERROR gets out.
#[inline]
fn with_session(run: impl FnOnce(&mut Session)) {
    if HAS_FAILED.load(Ordering::Relaxed) {
        return;
    }
    IS_BUSY.store(true, Ordering::Relaxed);
    compiler_fence(Ordering::SeqCst);
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        // SAFETY: see Place. What runs does not call this function again.
        let place = unsafe { &mut *SESSION.0.get() };
        if let Some(session) = place {
            LATEST.tell(session);
            run(session);
            let has_open = !session.follower.executions().is_empty();
            LATEST.has_open.set(has_open);
            LATEST.is_quiet.set(!has_open && session.is_quiet());
        }
    }));
    compiler_fence(Ordering::SeqCst);
    IS_BUSY.store(false, Ordering::Relaxed);
    if outcome.is_err() {
        HAS_FAILED.store(true, Ordering::Relaxed);
        LATEST.give_up();
        timeout::stop();
        // If even that fails, nothing is said.
        let _ = catch_unwind(|| error::forget("pg_meminfo no longer follows the statements of this process"));
    }
}

/// Begins to follow this process.
#[inline]
fn attach() {
    // SAFETY: see Place. The signal handler is registered later.
    if unsafe { (*SESSION.0.get()).is_none() } {
        attach_for_the_first_time();
    }
}

#[cold]
fn attach_for_the_first_time() {
    if !this_process::is_child() || !shared::is_there() || HAS_FAILED.load(Ordering::Relaxed) {
        HAS_FAILED.store(true, Ordering::Relaxed);
        return;
    }
    let mut own = OwnMemory::default();
    own.open();
    let Some(mut follower) = Follower::new(Memory { own, slot: Slot::take(), mark: 0, has_no_files: false }) else {
        HAS_FAILED.store(true, Ordering::Relaxed);
        return;
    };
    // Most sessions never need them again.
    follower.probe.own.close();
    let session = Session {
        clock: Clock::fastest(),
        first_private: follower.meter.private(),
        has_executed: false,
        follower,
        planned: None,
        last_heavy: None,
        is_ticking: false,
        is_worker: this_process::is_parallel_worker(),
        worker_growth: 0,
    };
    // SAFETY: as in attach().
    unsafe { *SESSION.0.get() = Some(session) };
}

/// Called every few milliseconds while something costly runs.
unsafe extern "C-unwind" fn tick() {
    if IS_BUSY.load(Ordering::Relaxed) || HAS_FAILED.load(Ordering::Relaxed) {
        return;
    }
    // SAFETY: the main thread is not using it, and does not run before this returns.
    if let Some(session) = unsafe { &mut *SESSION.0.get() }
        && session.follower.probe.is_open()
    {
        session.follower.meter.sample(&mut session.follower.probe);
    }
}

/// A statement that starts here.
#[inline]
fn statement(is_toplevel: bool, query_id: i64, text: Text) -> Statement {
    let has_id = query_id != 0;
    let key = Key {
        user: this_process::user(),
        database: this_process::database(),
        query_id: or_reported(query_id),
        toplevel: (is_toplevel || !has_id).into(),
    };
    Statement::new(key, !is_toplevel && !has_id, text, text.outlives_error())
}

impl Statement {
    fn new(key: Key, is_part: bool, text: Text, outlives_error: bool) -> Self {
        Statement { key, is_part, text, outlives_error, growth_planning: 0, workers: Workers::default() }
    }
}

/// The query id, or the reported one if it is 0: another extension has hidden it, or there is none, as for the query of
/// a cursor in PostgreSQL 15.
#[inline]
fn or_reported(query_id: i64) -> i64 {
    if query_id != 0 { query_id } else { hooks::reported_query_id() }
}

/// A start at this place. A utility statement can end its own transaction.
#[inline]
fn start(id: usize, is_utility: bool, shared_may_shrink: bool) -> Start {
    Start {
        id,
        handler: hooks::error_handler(),
        level: transactions::level(),
        outlives_transaction: is_utility,
        shared_may_shrink,
    }
}

impl Session {
    /// Whether the next statement can be noted without telling the session.
    fn is_quiet(&self) -> bool {
        let is_client = !self.is_worker && !this_process::is_background();
        is_client && !self.follower.meter.is_stale() && self.planned.is_none()
    }

    fn statement(&self, query_id: i64, text: Text) -> Statement {
        statement(self.follower.executions().is_idle(), query_id, text)
    }

    /// When the time of what starts now begins to count.
    fn now(&self) -> u64 {
        if self.follower.executions().is_idle() { this_process::message_arrived() } else { self.clock.now() }
    }

    /// A statement starts.
    fn start(&mut self, now: u64, start: Start, planning: Option<Needs>, statement: Statement) {
        let is_idle = self.follower.executions().is_idle();
        let private = self.follower.start(now, start, planning, statement);
        if is_idle && let Some(private) = private {
            self.settle(private);
        }
    }

    /// What the last heavy statement has left behind.
    #[cold]
    fn settle(&mut self, private: u64) {
        if let Some((key, base)) = self.last_heavy.take() {
            shared::write(|table, _| table.keep(key, private.saturating_sub(base)));
        }
    }

    fn tick_while_running(&mut self) {
        let interval = settings::statements_interval();
        if !self.is_ticking && interval > 0 {
            self.is_ticking = true;
            // The signal handler opens no files.
            if !self.follower.probe.is_open() {
                self.follower.probe.sample();
            }
            timeout::start(tick, interval);
        }
    }

    fn stop_ticking_if_idle(&mut self) {
        if self.is_ticking && self.follower.executions().is_idle() {
            self.is_ticking = false;
            timeout::stop();
        }
    }

    /// A statement ends. `has_workers` says whether parallel workers can have worked for it.
    fn end(&mut self, id: usize, has_workers: bool) {
        let now = self.clock.now();
        if let Some(mut execution) = self.follower.finish(now, id) {
            if has_workers && let Some(workers) = self.take_workers() {
                execution.statement.workers.merge(workers);
            }
            if is_heavy(&execution.needs, execution.statement.workers) {
                self.record(execution, false, false);
            }
        }
        self.stop_ticking_if_idle();
    }

    /// What parallel workers have needed. It belongs to all statements that are running.
    fn take_workers(&mut self) -> Option<Workers> {
        let workers = self.follower.probe.slot?.take_workers()?;
        for execution in self.follower.iter_running() {
            execution.statement.workers.merge(workers);
        }
        Some(workers)
    }

    /// Adds a statement that has grown to the table. `was_ended` says whether it ended without its own end, and
    /// `is_error` whether an ERROR in it was the reason.
    #[cold]
    fn record(&mut self, execution: Execution<Statement>, was_ended: bool, is_error: bool) {
        if self.is_worker {
            self.worker_growth = self.worker_growth.max(execution.needs.growth);
            return;
        }
        let (statement, needs) = (&execution.statement, &execution.needs);
        let is_counted_elsewhere = statement.is_part && !self.follower.executions().is_idle();
        if is_counted_elsewhere {
            return;
        }
        // SAFETY: it has not ended, or its text is valid while an ERROR is handled.
        let text = (!was_ended || statement.outlives_error)
            .then(|| unsafe { statement.text.copy(settings::query_size()) })
            .flatten();
        let call = Call { is_error, growth_planning: statement.growth_planning, ..Call::default() };
        add_call(statement.key, needs, statement.workers, call, text.as_deref());
        if statement.key.toplevel != 0 {
            self.last_heavy = Some((statement.key, needs.base));
        }
    }

    fn abort(&mut self, abort: Abort) {
        let now = self.clock.now();
        self.take_workers();
        let mut dead = Vec::new();
        self.follower.abort(now, abort, |execution, was_running| {
            if is_heavy(&execution.needs, execution.statement.workers) && dead.try_reserve(1).is_ok() {
                dead.push((execution, was_running));
            }
        });
        let has_whole = dead.iter().any(|(execution, _)| !execution.statement.is_part);
        for (execution, was_running) in dead {
            if execution.statement.is_part && has_whole {
                continue;
            }
            self.record(execution, true, was_running);
        }
        self.stop_ticking_if_idle();
    }

    /// What a process has needed that executes no statements of a client.
    fn end_background(&mut self) {
        // What it has executed counts for itself.
        let has_executed = std::mem::take(&mut self.has_executed) || !self.follower.executions().is_idle();
        if has_executed {
            return;
        }
        self.follower.meter.sample_if_risen(&mut self.follower.probe);
        let Some(finding) = self.follower.meter.take() else { return };
        let mut needs = Needs::from(self.first_private);
        needs.add(finding);
        let workers = self.take_workers().unwrap_or_default();
        if !is_heavy(&needs, workers) {
            return;
        }
        let key = Key { user: this_process::user(), database: this_process::database(), query_id: 0, toplevel: 1 };
        add_call(key, &needs, workers, Call::default(), hooks::activity().as_deref());
    }
}

/// Whether a statement is worth to be kept.
fn is_heavy(needs: &Needs, workers: Workers) -> bool {
    needs.growth >= HEAVY || workers.all >= HEAVY
}

/// Adds to the table what a call that has just ended has needed. `call` says the rest. Without memory for it, the call
/// is left out.
fn add_call(key: Key, needs: &Needs, workers: Workers, call: Call, text: Option<&[u8]>) {
    let call = Call {
        peak: needs.peak.at_least,
        peak_at_most: needs.peak.at_most,
        growth: needs.growth,
        workers_peak: workers.all,
        worker_peak_max: workers.largest,
        major_faults: needs.major_faults,
        at: this_process::now(),
        pid: this_process::pid() as u64,
        text,
        ..call
    };
    let _ = shared::write(|table, _| table.add(key, &call));
}

/// Tells the session what it has not been told yet.
#[cold]
fn tell() {
    with_session(|_| {});
}

/// A query that has waited goes on.
#[cold]
fn resume(query: &Query) {
    with_session(|session| {
        session.follower.resume(session.now(), query.id(), hooks::error_handler(), transactions::level());
        if query.cost() >= COSTLY {
            session.tick_while_running();
        }
    });
}

/// The planner starts, and that cannot only be noted.
#[cold]
fn start_planning(planning: &Planning) {
    attach();
    with_session(|session| {
        session.planned = None;
        let statement = session.statement(planning.query_id(), planning.text());
        session.start(session.now(), start(planning.id(), false, false), None, statement);
    });
}

/// The planner has ended, and has taken its time.
#[cold]
fn end_planning(planning: &Planning) {
    with_session(|session| {
        let now = session.clock.now();
        if let Some(execution) = session.follower.finish(now, planning.id()) {
            session.planned = Some(Planned {
                query_id: execution.statement.key.query_id,
                depth: session.follower.executions().running(),
                needs: execution.needs,
            });
        }
    });
}

/// A query starts, and that cannot only be noted.
#[cold]
fn start_query(query: &Query) {
    attach();
    with_session(|session| {
        session.has_executed = true;
        let is_parallel = query.is_parallel() || session.is_worker;
        let mut statement = session.statement(query.query_id(), query.text());
        let depth = session.follower.executions().running();
        let is_this = |planned: &Planned| planned.query_id == statement.key.query_id && planned.depth == depth;
        let planned = session.planned.take().filter(is_this);
        statement.growth_planning = planned.as_ref().map_or(0, |planned| planned.needs.growth);
        let needs = planned.map(|planned| planned.needs);
        session.start(session.now(), start(query.id(), false, is_parallel), needs, statement);
        if query.cost() >= COSTLY {
            session.tick_while_running();
        }
    });
}

/// A query ends that the session has been told of, or that has taken its time.
#[cold]
fn end_query(query: &Query) {
    with_session(|session| session.end(query.id(), query.is_parallel()));
}

/// The transaction has been committed.
#[cold]
fn end_transaction() {
    if this_process::is_background() && is_watching() && !this_process::is_parallel_worker() {
        attach();
        with_session(Session::end_background);
    }
    with_session(|session| {
        session.follower.end_transaction();
        session.stop_ticking_if_idle();
    });
}

/// Follows this process.
pub struct Observer;

impl hooks::Observer for Observer {
    #[inline]
    fn is_watching() -> bool {
        is_watching()
    }

    #[inline]
    fn planner_starts(planning: &Planning) {
        if !LATEST.note(planning.id(), planning.query_id(), planning.text()) {
            start_planning(planning);
        }
    }

    #[inline]
    fn planner_ended(planning: &Planning) {
        if !LATEST.forget(planning.id()) {
            end_planning(planning);
        }
    }

    #[inline]
    fn executor_starts(query: &Query) {
        let is_small = query.cost() < COSTLY && !query.is_parallel();
        if !is_small || !LATEST.note(query.id(), query.query_id(), query.text()) {
            start_query(query);
        }
    }

    #[inline]
    fn executor_resumes(query: &Query) {
        if LATEST.id.get() != query.id() {
            resume(query);
            return;
        }
        LATEST.is_paused.set(false);
        if !LATEST.is_new.get() {
            LATEST.id.set(0);
        }
    }

    #[inline]
    fn executor_pauses(query: &Query) {
        let id = LATEST.id.get();
        if id != 0 && id != query.id() {
            // A function has opened a cursor and left it open.
            tell();
        }
        LATEST.id.set(query.id());
        LATEST.is_paused.set(true);
    }

    fn executor_waits(query: &Query) {
        with_session(|session| {
            session.follower.wait(session.clock.now(), query.id());
            session.stop_ticking_if_idle();
        });
    }

    #[inline]
    fn executor_ends(query: &Query) {
        if !LATEST.forget(query.id()) {
            end_query(query);
        }
    }

    fn utility_starts(utility: &Utility) {
        attach();
        with_session(|session| {
            session.has_executed = true;
            session.planned = None;
            let statement = session.statement(utility.query_id(), utility.text());
            session.start(session.now(), start(utility.id(), true, utility.uses_shared_memory()), None, statement);
            if utility.is_costly() {
                session.tick_while_running();
            }
        });
    }

    fn utility_ended(utility: &Utility) {
        with_session(|session| session.end(utility.id(), true));
    }
}

impl transactions::Observer for Observer {
    #[inline]
    fn committed() {
        // After nearly every transaction of a client there is nothing to do.
        if has_open() || this_process::is_background() {
            end_transaction();
        }
    }

    fn aborts() {
        let abort = if transactions::is_exiting() { Abort::Exit } else { Abort::Transaction(hooks::error_handler()) };
        with_session(|session| session.abort(abort));
    }

    fn worker_ends() {
        if !is_watching() {
            return;
        }
        attach();
        with_session(|session| {
            let growth = if session.has_executed {
                // It may have been told to end, and then its execution has not.
                if !session.follower.executions().is_idle() {
                    session.follower.sample();
                }
                let running = session.follower.iter_running().map(|execution| execution.needs.growth).max();
                session.worker_growth.max(running.unwrap_or(0))
            } else {
                // It has built an index, or vacuumed. If a hook was called, then by the planner, for a function.
                let mark = session.follower.probe.mark();
                let shared = session.follower.probe.sample().map_or(mark.resident, |sample| sample.shared);
                mark.resident.saturating_sub(shared).saturating_sub(shared::first_private())
            };
            if growth > 0
                && let Some(leader) = Slot::of_leader()
            {
                leader.add_worker(growth);
            }
        });
    }

    fn subtransaction_starts() {
        // What happens now belongs to the subtransaction.
        tell();
    }

    fn subtransaction_committed(level: i32) {
        with_session(|session| session.follower.join_outer(level));
    }

    fn subtransaction_aborts(level: i32) {
        with_session(|session| session.abort(Abort::Subtransaction(level)));
    }
}
