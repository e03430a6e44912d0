//! A process, pinned so that we never report another process's memory, or only half of its own.
//!
//! A pid can be reused. [`Process::pin`] therefore opens the directory `/proc/PID` once, and every file is opened
//! through that descriptor. After the process has exited, files can no longer be opened through it, even if another
//! process has the pid by then. After each file, [`Process::read`] checks that the process is still the same and alive
//! ([`Process::revalidate`]), because the smaps of a process that exits while it is read ends early without an error,
//! as if the process had fewer mappings. It is not enough to check for a zombie: an exiting process gives up its
//! address space first, which ends its smaps, and becomes a zombie later. In between, its state is still running, but
//! stat already reports a virtual size of 0. An exec also gives up the address space, but keeps the pid and the start
//! time, so the program is compared as well.

use std::ffi::{CStr, OsStr};
use std::fs::{File, Metadata, OpenOptions};
use std::io;
use std::mem::{self, MaybeUninit};
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::buffer::{self, Buffer};
use super::error::{Error, Malformed};
use super::fields;
use super::identity::Identity;
use super::root::Root;
use super::system::TICK;

/// A process identifier.
pub type Pid = i32;

/// Identifies a file, independent of its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FileId {
    pub device: u64,
    pub inode: u64,
}

impl From<Metadata> for FileId {
    fn from(metadata: Metadata) -> Self {
        FileId { device: metadata.dev(), inode: metadata.ino() }
    }
}

/// A process, pinned by its directory in `/proc`.
#[derive(Debug)]
pub struct Process {
    pid: Pid,
    directory: File,
    path: PathBuf,
    pub(super) identity: Identity,
    /// The program that the process runs, if we may see it.
    pub(super) program: Option<FileId>,
}

impl Process {
    /// Pins a process, whether it is in the process tree or not.
    pub(super) fn pin(root: &Root, pid: Pid) -> Result<Self, Error> {
        let path = root.path(format!("/proc/{pid}"));
        let directory = OpenOptions::new().read(true).custom_flags(libc::O_PATH | libc::O_DIRECTORY).open(&path);
        let directory = directory.map_err(|source| hidden(pid, Error::of_process(source, || path.clone())))?;
        let mut process = Process { pid, directory, path, identity: Identity::default(), program: None };
        let stat = process.open(c"stat").map_err(|error| hidden(pid, error))?;
        process.identity = process.read_identity(stat)?;
        Ok(process)
    }

    /// The pid.
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// The path of one of the process's files, for messages.
    pub fn path(&self, name: &CStr) -> PathBuf {
        self.path.join(Path::new(OsStr::from_bytes(name.to_bytes())))
    }

    /// Reads a whole file of the process into `buffer`, and checks that the process is still the same and alive, so
    /// that the content is complete. Calls `check_interrupts`, which may unwind, after each read.
    pub fn read(&self, name: &CStr, buffer: &mut Buffer, check_interrupts: impl FnMut()) -> Result<(), Error> {
        self.read_unchecked(name, buffer, check_interrupts)?;
        self.revalidate()
    }

    /// Like [`Process::read`], but without the check. The caller must call [`Process::revalidate`] after reading the
    /// last of several files.
    pub(super) fn read_unchecked(
        &self,
        name: &CStr,
        buffer: &mut Buffer,
        check_interrupts: impl FnMut(),
    ) -> Result<(), Error> {
        buffer.clear();
        let mut file = self.open(name)?;
        buffer.append(&mut file, check_interrupts).map_err(|source| Error::of_process(source, || self.path(name)))
    }

