//! Reading the files of one process of the cluster after the other.

use std::ffi::CStr;
use std::path::PathBuf;

use pgrx_pg_sys::errcodes::PgSqlErrorCode;

use crate::pg::{backends, error, interrupts};
use crate::proc::process::{self, Buffer, Failure, Family, Pid};

const DENIED_HINT: &str = "The kernel lets the server read a process of its own user that is dumpable. See PR_SET_DUMPABLE \
                           in prctl(2), file capabilities of the server's executable, and the mount options of /proc.";

/// Reads files of the cluster's processes, and keeps count of those that it was denied.
pub struct Reader {
    family: Family,
    buffer: Buffer,
    denied: usize,
}

/// A file's whole text, and where it is.
pub struct Text<'a> {
    pub bytes: &'a [u8],
    path: PathBuf,
}

impl Reader {
    pub fn new() -> Self {
        let family = Family::of(backends::postmaster_pid()).unwrap_or_else(|failure| raise(&failure));
        Reader { family, buffer: Buffer::default(), denied: 0 }
    }

    /// The whole of a process's file. `None` if it is not a process of the cluster, if it has exited by the end, or if it is
    /// denied. A cancel between two reads of the file raises its ERROR.
    pub fn read(&mut self, pid: Pid, name: &CStr) -> Option<Text<'_>> {
        interrupts::check();
        let read = self.family.open(pid).and_then(|process| {
            let bytes = process.read(name, &mut self.buffer, interrupts::check)?;
            Ok(Text { bytes, path: process.path(name) })
        });
        match read {
            Ok(text) => Some(text),
            Err(process::Error::Gone) => None,
            Err(process::Error::Denied) => {
                self.denied += 1;
                None
            }
            Err(process::Error::Failure(failure)) => raise(&failure),
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

impl Text<'_> {
    /// Raises the ERROR for a text that is not of its file's form.
    pub fn raise_malformed(&self, detail: &impl ToString) -> ! {
        let message = format!("could not parse file \"{}\"", self.path.display());
        error::raise(PgSqlErrorCode::ERRCODE_DATA_CORRUPTED, message, Some(detail.to_string()))
    }
}

fn raise(failure: &Failure) -> ! {
    error::raise_file_access(&failure.path, &failure.source)
}
