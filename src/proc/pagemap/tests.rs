use std::ptr;

use super::*;

fn pagemap(entries: &mut Entries) -> Pagemap<'_> {
    Pagemap::new(File::open("/proc/self/pagemap").unwrap(), entries)
}

/// A mapping in our own address space. It is unmapped when it is dropped.
struct Area {
    start: u64,
    size: u64,
}

impl Area {
    fn new(size: u64, protection: i32, flags: i32) -> Self {
        let flags = flags | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: a new mapping, at an address that the kernel chooses.
        let start = unsafe { libc::mmap(ptr::null_mut(), size as usize, protection, flags, -1, 0) };
        assert_ne!(start, libc::MAP_FAILED, "{}", io::Error::last_os_error());
        let area = Area { start: start.addr() as u64, size };
        area.advise(libc::MADV_NOHUGEPAGE);
        area
    }

    fn private(size: u64) -> Self {
        Self::new(size, libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE)
    }

    fn advise(&self, advice: i32) {
        // SAFETY: the mapping is ours. The advice does not discard memory that is in use.
        unsafe { libc::madvise(self.at(0), self.size as usize, advice) };
    }

    fn at(&self, page: u64) -> *mut libc::c_void {
        ptr::with_exposed_provenance_mut((self.start + page * page_size()) as usize)
    }

    fn write(&self, page: u64) {
        // SAFETY: the page is in the mapping, which is writable and not used by anything else.
        unsafe { self.at(page).cast::<u8>().write_volatile(1) };
    }

    fn read(&self, page: u64) {
        // SAFETY: as above.
        unsafe { self.at(page).cast::<u8>().read_volatile() };
    }

    fn protect(&self, protection: i32) {
        // SAFETY: the mapping is ours, and is not accessed any more.
        assert_eq!(unsafe { libc::mprotect(self.at(0), self.size as usize, protection) }, 0);
    }

    fn span(&self, has_access: bool) -> Span {
        Span { range: self.start..self.start + self.size, has_access }
    }
}

impl Drop for Area {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours.
        unsafe { libc::munmap(self.at(0), self.size as usize) };
    }
}

fn count_pages(spans: &[Span]) -> Vec<PageTotals> {
    let mut found = Vec::new();
    let mut entries = Entries::default();
    pagemap(&mut entries)
        .count_pages(
            spans,
            || (),
            |at, totals| {
                assert_eq!(at, found.len());
                found.push(totals);
            },
        )
        .unwrap();
    found
}

fn pages(count: u64) -> PageTotals {
    PageTotals { resident: count * page_size(), private: count * page_size(), swap: 0 }
}

#[test]
fn written_pages_are_private() {
    let area = Area::private(100 * page_size());
    assert_eq!(count_pages(&[area.span(true)]), [PageTotals::default()]);
    [0, 1, 50, 99].iter().for_each(|&page| area.write(page));
    assert_eq!(count_pages(&[area.span(true)]), [pages(4)]);
}

#[test]
fn the_zero_page_is_resident_but_not_private() {
    let area = Area::private(10 * page_size());
    (0..10).for_each(|page| area.read(page));
    assert_eq!(count_pages(&[area.span(true)]), [PageTotals { resident: 10 * page_size(), private: 0, swap: 0 }]);
}

#[test]
fn adjacent_spans_are_counted_separately() {
    let area = Area::private(3 * CHUNK_PAGES as u64 * page_size());
    let whole = area.span(true).range;
    let cut = |pages: &[u64]| {
        let bounds = pages.iter().map(|page| whole.start + page * page_size());
        let bounds: Vec<_> = std::iter::once(whole.start).chain(bounds).chain([whole.end]).collect();
        bounds.windows(2).map(|pair| Span { range: pair[0]..pair[1], has_access: true }).collect::<Vec<_>>()
    };
    let chunk = CHUNK_PAGES as u64;
    for page in [0, 1, 2, chunk - 1, chunk, chunk + 7, 3 * chunk - 1] {
        area.write(page);
    }
    assert_eq!(count_pages(&cut(&[])), [pages(7)]);
    assert_eq!(count_pages(&cut(&[1])), [pages(1), pages(6)]);
    assert_eq!(count_pages(&cut(&[1, 2, chunk, chunk + 7])), [pages(1), pages(1), pages(2), pages(1), pages(2)]);
    // These spans are not adjacent. The pages between them must not be counted.
    let mut spans = cut(&[1, chunk + 8]);
    spans.remove(1);
    assert_eq!(count_pages(&spans), [pages(1), pages(1)]);
}

