//! What the guard does while memory runs short: how much more each session may use, and whose statement is ended.
//!
//! # The brake
//!
//! At each sample every session gets a limit: what it has, and its share of what is left above a reserve that nobody
//! gets. While there is enough memory, one session may use all of that. Below `min_headroom` the brake is pressed: the
//! share is a quarter at most, so that the last of it is never used up, however fast a session is, and however late
//! the next sample. Memory that has been mapped and not touched yet is spoken for, and so is what is still untouched of
//! the shared memory that Postgres has reserved. No limit is below [`FLOOR`].
//!
//! # Whose statement is ended
//!
//! Below a half of `min_headroom`: that of the session which holds most with its parallel workers, where growth counts
//! twice, so that one that is eating memory now comes before one that has long had as much. One that holds less than
//! a tenth of all that there is cannot be the reason, and is left alone. So nobody is ended if the shortage is not of
//! Postgres's making.

use std::cmp::Reverse;
use std::collections::HashMap;

/// No session is limited to less, in bytes: code that was not made for that, such as LLVM, aborts if it gets no memory.
pub const FLOOR: u64 = 64 << 20;

/// How long, in microseconds, a session has to obey before it is terminated or another one is chosen.
pub const GRACE: i64 = 500_000;

/// The reserve is at least so large, in bytes, but not more than a half of `min_headroom`.
const LEAST_RESERVE: u64 = 64 << 20;

/// A session that has grown by more bytes since the last sample is growing.
const GROWING: u64 = 1 << 20;

/// Over so many microseconds growth counts, at least.
const GROWTH_OVER: i64 = 1_000_000;

/// What the guard may do. Each includes those before it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Action {
    /// Only say that memory runs short.
    Log,
    /// Limit what sessions may use.
    Brake,
    /// Cancel the statement of the session that holds most.
    #[default]
    Cancel,
    /// Terminate that session if it does not obey, or is idle.
    Terminate,
}

/// A process was refused more memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The pid, below 2^22: `PID_MAX_LIMIT` of Linux.
    pub pid: i32,
    /// What it had mapped, in bytes.
    pub mapped: u64,
    /// When its statement was started.
    pub statement: i64,
}

/// The lowest bit of what a packed refusal has above the pid.
const ABOVE_PID: u64 = 1 << 22;

impl Refusal {
    /// Its pid and what it had mapped, as one value for an atomic, which is never 0. What was mapped is rounded down to
    /// kB, as the kernel shows it.
    pub fn pack(self) -> u64 {
        self.mapped / 1024 * ABOVE_PID + u64::from(self.pid.unsigned_abs())
    }

    /// What was packed, of this statement. `None` if it is 0.
    pub fn unpack(packed: u64, statement: i64) -> Option<Self> {
        let (pid, mapped) = ((packed % ABOVE_PID) as i32, packed / ABOVE_PID * 1024);
        (packed != 0).then_some(Refusal { pid, mapped, statement })
    }
}

/// What the settings say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Below this, memory is short.
    pub min_headroom: u64,
    /// What may be done.
    pub action: Action,
}

/// A process that serves a client: a client backend or a parallel worker.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Member {
    /// The pid.
    pub pid: i32,
    /// The pid of the leader if it is a parallel worker.
    pub leader: Option<i32>,
    /// Private memory in RAM.
    pub private: u64,
    /// Private address space that it can write to, whether it has been touched or not.
    pub mapped: u64,
    /// Whether it executes a statement.
    pub is_active: bool,
    /// When its statement was started. That of an idle session was its last one.
    pub statement: i64,
    /// Whether its role, or that of its leader, is left alone.
    pub is_exempt: bool,
}

/// What is known at a moment. Amounts are in bytes.
#[derive(Clone, Debug, Default)]
pub struct Moment {
    /// When, in microseconds.
    pub at: i64,
    /// How much more can be allocated.
    pub headroom: u64,
    /// The limit that the headroom is below.
    pub limit: u64,
    /// How much of Postgres's shared memory will still be allocated when it is touched.
    pub untouched_shared: u64,
    /// The processes.
    pub members: Vec<Member>,
}

/// How a session is to be ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Its statement is canceled.
    Cancel,
    /// It is terminated.
    Terminate,
}

/// Whom the guard ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Order {
    /// The pid.
    pub pid: i32,
    /// When the statement was started that is meant.
    pub statement: i64,
    /// How.
    pub end: End,
    /// What the session holds, with its parallel workers.
    pub held: u64,
}

/// What is to be done now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Decision {
    /// How much more each session may map. `None` if sessions are not limited.
    pub share: Option<u64>,
    /// Memory has become short with this sample.
    pub has_become_short: bool,
    /// Somebody would be ended, if anybody held enough to be the reason. Said once until there is room again.
    pub has_no_reason: bool,
    /// Whom to end.
    pub order: Option<Order>,
}

/// The guard.
#[derive(Debug, Default)]
pub struct Guard {
    is_short: bool,
    has_said_no_reason: bool,
    /// When the last order was given.
    last: Option<i64>,
    /// What processes were told: the statement that was meant, and how it was to end.
    told: HashMap<i32, (i64, End)>,
    /// What each process held in the sample before.
    previous: HashMap<i32, u64>,
    /// What each process held when growth began to count, for now and for the time after that.
    base: HashMap<i32, u64>,
    next_base: (i64, HashMap<i32, u64>),
}

