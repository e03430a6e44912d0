//! What is in a process's address space: maps lists the mappings, and pagemap describes the pages of the private ones.
//! A process is read only once for everything that the cluster's views show.

use memchr::memchr_iter;

use super::buffer::Buffer;
use super::category::{Category, Classifier};
use super::error::Error;
use super::maps;
use super::page_tables::PageTableBound;
use super::pagemap::{Entries, PageTotals, Pagemap, Span};
use super::process::Process;
use super::segment::Attachment;

/// The private mappings of a category.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CategoryUsage {
    /// The number of mappings.
    pub mappings: u64,
    /// The total size of the mappings, in bytes.
    pub virtual_size: u64,
    /// The pages in the mappings. `None` if pagemap is denied, or if the kernel is built without it.
    pub pages: Option<PageTotals>,
}

/// What is in a process's address space.
#[derive(Debug)]
pub struct AddressSpace {
    /// The private mappings by category, in the order of [`Category::ALL`].
    pub usages: [CategoryUsage; Category::COUNT],
    /// The shared memory segments to which the process is attached.
    pub attachments: Vec<Attachment>,
    /// An upper bound on the page tables for everything except the main segment.
    pub page_table_bound: PageTableBound,
    /// Whether the kernel let us open pagemap, but not read it. What was read by then is not all.
    pub pagemap_denied: bool,
}

/// Reusable buffers.
#[derive(Debug, Default)]
pub struct Scratch {
    maps: Buffer,
    entries: Entries,
    spans: Vec<Span>,
    categories: Vec<Category>,
}

impl AddressSpace {
    /// Reads the address space of a process. Calls `check_interrupts`, which may unwind, after each read.
    pub fn read(
        process: &Process,
        classifier: &Classifier,
        scratch: &mut Scratch,
        mut check_interrupts: impl FnMut(),
    ) -> Result<Self, Error> {
        let Scratch { maps, entries, spans, categories } = scratch;
        process.read_unchecked(c"maps", maps, &mut check_interrupts)?;
        spans.clear();
        categories.clear();
        // Reserve the memory first, because a process can have tens of thousands of mappings.
        let lines = memchr_iter(b'\n', maps.text()).count();
        let is_reserved = spans.try_reserve(lines).and_then(|()| categories.try_reserve(lines));
        is_reserved.map_err(|_| Error::out_of_memory(process.path(c"maps")))?;

        let mut usages = [CategoryUsage::default(); Category::COUNT];
        let mut attachments = Vec::new();
        let mut page_table_bound = PageTableBound::default();
        for line in maps::lines(maps.text()) {
            let (header, range) = match line {
                Ok(line) => line,
                Err(malformed) => {
                    // The file of a process that has exited meanwhile need not be whole.
                    process.revalidate()?;
                    return Err(process.malformed(c"maps", malformed));
                }
            };
            page_table_bound.add(&range, range.contains(&classifier.in_main_segment));
            if header.permissions.ends_with(b"p") {
                let category = classifier.classify(&header);
                let usage = &mut usages[category as usize];
                usage.mappings += 1;
                usage.virtual_size += range.end.saturating_sub(range.start);
                spans.push(Span { range, has_access: !header.permissions.starts_with(b"---") });
                categories.push(category);
            } else {
                attachments.extend(Attachment::of(&header, &range, classifier));
            }
        }

        let pagemap = match process.open(c"pagemap") {
            Ok(file) => Some(file),
            // If the process has exited, revalidate() below returns the error.
            Err(Error::Denied | Error::Gone) => None,
            Err(error) => return Err(error),
        };
        let mut pagemap_denied = false;
        if let Some(file) = pagemap {
            let add = |at: usize, totals: PageTotals| {
                let sum = usages[categories[at] as usize].pages.get_or_insert_default();
                sum.resident += totals.resident;
                sum.private += totals.private;
                sum.swap += totals.swap;
            };
            let read = Pagemap::new(file, entries).count_pages(spans, check_interrupts, add);
            match read.map_err(|source| Error::of_process(source, || process.path(c"pagemap"))) {
                Err(Error::Denied) => pagemap_denied = true,
                read => read?,
            }
        }
        process.revalidate()?;
        Ok(AddressSpace { usages, attachments, page_table_bound, pagemap_denied })
    }

