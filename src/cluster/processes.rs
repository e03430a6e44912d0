//! The kernel's memory counters of each process, and its backend type.

use crate::pg::backends;
use crate::proc::buffer::Buffer;
use crate::proc::error::Error;
use crate::proc::process::{Pid, Process};
use crate::proc::status::Counters;

use super::Cluster;

/// A process and its counters.
pub struct CountedProcess {
    /// Its pid.
    pub pid: Pid,
    /// Its type as in pg_stat_activity. A process that is not there is `postmaster`, `logger` or `starting`.
    pub backend_type: Vec<u8>,
    /// When it was started, in microseconds since the epoch. `None` if the kernel hides the process.
    pub start_time: Option<i64>,
    /// Its counters. All are `None` if the process is denied.
    pub counters: Counters,
}

#[derive(Default)]
struct Reading {
    buffer: Buffer,
    counters: Counters,
    start_time: i64,
    is_logger: bool,
}

impl Cluster {
    /// Passes each process of the cluster to `visit`, including those that are denied.
    pub fn count_each(
        &self,
        mut check_interrupts: impl FnMut(),
        mut visit: impl FnMut(CountedProcess),
    ) -> Result<(), Error> {
        let candidates = self.candidates(&mut check_interrupts)?;
        let pids: Vec<_> = candidates.keys().copied().collect();
        let postmaster = backends::postmaster_pid();
        let logger = backends::logger_title();
        let is_backend = |pid| candidates.get(&pid).is_some_and(Option::is_some);

        let read = |process: &Process, reading: &mut Reading, _: &mut dyn FnMut()| {
            reading.start_time = self.tree.start_time(process);
            reading.counters = match Counters::read(process, &mut reading.buffer) {
                Err(Error::Denied) => Counters::default(),
                counters => counters?,
            };
            reading.is_logger = process.pid() != postmaster
                && !is_backend(process.pid())
                && process.title(&mut reading.buffer).is_ok_and(|title| title == logger);
            Ok(())
        };
        // Starting a thread would cost more than reading the counters.
        let threads = 1;
        self.read_each(&pids, threads, check_interrupts, read, |pid, reading: Option<&mut Reading>| {
            let backend_type = match &candidates[&pid] {
                Some(backend) => backend.type_name(),
                None if pid == postmaster => b"postmaster".to_vec(),
                None if reading.as_ref().is_some_and(|reading| reading.is_logger) => b"logger".to_vec(),
                None => b"starting".to_vec(),
            };
            let start_time = reading.as_ref().map(|reading| reading.start_time);
            let counters = reading.map(|reading| reading.counters).unwrap_or_default();
            visit(CountedProcess { pid, backend_type, start_time, counters });
            Ok(())
        })?;
        Ok(())
    }
}
