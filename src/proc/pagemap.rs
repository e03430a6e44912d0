//! `/proc/PID/pagemap`: which pages of its private mappings a process has, and which of them no other process maps.
//!
//! pagemap has eight bytes for each page of the address space. To print them, the kernel only reads page tables. smaps
//! says the same and more, but the kernel also visits the pages of shared memory, again for every process. Only private
//! mappings are read here, so the cost depends on the process's own memory.
//!
//! Adjacent mappings are read together, in large chunks, into one buffer. A mapping that is large or that allows no
//! access is probably only reserved address space, which may be terabytes. So the kernel is first asked which parts of
//! it have pages (`PAGEMAP_SCAN`, Linux 6.7). On an older kernel, a mapping that allows no access counts as empty.

use std::fs::{self, File};
use std::io;
use std::mem::size_of;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

use super::root::Root;
use super::system::{page_size, release_is_at_least};

/// The pages in a part of the address space, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PageTotals {
    /// Resident, including the zero page, which counts each time it is mapped.
    pub resident: u64,
    /// Resident and mapped by no other process.
    pub private: u64,
    /// In swap.
    pub swap: u64,
}

/// For a mapping of at least this size, the kernel is asked first which parts of it have pages.
const LARGE: u64 = 1 << 30;

/// The longest gap between pages, in pages, that is read along with them, because that costs less than another read.
const MERGE_GAP: u64 = 128;

/// The number of pages that are read at a time: 64 kB of entries. The allocator would get a larger buffer from the
/// kernel anew in each call.
const CHUNK_PAGES: usize = 8 * 1024;

/// The size of an entry, in bytes.
const ENTRY: usize = size_of::<u64>();

const PRESENT: u64 = 1 << 63;
const SWAPPED: u64 = 1 << 62;
/// A guard page, since Linux 6.15. Before 4.2, bits 55 to 60 contain the page shift, which is at least 12: it never
/// sets only bit 58 among bits 57 to 60.
const GUARD: u64 = 1 << 58;
const AROUND_GUARD: u64 = 0b1111 << 57;
const EXCLUSIVE: u64 = 1 << 56;

/// A range of the address space that starts and ends at page boundaries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Span {
    /// The addresses.
    pub range: Range<u64>,
    /// Whether the process may read, write or execute the memory.
    pub has_access: bool,
}

/// Reads the pagemap of one process.
pub struct Pagemap<'a> {
    file: File,
    page_size: u64,
    entries: &'a mut Entries,
    /// Whether the process had an address space when its pagemap was opened. `None` until that has been checked.
    has_pages: Option<bool>,
}

/// A reusable buffer for the entries of consecutive pages.
#[derive(Debug, Default)]
pub struct Entries {
    bytes: Vec<u8>,
    /// The number of the page that the first entry describes.
    first: u64,
    count: u64,
}

impl<'a> Pagemap<'a> {
    pub(super) fn new(file: File, entries: &'a mut Entries) -> Self {
        entries.count = 0;
        Pagemap { file, page_size: page_size(), entries, has_pages: None }
    }

    /// Adds up the pages of each span, and passes the span's position and its totals to `visit`. The spans must be in
    /// the order of their addresses. Calls `check_interrupts`, which may unwind, after each read.
    pub fn count_pages(
        &mut self,
        spans: &[Span],
        mut check_interrupts: impl FnMut(),
        mut visit: impl FnMut(usize, PageTotals),
    ) -> io::Result<()> {
        // The position of the last of the adjacent spans that are read together.
        let mut last = 0;
        for (at, span) in spans.iter().enumerate() {
            let mut totals = PageTotals::default();
            let is_counted = !is_small(span) && self.scan(&span.range, &mut totals, &mut check_interrupts)?;
            if !is_counted && span.has_access {
                if last <= at {
                    let is_adjacent = |[a, b]: &&[Span; 2]| a.range.end == b.range.start && is_small(b);
                    last = at + spans[at..].array_windows().take_while(is_adjacent).count();
                }
                self.count(span.range.clone(), spans[last].range.end, &mut totals, &mut check_interrupts)?;
            }
            visit(at, totals);
        }
        Ok(())
    }

    /// Adds the entries of a range to `totals`. May read further entries into the buffer, up to the address `until`.
    fn count(
        &mut self,
        range: Range<u64>,
        until: u64,
        totals: &mut PageTotals,
        check_interrupts: &mut impl FnMut(),
    ) -> io::Result<()> {
        let mut page = range.start / self.page_size;
        let end = range.end / self.page_size;
        while page < end {
            if !self.entries.pages().contains(&page) {
                self.entries.fill(&self.file, page, until / self.page_size)?;
                check_interrupts();
                if self.entries.count == 0 {
                    // The kernel has no entries for addresses this high.
                    return Ok(());
                }
            }
            let stop = end.min(self.entries.pages().end);
            // No branches, so that the compiler can use vector instructions.
            let [mut resident, mut private, mut swapped] = [0; 3];
            for entry in self.entries.of_pages(page, stop) {
                resident += u64::from(entry & PRESENT != 0);
                private += u64::from(entry & (PRESENT | EXCLUSIVE) == PRESENT | EXCLUSIVE);
                // A guard page is marked as swapped, but is not in swap.
                swapped += u64::from(entry & SWAPPED != 0) & u64::from(entry & AROUND_GUARD != GUARD);
            }
            totals.resident += resident * self.page_size;
            totals.private += private * self.page_size;
            totals.swap += swapped * self.page_size;
            page = stop;
        }
        Ok(())
    }

