//! Hooks in the planner, the executor and the execution of utility statements.
//!
//! # An exception to the rules of this boundary
//!
//! These functions call the next one of their kind by a pointer, and the standard functions by declarations of our own.
//! An ERROR in there is a longjmp that skips these frames. That is sound because they are plain: they own nothing that
//! has a destructor, and do nothing but call. pgrx's guards, which every other call has, would cost 89 ns for each
//! statement and some microseconds for each ERROR. What an [`Observer`] does stands before and after such a call, never
//! around it.
#![allow(ffi_unwind_calls)]

use core::ffi::{CStr, c_char, c_int};
use std::cell::Cell;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use pg_sys::NodeTag;
use pgrx_pg_sys as pg_sys;

use super::compat;

/// Is told what happens. None of these functions may unwind. If an ERROR ends a call, only its beginning is told.
pub trait Observer: 'static {
    /// Whether anything is to be told. Once it is not, this is not asked again until [`watch`] is called.
    fn is_watching() -> bool;
    /// The planner starts.
    fn planner_starts(planning: &Planning);
    /// The planner has ended.
    fn planner_ended(planning: &Planning);
    /// The executor starts a query.
    fn executor_starts(query: &Query);
    /// The executor runs a query for a while, or finishes it.
    fn executor_resumes(query: &Query);
    /// The executor has started a query, or run it to its end.
    fn executor_pauses(query: &Query);
    /// The executor has run a query until a number of rows have been returned.
    fn executor_waits(query: &Query);
    /// The executor is about to end a query and free what it holds.
    fn executor_ends(query: &Query);
    /// A utility statement starts.
    fn utility_starts(utility: &Utility);
    /// A utility statement has ended.
    fn utility_ended(utility: &Utility);
}

/// The text of a statement within the text that the client has sent. It is valid until the statement ends.
#[derive(Clone, Copy, Debug)]
pub struct Text {
    start: *const c_char,
    location: c_int,
    length: c_int,
}

impl Text {
    /// No text.
    pub const NONE: Text = Text { start: core::ptr::null(), location: 0, length: 0 };

    /// Copies at most `max` bytes of it. `None` if there is no text.
    ///
    /// # Safety
    ///
    /// The statement must not have ended.
    pub unsafe fn copy(self, max: usize) -> Option<Vec<u8>> {
        if self.start.is_null() {
            return None;
        }
        let skipped = self.location.max(0) as usize;
        // A length of 0 means all of the rest.
        let max = if self.location >= 0 && self.length > 0 { max.min(self.length as usize) } else { max };
        // SAFETY: the location is one in the text.
        let start = unsafe { self.start.add(skipped) };
        // SAFETY: reads until the end of the text at most.
        let length = unsafe { libc::strnlen(start, max) };
        let mut copy = Vec::new();
        copy.try_reserve_exact(length).ok()?;
        // SAFETY: it has that many bytes.
        copy.extend_from_slice(unsafe { core::slice::from_raw_parts(start.cast(), length) }.trim_ascii());
        Some(copy)
    }

    /// Whether it is still valid while an ERROR in the statement that starts now is handled. It is if it belongs to the
    /// client's message, or to the portal that is being executed. Others may be freed by whoever catches the ERROR
    /// first.
    #[inline]
    pub fn outlives_error(self) -> bool {
        // SAFETY: a plain variable.
        let of_client = unsafe { pg_sys::debug_query_string };
        // SAFETY: as above.
        let portal = unsafe { pg_sys::ActivePortal };
        // SAFETY: it is null, or points to a portal.
        let portal = unsafe { portal.as_ref() };
        self.start == of_client || portal.is_some_and(|portal| portal.sourceText == self.start)
    }
}

/// A query that is being planned.
#[derive(Debug)]
pub struct Planning {
    parse: *mut pg_sys::Query,
    text: *const c_char,
}

impl Planning {
    /// What identifies it until the planner has ended.
    pub fn id(&self) -> usize {
        self.parse.addr()
    }

    /// The query id, or 0.
    pub fn query_id(&self) -> i64 {
        // SAFETY: Postgres passes a valid query.
        unsafe { (*self.parse).queryId as i64 }
    }

    /// The text.
    pub fn text(&self) -> Text {
        // SAFETY: as above.
        let parse = unsafe { &*self.parse };
        Text { start: self.text, location: parse.stmt_location, length: parse.stmt_len }
    }
}

