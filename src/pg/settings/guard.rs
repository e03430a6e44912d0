//! The settings of the guard.

use core::ffi::{CStr, c_char, c_int, c_void};
use std::ptr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicI64, AtomicPtr, Ordering};

use pg_sys::GucContext::{PGC_SIGHUP, PGC_SUSET};
use pgrx_pg_sys as pg_sys;

use super::{IntegerHooks, define_watched_boolean, define_watched_integer};

/// The variable of `pg_meminfo.session_memory_limit`. Postgres writes it in the main thread, and only that thread reads
/// it.
static SESSION_MEMORY_LIMIT: AtomicI32 = AtomicI32::new(-1);

/// How much private memory a session may have, in bytes (`pg_meminfo.session_memory_limit`).
pub fn session_memory_limit() -> Option<u64> {
    bytes(SESSION_MEMORY_LIMIT.load(Ordering::Relaxed))
}

/// The variable of `pg_meminfo.guard_exempt`, as above.
static GUARD_EXEMPT: AtomicBool = AtomicBool::new(false);

/// Whether the guard leaves this session alone (`pg_meminfo.guard_exempt`).
pub fn guard_exempt() -> bool {
    GUARD_EXEMPT.load(Ordering::Relaxed)
}

/// The variable of `pg_meminfo.guard_action`, as above. Its values are those in [`ACTIONS`].
static GUARD_ACTION: AtomicI32 = AtomicI32::new(2);

/// What the guard may do (`pg_meminfo.guard_action`): 0 for log, 1 for brake, 2 for cancel, 3 for terminate.
pub fn guard_action() -> i32 {
    GUARD_ACTION.load(Ordering::Relaxed)
}

/// The variable of `pg_meminfo.min_headroom`: its text, which Postgres owns.
static MIN_HEADROOM: AtomicPtr<c_char> = AtomicPtr::new(ptr::null_mut());

/// What that text says: a number of kilobytes, or of hundredths of a percent. 0 or negative if it does not.
static MIN_HEADROOM_SIZE: AtomicI64 = AtomicI64::new(-1);
static MIN_HEADROOM_SHARE: AtomicI64 = AtomicI64::new(-1);

/// Below how much headroom the guard acts, in bytes, if the headroom refers to this limit (`pg_meminfo.min_headroom`).
/// `None` if it does not act.
pub fn min_headroom(limit: u64) -> Option<u64> {
    let value = |value: &AtomicI64| u64::try_from(value.load(Ordering::Relaxed)).ok().filter(|&value| value > 0);
    let (share, size) = (value(&MIN_HEADROOM_SHARE), value(&MIN_HEADROOM_SIZE));
    share.map(|share| limit / 10_000 * share).or(size.map(|kilobytes| kilobytes * 1024))
}

/// What is to be told of new values.
#[derive(Clone, Copy, Debug)]
pub struct Observer {
    /// `pg_meminfo.session_memory_limit` gets a new value. It must not unwind.
    pub session_memory_limit: fn(Option<u64>),
    /// `pg_meminfo.guard_exempt` gets a new value. It must not unwind.
    pub guard_exempt: fn(bool),
}

static OBSERVER: OnceLock<Observer> = OnceLock::new();

/// Lets an observer be told. Called once, when the postmaster loads the library.
pub fn observe(observer: Observer) {
    OBSERVER.set(observer).expect("called once");
}

fn bytes(kilobytes: i32) -> Option<u64> {
    u64::try_from(kilobytes).ok().map(|kilobytes| kilobytes * 1024)
}

/// The least limit of a session, in kilobytes.
const LEAST_LIMIT: i32 = 64 * 1024;

unsafe extern "C-unwind" fn check_session_memory_limit(
    new: *mut c_int,
    _: *mut *mut c_void,
    _: pg_sys::GucSource::Type,
) -> bool {
    // SAFETY: Postgres passes a valid pointer.
    let new = unsafe { *new };
    let is_valid = new == -1 || new >= LEAST_LIMIT;
    if !is_valid {
        explain(c"It must be -1, or 64MB or more: code that was not made for that aborts if it gets no memory.");
    }
    is_valid
}

unsafe extern "C-unwind" fn assign_session_memory_limit(new: c_int, _: *mut c_void) {
    if let Some(observer) = OBSERVER.get() {
        (observer.session_memory_limit)(bytes(new));
    }
}

unsafe extern "C-unwind" fn assign_guard_exempt(new: bool, _: *mut c_void) {
    if let Some(observer) = OBSERVER.get() {
        (observer.guard_exempt)(new);
    }
}

unsafe extern "C-unwind" fn check_min_headroom(
    new: *mut *mut c_char,
    _: *mut *mut c_void,
    _: pg_sys::GucSource::Type,
) -> bool {
    // SAFETY: Postgres passes a valid pointer.
    let new = unsafe { *new };
    // SAFETY: it points to a text.
    let is_valid = parse_headroom(unsafe { CStr::from_ptr(new) }).is_some();
    if !is_valid {
        explain(c"It must be -1, a size such as \"2GB\", or a percentage such as \"10%\".");
    }
    is_valid
}

