//! The settings of pg_meminfo.

use core::ffi::{CStr, c_void};
use core::ops::RangeInclusive;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};

use pg_sys::GucContext::{PGC_POSTMASTER, PGC_SIGHUP, PGC_SUSET, PGC_USERSET};
use pgrx_pg_sys as pg_sys;

pub mod guard;

/// The variable of `pg_meminfo.readers`. Postgres writes it in the main thread, and only that thread reads it.
static READERS: AtomicI32 = AtomicI32::new(1);

/// The maximum number of threads that read processes at the same time (`pg_meminfo.readers`).
pub fn readers() -> usize {
    READERS.load(Ordering::Relaxed) as usize
}

/// The variable of `pg_meminfo.set_ptracer`. Postgres writes it when the server starts.
static SET_PTRACER: AtomicBool = AtomicBool::new(true);

/// Whether the processes of the cluster may read each other's memory where Yama restricts that
/// (`pg_meminfo.set_ptracer`).
pub fn set_ptracer() -> bool {
    SET_PTRACER.load(Ordering::Relaxed)
}

/// The variable of `pg_meminfo.statements`. Postgres writes it in the main thread, and only that thread reads it.
static STATEMENTS: AtomicBool = AtomicBool::new(true);

/// Whether the memory of statements is measured (`pg_meminfo.statements`).
#[inline]
pub fn statements() -> bool {
    STATEMENTS.load(Ordering::Relaxed)
}

static STATEMENTS_OBSERVER: OnceLock<fn(bool)> = OnceLock::new();

/// Lets a function be told when `pg_meminfo.statements` gets a new value. It must not unwind. Called once, when the
/// postmaster loads the library.
pub fn observe_statements(observer: fn(bool)) {
    STATEMENTS_OBSERVER.set(observer).expect("called once");
}

unsafe extern "C-unwind" fn assign_statements(new: bool, _: *mut c_void) {
    if let Some(observer) = STATEMENTS_OBSERVER.get() {
        observer(new);
    }
}

/// The variable of `pg_meminfo.statements_interval`, as above.
static STATEMENTS_INTERVAL: AtomicI32 = AtomicI32::new(10);

/// How often the memory of costly statements is looked at while they run, in milliseconds; 0 or less if never
/// (`pg_meminfo.statements_interval`).
pub fn statements_interval() -> i32 {
    STATEMENTS_INTERVAL.load(Ordering::Relaxed)
}

/// The variable of `pg_meminfo.max_statements`. Postgres writes it when the server starts.
static MAX_STATEMENTS: AtomicI32 = AtomicI32::new(5000);

/// The maximum number of statements that are kept (`pg_meminfo.max_statements`).
pub fn max_statements() -> usize {
    MAX_STATEMENTS.load(Ordering::Relaxed) as usize
}

/// The variable of `pg_meminfo.recorder`. Postgres writes it when the server starts.
static RECORDER: AtomicBool = AtomicBool::new(true);

/// Whether the history of memory is recorded (`pg_meminfo.recorder`).
pub fn recorder() -> bool {
    RECORDER.load(Ordering::Relaxed)
}

/// The variable of `pg_meminfo.sample_interval`. Postgres writes it in the main thread, and only that thread reads it.
static SAMPLE_INTERVAL: AtomicI32 = AtomicI32::new(1000);

/// How many milliseconds lie between two samples at most (`pg_meminfo.sample_interval`).
pub fn sample_interval() -> u64 {
    SAMPLE_INTERVAL.load(Ordering::Relaxed) as u64
}

/// The variable of `pg_meminfo.pressure_interval`, as above.
static PRESSURE_INTERVAL: AtomicI32 = AtomicI32::new(20);

/// How many milliseconds lie between two samples at least, while memory is short (`pg_meminfo.pressure_interval`).
pub fn pressure_interval() -> u64 {
    PRESSURE_INTERVAL.load(Ordering::Relaxed) as u64
}

/// The variable of `pg_meminfo.history_size`. Postgres writes it when the server starts.
static HISTORY_SIZE: AtomicI32 = AtomicI32::new(64 * 1024);

/// The size of the files of the history, in bytes (`pg_meminfo.history_size`).
pub fn history_size() -> u64 {
    HISTORY_SIZE.load(Ordering::Relaxed) as u64 * 1024
}

/// The variable of `pg_meminfo.history_queries`. Postgres writes it in the main thread, and only that thread reads it.
static HISTORY_QUERIES: AtomicBool = AtomicBool::new(true);

