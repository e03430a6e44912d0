//! Reading ahead: threads that read processes' files while the caller parses what was read.
//!
//! Nearly all of the time that a file under `/proc` costs is the kernel's, which walks page tables while we wait in
//! read(2). The walks of different processes do not hinder each other, so with a second core they can overlap, with each
//! other and with the parsing.
//!
//! A thread here opens and reads files into buffers, and nothing else. It is a guest in a program that knows nothing of
//! threads, hence:
//!
//! - It calls nothing of the program's, and has every signal blocked: handlers run in the program's own thread.
//! - It is joined before [`read_each`] returns or unwinds, as soon as it has read the file that it is reading.
//! - It holds at most [`DESCRIPTORS`] descriptors at a time, and none while it waits.
//! - If the program exits from within `take` or `between`, without unwinding, there is nothing to be done: the thread ends
//!   with the process, and owns nothing that outlives it.
//!
//! There are two buffers for each thread, so that one can be filled while the other is parsed. A thread without a buffer
//! waits, which bounds the memory. Results come in the order in which they are ready.

use std::ffi::CStr;
use std::io;
use std::mem::MaybeUninit;
use std::path::PathBuf;
use std::ptr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread::{self, Scope};
use std::time::Duration;

use super::process::{Buffer, Error, Family, Pid};

/// How many descriptors a thread has open at most: a process's directory, the file, and its stat.
pub const DESCRIPTORS: usize = 3;

/// How often `between` is called while nothing comes.
const PATIENCE: Duration = Duration::from_millis(1);

/// A thread's stack. What it needs most is stat's 2 KiB.
const STACK: usize = 128 * 1024;

/// A file's whole text, and where it is.
#[derive(Debug)]
pub struct Text<'a> {
    /// The file.
    pub path: PathBuf,
    /// All of it.
    pub bytes: &'a [u8],
}

/// Reads the file `name` of each process with so many threads, and hands each result to `take`. Calls `between` often; it
/// and `take` may unwind.
///
/// With less than two threads to start, the calling thread reads.
pub fn read_each(
    family: &Family,
    pids: &[Pid],
    name: &CStr,
    threads: usize,
    mut between: impl FnMut(),
    mut take: impl FnMut(Pid, Result<Text<'_>, Error>),
) {
    let work = Work { family, pids, name, next: AtomicUsize::new(0) };
    let threads = threads.min(pids.len());
    if threads > 1 {
        read_ahead(&work, threads, &mut between, &mut take);
    }
    // All of them, or what no thread could be started for.
    let mut buffer = Buffer::default();
    while let Some(pid) = work.next() {
        between();
        let result = work.read(pid, &mut buffer, &mut between);
        take(pid, result.map(|path| Text { path, bytes: buffer.text() }));
    }
}

/// What there is to read, and how far that has come.
struct Work<'a> {
    family: &'a Family,
    pids: &'a [Pid],
    name: &'a CStr,
    next: AtomicUsize,
}

impl Work<'_> {
    /// A process that nobody else reads.
    fn next(&self) -> Option<Pid> {
        self.pids.get(self.next.fetch_add(1, Ordering::Relaxed)).copied()
    }

    /// Reads a process's file, and returns where it is.
    fn read(&self, pid: Pid, buffer: &mut Buffer, between_reads: impl FnMut()) -> Result<PathBuf, Error> {
        let process = self.family.open(pid)?;
        process.read(self.name, buffer, between_reads)?;
        Ok(process.path(self.name))
    }
}

/// What a thread has done.
struct Done {
    pid: Pid,
    result: Result<PathBuf, Error>,
    buffer: Buffer,
}

fn read_ahead(
    work: &Work<'_>,
    threads: usize,
    between: &mut impl FnMut(),
    take: &mut impl FnMut(Pid, Result<Text<'_>, Error>),
) {
    let (give_empty, empty) = mpsc::channel();
    let (give_done, done) = mpsc::channel();
    let empty = Mutex::new(empty);
    thread::scope(|scope| {
        // Dropped before the threads are joined, however this closure ends. That ends a thread, when it waits for a buffer
        // or has something to give.
        let (give_empty, done) = (give_empty, done);

        for _ in 0..2 * start_threads(scope, threads, work, &empty, give_done) {
            give_empty.send(Buffer::default()).expect("the receiver outlives the scope");
        }
        while let Some(Done { pid, result, buffer }) = receive(&done, between) {
            take(pid, result.map(|path| Text { path, bytes: buffer.text() }));
            give_empty.send(buffer).expect("the receiver outlives the scope");
        }
    });
}

/// Starts threads, and says how many. The system may not have as many to give.
fn start_threads<'scope>(
    scope: &'scope Scope<'scope, '_>,
    count: usize,
    work: &'scope Work<'_>,
    empty: &'scope Mutex<Receiver<Buffer>>,
    give_done: Sender<Done>,
) -> usize {
    let start = || {
        let give_done = give_done.clone();
        let thread = thread::Builder::new().name("pg_meminfo".into()).stack_size(STACK);
        thread.spawn_scoped(scope, move || run_thread(work, empty, &give_done)).is_ok()
    };
    with_signals_blocked(|| (0..count).take_while(|_| start()).count()).unwrap_or(0)
}

fn run_thread(work: &Work<'_>, empty: &Mutex<Receiver<Buffer>>, give_done: &Sender<Done>) {
    // One thread at a time waits, with the lock; the others wait for the lock.
    let next_empty = || empty.lock().ok()?.recv().ok();
    while let Some(mut buffer) = next_empty()
        && let Some(pid) = work.next()
    {
        let result = work.read(pid, &mut buffer, || ());
        if give_done.send(Done { pid, result, buffer }).is_err() {
            return;
        }
    }
}

/// The next result. `None` after the last.
fn receive(done: &Receiver<Done>, between: &mut impl FnMut()) -> Option<Done> {
    loop {
        between();
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
