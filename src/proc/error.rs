//! The error type of this module: why a file under `/proc` could not be used.

use std::borrow::Cow;
use std::fmt;
use std::io;
use std::path::PathBuf;

/// Why there is no data.
#[derive(Debug)]
pub enum Error {
    /// The process has exited or is not in the process tree, so there is nothing to report about it.
    Gone,
    /// The process exists, but the kernel does not let us read it.
    Denied,
    /// The file could be read, but not parsed.
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        detail: Malformed,
    },
    /// A failure of the system, or of our own. It says nothing about the process.
    Failed {
        /// The file that could not be opened or read.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
}

impl Error {
    /// Distinguishes a process that has exited or is denied from all other failures.
    pub(super) fn of_process(source: io::Error, path: impl FnOnce() -> PathBuf) -> Self {
        match source.raw_os_error() {
            // ENOENT comes from opening a path; ESRCH from an open directory or a read.
            Some(libc::ENOENT | libc::ESRCH) => Error::Gone,
            Some(libc::EACCES | libc::EPERM) => Error::Denied,
            _ => Error::Failed { path: path(), source },
        }
    }

    /// The error for a lack of memory while a file is read.
    pub fn out_of_memory(path: PathBuf) -> Self {
        Error::Failed { path, source: io::Error::from_raw_os_error(libc::ENOMEM) }
    }
}

/// Why a file's content could not be parsed: a sentence for the user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Malformed(pub(super) Cow<'static, str>);

impl Malformed {
    /// A line does not have the expected form, and the file is known by its name.
    pub(super) const LINE: Self = Malformed(Cow::Borrowed("A line is not in the form that proc(5) describes."));

    /// The error for the file that has this content.
    pub fn in_file(self, path: PathBuf) -> Error {
        Error::Malformed { path, detail: self }
    }
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_of_processes_and_of_the_system() {
        let of = |errno| Error::of_process(io::Error::from_raw_os_error(errno), || PathBuf::from("/proc/1/smaps"));
        for errno in [libc::ENOENT, libc::ESRCH] {
            assert!(matches!(of(errno), Error::Gone));
        }
        for errno in [libc::EACCES, libc::EPERM] {
            assert!(matches!(of(errno), Error::Denied));
        }
        for errno in [libc::EMFILE, libc::ENFILE, libc::ENOMEM, libc::EIO, libc::EISDIR, libc::ENOTDIR] {
            assert!(matches!(of(errno), Error::Failed { source, .. } if source.raw_os_error() == Some(errno)));
        }
    }
}
