//! The smaps tokenizer agrees with its oracle on any input.
#![no_main]

libfuzzer_sys::fuzz_target!(|text: &[u8]| pg_meminfo::proc::smaps::naive::assert_agrees(text));
