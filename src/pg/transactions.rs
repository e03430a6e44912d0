//! The ends of transactions and of processes.
//!
//! Postgres calls these functions also while it handles an ERROR. They must not raise another.

use core::ffi::c_void;
use core::ptr;

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

// Not that of pgrx, which would set up a guard. It returns a number.
unsafe extern "C" {
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
        XactEvent::XACT_EVENT_COMMIT | XactEvent::XACT_EVENT_PREPARE => O::committed(),
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

/// Whether this process is exiting.
pub fn is_exiting() -> bool {
    // SAFETY: a plain variable.
    unsafe { pg_sys::proc_exit_inprogress }
}
