//! What sessions and the guard tell each other: a slot for each process, and what the guard does now.

use std::mem::size_of;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicI64, AtomicPtr, AtomicU32, AtomicU64, Ordering};

use core::ffi::CStr;

use crate::model::guard::{End, FLOOR, Refusal};
use crate::pg::{shared_memory, this_process};
use crate::proc::data_limit::{self, UNLIMITED};

/// What the guard does now, for sessions and for `pg_meminfo_guard`. The slots follow.
#[derive(Debug)]
pub struct Guards {
    slots: usize,
    /// The limit that the server was started with: no session gets more.
    ceiling: u64,
    /// The process that runs the guard. Sessions tell its signals from those of others by that.
    pub pid: AtomicI32,
    /// How much a session that starts now may map. 0 if it is not limited.
    pub share: AtomicU64,
    /// Whether memory is short.
    pub is_short: AtomicBool,
    /// How many processes are limited.
    pub limited: AtomicU32,
    /// Headroom, its limit, and below what it is short, in bytes.
    pub headroom: AtomicU64,
    pub limit: AtomicU64,
    pub min_headroom: AtomicU64,
    /// The value of pg_meminfo.guard_action.
    pub action: AtomicI32,
    /// How often each has happened since the server was started or has restarted after a crash.
    pub shortages: AtomicU64,
    pub refusals: AtomicU64,
    pub cancels: AtomicU64,
    pub terminations: AtomicU64,
    /// When it last acted, in microseconds since the Unix epoch; 0 if never. Then on whom; 0 if on all.
    pub acted_at: AtomicI64,
    pub acted_on: AtomicI32,
    /// The refusals of which the recorder has not taken note yet. They outlive the processes, because a client often
    /// disconnects at an ERROR.
    last_refusals: [RefusalPlace; 64],
}

/// Place for a [`Refusal`].
#[derive(Debug)]
struct RefusalPlace {
    /// 0 if there is none.
    packed: AtomicU64,
    statement: AtomicI64,
}

/// What a process tells the guard, and what the guard tells it.
#[derive(Debug)]
pub struct Slot {
    pid: AtomicI32,
    /// Its limit without the guard.
    base: AtomicU64,
    /// The limit that the guard has set. 0 if it has set none.
    brake: AtomicU64,
    /// Whether the process has no limit but the server's for a moment.
    is_lifted: AtomicBool,
    is_exempt: AtomicBool,
    order: OrderSlot,
}

/// The last order that a session has got.
#[derive(Debug)]
struct OrderSlot {
    /// When the statement was started that is meant.
    statement: AtomicI64,
    /// Whether the session is to be terminated.
    is_to_terminate: AtomicBool,
    held: AtomicU64,
    headroom: AtomicU64,
    limit: AtomicU64,
}

/// Why a session was told to end its statement, in bytes.
#[derive(Clone, Copy, Debug)]
pub struct Reason {
    /// What it held.
    pub held: u64,
    /// What was left.
    pub headroom: u64,
    /// Of this limit.
    pub limit: u64,
}

/// The shared memory. Null if the library was not preloaded.
static MEMORY: AtomicPtr<Guards> = AtomicPtr::new(std::ptr::null_mut());

impl shared_memory::User for Guards {
    const NAME: &'static CStr = c"pg_meminfo guard";

    fn size() -> usize {
        size_of::<Guards>() + this_process::max_backends() * size_of::<Slot>()
    }

    fn start(memory: NonNull<u8>) {
        let guards = memory.cast::<Guards>();
        // SAFETY: the memory is large enough, aligned, and all zeros, which is valid for all fields.
        unsafe { (*guards.as_ptr()).slots = this_process::max_backends() };
        // SAFETY: as above.
        unsafe { (*guards.as_ptr()).ceiling = data_limit::own() };
        MEMORY.store(guards.as_ptr(), Ordering::Release);
    }

    fn end(_: i32) {}
}

