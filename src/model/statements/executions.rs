//! The statements that a process executes at the same time: those that run, one inside the other, and cursors that wait
//! to be read further.

use super::meter::{Finding, Meter, Peak};

/// How many are followed at the same time. What is nested deeper counts for those that enclose it.
pub const MAX_OPEN: usize = 64;

/// Where Postgres would go on after an ERROR: the address of a buffer on the stack. A lower one is nested deeper.
pub type Handler = usize;

/// A statement whose execution has begun and not ended.
#[derive(Debug)]
pub struct Execution<T> {
    /// The statement.
    pub statement: T,
    /// What it has needed while it ran.
    pub needs: Needs,
    /// What identifies it.
    id: usize,
    /// Otherwise it waits until its client wants more of it.
    is_running: bool,
    /// It survives the end of a transaction that it ends itself, as CALL does.
    outlives_transaction: bool,
    /// While it runs, shared memory may shrink.
    pub shared_may_shrink: bool,
    /// The level of the subtransaction in which it started.
    level: i32,
    /// The level of the subtransaction in which it began to run this time.
    running_level: i32,
    handler: Handler,
}

/// How a statement starts.
#[derive(Clone, Copy, Debug)]
pub struct Start {
    /// What identifies it until its end.
    pub id: usize,
    /// Where an ERROR would lead.
    pub handler: Handler,
    /// The level of the subtransaction.
    pub level: i32,
    /// It survives the end of a transaction that it ends itself.
    pub outlives_transaction: bool,
    /// While it runs, shared memory may shrink.
    pub shared_may_shrink: bool,
}

/// What a statement has needed so far.
#[derive(Clone, Copy, Debug)]
pub struct Needs {
    /// The peak.
    pub peak: Peak,
    /// The most that it held, beyond `base`, in bytes.
    pub growth: u64,
    /// The number of major faults.
    pub major_faults: u64,
    /// What the session held when it started, or would hold now without it, in bytes.
    pub base: u64,
}

impl Needs {
    /// Those of a statement that starts while the session holds this.
    pub fn from(base: u64) -> Self {
        Needs { peak: Peak::default(), growth: 0, major_faults: 0, base }
    }

    /// Adds what has been found while it ran.
    pub fn add(&mut self, finding: Finding) {
        self.peak.merge(finding.peak);
        self.growth = self.growth.max(finding.peak.at_least.saturating_sub(self.base));
        self.major_faults += finding.major_faults;
    }
}

/// Why executions end without their own end.
#[derive(Clone, Copy, Debug)]
pub enum Abort {
    /// The subtransaction of this level is undone.
    Subtransaction(i32),
    /// The transaction is undone, and an ERROR would now lead to this handler.
    Transaction(Handler),
    /// The process exits.
    Exit,
}

/// A statement that is not followed because too many run around it. A recursive one has the same identifier at each
/// depth, and its end must not be taken for that of one that is followed.
#[derive(Debug)]
struct Unfollowed {
    id: usize,
    level: i32,
    handler: Handler,
    outlives_transaction: bool,
}

/// The executions of one process.
#[derive(Debug)]
pub struct Executions<T> {
    open: Vec<Execution<T>>,
    running: usize,
    /// What runs within [`MAX_OPEN`] others. Once one of those has ended, it means nothing.
    unfollowed: Vec<Unfollowed>,
}

impl<T> Default for Executions<T> {
    fn default() -> Self {
        Executions { open: Vec::new(), running: 0, unfollowed: Vec::new() }
    }
}

impl<T> Executions<T> {
    /// Makes room for all that can be open. Returns false if there is no memory for it.
    pub fn reserve(&mut self) -> bool {
        self.open.try_reserve_exact(MAX_OPEN).is_ok()
    }

    /// Whether none is running.
    #[inline]
    pub fn is_idle(&self) -> bool {
        self.running == 0
    }