    /// Reads several small files into `buffer`, each with a single read(2), which returns everything that the kernel
    /// prints at once. Does not check the process: the caller must do that.
    pub(super) fn read_small<'b, const N: usize>(
        &self,
        names: [&CStr; N],
        buffer: &'b mut Buffer,
    ) -> Result<[&'b [u8]; N], Error> {
        buffer.clear();
        let mut ends = [0; N];
        for (end, name) in ends.iter_mut().zip(names) {
            let mut file = self.open(name)?;
            buffer.append_once(&mut file).map_err(|source| Error::of_process(source, || self.path(name)))?;
            *end = buffer.text().len();
        }
        let mut start = 0;
        Ok(ends.map(|end| &buffer.text()[mem::replace(&mut start, end)..end]))
    }

    /// The process's title, as ps shows it.
    pub fn title<'b>(&self, buffer: &'b mut Buffer) -> Result<&'b [u8], Error> {
        self.read(c"cmdline", buffer, || ())?;
        // The title overwrites the arguments, and is padded with blanks or zero bytes.
        let is_padding = |byte: &u8| matches!(byte, 0 | b' ');
        let text = buffer.text();
        Ok(&text[..text.iter().rposition(|byte| !is_padding(byte)).map_or(0, |last| last + 1)])
    }

    /// When the process was started, in microseconds since the epoch, if the system was started at `boot_time`. As
    /// exact as the kernel's clock ticks, and the same in each call unless the system's clock is set.
    pub(super) fn start_time(&self, boot_time: i64) -> i64 {
        let start = boot_time.saturating_add((self.identity.start_time as i64).saturating_mul(TICK));
        // Round to a tick: differences below that come from reading two clocks one after the other.
        start.saturating_add(TICK / 2).div_euclid(TICK).saturating_mul(TICK)
    }

    /// Checks that the process is still the same and alive.
    pub fn revalidate(&self) -> Result<(), Error> {
        let is_same = self.read_identity(self.open(c"stat")?)? == self.identity;
        let runs_the_same = match self.program {
            Some(program) => self.file_id(c"exe")? == program,
            None => true,
        };
        if is_same && runs_the_same { Ok(()) } else { Err(Error::Gone) }
    }

    /// The current identity of the process, from its stat.
    fn read_identity(&self, mut file: File) -> Result<Identity, Error> {
        // Large enough for 52 numbers of up to 20 digits and a name of up to 64 bytes.
        let mut stat = [0; 2048];
        let length =
            buffer::read(&mut file, &mut stat).map_err(|source| Error::of_process(source, || self.path(c"stat")))?;
        match Identity::parse(&stat[..length]) {
            Ok(Some(identity)) => Ok(identity),
            Ok(None) => Err(Error::Gone),
            Err(malformed) => Err(self.malformed(c"stat", malformed)),
        }
    }

    /// The error for a file of the process that could not be parsed.
    pub(super) fn malformed(&self, name: &CStr, detail: Malformed) -> Error {
        detail.in_file(self.path(name))
    }

    /// The target of a link in the process's directory.
    pub(super) fn file_id(&self, name: &CStr) -> Result<FileId, Error> {
        let mut stat = MaybeUninit::uninit();
        // SAFETY: the descriptor is open as long as `self.directory` lives, `name` ends with a NUL, and `stat` is ours
        // to fill.
        let failed = unsafe { libc::fstatat(self.directory.as_raw_fd(), name.as_ptr(), stat.as_mut_ptr(), 0) } != 0;
        if failed {
            return Err(Error::of_process(io::Error::last_os_error(), || self.path(name)));
        }
        // SAFETY: fstatat() has not failed, and so has filled it.
        let stat: libc::stat = unsafe { stat.assume_init() };
        Ok(FileId { device: stat.st_dev, inode: stat.st_ino })
    }

    /// Whether the process belongs to our user.
    pub(super) fn is_of_our_user(&self) -> Result<bool, Error> {
        // If the process is not dumpable, root owns its directory, but status still shows the user.
        let mut buffer = Buffer::default();
        let [status] = self.read_small([c"status"], &mut buffer)?;
        let line = fields::lines(status).find_map(|line| line.strip_prefix(b"Uid:"));
        // The fields are the real, effective, saved and file system user.
        let effective = line.and_then(|line| line.split(|&byte| byte == b'\t').nth(2)).and_then(fields::decimal);
        // SAFETY: always succeeds.
        Ok(effective == Some(unsafe { libc::geteuid() }.into()))
    }

    /// Opens a file of the process for reading, through the directory by which the process is pinned.
    pub(super) fn open(&self, name: &CStr) -> Result<File, Error> {
        let flags = libc::O_RDONLY | libc::O_CLOEXEC;
        // SAFETY: the descriptor is open as long as `self.directory` lives, and `name` ends with a NUL.
        let fd = unsafe { libc::openat(self.directory.as_raw_fd(), name.as_ptr(), flags) };
        if fd < 0 {
            return Err(Error::of_process(io::Error::last_os_error(), || self.path(name)));
        }
        // SAFETY: openat() has just opened it, so nobody else owns it.
        Ok(unsafe { File::from_raw_fd(fd) })
    }
}

/// The error for a process that could not be pinned. If /proc is mounted with hidepid=1, the kernel denies access to
/// processes that the user may not trace; with hidepid=2, it reports that they do not exist. But a process of our user
/// can still be signalled, so it exists and is denied. Other users' processes count as gone, because we do not report
/// them.
fn hidden(pid: Pid, error: Error) -> Error {
    match error {
        Error::Gone | Error::Denied => {
            // SAFETY: the signal 0 only asks whether one could be sent.
            let exists = pid > 0 && unsafe { libc::kill(pid, 0) } == 0;
            if exists { Error::Denied } else { Error::Gone }
        }
        error => error,
    }
}

#[cfg(test)]
mod tests;
