//! `/proc/PID/pagemap`: which pages of its private mappings a process really holds, and holds alone.
//!
//! pagemap has eight bytes for each page of the address space, and a read of them looks at page tables only. smaps tells the
//! same and more, but walks the pages of shared memory too, again for every process; here only private mappings are
//! read, so the cost is that of the process's own memory.
//!
//! Neighbouring mappings are read together, in large pieces into one buffer. Where a mapping is large, or allows no access,
//! most of it is likely to be a mere reservation, of up to terabytes; there the kernel is first asked which parts have
//! pages at all (`PAGEMAP_SCAN`, Linux 6.7). On an older kernel a mapping without access is taken to be empty.

use std::ffi::CStr;
use std::fs::{self, File};
use std::io;
use std::mem::{MaybeUninit, size_of};
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

/// What a process holds of some of its memory, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Held {
    /// In RAM, pages of zeros that the kernel shares out included.
    pub resident: u64,
    /// In RAM and mapped by nobody else.
    pub private: u64,
    /// In swap.
    pub swap: u64,
}

/// From this size on a mapping is asked for what has pages at all.
const LARGE: u64 = 1 << 30;

/// Up to how many pages without anything are read with those around them: what they cost is less than another read.
const GAP: u64 = 128;

/// How many pages are read at a time. Room for more than these 64 kB the allocator would take from the kernel anew in each call.
const PIECE: usize = 8 * 1024;

/// How large an entry is, in bytes.
const ENTRY: usize = size_of::<u64>();

const PRESENT: u64 = 1 << 63;
const SWAPPED: u64 = 1 << 62;
/// From Linux 6.15 on. Before 4.2 the page's size was here, and it is no such single bit of these.
const GUARD: u64 = 1 << 58;
const AROUND_GUARD: u64 = 0b1111 << 57;
const EXCLUSIVE: u64 = 1 << 56;

/// A part of the address space, page by page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// Its addresses.
    pub range: Range<u64>,
    /// Whether the process may read, write or execute it.
    pub has_access: bool,
}

/// Reads the pagemap of one process.
pub struct Pagemap<'a> {
    file: File,
    page_size: u64,
    entries: &'a mut Entries,
    /// Whether the process had an address space when its pagemap was opened. `None` until that was tried.
    has_pages: Option<bool>,
}

/// Room for the entries of consecutive pages, used again and again.
#[derive(Debug, Default)]
pub struct Entries {
    bytes: Vec<u8>,
    /// The page of the first entry.
    first: u64,
    count: u64,
}

impl<'a> Pagemap<'a> {
    pub(super) fn new(file: File, entries: &'a mut Entries) -> Self {
        entries.count = 0;
        Pagemap { file, page_size: page_size(), entries, has_pages: None }
    }

    /// What the process holds of each part; `take` gets it with the part's position. The parts must be in the order of their
    /// addresses. Calls `between_reads`, which may unwind, after each read.
    pub fn held(
        &mut self,
        parts: &[Part],
        mut between_reads: impl FnMut(),
        mut take: impl FnMut(usize, Held),
    ) -> io::Result<()> {
        // The last of the neighbours that are read together.
        let mut last = 0;
        for (at, part) in parts.iter().enumerate() {
            let mut held = Held::default();
            let is_counted = !is_small(part) && self.scan(&part.range, &mut held, &mut between_reads)?;
            if !is_counted && part.has_access {
                if last <= at {
                    let is_neighbour = |[a, b]: &&[Part; 2]| a.range.end == b.range.start && is_small(b);
                    last = at + parts[at..].array_windows().take_while(is_neighbour).count();
                }
                self.count(part.range.clone(), parts[last].range.end, &mut held, &mut between_reads)?;
            }
            take(at, held);
        }
        Ok(())
    }

    /// Adds up the entries of a range. Reads ahead, no further than to `until`.
    fn count(
        &mut self,
        range: Range<u64>,
        until: u64,
        held: &mut Held,
        between_reads: &mut impl FnMut(),
    ) -> io::Result<()> {
        let mut page = range.start / self.page_size;
        let end = range.end / self.page_size;
        while page < end {
            if !self.entries.pages().contains(&page) {
                self.entries.fill(&self.file, page, until / self.page_size)?;
                between_reads();
                if self.entries.count == 0 {
                    // Beyond what the kernel has entries for.
                    return Ok(());
                }
            }
            let stop = end.min(self.entries.pages().end);
            // Without a branch, so that the compiler makes vectors of it.
            let [mut resident, mut private, mut swapped] = [0; 3];
            for entry in self.entries.between(page, stop) {
                resident += u64::from(entry & PRESENT != 0);
                private += u64::from(entry & (PRESENT | EXCLUSIVE) == PRESENT | EXCLUSIVE);
                // A guard is marked as swapped, and takes no room.
                swapped += u64::from(entry & SWAPPED != 0) & u64::from(entry & AROUND_GUARD != GUARD);
            }
            held.resident += resident * self.page_size;
            held.private += private * self.page_size;
            held.swap += swapped * self.page_size;
            page = stop;
        }
        Ok(())
    }

