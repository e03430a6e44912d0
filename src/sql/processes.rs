//! `pg_meminfo_processes()`: the kernel's memory counters of each process.

use crate::cluster::Cluster;
use crate::cluster::processes::CountedProcess;
use crate::pg::fmgr::{Call, sql_function};
use crate::pg::interrupts;
use crate::pg::rows::rows;
use crate::proc::root::Root;
use crate::statements::shared;

use super::report::unwrap_or_raise;

sql_function!("pg_meminfo_processes" => processes);

rows! {
    /// The rows of `pg_meminfo_processes()`.
    ProcessRows(process: &CountedProcess, earlier_peak: Option<u64>) {
        pid: int4 = Some(process.pid),
        backend_type: text = Some(&process.backend_type),
        process_start: timestamptz = process.start_time,
        virtual_size: int8 = process.counters.status.virtual_size,
        rss: int8 = process.counters.status.rss,
        peak_rss: int8 = process.counters.status.peak_rss.map(|peak| peak.max(earlier_peak.unwrap_or(0))),
        rss_anon: int8 = process.counters.status.rss_anon,
        rss_file: int8 = process.counters.status.rss_file,
        rss_shmem: int8 = process.counters.status.rss_shmem,
        swap: int8 = process.counters.status.swap,
        hugetlb: int8 = process.counters.status.hugetlb,
        locked: int8 = process.counters.status.locked,
        page_tables: int8 = process.counters.status.page_tables,
        threads: int4 = process.counters.status.threads,
        oom_score: int4 = process.counters.oom_score,
        oom_score_adj: int4 = process.counters.oom_score_adj,
    }
}

fn processes(call: &Call) {
    let mut rows = ProcessRows::start(call);
    let cluster = unwrap_or_raise(Cluster::of_this_server(Root::default(), 1));
    // The kernel's figure begins anew whenever the process lowers it.
    let peaks = shared::peaks_of_rss();
    // No WARNING for a denied process: it has a row, with NULLs.
    unwrap_or_raise(
        cluster.count_each(interrupts::check, |process| rows.put(&process, peaks.get(&process.pid).copied())),
    );
}
