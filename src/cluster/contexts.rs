//! The memory contexts of a process.

use std::sync::OnceLock;
use std::time::{Duration, Instant};

use crate::model::context_tree::{ContextType, Layout, Limits, Outcome, offset, read_tree};
use crate::model::memory::Failure;
use crate::pg::memory_contexts;
use crate::proc::error::Error;
use crate::proc::process::{Pid, Process};
use crate::proc::processor::Turns;
use crate::proc::ptrace_access::Obstacle;
use crate::proc::remote_memory::RemoteMemory;

use super::Cluster;

const LIMITS: Limits = Limits { contexts: 1_000_000, passes: 20_000, one_by_one: 32 };

/// How long to wait before the second pass; before the third, twice as long, and so on. On this processor the process
/// gets on only meanwhile. On another one each read takes time from it, because memory has to get from one processor's
/// cache to the other's.
const PAUSE: Duration = Duration::from_micros(5);

/// The longest of these pauses.
const MAX_PAUSE: Duration = Duration::from_micros(100);

/// No pass but the first starts later than this after the beginning.
const TIME_LIMIT: Duration = Duration::from_secs(2);

// The walk and the headers of this major version agree on the structure.
const _: () = {
    let known = [
        offset::TAG,
        offset::ALLOCATED,
        offset::METHODS,
        offset::PARENT,
        offset::FIRST_CHILD,
        offset::PREVIOUS,
        offset::NEXT,
        offset::NAME,
        offset::IDENT,
        offset::SIZE,
    ];
    let mut at = 0;
    while at < known.len() {
        assert!(known[at] == memory_contexts::OFFSETS[at]);
        at += 1;
    }
};

/// What came of reading the contexts of a process.
#[derive(Debug)]
pub enum Contexts {
    /// The process was read.
    Read(Outcome),
    /// The kernel does not let us.
    Denied(Obstacle),
    /// There is no such process in the cluster, or it has exited.
    Gone,
}

impl Cluster {
    /// The memory contexts of a process. Calls `check_interrupts`, which may unwind, before each read.
    pub fn contexts(&self, pid: Pid, check_interrupts: impl FnMut()) -> Result<Contexts, Error> {
        let types = context_types();
        let layout = Layout { root: memory_contexts::top_address(), types };
        let mut contexts = Contexts::Gone;
        let read = |process: &Process, outcome: &mut Option<Outcome>, mut check_interrupts: &mut dyn FnMut()| {
            let start = Instant::now();
            let mut turns = Turns::default();
            let mut may_continue = |passes: usize| {
                // The process is busy, and may have moved since.
                if passes.is_power_of_two() || passes.is_multiple_of(64) {
                    turns.take(process);
                }
                std::thread::sleep(PAUSE.saturating_mul(passes as u32).min(MAX_PAUSE));
                start.elapsed() < TIME_LIMIT
            };
            let mut memory = RemoteMemory::of(process);
            let read = read_tree(&mut memory, &layout, LIMITS, &mut check_interrupts, &mut may_continue);
            *outcome = Some(read.map_err(|failure| match failure {
                Failure::Memory(error) => error,
                Failure::OutOfMemory => Error::out_of_memory(process.path(c"mem")),
            })?);
            process.revalidate()
        };
        self.read_each(&[pid], 1, check_interrupts, read, |pid, outcome| {
            contexts = match outcome.map(Option::take) {
                Some(Some(outcome)) => Contexts::Read(outcome),
                _ => Contexts::Denied(Obstacle::of(&self.root, pid)),
            };
            Ok(())
        })?;
        Ok(contexts)
    }
}

/// The types of contexts, which are the same in all processes of the server.
fn context_types() -> &'static [ContextType] {
    static TYPES: OnceLock<Vec<ContextType>> = OnceLock::new();
    if let Some(types) = TYPES.get() {
        return types;
    }
    // Not in get_or_init(): an ERROR would unwind through it.
    let types = memory_contexts::types();
    let types = types.into_iter().map(|(name, tag, methods)| ContextType { name, tag, methods }).collect();
    TYPES.get_or_init(|| types)
}
