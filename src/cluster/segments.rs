//! The cluster's shared memory segments, each of them once.

use std::collections::HashMap;

use crate::pg::backends;
use crate::proc::buffer::Buffer;
use crate::proc::error::Error;
use crate::proc::process::{Pid, Process};
use crate::proc::segment::{self, Attachment, Residency, Segment};
use crate::proc::shared_maps;

use super::Cluster;

/// A segment, with its resident size and the processes that share it.
pub struct MeasuredSegment {
    /// The segment.
    pub segment: Segment,
    /// The resident part, in bytes. `None` if the kernel does not say.
    pub resident: Option<u64>,
    /// The pid of the only attached process, or of the leader if all attached processes are one parallel group. Always
    /// `None` for the main segment.
    pub leader: Option<Pid>,
}

#[derive(Default)]
struct Reading {
    buffer: Buffer,
    attachments: Vec<Attachment>,
}

impl Cluster {
    /// The segments to which the cluster's processes are attached, and the number of processes that were denied.
    pub fn segments(&self, mut check_interrupts: impl FnMut()) -> Result<(Vec<MeasuredSegment>, usize), Error> {
        let pids: Vec<_> = self.candidates(&mut check_interrupts)?.into_keys().collect();
        let mut segments = Vec::new();
        let mut leaders = HashMap::new();
        let read = |process: &Process, reading: &mut Reading, check_interrupts: &mut dyn FnMut()| {
            shared_maps::read(process, &mut reading.buffer, check_interrupts)?;
            let attachments = Attachment::all(reading.buffer.text(), &self.classifier);
            reading.attachments = attachments.map_err(|malformed| malformed.in_file(process.path(c"maps")))?;
            Ok(())
        };
        let denied = self.read_each(&pids, self.threads, &mut check_interrupts, read, |pid, reading| {
            let reading: Option<&mut Reading> = reading;
            if let Some(reading) = reading {
                // Look up the leader now, because the process may exit at any time.
                leaders.insert(pid, backends::leader(pid).unwrap_or(pid));
                segment::attach(&mut segments, pid, reading.attachments.drain(..));
            }
            Ok(())
        })?;

        let mut measured = Vec::new();
        for segment in segments {
            let residency = segment.residency(&self.root, &mut check_interrupts)?;
            if residency != Residency::Gone {
                let leader = common_leader(&segment, &leaders);
                measured.push(MeasuredSegment { segment, resident: residency.bytes(), leader });
            }
        }
        Ok((measured, denied))
    }
}

/// The leader that all attached processes have in common, if there is one.
fn common_leader(segment: &Segment, leaders: &HashMap<Pid, Pid>) -> Option<Pid> {
    let mut leaders = segment.pids.iter().map(|pid| leaders[pid]);
    let first = leaders.next()?;
    (!segment.is_main && leaders.all(|leader| leader == first)).then_some(first)
}
