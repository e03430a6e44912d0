//! The oracle: for each level, counts the tables from the first to the last one that each mapping needs, except one
//! that the mapping before it already needs.

use super::super::category::naive::IN_MAIN_SEGMENT;
use super::super::maps::lines;
use super::super::maps::naive::{NaiveHeader, parse};
use super::super::system::page_size;
use super::PageTableBound;

/// The bound and the oracle agree for the maps of a process. If the mappings are not in the order of their addresses,
/// which no kernel prints, the bound must only not panic.
pub fn assert_agrees(text: &[u8]) {
    let mut bound = PageTableBound::default();
    for (header, range) in lines(text).map_while(Result::ok) {
        bound.add(&range, header.contains(IN_MAIN_SEGMENT));
    }
    let ours = bound.bytes();
    let headers: Option<Vec<NaiveHeader>> = parse(text).into_iter().collect();
    let Some(headers) = headers else { return };
    let ranges: Vec<_> = headers.iter().filter_map(NaiveHeader::range).collect();
    let addresses: Vec<u64> = ranges.iter().flat_map(|range| [range.start, range.end]).collect();
    if !addresses.is_sorted() || ranges.iter().any(|range| range.is_empty()) {
        return;
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
    assert_eq!(ours, tables * page_size());
}
