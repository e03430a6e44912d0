//! The machine around, and the cgroups that we are in: `pg_meminfo_host()`, `pg_meminfo_cgroups()`.

use std::path::Path;

use crate::pg::fmgr::{Call, sql_function};
use crate::pg::srf::{Column, ResultSet};
use crate::proc::cgroup::{self, Cgroup, Limit, Version};
use crate::proc::host::Host;

use super::reader::raise;

sql_function! {
    /// `pg_meminfo_host()`
    "pg_meminfo_host", "pg_finfo_pg_meminfo_host" => pg_meminfo_host, pg_meminfo_host_info, host
}

sql_function! {
    /// `pg_meminfo_cgroups()`
    "pg_meminfo_cgroups", "pg_finfo_pg_meminfo_cgroups" => pg_meminfo_cgroups, pg_meminfo_cgroups_info, cgroups
}

const HOST: [Column; 16] = [
    Column::int8("memory_total"),
    Column::int8("memory_available"),
    Column::int8("swap_total"),
    Column::int8("swap_free"),
    Column::int8("commit_limit"),
    Column::int8("committed"),
    Column::int4("overcommit_memory"),
    Column::int8("headroom"),
    Column::text("headroom_source"),
    Column::int8("huge_page_size"),
    Column::int8("huge_pages_total"),
    Column::int8("huge_pages_free"),
    Column::int8("huge_pages_reserved"),
    Column::int8("oom_kills"),
    Column::int8("dev_shm_size"),
    Column::int8("dev_shm_available"),
];

fn host(call: &Call) {
    let mut rows = ResultSet::start(call, &HOST);
    let host = Host::read(Path::new("/")).unwrap_or_else(|failure| raise(&failure));
    let cgroups = of_ourselves();
    let headroom = host.headroom(cgroups.as_deref());
    rows.int8(host.memory_total);
    rows.int8(host.memory_available);
    rows.int8(host.swap_total);
    rows.int8(host.swap_free);
    rows.int8(host.commit_limit);
    rows.int8(host.committed);
    rows.int4(host.overcommit_memory);
    rows.int8(headroom.map(|(headroom, _)| headroom));
    rows.text(headroom.map(|(_, cgroup)| cgroup.map_or(&b"host"[..], |cgroup| &cgroup.path)));
    rows.int8(host.huge_page_size);
    rows.int8(host.huge_pages_total);
    rows.int8(host.huge_pages_free);
    rows.int8(host.huge_pages_reserved);
    rows.int8(host.oom_kills);
    rows.int8(host.dev_shm_size);
    rows.int8(host.dev_shm_available);
    rows.end_row();
}

const CGROUPS: [Column; 18] = [
    Column::int4("level"),
    Column::text("path"),
    Column::int4("version"),
    Column::int8("memory_limit"),
    Column::int8("memory_high"),
    Column::int8("usage"),
    Column::int8("working_set"),
    Column::int8("anon"),
    Column::int8("file"),
    Column::int8("shmem"),
    Column::int8("kernel"),
    Column::int8("swap_limit"),
    Column::int8("swap_usage"),
    Column::bool("unlimited"),
    Column::int8("oom_kills"),
    Column::bool("oom_group"),
    Column::int8("psi_some_usec"),
    Column::int8("psi_full_usec"),
];

fn cgroups(call: &Call) {
    let mut rows = ResultSet::start(call, &CGROUPS);
    for (level, cgroup) in (0..).zip(of_ourselves().unwrap_or_default()) {
        let bytes = |limit: Option<Limit>| limit.and_then(Limit::bytes);
        rows.int4(Some(level));
        rows.text(Some(&cgroup.path));
        rows.int4(Some(match cgroup.version {
            Version::One => 1,
            Version::Two => 2,
        }));
        rows.int8(bytes(cgroup.limit));
        rows.int8(bytes(cgroup.high));
        rows.int8(cgroup.usage);
        rows.int8(cgroup.working_set());
        rows.int8(cgroup.anon);
        rows.int8(cgroup.file);
        rows.int8(cgroup.shmem);
        rows.int8(cgroup.kernel);
        rows.int8(bytes(cgroup.swap_limit));
        rows.int8(cgroup.swap);
        rows.bool(cgroup.limit.map(|limit| limit == Limit::Unlimited));
        rows.int8(cgroup.oom_kills);
        rows.bool(cgroup.oom_group);
        rows.int8(cgroup.psi_some);
        rows.int8(cgroup.psi_full);
        rows.end_row();
    }
}

fn of_ourselves() -> Option<Vec<Cgroup>> {
    cgroup::of_ourselves(Path::new("/")).unwrap_or_else(|failure| raise(&failure))
}
