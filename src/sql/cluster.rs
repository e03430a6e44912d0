//! `pg_meminfo_cluster()`: the memory of the whole cluster in one row.

use crate::cluster::Cluster;
use crate::cluster::totals::Totals;
use crate::pg::fmgr::{Call, sql_function};
use crate::pg::rows::rows;
use crate::pg::{interrupts, main_segment, settings};
use crate::proc::root::Root;

use super::report::{unwrap_or_raise, warn_of_denied};

sql_function!("pg_meminfo_cluster" => cluster);

rows! {
    /// The row of `pg_meminfo_cluster()`.
    TotalsRow(totals: &Totals) {
        processes: int4 = Some(totals.processes),
        unreadable: int4 = Some(totals.unreadable),
        private: int8 = totals.private,
        shared_memory: int8 = totals.main_size,
        shared_memory_resident: int8 = totals.main_resident,
        dynamic_shared_memory: int8 = totals.dynamic_resident,
        page_tables: int8 = totals.page_tables,
        total: int8 = totals.total(),
        swap: int8 = totals.swap,
        huge_pages_status: text = totals.main_is_huge.map(|is_huge| if is_huge { &b"on"[..] } else { b"off" }),
        huge_pages_needed: int8 = main_segment::huge_pages_needed(),
        page_tables_saved: int8 = totals.page_tables_saved,
    }
}

fn cluster(call: &Call) {
    let mut row = TotalsRow::start(call);
    let cluster = unwrap_or_raise(Cluster::of_this_server(Root::default(), settings::readers()));
    let totals = unwrap_or_raise(cluster.totals(interrupts::check));
    row.put(&totals);
    warn_of_denied(totals.denied);
}
