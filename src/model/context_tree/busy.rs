//! The test of the second read: a process that changes its tree all the time, and that knows every state it was in.
//!
//! The process and its reader take turns in simulated time. A change is a sequence of stores of words, in the order of
//! Postgres's own functions, and reads see the memory as it is at their time, word for word. The durations are those
//! that were measured on real processes, and memory is reused at once, as malloc does. Because time is simulated, a
//! failure can be repeated.

use std::collections::VecDeque;
use std::convert::Infallible;

use crate::model::memory::{Memory, Piece};

use super::arena::{Arena, LAYOUT};
use super::naive::{Seen, read_once, seen};
use super::*;

/// How long things take, in picoseconds.
const CALL: u64 = 800_000;
const PIECE: u64 = 200_000;
const WORD: u64 = 1_000;
const STORE: u64 = 2_000;

/// Room for this many contexts and texts.
const SLOTS: usize = 24;
/// The size of the slot of a text.
const TEXT: usize = 24;

/// A reproducible sequence of random numbers: xorshift64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }
}

/// What the process is going to do.
struct Store {
    at: u64,
    address: u64,
    value: u64,
}

/// A process that changes its tree, and its memory.
struct BusyProcess {
    now: u64,
    random: Random,
    /// The mean time between two changes.
    interval: u64,
    /// The memory as the reader sees it.
    arena: Arena,
    /// The memory with all planned changes done. The process plans with it.
    planned: Arena,
    plan: VecDeque<Store>,
    planned_until: u64,
    free_nodes: Vec<u64>,
    free_texts: Vec<u64>,
    /// What was overwritten since the reader began: addresses and old values.
    overwritten: Vec<(u64, u64)>,
    /// How often the reader has read ahead.
    read_ahead: usize,
}

impl BusyProcess {
    fn new(interval: u64, seed: u64) -> Self {
        let mut arena = Arena::new();
        arena.append_room();
        let name = arena.text("TopMemoryContext");
        let root = arena.add(0, 0, name, 0, 0);
        let mut free_texts: Vec<_> = (0..SLOTS).map(|_| arena.append(&[0; TEXT])).collect();
        let mut free_nodes: Vec<_> = (0..SLOTS).map(|_| arena.append(&[0; offset::SIZE])).collect();
        arena.append_room();
        // The nodes of the arena are those in use.
        arena.nodes = vec![root];
        free_texts.reverse();
        free_nodes.reverse();
        let mut process = BusyProcess {
            now: 0,
            random: Random(seed),
            interval,
            arena: arena.clone(),
            planned: arena,
            plan: VecDeque::new(),
            planned_until: 0,
            free_nodes,
            free_texts,
            overwritten: Vec::new(),
            read_ahead: 0,
        };
        for _ in 0..100 {
            process.change();
        }
        process.run_until(process.planned_until);
        process
    }

    /// Whether the process had this tree at any time since the reader began.
    fn had(&self, tree: &[Seen]) -> bool {
        let mut past = self.arena.clone();
        let is_in = |past: &mut Arena| read_once(past, &LAYOUT).is_some_and(|state| state == tree);
        is_in(&mut past)
            || self.overwritten.iter().rev().any(|&(address, value)| {
                past.set(address, value);
                is_in(&mut past)
            })
    }

    /// Lets the process run until some time.
    fn run_until(&mut self, time: u64) {
        self.now = time;
        while self.planned_until <= time {
            self.change();
        }
        while let Some(store) = self.plan.pop_front_if(|store| store.at <= time) {
            self.overwritten.push((store.address, self.arena.get(store.address)));
            self.arena.set(store.address, store.value);
        }
    }

    /// Plans a store.
    fn store(&mut self, address: u64, value: u64) {
        // Now and then the process loses the processor in the middle of a change.
        let pause = if self.random.below(1000) == 0 { self.random.below(20_000_000) } else { STORE };
        self.planned_until += pause;
        self.planned.set(address, value);
        self.plan.push_back(Store { at: self.planned_until, address, value });
    }

