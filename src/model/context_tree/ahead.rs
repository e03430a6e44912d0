//! Reading ahead along a list.
//!
//! Where a context is, only the one before it in the list says, so a long list takes as many reads as it has contexts.
//! But contexts that were created one after the other are often near each other. Where a list has turned out to be
//! long, all of the memory around its next context is therefore read at once, and those that come next are looked for
//! in there.
//!
//! What is found there counts as read when the whole was read, by the number of that read. It is confirmed by a later
//! read like everything else, and each pass begins with nothing. So a tree is not trusted more easily than without.

use std::ops::Range;

use crate::model::memory::Piece;

use super::{PAGE, offset};

/// How many bytes are read at once.
pub(super) const LENGTH: usize = 64 * 1024;

/// How many contexts must have been found in what was read at once, so that it goes on like this.
const ENOUGH: usize = 4;

/// What has been read ahead.
pub(super) struct Ahead {
    /// How many contexts of a list are read one by one before.
    one_by_one: usize,
    /// How many have been.
    steps: usize,
    /// The address of the first byte.
    start: u64,
    /// The number of the read. `None` if there is nothing.
    read: Option<u64>,
    bytes: Vec<u8>,
    /// How many contexts have been found in there.
    found: usize,
}

impl Ahead {
    pub fn after(one_by_one: usize) -> Self {
        Ahead { one_by_one, steps: 0, start: 0, read: None, bytes: Vec::new(), found: 0 }
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        (self.steps, self.read) = (0, None);
    }

    /// Contexts at these addresses are to be read, and nothing else can be read now. Returns what is to be read first,
    /// if anything is.
    pub fn next_piece(&mut self, unread: &[u64]) -> Option<Piece> {
        // A list that goes on, and the first child of its last context. Where several lists go on at a time, one read has
        // a context of each.
        let is_list = unread.len() <= 2;
        self.steps = if is_list { self.steps + 1 } else { 0 };
        let &next = unread.iter().find(|&&address| self.range(address).is_none())?;
        if self.steps <= self.one_by_one {
            return None;
        }
        if self.read.is_some() && self.found < ENOUGH {
            self.clear();
            return None;
        }
        // Most lists begin with the newest context. The others are before it, and their children not far behind them.
        let is_downward = self.read.is_none() || next < self.start;
        let before = if is_downward { LENGTH as u64 - 2 * PAGE } else { 2 * PAGE };
        Some(Piece { address: next.saturating_sub(before), length: LENGTH })
    }

    /// Where this piece is to be read to. It counts only when the number of the read is set.
    pub fn place(&mut self, piece: Piece) -> &mut Vec<u8> {
        (self.start, self.read, self.found) = (piece.address, None, 0);
        &mut self.bytes
    }

    /// The piece has been read, by the read of this number.
    pub fn set_read(&mut self, read: u64) {
        self.read = Some(read);
    }

    /// What was read at an address, and the number of the read.
    pub fn take(&mut self, address: u64) -> Option<(&[u8], u64)> {
        let (range, read) = self.range(address).zip(self.read)?;
        self.found += 1;
        Some((&self.bytes[range], read))
    }

    fn range(&self, address: u64) -> Option<Range<usize>> {
        let start = usize::try_from(address.checked_sub(self.start)?).ok()?;
        let end = start.checked_add(offset::SIZE)?;
        (self.read.is_some() && end <= LENGTH).then_some(start..end)
    }
}
