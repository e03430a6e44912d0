//! Compares a ring with a plain list, also when writes are cut off.

use std::cell::{Cell, RefCell};
use std::io;

use proptest::prelude::*;

use super::{
    BLOCK, BLOCK_HEADER, Block, Header, MAX_RECORD, RECORD_HEADER, Reader, Ring, Storage, Unusable, checksum, offset_of,
};

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

/// An empty ring whose file has room for this many blocks, with the first.
fn new_ring(blocks: u64) -> (Header, Ring<Memory>) {
    let header = Header::for_size(blocks * BLOCK as u64, 7);
    (header, Ring::create(Memory::new(header), header).unwrap())
}

fn numbers(storage: &Memory, header: Header, from: i64, until: i64) -> Vec<i64> {
    let mut found = Vec::new();
    let reader = Reader::open(storage, || {}).unwrap();
    assert_eq!(reader.header, header);
    reader.each(from, until, |bytes| {
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
        let (header, mut ring) = new_ring(5);
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

    /// Also if the clock is set back, by less or more than a block lasts, perhaps while there is no writer; and in a copy
    /// of another size.
    #[test]
    fn a_range_of_time_is_found_though_the_clock_is_set_back(
        steps in prop::collection::vec((prop_oneof![9 => 0_i64..1000, 1 => -3000_i64..0, 1 => -20_000_i64..0], 8_usize..3000, 0..40), 1..100),
        length in 0_i64..10_000, blocks in 2_u64..30,
    ) {
        let (header, mut ring) = new_ring(20);
        let mut at = 0;
        for (step, length, reopen) in steps {
            at += step;
            if reopen == 0 {
                ring = Ring::open(ring.storage().clone()).unwrap();
            }
            ring.append(at, &record(at, length)).unwrap();
        }
        let other = Header::for_size((blocks + 1) * BLOCK as u64, 7);
        let mut copy = Ring::create(Memory::new(other), other).unwrap();
        copy.copy(&ring).unwrap();
        let everything = numbers(ring.storage(), header, EVER.0, EVER.1);
        prop_assert!(everything.ends_with(&numbers(copy.storage(), other, EVER.0, EVER.1)));
        prop_assert!(blocks < 19 || numbers(copy.storage(), other, EVER.0, EVER.1) == everything);
        // The writer goes on with the copy.
        for number in 0..3 {
            copy.append(at - 500 + 300 * number, &record(at - 500 + 300 * number, 3000)).unwrap();
        }
        for (ring, header) in [(ring, header), (copy, other)] {
            let all = numbers(ring.storage(), header, EVER.0, EVER.1);
            for &from in &all {
                let within = |numbers: &[i64]| -> Vec<i64> {
                    numbers.iter().copied().filter(|at| (from..=from + length).contains(at)).collect()
                };
                prop_assert_eq!(within(&numbers(ring.storage(), header, from, from + length)), within(&all));
            }
        }
    }

    #[test]
    fn damage_never_makes_a_false_record(positions in prop::collection::vec((0_usize..6 * BLOCK, any::<u8>()), 1..300)) {
        let (_, mut ring) = new_ring(6);
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

    /// Blocks that no writer would have left, with right checksums, and some damage.
    #[test]
    fn any_blocks_do_no_harm(
        contents in prop::collection::vec((block(), prop::collection::vec(written_record(), 0..6)), 4),
        damage in prop::collection::vec((0..4 * BLOCK, any::<u8>()), 0..4),
        (from, until) in (-50_i64..50, -50_i64..50), at in -50_i64..50,
    ) {
        let header = Header { blocks: 4, cluster: 7 };
        let storage = Memory::new(header);
        storage.write(0, &header.encode()).unwrap();
        for (number, (block, records)) in (0..).zip(&contents) {
            let mut bytes = block.encode().to_vec();
            for (length, is_right, record) in records {
                bytes.extend_from_slice(&length.unwrap_or(record.len() as u32).to_le_bytes());
                let checksum = checksum(block.sequence, record);
                bytes.extend_from_slice(&(if *is_right { checksum } else { !checksum }).to_le_bytes());
                bytes.extend_from_slice(record);
            }
            bytes.truncate(BLOCK);
            storage.write(offset_of(number), &bytes).unwrap();
        }
        for (position, byte) in damage {
            storage.bytes.borrow_mut()[BLOCK + position] = byte;
        }
        let all = |storage: &Memory, from, until| {
            let mut found = Vec::new();
            Reader::open(storage, || {}).unwrap().each(from, until, |record| found.push(record.to_vec()));
            found
        };
        let before = all(&storage, EVER.0, EVER.1);
        // No record that was not written with a right checksum.
        let is_written = |found: &Vec<u8>| contents.iter().flat_map(|block| &block.1).any(|(_, _, record)| record == found);
        prop_assert!(before.iter().all(is_written));
        let last = Reader::open(&storage, || {}).unwrap().last(|record| Some(record.to_vec()));
        prop_assert_eq!(last.as_ref(), before.last());
        let within = all(&storage, from, until);
        prop_assert!(within.iter().all(|record| before.contains(record)));
        let mut ring = Ring::open(storage).unwrap();
        // There may be no sequence number left.
        if ring.append(at, b"appended").is_ok() {
            let after = all(ring.storage(), EVER.0, EVER.1);
            let (last, others) = after.split_last().unwrap();
            prop_assert_eq!(last, b"appended");
            prop_assert!(others.iter().all(|record| before.contains(record)));
            let mut copy = Ring::create(Memory::new(header), header).unwrap();
            copy.copy(&ring).unwrap();
            prop_assert_eq!(all(copy.storage(), EVER.0, EVER.1), after);
        }
    }
}

/// A block whose place is that of its sequence number with luck.
fn block() -> impl Strategy<Value = Block> {
    let sequence = prop_oneof![8 => 1_u64..12, 1 => u64::MAX - 8..=u64::MAX];
    (sequence, -50_i64..50, any::<bool>()).prop_map(|(sequence, first_at, follows)| Block {
        sequence,
        first_at,
        follows,
    })
}

/// A record, whether its checksum is right, and perhaps another length than its own.
fn written_record() -> impl Strategy<Value = (Option<u32>, bool, Vec<u8>)> {
    let length = prop_oneof![8 => Just(None), 1 => any::<u32>().prop_map(Some), 1 => (0..BLOCK as u32).prop_map(Some)];
    (length, prop::bool::weighted(0.9), prop::collection::vec(any::<u8>(), 0..3000))
}

/// The writer is killed at each byte of a write. Everything before is still there, and a new writer goes on.
#[test]
fn a_write_is_cut_off_at_each_byte() {
    let header = Header::for_size(4 * BLOCK as u64, 7);
    // Two records have room in a block. The seventh starts one over the oldest, the eighth is appended to it.
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
    let (header, mut ring) = new_ring(3);
    for number in 0..4 {
        ring.append(number, &record(number, 3000)).unwrap();
    }
    let mut storage = ring.storage().clone();
    // The next one starts a new block over that of 0 and 1. Only its first half arrives.
    storage.budget = Cell::new(BLOCK_HEADER + RECORD_HEADER + 3000);
    let mut killed = Ring { storage, header, sequence: ring.sequence, used: BLOCK, last_at: Some(3) };
    assert!(killed.append(4, &record(4, 3000)).is_err());
    assert_eq!(numbers(&killed.storage, header, EVER.0, EVER.1), [2, 3, 4]);
}

/// The writer is killed when only the headers of new blocks have arrived.
#[test]
fn the_last_record_is_found_before_blocks_without_one() {
    let (_, mut ring) = new_ring(5);
    let last = |ring: &Ring<Memory>| {
        let reader = Reader::open(ring.storage(), || {}).unwrap();
        reader.last(|bytes| Some(i64::from_le_bytes(*bytes.first_chunk()?)).filter(|number| *number != 3))
    };
    assert_eq!(last(&ring), None);
    for number in 0..4 {
        ring.append(number, &record(number, 2000)).unwrap();
    }
    assert_eq!(last(&ring), Some(2));
    for _ in 0..3 {
        ring = Ring::open(ring.storage().clone()).unwrap();
        ring.storage.budget.set(BLOCK_HEADER + RECORD_HEADER + 1000);
        assert!(ring.append(9, &record(9, 2000)).is_err());
        assert_eq!(last(&ring), Some(2));
    }
}

#[test]
fn the_clock_is_set_back() {
    let (header, mut ring) = new_ring(9);
    for at in (1000..1100).chain(500..600) {
        ring.append(at, &record(at, 300)).unwrap();
    }
    for at in [1000, 1050, 1099, 500, 550, 599] {
        assert!(numbers(ring.storage(), header, at, at).contains(&at), "{at}");
    }
}

/// One block has 100 to 200, the next begins at 150.
#[test]
fn the_clock_is_set_back_by_less_than_a_block_lasts() {
    let (header, mut ring) = new_ring(9);
    for at in (100..=200).step_by(10).chain((150..=250).step_by(10)) {
        ring.append(at, &record(at, 300)).unwrap();
    }
    assert_eq!(numbers(ring.storage(), header, 160, 300)[6..12], [160, 170, 180, 190, 200, 150]);
}

/// The block that would say so is missing.
#[test]
fn the_clock_is_set_back_while_nothing_can_be_written() {
    let (header, mut ring) = new_ring(9);
    for at in (100..=200).step_by(10) {
        ring.append(at, &record(at, 300)).unwrap();
    }
    ring.storage.budget.set(0);
    assert!(ring.append(150, &record(150, 300)).is_err());
    ring.storage.budget.set(usize::MAX);
    ring.append(160, &record(160, 300)).unwrap();
    assert_eq!(numbers(ring.storage(), header, 170, 300)[7..], [170, 180, 190, 200, 160]);
}

/// A block of the copy would begin in the middle of one of the original, with the time of the whole.
#[test]
fn a_copy_has_the_same_blocks() {
    let (header, mut ring) = new_ring(9);
    for at in 100..103 {
        ring.append(at, &record(at, 1000)).unwrap();
    }
    let mut ring = Ring::open(ring.storage().clone()).unwrap();
    for at in 200..208 {
        ring.append(at, &record(at, 1000)).unwrap();
    }
    let mut copy = Ring::create(Memory::new(header), header).unwrap();
    copy.copy(&ring).unwrap();
    for from in 200..208 {
        assert!(numbers(copy.storage(), header, from, from).contains(&from), "{from}");
    }
    assert_eq!(numbers(copy.storage(), header, EVER.0, EVER.1).len(), 11);
}

#[test]
fn files_that_cannot_be_used() {
    let (header, ring) = new_ring(5);
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
    let (_, mut ring) = new_ring(3);
    for number in 0..2 {
        ring.append(number, &record(number, 1000)).unwrap();
    }
    let storage = BeingWritten { memory: ring.storage().clone(), is_first: Cell::new(true) };
    let mut found = Vec::new();
    Reader::open(&storage, || {}).unwrap().each(EVER.0, EVER.1, |bytes| found.push(bytes.to_vec()));
    assert_eq!(found, [record(0, 1000), record(1, 1000)]);
}
