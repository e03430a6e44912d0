//! What is read from a file of statements can be saved, and is the same when it is read again.
//!
//! The input is the content of the file without what stands before the entries and the checksum, which would hide the
//! rest.
#![no_main]

use pg_meminfo::model::statements::file::{Statistics, decode, encode};
use pg_meminfo::model::statements::table::{Entry, Table, index_length};

const ENTRIES: usize = 8;
const TEXT: usize = 16;

struct Storage {
    count: u64,
    deallocations: u64,
    entries: [Entry; ENTRIES],
    texts: [u8; ENTRIES * TEXT],
    index: Vec<u32>,
}

impl Storage {
    fn new() -> Self {
        let (entries, texts) = ([Entry::default(); ENTRIES], [0; ENTRIES * TEXT]);
        Storage { count: 0, deallocations: 0, entries, texts, index: vec![0; index_length(ENTRIES)] }
    }

    fn table(&mut self) -> Table<'_> {
        let Storage { count, deallocations, entries, texts, index } = self;
        Table { count, deallocations, entries, texts, index }
    }
}

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let empty = encode(&Storage::new().table(), Statistics::default()).unwrap();
    // The magic number and the version.
    let mut file = empty[..16].to_vec();
    file.extend_from_slice(input);
    let checksum = crc32fast::hash(&file);
    file.extend_from_slice(&checksum.to_le_bytes());
    let mut first = Storage::new();
    let Ok(statistics) = decode(&file, &mut first.table()) else { return };
    let saved = encode(&first.table(), statistics).unwrap();
    let mut second = Storage::new();
    assert_eq!(decode(&saved, &mut second.table()), Ok(statistics));
    assert!(first.table().iter().eq(second.table().iter()));
});