    fn store_field(&mut self, node: u64, field: usize, value: u64) {
        self.store(node + field as u64, value);
    }

    fn field(&self, node: u64, field: usize) -> u64 {
        self.planned.get(node + field as u64)
    }

    /// Plans a change, and time to do something else.
    fn change(&mut self) {
        self.planned_until += self.random.below(2 * self.interval);
        let nodes = self.planned.nodes.clone();
        let any = nodes[self.random.below(nodes.len() as u64) as usize];
        let root = nodes[0];
        match self.random.below(5) {
            0 | 1 => self.create(any),
            2 if any != root && self.field(any, offset::FIRST_CHILD) == 0 => self.delete(any),
            3 if any != root => {
                // MemoryContextSetParent(), unless the new parent is below the context.
                let parent = nodes[self.random.below(nodes.len() as u64) as usize];
                let mut ancestor = parent;
                while ancestor != 0 && ancestor != any {
                    ancestor = self.field(ancestor, offset::PARENT);
                }
                if ancestor == 0 {
                    self.unlink(any);
                    self.link(any, parent);
                }
            }
            4 if any != root => self.rename(any),
            _ => {}
        }
    }

    /// MemoryContextCreate()
    fn create(&mut self, parent: u64) {
        let Some(node) = self.free_nodes.pop() else { return };
        let known = LAYOUT.types[self.random.below(2) as usize];
        for (field, value) in [
            (offset::TAG, u64::from(known.tag)),
            (offset::METHODS, known.methods),
            (offset::FIRST_CHILD, 0),
            (offset::ALLOCATED, 0),
            (offset::PREVIOUS, 0),
            (offset::NAME, self.field(self.planned.nodes[0], offset::NAME)),
            (offset::IDENT, 0),
        ] {
            self.store_field(node, field, value);
        }
        self.planned.nodes.push(node);
        self.link(node, parent);
        self.rename(node);
    }

    fn link(&mut self, node: u64, parent: u64) {
        let first = self.field(parent, offset::FIRST_CHILD);
        self.store_field(node, offset::PARENT, parent);
        self.store_field(node, offset::PREVIOUS, 0);
        self.store_field(node, offset::NEXT, first);
        if first != 0 {
            self.store_field(first, offset::PREVIOUS, node);
        }
        self.store_field(parent, offset::FIRST_CHILD, node);
    }

    /// MemoryContextSetParent() to NULL
    fn unlink(&mut self, node: u64) {
        let [parent, previous, next] =
            [offset::PARENT, offset::PREVIOUS, offset::NEXT].map(|field| self.field(node, field));
        match previous {
            0 => self.store_field(parent, offset::FIRST_CHILD, next),
            previous => self.store_field(previous, offset::NEXT, next),
        }
        if next != 0 {
            self.store_field(next, offset::PREVIOUS, previous);
        }
        for field in [offset::PARENT, offset::PREVIOUS, offset::NEXT] {
            self.store_field(node, field, 0);
        }
    }

    /// MemoryContextDelete(). AllocSetDelete() keeps the context in a list of free ones, linked by its next field.
    fn delete(&mut self, node: u64) {
        self.unlink(node);
        self.free_text(node);
        self.store_field(node, offset::IDENT, 0);
        self.store_field(node, offset::NEXT, self.free_nodes.last().copied().unwrap_or(0));
        self.planned.nodes.retain(|&other| other != node);
        self.free_nodes.push(node);
    }

    /// Gives a context another identifier.
    fn rename(&mut self, node: u64) {
        let Some(text) = self.free_texts.pop() else { return };
        let number = self.random.below(1_000_000_000_000);
        let mut bytes = [0; TEXT];
        let written = format!("select {number}");
        bytes[..written.len()].copy_from_slice(written.as_bytes());
        for (word, bytes) in bytes.as_chunks().0.iter().enumerate() {
            self.store(text + 8 * word as u64, u64::from_le_bytes(*bytes));
        }
        self.free_text(node);
        self.store_field(node, offset::IDENT, text);
    }

