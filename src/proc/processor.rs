//! The processor on which another process runs.
//!
//! While a process runs, another one that reads its memory competes with it for every cache line, and may never see it
//! at rest. Two processes on the same processor take turns: as long as one of them runs, the other does not. The
//! scheduler sees to that, so neither has to be stopped.
//!
//! sched_setaffinity(2) is needed for it, and a seccomp filter can end the process that calls it: systemd's group
//! `@resources` has it, which hardened units deny. So a process with any such filter does not call it.

use std::mem::{self, MaybeUninit};

use memchr::memrchr;

use super::buffer::Buffer;
use super::fields;
use super::process::Process;

/// Lets this thread take turns with another process. When this is dropped, the thread may run on all processors on
/// which it could run before.
#[derive(Default)]
pub struct Turns {
    bound: Option<Bound>,
    stat: Buffer,
}

/// A thread that has been bound to a processor.
struct Bound {
    /// On which processors it may run.
    allowed: libc::cpu_set_t,
    /// To which it is bound afterwards: all that there can ever be, if it was bound to none before.
    afterwards: libc::cpu_set_t,
}

impl Bound {
    /// `None` if this thread cannot be bound.
    fn new() -> Option<Self> {
        let allowed = if has_seccomp_filter() { None } else { affinity() }?;
        let mut all = no_processors();
        // SAFETY: the set has a bit for each of these numbers.
        (0..libc::CPU_SETSIZE as usize).for_each(|processor| unsafe { libc::CPU_SET(processor, &mut all) });
        bind(&all);
        // SAFETY: both are sets.
        let was_free = affinity().is_some_and(|now| unsafe { libc::CPU_EQUAL(&now, &allowed) });
        if !was_free {
            bind(&allowed);
        }
        Some(Bound { allowed, afterwards: if was_free { all } else { allowed } })
    }
}

impl Drop for Bound {
    fn drop(&mut self) {
        bind(&self.afterwards);
    }
}

impl Turns {
    /// Moves this thread to the processor of `process`, if the thread may run there. Otherwise nothing happens.
    pub fn take(&mut self, process: &Process) {
        let Ok([stat]) = process.read_small([c"stat"], &mut self.stat) else { return };
        let Some(processor) = parse(stat).filter(|&processor| processor < libc::CPU_SETSIZE as usize) else { return };
        if self.bound.is_none() {
            self.bound = Bound::new();
        }
        // SAFETY: the set has a bit for this number.
        if self.bound.as_ref().is_some_and(|bound| unsafe { libc::CPU_ISSET(processor, &bound.allowed) }) {
            bind(&only(processor));
        }
    }
}

fn no_processors() -> libc::cpu_set_t {
    // SAFETY: a set of bits, all of which may be zero.
    unsafe { MaybeUninit::zeroed().assume_init() }
}

fn only(processor: usize) -> libc::cpu_set_t {
    let mut set = no_processors();
    // SAFETY: a number that is too large for the set panics.
    unsafe { libc::CPU_SET(processor, &mut set) };
    set
}

/// On which processors this thread may run. `None` if there can be more of them than the set can have.
fn affinity() -> Option<libc::cpu_set_t> {
    let mut set = no_processors();
    // SAFETY: the kernel writes as many bytes as the set has.
    let status = unsafe { libc::sched_getaffinity(0, mem::size_of_val(&set), &raw mut set) };
    (status == 0).then_some(set)
}

/// Lets this thread run on these processors. A processor that has been taken offline since is no reason to fail.
fn bind(set: &libc::cpu_set_t) {
    // SAFETY: the kernel reads as many bytes as the set has.
    unsafe { libc::sched_setaffinity(0, mem::size_of_val(set), &raw const *set) };
}

/// Whether a seccomp filter decides which system calls this thread may make. If that is not known, it does.
fn has_seccomp_filter() -> bool {
    let Ok(status) = std::fs::read("/proc/thread-self/status") else { return true };
    fields::lines(&status).any(|line| line.strip_prefix(b"Seccomp:").is_some_and(|mode| mode.trim_ascii() != b"0"))
}

