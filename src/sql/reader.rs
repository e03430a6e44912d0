//! Reading the files of one process of the cluster after the other.

use std::ffi::CStr;

use pgrx_pg_sys::errcodes::PgSqlErrorCode;

use crate::pg::{backends, descriptors, error, interrupts, settings};
use crate::proc::ahead::{self, Text};
use crate::proc::process::{Error, Failure, Family, Pid};

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
                Err(Error::Stopped) => unreachable!("only unwinding stops it"),
            });
        };
        match settings::readers().min(pids.len()) {
            0 | 1 => read(0),
            readers => descriptors::with(readers, ahead::DESCRIPTORS, read),
        }
    }

    /// Says how many processes are missing from the result.
    pub fn warn_of_denied(&self) {
        match self.denied {
            0 => {}
            1 => error::warn("could not read the memory of 1 process: permission denied".into(), DENIED_HINT),
            n => error::warn(format!("could not read the memory of {n} processes: permission denied"), DENIED_HINT),
        }
    }

    /// Says, once a statement, that `pid` is missing from the result.
    pub fn warn_if_denied(&self, pid: Pid) {
        if self.denied > 0 {
            let message = format!("could not read the memory of process {pid}: permission denied");
            error::warn_once_a_statement(message, DENIED_HINT);
        }
    }
}

/// Raises the ERROR for a text that is not of its file's form.
pub fn raise_malformed(text: &Text<'_>, detail: &impl ToString) -> ! {
    let message = format!("could not parse file \"{}\"", text.path.display());
    error::raise(PgSqlErrorCode::ERRCODE_DATA_CORRUPTED, message, Some(detail.to_string()))
}

fn raise(failure: &Failure) -> ! {
    error::raise_file_access(&failure.path, &failure.source)
}
