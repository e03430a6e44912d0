//! One process, pinned so that nothing it does can make us report another one's memory, or half of its own.
//!
//! A pid is a name, and the kernel gives names again. [`Process::pin`] therefore opens the directory `/proc/PID` once and
//! reaches every file through that descriptor: when the process is gone, the descriptor leads nowhere, whichever process
//! has the pid by then. [`Process::read`] checks after a file was read that the process is still the same, and alive
//! ([`Process::revalidate`]). That is what keeps half-read files out: the smaps of a process that dies while it is read ends
//! early but cleanly, as if its mappings had been fewer. To check for a zombie is not enough. An exiting process first gives
//! up its address space, which ends its smaps, and becomes a zombie later; meanwhile its state is running. But from the
//! moment at which the file can end early, stat reports a virtual size of 0. An exec gives up the address space too, and
//! leaves the rest as it was, so the program is compared again as well.

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

/// A kernel process identifier.
pub type Pid = i32;

/// A file, whatever it is called.
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
    /// The program that it runs, where we may see that.
    pub(super) program: Option<FileId>,
}

impl Process {
    /// Pins any process.
    pub(super) fn pin(root: &Root, pid: Pid) -> Result<Self, Error> {
        let path = root.path(format!("/proc/{pid}"));
        let directory = OpenOptions::new().read(true).custom_flags(libc::O_PATH | libc::O_DIRECTORY).open(&path);
        let directory = directory.map_err(|source| hidden(pid, Error::of_process(source, || path.clone())))?;
        let mut process = Process { pid, directory, path, identity: Identity::default(), program: None };
        let stat = process.open(c"stat").map_err(|error| hidden(pid, error))?;
        process.identity = process.read_identity(stat)?;
        Ok(process)
    }

    /// Its pid.
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// The path of one of the process's files, for messages.
    pub fn path(&self, name: &CStr) -> PathBuf {
        self.path.join(Path::new(OsStr::from_bytes(name.to_bytes())))
    }

    /// Reads the whole of one of the process's files into `buffer`, and proves that it is whole: the process is still the
    /// same, and alive. Calls `check_interrupts`, which may unwind, after each read.
    pub fn read(&self, name: &CStr, buffer: &mut Buffer, check_interrupts: impl FnMut()) -> Result<(), Error> {
        self.read_unchecked(name, buffer, check_interrupts)?;
        self.revalidate()
    }

    /// As [`Process::read`], but proves nothing: for a caller that calls [`Process::revalidate`] after the last of several
    /// files.
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

    /// Reads several small files into `buffer`, each with a single read(2), which returns all that the kernel prints at once.
    /// Proves nothing: the last of the files must.
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
        // It stands where the arguments were, and is filled up with blanks or zero bytes.
        let is_padding = |byte: &u8| matches!(byte, 0 | b' ');
        let text = buffer.text();
        Ok(&text[..text.iter().rposition(|byte| !is_padding(byte)).map_or(0, |last| last + 1)])
    }

    /// When the process was started, in microseconds since the epoch, for a system that was started at `boot_time`. As exact as
    /// the kernel's clock ticks, and the same in each call unless the system's clock is set.
    pub(super) fn start_time(&self, boot_time: i64) -> i64 {
        let start = boot_time.saturating_add((self.identity.start_time as i64).saturating_mul(TICK));
        // Rounded, for what is less than a tick comes from reading two clocks one after the other.
        start.saturating_add(TICK / 2).div_euclid(TICK).saturating_mul(TICK)
    }

    /// Proves that the process is still the same, and alive.
    pub(super) fn revalidate(&self) -> Result<(), Error> {
        let is_same = self.read_identity(self.open(c"stat")?)? == self.identity;
        let runs_the_same = match self.program {
            Some(program) => self.file_id(c"exe")? == program,
            None => true,
        };
        if is_same && runs_the_same { Ok(()) } else { Err(Error::Gone) }
    }

    /// The identity of the process at this moment, from its stat.
    fn read_identity(&self, mut file: File) -> Result<Identity, Error> {
        // 52 numbers of up to 20 digits and a name of up to 64 bytes fit.
        let mut stat = [0; 2048];
        let length =
            buffer::read(&mut file, &mut stat).map_err(|source| Error::of_process(source, || self.path(c"stat")))?;
        match Identity::parse(&stat[..length]) {
            Ok(Some(identity)) => Ok(identity),
            Ok(None) => Err(Error::Gone),
            Err(malformed) => Err(self.malformed(c"stat", malformed)),
        }
    }

    /// The error of one of the process's files.
    pub(super) fn malformed(&self, name: &CStr, detail: Malformed) -> Error {
        detail.in_file(self.path(name))
    }

    /// The file to which one of the links in the process's directory leads.
    pub(super) fn file_id(&self, name: &CStr) -> Result<FileId, Error> {
        let mut stat = MaybeUninit::uninit();
        // SAFETY: the descriptor is open for as long as `self.directory` lives, `name` ends with a NUL, and `stat` is ours to fill.
        let failed = unsafe { libc::fstatat(self.directory.as_raw_fd(), name.as_ptr(), stat.as_mut_ptr(), 0) } != 0;
        if failed {
            return Err(Error::of_process(io::Error::last_os_error(), || self.path(name)));
        }
        // SAFETY: fstatat() has not failed, and so has filled it.
        let stat: libc::stat = unsafe { stat.assume_init() };
        Ok(FileId { device: stat.st_dev, inode: stat.st_ino })
    }

    /// Whether the process's user is ours.
    pub(super) fn is_of_our_user(&self) -> Result<bool, Error> {
        // The directory is root's where the process is not dumpable; status has the user itself.
        let mut buffer = Buffer::default();
        let [status] = self.read_small([c"status"], &mut buffer)?;
        let line = fields::lines(status).find_map(|line| line.strip_prefix(b"Uid:"));
        // Real, effective, saved, file system's.
        let effective = line.and_then(|line| line.split(|&byte| byte == b'\t').nth(2)).and_then(fields::decimal);
        // SAFETY: always succeeds.
        Ok(effective == Some(unsafe { libc::geteuid() }.into()))
    }

    /// Opens one of the process's files for reading, through the directory by which it is pinned.
    pub(super) fn open(&self, name: &CStr) -> Result<File, Error> {
        let flags = libc::O_RDONLY | libc::O_CLOEXEC;
        // SAFETY: the descriptor is open for as long as `self.directory` lives, and `name` ends with a NUL.
        let fd = unsafe { libc::openat(self.directory.as_raw_fd(), name.as_ptr(), flags) };
        if fd < 0 {
            return Err(Error::of_process(io::Error::last_os_error(), || self.path(name)));
        }
        // SAFETY: openat() has just opened it, so nobody else owns it.
        Ok(unsafe { File::from_raw_fd(fd) })
    }
}

/// Why a process could not even be pinned. With the mount option hidepid=1, /proc denies that to a user who may not trace the
/// process; with hidepid=2, it pretends that there is no such process. A process of our user can be signalled all the same.
/// Another user's is not ours to report.
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
