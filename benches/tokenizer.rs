//! The smaps tokenizer compared with the naive oracle and the procfs-core crate on the same text: the file named by
//! `PG_MEMINFO_SMAPS`, by default this program's own smaps.

use std::env;
use std::fs;
use std::hint::black_box;
use std::sync::LazyLock;

use divan::counter::BytesCount;
use divan::{AllocProfiler, Bencher};
use pg_meminfo::proc::smaps;
use procfs_core::FromBufRead;
use procfs_core::process::MemoryMaps;

// Counts the allocations of each.
#[global_allocator]
static ALLOCATOR: AllocProfiler = AllocProfiler::system();

static TEXT: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let path = env::var_os("PG_MEMINFO_SMAPS").unwrap_or("/proc/self/smaps".into());
    fs::read(path).expect("smaps is readable")
});

fn main() {
    let (ours, theirs) = (smaps::mappings(&TEXT).count(), memory_maps(&TEXT).0.len());
    assert_eq!(ours, theirs, "they find the same mappings");
    println!("{ours} mappings, {} bytes", TEXT.len());
    divan::main();
}

fn memory_maps(text: &[u8]) -> MemoryMaps {
    MemoryMaps::from_buf_read(text).expect("procfs-core understands the text")
}

fn over_text<R>(bencher: Bencher, parse: impl Fn(&[u8]) -> R + Sync) {
    let text: &[u8] = &TEXT;
    bencher.counter(BytesCount::of_slice(text)).bench(|| parse(black_box(text)));
}

#[divan::bench]
fn tokenizer(bencher: Bencher) {
    over_text(bencher, |text| {
        for mapping in smaps::mappings(text) {
            let _ = black_box(mapping.expect("the text is smaps"));
        }
    });
}

#[divan::bench]
fn naive_oracle(bencher: Bencher) {
    over_text(bencher, smaps::naive::parse);
}

#[divan::bench]
fn procfs_core(bencher: Bencher) {
    over_text(bencher, memory_maps);
}

/// For scale: only finds the end and the colon of each line.
#[divan::bench]
fn two_memchr_a_line(bencher: Bencher) {
    over_text(bencher, |mut text| {
        while let Some(end) = memchr::memchr(b'\n', text) {
            black_box(memchr::memchr(b':', &text[..end]));
            text = &text[end + 1..];
        }
    });
}