/// A query that is being executed.
#[derive(Debug)]
pub struct Query(*mut pg_sys::QueryDesc);

impl Query {
    fn plan(&self) -> &pg_sys::PlannedStmt {
        // SAFETY: Postgres passes a valid query, whose plan lives longer.
        let plan = unsafe { (*self.0).plannedstmt };
        // SAFETY: as above.
        unsafe { &*plan }
    }

    /// What identifies it until it ends.
    pub fn id(&self) -> usize {
        self.0.addr()
    }

    /// The query id, or 0.
    pub fn query_id(&self) -> i64 {
        self.plan().queryId as i64
    }

    /// The text.
    pub fn text(&self) -> Text {
        // SAFETY: Postgres passes a valid query.
        let start = unsafe { (*self.0).sourceText };
        Text { start, location: self.plan().stmt_location, length: self.plan().stmt_len }
    }

    /// Whether workers may take part in it.
    pub fn is_parallel(&self) -> bool {
        self.plan().parallelModeNeeded
    }

    /// What the planner thinks that it costs.
    pub fn cost(&self) -> f64 {
        // SAFETY: the plan lives as long as the query. A null pointer has no plan.
        unsafe { self.plan().planTree.as_ref() }.map_or(0.0, |plan| plan.total_cost)
    }
}

/// A utility statement.
#[derive(Debug)]
pub struct Utility {
    statement: *mut pg_sys::PlannedStmt,
    text: *const c_char,
    tag: NodeTag,
}

impl Utility {
    fn new(statement: *mut pg_sys::PlannedStmt, text: *const c_char) -> Self {
        // SAFETY: Postgres passes a valid statement.
        let node = unsafe { (*statement).utilityStmt };
        // SAFETY: every statement is a node.
        let tag = unsafe { (*node).type_ };
        Utility { statement, text, tag }
    }

    /// What identifies it until it ends.
    pub fn id(&self) -> usize {
        self.statement.addr()
    }

    /// The query id, or 0.
    pub fn query_id(&self) -> i64 {
        // SAFETY: Postgres passes a valid statement.
        unsafe { (*self.statement).queryId as i64 }
    }

    /// The text.
    pub fn text(&self) -> Text {
        // SAFETY: as above.
        let statement = unsafe { &*self.statement };
        Text { start: self.text, location: statement.stmt_location, length: statement.stmt_len }
    }

    /// Whether it is not to be followed: if it only prepares or executes another statement, which counts itself, as in
    /// pg_stat_statements; and if it controls a transaction, because it needs nothing then, and in a failed transaction
    /// nobody would be told of an ERROR in it.
    pub fn is_transparent(&self) -> bool {
        matches!(self.tag, NodeTag::T_ExecuteStmt | NodeTag::T_PrepareStmt | NodeTag::T_TransactionStmt)
    }

    /// Whether it can end a transaction, or undo a part of it.
    pub fn may_end_transaction(&self) -> bool {
        use pg_sys::TransactionStmtKind as Kind;
        if self.tag != NodeTag::T_TransactionStmt {
            return false;
        }
        // SAFETY: Postgres passes a valid statement.
        let node = unsafe { (*self.statement).utilityStmt };
        // SAFETY: the tag says that it is one.
        let kind = unsafe { (*node.cast::<pg_sys::TransactionStmt>()).kind };
        matches!(
            kind,
            Kind::TRANS_STMT_COMMIT
                | Kind::TRANS_STMT_COMMIT_PREPARED
                | Kind::TRANS_STMT_PREPARE
                | Kind::TRANS_STMT_ROLLBACK
                | Kind::TRANS_STMT_ROLLBACK_PREPARED
                | Kind::TRANS_STMT_ROLLBACK_TO
        )
    }

    /// Whether it can take long.
    pub fn is_costly(&self) -> bool {
        compat::COSTLY_UTILITIES.contains(&self.tag)
    }

    /// Whether it can keep much in shared memory that is unmapped before its end.
    pub fn uses_shared_memory(&self) -> bool {
        self.tag == NodeTag::T_VacuumStmt
    }
}

