//! A background worker that does something again and again, with shared memory and without a database.

use core::ffi::{CStr, c_char, c_int};
use std::sync::atomic::{AtomicBool, Ordering};

use pgrx_pg_sys as pg_sys;

use super::interrupts;

/// What the worker does.
pub trait Work {
    /// The worker has started.
    fn start() -> Self;
    /// It is time to do something. Returns in how many milliseconds it will be again.
    fn run(&mut self) -> u64;
    /// The worker is told to end.
    fn end(&mut self);
}

static IS_ENDING: AtomicBool = AtomicBool::new(false);
static IS_TO_RELOAD: AtomicBool = AtomicBool::new(false);

/// Lets the postmaster start a worker, again whenever it has ended. `function` is the exported function in which it
/// runs. Called when the postmaster loads the library.
pub fn register(name: &CStr, function: &CStr) {
    let mut worker = pg_sys::BackgroundWorker {
        bgw_flags: (pg_sys::BGWORKER_SHMEM_ACCESS | pg_sys::BGWORKER_BACKEND_DATABASE_CONNECTION) as c_int,
        bgw_start_time: pg_sys::BgWorkerStartTime::BgWorkerStart_ConsistentState,
        bgw_restart_time: 1,
        ..pg_sys::BackgroundWorker::default()
    };
    write(&mut worker.bgw_name, name);
    write(&mut worker.bgw_type, name);
    write(&mut worker.bgw_library_name, c"pg_meminfo");
    write(&mut worker.bgw_function_name, function);
    // SAFETY: Postgres copies it.
    unsafe { pg_sys::RegisterBackgroundWorker(&raw mut worker) };
}

fn write<const N: usize>(field: &mut [c_char; N], text: &CStr) {
    for (to, from) in field.iter_mut().zip(text.to_bytes_with_nul()) {
        *to = *from as c_char;
    }
}

/// Runs in the worker until it is told to end, and ends the process then.
pub fn run<W: Work>() {
    handle(libc::SIGTERM, end);
    handle(libc::SIGHUP, reload);
    // It executes no statement that could be canceled.
    handle(libc::SIGINT, ignore);
    // SAFETY: the handlers are there.
    unsafe { pg_sys::BackgroundWorkerUnblockSignals() };
    // SAFETY: no database and the bootstrap user: only what is shared by all databases can be used.
    unsafe { pg_sys::BackgroundWorkerInitializeConnection(core::ptr::null(), core::ptr::null(), 0) };
    let mut work = W::start();
    while !IS_ENDING.load(Ordering::Relaxed) {
        if IS_TO_RELOAD.swap(false, Ordering::Relaxed) {
            // SAFETY: outside of a transaction, as in the main loops of Postgres.
            unsafe { pg_sys::ProcessConfigFile(pg_sys::GucContext::PGC_SIGHUP) };
        }
        let milliseconds = work.run();
        wait(milliseconds);
        // Others wait for each process to take note of what has happened to shared state.
        interrupts::check();
    }
    work.end();
    // With 0, the postmaster would not start it again.
    // SAFETY: ends the process in good order.
    unsafe { pg_sys::proc_exit(1) };
}

fn wait(milliseconds: u64) {
    // SAFETY: a plain variable.
    let latch = unsafe { pg_sys::MyLatch };
    let events = pg_sys::WL_LATCH_SET | pg_sys::WL_TIMEOUT | pg_sys::WL_EXIT_ON_PM_DEATH;
    // SAFETY: it is this process's latch.
    unsafe { pg_sys::WaitLatch(latch, events as c_int, milliseconds as _, pg_sys::PG_WAIT_EXTENSION) };
    // SAFETY: as above.
    unsafe { pg_sys::ResetLatch(latch) };
}

/// Not by pqsignal(), whose name and whose handlers' arguments depend on the version.
fn handle(signal: c_int, handler: extern "C" fn(c_int)) {
    // SAFETY: zeros are a valid value.
    let mut action: libc::sigaction = unsafe { core::mem::zeroed() };
    action.sa_sigaction = handler as *const () as usize;
    action.sa_flags = libc::SA_RESTART;
    // SAFETY: the handler only does what a signal handler may do. Signals are still blocked.
    unsafe { libc::sigaction(signal, &raw const action, core::ptr::null_mut()) };
}

extern "C" fn end(_: c_int) {
    IS_ENDING.store(true, Ordering::Relaxed);
    wake();
}

extern "C" fn ignore(_: c_int) {}

extern "C" fn reload(_: c_int) {
    IS_TO_RELOAD.store(true, Ordering::Relaxed);
    wake();
}

// Not that of pgrx, which would set up a guard. It raises no ERROR, and may be called in a signal handler.
unsafe extern "C" {
    fn SetLatch(latch: *mut pg_sys::Latch);
}

fn wake() {
    // SAFETY: returns the address of a variable of this thread.
    let errno = unsafe { libc::__errno_location() };
    // SAFETY: as above. The code that is interrupted may be about to read it.
    let before = unsafe { errno.read() };
    // SAFETY: a plain variable.
    let latch = unsafe { pg_sys::MyLatch };
    // SAFETY: it is this process's latch.
    unsafe { SetLatch(latch) };
    // SAFETY: as above.
    unsafe { errno.write(before) };
}
