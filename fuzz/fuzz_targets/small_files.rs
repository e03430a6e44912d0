//! The parsers of small files agree with their oracles on any input: meminfo, vmstat, files with one number, lists of
//! children, and the table of System V segments.
#![no_main]

use pg_meminfo::proc::{fields, host, process_tree, segment};

libfuzzer_sys::fuzz_target!(|text: &[u8]| {
    host::naive::assert_agrees(text);
    fields::naive::assert_agrees(text);
    process_tree::naive::assert_agrees(text);
    segment::naive::assert_table_agrees(text);
});
