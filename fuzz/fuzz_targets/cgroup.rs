//! The parsers of cgroup files agree with their oracle on any input.
#![no_main]

libfuzzer_sys::fuzz_target!(|text: &[u8]| pg_meminfo::proc::cgroup::naive::assert_agrees(text));
