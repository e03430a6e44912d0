//! `pg_meminfo_host()` and `pg_meminfo_cgroups()`: the memory of the machine, and the limits of our cgroups.

use crate::pg::fmgr::{Call, sql_function};
use crate::pg::rows::rows;
use crate::proc::cgroup::{Cgroup, Limit, Version, own_cgroups};
use crate::proc::host::Host;
use crate::proc::root::Root;

use super::report::unwrap_or_raise;

sql_function!("pg_meminfo_host" => host);
sql_function!("pg_meminfo_cgroups" => cgroups);

rows! {
    /// The row of `pg_meminfo_host()`. `headroom` comes with the cgroup that limits it, or with `None` if the machine
    /// does.
    HostRow(host: &Host, headroom: Option<(u64, Option<&Cgroup>)>) {
        memory_total: int8 = host.memory_total,
        memory_available: int8 = host.memory_available,
        swap_total: int8 = host.swap_total,
        swap_free: int8 = host.swap_free,
        commit_limit: int8 = host.commit_limit,
        committed: int8 = host.committed,
        overcommit_memory: int4 = host.overcommit_memory,
        headroom: int8 = headroom.map(|(headroom, _)| headroom),
        headroom_source: text = headroom.map(|(_, cgroup)| cgroup.map_or(&b"host"[..], |cgroup| &cgroup.path)),
        huge_page_size: int8 = host.huge_page_size,
        huge_pages_total: int8 = host.huge_pages_total,
        huge_pages_free: int8 = host.huge_pages_free,
        huge_pages_reserved: int8 = host.huge_pages_reserved,
        oom_kills: int8 = host.oom_kills,
        dev_shm_size: int8 = host.dev_shm_size,
        dev_shm_available: int8 = host.dev_shm_available,
    }
}

rows! {
    /// The rows of `pg_meminfo_cgroups()`. Our own cgroup has level 0, its parent level 1, and so on.
    CgroupRows(level: usize, cgroup: &Cgroup) {
        level: int4 = Some(level),
        path: text = Some(&cgroup.path),
        version: int4 = Some(match cgroup.version { Version::One => 1, Version::Two => 2 }),
        memory_limit: int8 = cgroup.limit.and_then(Limit::bytes),
        memory_high: int8 = cgroup.high.and_then(Limit::bytes),
        usage: int8 = cgroup.usage,
        working_set: int8 = cgroup.working_set(),
        anon: int8 = cgroup.anon,
        file: int8 = cgroup.file,
        shmem: int8 = cgroup.shmem,
        kernel: int8 = cgroup.kernel,
        swap_limit: int8 = cgroup.swap_limit.and_then(Limit::bytes),
        swap_usage: int8 = cgroup.swap,
        unlimited: bool = cgroup.limit.map(|limit| limit == Limit::Unlimited),
        oom_kills: int8 = cgroup.oom_kills,
        oom_group: bool = cgroup.oom_group,
        psi_some_usec: int8 = cgroup.psi_some,
        psi_full_usec: int8 = cgroup.psi_full,
    }
}

fn host(call: &Call) {
    let mut row = HostRow::start(call);
    let root = Root::default();
    let host = unwrap_or_raise(Host::read(&root));
    let cgroups = unwrap_or_raise(own_cgroups(&root));
    row.put(&host, host.headroom(cgroups.as_deref(), Cgroup::working_set));
}

fn cgroups(call: &Call) {
    let mut rows = CgroupRows::start(call);
    let cgroups = unwrap_or_raise(own_cgroups(&Root::default()));
    for (level, cgroup) in cgroups.iter().flatten().enumerate() {
        rows.put(level, cgroup);
    }
}