/// The shared memory. `None` if the library was not preloaded. It may be used in a signal handler.
pub fn guards() -> Option<&'static Guards> {
    // SAFETY: it is null, or points to shared memory, which is never freed and initialized. All that changes is atomic.
    unsafe { MEMORY.load(Ordering::Acquire).as_ref() }
}

impl Guards {
    /// The slots of all processes.
    fn slots(&self) -> &[Slot] {
        // Not from `self`, which is a reference to less memory.
        let first = MEMORY.load(Ordering::Acquire).wrapping_add(1).cast::<Slot>();
        // SAFETY: the slots follow within the memory that was requested. They consist of atomics, for which zeros are
        // valid.
        unsafe { std::slice::from_raw_parts(first, self.slots) }
    }

    /// The slots that are in use, with the pids of their processes.
    pub fn used(&self) -> impl Iterator<Item = (i32, &Slot)> {
        self.slots().iter().map(|slot| (slot.pid.load(Ordering::Acquire), slot)).filter(|&(pid, _)| pid != 0)
    }

    /// This process has been refused more than this, in bytes.
    pub fn keep_refusal(&self, mapped: u64) {
        let nth = self.refusals.fetch_add(1, Ordering::SeqCst) as usize % self.last_refusals.len();
        let refusal = Refusal { pid: this_process::pid(), mapped, statement: this_process::statement_start() };
        let place = &self.last_refusals[nth];
        place.statement.store(refusal.statement, Ordering::SeqCst);
        place.packed.store(refusal.pack(), Ordering::SeqCst);
    }

    /// The refusals since the last call, but not more than have a place.
    pub fn take_refusals(&self) -> impl Iterator<Item = Refusal> {
        // Nearly always there is none.
        let is_used = |place: &&RefusalPlace| place.packed.load(Ordering::SeqCst) != 0;
        self.last_refusals.iter().filter(is_used).filter_map(|place| {
            Refusal::unpack(place.packed.swap(0, Ordering::SeqCst), place.statement.load(Ordering::SeqCst))
        })
    }

    /// Takes the slot of this process, with its limit. `None` if it has none.
    pub fn take(&self, limit: Option<u64>, is_exempt: bool) -> Option<&Slot> {
        let slot = self.slots().get(this_process::number()?)?;
        slot.pid.store(0, Ordering::SeqCst);
        let share = self.share.load(Ordering::SeqCst);
        let is_limited = share != 0 && !is_exempt;
        slot.brake.store(if is_limited { share.max(FLOOR) } else { 0 }, Ordering::SeqCst);
        slot.is_exempt.store(is_exempt, Ordering::SeqCst);
        slot.order.statement.store(0, Ordering::SeqCst);
        slot.is_lifted.store(false, Ordering::SeqCst);
        slot.base.store(self.base(limit), Ordering::SeqCst);
        slot.pid.store(this_process::pid(), Ordering::SeqCst);
        // From here on the guard changes it. It may have been turned off before.
        if self.share.load(Ordering::SeqCst) == 0 {
            slot.brake.store(0, Ordering::SeqCst);
        }
        Some(slot)
    }

    /// The limit of a session without the guard, in bytes: its own one, but not more than that of the server.
    pub fn base(&self, limit: Option<u64>) -> u64 {
        self.ceiling.min(limit.unwrap_or(UNLIMITED))
    }

    /// The limit that the server was started with, in bytes.
    pub fn ceiling(&self) -> u64 {
        self.ceiling
    }

    /// The slot of a process, if it has one.
    pub fn slot(&self, pid: i32) -> Option<&Slot> {
        self.used().find(|&(other, _)| other == pid).map(|(_, slot)| slot)
    }

