//! Shared memory, each segment once: `pg_meminfo_segments()`.

use std::collections::HashMap;

use crate::pg::fmgr::{Call, sql_function};
use crate::pg::srf::{Column, ResultSet};
use crate::pg::{backends, interrupts};
use crate::proc::category::Landmarks;
use crate::proc::process::{MALFORMED, Pid};
use crate::proc::segment::{self, Residency, Segment};

use super::landmarks;
use super::reader::{Reader, raise, raise_malformed};

sql_function! {
    /// `pg_meminfo_segments()`
    "pg_meminfo_segments", "pg_finfo_pg_meminfo_segments" => pg_meminfo_segments, pg_meminfo_segments_info, segments
}

const SEGMENTS: [Column; 8] = [
    Column::text("kind"),
    Column::text("name"),
    Column::int8("inode"),
    Column::int8("size"),
    Column::int8("resident"),
    Column::bool("huge"),
    Column::int4("processes"),
    Column::int4("leader_pid"),
];

fn segments(call: &Call) {
    let mut rows = ResultSet::start(call, &SEGMENTS);
    let mut reader = Reader::new();
    let mut leaders = HashMap::new();
    // Before it can have gone.
    let segments = find(&mut reader, &landmarks::find(), |pid| {
        leaders.insert(pid, backends::leader(pid).unwrap_or(pid));
    });
    for segment in &segments {
        let resident = match resident(segment) {
            Residency::Bytes(bytes) => Some(bytes),
            Residency::Unknown => None,
            Residency::Gone => continue,
        };
        rows.text(Some(if segment.is_main { b"main" } else { b"dynamic" }));
        rows.text(Some(&segment.name));
        rows.int8(segment.inode);
        rows.int8(Some(segment.size));
        rows.int8(resident);
        rows.bool(Some(segment.is_huge()));
        rows.int4(i32::try_from(segment.pids.len()).ok());
        rows.int4(leader(segment, &leaders));
        rows.end_row();
    }
    reader.warn_of_denied();
}

/// The segments of the cluster. Calls `attached` for each process that can have some.
pub fn find(reader: &mut Reader, landmarks: &Landmarks, mut attached: impl FnMut(Pid)) -> Vec<Segment> {
    let pids = reader.pids();
    let mut segments = Vec::new();
    reader.read_each(&pids, c"maps", |pid, text| {
        attached(pid);
        if segment::collect(&mut segments, pid, text.bytes, landmarks).is_none() {
            raise_malformed(&text, &MALFORMED);
        }
    });
    segments
}

/// How much of a segment is in RAM.
pub fn resident(segment: &Segment) -> Residency {
    segment.resident(interrupts::check).unwrap_or_else(|failure| raise(&failure))
}

/// The leader that all who are attached share, if so.
fn leader(segment: &Segment, leaders: &HashMap<Pid, Pid>) -> Option<Pid> {
    let mut leaders = segment.pids.iter().map(|pid| leaders[pid]);
    let first = leaders.next()?;
    (!segment.is_main && leaders.all(|leader| leader == first)).then_some(first)
}
