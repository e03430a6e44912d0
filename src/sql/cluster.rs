//! The whole cluster, in one row that adds up: `pg_meminfo_cluster()`.

use std::collections::HashMap;

use crate::pg::fmgr::{Call, sql_function};
use crate::pg::srf::{Column, ResultSet};
use crate::pg::{interrupts, shared_memory};
use crate::proc::category::Landmarks;
use crate::proc::page_tables;
use crate::proc::pagemap;
use crate::proc::private::{self, Scratch};
use crate::proc::process::{Buffer, Error, Process};
use crate::proc::status::{Counters, Status};

use super::landmarks;
use super::reader::{Reader, raise};
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
    let mut tables_besides_main = HashMap::new();
    let segments = segments::find(&mut reader, &landmarks, |pid, maps| {
        tables_besides_main.insert(pid, page_tables::besides_main(maps, &landmarks));
    });
    let main = segments.iter().find(|segment| segment.is_main);
    let main_size = main.map(|main| main.size);
    let main_resident = main.and_then(segments::resident);
    // One whose residency cannot be found out has gone.
    let dynamic_resident = segments.iter().filter(|segment| !segment.is_main).filter_map(segments::resident).sum();
    let is_huge = main.map(|main| main.is_huge());

    let (mut processes, mut unreadable) = (0, 0);
    let [mut private, mut page_tables, mut swap, mut saved] = [Sum::ZERO; 4];
    let mut scratch = Scratch::default();
    let mut buffer = Buffer::default();
    reader.each_process(|pid, _, process| {
        let held = match process.map(|process| hold(process, &landmarks, &mut scratch, &mut buffer)) {
            Some(Ok(held)) => Some(held),
            None | Some(Err(Error::Denied)) => None,
            Some(Err(Error::Gone)) => return,
            Some(Err(Error::Failure(failure))) => raise(&failure),
        };
        let status = held.map(|(status, _)| status).unwrap_or_default();
        let own = held.and_then(|(_, private)| private);
        processes += 1;
        unreadable += i32::from(own.is_none());
        private.add(own);
        page_tables.add(status.page_tables);
        swap.add(status.swap);
        // One that has come since has touched nothing yet.
        let besides = tables_besides_main.get(&pid).copied().flatten().unwrap_or(u64::MAX);
        saved.add(main_size.and_then(|main| page_tables::saved_by_huge_pages(&status, besides, main)));
    });
    let dynamic_resident = (unreadable == 0).then_some(dynamic_resident);
    let total = || Some(private.0? + main_resident? + dynamic_resident? + page_tables.0?);

    let int8 = |number: Option<u64>| number.and_then(|number| i64::try_from(number).ok());
    rows.int4(Some(processes));
    rows.int4(Some(unreadable));
    rows.int8(int8(private.0));
    rows.int8(int8(main_size));
    rows.int8(int8(main_resident));
    rows.int8(int8(dynamic_resident));
    rows.int8(int8(page_tables.0));
    rows.int8(int8(total()));
    rows.int8(int8(swap.0));
    rows.text(is_huge.map(|is_huge| if is_huge { &b"on"[..] } else { b"off" }));
    rows.int8(shared_memory::huge_pages_needed());
    rows.int8(if is_huge == Some(true) { Some(0) } else { int8(saved.0) });
    rows.end_row();
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

/// A process's counters, and how much is private to it, if that can be told.
fn hold(
    process: &Process,
    landmarks: &Landmarks,
    scratch: &mut Scratch,
    buffer: &mut Buffer,
) -> Result<(Status, Option<u64>), Error> {
    let status = Counters::read(process, buffer)?.status;
    let usages = match private::by_category(process, landmarks, scratch, interrupts::check) {
        Ok(usages) => usages,
        // Some files are open to everybody.
        Err(Error::Denied) => return Ok((status, None)),
        Err(error) => return Err(error),
    };
    let mut sum = Sum::ZERO;
    for usage in usages.iter().filter(|usage| usage.mappings > 0) {
        sum.add(usage.held.map(|held| held.private));
    }
    Ok((status, sum.0.filter(|_| pagemap::tells_private())))
}
