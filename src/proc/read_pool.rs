//! A pool of threads that read the files of processes while the caller uses what was read.
//!
//! Nearly all of the time that a file under `/proc` costs is the kernel's, which walks page tables while we wait in
//! read(2). The walks of different processes do not hinder each other, so with a second core they can overlap, with each
//! other and with the parsing.
//!
//! A thread here opens files and reads them into its own memory, and nothing else. It is a guest in a program that knows
//! nothing of threads, hence:
//!
//! - It calls nothing of the program's, and has every signal blocked: handlers run in the program's own thread.
//! - It is joined before [`read_each`] returns or unwinds, as soon as it has read the process that it is reading.
//! - It has at most [`DESCRIPTORS`] descriptors open at a time, and none while it waits.
//! - If the program exits from within `visit` or `check_interrupts`, without unwinding, there is nothing to be done: the thread
//!   ends with the process, and owns nothing that outlives it.
//!
//! There are two results for each thread, so that one can be filled while the other is used. A thread without one waits,
//! which bounds the memory. Results come in the order in which they are ready.

use std::io;
use std::mem::MaybeUninit;
use std::ptr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread::{self, Scope};
use std::time::Duration;

use super::error::Error;
use super::process::{Pid, Process};
use super::process_tree::ProcessTree;

/// The most descriptors that a thread has open: a process's directory, a file, and its stat.
pub const DESCRIPTORS: usize = 3;

/// How often `check_interrupts` is called while no result comes.
const PATIENCE: Duration = Duration::from_millis(1);

/// The size of a thread's stack. The largest things on it are a buffer of 2 KiB and one of 6 KiB.
const STACK: usize = 128 * 1024;

/// Reads each process by `read` with this number of threads, and passes each result to `visit`, which may end all by an
/// error. Calls `check_interrupts` often; it and `visit` may unwind. In the threads, `read` must not.
///
/// A result is used again for another process. If fewer than two threads could be started, the calling thread reads.
pub fn read_each<R: Default + Send>(
    tree: &ProcessTree,
    pids: &[Pid],
    threads: usize,
    mut check_interrupts: impl FnMut(),
    read: impl Fn(&Process, &mut R, &mut dyn FnMut()) -> Result<(), Error> + Sync,
    mut visit: impl FnMut(Pid, Result<&mut R, Error>) -> Result<(), Error>,
) -> Result<(), Error> {
    let work = Work { tree, pids, read, next: AtomicUsize::new(0) };
    let threads = threads.min(pids.len());
    if threads > 1 {
        read_in_threads(&work, threads, &mut check_interrupts, &mut visit)?;
    }
    // All of them, or those for which no thread could be started.
    let mut result = R::default();
    while let Some(pid) = work.next() {
        check_interrupts();
        let outcome = work.read(pid, &mut result, &mut check_interrupts);
        visit(pid, outcome.map(|()| &mut result))?;
    }
    Ok(())
}

/// The processes to read, and how many of them are taken.
struct Work<'a, F> {
    tree: &'a ProcessTree,
    pids: &'a [Pid],
    read: F,
    next: AtomicUsize,
}

impl<F> Work<'_, F> {
    /// A process that no other thread reads.
    fn next(&self) -> Option<Pid> {
        self.pids.get(self.next.fetch_add(1, Ordering::Relaxed)).copied()
    }

    fn read<R>(&self, pid: Pid, result: &mut R, check_interrupts: &mut dyn FnMut()) -> Result<(), Error>
    where
        F: Fn(&Process, &mut R, &mut dyn FnMut()) -> Result<(), Error>,
    {
        (self.read)(&self.tree.pin(pid)?, result, check_interrupts)
    }
}

/// What a thread has done.
struct Done<R> {
    pid: Pid,
    outcome: Result<(), Error>,
    result: R,
}

fn read_in_threads<R: Default + Send>(
    work: &Work<'_, impl Fn(&Process, &mut R, &mut dyn FnMut()) -> Result<(), Error> + Sync>,
    threads: usize,
    check_interrupts: &mut impl FnMut(),
    visit: &mut impl FnMut(Pid, Result<&mut R, Error>) -> Result<(), Error>,
) -> Result<(), Error> {
    let (give_empty, empty) = mpsc::channel();
    let (give_done, done) = mpsc::channel();
    let empty = Mutex::new(empty);
    thread::scope(|scope| {
        // Dropped before the threads are joined, however this closure ends. That ends a thread when it waits for an empty
        // result, or has one to give.
        let (give_empty, done) = (give_empty, done);

        for _ in 0..2 * start_threads(scope, threads, work, &empty, give_done) {
            give_empty.send(R::default()).expect("the receiver outlives the scope");
        }
        while let Some(Done { pid, outcome, mut result }) = receive(&done, check_interrupts) {
            visit(pid, outcome.map(|()| &mut result))?;
            give_empty.send(result).expect("the receiver outlives the scope");
        }
        Ok(())
    })
}

/// Starts threads, and returns their number. The system may not allow as many.
fn start_threads<'scope, R: Send>(
    scope: &'scope Scope<'scope, '_>,
    count: usize,
    work: &'scope Work<'_, impl Fn(&Process, &mut R, &mut dyn FnMut()) -> Result<(), Error> + Sync>,
    empty: &'scope Mutex<Receiver<R>>,
    give_done: Sender<Done<R>>,
) -> usize
where
    R: 'scope,
{
    let start = || {
        let give_done = give_done.clone();
        let thread = thread::Builder::new().name("pg_meminfo".into()).stack_size(STACK);
        thread.spawn_scoped(scope, move || run_thread(work, empty, &give_done)).is_ok()
    };
    with_signals_blocked(|| (0..count).take_while(|_| start()).count()).unwrap_or(0)
}

fn run_thread<R>(
    work: &Work<'_, impl Fn(&Process, &mut R, &mut dyn FnMut()) -> Result<(), Error>>,
    empty: &Mutex<Receiver<R>>,
    give_done: &Sender<Done<R>>,
) {
    // One thread at a time waits, with the lock; the others wait for the lock.
    let next_empty = || empty.lock().ok()?.recv().ok();
    while let Some(mut result) = next_empty()
        && let Some(pid) = work.next()
    {
        let outcome = work.read(pid, &mut result, &mut || ());
        if give_done.send(Done { pid, outcome, result }).is_err() {
            return;
        }
    }
}

/// The next result. `None` after the last.
fn receive<R>(done: &Receiver<Done<R>>, check_interrupts: &mut impl FnMut()) -> Option<Done<R>> {
    loop {
        check_interrupts();
        match done.recv_timeout(PATIENCE) {
            Ok(done) => return Some(done),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return None,
        }
    }
}

/// Calls a function that must not unwind with all signals blocked. A thread that it starts has them blocked for good.
fn with_signals_blocked<T>(start: impl FnOnce() -> T) -> io::Result<T> {
    let mut all = MaybeUninit::uninit();
    // SAFETY: the set is ours to fill.
    unsafe { libc::sigfillset(all.as_mut_ptr()) };
    let mut before = MaybeUninit::uninit();
    // SAFETY: the first set is filled, the second ours to be filled.
    match unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, all.as_ptr(), before.as_mut_ptr()) } {
        0 => {}
        errno => return Err(io::Error::from_raw_os_error(errno)),
    }
    let result = start();
    // SAFETY: this is the set that the call above has filled.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, before.as_ptr(), ptr::null_mut()) };
    Ok(result)
}

#[cfg(test)]
mod tests;
