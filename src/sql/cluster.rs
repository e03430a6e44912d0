//! The whole cluster, in one row that adds up: `pg_meminfo_cluster()`.

use crate::pg::fmgr::{Call, sql_function};
use crate::pg::srf::{Column, ResultSet};
use crate::pg::{interrupts, shared_memory};
use crate::proc::category::Landmarks;
use crate::proc::page_tables;
use crate::proc::pagemap;
use crate::proc::private::{self, Scratch};
use crate::proc::process::{Buffer, Error, Process};
use crate::proc::segment::Residency;
use crate::proc::status::{Counters, Status};

use super::landmarks;
use super::reader::{Reader, raise, warn_of_denied};
use super::segments;

sql_function! {
    /// `pg_meminfo_cluster()`
    "pg_meminfo_cluster", "pg_finfo_pg_meminfo_cluster" => pg_meminfo_cluster, pg_meminfo_cluster_info, cluster
}

const CLUSTER: [Column; 12] = [
    Column::int4("processes"),
    Column::int4("unreadable"),
    Column::int8("private"),
    Column::int8("shared_memory"),
    Column::int8("shared_memory_resident"),
    Column::int8("dynamic_shared_memory"),
    Column::int8("page_tables"),
    Column::int8("total"),
    Column::int8("swap"),
    Column::text("huge_pages_status"),
    Column::int8("huge_pages_needed"),
    Column::int8("page_tables_saved"),
];

fn cluster(call: &Call) {
    let mut rows = ResultSet::start(call, &CLUSTER);
    let mut reader = Reader::new();
    let landmarks = landmarks::find();
    let segments = segments::find(&mut reader, &landmarks, |_| ());
    let main = segments.iter().find(|segment| segment.is_main);
    let main_size = main.map(|main| main.size);
    let main_resident = main.and_then(|main| match segments::resident(main) {
        Residency::Bytes(bytes) => Some(bytes),
        Residency::Gone | Residency::Unknown => None,
    });
    let mut dynamic_resident = Sum::ZERO;
    for segment in segments.iter().filter(|segment| !segment.is_main) {
        dynamic_resident.add(match segments::resident(segment) {
            Residency::Bytes(bytes) => Some(bytes),
            Residency::Gone => Some(0),
            Residency::Unknown => None,
        });
    }
    let is_huge = main.map(|main| main.is_huge());

    let tells_private = pagemap::tells_private();
    let (mut processes, mut unreadable, mut without_maps) = (0, 0, 0);
    let [mut private, mut page_tables, mut swap, mut saved] = [Sum::ZERO; 4];
    let mut scratch = Scratch::default();
    let mut buffer = Buffer::default();
    reader.each_process(|_, _, process| {
        let held = match process.map(|process| hold(process, &landmarks, &mut scratch, &mut buffer)) {
            Some(Ok(held)) => held,
            None | Some(Err(Error::Denied)) => Held::default(),
            Some(Err(Error::Gone)) => return,
            Some(Err(Error::Failure(failure))) => raise(&failure),
        };
        let held_alone = held.private.filter(|_| tells_private);
        processes += 1;
        unreadable += usize::from(held_alone.is_none());
        without_maps += usize::from(held.tables_besides_main.is_none());
        private.add(held_alone);
        page_tables.add(held.status.page_tables);
        swap.add(held.status.swap);
        let besides = held.tables_besides_main.zip(main_size);
        saved.add(besides.and_then(|(besides, main)| page_tables::saved_by_huge_pages(&held.status, besides, main)));
    });
    // What nobody that can be read is attached to, is not among the segments.
    let dynamic_resident = dynamic_resident.0.filter(|_| without_maps == 0);
    let total = || Some(private.0? + main_resident? + dynamic_resident? + page_tables.0?);

    let int4 = |number: usize| i32::try_from(number).ok();
    rows.int4(int4(processes));
    rows.int4(int4(unreadable));
    rows.int8(private.0);
    rows.int8(main_size);
    rows.int8(main_resident);
    rows.int8(dynamic_resident);
    rows.int8(page_tables.0);
    rows.int8(total());
    rows.int8(swap.0);
    rows.text(is_huge.map(|is_huge| if is_huge { &b"on"[..] } else { b"off" }));
    rows.int8(shared_memory::huge_pages_needed());
    rows.int8(if is_huge == Some(true) { Some(0) } else { saved.0 });
    rows.end_row();
    // A kernel that does not tell what is private denies nothing.
    warn_of_denied(if tells_private { unreadable } else { without_maps });
}

/// A sum of numbers each of which may be unknown, and then it is.
#[derive(Clone, Copy)]
struct Sum(Option<u64>);

impl Sum {
    const ZERO: Self = Sum(Some(0));

    fn add(&mut self, number: Option<u64>) {
        self.0 = self.0.zip(number).and_then(|(sum, number)| sum.checked_add(number));
    }
}

/// What a process holds, as far as that can be told.
#[derive(Default)]
struct Held {
    status: Status,
    private: Option<u64>,
    tables_besides_main: Option<u64>,
}

fn hold(process: &Process, landmarks: &Landmarks, scratch: &mut Scratch, buffer: &mut Buffer) -> Result<Held, Error> {
    let status = Counters::read(process, buffer)?.status;
    let usages = match private::by_category(process, landmarks, scratch, interrupts::check) {
        Ok(usages) => usages,
        // Some files are open to everybody.
        Err(Error::Denied) => return Ok(Held { status, ..Held::default() }),
        Err(error) => return Err(error),
    };
    let mut private = Sum::ZERO;
    for usage in usages.iter().filter(|usage| usage.mappings > 0) {
        private.add(usage.held.map(|held| held.private));
    }
    Ok(Held { status, private: private.0, tables_besides_main: page_tables::besides_main(scratch.maps(), landmarks) })
}
