//! Follows the statements of a made-up process, whose true peaks are known.

use std::cell::RefCell;
use std::rc::Rc;

use proptest::prelude::*;

use super::super::executions::{Abort, Execution, MAX_OPEN, Start};
use super::super::meter::{HEAVY, LOOK_AFTER, Mark, Probe, Sample};
use super::Follower;

/// A process and its kernel.
#[derive(Debug, Default)]
struct Process {
    private: u64,
    shared: u64,
    mark: u64,
    now: u64,
    /// The largest private memory since each of the statements that are running has started.
    peaks: Vec<u64>,
    cannot_lower: bool,
    samples: usize,
    major_faults: u64,
}

impl Process {
    fn change(&mut self, private: i64, shared: i64) {
        // Touching 256 kB takes 100 us.
        self.now += private.max(0) as u64 * 100 / 256 + shared.max(0) as u64 * 100 / 256;
        self.private = self.private.saturating_add_signed(private);
        self.shared = self.shared.saturating_add_signed(shared);
        self.mark = self.mark.max(self.private + self.shared);
        let private = self.private;
        self.peaks.iter_mut().for_each(|peak| *peak = private.max(*peak));
    }
}

#[derive(Clone, Debug, Default)]
struct Fake(Rc<RefCell<Process>>);

impl Probe for Fake {
    fn mark(&mut self) -> Mark {
        let process = self.0.borrow();
        Mark { resident: process.mark, major_faults: process.major_faults }
    }

    fn sample(&mut self) -> Option<Sample> {
        let mut process = self.0.borrow_mut();
        process.samples += 1;
        Some(Sample { private: process.private, shared: process.shared })
    }

    fn lower_mark(&mut self) -> bool {
        let mut process = self.0.borrow_mut();
        if !process.cannot_lower {
            process.mark = process.private + process.shared;
        }
        !process.cannot_lower
    }

    fn is_open(&self) -> bool {
        true
    }
}

/// What a statement does.
#[derive(Clone, Debug)]
enum Step {
    Allocate(u64),
    /// Frees everything that it has allocated.
    Free,
    /// Touches shared memory for the first time.
    Touch(u64),
    Compute(u64),
    Statement(Vec<Step>),
}

struct Truth {
    number: usize,
    base: u64,
    peak: u64,
}

/// Executes statements and compares what is found with what is true.
struct Run {
    process: Fake,
    follower: Follower<Fake, usize>,
    number: usize,
    finished: Vec<(Truth, Execution<usize>)>,
}

impl Run {
    fn new() -> Self {
        let process = Fake::default();
        process.0.borrow_mut().change(2 << 20, 5 << 20);
        Run { follower: Follower::new(process.clone()).unwrap(), process, number: 0, finished: Vec::new() }
    }

    fn now(&self) -> u64 {
        self.process.0.borrow().now
    }

    fn change(&self, private: i64, shared: i64) {
        self.process.0.borrow_mut().change(private, shared);
    }

    fn start(&mut self, depth: usize) -> usize {
        self.number += 1;
        let start = Start {
            id: self.number,
            handler: 1000 - depth,
            level: 1,
            outlives_transaction: false,
            shared_may_shrink: false,
        };
        self.follower.start(self.now(), start, None, self.number);
        let private = self.process.0.borrow().private;
        self.process.0.borrow_mut().peaks.push(private);
        self.number
    }

    /// Executes one, and everything in it. What it has allocated is freed after its end, or never.
    fn statement(&mut self, steps: &[Step], depth: usize, keeps: bool) {
        let base = self.process.0.borrow().private;
        let number = self.start(depth);
        let mut own = 0;
        for step in steps {
            match step {
                Step::Allocate(bytes) => {
                    self.change(*bytes as i64, 0);
                    own += *bytes as i64;
                }
                Step::Free => {
                    self.change(-own, 0);
                    own = 0;
                }
                Step::Touch(bytes) => self.change(0, *bytes as i64),
                Step::Compute(time) => self.process.0.borrow_mut().now += time,
                Step::Statement(steps) => self.statement(steps, depth + 1, false),
            }
        }
        self.process.0.borrow_mut().now += 10_000;
        let execution = self.follower.finish(self.now(), number).unwrap();
        assert_eq!(execution.statement, number);
        let peak = self.process.0.borrow_mut().peaks.pop().unwrap();
        self.finished.push((Truth { number, base, peak }, execution));
        if !keeps {
            self.change(-own, 0);
        }
    }
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let amount = || prop_oneof![4_000_u64..100_000, 100_000_u64..5_000_000, 5_000_000_u64..300_000_000];
    let leaf = prop_oneof![
        amount().prop_map(Step::Allocate),
        Just(Step::Free),
        amount().prop_map(Step::Touch),
        (0_u64..3_000_000).prop_map(Step::Compute),
    ];
    let step = leaf.prop_recursive(3, 40, 6, |inner| prop::collection::vec(inner, 0..6).prop_map(Step::Statement));
    prop::collection::vec(step, 0..8)
}

