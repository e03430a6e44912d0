//! What the processes of the server share: the table of statements, and a slot for each process.

use std::collections::HashMap;
use std::mem::{align_of, size_of};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, Ordering};

use core::ffi::CStr;

use crate::model::statements::meter::Probe;
use crate::model::statements::table::{Entry, Table, index_length};
use crate::pg::{settings, shared_memory, this_process};
use crate::proc::own_memory::OwnMemory;

use super::saved;

/// A longer text of a statement is cut.
const MAX_TEXT: usize = 4096;

/// Whether the kernel lets a process lower its mark.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// It does.
    Lowered,
    /// It does not. A peak is seen if it is the highest in the life of the process.
    Lifetime,
}

/// The beginning of the shared memory. The slots, entries, texts and the index follow.
#[repr(C, align(64))]
struct Header {
    count: u64,
    deallocations: u64,
    reset_at: i64,
    /// Private memory of the postmaster, which all its children begin with, in bytes.
    first_private: u64,
    can_lower: bool,
    sizes: Sizes,
}

/// What a process tells others.
#[repr(C)]
#[derive(Debug)]
pub struct Slot {
    /// The process. 0 if it has told nothing, or has exited: its pid can be that of another one soon.
    pid: AtomicU32,
    /// The largest resident set before the mark was lowered, in bytes.
    peak_rss: AtomicU64,
    /// The largest private memory that it has noticed since the recorder last asked, in bytes.
    peak_private: AtomicU64,
    /// By how much the parallel workers of its statement have grown, in bytes: all together, and one of them at most.
    workers_peak: AtomicU64,
    worker_peak_max: AtomicU64,
}

/// By how much parallel workers have grown, in bytes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Workers {
    /// All of one statement together.
    pub all: u64,
    /// The one that has grown most.
    pub largest: u64,
}

impl Workers {
    /// The most of two statements, of which one is part of the other.
    pub fn merge(&mut self, other: Workers) {
        self.all = self.all.max(other.all);
        self.largest = self.largest.max(other.largest);
    }
}

/// The shared memory. Null if the library was not preloaded.
static MEMORY: AtomicPtr<Header> = AtomicPtr::new(std::ptr::null_mut());

/// The sizes of the parts.
#[repr(C)]
#[derive(Clone, Copy)]
struct Sizes {
    slots: usize,
    entries: usize,
    text_size: usize,
}

impl Sizes {
    fn of_settings() -> Self {
        Sizes {
            slots: this_process::max_backends(),
            entries: settings::max_statements(),
            text_size: settings::query_size().min(MAX_TEXT),
        }
    }

    /// Where each part begins, and where the last one ends.
    fn offsets(&self) -> [usize; 5] {
        let slots = size_of::<Header>();
        let entries = slots + self.slots * size_of::<Slot>();
        let index = entries + self.entries * size_of::<Entry>();
        let texts = index + index_length(self.entries) * size_of::<u32>();
        [slots, entries, index, texts, texts + self.entries * self.text_size]
    }
}

const _: () = assert!(size_of::<Slot>().is_multiple_of(align_of::<Entry>()));

/// The table of statements in shared memory.
pub struct Statements;

impl shared_memory::User for Statements {
    const NAME: &'static CStr = c"pg_meminfo";

    fn size() -> usize {
        let [.., end] = Sizes::of_settings().offsets();
        end
    }

    fn start(memory: NonNull<u8>) {
        let header = memory.cast::<Header>();
        let mut own = OwnMemory::default();
        own.open();
        let first_private = own.sample().map_or(0, |sample| sample.private);
        let can_lower = own.can_lower_mark();
        // SAFETY: the memory is large enough, and aligned.
        unsafe {
            header.write(Header {
                count: 0,
                deallocations: 0,
                reset_at: this_process::now(),
                first_private,
                can_lower,
                sizes: Sizes::of_settings(),
            });
        }
        MEMORY.store(header.as_ptr(), Ordering::Release);
        // Nobody else has the memory yet.
        with_table(saved::restore);
        if !can_lower {
            saved::log_lifetime();
        }
    }

