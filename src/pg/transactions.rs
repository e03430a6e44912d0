//! The ends of transactions and of processes.
//!
//! Postgres calls these functions also while it handles an ERROR. They must not raise another.

use core::ffi::c_void;
use core::ptr;
use std::cell::UnsafeCell;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use pg_sys::{SubXactEvent, XactEvent};
use pgrx_pg_sys as pg_sys;

/// Is told how transactions end. None of these functions may unwind.
pub trait Observer: 'static {
    /// The transaction has been committed.
    fn committed();
    /// The transaction is being undone.
    fn aborts();
    /// A parallel worker's part of the transaction ends.
    fn worker_ends();
    /// A subtransaction starts.
    fn subtransaction_starts();
    /// A subtransaction of this level has become part of the one around it.
    fn subtransaction_committed(level: i32);
    /// A subtransaction of this level is being undone.
    fn subtransaction_aborts(level: i32);
}

// Not those of pgrx, which would set up a guard. They raise no ERROR.
unsafe extern "C" {
    fn GetTopTransactionIdIfAny() -> pg_sys::TransactionId;
    fn MemoryContextRegisterResetCallback(context: pg_sys::MemoryContext, callback: *mut pg_sys::MemoryContextCallback);
    fn GetCurrentTransactionNestLevel() -> core::ffi::c_int;
}

/// The level of the current subtransaction. That of a transaction is 1.
#[inline]
pub fn level() -> i32 {
    // SAFETY: it reads a variable.
    unsafe { GetCurrentTransactionNestLevel() }
}

/// Lets an observer be told from now on, in this process and all that it forks.
pub fn install<O: Observer>() {
    // SAFETY: the function lives as long as the process.
    unsafe { pg_sys::RegisterXactCallback(Some(transaction_ends::<O>), ptr::null_mut()) };
    // SAFETY: as above.
    unsafe { pg_sys::RegisterSubXactCallback(Some(subtransaction_ends::<O>), ptr::null_mut()) };
}

unsafe extern "C-unwind" fn transaction_ends<O: Observer>(event: XactEvent::Type, _: *mut c_void) {
    match event {
        XactEvent::XACT_EVENT_PRE_COMMIT | XactEvent::XACT_EVENT_PRE_PREPARE => will_end(),
        XactEvent::XACT_EVENT_COMMIT | XactEvent::XACT_EVENT_PREPARE => O::committed(),
        _ => transaction_ends_otherwise::<O>(event),
    }
}

// Nearly all transactions are committed. With this apart, the function above needs no registers to be saved.
#[cold]
fn transaction_ends_otherwise<O: Observer>(event: XactEvent::Type) {
    match event {
        XactEvent::XACT_EVENT_ABORT => O::aborts(),
        XactEvent::XACT_EVENT_PARALLEL_COMMIT | XactEvent::XACT_EVENT_PARALLEL_ABORT => O::worker_ends(),
        _ => {}
    }
}

unsafe extern "C-unwind" fn subtransaction_ends<O: Observer>(
    event: SubXactEvent::Type,
    _: pg_sys::SubTransactionId,
    _: pg_sys::SubTransactionId,
    _: *mut c_void,
) {
    match event {
        SubXactEvent::SUBXACT_EVENT_START_SUB => O::subtransaction_starts(),
        SubXactEvent::SUBXACT_EVENT_COMMIT_SUB => O::subtransaction_committed(level()),
        SubXactEvent::SUBXACT_EVENT_ABORT_SUB => O::subtransaction_aborts(level()),
        _ => {}
    }
}

static BEFORE_COMMIT: OnceLock<fn()> = OnceLock::new();

/// Lets a function be called before a transaction that has written something is committed or prepared. It must not
/// unwind. Called once, when the postmaster loads the library; [`install`] must be called, too.
pub fn before_commit(run: fn()) {
    BEFORE_COMMIT.set(run).expect("called once");
}

fn will_end() {
    // SAFETY: it reads a variable.
    if unsafe { GetTopTransactionIdIfAny() } != pg_sys::InvalidTransactionId
        && let Some(run) = BEFORE_COMMIT.get()
    {
        run();
    }
}

/// What Postgres calls when it frees the memory of a transaction.
struct Callback(UnsafeCell<pg_sys::MemoryContextCallback>);

// SAFETY: only the main thread uses it, and Postgres only while it is registered.
unsafe impl Sync for Callback {}

static CALLBACK: Callback = Callback(UnsafeCell::new(pg_sys::MemoryContextCallback {
    func: None,
    arg: ptr::null_mut(),
    next: ptr::null_mut(),
}));
static IS_REGISTERED: AtomicBool = AtomicBool::new(false);
static AT_LAST: OnceLock<fn()> = OnceLock::new();

/// Lets a function be called once when the transaction has ended and its memory is freed. It must not unwind, and is
/// the same in all calls. False if there is no transaction.
pub fn call_at_last(run: fn()) -> bool {
    // Since PostgreSQL 18 the context is there without a transaction, too.
    if level() == 0 {
        return false;
    }
    // SAFETY: a plain variable.
    let context = unsafe { pg_sys::TopTransactionContext };
    AT_LAST.get_or_init(|| run);
    if !IS_REGISTERED.swap(true, Ordering::Relaxed) {
        let callback = CALLBACK.0.get();
        // SAFETY: it is not registered, so nobody uses it.
        unsafe { (*callback).func = Some(memory_is_freed) };
        // SAFETY: the context is valid, and the callback lives as long as the process.
        unsafe { MemoryContextRegisterResetCallback(context, callback) };
    }
    true
}

unsafe extern "C-unwind" fn memory_is_freed(_: *mut c_void) {
    IS_REGISTERED.store(false, Ordering::Relaxed);
    if let Some(run) = AT_LAST.get() {
        run();
    }
}

/// Whether this process is exiting.
pub fn is_exiting() -> bool {
    // SAFETY: a plain variable.
    unsafe { pg_sys::proc_exit_inprogress }
}
