//! The memory of the whole cluster, as sums over its processes. Each process is read only once.

use crate::proc::address_space::{AddressSpace, Scratch};
use crate::proc::buffer::Buffer;
use crate::proc::error::Error;
use crate::proc::page_tables::saved_by_huge_pages;
use crate::proc::process::Process;
use crate::proc::segment;
use crate::proc::status::Status;

use super::Cluster;

/// The memory of the cluster, in bytes. A sum is `None` if one of its parts is unknown.
pub struct Totals {
    /// The number of processes.
    pub processes: usize,
    /// The number of processes whose private memory is unknown.
    pub unreadable: usize,
    /// The number of processes that the kernel does not let us read.
    pub denied: usize,
    /// Private memory.
    pub private: Option<u64>,
    /// The size of the main segment.
    pub main_size: Option<u64>,
    /// The resident part of the main segment.
    pub main_resident: Option<u64>,
    /// Whether the main segment is on huge pages.
    pub main_is_huge: Option<bool>,
    /// The resident part of the dynamic segments.
    pub dynamic_resident: Option<u64>,
    /// Page tables.
    pub page_tables: Option<u64>,
    /// A lower bound on the page tables that huge pages for the main segment would save; 0 if they are in use.
    pub page_tables_saved: Option<u64>,
    /// Swapped anonymous memory.
    pub swap: Option<u64>,
}

impl Totals {
    /// The resident memory of the cluster, including page tables.
    pub fn total(&self) -> Option<u64> {
        [self.private, self.main_resident, self.dynamic_resident, self.page_tables].into_iter().sum()
    }
}

#[derive(Default)]
struct Reading {
    buffer: Buffer,
    scratch: Scratch,
    status: Status,
    /// `None` if maps is denied.
    space: Option<AddressSpace>,
}

impl Cluster {
    /// Adds up the memory of the cluster.
    pub fn totals(&self, mut check_interrupts: impl FnMut()) -> Result<Totals, Error> {
        let tells_private = self.tells_private();
        let pids: Vec<_> = self.candidates(&mut check_interrupts)?.into_keys().collect();
        let mut segments = Vec::new();
        let (mut processes, mut unreadable, mut without_maps) = (0, 0, 0);
        let [mut private, mut page_tables, mut swap] = [Some(0); 3];
        // For each process, the size of its page tables and the upper bound on that size without the main segment.
        let mut tables = Vec::new();

        let read = |process: &Process, reading: &mut Reading, check_interrupts: &mut dyn FnMut()| {
            // Read status before maps: saved_by_huge_pages() needs maps that are not older than the counters.
            reading.status = Status::read(process, &mut reading.buffer)?;
            reading.space = match AddressSpace::read(process, &self.classifier, &mut reading.scratch, check_interrupts)
            {
                // The kernel lets every user read status, but not maps.
                Err(Error::Denied) => None,
                space => Some(space?),
            };
            Ok(())
        };
        self.read_each(&pids, self.threads, &mut check_interrupts, read, |pid, reading: Option<&mut Reading>| {
            let (status, space) = match reading {
                Some(reading) => (reading.status, reading.space.take()),
                None => (Status::default(), None),
            };
            let private_of_process = space.as_ref().and_then(AddressSpace::private).filter(|_| tells_private);
            processes += 1;
            unreadable += usize::from(private_of_process.is_none());
            without_maps += usize::from(space.is_none());
            add(&mut private, private_of_process);
            add(&mut page_tables, status.page_tables);
            add(&mut swap, status.swap);
            tables.push(status.page_tables.zip(space.as_ref().map(|space| space.page_table_bound.bytes())));
            segment::attach(&mut segments, pid, space.into_iter().flat_map(|space| space.attachments));
            Ok(())
        })?;

        let (mut main, mut main_resident) = (None, None);
        // A denied process may be the only one attached to a segment, so without its maps the sum is unknown.
        let mut dynamic_resident = (without_maps == 0).then_some(0);
        for segment in &segments {
            if !segment.is_main {
                add(&mut dynamic_resident, segment.residency(&self.root, &mut check_interrupts)?.bytes());
            } else if main.is_none() {
                // Only the first: a process that has detached from shared memory may map something else there.
                main = Some(segment);
                main_resident = segment.residency(&self.root, &mut check_interrupts)?.bytes();
            }
        }
        let saved = |main_size| {
            let of_process = |tables: &Option<(u64, u64)>| {
                tables.map(|(page_tables, bound)| saved_by_huge_pages(page_tables, bound, main_size))
            };
            tables.iter().map(of_process).sum()
        };
        Ok(Totals {
            processes,
            unreadable,
            // If the kernel does not say which pages are private, that is unknown for every process, although none was
            // denied.
            denied: if tells_private { unreadable } else { without_maps },
            private,
            main_size: main.map(|main| main.size),
            main_resident,
            main_is_huge: main.map(|main| main.is_huge()),
            dynamic_resident,
            page_tables,
            page_tables_saved: main.and_then(|main| if main.is_huge() { Some(0) } else { saved(main.size) }),
            swap,
        })
    }
}

/// Adds a number to a sum. The sum is unknown as soon as one of its numbers is.
fn add(sum: &mut Option<u64>, number: Option<u64>) {
    *sum = sum.zip(number).and_then(|(sum, number)| sum.checked_add(number));
}