    /// Adds up the entries of those parts of a range that have pages, in RAM or in swap. False if this kernel cannot tell which.
    fn scan(&mut self, range: &Range<u64>, held: &mut Held, between_reads: &mut impl FnMut()) -> io::Result<bool> {
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
                // Without a difference between the two, neighbours are one region.
                return_mask: 0,
                ..Scan::default()
            };
            // SAFETY: the kernel writes to `scan`, and to the regions that it points to, no more than it says there are.
            let count = unsafe { libc::ioctl(self.file.as_raw_fd(), PAGEMAP_SCAN, &raw mut scan) };
            let error = io::Error::last_os_error();
            between_reads();
            if count < 0 {
                match error.raw_os_error() {
                    Some(libc::EINTR) => continue,
                    Some(libc::ENOTTY | libc::EINVAL) => return Ok(false),
                    _ => return Err(error),
                }
            }
            let gap = GAP * self.page_size;
            for near in regions[..count as usize].chunk_by(|a, b| b.start.saturating_sub(a.end) <= gap) {
                if let Some((first, last)) = near.first().zip(near.last()) {
                    self.count(first.start..last.end, last.end, held, between_reads)?;
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
    /// they are asked to scan one that had none; a read gives nothing then, and so tells.
    fn has_pages(&mut self, address: u64) -> io::Result<bool> {
        if self.has_pages.is_none() {
            let mut entry = [0; ENTRY];
            let length = read_at(&self.file, &mut entry, address / self.page_size)?;
            self.has_pages = Some(length > 0);
        }
        Ok(self.has_pages == Some(true))
    }
}

/// How large a page is.
pub(super) fn page_size() -> u64 {
    // SAFETY: asks for a constant of the system.
    (unsafe { libc::sysconf(libc::_SC_PAGESIZE) }) as u64
}

/// Whether a mapping is read without a question.
fn is_small(part: &Part) -> bool {
    part.has_access && part.range.end.saturating_sub(part.range.start) < LARGE
}

/// One pread(2) of entries from a page on, repeated only if a signal came first.
fn read_at(file: &File, space: &mut [u8], page: u64) -> io::Result<usize> {
    loop {
        match file.read_at(space, page * ENTRY as u64) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

impl Entries {
    /// The pages that there are entries of.
    fn pages(&self) -> Range<u64> {
        self.first..self.first + self.count
    }

    /// Reads the entries from a page on, no further than to `until`.
    fn fill(&mut self, file: &File, page: u64, until: u64) -> io::Result<()> {
        if self.bytes.is_empty() {
            self.bytes.try_reserve_exact(PIECE * ENTRY).map_err(|_| io::Error::from_raw_os_error(libc::ENOMEM))?;
            self.bytes.resize(PIECE * ENTRY, 0);
        }
        let wanted = usize::try_from(until - page).map_or(PIECE, |pages| pages.min(PIECE)) * ENTRY;
        self.count = 0;
        self.first = page;
        self.count = (read_at(file, &mut self.bytes[..wanted], page)? / ENTRY) as u64;
        Ok(())
    }

    /// The entries of some of the pages.
    fn between(&self, start: u64, end: u64) -> impl Iterator<Item = u64> {
        let (entries, _) = self.bytes.as_chunks();
        let at = |page: u64| (page - self.first) as usize;
        entries[at(start)..at(end)].iter().map(|&entry| u64::from_ne_bytes(entry))
    }
}

// From linux/fs.h, Linux 6.7. All of it is 64 bits wide.

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

/// Whether the kernel tells which pages are mapped by one process alone: from 4.2 on, unless it is built without pagemap.
pub fn tells_private() -> bool {
    let mut names = MaybeUninit::uninit();
    // SAFETY: the names are ours to fill.
    if unsafe { libc::uname(names.as_mut_ptr()) } != 0 {
        return false;
    }
    // SAFETY: uname() has not failed, and so has filled them.
    let names: libc::utsname = unsafe { names.assume_init() };
    // SAFETY: the kernel ends it with a NUL.
    let release = unsafe { CStr::from_ptr(names.release.as_ptr()) };
    is_from(&release.to_string_lossy(), (4, 2)) && fs::exists("/proc/self/pagemap").unwrap_or(true)
}

fn is_from(release: &str, wanted: (u32, u32)) -> bool {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map_while(|number| number.parse().ok());
    matches!((numbers.next(), numbers.next()), (Some(major), Some(minor)) if (major, minor) >= wanted)
}

#[cfg(test)]
mod tests;