/// Whether the history has the texts of queries (`pg_meminfo.history_queries`).
pub fn history_queries() -> bool {
    HISTORY_QUERIES.load(Ordering::Relaxed)
}

/// The variable of `pg_meminfo.log_session_memory`, as above.
static LOG_SESSION_MEMORY: AtomicI32 = AtomicI32::new(-1);

/// How much private memory a session may hold before that is logged, in bytes (`pg_meminfo.log_session_memory`).
pub fn log_session_memory() -> Option<u64> {
    u64::try_from(LOG_SESSION_MEMORY.load(Ordering::Relaxed)).ok().map(|kilobytes| kilobytes * 1024)
}

/// The variable of `pg_meminfo.log_min_headroom`, as above.
static LOG_MIN_HEADROOM: AtomicI32 = AtomicI32::new(-1);

/// How little memory may be left before that is logged, in bytes (`pg_meminfo.log_min_headroom`).
pub fn log_min_headroom() -> Option<u64> {
    u64::try_from(LOG_MIN_HEADROOM.load(Ordering::Relaxed)).ok().map(|kilobytes| kilobytes * 1024)
}

/// The length at which Postgres cuts the texts of statements in pg_stat_activity (`track_activity_query_size`), in
/// bytes.
pub fn query_size() -> usize {
    // SAFETY: a plain variable.
    (unsafe { pg_sys::pgstat_track_activity_query_size }) as usize
}

/// The mode of files in the data directory: that of the directory, without the right to execute.
pub fn file_mode() -> u32 {
    // SAFETY: a plain variable.
    (unsafe { pg_sys::data_directory_mode }) as u32 & 0o666
}

/// Whether the library is being loaded by shared_preload_libraries.
pub fn is_preloading() -> bool {
    // SAFETY: a plain variable.
    unsafe { pg_sys::process_shared_preload_libraries_in_progress }
}

/// Defines the settings. Called when the library is loaded.
pub fn define() {
    const READERS_ALONE: &CStr =
        c"With 1, the session reads them itself, one after the other. With more, it starts that many \
                                  threads for the length of the call.";
    define_integer(
        c"pg_meminfo.readers",
        [c"Sets how many processes' files are read at the same time.", READERS_ALONE],
        &READERS,
        1..=16,
        PGC_USERSET,
        0,
    );
    if is_preloading() {
        define_preloaded();
    }
    // SAFETY: the text ends with a NUL.
    unsafe { pg_sys::MarkGUCPrefixReserved(c"pg_meminfo".as_ptr()) };
}

/// Defines the settings of what needs the library in shared_preload_libraries. Postgres does not let those be defined
/// later that are set when the server starts, and the others would do nothing.
fn define_preloaded() {
    const TRACER: &CStr =
        c"Each process names the postmaster as its tracer (PR_SET_PTRACER), so that descendants of the \
                           postmaster, and no other processes, may read it.";
    define_boolean(
        c"pg_meminfo.set_ptracer",
        [c"Lets the server's processes read each other's memory where Yama's ptrace_scope is 1.", TRACER],
        &SET_PTRACER,
        PGC_POSTMASTER,
    );
    define_watched_boolean(
        c"pg_meminfo.statements",
        [
            c"Measures the memory of statements for pg_meminfo_statements.",
            c"It can be turned off for a role, a database or a session.",
        ],
        &STATEMENTS,
        PGC_SUSET,
        Some(assign_statements),
    );
    define_integer(
        c"pg_meminfo.statements_interval",
        [
            c"Sets how often the memory of a costly statement is looked at while it runs.",
            c"This narrows the range between peak_private and peak_private_at_most. -1 turns it off.",
        ],
        &STATEMENTS_INTERVAL,
        -1..=1000,
        PGC_SUSET,
        pg_sys::GUC_UNIT_MS as i32,
    );
    define_integer(
        c"pg_meminfo.max_statements",
        [
            c"Sets the maximum number of statements that pg_meminfo_statements keeps.",
            c"If there are more, those that have grown least are removed.",
        ],
        &MAX_STATEMENTS,
        100..=1_000_000,
        PGC_POSTMASTER,
        0,
    );
    define_recorder();
    guard::define();
}