fn touches(steps: &[Step]) -> bool {
    steps.iter().any(|step| match step {
        Step::Touch(_) => true,
        Step::Statement(steps) => touches(steps),
        _ => false,
    })
}

/// Whether a statement frees memory between two that it executes. The second one's base may be from before.
fn frees_between(steps: &[Step]) -> bool {
    let is_statement = |step: &Step| matches!(step, Step::Statement(_));
    let mut rest = steps.iter();
    rest.any(is_statement) && rest.any(|step| matches!(step, Step::Free)) && rest.any(is_statement)
        || steps.iter().any(|step| matches!(step, Step::Statement(steps) if frees_between(steps)))
}

/// What can be touched without a look, and a little more.
const UNNOTICED: u64 = 600_000;

/// How much a peak can differ: a look does not lead to a sample if the mark has risen by less than HEAVY since the last
/// one.
const TOLERANCE: u64 = HEAVY + 2 * UNNOTICED;

proptest! {
    #[test]
    fn the_true_peak_is_within_what_is_found(statements in prop::collection::vec((steps(), any::<bool>()), 1..8)) {
        let mut run = Run::new();
        for (steps, keeps) in &statements {
            run.statement(steps, 0, *keeps);
        }
        let is_sharp = !statements.iter().any(|(steps, _)| touches(steps) || frees_between(steps));
        for (truth, found) in &run.finished {
            let growth = truth.peak - truth.base;
            if found.needs.growth >= HEAVY {
                prop_assert!(found.needs.peak.at_least <= truth.peak + UNNOTICED, "{} {found:?}", truth.peak);
                prop_assert!(found.needs.peak.at_most + TOLERANCE >= truth.peak, "{} {found:?}", truth.peak);
                prop_assert!(found.needs.growth <= growth + UNNOTICED, "{} is blamed for {} of {growth}", truth.number, found.needs.growth);
            }
            if is_sharp && growth >= TOLERANCE {
                prop_assert!(found.needs.growth + TOLERANCE >= growth, "{}: {} of {growth}", truth.number, found.needs.growth);
                prop_assert!(found.needs.peak.at_most <= truth.peak + TOLERANCE, "{} {found:?}", truth.peak);
            }
        }
        prop_assert!(run.follower.executions().is_idle());
    }
}

#[test]
fn a_peak_that_has_been_freed_is_not_blamed_on_the_next() {
    let mut run = Run::new();
    run.statement(&[Step::Allocate(500 << 20)], 0, false);
    run.statement(&[Step::Compute(5_000_000), Step::Allocate(100_000)], 0, false);
    run.statement(&[Step::Allocate(20 << 20)], 0, false);
    let growths: Vec<_> = run.finished.iter().map(|(_, found)| found.needs.growth).collect();
    assert_eq!(growths[0], 500 << 20);
    assert!(growths[1] <= 100_000);
    // Although the mark was at 500 MB.
    assert_eq!(growths[2], 20 << 20);
}

#[test]
fn memory_of_an_outer_statement_is_not_blamed_on_an_inner_one() {
    let mut run = Run::new();
    let inner = || Step::Statement(vec![Step::Compute(200_000)]);
    run.statement(&[inner(), Step::Allocate(300 << 20), Step::Free, inner()], 0, false);
    let growths: Vec<_> = run.finished.iter().map(|(_, found)| found.needs.growth).collect();
    assert_eq!(growths, [0, 0, 300 << 20]);
}