type ExecutorStart = unsafe extern "C-unwind" fn(*mut pg_sys::QueryDesc, c_int);
type ExecutorFinish = unsafe extern "C-unwind" fn(*mut pg_sys::QueryDesc);
type ProcessUtility = unsafe extern "C-unwind" fn(
    *mut pg_sys::PlannedStmt,
    *const c_char,
    bool,
    pg_sys::ProcessUtilityContext::Type,
    pg_sys::ParamListInfo,
    *mut pg_sys::QueryEnvironment,
    *mut pg_sys::DestReceiver,
    *mut pg_sys::QueryCompletion,
);

unsafe extern "C-unwind" {
    fn standard_ExecutorStart(query: *mut pg_sys::QueryDesc, flags: c_int);
    fn standard_ExecutorFinish(query: *mut pg_sys::QueryDesc);
    fn standard_ExecutorEnd(query: *mut pg_sys::QueryDesc);
    fn standard_ProcessUtility(
        statement: *mut pg_sys::PlannedStmt,
        text: *const c_char,
        is_read_only: bool,
        context: pg_sys::ProcessUtilityContext::Type,
        parameters: pg_sys::ParamListInfo,
        environment: *mut pg_sys::QueryEnvironment,
        destination: *mut pg_sys::DestReceiver,
        completion: *mut pg_sys::QueryCompletion,
    );
}

/// What the hooks look at for every statement. It is one cache line, because between two statements of a session so
/// much else runs that each line has to be fetched again.
#[repr(align(64))]
struct Line {
    // The functions that come next: another extension's, or the standard ones.
    start: Cell<ExecutorStart>,
    run: Cell<compat::ExecutorRun>,
    finish: Cell<ExecutorFinish>,
    end: Cell<ExecutorFinish>,
    utility: Cell<ProcessUtility>,
    planner: Cell<compat::Planner>,
    /// The observer may want to be told.
    is_watched: AtomicBool,
    /// The function of [`before_next`] is to be called.
    is_due: AtomicBool,
}

const _: () = assert!(size_of::<Line>() == 64);

// SAFETY: only the main thread uses the functions, and the postmaster sets them before it forks.
unsafe impl Sync for Line {}

// Otherwise the compiler makes a variable of each field, anywhere.
#[used]
static LINE: Line = Line {
    start: Cell::new(standard_ExecutorStart),
    run: Cell::new(compat::standard_ExecutorRun),
    finish: Cell::new(standard_ExecutorFinish),
    end: Cell::new(standard_ExecutorEnd),
    utility: Cell::new(standard_ProcessUtility),
    planner: Cell::new(compat::standard_planner),
    is_watched: AtomicBool::new(false),
    is_due: AtomicBool::new(false),
};

impl Line {
    /// Whether there is nothing to do but to call the next function.
    #[inline(always)]
    fn is_idle(&self) -> bool {
        !self.is_watched.load(Ordering::Relaxed) && !self.is_due.load(Ordering::Relaxed)
    }
}

/// Lets an observer be told from now on, in this process and all that it forks. Called once, when the postmaster loads
/// the library.
pub fn install<O: Observer>() {
    macro_rules! chain {
        ($hook:ident, $next:ident, $ours:path) => {
            // SAFETY: a plain variable, which only the main thread uses.
            if let Some(previous) = unsafe { pg_sys::$hook } {
                LINE.$next.set(previous);
            }
            // SAFETY: as above.
            unsafe { pg_sys::$hook = Some($ours) };
        };
    }
    chain!(ExecutorStart_hook, start, executor_start::<O>);
    chain!(ExecutorRun_hook, run, executor_run::<O>);
    chain!(ExecutorFinish_hook, finish, executor_finish::<O>);
    chain!(ExecutorEnd_hook, end, executor_end::<O>);
    chain!(ProcessUtility_hook, utility, process_utility::<O>);
    chain!(planner_hook, planner, plan::<O>);
}

/// The observer wants to be told from now on, as long as it says so when it is asked.
pub fn watch() {
    LINE.is_watched.store(true, Ordering::Relaxed);
}

/// Whether the observer is to be told.
#[inline(always)]
fn is_watching<O: Observer>() -> bool {
    if !LINE.is_watched.load(Ordering::Relaxed) {
        return false;
    }
    let is_watching = O::is_watching();
    if !is_watching {
        LINE.is_watched.store(false, Ordering::Relaxed);
    }
    is_watching
}

static BEFORE_NEXT: OnceLock<fn()> = OnceLock::new();
static BEFORE_ROLLBACK: OnceLock<fn()> = OnceLock::new();

