//! The oracle: tables counted level by level, from the first of a mapping to its last, but for one that the mapping before
//! has its end in.

use super::super::category::naive::{IN_MAIN_SEGMENT, landmarks};
use super::super::maps::naive::{NaiveHeader, parse};
use super::super::pagemap::page_size;
use super::besides_main;

/// Both count the same for the maps of a process. For mappings that are not in the order of their addresses, which no kernel
/// prints, nothing is promised but a number.
pub fn assert_agrees(text: &[u8]) {
    let ours = besides_main(text, &landmarks());
    let headers: Option<Vec<NaiveHeader>> = parse(text).into_iter().collect();
    let Some(headers) = headers else { return assert_eq!(ours, None) };
    let ranges: Vec<_> = headers.iter().filter_map(NaiveHeader::range).collect();
    let addresses: Vec<u64> = ranges.iter().flat_map(|range| [range.start, range.end]).collect();
    if !addresses.is_sorted() || ranges.iter().any(|range| range.is_empty()) {
        return assert!(ours.is_some());
    }

    let entries = page_size() / 8;
    let mut tables = 0;
    for level in 1..=3 {
        let span = page_size() * entries.pow(level);
        let mut last_before = None;
        for range in &ranges {
            if level == 1 && range.contains(&IN_MAIN_SEGMENT) {
                continue;
            }
            let (first, last) = (range.start / span, (range.end - 1) / span);
            tables += last - first + u64::from(last_before != Some(first));
            last_before = Some(last);
        }
    }
    assert_eq!(ours, Some(tables * page_size()));
}
