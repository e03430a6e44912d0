//! `pg_meminfo_private(pid)`: the private memory of a process, by category.

use crate::cluster::Cluster;
use crate::pg::fmgr::{Call, sql_function};
use crate::pg::interrupts;
use crate::pg::rows::rows;
use crate::proc::address_space::CategoryUsage;
use crate::proc::category::Category;
use crate::proc::root::Root;

use super::report::{unwrap_or_raise, warn_if_denied};

sql_function!("pg_meminfo_private" => private_of_process);

rows! {
    /// The rows of `pg_meminfo_private(pid)`.
    PrivateRows(category: Category, usage: &CategoryUsage, tells_private: bool) {
        category: text = Some(category.name().as_bytes()),
        mappings: int8 = Some(usage.mappings),
        virtual_size: int8 = Some(usage.virtual_size),
        resident: int8 = usage.pages.map(|pages| pages.resident),
        private: int8 = usage.pages.filter(|_| tells_private).map(|pages| pages.private),
        swap: int8 = usage.pages.map(|pages| pages.swap),
    }
}

fn private_of_process(call: &Call) {
    let mut rows = PrivateRows::start(call);
    let Some(pid) = call.int4(0) else { return };
    let cluster = unwrap_or_raise(Cluster::of_this_server(Root::default(), 1));
    let (space, denied) = unwrap_or_raise(cluster.address_space(pid, interrupts::check));
    warn_if_denied(pid, denied);
    let tells_private = cluster.tells_private();
    for (category, usage) in space.iter().flat_map(|space| Category::ALL.into_iter().zip(&space.usages)) {
        if usage.mappings > 0 {
            rows.put(category, usage, tells_private);
        }
    }
}