    fn end(code: i32) {
        // After a crash, nothing in shared memory can be trusted.
        if code == 0 && is_there() {
            with_table(|table, reset_at| saved::save(table, *reset_at));
        }
    }
}

/// The shared memory, all of it and not only the header, whose address it is. `None` if the library was not preloaded.
fn memory() -> Option<*mut Header> {
    let memory = MEMORY.load(Ordering::Acquire);
    (!memory.is_null()).then_some(memory)
}

/// Whether the library was preloaded.
pub fn is_there() -> bool {
    memory().is_some()
}

/// How peaks are found.
pub fn method() -> Method {
    // SAFETY: start() has initialized it, and it does not change. The same holds for all that is read without the lock.
    let can_lower = memory().is_some_and(|header| unsafe { (*header).can_lower });
    if can_lower { Method::Lowered } else { Method::Lifetime }
}

/// Private memory of a process that has just been forked, in bytes.
pub fn first_private() -> u64 {
    // SAFETY: as in method().
    memory().map_or(0, |header| unsafe { (*header).first_private })
}

/// Where the parts of the table are.
struct Parts {
    header: *mut Header,
    entries: *mut Entry,
    index: *mut u32,
    texts: *mut u8,
    sizes: Sizes,
}

impl Parts {
    fn find() -> Self {
        let header = memory().expect("the library was preloaded");
        // SAFETY: as in method().
        let sizes = unsafe { (*header).sizes };
        let [_, entries, index, texts, _] = sizes.offsets();
        let at = |offset: usize| header.cast::<u8>().wrapping_add(offset);
        Parts { header, entries: at(entries).cast(), index: at(index).cast(), texts: at(texts), sizes }
    }
}

/// The table for those who only read it, of whom there can be several at the same time.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    /// The entries.
    pub entries: &'a [Entry],
    /// Their texts, each of which has as much room as the others.
    pub texts: &'a [u8],
    /// The maximum length of a text.
    pub text_size: usize,
    /// How many times entries had to go because the table was full.
    pub deallocations: u64,
    /// When the table was last reset.
    pub reset_at: i64,
}

/// Reads the table while nobody changes it.
pub fn read<R>(read: impl FnOnce(View) -> R) -> R {
    shared_memory::while_reading::<Statements, R>(|| {
        let Parts { header, entries, texts, sizes: Sizes { text_size, .. }, .. } = Parts::find();
        // SAFETY: start() has initialized it. The lock is held, so nobody writes.
        let count = unsafe { (*header).count } as usize;
        // SAFETY: as above. So many entries are in use.
        let entries = unsafe { std::slice::from_raw_parts(entries, count) };
        // SAFETY: as above.
        let texts = unsafe { std::slice::from_raw_parts(texts, count * text_size) };
        // SAFETY: as above.
        let deallocations = unsafe { (*header).deallocations };
        // SAFETY: as above.
        let reset_at = unsafe { (*header).reset_at };
        read(View { entries, texts, text_size, deallocations, reset_at })
    })
}

/// Changes the table while nobody else uses it.
pub fn write<R>(change: impl FnOnce(&mut Table, &mut i64) -> R) -> R {
    shared_memory::while_writing::<Statements, R>(|| with_table(change))
}

/// The table, and when it was last reset. Nobody else uses it.
fn with_table<R>(run: impl FnOnce(&mut Table, &mut i64) -> R) -> R {
    let Parts { header, entries, index, texts, sizes } = Parts::find();
    // SAFETY: the parts do not overlap, lie within the memory that was requested, and are initialized: zeros are valid
    // entries. The caller holds the lock to write, or is alone.
    let entries = unsafe { std::slice::from_raw_parts_mut(entries, sizes.entries) };
    // SAFETY: as above.
    let index = unsafe { std::slice::from_raw_parts_mut(index, index_length(sizes.entries)) };
    // SAFETY: as above.
    let texts = unsafe { std::slice::from_raw_parts_mut(texts, sizes.entries * sizes.text_size) };
    // SAFETY: as above.
    let count = unsafe { &mut (*header).count };
    // SAFETY: as above.
    let deallocations = unsafe { &mut (*header).deallocations };
    // SAFETY: as above.
    let reset_at = unsafe { &mut (*header).reset_at };
    run(&mut Table { count, deallocations, entries, texts, index }, reset_at)
}