#[test]
fn major_faults_count_for_those_that_run() {
    let mut run = Run::new();
    // The first one has faults while nothing grows.
    let outer = run.start(0);
    run.process.0.borrow_mut().major_faults += 3;
    run.process.0.borrow_mut().now += LOOK_AFTER;
    let samples = run.process.0.borrow().samples;
    let inner = run.start(1);
    assert_eq!(run.process.0.borrow().samples, samples);
    run.process.0.borrow_mut().major_faults += 2;
    run.change(10 << 20, 0);
    let faults = |run: &mut Run, number| run.follower.finish(run.now(), number).unwrap().needs.major_faults;
    assert_eq!(faults(&mut run, inner), 2);
    run.process.0.borrow_mut().major_faults += 1;
    run.process.0.borrow_mut().now += LOOK_AFTER;
    assert_eq!(faults(&mut run, outer), 6);
    let next = run.start(0);
    run.change(10 << 20, 0);
    assert_eq!(faults(&mut run, next), 0);
}

#[test]
fn thousands_of_small_statements_need_few_samples() {
    let mut run = Run::new();
    for _ in 0..6000 {
        // A fault is no reason for a sample.
        run.process.0.borrow_mut().major_faults += 1;
        run.statement(&[Step::Allocate(30_000)], 0, false);
    }
    assert!(run.finished.iter().all(|(_, found)| found.needs.growth < HEAVY / 4));
    assert!(run.process.0.borrow().samples < 600, "{}", run.process.0.borrow().samples);
}

#[test]
fn shared_memory_that_shrinks_is_no_private_memory() {
    let mut run = Run::new();
    let start = Start { id: 7, handler: 1000, level: 1, outlives_transaction: false, shared_may_shrink: true };
    run.follower.start(run.now(), start, None, 7);
    run.change(0, 180 << 20);
    // A nested statement, which takes a sample when it starts.
    run.follower.meter.expect_release();
    run.statement(&[], 1, false);
    run.change(0, 180 << 20);
    run.change(0, -(360 << 20));
    let found = run.follower.finish(run.now(), 7).unwrap();
    run.finished.clear();
    assert!(found.needs.growth < HEAVY && found.needs.peak.at_most >= 180 << 20);
    // Afterwards, the mark counts again.
    run.statement(&[Step::Allocate(30 << 20), Step::Free], 0, false);
    assert_eq!(run.finished[0].1.needs.growth, 30 << 20);
}

#[test]
fn a_cursor_is_charged_for_what_it_needs_while_it_runs() {
    let mut run = Run::new();
    let cursor = run.start(0);
    run.follower.wait(run.now(), cursor);
    let fetch = |run: &mut Run, bytes: i64| {
        let now = run.now();
        run.follower.resume(now, cursor, 1000, 1);
        run.change(bytes, 0);
        run.follower.wait(run.now(), cursor);
    };
    fetch(&mut run, 10 << 20);
    // Another one, which keeps its memory.
    run.statement(&[Step::Allocate(100 << 20)], 0, true);
    fetch(&mut run, 7 << 20);
    let found = run.follower.finish(run.now(), cursor).unwrap();
    assert_eq!(found.needs.growth, 17 << 20);
    assert_eq!(run.finished[0].1.needs.growth, 100 << 20);
}

/// As the executor does it: start, run, finish and end, with a pause after each.
#[test]
fn pauses_are_part_of_a_statement() {
    let mut run = Run::new();
    let query = run.start(0);
    for step in 0..3 {
        run.follower.wait(run.now(), query);
        let now = run.now();
        run.follower.resume(now, query, 1000, 1);
        if step == 1 {
            run.change(10 << 20, 0);
        }
    }
    run.follower.wait(run.now(), query);
    let found = run.follower.finish(run.now(), query).unwrap();
    assert_eq!(found.needs.growth, 10 << 20);
}

#[test]
fn what_planning_has_needed_is_part_of_the_execution() {
    let mut run = Run::new();
    let planning = run.start(0);
    run.change(50 << 20, 0);
    let planned = run.follower.finish(run.now(), planning).unwrap();
    run.change(-(40 << 20), 0);
    let start = Start { id: 7, handler: 1000, level: 1, outlives_transaction: false, shared_may_shrink: false };
    run.follower.start(run.now(), start, Some(planned.needs), 7);
    let light = run.follower.finish(run.now(), 7).unwrap();
    assert_eq!((light.needs.growth, light.needs.base), (50 << 20, planned.needs.base));
    run.follower.start(run.now(), start, Some(planned.needs), 7);
    run.change(90 << 20, 0);
    // What planning has left counts, too.
    assert_eq!(run.follower.finish(run.now(), 7).unwrap().needs.growth, 100 << 20);
}