    /// Frees the identifier of a context. The memory gets other contents, without a zero byte.
    fn free_text(&mut self, node: u64) {
        let text = self.field(node, offset::IDENT);
        if text != 0 {
            self.free_texts.push(text);
            if self.random.below(2) == 0 {
                let garbage = self.random.next() | 0x0101_0101_0101_0101;
                self.store(text, garbage);
            }
        }
    }
}

impl Memory for BusyProcess {
    type Error = Infallible;

    fn read(&mut self, pieces: &[Piece], buffer: &mut [u8]) -> Result<usize, Infallible> {
        self.run_until(self.now + CALL);
        let mut rest = buffer;
        for (nth, piece) in pieces.iter().enumerate() {
            self.run_until(self.now + PIECE);
            let (place, after) = rest.split_at_mut(piece.length);
            rest = after;
            for (word, bytes) in place.chunks_mut(8).enumerate() {
                self.run_until(self.now + WORD);
                let part = Piece { address: piece.address.wrapping_add(8 * word as u64), length: bytes.len() };
                let Ok(read) = self.arena.read(&[part], bytes);
                if read == 0 {
                    return Ok(nth);
                }
            }
            self.read_ahead += usize::from(piece.length == ahead::LENGTH);
        }
        Ok(pieces.len())
    }
}

/// Looks at a busy process this many times, and counts the trees and, among them, those that never existed.
fn look(looks: usize, interval: u64, mut read: impl FnMut(&mut BusyProcess) -> Option<Vec<Seen>>) -> (usize, usize) {
    let mut process = BusyProcess::new(interval, 88_172_645_463_325_252 + interval);
    let (mut trees, mut false_trees) = (0, 0);
    for _ in 0..looks {
        let pause = process.random.below(10 * interval);
        process.run_until(process.now + pause);
        process.overwritten.clear();
        if let Some(tree) = read(&mut process) {
            trees += 1;
            false_trees += usize::from(!process.had(&tree));
        }
    }
    (trees, false_trees)
}

/// The mean times between two changes: from 0.2 to 20 microseconds.
const INTERVALS: [u64; 4] = [200_000, 1_000_000, 5_000_000, 20_000_000];

fn read_twice(process: &mut BusyProcess, one_by_one: usize) -> Option<Vec<Seen>> {
    let limits = Limits { contexts: 1000, passes: 100, one_by_one };
    match read_tree(process, &LAYOUT, limits, &mut || (), &mut |_| true).unwrap() {
        Outcome::Found(tree, _) => Some(seen(&tree)),
        Outcome::KeptChanging(_) => None,
        Outcome::TooMany => panic!("there are not so many contexts"),
    }
}

fn assert_no_tree_is_false(looks: usize, one_by_one: usize) {
    for interval in INTERVALS {
        let mut read_ahead = 0;
        let (trees, false_trees) = look(looks, interval, |process| {
            let tree = read_twice(process, one_by_one);
            read_ahead = process.read_ahead;
            tree
        });
        assert_eq!(read_ahead > 0, one_by_one == 0);
        println!("a change every {} ns: {trees} trees, {false_trees} of them false", interval / 1000);
        assert!(trees > 0);
        assert_eq!(false_trees, 0, "{interval}");
    }
}

#[test]
fn no_tree_is_found_that_was_not_there() {
    assert_no_tree_is_false(400, usize::MAX);
}

#[test]
fn nor_if_memory_is_read_ahead() {
    // The simulation takes its time over 64 kB, word by word.
    assert_no_tree_is_false(100, 0);
}

#[test]
fn a_single_read_finds_trees_that_were_not_there() {
    let mut sum = 0;
    for interval in INTERVALS {
        let (trees, false_trees) = look(500, interval, |process| read_once(process, &LAYOUT));
        println!("a change every {} ns: {trees} trees, {false_trees} of them false", interval / 1000);
        sum += false_trees;
    }
    assert!(sum > 0);
}
