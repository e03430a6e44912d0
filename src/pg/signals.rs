//! Signals of this process, and who has sent them.

use core::ffi::{c_int, c_void};
use std::ptr;
use std::sync::OnceLock;

/// Says whether a signal is to be handled, by its number and the pid of its sender. It is called in the signal handler.
pub type Filter = fn(c_int, i32) -> bool;

static FILTER: OnceLock<Filter> = OnceLock::new();

/// The handlers of Postgres.
static CANCEL: OnceLock<libc::sigaction> = OnceLock::new();
static TERMINATE: OnceLock<libc::sigaction> = OnceLock::new();

/// Lets a filter decide whether this process is told that a statement is to be canceled (SIGINT), or that it is to end
/// (SIGTERM). Called once in a process, when Postgres has set up its handlers.
pub fn filter(filter: Filter) {
    // A process that could not be told at all is left as it is.
    if FILTER.set(filter).is_ok() {
        intercept(libc::SIGINT, &CANCEL);
        intercept(libc::SIGTERM, &TERMINATE);
    }
}

fn intercept(signal: c_int, previous: &OnceLock<libc::sigaction>) {
    // SAFETY: zeros are a valid value.
    let mut action: libc::sigaction = unsafe { core::mem::zeroed() };
    // SAFETY: the kernel fills the structure.
    if unsafe { libc::sigaction(signal, ptr::null(), &raw mut action) } != 0
        || action.sa_sigaction == libc::SIG_DFL
        || action.sa_sigaction == libc::SIG_IGN
        || previous.set(action).is_err()
    {
        return;
    }
    action.sa_sigaction = handle as *const () as usize;
    action.sa_flags |= libc::SA_SIGINFO;
    // SAFETY: the handler only does what a signal handler may do.
    unsafe { libc::sigaction(signal, &raw const action, ptr::null_mut()) };
}

extern "C" fn handle(signal: c_int, information: *mut libc::siginfo_t, context: *mut c_void) {
    let previous = if signal == libc::SIGINT { &CANCEL } else { &TERMINATE };
    // SAFETY: the kernel passes a valid structure.
    let sent = unsafe { &*information };
    // SAFETY: the field is there if the signal was sent by kill().
    let sender = if sent.si_code == libc::SI_USER { unsafe { sent.si_pid() } } else { 0 };
    let (Some(filter), Some(previous)) = (FILTER.get(), previous.get()) else { return };
    if !filter(signal, sender) {
        return;
    }
    if previous.sa_flags & libc::SA_SIGINFO != 0 {
        // SAFETY: it was installed as a handler with these arguments.
        let handler: extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void) =
            unsafe { core::mem::transmute(previous.sa_sigaction) };
        handler(signal, information, context);
    } else {
        // SAFETY: it was installed as a handler with this argument.
        let handler: extern "C" fn(c_int) = unsafe { core::mem::transmute(previous.sa_sigaction) };
        handler(signal);
    }
}

/// Sends a signal to a process. If it has gone, nothing happens.
pub fn send(pid: i32, signal: c_int) {
    // SAFETY: a system call without pointers.
    unsafe { libc::kill(pid, signal) };
}
