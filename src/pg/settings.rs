//! The settings of pg_meminfo.

use core::ffi::CStr;
use core::ops::RangeInclusive;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};

use pg_sys::GucContext::{PGC_POSTMASTER, PGC_SUSET, PGC_USERSET};
use pgrx_pg_sys as pg_sys;

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

/// The variable of `pg_meminfo.statements_interval`, as above.
static STATEMENTS_INTERVAL: AtomicI32 = AtomicI32::new(10);

/// How often the memory of costly statements is looked at while they run, in milliseconds; negative if never
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

/// The length at which Postgres cuts the texts of statements in pg_stat_activity (`track_activity_query_size`), in bytes.
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

/// Defines the settings of what needs the library in shared_preload_libraries. Postgres does not let them be defined later.
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
    define_boolean(
        c"pg_meminfo.statements",
        [
            c"Measures the memory of statements for pg_meminfo_statements.",
            c"It can be turned off for a role, a database or a session.",
        ],
        &STATEMENTS,
        PGC_SUSET,
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
}

/// Defines a setting with a short and a long description. Its default is what the variable has.
fn define_boolean(
    name: &'static CStr,
    [short, long]: [&'static CStr; 2],
    variable: &'static AtomicBool,
    context: pg_sys::GucContext::Type,
) {
    let default = variable.load(Ordering::Relaxed);
    let [name, short, long] = [name, short, long].map(CStr::as_ptr);
    // SAFETY: the texts and the variable live as long as the process, because a library is never unloaded. There are no
    // hooks for Postgres to call.
    unsafe {
        pg_sys::DefineCustomBoolVariable(name, short, long, variable.as_ptr(), default, context, 0, None, None, None)
    };
}

/// Defines a setting with a short and a long description. Its default is what the variable has.
fn define_integer(
    name: &'static CStr,
    [short, long]: [&'static CStr; 2],
    variable: &'static AtomicI32,
    range: RangeInclusive<i32>,
    context: pg_sys::GucContext::Type,
    flags: i32,
) {
    let (default, least, most) = (variable.load(Ordering::Relaxed), *range.start(), *range.end());
    let [name, short, long] = [name, short, long].map(CStr::as_ptr);
    // SAFETY: as in define_boolean().
    unsafe {
        pg_sys::DefineCustomIntVariable(
            name,
            short,
            long,
            variable.as_ptr(),
            default,
            least,
            most,
            context,
            flags,
            None,
            None,
            None,
        )
    };
}
