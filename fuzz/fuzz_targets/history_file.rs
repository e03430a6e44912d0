//! A ring of the history is written, damaged and opened again, as the input says: each record that is read is one that
//! was written, and one that is appended in the end is the last that is read.
//!
//! The ring itself writes the blocks and records, because hardly any other bytes have the right checksums.
#![no_main]

use std::cell::RefCell;
use std::io;

use libfuzzer_sys::fuzz_target;
use pg_meminfo::model::history::incident::{Death, Incident};
use pg_meminfo::model::history::ring::{self, Header, Reader, Ring, Storage};
use pg_meminfo::model::history::sample::Sample;

struct Memory(RefCell<Vec<u8>>);

impl Storage for Memory {
    fn read(&self, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
        let all = self.0.borrow();
        let found = all.get(offset as usize..).and_then(|rest| rest.get(..bytes.len()));
        bytes.copy_from_slice(found.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn write(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let mut all = self.0.borrow_mut();
        let place = all.get_mut(offset as usize..).and_then(|rest| rest.get_mut(..bytes.len()));
        place.ok_or(io::ErrorKind::StorageFull)?.copy_from_slice(bytes);
        Ok(())
    }
}

fn records(storage: &Memory) -> Vec<Vec<u8>> {
    let mut records = Vec::new();
    let reader = Reader::open(storage, || {}).unwrap();
    reader.each(i64::MIN, i64::MAX, |record| {
        let _ = (Sample::decode(record), Incident::decode(record));
        records.push(record.to_vec());
    });
    records
}

/// Takes as many bytes from the input as there are, and zeros instead of the others.
fn take<const N: usize>(input: &mut &[u8]) -> [u8; N] {
    let mut bytes = [0; N];
    let (taken, rest) = input.split_at(N.min(input.len()));
    bytes[..taken.len()].copy_from_slice(taken);
    *input = rest;
    bytes
}

fuzz_target!(|input: &[u8]| {
    let _ = (Incident::decode(input), Death::decode_all(input), Death::parse(0, input, Some(input)));
    if let Some(sample) = Sample::decode(input)
        && let Some(encoded) = sample.encode()
    {
        assert_eq!(Sample::decode(&encoded), Some(sample));
    }

    let header = Header { blocks: 3, cluster: 1 };
    let storage = Memory(RefCell::new(vec![0; header.size() as usize]));
    let mut ring = Ring::create(&storage, header).unwrap();
    let (mut written, mut at) = (Vec::new(), 0);
    let mut rest = input;
    while !rest.is_empty() {
        match take(&mut rest) {
            [0..200] => {
                // The clock can be set back.
                at += i64::from(i8::from_le_bytes(take(&mut rest)));
                let length = usize::from(u16::from_le_bytes(take(&mut rest))) % (ring::MAX_RECORD + 2);
                let (content, after) = rest.split_at(length.min(rest.len()));
                rest = after;
                let mut record = content.to_vec();
                record.resize(length, b'x');
                let is_written = ring.append(at, &record).is_ok();
                assert_eq!(is_written, (1..=ring::MAX_RECORD).contains(&length));
                written.push(record);
            }
            [200..220] => ring = Ring::open(&storage).unwrap(),
            [220..=255] => {
                let position = usize::from(u16::from_le_bytes(take(&mut rest)));
                let [byte] = take(&mut rest);
                let mut content = storage.0.borrow_mut();
                let blocks = &mut content[ring::BLOCK..];
                let length = blocks.len();
                blocks[position % length] = byte;
            }
        }
    }

    let before = records(&storage);
    let _ = Reader::open(&storage, || {}).unwrap().last(|record| (!record.is_empty()).then_some(()));
    assert!(before.iter().all(|record| written.contains(record)));
    let mut ring = Ring::open(&storage).unwrap();
    ring.append(i64::MAX, b"last").unwrap();
    let after = records(&storage);
    assert_eq!(after.last().map(Vec::as_slice), Some(&b"last"[..]));
    assert!(after[..after.len() - 1].iter().all(|record| before.contains(record)));
});
