//! Parts of the main shared memory segment, and a lock for each. They exist only if the library is in
//! shared_preload_libraries.

use core::ffi::CStr;
use core::ptr::NonNull;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Mutex, OnceLock};

use pg_sys::LWLockMode::{LW_EXCLUSIVE, LW_SHARED, Type as Mode};
use pgrx_pg_sys as pg_sys;

/// A user of shared memory.
pub trait User: 'static {
    /// Its name, also that of its lock.
    const NAME: &'static CStr;
    /// How many bytes it needs. The settings are known by then.
    fn size() -> usize;
    /// The memory is there: all zeros and aligned to a cache line. Called in the postmaster, also after a crash of one of
    /// its children.
    fn start(memory: NonNull<u8>);
    /// The postmaster exits, with this code.
    fn end(code: i32);
}

type Hook = unsafe extern "C-unwind" fn();

static NEXT_REQUEST: OnceLock<Option<Hook>> = OnceLock::new();
static NEXT_STARTUP: OnceLock<Option<Hook>> = OnceLock::new();

/// What the hooks call for a user.
#[derive(Clone, Copy)]
struct Calls {
    request: fn(),
    start: fn(),
}

static USERS: Mutex<Vec<Calls>> = Mutex::new(Vec::new());

/// Requests memory. Called when the postmaster loads the library.
pub fn install<U: User>() {
    USERS.lock().expect("there is one thread").push(Calls { request: request::<U>, start: start::<U> });
    if NEXT_REQUEST.get().is_some() {
        return;
    }
    // SAFETY: a plain variable, which only the main thread uses.
    NEXT_REQUEST.set(unsafe { pg_sys::shmem_request_hook }).expect("called once");
    // SAFETY: as above.
    unsafe { pg_sys::shmem_request_hook = Some(request_all) };
    // SAFETY: as above.
    NEXT_STARTUP.set(unsafe { pg_sys::shmem_startup_hook }).expect("called once");
    // SAFETY: as above.
    unsafe { pg_sys::shmem_startup_hook = Some(start_all) };
}

/// The lock is not held while they are called: an ERROR must not leave it taken.
fn users() -> Vec<Calls> {
    USERS.lock().expect("there is one thread").clone()
}

#[allow(ffi_unwind_calls)] // another extension's hook; this frame is plain, as those of hooks.rs
unsafe extern "C-unwind" fn request_all() {
    if let Some(Some(next)) = NEXT_REQUEST.get() {
        // SAFETY: called as Postgres would.
        unsafe { next() };
    }
    // SAFETY: Postgres is the caller, and there is nothing else in this frame.
    unsafe { pg_sys::panic::pgrx_extern_c_guard(|| users().iter().for_each(|calls| (calls.request)())) };
}

#[allow(ffi_unwind_calls)] // as above
unsafe extern "C-unwind" fn start_all() {
    if let Some(Some(next)) = NEXT_STARTUP.get() {
        // SAFETY: called as Postgres would.
        unsafe { next() };
    }
    // SAFETY: Postgres is the caller, and there is nothing else in this frame.
    unsafe { pg_sys::panic::pgrx_extern_c_guard(|| users().iter().for_each(|calls| (calls.start)())) };
}

fn request<U: User>() {
    // SAFETY: called in the hook in which it may be called.
    unsafe { pg_sys::RequestAddinShmemSpace(U::size()) };
    // SAFETY: as above. Postgres copies the name.
    unsafe { pg_sys::RequestNamedLWLockTranche(U::NAME.as_ptr(), 1) };
}

fn start<U: User>() {
    let mut found = false;
    let size = U::size();
    // Without AddinShmemInitLock: only the postmaster gets here, because its children are forked afterwards.
    // SAFETY: the size is the one that was requested.
    let memory = unsafe { pg_sys::ShmemInitStruct(U::NAME.as_ptr(), size, &raw mut found) };
    let memory = NonNull::new(memory.cast::<u8>()).expect("Postgres raises an ERROR instead");
    // SAFETY: it has that size.
    unsafe { memory.write_bytes(0, size) };
    U::start(memory);
    // SAFETY: the function lives as long as the process.
    unsafe { pg_sys::on_shmem_exit(Some(end::<U>), pg_sys::Datum::null()) };
}

unsafe extern "C-unwind" fn end<U: User>(code: core::ffi::c_int, _: pg_sys::Datum) {
    // Children forget the functions of the postmaster, but not those that run in the postmaster between a crash and the
    // restart.
    // SAFETY: Postgres is the caller, and there is nothing else in this frame.
    unsafe { pg_sys::panic::pgrx_extern_c_guard(|| U::end(code)) };
}

/// Runs something while no other process writes.
pub fn while_reading<U: User, R>(run: impl FnOnce() -> R) -> R {
    locked::<U, R>(LW_SHARED, run)
}

/// Runs something while no other process reads or writes.
pub fn while_writing<U: User, R>(run: impl FnOnce() -> R) -> R {
    locked::<U, R>(LW_EXCLUSIVE, run)
}

fn locked<U: User, R>(mode: Mode, run: impl FnOnce() -> R) -> R {
    // SAFETY: the tranche has been requested with one lock.
    let padded = unsafe { pg_sys::GetNamedLWLockTranche(U::NAME.as_ptr()) };
    // SAFETY: as above. Every variant of the union has the lock.
    let lock = unsafe { &raw mut (*padded).lock };
    // SAFETY: the lock is in shared memory.
    unsafe { pg_sys::LWLockAcquire(lock, mode) };
    let result = catch_unwind(AssertUnwindSafe(run));
    // SAFETY: acquired above.
    unsafe { pg_sys::LWLockRelease(lock) };
    result.unwrap_or_else(|unwinding| resume_unwind(unwinding))
}
