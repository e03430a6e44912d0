//! A made-up memory in which tests build trees of contexts.

use std::convert::Infallible;

use crate::model::memory::{MAX_PIECES, Memory, Piece};

use super::{ContextType, Layout, PAGE, ahead, offset};

/// Where the arena begins.
pub const BASE: u64 = 0x10000;
/// The variable that points to the root: the first word of the arena.
pub const LAYOUT: Layout = Layout {
    root: BASE,
    types: &[
        ContextType { name: "AllocSet", tag: 223, methods: 0x5000 },
        ContextType { name: "Generation", tag: 225, methods: 0x5100 },
    ],
};

/// Whole pages from [`BASE`] on. Behind the bytes, the last one is filled with zeros.
#[derive(Clone, Debug, Default)]
pub struct Arena {
    /// The bytes.
    pub bytes: Vec<u8>,
    /// The addresses of pages that cannot be read.
    pub holes: Vec<u64>,
    /// The alignment of what is appended.
    pub alignment: usize,
    /// The contexts, in the order in which they were added.
    pub nodes: Vec<u64>,
    /// How many reads there were.
    pub reads: usize,
}

impl Arena {
    /// An arena with nothing but the variable that points to the root.
    pub fn new() -> Self {
        Arena { bytes: vec![0; 8], alignment: 8, ..Arena::default() }
    }

    /// Appends as much empty memory as is read ahead.
    pub fn append_room(&mut self) {
        self.append(&[0; ahead::LENGTH]);
    }

    /// Appends bytes and returns their address.
    pub fn append(&mut self, bytes: &[u8]) -> u64 {
        self.bytes.resize(self.bytes.len().next_multiple_of(self.alignment), 0);
        let address = BASE + self.bytes.len() as u64;
        self.bytes.extend_from_slice(bytes);
        address
    }

    /// Appends a text and returns its address.
    pub fn text(&mut self, text: &str) -> u64 {
        self.append(&[text.as_bytes(), b"\0"].concat())
    }

    /// Adds a context as the first child of `parent`, or as the root for 0.
    pub fn add(&mut self, parent: u64, context_type: usize, name: u64, ident: u64, total: u64) -> u64 {
        let node = self.append(&[0; offset::SIZE]);
        let known = LAYOUT.types[context_type];
        self.set(node + offset::TAG as u64, known.tag.into());
        self.set(node + offset::METHODS as u64, known.methods);
        self.set(node + offset::NAME as u64, name);
        self.set(node + offset::IDENT as u64, ident);
        self.set(node + offset::ALLOCATED as u64, total);
        if parent == 0 {
            self.set(LAYOUT.root, node);
        } else {
            let first = self.get(parent + offset::FIRST_CHILD as u64);
            self.set(node + offset::PARENT as u64, parent);
            self.set(node + offset::NEXT as u64, first);
            if first != 0 {
                self.set(first + offset::PREVIOUS as u64, node);
            }
            self.set(parent + offset::FIRST_CHILD as u64, node);
        }
        self.nodes.push(node);
        node
    }

    /// Writes the word at an address.
    pub fn set(&mut self, address: u64, value: u64) {
        let at = (address - BASE) as usize;
        self.bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
    }

    /// The word at an address.
    pub fn get(&self, address: u64) -> u64 {
        let at = (address - BASE) as usize;
        u64::from_le_bytes(self.bytes[at..at + 8].try_into().unwrap())
    }

    /// Copies a piece, if all of it can be read.
    fn copy(&self, piece: Piece, place: &mut [u8]) -> Option<()> {
        let start = usize::try_from(piece.address.checked_sub(BASE)?).ok()?;
        let end = start.checked_add(piece.length)?;
        if end > self.bytes.len().next_multiple_of(PAGE as usize) {
            return None;
        }
        let pages = piece.address / PAGE..(piece.address + piece.length as u64).div_ceil(PAGE);
        if self.holes.iter().any(|at| pages.contains(&(at / PAGE))) {
            return None;
        }
        let bytes = &self.bytes[start.min(self.bytes.len())..end.min(self.bytes.len())];
        place.fill(0);
        place[..bytes.len()].copy_from_slice(bytes);
        Some(())
    }
}

impl Memory for Arena {
    type Error = Infallible;

    fn read(&mut self, pieces: &[Piece], buffer: &mut [u8]) -> Result<usize, Infallible> {
        assert!((1..=MAX_PIECES).contains(&pieces.len()));
        assert_eq!(buffer.len(), pieces.iter().map(|piece| piece.length).sum());
        self.reads += 1;
        let mut rest = buffer;
        for (nth, &piece) in pieces.iter().enumerate() {
            let (place, after) = rest.split_at_mut(piece.length);
            if self.copy(piece, place).is_none() {
                return Ok(nth);
            }
            rest = after;
        }
        Ok(pieces.len())
    }
}