    /// Whether none is open.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.open.is_empty()
    }

    /// Whether shared memory may shrink while those that are running run.
    pub fn may_shared_shrink(&self) -> bool {
        self.open.iter().any(|execution| execution.is_running && execution.shared_may_shrink)
    }

    /// How many are running.
    pub fn running(&self) -> usize {
        self.running
    }

    /// Starts one, which runs from now on.
    #[inline]
    pub fn start(&mut self, start: Start, needs: Needs, statement: T) {
        if self.running < self.open.len() {
            self.forget_waiting(start.id);
        }
        if self.open.len() < MAX_OPEN {
            self.unfollowed.clear();
            self.running += 1;
            self.open.push(Execution {
                statement,
                needs,
                id: start.id,
                is_running: true,
                outlives_transaction: start.outlives_transaction,
                shared_may_shrink: start.shared_may_shrink,
                level: start.level,
                running_level: start.level,
                handler: start.handler,
            });
        } else {
            self.start_unfollowed(start);
        }
    }

    #[cold]
    fn start_unfollowed(&mut self, start: Start) {
        let Start { id, handler, level, outlives_transaction, .. } = start;
        // Without memory for it, its end may be taken for another one's.
        if self.unfollowed.try_reserve(1).is_ok() {
            self.unfollowed.push(Unfollowed { id, level, handler, outlives_transaction });
        }
    }

    /// The innermost of those with this identifier, if it is not followed.
    #[inline]
    fn find_unfollowed(&self, id: usize) -> Option<usize> {
        if self.unfollowed.is_empty() || self.open.len() < MAX_OPEN {
            return None;
        }
        self.unfollowed.iter().rposition(|unfollowed| unfollowed.id == id)
    }

    /// Whether one waits until its client wants more of it.
    #[inline]
    pub fn waits_for_client(&self, id: usize) -> bool {
        self.find(id).is_some_and(|at| !self.open[at].is_running)
    }

    /// One goes on running, after it has waited.
    #[inline]
    pub fn resume(&mut self, id: usize, handler: Handler, level: i32, meter: &Meter) {
        if let Some(at) = self.find(id)
            && !self.open[at].is_running
        {
            self.running += 1;
            let execution = &mut self.open[at];
            execution.is_running = true;
            execution.handler = handler;
            execution.running_level = level;
            // Until now, `base` was what it held itself.
            execution.needs.base = meter.private().saturating_sub(execution.needs.base);
        }
    }

    /// One waits until its client wants more of it.
    #[inline]
    pub fn suspend(&mut self, id: usize, meter: &Meter) {
        if let Some(at) = self.find(id)
            && self.open[at].is_running
        {
            self.running -= 1;
            let execution = &mut self.open[at];
            execution.is_running = false;
            execution.needs.base = meter.private().saturating_sub(execution.needs.base);
        }
    }

    /// All that are running have needed this.
    pub fn add(&mut self, finding: Finding) {
        for execution in self.iter_running() {
            execution.needs.add(finding);
        }
    }

    /// All that are running.
    pub fn iter_running(&mut self) -> impl Iterator<Item = &mut Execution<T>> {
        self.open.iter_mut().filter(|execution| execution.is_running)
    }

    /// Removes one that has ended without its own end, and returns it with whether it was running. `None` if there is
    /// no other one.
    pub fn next_dead(&mut self, abort: Abort) -> Option<(Execution<T>, bool)> {
        let is_dead = |execution: &Execution<T>| match abort {
            Abort::Subtransaction(level) => {
                execution.level >= level || execution.is_running && execution.running_level >= level
            }
            // A longjmp to this handler has left all that started within it.
            Abort::Transaction(handler) => {
                !execution.outlives_transaction || !execution.is_running || execution.handler <= handler
            }
            Abort::Exit => true,
        };
        self.unfollowed.retain(|unfollowed| match abort {
            Abort::Subtransaction(level) => unfollowed.level < level,
            Abort::Transaction(handler) => unfollowed.outlives_transaction && unfollowed.handler > handler,
            Abort::Exit => false,
        });
        let at = self.open.iter().rposition(is_dead)?;
        let execution = self.open.remove(at);
        self.running -= usize::from(execution.is_running);
        let was_running = execution.is_running;
        Some((execution, was_running))
    }

    /// A subtransaction of this level has become part of the one around it.
    pub fn join_outer(&mut self, level: i32) {
        for execution in &mut self.open {
            execution.level = execution.level.min(level - 1);
            execution.running_level = execution.running_level.min(level - 1);
        }
        for unfollowed in &mut self.unfollowed {
            unfollowed.level = unfollowed.level.min(level - 1);
        }
    }

    /// The transaction has been committed. Only what outlives it remains.
    pub fn end_transaction(&mut self) {
        self.open.retain(|execution| execution.is_running && execution.outlives_transaction);
        self.running = self.open.len();
        self.unfollowed.retain(|unfollowed| unfollowed.outlives_transaction);
    }

    /// Forgets one that waits and has the address of one that starts, because an ERROR has ended it, and if there are
    /// too many, the one that has waited longest.
    #[cold]
    fn forget_waiting(&mut self, id: usize) {
        let is_full = self.open.len() == MAX_OPEN;
        let is_waiting = |execution: &Execution<T>| !execution.is_running && (is_full || execution.id == id);
        if let Some(at) = self.open.iter().position(is_waiting) {
            self.open.remove(at);
        }
    }

    /// The innermost of those with this identifier, if it is followed.
    #[inline]
    fn find(&self, id: usize) -> Option<usize> {
        if self.find_unfollowed(id).is_some() {
            return None;
        }
        self.open.iter().rposition(|execution| execution.id == id)
    }

    /// One has ended. `None` if it was not followed.
    #[inline]
    pub fn finish(&mut self, id: usize) -> Option<Execution<T>> {
        if let Some(at) = self.find_unfollowed(id) {
            self.unfollowed.remove(at);
            return None;
        }
        let at = self.find(id)?;
        // Nearly always it is the last one.
        let execution = if at + 1 == self.open.len() { self.open.pop()? } else { self.open.remove(at) };
        self.running -= usize::from(execution.is_running);
        Some(execution)
    }
}