/// A session with its parallel workers.
#[derive(Clone, Copy, Debug, Default)]
struct Group {
    leader: Option<Member>,
    held: u64,
    growth: u64,
    is_exempt: bool,
}

impl Guard {
    /// Whether memory is short, since less than `min_headroom` was left and until there is a quarter more than that.
    pub fn is_short(&self) -> bool {
        self.is_short
    }

    /// What is to be done.
    pub fn decide(&mut self, policy: Policy, moment: &Moment) -> Decision {
        let Policy { min_headroom, action } = policy;
        let was_short = self.is_short;
        let enough = if was_short { min_headroom.saturating_add(min_headroom / 4) } else { min_headroom };
        self.is_short = moment.headroom < enough;
        if !self.is_short {
            self.has_said_no_reason = false;
        }
        let mut decision = Decision {
            share: (action >= Action::Brake).then(|| self.share(min_headroom, moment)),
            has_become_short: self.is_short && !was_short,
            ..Decision::default()
        };
        if action >= Action::Cancel && moment.headroom < min_headroom / 2 {
            match self.choose(action, moment) {
                Choice::Order(order) => {
                    self.last = Some(moment.at);
                    self.told.insert(order.pid, (order.statement, order.end));
                    decision.order = Some(order);
                }
                Choice::NoReason => decision.has_no_reason = !std::mem::replace(&mut self.has_said_no_reason, true),
                Choice::Wait => {}
            }
        }
        self.remember(moment);
        decision
    }

    /// How much more each session may map.
    fn share(&self, min_headroom: u64, moment: &Moment) -> u64 {
        let reserve = (min_headroom / 4).max(LEAST_RESERVE).min(min_headroom / 2);
        let is_large = |member: &&Member| member.mapped > FLOOR;
        let untouched = |member: &Member| member.mapped.saturating_sub(member.private);
        let spoken_for: u64 = moment.members.iter().filter(is_large).map(untouched).sum();
        let left = moment.headroom.saturating_sub(reserve).saturating_sub(moment.untouched_shared);
        let growing = moment.members.iter().filter(|member| self.is_growing(member)).count() as u64;
        let parts = if self.is_short { (2 * growing).max(4) } else { growing.max(1) };
        left.saturating_sub(spoken_for) / parts
    }

    fn is_growing(&self, member: &Member) -> bool {
        let before = self.previous.get(&member.pid).copied().unwrap_or(0);
        member.private.saturating_sub(before) > GROWING
    }

    fn choose(&self, action: Action, moment: &Moment) -> Choice {
        // If the clock is set back, the grace is over.
        if self.last.is_some_and(|at| (at..at + GRACE).contains(&moment.at)) {
            return Choice::Wait;
        }
        let mut groups: HashMap<i32, Group> = HashMap::new();
        for member in &moment.members {
            let group = groups.entry(member.leader.unwrap_or(member.pid)).or_default();
            let base = self.base.get(&member.pid).copied().unwrap_or(0);
            group.held += member.private;
            group.growth += member.private.saturating_sub(base);
            group.is_exempt |= member.is_exempt;
            if member.leader.is_none() {
                group.leader = Some(*member);
            }
        }
        let can_be_reason = |group: &&Group| !group.is_exempt && group.held >= moment.limit / 10;
        let mut reasons = groups.values().filter(can_be_reason).peekable();
        if reasons.peek().is_none() {
            return Choice::NoReason;
        }
        let can_be_ended = |leader: &Member| leader.is_active || action == Action::Terminate;
        let with_leader = |group: &Group| Some((*group, group.leader.filter(can_be_ended)?));
        let weight = |(group, leader): &(Group, Member)| (group.held + group.growth, Reverse(leader.pid));
        let Some((group, leader)) = reasons.filter_map(with_leader).max_by_key(weight) else { return Choice::Wait };
        let told = self.told.get(&leader.pid).filter(|(statement, _)| *statement == leader.statement);
        let end = match told {
            None if leader.is_active => End::Cancel,
            None => End::Terminate,
            Some((_, End::Cancel)) if action == Action::Terminate => End::Terminate,
            // It has been told. While it holds most, ending others would not help.
            Some(_) => return Choice::Wait,
        };
        Choice::Order(Order { pid: leader.pid, statement: leader.statement, end, held: group.held })
    }

    fn remember(&mut self, moment: &Moment) {
        let held = || moment.members.iter().map(|member| (member.pid, member.private)).collect();
        self.previous = held();
        self.told.retain(|pid, _| self.previous.contains_key(pid));
        if !(self.next_base.0..self.next_base.0 + GROWTH_OVER).contains(&moment.at) {
            self.base = std::mem::replace(&mut self.next_base, (moment.at, held())).1;
        }
    }
}

#[derive(Debug)]
enum Choice {
    Order(Order),
    /// The one has been told, or cannot be ended.
    Wait,
    /// Nobody who may be ended holds enough.
    NoReason,
}

#[cfg(test)]
mod tests;
