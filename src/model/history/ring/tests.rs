//! Compares a ring with a plain list, also when writes are cut off.

use std::cell::{Cell, RefCell};
use std::io;

use proptest::prelude::*;

use super::{BLOCK, BLOCK_HEADER, Header, MAX_RECORD, RECORD_HEADER, Ring, Storage, Unusable, read};

/// A file in memory. It can be told to fail after a number of bytes, as if the writer were killed then.
#[derive(Clone, Debug)]
struct Memory {
    bytes: RefCell<Vec<u8>>,
    budget: Cell<usize>,
}

impl Memory {
    fn new(header: Header) -> Self {
        Memory { bytes: RefCell::new(vec![0; header.size() as usize]), budget: Cell::new(usize::MAX) }
    }
}

impl Storage for Memory {
    fn read(&self, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
        let all = self.bytes.borrow();
        let found = all.get(offset as usize..).and_then(|rest| rest.get(..bytes.len()));
        bytes.copy_from_slice(found.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn write(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let count = bytes.len().min(self.budget.get());
        self.budget.set(self.budget.get() - count);
        self.bytes.borrow_mut()[offset as usize..][..count].copy_from_slice(&bytes[..count]);
        if count < bytes.len() { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
    }
}

fn record(number: i64, length: usize) -> Vec<u8> {
    let mut record = number.to_le_bytes().to_vec();
    record.resize(length.max(8), number as u8);
    record
}

fn numbers(storage: &Memory, header: Header, from: i64, until: i64) -> Vec<i64> {
    let mut found = Vec::new();
    read(storage, header, from, until, |_, bytes| {
        let number = i64::from_le_bytes(*bytes.first_chunk().unwrap());
        assert_eq!(bytes, record(number, bytes.len()));
        found.push(number);
    });
    found
}

const EVER: (i64, i64) = (i64::MIN, i64::MAX);

proptest! {
    /// What is read is the end of what was written, in order, and all that the blocks have room for.
    #[test]
    fn it_keeps_the_newest(lengths in prop::collection::vec(8_usize..MAX_RECORD, 0..200), blocks in 2_u64..9, reopen in 0_usize..200) {
        let header = Header::for_size((blocks + 1) * BLOCK as u64, 7);
        let mut ring = Ring::create(Memory::new(header), header).unwrap();
        for (number, &length) in lengths.iter().enumerate() {
            if number == reopen {
                ring = Ring::open(ring.storage().clone()).unwrap();
            }
            ring.append(number as i64, &record(number as i64, length)).unwrap();
        }
        let found = numbers(ring.storage(), header, EVER.0, EVER.1);
        let count = lengths.len() as i64;
        prop_assert_eq!(&found, &(count - found.len() as i64..count).collect::<Vec<_>>());
        // Two records have room in two blocks, whatever their lengths.
        prop_assert!(found.len() as u64 >= blocks.min(lengths.len() as u64));
    }

    #[test]
    fn a_range_of_time_is_found(steps in prop::collection::vec(0_i64..1000, 1..200), from in 0_i64..60_000, length in 0_i64..30_000) {
        let header = Header::for_size(5 * BLOCK as u64, 7);
        let mut ring = Ring::create(Memory::new(header), header).unwrap();
        let mut at = 0;
        for step in steps {
            at += step;
            ring.append(at, &record(at, 300)).unwrap();
        }
        let all = numbers(ring.storage(), header, EVER.0, EVER.1);
        let within = |at: &i64| (from..=from + length).contains(at);
        let found = numbers(ring.storage(), header, from, from + length);
        let wanted: Vec<_> = all.iter().copied().filter(within).collect();
        prop_assert_eq!(found.iter().copied().filter(within).collect::<Vec<_>>(), wanted);
        // Not more than a block on each side.
        prop_assert!(found.len() - found.iter().filter(|at| within(at)).count() <= 2 * BLOCK / 300);
    }

    #[test]
    fn damage_never_makes_a_false_record(positions in prop::collection::vec((0_usize..6 * BLOCK, any::<u8>()), 1..300)) {
        let header = Header::for_size(6 * BLOCK as u64, 7);
        let mut ring = Ring::create(Memory::new(header), header).unwrap();
        for number in 0..100 {
            ring.append(number, &record(number, 400)).unwrap();
        }
        let storage = ring.storage().clone();
        for (position, byte) in positions {
            storage.bytes.borrow_mut()[position] = byte;
        }
        if let Ok(header) = Header::read(&storage) {
            // Each record that is found is one that was written: see numbers().
            let found = numbers(&storage, header, EVER.0, EVER.1);
            prop_assert!(found.is_sorted() && found.iter().all(|number| (0..100).contains(number)));
        }
    }

    #[test]
    fn any_bytes_do_no_harm(bytes in prop::collection::vec(any::<u8>(), 0..4 * BLOCK)) {
        let storage = Memory { bytes: RefCell::new(bytes), budget: Cell::new(0) };
        prop_assert!(Ring::open(storage).is_err());
    }
}

/// The writer is killed at each byte of a write. Everything before is still there, and a new writer goes on.
#[test]
fn a_write_is_cut_off_at_each_byte() {
    let header = Header::for_size(4 * BLOCK as u64, 7);
    // The third record starts a block over the oldest, the fourth is appended to it.
    for prepared in [6, 7, 8] {
        let mut ring = Ring::create(Memory::new(header), header).unwrap();
        for number in 0..prepared {
            ring.append(number, &record(number, 3000)).unwrap();
        }
        let before = numbers(ring.storage(), header, EVER.0, EVER.1);
        for budget in 0..BLOCK {
            let storage = ring.storage().clone();
            storage.budget.set(budget);
            let mut killed = Ring { storage, ..Ring::open(ring.storage().clone()).unwrap() };
            (killed.sequence, killed.used) = (ring.sequence, ring.used);
            let was_written = killed.append(prepared, &record(prepared, 3000)).is_ok();
            let found = numbers(&killed.storage, header, EVER.0, EVER.1);
            let without = found.iter().filter(|&&number| number != prepared).copied().collect::<Vec<_>>();
            // If it was to become a new block, the oldest block may be gone.
            assert!(before.ends_with(&without), "{without:?} of {before:?}");
            assert!(without.len() + 2 >= before.len());
            assert!(!was_written || found.ends_with(&[prepared]));
            killed.storage.budget.set(usize::MAX);
            let mut next = Ring::open(killed.storage).unwrap();
            next.append(99, &record(99, 3000)).unwrap();
            let found = numbers(next.storage(), header, EVER.0, EVER.1);
            assert_eq!(found.last(), Some(&99));
            // Two blocks of three hold what they held, or the one before has just been replaced.
            assert!(found.len() >= 3, "{found:?}");
        }
    }
}

/// What follows a torn new block in the file are records of the old one, with right checksums for that one.
#[test]
fn records_of_an_older_block_are_not_taken_for_new_ones() {
    let header = Header::for_size(3 * BLOCK as u64, 7);
    let mut ring = Ring::create(Memory::new(header), header).unwrap();
    for number in 0..4 {
        ring.append(number, &record(number, 3000)).unwrap();
    }
    let mut storage = ring.storage().clone();
    // The next one starts a new block over that of 0 and 1. Only its first half arrives.
    storage.budget = Cell::new(BLOCK_HEADER + RECORD_HEADER + 3000);
    let mut killed = Ring { storage, header, sequence: ring.sequence, used: BLOCK, last_at: 3 };
    assert!(killed.append(4, &record(4, 3000)).is_err());
    assert_eq!(numbers(&killed.storage, header, EVER.0, EVER.1), [2, 3, 4]);
}

#[test]
fn the_clock_is_set_back() {
    let header = Header::for_size(9 * BLOCK as u64, 7);
    let mut ring = Ring::create(Memory::new(header), header).unwrap();
    for at in (1000..1100).chain(500..600) {
        ring.append(at, &record(at, 300)).unwrap();
    }
    for at in [1000, 1050, 1099, 500, 550, 599] {
        assert!(numbers(ring.storage(), header, at, at).contains(&at), "{at}");
    }
}

#[test]
fn files_that_cannot_be_used() {
    let header = Header::for_size(5 * BLOCK as u64, 7);
    let ring = Ring::create(Memory::new(header), header).unwrap();
    let with = |position: usize, byte: u8| {
        let storage = ring.storage().clone();
        storage.bytes.borrow_mut()[position] = byte;
        Header::read(&storage)
    };
    assert_eq!(Header::read(ring.storage()).unwrap(), header);
    assert!(matches!(with(0, b'x'), Err(Unusable::Foreign)));
    assert!(matches!(with(8, 2), Err(Unusable::Foreign)));
    assert!(matches!(with(20, 8), Err(Unusable::Damaged)));
    let short = ring.storage().clone();
    short.bytes.borrow_mut().truncate(4 * BLOCK);
    assert!(matches!(Header::read(&short), Err(Unusable::Damaged)));
    short.bytes.borrow_mut().clear();
    assert!(matches!(Header::read(&short), Err(Unusable::Damaged)));
}

/// A file of which the first reading of a whole block is from before its last record was complete.
struct BeingWritten {
    memory: Memory,
    is_first: Cell<bool>,
}

impl Storage for BeingWritten {
    fn read(&self, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
        self.memory.read(offset, bytes)?;
        if bytes.len() == BLOCK && self.is_first.replace(false) {
            bytes[BLOCK_HEADER + 2 * RECORD_HEADER + 1500..].fill(0);
        }
        Ok(())
    }

    fn write(&self, _: u64, _: &[u8]) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }
}

#[test]
fn a_record_that_is_being_written_is_read_once_more() {
    let header = Header::for_size(3 * BLOCK as u64, 7);
    let mut ring = Ring::create(Memory::new(header), header).unwrap();
    for number in 0..2 {
        ring.append(number, &record(number, 1000)).unwrap();
    }
    let storage = BeingWritten { memory: ring.storage().clone(), is_first: Cell::new(true) };
    let mut found = Vec::new();
    read(&storage, header, EVER.0, EVER.1, |_, bytes| found.push(bytes.to_vec()));
    assert_eq!(found, [record(0, 1000), record(1, 1000)]);
}
