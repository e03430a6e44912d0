//! What the recorder does for the guard: at each sample it lowers the limits of sessions, and ends the statement of the
//! one that is chosen.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::Ordering;

use crate::model::guard::{Action, End, FLOOR, Guard, Moment, Order, Policy, Refusal};
use crate::pg::{error, settings, signals, this_process};

use super::shared::{Guards, Reason, Slot, guards};

/// What has happened, to be written down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// Memory has become short. With the brake or without.
    Short { is_braking: bool },
    /// Somebody would have been ended, but nobody holds enough to be the reason.
    NoReason,
    /// A session was told to end its statement, or itself.
    Ended(Order),
    /// A session was refused more, by the guard or by its own limit.
    Refused(Refusal),
}

/// The guard of this server.
#[derive(Debug, Default)]
pub struct Controller {
    guard: Guard,
    /// Processes whose limits were lowered, by pid.
    limited: HashSet<i32>,
    /// A limit could not be set, and this was said.
    has_failed: bool,
}

/// The processes that are left alone, by pid.
pub fn exempt() -> HashSet<i32> {
    let Some(guards) = guards() else { return HashSet::new() };
    guards.used().filter(|(_, slot)| slot.is_exempt()).map(|(pid, _)| pid).collect()
}

/// The refusals since the last call. It is now `at`.
pub fn take_refusals(at: i64) -> Vec<Event> {
    let Some(guards) = guards() else { return Vec::new() };
    guards.take_refusals().inspect(|refusal| acted(guards, at, refusal.pid)).map(Event::Refused).collect()
}

/// Gives all sessions the limits that they have without the guard.
fn release() {
    if let Some(guards) = guards() {
        guards.share.store(0, Ordering::SeqCst);
        guards.limited.store(0, Ordering::Relaxed);
        guards.is_short.store(false, Ordering::Relaxed);
        // One that has gone needs none.
        guards.used().for_each(|(pid, slot)| drop(guards.set_brake(pid, Some(slot), None)));
    }
}

impl Controller {
    /// The guard of this process. Limits that another one has left are lifted.
    pub fn new() -> Self {
        release();
        if let Some(guards) = guards() {
            guards.pid.store(this_process::pid(), Ordering::SeqCst);
        }
        Controller::default()
    }

    /// Does what is to be done at this moment.
    pub fn run(&mut self, moment: &Moment) -> Vec<Event> {
        let Some(guards) = guards() else { return Vec::new() };
        let mut events = Vec::new();
        let min_headroom = settings::guard::min_headroom(moment.limit);
        guards.headroom.store(moment.headroom, Ordering::Relaxed);
        guards.limit.store(moment.limit, Ordering::Relaxed);
        let Some(min_headroom) = min_headroom else {
            self.turn_off(guards);
            return events;
        };
        guards.min_headroom.store(min_headroom, Ordering::Relaxed);
        let action = settings::guard::guard_action();
        guards.action.store(action, Ordering::Relaxed);
        let action = match action {
            0 => Action::Log,
            1 => Action::Brake,
            2 => Action::Cancel,
            _ => Action::Terminate,
        };
        let decision = self.guard.decide(Policy { min_headroom, action }, moment);
        guards.is_short.store(self.guard.is_short(), Ordering::Relaxed);
        if decision.has_become_short {
            guards.shortages.fetch_add(1, Ordering::Relaxed);
            acted(guards, moment.at, 0);
            events.push(Event::Short { is_braking: decision.share.is_some() });
        }
        if let Some(order) = decision.order.filter(|order| give(guards, *order, moment)) {
            events.push(Event::Ended(order));
        }
        match decision.share {
            Some(share) => self.limit(guards, share, moment),
            None => self.end_brake(guards),
        }
        if decision.has_no_reason {
            events.push(Event::NoReason);
        }
        events
    }

    /// Lets sessions map so much more than they have.
    fn limit(&mut self, guards: &Guards, share: u64, moment: &Moment) {
        // 0 would be no limit.
        guards.share.store(share.max(1), Ordering::SeqCst);
        let mut limited = HashSet::with_capacity(self.limited.len());
        let slots: HashMap<i32, &Slot> = guards.used().collect();
        let slot = |pid: &i32| slots.get(pid).copied();
        for member in moment.members.iter().filter(|member| !member.is_exempt) {
            match guards.set_brake(member.pid, slot(&member.pid), Some(member.mapped.saturating_add(share).max(FLOOR)))
            {
                Ok(()) => drop(limited.insert(member.pid)),
                Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {}
                Err(error) if !self.has_failed => {
                    self.has_failed = true;
                    let detail = Some("The guard can only end statements.".to_string());
                    error::log(format!("could not limit the memory of process {}: {error}", member.pid), detail);
                }
                Err(_) => {}
            }
        }
        for pid in self.limited.difference(&limited) {
            let _ = guards.set_brake(*pid, slot(pid), None);
        }
        guards.limited.store(limited.len() as u32, Ordering::Relaxed);
        self.limited = limited;
    }

    fn end_brake(&mut self, guards: &Guards) {
        if self.limited.is_empty() && guards.share.load(Ordering::SeqCst) == 0 {
            return;
        }
        // Those that have started meanwhile have taken their limits from it.
        release();
        for pid in self.limited.drain() {
            let _ = guards.set_brake(pid, guards.slot(pid), None);
        }
    }

    fn turn_off(&mut self, guards: &Guards) {
        self.end_brake(guards);
        self.guard = Guard::default();
        guards.is_short.store(false, Ordering::Relaxed);
        guards.min_headroom.store(0, Ordering::Relaxed);
    }

    /// The headroom is not known now. Limits stay, unless there are to be none.
    pub fn run_blind(&mut self) {
        if let Some(guards) = guards()
            && settings::guard::min_headroom(0).is_none()
        {
            self.turn_off(guards);
        }
    }

    /// Lifts all limits, because this process ends.
    pub fn finish(&mut self) {
        if let Some(guards) = guards() {
            self.turn_off(guards);
            guards.pid.store(0, Ordering::SeqCst);
        }
    }
}

/// Tells a session to end its statement, or itself. False if it has gone.
fn give(guards: &Guards, order: Order, moment: &Moment) -> bool {
    let Some(slot) = guards.slot(order.pid) else { return false };
    let reason = Reason { held: order.held, headroom: moment.headroom, limit: moment.limit };
    slot.give_order(order.statement, order.end, reason);
    // Before it obeys: its client may look next.
    acted(guards, moment.at, order.pid);
    signals::send(order.pid, if order.end == End::Cancel { libc::SIGINT } else { libc::SIGTERM });
    true
}

fn acted(guards: &Guards, at: i64, pid: i32) {
    guards.acted_at.store(at, Ordering::Relaxed);
    guards.acted_on.store(pid, Ordering::Relaxed);
}