unsafe extern "C-unwind" fn assign_min_headroom(new: *const c_char, _: *mut c_void) {
    // SAFETY: as above. It has been checked.
    let (size, share) = parse_headroom(unsafe { CStr::from_ptr(new) }).unwrap_or((-1, -1));
    MIN_HEADROOM_SIZE.store(size, Ordering::Relaxed);
    MIN_HEADROOM_SHARE.store(share, Ordering::Relaxed);
}

/// A size in kilobytes, or a share in hundredths of a percent; the other one is negative. Both are if it is -1.
fn parse_headroom(text: &CStr) -> Option<(i64, i64)> {
    if let Some(percentage) = text.to_str().ok()?.trim().strip_suffix('%') {
        let percentage: f64 = percentage.trim().parse().ok()?;
        return (0.0..=100.0).contains(&percentage).then_some((-1, (percentage * 100.0).round() as i64));
    }
    let mut kilobytes = 0;
    // SAFETY: the text ends with a NUL, and a missing hint is none.
    let is_size =
        unsafe { pg_sys::parse_int(text.as_ptr(), &raw mut kilobytes, pg_sys::GUC_UNIT_KB as c_int, ptr::null_mut()) };
    (is_size && kilobytes >= -1).then_some((kilobytes.into(), -1))
}

/// Sets the DETAIL of the ERROR that Postgres will raise.
fn explain(detail: &'static CStr) {
    // SAFETY: a plain variable. Postgres does not write to the text or free it.
    unsafe { pg_sys::GUC_check_errdetail_string = detail.as_ptr().cast_mut() };
}

struct Entries([pg_sys::config_enum_entry; 5]);

// SAFETY: nobody writes to them.
unsafe impl Sync for Entries {}

const fn entry(name: Option<&'static CStr>, value: c_int) -> pg_sys::config_enum_entry {
    let name = match name {
        Some(name) => name.as_ptr(),
        None => ptr::null(),
    };
    pg_sys::config_enum_entry { name, val: value, hidden: false }
}

static ACTIONS: Entries = Entries([
    entry(Some(c"log"), 0),
    entry(Some(c"brake"), 1),
    entry(Some(c"cancel"), 2),
    entry(Some(c"terminate"), 3),
    entry(None, 0),
]);

/// The name of a value of `pg_meminfo.guard_action`.
pub fn action_name(action: i32) -> &'static str {
    let named = ACTIONS.0.iter().find(|entry| entry.val == action && !entry.name.is_null());
    // SAFETY: the name is one of the constants above.
    named.map_or("", |entry| unsafe { CStr::from_ptr(entry.name) }.to_str().unwrap_or(""))
}

/// Defines the settings.
pub(super) fn define() {
    const SHORT_LIMIT: &CStr = c"Sets the private memory that a session can have.";
    const LONG_LIMIT: &CStr = c"The kernel refuses more (RLIMIT_DATA), and the statement ends with \"out of memory\". \
                                Each parallel worker has the same limit for itself. -1 turns it off.";
    define_watched_integer(
        c"pg_meminfo.session_memory_limit",
        [SHORT_LIMIT, LONG_LIMIT],
        &SESSION_MEMORY_LIMIT,
        -1..=i32::MAX,
        PGC_SUSET,
        pg_sys::GUC_UNIT_KB as i32,
        IntegerHooks { check: Some(check_session_memory_limit), assign: Some(assign_session_memory_limit) },
    );
    // SAFETY: the texts and the variable live as long as the process, because a library is never unloaded.
    unsafe {
        pg_sys::DefineCustomStringVariable(
            c"pg_meminfo.min_headroom".as_ptr(),
            c"Sets the memory that is left below which the guard acts.".as_ptr(),
            c"A size, or a percentage of the limit that is reached first. -1 turns the guard off.".as_ptr(),
            MIN_HEADROOM.as_ptr(),
            c"-1".as_ptr(),
            PGC_SIGHUP,
            0,
            Some(check_min_headroom),
            Some(assign_min_headroom),
            None,
        );
    }
    // SAFETY: as above.
    unsafe {
        pg_sys::DefineCustomEnumVariable(
            c"pg_meminfo.guard_action".as_ptr(),
            c"Sets what the guard may do while memory runs short.".as_ptr(),
            c"Each value includes those before it: log, brake, cancel, terminate.".as_ptr(),
            GUARD_ACTION.as_ptr(),
            GUARD_ACTION.load(Ordering::Relaxed),
            ACTIONS.0.as_ptr(),
            PGC_SIGHUP,
            0,
            None,
            None,
            None,
        );
    }
    define_watched_boolean(
        c"pg_meminfo.guard_exempt",
        [
            c"Lets the guard leave a session alone.",
            c"It is meant for ALTER ROLE. pg_meminfo.session_memory_limit still holds.",
        ],
        &GUARD_EXEMPT,
        PGC_SUSET,
        Some(assign_guard_exempt),
    );
}
