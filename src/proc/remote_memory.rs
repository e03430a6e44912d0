//! The memory of another process, read while the process goes on running.
//!
//! process_vm_readv(2) copies many pieces in one call, in their order. If the kernel refuses that call although it
//! would let us read the process, as seccomp filters of containers do, `/proc/PID/mem` serves, one piece at a time.
//! Filters of systemd, which can end a process for a call, have this one in `@ipc`, without which Postgres does not
//! run. For both, the kernel asks for the right to trace the process (PTRACE_MODE_ATTACH), which is more than maps and
//! pagemap need.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use crate::model::memory::{Memory, Piece};

use super::error::Error;
use super::process::Process;

/// The memory of a process. The caller must check the process afterwards, because the pid can be reused:
/// [`Process::revalidate`].
#[derive(Debug)]
pub struct RemoteMemory<'a> {
    process: &'a Process,
    /// `/proc/PID/mem`, if process_vm_readv(2) is refused.
    file: Option<File>,
    remote: Vec<libc::iovec>,
}

impl<'a> RemoteMemory<'a> {
    /// The memory of `process`.
    pub fn of(process: &'a Process) -> Self {
        RemoteMemory { process, file: None, remote: Vec::new() }
    }

    /// Reads pieces by one system call. Returns the number of bytes that have been copied. They can end within a piece, of
    /// which only the first pages can be read.
    fn read_vector(&mut self, pieces: &[Piece], buffer: &mut [u8]) -> io::Result<usize> {
        self.remote.clear();
        self.remote.extend(pieces.iter().map(|piece| libc::iovec {
            iov_base: std::ptr::without_provenance_mut(piece.address as usize),
            iov_len: piece.length,
        }));
        let local = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
        let (remote, count) = (self.remote.as_ptr(), self.remote.len() as libc::c_ulong);
        // SAFETY: the kernel writes only to the buffer, which is as long as it is said to be. The remote addresses are
        // not ours, and need not be valid.
        let read = unsafe { libc::process_vm_readv(self.process.pid(), &raw const local, 1, remote, count, 0) };
        match usize::try_from(read) {
            Ok(read) => Ok(read),
            Err(_) => match io::Error::last_os_error() {
                // Not even the first piece.
                error if error.raw_os_error() == Some(libc::EFAULT) => Ok(0),
                error => Err(error),
            },
        }
    }

    /// Reads pieces from `/proc/PID/mem`. Returns the number of pieces before the first that cannot be read.
    fn read_file(file: &File, pieces: &[Piece], buffer: &mut [u8]) -> io::Result<usize> {
        let mut rest = buffer;
        for (nth, piece) in pieces.iter().enumerate() {
            let (place, after) = rest.split_at_mut(piece.length);
            match file.read_exact_at(place, piece.address) {
                Ok(()) => rest = after,
                // EIO: a page that does not exist. EINVAL: an address of 2^63 or more, which is no offset. EFAULT: what
                // process_vm_readv(2) says of both.
                Err(error) if matches!(error.raw_os_error(), Some(libc::EIO | libc::EFAULT | libc::EINVAL)) => {
                    return Ok(nth);
                }
                // Nothing was read: the process has no memory any more.
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(nth),
                Err(error) => return Err(error),
            }
        }
        Ok(pieces.len())
    }
}

impl Memory for RemoteMemory<'_> {
    type Error = Error;

    fn read(&mut self, pieces: &[Piece], buffer: &mut [u8]) -> Result<usize, Error> {
        if self.file.is_none() {
            match self.read_vector(pieces, buffer) {
                Ok(mut read) => {
                    let is_whole = |piece: &&Piece| {
                        let is_whole = read >= piece.length;
                        read = read.saturating_sub(piece.length);
                        is_whole
                    };
                    return Ok(pieces.iter().take_while(is_whole).count());
                }
                Err(error) if matches!(error.raw_os_error(), Some(libc::EPERM | libc::ENOSYS)) => {
                    self.file = Some(self.process.open(c"mem")?);
                }
                Err(error) => return Err(Error::of_process(error, || self.process.path(c"mem"))),
            }
        }
        let file = self.file.as_ref().expect("it has been opened");
        Self::read_file(file, pieces, buffer).map_err(|error| Error::of_process(error, || self.process.path(c"mem")))
    }
}