/// Lets a function be called before what is planned or executed first in each process, and whenever it is due again. It
/// must not unwind. Called once, when the postmaster loads the library.
pub fn before_next(run: fn()) {
    BEFORE_NEXT.set(run).expect("called once");
    call_before_next();
}

/// That function is due again.
pub fn call_before_next() {
    LINE.is_due.store(true, Ordering::Relaxed);
}

/// Lets a function be called before a statement is executed that can end a transaction or undo a part of it. It must
/// not unwind. Called once, when the postmaster loads the library.
pub fn before_rollback(run: fn()) {
    BEFORE_ROLLBACK.set(run).expect("called once");
}

#[inline]
fn call_if_due() {
    if LINE.is_due.load(Ordering::Relaxed) {
        LINE.is_due.store(false, Ordering::Relaxed);
        BEFORE_NEXT.get().inspect(|run| run());
    }
}

unsafe extern "C-unwind" fn executor_start<O: Observer>(query: *mut pg_sys::QueryDesc, flags: c_int) {
    if LINE.is_idle() {
        // SAFETY: the arguments are those of Postgres.
        return unsafe { (LINE.start.get())(query, flags) };
    }
    // SAFETY: as above.
    starting::<O>(query, || unsafe { (LINE.start.get())(query, flags) });
}

/// Calls the executor, which starts a query. The closure is as plain as the hooks.
#[inline(always)]
fn starting<O: Observer>(query: *mut pg_sys::QueryDesc, start: impl FnOnce()) {
    call_if_due();
    let is_watching = is_watching::<O>();
    if is_watching {
        O::executor_starts(&Query(query));
    }
    start();
    if is_watching {
        O::executor_pauses(&Query(query));
    }
}

#[cfg(any(feature = "pg15", feature = "pg16", feature = "pg17"))]
unsafe extern "C-unwind" fn executor_run<O: Observer>(
    query: *mut pg_sys::QueryDesc,
    direction: pg_sys::ScanDirection::Type,
    count: u64,
    execute_once: bool,
) {
    if LINE.is_idle() {
        // SAFETY: the arguments are those of Postgres.
        return unsafe { (LINE.run.get())(query, direction, count, execute_once) };
    }
    // SAFETY: as above.
    running::<O>(query, count, || unsafe { (LINE.run.get())(query, direction, count, execute_once) });
}

#[cfg(not(any(feature = "pg15", feature = "pg16", feature = "pg17")))]
unsafe extern "C-unwind" fn executor_run<O: Observer>(
    query: *mut pg_sys::QueryDesc,
    direction: pg_sys::ScanDirection::Type,
    count: u64,
) {
    if LINE.is_idle() {
        // SAFETY: the arguments are those of Postgres.
        return unsafe { (LINE.run.get())(query, direction, count) };
    }
    // SAFETY: as above.
    running::<O>(query, count, || unsafe { (LINE.run.get())(query, direction, count) });
}

unsafe extern "C-unwind" fn executor_finish<O: Observer>(query: *mut pg_sys::QueryDesc) {
    if LINE.is_idle() {
        // SAFETY: the arguments are those of Postgres.
        return unsafe { (LINE.finish.get())(query) };
    }
    // SAFETY: as above.
    running::<O>(query, ALL_ROWS, || unsafe { (LINE.finish.get())(query) });
}

/// The number of rows that stands for all of them.
const ALL_ROWS: u64 = 0;

/// Calls the executor, which runs a query until it has returned `count` rows. The closure is as plain as the hooks.
#[inline(always)]
fn running<O: Observer>(query: *mut pg_sys::QueryDesc, count: u64, run: impl FnOnce()) {
    call_if_due();
    let is_watching = is_watching::<O>();
    if is_watching {
        O::executor_resumes(&Query(query));
    }
    run();
    if is_watching && count == ALL_ROWS {
        O::executor_pauses(&Query(query));
    } else if is_watching {
        O::executor_waits(&Query(query));
    }
}

unsafe extern "C-unwind" fn executor_end<O: Observer>(query: *mut pg_sys::QueryDesc) {
    if LINE.is_idle() {
        // SAFETY: the arguments are those of Postgres.
        return unsafe { (LINE.end.get())(query) };
    }
    if is_watching::<O>() {
        O::executor_ends(&Query(query));
    }
    // SAFETY: the arguments are those of Postgres.
    unsafe { (LINE.end.get())(query) };
}