#[test]
fn what_an_error_ends_is_counted_once() {
    let mut run = Run::new();
    let outer = run.start(0);
    let caught = run.start(1);
    run.change(50 << 20, 0);
    let now = run.now();
    let mut dead = Vec::new();
    // The handler lies between the two.
    run.follower.abort(now, Abort::Transaction(1000 - 1), |execution, was_running| dead.push((execution, was_running)));
    // Neither outlives a transaction.
    assert_eq!(dead.iter().map(|(execution, _)| execution.statement).collect::<Vec<_>>(), [caught, outer]);
    assert!(dead.iter().all(|(execution, was_running)| *was_running && execution.needs.growth == 50 << 20));
    assert!(run.follower.executions().is_idle());
}

#[test]
fn errors_within_subtransactions() {
    let mut run = Run::new();
    let outer = run.start(0);
    for _ in 0..10_000 {
        run.number += 1;
        let start =
            Start { id: run.number, handler: 990, level: 2, outlives_transaction: false, shared_may_shrink: false };
        run.follower.start(run.now(), start, None, run.number);
        if run.number.is_multiple_of(2) {
            // The error happens between two of its calls.
            run.follower.wait(run.now(), run.number);
        }
        let mut dead = 0;
        run.follower.abort(run.now(), Abort::Subtransaction(2), |_, _| dead += 1);
        assert_eq!(dead, 1);
    }
    assert_eq!(run.follower.executions().running(), 1);
    assert_eq!(run.follower.finish(run.now(), outer).unwrap().statement, outer);
}

/// Its execution ends with the subtransaction, although it had started before.
#[test]
fn a_cursor_that_fails_in_a_subtransaction() {
    let mut run = Run::new();
    let cursor = run.start(0);
    run.follower.wait(run.now(), cursor);
    run.follower.resume(run.now(), cursor, 1000, 2);
    let mut dead = Vec::new();
    run.follower.abort(run.now(), Abort::Subtransaction(2), |execution, was_running| {
        dead.push((execution.statement, was_running))
    });
    assert_eq!(dead, [(cursor, true)]);
    assert!(run.follower.executions().is_empty());
}

#[test]
fn recursion_by_the_same_plan() {
    let mut run = Run::new();
    let waiting = run.start(0);
    run.follower.wait(run.now(), waiting);
    let start = |handler| Start { id: 7, handler, level: 1, outlives_transaction: true, shared_may_shrink: false };
    run.follower.start(run.now(), start(900), None, 70);
    run.follower.start(run.now(), start(800), None, 71);
    run.change(10 << 20, 0);
    for expected in [71, 70] {
        let found = run.follower.finish(run.now(), 7).unwrap();
        assert_eq!((found.statement, found.needs.growth), (expected, 10 << 20));
    }
}

/// A procedure that calls itself this often, with levels of subtransactions from 1: the numbers of its statements.
fn recurse(run: &mut Run, depth: usize) -> std::ops::Range<usize> {
    for level in 1..=depth {
        let handler = 10_000 - level;
        let level = level as i32;
        let start = Start { id: 7, handler, level, outlives_transaction: true, shared_may_shrink: false };
        run.follower.start(run.now(), start, None, level as usize);
    }
    1..depth + 1
}

/// All of them end, the innermost first.
fn assert_all_end(run: &mut Run, statements: std::ops::Range<usize>) {
    for statement in statements.rev() {
        let found = run.follower.finish(run.now(), 7).map(|found| found.statement);
        assert_eq!(found, (statement <= MAX_OPEN).then_some(statement));
        assert_eq!(run.follower.executions().running(), (statement - 1).min(MAX_OPEN));
    }
    assert!(run.follower.executions().is_empty());
}

#[test]
fn recursion_by_the_same_plan_deeper_than_can_be_followed() {
    let mut run = Run::new();
    for _ in 0..2 {
        let statements = recurse(&mut run, 2 * MAX_OPEN);
        // A query that pauses is none of those that are followed.
        run.follower.wait(run.now(), 7);
        assert_eq!(run.follower.executions().running(), MAX_OPEN);
        run.follower.resume(run.now(), 7, 0, 100);
        run.follower.end_transaction();
        assert_all_end(&mut run, statements);
    }
}

