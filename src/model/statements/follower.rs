//! Follows the statements of one process and measures what each needs.

use super::executions::{Abort, Execution, Executions, Handler, Needs, Start};
use super::meter::{HEAVY, Meter, Probe};

/// The process, what its meter says, and what it executes.
#[derive(Debug)]
pub struct Follower<P, T> {
    /// The process.
    pub probe: P,
    /// Its memory.
    pub meter: Meter,
    executions: Executions<T>,
}

impl<P: Probe, T> Follower<P, T> {
    /// Begins to follow a process. `None` if there is no memory for that.
    pub fn new(mut probe: P) -> Option<Self> {
        let mut executions = Executions::default();
        let meter = Meter::new(&mut probe);
        executions.reserve().then_some(Follower { probe, meter, executions })
    }

    /// What is being executed.
    #[inline]
    pub fn executions(&self) -> &Executions<T> {
        &self.executions
    }

    /// Statements that are running, the outermost first.
    pub fn iter_running(&mut self) -> impl Iterator<Item = &mut Execution<T>> {
        self.executions.iter_running()
    }

    /// A statement starts to run. `planning` is what its planning has needed. If the sizes are known exactly
    /// now, returns what was held before.
    #[inline]
    pub fn start(&mut self, now: u64, start: Start, planning: Option<Needs>, statement: T) -> Option<u64> {
        let refreshed = self.begin(now);
        let private = self.meter.private();
        let needs = planning.map_or(Needs::from(private), |needs| Needs { base: needs.base.min(private), ..needs });
        self.executions.start(start, needs, statement);
        if start.shared_may_shrink {
            self.meter.expect_shrinking();
        }
        refreshed
    }

    /// A statement ends that has been running since `since` while no other was, and that this follower has not been
    /// told of. Whether that can be left so, because nothing is to be looked at.
    #[inline]
    pub fn is_light(&mut self, since: u64, now: u64) -> bool {
        self.meter.start_counting(since);
        !self.meter.is_due(now)
    }

    /// A statement goes on, in a subtransaction of this level.
    pub fn resume(&mut self, now: u64, id: usize, handler: Handler, level: i32) {
        if self.executions.waits_for_client(id) {
            self.begin(now);
            self.executions.resume(id, handler, level, &self.meter);
            if self.executions.may_shared_shrink() {
                self.meter.expect_shrinking();
            }
        }
    }

    /// A statement waits for its client.
    pub fn wait(&mut self, now: u64, id: usize) {
        self.look(now);
        self.executions.suspend(id, &self.meter);
    }

    /// Looks at what the statements that are running have needed so far.
    #[inline]
    pub fn look(&mut self, now: u64) {
        if self.meter.is_due(now) {
            self.look_now();
        }
    }

    #[cold]
    fn look_now(&mut self) {
        self.meter.look(&mut self.probe);
        self.distribute();
    }

    /// Takes a sample now.
    pub fn sample(&mut self) {
        self.meter.sample(&mut self.probe);
        self.distribute();
    }

    /// A statement ends, whether it waits or runs. What it held must not have been freed yet. `None` if it was not
    /// followed.
    #[inline]
    pub fn finish(&mut self, now: u64, id: usize) -> Option<Execution<T>> {
        self.look(now);
        let execution = self.executions.finish(id);
        if execution.as_ref().is_some_and(needs_refresh) {
            self.meter.expect_release();
        }
        execution
    }

    /// Statements end without their own end. Calls `each` with them, and with whether they were running.
    pub fn abort(&mut self, now: u64, abort: Abort, mut each: impl FnMut(Execution<T>, bool)) {
        if !self.executions.is_idle() {
            self.look(now);
        }
        while let Some((execution, was_running)) = self.executions.next_dead(abort) {
            if needs_refresh(&execution) {
                self.meter.expect_release();
            }
            each(execution, was_running);
        }
    }

    /// A subtransaction of this level has become part of the one around it.
    pub fn join_outer(&mut self, level: i32) {
        self.executions.join_outer(level);
    }

    /// The transaction has been committed.
    pub fn end_transaction(&mut self) {
        self.executions.end_transaction();
    }

    /// What happens now belongs to what starts now. If the sizes are known exactly, returns private memory.
    #[inline]
    fn begin(&mut self, now: u64) -> Option<u64> {
        if self.executions.is_idle() {
            self.meter.start_counting(now);
        } else {
            self.look(now);
        }
        self.meter.is_stale().then(|| self.refresh())
    }

    #[cold]
    fn refresh(&mut self) -> u64 {
        self.meter.refresh(&mut self.probe);
        self.distribute();
        if self.executions.may_shared_shrink() {
            self.meter.expect_shrinking();
        }
        self.meter.private()
    }

    /// What has been found belongs to all that are running.
    fn distribute(&mut self) {
        if let Some(finding) = self.meter.take() {
            self.probe.tell(finding.peak);
            self.executions.add(finding);
        }
    }
}

/// Whether the mark must be lowered after a statement: what it held will be freed, or shared memory need not be
/// expected to shrink any more.
fn needs_refresh<T>(execution: &Execution<T>) -> bool {
    execution.needs.growth >= HEAVY || execution.shared_may_shrink
}

#[cfg(test)]
mod tests;
