//! `pg_meminfo_segments()`: each shared memory segment, once.

use crate::cluster::Cluster;
use crate::cluster::segments::MeasuredSegment;
use crate::pg::fmgr::{Call, sql_function};
use crate::pg::rows::rows;
use crate::pg::{interrupts, settings};
use crate::proc::root::Root;

use super::report::{unwrap_or_raise, warn_of_denied};

sql_function!("pg_meminfo_segments" => segments);

rows! {
    /// The rows of `pg_meminfo_segments()`.
    SegmentRows(measured: &MeasuredSegment) {
        kind: text = Some(if measured.segment.is_main { b"main" } else { b"dynamic" }),
        name: text = Some(&measured.segment.name),
        inode: int8 = measured.segment.inode,
        size: int8 = Some(measured.segment.size),
        resident: int8 = measured.resident,
        huge: bool = Some(measured.segment.is_huge()),
        processes: int4 = Some(measured.segment.pids.len()),
        leader_pid: int4 = measured.leader,
    }
}

fn segments(call: &Call) {
    let mut rows = SegmentRows::start(call);
    let cluster = unwrap_or_raise(Cluster::of_this_server(Root::default(), settings::readers()));
    let (segments, denied) = unwrap_or_raise(cluster.segments(interrupts::check));
    segments.iter().for_each(|segment| rows.put(segment));
    warn_of_denied(denied);
}
