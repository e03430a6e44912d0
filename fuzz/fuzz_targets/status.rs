//! The parser of status agrees with its oracle on any input.
#![no_main]

libfuzzer_sys::fuzz_target!(|text: &[u8]| pg_meminfo::proc::status::naive::assert_agrees(text));