    /// Lets the guard's limit of a process be this, or none. `found` is its slot. A failure is that of the system call.
    pub fn set_brake<'a>(&'a self, pid: i32, mut found: Option<&'a Slot>, brake: Option<u64>) -> std::io::Result<()> {
        loop {
            let Some(slot) = found else {
                data_limit::set(pid, self.ceiling.min(brake.unwrap_or(UNLIMITED)))?;
                // The process may have got a slot meanwhile.
                found = self.slot(pid);
                if found.is_some() {
                    continue;
                }
                return Ok(());
            };
            slot.brake.store(brake.unwrap_or(0), Ordering::SeqCst);
            let limit = self.limit(slot);
            data_limit::set(pid, limit)?;
            // It may have got a limit of its own meanwhile.
            if self.limit(slot) == limit {
                return Ok(());
            }
        }
    }

    /// The limit of a process that is in force.
    fn limit(&self, slot: &Slot) -> u64 {
        if slot.is_lifted.load(Ordering::SeqCst) {
            return self.ceiling;
        }
        let (base, brake) = (slot.base.load(Ordering::SeqCst), slot.brake.load(Ordering::SeqCst));
        if brake == 0 { base } else { base.min(brake) }
    }

    /// Sets the limit of this process to what its slot says.
    pub fn apply(&self, slot: &Slot) {
        loop {
            let limit = self.limit(slot);
            // It cannot fail, because it is not above the hard limit.
            let _ = data_limit::set_own(limit);
            // The guard may have set another one meanwhile.
            if self.limit(slot) == limit {
                return;
            }
        }
    }

    /// Whether this process has a limit below the server's.
    pub fn is_limited(&self, slot: &Slot) -> bool {
        self.limit(slot) < self.ceiling
    }

    /// Lets this process have no limit but the server's for a moment.
    pub fn lift(&self, slot: &Slot) {
        slot.is_lifted.store(true, Ordering::SeqCst);
        self.apply(slot);
    }

    /// Ends that moment.
    pub fn lower(&self, slot: &Slot) {
        slot.is_lifted.store(false, Ordering::SeqCst);
        self.apply(slot);
    }
}

impl Slot {
    /// The process exits.
    pub fn leave(&self) {
        self.pid.store(0, Ordering::SeqCst);
    }

    /// Lets the limit of this process without the guard be this. It must be applied.
    pub fn set_base(&self, base: u64) {
        self.base.store(base, Ordering::SeqCst);
    }

    /// The limit of the guard that is in force, if it is below that of the session.
    pub fn brake(&self) -> Option<u64> {
        let brake = self.brake.load(Ordering::SeqCst);
        (brake != 0 && brake < self.base.load(Ordering::SeqCst)).then_some(brake)
    }

    /// Lets the guard leave this session alone, or not. It must be applied.
    pub fn set_exempt(&self, is_exempt: bool) {
        self.is_exempt.store(is_exempt, Ordering::SeqCst);
        if is_exempt {
            self.brake.store(0, Ordering::SeqCst);
        }
    }

    /// Whether the guard is to leave it alone.
    pub fn is_exempt(&self) -> bool {
        self.is_exempt.load(Ordering::SeqCst)
    }

    /// Tells the session that this statement is to be ended. A signal must follow.
    pub fn give_order(&self, statement: i64, end: End, reason: Reason) {
        let order = &self.order;
        order.statement.store(0, Ordering::SeqCst);
        order.held.store(reason.held, Ordering::SeqCst);
        order.headroom.store(reason.headroom, Ordering::SeqCst);
        order.limit.store(reason.limit, Ordering::SeqCst);
        order.is_to_terminate.store(end == End::Terminate, Ordering::SeqCst);
        order.statement.store(statement, Ordering::SeqCst);
    }

    /// Whether this statement is to be ended so. It may be called in a signal handler.
    pub fn has_order(&self, statement: i64, end: End) -> bool {
        self.order.statement.load(Ordering::SeqCst) == statement
            && self.order.is_to_terminate.load(Ordering::SeqCst) == (end == End::Terminate)
    }

    /// Why the last order was given.
    pub fn reason(&self) -> Reason {
        let value = |value: &AtomicU64| value.load(Ordering::SeqCst);
        let OrderSlot { held, headroom, limit, .. } = &self.order;
        Reason { held: value(held), headroom: value(headroom), limit: value(limit) }
    }
}