fn define_recorder() {
    const MILLISECONDS: i32 = pg_sys::GUC_UNIT_MS as i32;
    const KILOBYTES: i32 = pg_sys::GUC_UNIT_KB as i32;
    define_boolean(
        c"pg_meminfo.recorder",
        [
            c"Records the history of the memory of the server's processes.",
            c"A background worker writes it to files in pg_stat_tmp.",
        ],
        &RECORDER,
        PGC_POSTMASTER,
    );
    define_integer(
        c"pg_meminfo.sample_interval",
        [c"Sets the time between two samples of the history.", c"While memory is short, there are more."],
        &SAMPLE_INTERVAL,
        10..=60_000,
        PGC_SIGHUP,
        MILLISECONDS,
    );
    define_integer(
        c"pg_meminfo.pressure_interval",
        [
            c"Sets the shortest time between two samples of the history, while memory is short.",
            c"The next sample is taken before half of what is left can be used up, but not earlier than this.",
        ],
        &PRESSURE_INTERVAL,
        10..=60_000,
        PGC_SIGHUP,
        MILLISECONDS,
    );
    define_integer(
        c"pg_meminfo.history_size",
        [c"Sets the size of the files of the history.", c"Three quarters are for all samples, one for one a minute."],
        &HISTORY_SIZE,
        1024..=i32::MAX,
        PGC_POSTMASTER,
        KILOBYTES,
    );
    define_boolean(
        c"pg_meminfo.history_queries",
        [c"Records the texts of queries in the history.", c"At most 256 bytes of each."],
        &HISTORY_QUERIES,
        PGC_SIGHUP,
    );
    define_integer(
        c"pg_meminfo.log_session_memory",
        [
            c"Sets the private memory of a session above which it is logged.",
            c"Parallel workers count under their leader. -1 turns it off.",
        ],
        &LOG_SESSION_MEMORY,
        -1..=i32::MAX,
        PGC_SIGHUP,
        KILOBYTES,
    );
    define_integer(
        c"pg_meminfo.log_min_headroom",
        [
            c"Sets the memory that is left below which a shortage is logged.",
            c"It is what can be allocated without swapping, within all limits. -1 turns it off.",
        ],
        &LOG_MIN_HEADROOM,
        -1..=i32::MAX,
        PGC_SIGHUP,
        KILOBYTES,
    );
}

/// Defines a setting with a short and a long description. Its default is what the variable has.
fn define_boolean(
    name: &'static CStr,
    texts: [&'static CStr; 2],
    variable: &'static AtomicBool,
    context: pg_sys::GucContext::Type,
) {
    define_watched_boolean(name, texts, variable, context, None);
}

/// As above. Postgres calls `assign` when the setting gets a new value.
fn define_watched_boolean(
    name: &'static CStr,
    [short, long]: [&'static CStr; 2],
    variable: &'static AtomicBool,
    context: pg_sys::GucContext::Type,
    assign: pg_sys::GucBoolAssignHook,
) {
    let default = variable.load(Ordering::Relaxed);
    let [name, short, long] = [name, short, long].map(CStr::as_ptr);
    // SAFETY: the texts and the variable live as long as the process, because a library is never unloaded. The hook
    // raises no ERROR.
    unsafe {
        pg_sys::DefineCustomBoolVariable(name, short, long, variable.as_ptr(), default, context, 0, None, assign, None)
    };
}

/// Defines a setting with a short and a long description. Its default is what the variable has.
fn define_integer(
    name: &'static CStr,
    texts: [&'static CStr; 2],
    variable: &'static AtomicI32,
    range: RangeInclusive<i32>,
    context: pg_sys::GucContext::Type,
    flags: i32,
) {
    define_watched_integer(name, texts, variable, range, context, flags, IntegerHooks::default());
}

/// What Postgres calls before and when a setting gets a new value.
#[derive(Clone, Copy, Default)]
struct IntegerHooks {
    check: pg_sys::GucIntCheckHook,
    assign: pg_sys::GucIntAssignHook,
}

/// As above, with hooks.
fn define_watched_integer(
    name: &'static CStr,
    [short, long]: [&'static CStr; 2],
    variable: &'static AtomicI32,
    range: RangeInclusive<i32>,
    context: pg_sys::GucContext::Type,
    flags: i32,
    hooks: IntegerHooks,
) {
    let (default, least, most) = (variable.load(Ordering::Relaxed), *range.start(), *range.end());
    let [name, short, long] = [name, short, long].map(CStr::as_ptr);
    let variable = variable.as_ptr();
    let IntegerHooks { check, assign } = hooks;
    // SAFETY: as in define_watched_boolean().
    unsafe {
        pg_sys::DefineCustomIntVariable(
            name, short, long, variable, default, least, most, context, flags, check, assign, None,
        )
    };
}
