//! Reading the files of one process of the cluster after the other.

use std::collections::BTreeMap;
use std::ffi::CStr;

use crate::pg::backends::{self, Backend};
use crate::pg::{descriptors, error, interrupts, settings};
use crate::proc::ahead::{self, Text};
use crate::proc::process::{Buffer, Error, Failure, Family, Pid, Process};

const DENIED_HINT: &str = "The kernel lets the server read a process of its own user that is dumpable. See PR_SET_DUMPABLE \
                           in prctl(2), file capabilities of the server's executable, and the mount options of /proc.";

/// Reads files of the cluster's processes, and keeps count of those that it was denied.
pub struct Reader {
    family: Family,
    denied: usize,
}

impl Reader {
    pub fn new() -> Self {
        let family = Family::of(backends::postmaster_pid()).unwrap_or_else(|failure| raise(&failure));
        Reader { family, denied: 0 }
    }

    /// Hands to `take` the whole of a file of each process. Leaves out what is no process of the cluster, what has exited by
    /// the end, and what is denied. A cancel between two reads raises its ERROR.
    pub fn read_each(&mut self, pids: &[Pid], name: &CStr, mut take: impl FnMut(Pid, Text<'_>)) {
        let Reader { family, denied } = self;
        let mut read = |threads| {
            ahead::read_each(family, pids, name, threads, interrupts::check, |pid, result| match result {
                Ok(text) => take(pid, text),
                Err(Error::Gone) => {}
                Err(Error::Denied) => *denied += 1,
                Err(Error::Failure(failure)) => raise(&failure),
            });
        };
        match settings::readers().min(pids.len()) {
            0 | 1 => read(0),
            readers => descriptors::with(readers, ahead::DESCRIPTORS, read),
        }
    }

    /// Hands each process of the cluster to a function: those in pg_stat_activity, and the other children of the
    /// postmaster that run its program. `None` for one that is there and cannot be looked at.
    pub fn each_process(&self, mut take: impl FnMut(Pid, Option<&Backend>, Option<&Process>)) {
        for (pid, backend) in self.candidates() {
            interrupts::check();
            match self.family.open(pid) {
                Ok(process) => take(pid, backend.as_ref(), Some(&process)),
                Err(Error::Gone) => {}
                Err(Error::Denied) => take(pid, backend.as_ref(), None),
                Err(Error::Failure(failure)) => raise(&failure),
            }
        }
    }

    /// What a function finds out about a process of the cluster. `None` if it is not one, has exited, or is denied.
    pub fn look_at<T>(&mut self, pid: Pid, look: impl FnOnce(&Process) -> Result<T, Error>) -> Option<T> {
        interrupts::check();
        match self.family.open(pid).and_then(|process| look(&process)) {
            Ok(found) => Some(found),
            Err(Error::Gone) => None,
            Err(Error::Denied) => {
                self.denied += 1;
                None
            }
            Err(Error::Failure(failure)) => raise(&failure),
        }
    }

    /// The pids of all that may be processes of the cluster.
    pub fn pids(&self) -> Vec<Pid> {
        self.candidates().into_keys().collect()
    }

    fn candidates(&self) -> BTreeMap<Pid, Option<Backend>> {
        let children = self.family.pids(&mut Buffer::default(), interrupts::check);
        let children = children.unwrap_or_else(|failure| raise(&failure));
        let children = children.into_iter().map(|pid| (pid, None));
        children.chain(backends::all().into_iter().map(|backend| (backend.pid, Some(backend)))).collect()
    }

    /// Says how many processes are missing from the result.
    pub fn warn_of_denied(&self) {
        warn_of_denied(self.denied);
    }

    /// Says, once a statement, that `pid` is missing from the result.
    pub fn warn_if_denied(&self, pid: Pid) {
        if self.denied > 0 {
            let message = format!("could not read the memory of process {pid}: permission denied");
            error::warn_once_a_statement(message, DENIED_HINT);
        }
    }
}

/// Says how many processes are missing from a result.
pub fn warn_of_denied(processes: usize) {
    match processes {
        0 => {}
        1 => error::warn("could not read the memory of 1 process: permission denied".into(), DENIED_HINT),
        n => error::warn(format!("could not read the memory of {n} processes: permission denied"), DENIED_HINT),
    }
}

/// Raises the ERROR for a text that is not of its file's form.
pub fn raise_malformed(text: &Text<'_>, detail: &impl ToString) -> ! {
    error::raise_malformed(&text.path.to_string_lossy(), detail)
}

/// Raises the ERROR for a file that could not be read.
pub fn raise(failure: &Failure) -> ! {
    error::raise_file_access(&failure.path, &failure.source)
}
