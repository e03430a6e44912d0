//! The oracle: stores every line of meminfo in a map and looks up the keys.

use super::super::fields::naive::NaiveKeys;
use super::Host;

/// The parser and the oracle agree on any text.
pub fn assert_agrees(text: &[u8]) {
    let keys = NaiveKeys::of(text);
    let expected = Host {
        memory_total: keys.bytes("MemTotal"),
        memory_available: keys.bytes("MemAvailable"),
        swap_total: keys.bytes("SwapTotal"),
        shmem: keys.bytes("Shmem"),
        swap_free: keys.bytes("SwapFree"),
        commit_limit: keys.bytes("CommitLimit"),
        committed: keys.bytes("Committed_AS"),
        huge_page_size: keys.bytes("Hugepagesize"),
        huge_pages_total: keys.number("HugePages_Total"),
        huge_pages_free: keys.number("HugePages_Free"),
        huge_pages_reserved: keys.number("HugePages_Rsvd"),
        overcommit_memory: None,
        oom_kills: None,
        dev_shm_size: None,
        dev_shm_available: None,
    };
    assert_eq!(Host::parse(text), expected);
}