    /// The process's private memory, in bytes. `None` if that of any category is unknown.
    pub fn private(&self) -> Option<u64> {
        if self.pagemap_denied {
            return None;
        }
        let used = self.usages.iter().filter(|usage| usage.mappings > 0);
        used.map(|usage| Some(usage.pages?.private)).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::super::smaps::{self, Field, Value};
    use super::super::system::page_size;
    use super::super::test_support::{MadeUpRoot, Running, me, our_tree, stat_of};
    use super::*;

    fn classifier() -> Classifier {
        let program = std::env::current_exe().unwrap().into_os_string().into_encoded_bytes();
        Classifier { program, in_main_segment: 0, system_v_key: 0 }
    }

    fn usages(process: &Process, scratch: &mut Scratch) -> [CategoryUsage; Category::COUNT] {
        AddressSpace::read(process, &classifier(), scratch, || ()).unwrap().usages
    }

    #[test]
    fn agrees_with_smaps() {
        // A child that waits does not change. But program pages are private only while no other test runs the program.
        let child = Running::waiting();
        let process = our_tree().pin(child.pid()).unwrap();
        let mut attempts = 0;
        let usages = loop {
            let usages = usages(&process, &mut Scratch::default());
            let found =
                usages.map(|usage| (usage.mappings, usage.virtual_size, usage.pages.map_or(0, |pages| pages.private)));
            let expected = from_smaps(&process);
            if found == expected {
                break usages;
            }
            attempts += 1;
            assert!(attempts < 1000, "{found:?} is not {expected:?}");
        };
        assert!(usages[Category::Malloc as usize].pages.unwrap().private > 0);
        assert!(usages[Category::Program as usize].pages.unwrap().resident > 0);
    }

    /// For each category, the number of private mappings, their size and their private memory according to smaps.
    fn from_smaps(process: &Process) -> [(u64, u64, u64); Category::COUNT] {
        let mut buffer = Buffer::default();
        process.read(c"smaps", &mut buffer, || ()).unwrap();
        let mut sums = [(0, 0, 0); Category::COUNT];
        for mapping in smaps::mappings(buffer.text()).map(Result::unwrap) {
            let bytes = |field| match mapping.value(field) {
                Value::Number(kilobytes) => kilobytes * 1024,
                Value::Absent | Value::Unusable => 0,
            };
            if mapping.header.permissions.ends_with(b"p") {
                let sum = &mut sums[classifier().classify(&mapping.header) as usize];
                sum.0 += 1;
                sum.1 += bytes(Field::Size);
                sum.2 += bytes(Field::PrivateClean) + bytes(Field::PrivateDirty) + bytes(Field::PrivateHugetlb);
            }
        }
        sums
    }

    #[test]
    fn a_process_that_is_gone_is_an_error() {
        for end in [Running::kill, Running::reap] {
            let mut child = Running::waiting();
            let process = our_tree().pin(child.pid()).unwrap();
            let mut reads = 0;
            let result = AddressSpace::read(&process, &classifier(), &mut Scratch::default(), || {
                reads += 1;
                if reads == 3 {
                    end(&mut child);
                }
            });
            assert!(matches!(result, Err(Error::Gone)), "{result:?}");
            assert!(reads >= 3);
        }
    }

    #[test]
    fn scratch_can_be_reused() {
        let mut scratch = Scratch::default();
        let child = Running::waiting();
        let process = our_tree().pin(child.pid()).unwrap();
        let own = our_tree().pin(me()).unwrap();
        let mut attempts = 0;
        loop {
            usages(&own, &mut scratch);
            let again = usages(&process, &mut scratch);
            let fresh = usages(&process, &mut Scratch::default());
            if again == fresh {
                break;
            }
            // Other tests run the program, too.
            attempts += 1;
            assert!(attempts < 1000, "{again:?} is not {fresh:?}");
        }
    }

    #[test]
    fn a_made_up_process() {
        const PID: i32 = 2_000_000_001;
        let page = page_size();
        let system = MadeUpRoot::new(&[]);
        let stat = stat_of(PID, 1);
        let maps = format!(
            "{:x}-{:x} rw-p 00000000 00:00 0 \n{:x}-{:x} rw-s 00000000 00:17 77   /dev/shm/PostgreSQL.77\n\
             {:x}-{:x} r-xp 00000000 fe:01 12   /lib/libc.so.6\n",
            page,
            4 * page,
            4 * page,
            6 * page,
            6 * page,
            8 * page
        );
        let (present, exclusive, swapped) = (1 << 63, 1 << 56, 1 << 62);
        // Page 0 is not mapped. The shared mapping is not read.
        let entries = [0, present | exclusive, present, swapped, present, present, 0, present | exclusive];
        system.write(&format!("proc/{PID}/stat"), &stat);
        system.write(&format!("proc/{PID}/maps"), maps);
        system.write(&format!("proc/{PID}/pagemap"), entries.map(u64::to_ne_bytes).concat());
        let process = Process::pin(&system.root(), PID).unwrap();
        let space = AddressSpace::read(&process, &classifier(), &mut Scratch::default(), || ()).unwrap();
        let usage = |category| space.usages[category as usize];
        let pages = |resident, private, swap| {
            Some(PageTotals { resident: resident * page, private: private * page, swap: swap * page })
        };
        let malloc = CategoryUsage { mappings: 1, virtual_size: 3 * page, pages: pages(2, 1, 1) };
        let library = CategoryUsage { mappings: 1, virtual_size: 2 * page, pages: pages(1, 1, 0) };
        assert_eq!((usage(Category::Malloc), usage(Category::Library)), (malloc, library));
        assert_eq!(space.private(), Some(2 * page));
        assert_eq!(space.attachments.len(), 1);
        // Tables of three levels, which cover all of the mappings.
        assert_eq!(space.page_table_bound.bytes(), 3 * page);
    }
}
