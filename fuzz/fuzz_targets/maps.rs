//! Everything derived from maps agrees with its oracle on any input: lines, categories, page tables and segments.
#![no_main]

use pg_meminfo::proc::{category, maps, page_tables, segment};

libfuzzer_sys::fuzz_target!(|text: &[u8]| {
    maps::naive::assert_agrees(text);
    category::naive::assert_agrees(text);
    page_tables::naive::assert_agrees(text);
    segment::naive::assert_agrees(text);
});