unsafe extern "C-unwind" fn process_utility<O: Observer>(
    statement: *mut pg_sys::PlannedStmt,
    text: *const c_char,
    is_read_only: bool,
    context: pg_sys::ProcessUtilityContext::Type,
    parameters: pg_sys::ParamListInfo,
    environment: *mut pg_sys::QueryEnvironment,
    destination: *mut pg_sys::DestReceiver,
    completion: *mut pg_sys::QueryCompletion,
) {
    call_if_due();
    let utility = Utility::new(statement, text);
    if utility.may_end_transaction() {
        BEFORE_ROLLBACK.get().inspect(|run| run());
    }
    let is_watching = is_watching::<O>() && !utility.is_transparent();
    if is_watching {
        O::utility_starts(&utility);
    }
    let next = LINE.utility.get();
    // SAFETY: the arguments are those of Postgres.
    unsafe { next(statement, text, is_read_only, context, parameters, environment, destination, completion) };
    if is_watching {
        O::utility_ended(&utility);
    }
}

#[cfg(not(feature = "pg19"))]
unsafe extern "C-unwind" fn plan<O: Observer>(
    parse: *mut pg_sys::Query,
    text: *const c_char,
    options: c_int,
    parameters: pg_sys::ParamListInfo,
) -> *mut pg_sys::PlannedStmt {
    // SAFETY: the arguments are those of Postgres.
    planning::<O>(parse, text, || unsafe { (LINE.planner.get())(parse, text, options, parameters) })
}

#[cfg(feature = "pg19")]
unsafe extern "C-unwind" fn plan<O: Observer>(
    parse: *mut pg_sys::Query,
    text: *const c_char,
    options: c_int,
    parameters: pg_sys::ParamListInfo,
    explain: *mut pg_sys::ExplainState,
) -> *mut pg_sys::PlannedStmt {
    // SAFETY: the arguments are those of Postgres.
    planning::<O>(parse, text, || unsafe { (LINE.planner.get())(parse, text, options, parameters, explain) })
}

/// Calls the planner. The closure is as plain as the hooks.
#[inline(always)]
fn planning<O: Observer>(
    parse: *mut pg_sys::Query,
    text: *const c_char,
    plan: impl FnOnce() -> *mut pg_sys::PlannedStmt,
) -> *mut pg_sys::PlannedStmt {
    call_if_due();
    let planning = Planning { parse, text };
    let is_watching = is_watching::<O>();
    if is_watching {
        O::planner_starts(&planning);
    }
    let planned = plan();
    if is_watching {
        O::planner_ended(&planning);
    }
    planned
}

static HAS_ENABLED_IDS: AtomicBool = AtomicBool::new(false);

/// Lets Postgres compute query ids from now on, unless compute_query_id forbids it.
pub fn enable_query_ids() {
    // SAFETY: sets a variable.
    unsafe { pg_sys::EnableQueryId() };
    if !HAS_ENABLED_IDS.swap(true, Ordering::Relaxed) {
        // Plans that were made before have none.
        // SAFETY: it marks them, so that they are analyzed again before they are used.
        unsafe { pg_sys::ResetPlanCache() };
    }
}

/// Where an ERROR would go on: the address of the buffer of the innermost sigsetjmp().
#[inline]
pub fn error_handler() -> usize {
    // SAFETY: a plain variable.
    unsafe { pg_sys::PG_exception_stack }.addr()
}

/// What pg_stat_activity shows as this process's query. `None` if there is none.
pub fn activity() -> Option<Vec<u8>> {
    // SAFETY: a plain variable.
    let entry = unsafe { pg_sys::MyBEEntry };
    // SAFETY: it points to this process's entry in shared memory, which only this process changes.
    let activity = unsafe { entry.as_ref() }?.st_activity_raw;
    if activity.is_null() {
        return None;
    }
    // SAFETY: it ends with a NUL.
    let text = unsafe { CStr::from_ptr(activity) }.to_bytes();
    let mut copy = Vec::new();
    copy.try_reserve_exact(text.len()).ok()?;
    copy.extend_from_slice(text);
    Some(copy)
}

/// The query id that pg_stat_activity shows for this process.
#[cold]
pub fn reported_query_id() -> i64 {
    // SAFETY: reads this process's entry in shared memory.
    (unsafe { pg_sys::pgstat_get_my_query_id() }) as i64
}