    /// Adds the entries of those parts of a range that have pages, resident or in swap, to `totals`. Returns false if
    /// this kernel cannot find those parts.
    fn scan(
        &mut self,
        range: &Range<u64>,
        totals: &mut PageTotals,
        check_interrupts: &mut impl FnMut(),
    ) -> io::Result<bool> {
        if !self.has_pages(range.start)? {
            return Ok(true);
        }
        let mut regions = [Region::default(); 256];
        let mut start = range.start;
        while start < range.end {
            let mut scan = Scan {
                size: size_of::<Scan>() as u64,
                start,
                end: range.end,
                vec: regions.as_mut_ptr().expose_provenance() as u64,
                vec_len: regions.len() as u64,
                category_anyof_mask: PAGE_IS_PRESENT | PAGE_IS_SWAPPED,
                // Return no categories, so that adjacent resident and swapped pages are one region.
                return_mask: 0,
                ..Scan::default()
            };
            // SAFETY: the kernel writes only to `scan` and to `regions`, and not more than `vec_len` regions.
            let count = unsafe { libc::ioctl(self.file.as_raw_fd(), PAGEMAP_SCAN, &raw mut scan) };
            let error = io::Error::last_os_error();
            check_interrupts();
            if count < 0 {
                match error.raw_os_error() {
                    Some(libc::EINTR) => continue,
                    Some(libc::ENOTTY | libc::EINVAL) => return Ok(false),
                    _ => return Err(error),
                }
            }
            let gap = MERGE_GAP * self.page_size;
            for near in regions[..count as usize].chunk_by(|a, b| b.start.saturating_sub(a.end) <= gap) {
                if let Some((first, last)) = near.first().zip(near.last()) {
                    self.count(first.start..last.end, last.end, totals, check_interrupts)?;
                }
            }
            if scan.walk_end <= start {
                break;
            }
            start = scan.walk_end;
        }
        Ok(true)
    }

    /// Whether the process had an address space when its pagemap was opened. Some kernels from 6.7 to 6.15 crash when
    /// they scan a pagemap without an address space. A read of it is safe and returns nothing.
    fn has_pages(&mut self, address: u64) -> io::Result<bool> {
        if self.has_pages.is_none() {
            let mut entry = [0; ENTRY];
            let length = read_at(&self.file, &mut entry, address / self.page_size)?;
            self.has_pages = Some(length > 0);
        }
        Ok(self.has_pages == Some(true))
    }
}

/// Whether a span is read without asking the kernel first which parts of it have pages.
fn is_small(span: &Span) -> bool {
    span.has_access && span.range.end.saturating_sub(span.range.start) < LARGE
}

/// Calls pread(2) for entries, starting at `page`. Calls it again if a signal interrupts it.
fn read_at(file: &File, space: &mut [u8], page: u64) -> io::Result<usize> {
    loop {
        match file.read_at(space, page * ENTRY as u64) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

impl Entries {
    /// The pages whose entries are in the buffer.
    fn pages(&self) -> Range<u64> {
        self.first..self.first + self.count
    }

    /// Reads the entries that start at `page` and end before `until`, as many as the buffer can store.
    fn fill(&mut self, file: &File, page: u64, until: u64) -> io::Result<()> {
        if self.bytes.is_empty() {
            self.bytes
                .try_reserve_exact(CHUNK_PAGES * ENTRY)
                .map_err(|_| io::Error::from_raw_os_error(libc::ENOMEM))?;
            self.bytes.resize(CHUNK_PAGES * ENTRY, 0);
        }
        let wanted = usize::try_from(until - page).map_or(CHUNK_PAGES, |pages| pages.min(CHUNK_PAGES)) * ENTRY;
        self.count = 0;
        self.first = page;
        self.count = (read_at(file, &mut self.bytes[..wanted], page)? / ENTRY) as u64;
        Ok(())
    }

    /// The entries of the pages from `start` to `end`, which must be in the buffer.
    fn of_pages(&self, start: u64, end: u64) -> impl Iterator<Item = u64> {
        let (entries, _) = self.bytes.as_chunks();
        let at = |page: u64| (page - self.first) as usize;
        entries[at(start)..at(end)].iter().map(|&entry| u64::from_ne_bytes(entry))
    }
}

// From linux/fs.h of Linux 6.7. All fields are 64 bits wide.

const PAGE_IS_PRESENT: u64 = 1 << 3;
const PAGE_IS_SWAPPED: u64 = 1 << 4;

/// `_IOWR('f', 16, struct pm_scan_arg)`
const PAGEMAP_SCAN: libc::c_ulong =
    3 << 30 | (size_of::<Scan>() as libc::c_ulong) << 16 | (b'f' as libc::c_ulong) << 8 | 16;

/// `struct pm_scan_arg`
#[repr(C)]
#[derive(Default)]
struct Scan {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    vec: u64,
    vec_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

/// `struct page_region`
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Region {
    start: u64,
    end: u64,
    categories: u64,
}

/// Whether the kernel says which pages only one process maps: since Linux 4.2, unless it is built without pagemap.
pub fn tells_private(root: &Root) -> bool {
    release_is_at_least((4, 2)) && fs::exists(root.path("/proc/self/pagemap")).unwrap_or(true)
}

#[cfg(test)]
mod tests;