#[test]
fn errors_in_recursion_deeper_than_can_be_followed() {
    for caught_at in [2 * MAX_OPEN, MAX_OPEN + 5, MAX_OPEN + 1, MAX_OPEN, MAX_OPEN - 5, 1] {
        let mut run = Run::new();
        recurse(&mut run, 2 * MAX_OPEN);
        let mut dead = 0;
        run.follower.abort(run.now(), Abort::Subtransaction(caught_at as i32), |_, _| dead += 1);
        assert_eq!(dead, (MAX_OPEN + 1).saturating_sub(caught_at));
        assert_all_end(&mut run, 1..caught_at);

        // ROLLBACK at this depth: what has called it goes on.
        recurse(&mut run, 2 * MAX_OPEN);
        dead = 0;
        run.follower.abort(run.now(), Abort::Transaction(10_000 - caught_at), |_, _| dead += 1);
        assert_eq!(dead, (MAX_OPEN + 1).saturating_sub(caught_at));
        assert_all_end(&mut run, 1..caught_at);
    }
}

/// What is not followed can be a cursor that is never closed.
#[test]
fn what_is_not_followed_is_forgotten_once_there_is_room() {
    let mut run = Run::new();
    let numbers: Vec<_> = (0..MAX_OPEN).map(|depth| run.start(depth)).collect();
    let start = Start { id: 7, handler: 0, level: 1, outlives_transaction: false, shared_may_shrink: false };
    run.follower.start(run.now(), start, None, 7);
    run.follower.finish(run.now(), numbers[MAX_OPEN - 1]).unwrap();
    run.follower.start(run.now(), start, None, 8);
    assert_eq!(run.follower.finish(run.now(), 7).unwrap().statement, 8);
    assert_eq!(run.follower.executions().running(), MAX_OPEN - 1);
}

#[test]
fn many_that_wait_are_no_obstacle() {
    let mut run = Run::new();
    for _ in 0..2 * MAX_OPEN {
        let cursor = run.start(0);
        run.follower.wait(run.now(), cursor);
    }
    run.statement(&[Step::Allocate(30 << 20)], 0, false);
    assert_eq!(run.finished[0].1.needs.growth, 30 << 20);
}

#[test]
fn what_ends_its_own_transaction_goes_on() {
    let mut run = Run::new();
    let start = |id, handler, outlives_transaction| Start {
        id,
        handler,
        level: 1,
        outlives_transaction,
        shared_may_shrink: false,
    };
    run.follower.start(0, start(1, 1000, true), None, 1);
    run.follower.start(0, start(2, 900, false), None, 2);
    run.follower.end_transaction();
    assert_eq!(run.follower.executions().running(), 1);
    // ROLLBACK within a procedure: an ERROR would lead to a handler within it.
    run.follower.abort(0, Abort::Transaction(900), |_, _| panic!());
    // An ERROR has led out of it.
    let mut dead = 0;
    run.follower.abort(0, Abort::Transaction(1000), |_, _| dead += 1);
    assert_eq!(dead, 1);
}

#[test]
fn deeper_than_can_be_followed() {
    let mut run = Run::new();
    let numbers: Vec<_> = (0..2 * MAX_OPEN).map(|depth| run.start(depth)).collect();
    run.change(10 << 20, 0);
    for (depth, number) in numbers.iter().enumerate().rev() {
        let found = run.follower.finish(run.now(), *number);
        assert_eq!(found.is_some(), depth < MAX_OPEN);
        assert!(found.is_none_or(|found| found.needs.growth == 10 << 20));
    }
    assert!(run.follower.executions().is_idle());
}

#[test]
fn without_lowering_the_mark_new_maxima_are_seen() {
    let mut run = Run::new();
    run.process.0.borrow_mut().cannot_lower = true;
    run.statement(&[Step::Allocate(100 << 20), Step::Free], 0, false);
    run.statement(&[Step::Allocate(20 << 20)], 0, false);
    run.statement(&[Step::Allocate(200 << 20), Step::Free], 0, false);
    run.statement(&[Step::Allocate(20 << 20), Step::Free], 0, false);
    let growths: Vec<_> = run.finished.iter().map(|(_, found)| found.needs.growth).collect();
    // The last one had freed it before the sample, and the mark is from before.
    assert_eq!(growths, [100 << 20, 20 << 20, 200 << 20, 0]);
}
