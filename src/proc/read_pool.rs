//! A pool of threads that read processes' files while the caller uses what has already been read.
//!
//! Most of the time that it takes to read a file under `/proc` is spent in the kernel, which walks page tables during
//! read(2). It can do that for several processes at the same time, so with a second core, reads can overlap each other
//! and the parsing.
//!
//! The threads only read files, and parse what they read, in memory of their own. Postgres is not made for threads,
//! therefore:
//!
//! - A thread calls no Postgres function and blocks every signal, so that signal handlers run only in the main thread.
//! - A thread is joined before [`read_each`] returns or unwinds. If it is reading then, it stops after its current
//!   read(2).
//! - A thread has at most [`DESCRIPTORS`] descriptors open at a time, and none while it waits.
//! - If the process exits from within `visit` or `check_interrupts` without unwinding, no cleanup is necessary: the
//!   threads end with the process, and own nothing that outlives it.
//!
//! There are two results for each thread, so that one can be filled while the other is used. A thread waits if no
//! result is free, which limits the memory. Results are visited in the order in which they are ready.

use std::io;
use std::mem::MaybeUninit;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::ptr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread::{self, Scope};
use std::time::Duration;

use super::error::Error;
use super::process::{Pid, Process};
use super::process_tree::ProcessTree;

/// The maximum number of descriptors that a thread has open: a process's directory, a file, and its stat.
pub const DESCRIPTORS: usize = 3;

/// How often `check_interrupts` is called while no result is ready.
const CHECK_INTERVAL: Duration = Duration::from_millis(1);

/// The stack size of a thread. The largest objects on the stack are buffers of 2 KiB and 6 KiB.
const STACK: usize = 128 * 1024;

/// Reads each process by `read`, in this number of threads, and passes each result to `visit`. If `visit` returns an
/// error, nothing more is read. Calls `check_interrupts` often. `visit` and `check_interrupts` may unwind; `read` must
/// not unwind in a thread.
///
/// Results are reused for other processes. With fewer than two threads, or if none can be started, the calling thread
/// reads.
pub fn read_each<R: Default + Send>(
    tree: &ProcessTree,
    pids: &[Pid],
    threads: usize,
    mut check_interrupts: impl FnMut(),
    read: impl Fn(&Process, &mut R, &mut dyn FnMut()) -> Result<(), Error> + Sync,
    mut visit: impl FnMut(Pid, Result<&mut R, Error>) -> Result<(), Error>,
) -> Result<(), Error> {
    let work = Work { tree, pids, read, next: AtomicUsize::new(0), is_over: AtomicBool::new(false) };
    let threads = threads.min(pids.len());
    if threads > 1 {
        read_in_threads(&work, threads, &mut check_interrupts, &mut visit)?;
    }
    // Read in this thread whatever is left: everything, if no threads were started.
    let mut result = R::default();
    while let Some(pid) = work.next() {
        check_interrupts();
        let outcome = work.read(pid, &mut result, &mut check_interrupts);
        visit(pid, outcome.map(|()| &mut result))?;
    }
    Ok(())
}

/// The processes to read, and the position of the next one.
struct Work<'a, F> {
    tree: &'a ProcessTree,
    pids: &'a [Pid],
    read: F,
    next: AtomicUsize,
    /// Whether the caller wants no more results.
    is_over: AtomicBool,
}

impl<F> Work<'_, F> {
    /// The next process that no thread has read yet.
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

/// A result, and the process that was read into it.
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
        // Moved into this closure so that they are dropped before the threads are joined, however the closure ends.
        // Each thread then ends as soon as it waits for a free result or tries to return one.
        let (give_empty, done) = (give_empty, done);
        let _over = SetOnDrop(&work.is_over);

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

/// Starts up to `count` threads, and returns how many could be started.
fn start_threads<'scope, R: Send + 'scope>(
    scope: &'scope Scope<'scope, '_>,
    count: usize,
    work: &'scope Work<'_, impl Fn(&Process, &mut R, &mut dyn FnMut()) -> Result<(), Error> + Sync>,
    empty: &'scope Mutex<Receiver<R>>,
    give_done: Sender<Done<R>>,
) -> usize {
    let start = || {
        let give_done = give_done.clone();
        let thread = thread::Builder::new().name("pg_meminfo".into()).stack_size(STACK);
        thread.spawn_scoped(scope, move || run_thread(work, empty, &give_done)).is_ok()
    };
    with_signals_blocked(|| (0..count).take_while(|_| start()).count()).unwrap_or(0)
}

/// Sets a flag at the end of a block, also if that unwinds.
struct SetOnDrop<'a>(&'a AtomicBool);

impl Drop for SetOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// What a thread unwinds with if it stops reading a process.
struct Over;

fn run_thread<R>(
    work: &Work<'_, impl Fn(&Process, &mut R, &mut dyn FnMut()) -> Result<(), Error>>,
    empty: &Mutex<Receiver<R>>,
    give_done: &Sender<Done<R>>,
) {
    // Only one thread at a time waits for a free result, and holds the lock; the others wait for the lock.
    let next_empty = || empty.lock().ok()?.recv().ok();
    let mut stop_if_over = || {
        if work.is_over.load(Ordering::Relaxed) {
            resume_unwind(Box::new(Over));
        }
    };
    while let Some(mut result) = next_empty()
        && let Some(pid) = work.next()
    {
        match catch_unwind(AssertUnwindSafe(|| work.read(pid, &mut result, &mut stop_if_over))) {
            Ok(outcome) => {
                if give_done.send(Done { pid, outcome, result }).is_err() {
                    return;
                }
            }
            Err(payload) if payload.is::<Over>() => return,
            Err(panic) => resume_unwind(panic),
        }
    }
}

/// The next result. `None` after the last.
fn receive<R>(done: &Receiver<Done<R>>, check_interrupts: &mut impl FnMut()) -> Option<Done<R>> {
    loop {
        check_interrupts();
        match done.recv_timeout(CHECK_INTERVAL) {
            Ok(done) => return Some(done),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return None,
        }
    }
}

/// Calls `start`, which must not unwind, with all signals blocked. Threads started by it keep them blocked.
fn with_signals_blocked<T>(start: impl FnOnce() -> T) -> io::Result<T> {
    let mut all = MaybeUninit::uninit();
    // SAFETY: the set is ours to fill.
    unsafe { libc::sigfillset(all.as_mut_ptr()) };
    let mut before = MaybeUninit::uninit();
    // SAFETY: the first set has been filled, and the second is ours to fill.
    match unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, all.as_ptr(), before.as_mut_ptr()) } {
        0 => {}
        errno => return Err(io::Error::from_raw_os_error(errno)),
    }
    let result = start();
    // SAFETY: the call above has filled this set.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, before.as_ptr(), ptr::null_mut()) };
    Ok(result)
}

#[cfg(test)]
mod tests;