/// The slots of all processes.
fn slots() -> &'static [Slot] {
    let Some(header) = memory() else { return &[] };
    // SAFETY: as in method().
    let sizes = unsafe { (*header).sizes };
    let [slots, ..] = sizes.offsets();
    let first = header.cast::<u8>().wrapping_add(slots).cast::<Slot>();
    // SAFETY: the slots lie within the memory that was requested, and it is never freed. They consist of atomics, for
    // which zeros are valid.
    unsafe { std::slice::from_raw_parts(first, sizes.slots) }
}

impl Slot {
    /// The slot of this process, from now on. `None` if it has none.
    pub fn take() -> Option<&'static Slot> {
        let slot = slots().get(this_process::number()?)?;
        slot.clear();
        slot.pid.store(this_process::pid() as u32, Ordering::Release);
        this_process::at_last(leave);
        Some(slot)
    }

    fn clear(&self) {
        self.pid.store(0, Ordering::Relaxed);
        for value in [&self.peak_rss, &self.peak_private, &self.workers_peak, &self.worker_peak_max] {
            value.store(0, Ordering::Relaxed);
        }
    }

    /// The slot of the leader of this parallel worker.
    pub fn of_leader() -> Option<&'static Slot> {
        let (number, pid) = this_process::leader()?;
        slots().get(number).filter(|slot| slot.pid.load(Ordering::Acquire) == pid as u32)
    }

    /// Takes note of a resident set, because the mark is about to be lowered.
    pub fn keep_peak_rss(&self, resident: u64) {
        if resident > self.peak_rss.load(Ordering::Relaxed) {
            self.peak_rss.store(resident, Ordering::Relaxed);
        }
    }

    /// Takes note of private memory.
    pub fn keep_peak_private(&self, private: u64) {
        self.peak_private.fetch_max(private, Ordering::Relaxed);
    }

    /// Passes the largest private memory that each process has noticed since the last call to `visit`, with its pid.
    pub fn take_peaks(mut visit: impl FnMut(i32, u64)) {
        for slot in slots().iter().filter(|slot| slot.peak_private.load(Ordering::Relaxed) != 0) {
            visit(slot.pid.load(Ordering::Acquire) as i32, slot.peak_private.swap(0, Ordering::Relaxed));
        }
    }

    /// A parallel worker has grown by this.
    pub fn add_worker(&self, growth: u64) {
        self.workers_peak.fetch_add(growth, Ordering::Relaxed);
        self.worker_peak_max.fetch_max(growth, Ordering::Release);
    }

    /// By how much parallel workers have grown since the last call.
    #[inline]
    pub fn take_workers(&self) -> Option<Workers> {
        let all = self.workers_peak.load(Ordering::Relaxed);
        if all == 0 {
            return None;
        }
        let largest = self.worker_peak_max.swap(0, Ordering::Acquire);
        Some(Workers { all: self.workers_peak.swap(0, Ordering::Acquire), largest })
    }
}

/// This process exits, and so its number, by which its slot is found, is still its own.
fn leave() {
    if let Some(slot) = this_process::number().and_then(|number| slots().get(number)) {
        slot.clear();
    }
}

/// The largest resident sets of processes before their marks were last lowered, in bytes, by pid.
pub fn peaks_of_rss() -> HashMap<i32, u64> {
    let peak_of = |slot: &Slot| {
        let (pid, peak) = (slot.pid.load(Ordering::Acquire), slot.peak_rss.load(Ordering::Relaxed));
        (pid != 0 && peak != 0).then_some((pid as i32, peak))
    };
    slots().iter().filter_map(peak_of).collect()
}
