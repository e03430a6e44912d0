//! The oracle: stores every line of status in a map and looks up the keys.

use super::super::fields::naive::NaiveKeys;
use super::Status;

/// The parser and the oracle agree on any text.
pub fn assert_agrees(text: &[u8]) {
    let keys = NaiveKeys::of(text);
    let expected = Status {
        virtual_size: keys.bytes("VmSize"),
        rss: keys.bytes("VmRSS"),
        peak_rss: keys.bytes("VmHWM"),
        rss_anon: keys.bytes("RssAnon"),
        rss_file: keys.bytes("RssFile"),
        rss_shmem: keys.bytes("RssShmem"),
        swap: keys.bytes("VmSwap"),
        hugetlb: keys.bytes("HugetlbPages"),
        locked: keys.bytes("VmLck"),
        page_tables: keys.bytes("VmPTE"),
        threads: keys.number("Threads"),
    };
    assert_eq!(Status::parse(text), expected);
}
