//! The oracle: every line of status in a map, looked up by key.

use std::collections::HashMap;

use super::Status;

/// The parser and the oracle say the same of any text.
pub fn assert_agrees(text: &[u8]) {
    let text: String = text.iter().map(|&byte| byte as char).collect();
    let keys: HashMap<&str, &str> = text
        .split('\n')
        .filter_map(|line| line.split_once(':'))
        .filter(|(key, _)| !key.is_empty() && !key.contains(' '))
        .collect();
    let number = |digits: &str| digits.chars().all(|c| c.is_ascii_digit()).then(|| digits.parse::<u64>().ok())?;
    let trimmed = |key| Some(keys.get(key)?.trim_matches([' ', '\t', '\r', '\x0c']));
    let bytes = |key| number(trimmed(key)?.strip_suffix(" kB")?)?.checked_mul(1024);
    let expected = Status {
        virtual_size: bytes("VmSize"),
        rss: bytes("VmRSS"),
        peak_rss: bytes("VmHWM"),
        rss_anon: bytes("RssAnon"),
        rss_file: bytes("RssFile"),
        rss_shmem: bytes("RssShmem"),
        swap: bytes("VmSwap"),
        hugetlb: bytes("HugetlbPages"),
        locked: bytes("VmLck"),
        page_tables: bytes("VmPTE"),
        threads: trimmed("Threads").and_then(number),
    };
    let latin1: Vec<u8> = text.chars().map(|c| c as u8).collect();
    assert_eq!(Status::parse(&latin1), expected);
}