#[test]
fn adjacent_spans_are_read_together() {
    let area = Area::private(1000 * page_size());
    let start = area.span(true).range.start;
    let spans: Vec<_> = (0..1000)
        .map(|n| Span { range: start + n * page_size()..start + (n + 1) * page_size(), has_access: true })
        .collect();
    let mut entries = Entries::default();
    let mut reads = 0;
    pagemap(&mut entries).count_pages(&spans, || reads += 1, |_, _| ()).unwrap();
    assert_eq!(reads, 1);
}

/// Whether this kernel can tell which spans have pages.
fn can_scan() -> bool {
    let area = Area::private(page_size());
    let can =
        pagemap(&mut Entries::default()).scan(&area.span(true).range, &mut PageTotals::default(), &mut || ()).unwrap();
    if !can {
        eprintln!("skipped: PAGEMAP_SCAN came with Linux 6.7");
    }
    can
}

#[test]
fn pages_without_access_are_counted() {
    if !can_scan() {
        return;
    }
    let area = Area::private(1000 * page_size());
    [3, 4, 700].iter().for_each(|&page| area.write(page));
    area.protect(libc::PROT_NONE);
    assert_eq!(count_pages(&[area.span(false)]), [pages(3)]);
}

#[test]
fn only_parts_with_pages_of_a_large_mapping_are_read() {
    if !can_scan() {
        return;
    }
    for protection in [libc::PROT_NONE, libc::PROT_READ | libc::PROT_WRITE] {
        let area = Area::new(1 << 44, protection, libc::MAP_PRIVATE);
        let has_access = protection != libc::PROT_NONE;
        let mut written = 0;
        if has_access {
            // More regions than one scan returns, and a page at the very end. With pages of up to 64 kB, all are within
            // the mapping.
            (0..600).for_each(|n| area.write(n * 400_003));
            area.write((1 << 44) / page_size() - 1);
            written = 601;
        }
        let mut entries = Entries::default();
        let (mut reads, mut found) = (0, PageTotals::default());
        pagemap(&mut entries).count_pages(&[area.span(has_access)], || reads += 1, |_, totals| found = totals).unwrap();
        assert_eq!(found, pages(written));
        // One read for each region, and a scan for every few hundred. Reading all entries would need many thousands of
        // reads.
        assert!((written..=written + 4).contains(&reads), "{reads}");
    }
}

#[test]
fn nearby_pages_are_read_together() {
    if !can_scan() {
        return;
    }
    let area = Area::private(LARGE);
    // Every other page, and some pages that are further apart. With pages of up to 64 kB, all are within the mapping.
    (0..3_000).for_each(|n| area.write(2 * n));
    (0..10).for_each(|n| area.write(10_000 + (MERGE_GAP + 2) * n));
    let mut entries = Entries::default();
    let (mut reads, mut found) = (0, PageTotals::default());
    pagemap(&mut entries).count_pages(&[area.span(true)], || reads += 1, |_, totals| found = totals).unwrap();
    assert_eq!(found, pages(3_010));
    assert!((10..100).contains(&reads), "{reads}");
}

#[test]
fn entries_of_old_kernels() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("pagemap");
    let present = PRESENT | 12 << 55;
    let swapped = SWAPPED | 12 << 55;
    let guard = SWAPPED | GUARD;
    let entries: Vec<_> =
        [0, present, swapped, swapped, guard].iter().flat_map(|entry: &u64| entry.to_ne_bytes()).collect();
    fs::write(&path, entries).unwrap();
    let (mut entries, mut found) = (Entries::default(), PageTotals::default());
    let span = Span { range: 0..5 * page_size(), has_access: true };
    Pagemap::new(File::open(&path).unwrap(), &mut entries)
        .count_pages(&[span], || (), |_, totals| found = totals)
        .unwrap();
    assert_eq!((found.resident, found.swap), (page_size(), 2 * page_size()));
}

#[test]
fn addresses_without_entries_have_no_pages() {
    let vsyscall = Span { range: 0xffff_ffff_ff60_0000..0xffff_ffff_ff60_0000 + page_size(), has_access: true };
    assert_eq!(count_pages(&[vsyscall]), [PageTotals::default()]);
    assert_eq!(count_pages(&[]), []);
}

#[test]
fn a_failed_read_is_an_error() {
    let mut entries = Entries::default();
    let mut pagemap = Pagemap::new(File::open("/").unwrap(), &mut entries);
    let span = Span { range: page_size()..2 * page_size(), has_access: true };
    assert!(pagemap.count_pages(&[span], || (), |_, _| ()).is_err());
}
