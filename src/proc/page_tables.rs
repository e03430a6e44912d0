//! The size of page tables, and how much of it huge pages would save.
//!
//! Each process has its own page tables, even for memory that it shares. A table of the lowest level is one page, with
//! an entry of 8 bytes for each page of a part of the address space: with pages of 4 kB, it covers 2 MB. It is
//! allocated when any page of that part is touched for the first time. Huge pages do not need the lowest level.
//!
//! The kernel counts the size of a process's page tables, but does not say what they map. [`PageTableBound`] is the
//! largest possible size of the tables for everything except the main shared memory segment. What exceeds it is for
//! that segment.

use std::ops::Range;

use super::system::page_size;

const ENTRY: u64 = 8;

/// An upper bound on the size of a process's page tables, without the lowest level for the main segment.
#[derive(Debug)]
pub struct PageTableBound {
    page_size: u64,
    tables: u64,
    /// For each level below the topmost: how many bits of an address a table covers, and the end of the last table
    /// counted.
    levels: [(u32, u64); 3],
}

impl Default for PageTableBound {
    /// The bound of a process without mappings.
    fn default() -> Self {
        Self::for_pages_of(page_size())
    }
}

impl PageTableBound {
    fn for_pages_of(page_size: u64) -> Self {
        let index_bits = (page_size / ENTRY).ilog2();
        PageTableBound {
            page_size,
            tables: 0,
            levels: [1, 2, 3].map(|level| (page_size.ilog2() + level * index_bits, 0)),
        }
    }

    /// Adds a mapping. Mappings must be added in the order of their addresses.
    pub fn add(&mut self, range: &Range<u64>, is_main_segment: bool) {
        for (level, (bits, counted)) in self.levels.iter_mut().enumerate() {
            if level == 0 && is_main_segment {
                continue;
            }
            let end = (range.end >> *bits) + u64::from(range.end & ((1 << *bits) - 1) != 0);
            self.tables += end.saturating_sub((range.start >> *bits).max(*counted));
            *counted = (*counted).max(end);
        }
    }

    /// The bound, in bytes.
    pub fn bytes(&self) -> u64 {
        self.tables * self.page_size
    }
}

/// A lower bound, in bytes, on the page-table memory that a process would save if the main segment were on huge pages.
/// The arguments are the size of the process's page tables, the [`PageTableBound`], and the size of the main segment.
/// The upper bound must come from maps that are not older than the counter of page tables.
pub fn saved_by_huge_pages(page_tables: u64, bound: u64, main_segment: u64) -> u64 {
    let page_size = page_size();
    let all = main_segment.div_ceil(page_size * page_size / ENTRY).saturating_mul(page_size);
    page_tables.saturating_sub(bound).min(all)
}

#[cfg(any(test, feature = "oracle"))]
pub mod naive;

#[cfg(test)]
mod tests {
    use super::super::maps;
    use super::super::status::Status;
    use super::super::test_support::Running;
    use super::*;

    const MAIN: u64 = 0x7f00_0000_0000;

    fn bound(maps: &[u8], page_size: u64) -> PageTableBound {
        let mut bound = PageTableBound::for_pages_of(page_size);
        for line in maps::lines(maps) {
            let (header, range) = line.unwrap();
            bound.add(&range, header.contains(MAIN));
        }
        bound
    }

    #[test]
    fn tables_of_mappings_are_counted_once() {
        let tables = |maps: &str| bound(maps.as_bytes(), 4096).bytes() / 4096;
        let line = |start: u64, end: u64| format!("{start:x}-{end:x} rw-p 00000000 00:00 0 \n");
        const MB: u64 = 1 << 20;
        assert_eq!(tables(""), 0);
        // One table of each level.
        assert_eq!(tables(&line(0, 4096)), 3);
        // Two mappings covered by the same tables, then a third that needs one more.
        let two = line(0, 4096) + &line(8192, 12288);
        assert_eq!(tables(&two), 3);
        assert_eq!(tables(&(two + &line(16384, 2 * MB + 4096))), 4);
        assert_eq!(tables(&line(2 * MB, 10 * MB)), 4 + 2);
        assert_eq!(tables(&line(0, 1 << 40)), (1 << 19) + (1 << 10) + 2);
        // Huge pages need the upper levels, too.
        assert_eq!(tables(&line(MAIN, MAIN + 4096 * MB)), 4 + 1);
        // No kernel prints this: the whole address space, twice.
        assert_eq!(tables(&line(0, u64::MAX).repeat(2)), (1 << 34) + (1 << 25));
    }

    #[test]
    fn the_memory_saved_by_huge_pages() {
        const GB: u64 = 1 << 30;
        // The amount by which the tables exceed the bound.
        assert_eq!(saved_by_huge_pages(600_000, 500_000, GB), 100_000);
        // Not more than the segment can need: 8 bytes for each page.
        assert_eq!(saved_by_huge_pages(9_500_000, 500_000, GB), GB / page_size() * 8);
        // Nothing if the tables do not exceed the bound.
        assert_eq!(saved_by_huge_pages(500_000, 600_000, GB), 0);
    }

    #[test]
    fn the_bound_is_not_below_the_tables_of_a_process() {
        // Use a child that waits, because other tests map and touch memory in this process.
        let child = Running::waiting();
        let read = |name| std::fs::read(format!("/proc/{}/{name}", child.pid())).unwrap();
        let bound = bound(&read("maps"), page_size()).bytes();
        let status = Status::parse(&read("status"));
        assert!(status.page_tables.unwrap() <= bound, "{status:?} {bound}");
    }
}
