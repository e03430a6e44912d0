//! Who holds memory, by the kernel's counters: `pg_meminfo_processes()`.

use crate::pg::backends;
use crate::pg::fmgr::{Call, sql_function};
use crate::pg::srf::{Column, ResultSet};
use crate::proc::process::{Buffer, Error, Process};
use crate::proc::status::Counters;

use super::reader::{Reader, raise};

sql_function! {
    /// `pg_meminfo_processes()`
    "pg_meminfo_processes", "pg_finfo_pg_meminfo_processes" => pg_meminfo_processes, pg_meminfo_processes_info, processes
}

const PROCESSES: [Column; 16] = [
    Column::int4("pid"),
    Column::text("backend_type"),
    Column::timestamptz("process_start"),
    Column::int8("virtual_size"),
    Column::int8("rss"),
    Column::int8("peak_rss"),
    Column::int8("rss_anon"),
    Column::int8("rss_file"),
    Column::int8("rss_shmem"),
    Column::int8("swap"),
    Column::int8("hugetlb"),
    Column::int8("locked"),
    Column::int8("page_tables"),
    Column::int4("threads"),
    Column::int4("oom_score"),
    Column::int4("oom_score_adj"),
];

fn processes(call: &Call) {
    let mut rows = ResultSet::start(call, &PROCESSES);
    let reader = Reader::new();
    let mut buffer = Buffer::default();
    let postmaster = backends::postmaster_pid();
    let logger = backends::logger_title();
    reader.each_process(|pid, backend, process| {
        let counters = match process.map(|process| Counters::read(process, &mut buffer)) {
            Some(Err(Error::Gone)) => return,
            Some(Err(Error::Failure(failure))) => raise(&failure),
            Some(Ok(counters)) => counters,
            None | Some(Err(Error::Denied)) => Counters::default(),
        };
        let mut is_logger =
            || process.is_some_and(|process| process.title(&mut buffer).is_ok_and(|title| title == logger));
        let backend_type = match backend {
            Some(backend) => backend.type_name(),
            None if pid == postmaster => b"postmaster".to_vec(),
            None if is_logger() => b"logger".to_vec(),
            None => b"starting".to_vec(),
        };
        let status = counters.status;
        rows.int4(Some(pid));
        rows.text(Some(&backend_type));
        rows.timestamptz(process.map(Process::start_time));
        rows.int8(status.virtual_size);
        rows.int8(status.rss);
        rows.int8(status.peak_rss);
        rows.int8(status.rss_anon);
        rows.int8(status.rss_file);
        rows.int8(status.rss_shmem);
        rows.int8(status.swap);
        rows.int8(status.hugetlb);
        rows.int8(status.locked);
        rows.int8(status.page_tables);
        rows.int4(status.threads.and_then(|threads| i32::try_from(threads).ok()));
        rows.int4(counters.oom_score);
        rows.int4(counters.oom_score_adj);
        rows.end_row();
    });
}