/// The processor on which a process runs or ran last, according to stat: field 39 of proc(5).
fn parse(stat: &[u8]) -> Option<usize> {
    // The second field is the program's name in parentheses, which may contain anything.
    let fields = stat.get(memrchr(b')', stat)? + 1..)?.trim_ascii();
    let field = fields.split(|&byte| byte == b' ').nth(39 - 3)?;
    usize::try_from(fields::decimal(field)?).ok()
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::process::{Command, Stdio};

    use super::*;
    use crate::proc::root::Root;

    fn processors(set: &libc::cpu_set_t) -> Vec<usize> {
        // SAFETY: the set has more processors than each of these numbers.
        (0..libc::CPU_SETSIZE as usize).filter(|&processor| unsafe { libc::CPU_ISSET(processor, set) }).collect()
    }

    #[test]
    fn stat_says_where_a_thread_runs() {
        let before = affinity().unwrap();
        for processor in processors(&before) {
            bind(&only(processor));
            let stat = std::fs::read("/proc/thread-self/stat").unwrap();
            assert_eq!(parse(&stat), Some(processor));
        }
        bind(&before);
    }

    #[test]
    fn stat_that_ends_early() {
        let whole = format!("1 (a) b) S{} 5 0 0", " 0".repeat(35));
        assert_eq!(parse(whole.as_bytes()), Some(5));
        for stat in ["", "1 (a) S", "1 (a", "1 (39 fields) S 1 2 3 4 5 6 7 8 9 10"] {
            assert_eq!(parse(stat.as_bytes()), None, "{stat}");
        }
    }

    /// Runs something with a process that is bound to a processor.
    fn with_process_on(processor: usize, run: impl FnOnce(&Process)) {
        let mut child = Command::new("taskset")
            // It ends with its standard input, also if the test fails.
            .args(["-c", &processor.to_string(), "sh", "-c", "echo; exec cat"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        // It has been bound once it has printed something.
        child.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
        run(&Process::pin(&Root::default(), child.id() as i32).unwrap());
        drop(child.stdin.take());
        child.wait().unwrap();
    }

    #[test]
    fn the_thread_goes_where_the_process_is_and_is_free_again() {
        let before = processors(&affinity().unwrap());
        for &processor in &before {
            with_process_on(processor, |process| {
                let mut turns = Turns::default();
                for _ in 0..2 {
                    turns.take(process);
                    assert_eq!(processors(&affinity().unwrap()), [processor]);
                }
            });
            assert_eq!(processors(&affinity().unwrap()), before);
        }
    }

    #[test]
    fn a_thread_that_may_not_run_there_stays_where_it_is() {
        let before = affinity().unwrap();
        let [first, second, ..] = processors(&before)[..] else { return };
        with_process_on(first, |process| {
            bind(&only(second));
            let mut turns = Turns::default();
            turns.take(process);
            assert_eq!(processors(&affinity().unwrap()), [second]);
            drop(turns);
            assert_eq!(processors(&affinity().unwrap()), [second]);
            bind(&before);
        });
    }

    #[test]
    fn a_filter_that_ends_the_process_is_never_met() {
        let load = |code, k| libc::sock_filter { code, jt: 0, jf: 0, k };
        let [number, equal, allow, kill] = [
            // The number of the system call is the first word.
            load((libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16, 0),
            libc::sock_filter {
                code: (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16,
                jt: 1,
                jf: 0,
                k: libc::SYS_sched_setaffinity as u32,
            },
            load((libc::BPF_RET | libc::BPF_K) as u16, libc::SECCOMP_RET_ALLOW),
            load((libc::BPF_RET | libc::BPF_K) as u16, libc::SECCOMP_RET_KILL_PROCESS),
        ];
        let mut filter = [number, equal, allow, kill];
        with_process_on(processors(&affinity().unwrap())[0], |process| {
            let pid = process.pid();
            // A thread of its own, because it keeps the filter.
            std::thread::spawn(move || {
                let program = libc::sock_fprog { len: 4, filter: filter.as_mut_ptr() };
                // SAFETY: this changes nothing but this thread.
                let status = unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) };
                assert_eq!(status, 0);
                // SAFETY: the program has four instructions.
                let status =
                    unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) };
                assert_eq!(status, 0);
                Turns::default().take(&Process::pin(&Root::default(), pid).unwrap());
            })
            .join()
            .unwrap();
        });
    }
}
