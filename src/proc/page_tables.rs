//! What page tables take, and what huge pages would save of it.
//!
//! Each process has page tables of its own, also for memory that it shares. In the lowest level a table is a page that has an
//! entry of 8 bytes for each page of a stretch of address space: with pages of 4 kB, 4 kB for 2 MB. It is there from the first
//! touch on, however few pages of the stretch are touched. On huge pages there is no such level.
//!
//! The kernel counts a process's tables, and not what they are for. [`besides_main`] says how many there can be at most for
//! all that is not the main segment; what exceeds it, is for the main segment.

use super::category::Landmarks;
use super::maps;
use super::pagemap;
use super::status::Status;

const ENTRY: u64 = 8;

/// How large the tables of a process can be at most, by its maps, if the main segment has none of the lowest level. In bytes.
/// `None` if that is not of the form of maps.
pub fn besides_main(maps: &[u8], landmarks: &Landmarks) -> Option<u64> {
    let page_size = pagemap::page_size();
    let entries = page_size / ENTRY;
    let mut tables = 0;
    // What a table of each level below the topmost spans, and the end of the last one that was counted.
    let mut levels = [1, 2, 3].map(|level| (page_size * entries.pow(level), 0));
    for line in maps::lines(maps) {
        let (header, range) = line?;
        for (level, (span, counted)) in levels.iter_mut().enumerate() {
            if level == 0 && header.contains(landmarks.in_main_segment) {
                continue;
            }
            let (first, end) = ((range.start / *span).max(*counted), range.end.div_ceil(*span));
            tables += end.saturating_sub(first);
            *counted = (*counted).max(end);
        }
    }
    tables.checked_mul(page_size)
}

/// What a process would have less of page tables, at least, if the main segment, of a size, were on huge pages. In bytes.
/// `None` where the kernel does not count. Its maps should not be older than its counters.
pub fn saved_by_huge_pages(status: &Status, besides_main: u64, main_segment: u64) -> Option<u64> {
    let page_size = pagemap::page_size();
    let all = main_segment.div_ceil(page_size * page_size / ENTRY).saturating_mul(page_size);
    Some(status.page_tables?.saturating_sub(besides_main).min(all))
}

#[cfg(any(test, feature = "oracle"))]
pub mod naive;

#[cfg(test)]
mod tests {
    use super::super::process::tests::Running;
    use super::*;

    const MAIN: u64 = 0x7f00_0000_0000;

    fn landmarks() -> Landmarks {
        Landmarks { program: b"/bin/postgres".to_vec(), in_main_segment: MAIN, system_v_key: 1 }
    }

    fn tables(maps: &str) -> Option<u64> {
        besides_main(maps.as_bytes(), &landmarks()).map(|bytes| bytes / pagemap::page_size())
    }

    // The numbers below are those of pages of 4 kB.
    #[cfg(target_arch = "x86_64")]
    #[test]
    fn a_table_for_each_stretch_that_is_mapped() {
        let line = |start: u64, end: u64| format!("{start:x}-{end:x} rw-p 00000000 00:00 0 \n");
        const MB: u64 = 1 << 20;
        assert_eq!(tables(""), Some(0));
        // One of each level.
        assert_eq!(tables(&line(0, 4096)), Some(3));
        // Two mappings in the same stretch, then one that begins there and ends in the next.
        let two = line(0, 4096) + &line(8192, 12288);
        assert_eq!(tables(&two), Some(3));
        assert_eq!(tables(&(two + &line(16384, 2 * MB + 4096))), Some(4));
        assert_eq!(tables(&line(2 * MB, 10 * MB)), Some(4 + 2));
        assert_eq!(tables(&line(0, 1 << 40)), Some((1 << 19) + (1 << 10) + 2));
        // The upper levels are there with huge pages, too.
        assert_eq!(tables(&line(MAIN, MAIN + 4096 * MB)), Some(4 + 1));
        assert_eq!(tables("nonsense\n"), None);
        // A mapping of another kernel's, beyond all that can be.
        assert!(tables(&line(0, u64::MAX)).is_some());
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn what_is_saved() {
        const GB: u64 = 1 << 30;
        let saved = |page_tables, besides| {
            let status = Status { page_tables: Some(page_tables), ..Status::default() };
            saved_by_huge_pages(&status, besides, GB).unwrap()
        };
        // What the process has beyond the rest.
        assert_eq!(saved(1_500_000, 500_000), 1_000_000);
        // Not more than there can be for the segment.
        assert_eq!(saved(9_500_000, 500_000), 2 << 20);
        // Nothing beyond the rest.
        assert_eq!(saved(500_000, 600_000), 0);
        assert_eq!(saved_by_huge_pages(&Status::default(), 0, GB), None);
    }

    #[test]
    fn those_of_a_process_are_not_more() {
        // Of one that waits, for other tests map and touch memory here.
        let child = Running::waiting();
        let read = |name| std::fs::read(format!("/proc/{}/{name}", child.pid())).unwrap();
        let most = besides_main(&read("maps"), &landmarks()).unwrap();
        let status = Status::parse(&read("status"));
        assert!(status.page_tables.unwrap() <= most, "{status:?} {most}");
    }
}
