//! Any bytes as the blocks of a file of the history: a record that is appended is the last that is read, and the others
//! are some of those that were read before.
#![no_main]

use std::cell::RefCell;
use std::io;

use libfuzzer_sys::fuzz_target;
use pg_meminfo::model::history::incident::{Death, Incident};
use pg_meminfo::model::history::ring::{self, Header, Ring, Storage};
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

fn records(storage: &Memory, header: Header) -> Vec<Vec<u8>> {
    let mut records = Vec::new();
    ring::read(storage, header, i64::MIN, i64::MAX, |_, record| {
        let _ = (Sample::decode(record), Incident::decode(record));
        records.push(record.to_vec());
    });
    records
}

fuzz_target!(|bytes: &[u8]| {
    let _ =
        (Sample::decode(bytes), Incident::decode(bytes), Death::decode_all(bytes), Death::parse(0, bytes, Some(bytes)));
    // A file with a valid header and these blocks.
    let header = Header { blocks: 3, cluster: 1 };
    let mut content = vec![0; header.size() as usize];
    let blocks = &mut content[ring::BLOCK..];
    let length = bytes.len().min(blocks.len());
    blocks[..length].copy_from_slice(&bytes[..length]);
    let storage = Memory(RefCell::new(content));
    drop(Ring::create(&storage, header));
    let before = records(&storage, header);
    let Ok(mut ring) = Ring::open(&storage) else { return };
    if ring.append(i64::MAX, b"last").is_ok() {
        let after = records(&storage, header);
        assert_eq!(after.last().map(Vec::as_slice), Some(&b"last"[..]));
        assert!(after[..after.len() - 1].iter().all(|record| before.contains(record)));
    }
});
