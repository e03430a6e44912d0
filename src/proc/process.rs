//! One process, held so that nothing it does can make us report another one's memory, or half of its own.
//!
//! A pid is a name, and the kernel gives names again. [`Family::open`] therefore opens the directory `/proc/PID` once and
//! reaches every file through that descriptor: when the process is gone, the descriptor leads nowhere, whoever has the
//! pid by then. What it leads to is checked to be one of ours, and [`Process::read`] checks again after a file was read.
//! That second look is what keeps half-read files out: the smaps of a process that dies while it is read ends early but
//! cleanly, as if its mappings had been fewer. To look for a zombie is not enough. An exiting process first gives up its
//! address space, which ends its smaps, and becomes a zombie later; meanwhile it is running, by its state. But from the
//! moment on at which the file can end early, stat reports a virtual size of 0. An exec gives up the address space, too, and
//! leaves the rest as it was, so the program is looked at again.

use std::ffi::{CStr, OsStr};
use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, Read};
use std::iter;
use std::mem::{self, MaybeUninit};
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use memchr::memrchr;

use super::kv;

/// What is wrong with a file that we cannot make sense of.
pub const MALFORMED: &str = "A line is not in the form that proc(5) describes.";

/// A kernel process identifier.
pub type Pid = i32;

/// Why a process gave no data.
#[derive(Debug)]
pub enum Error {
    /// It has exited, or it is none of ours: there is nothing to report about it.
    Gone,
    /// It is there, but the kernel does not let us read it.
    Denied,
    /// Something else has failed. It says nothing about the process.
    Failure(Failure),
}

/// What could not be opened or read, and why: our own or the system's failure.
#[derive(Debug)]
pub struct Failure {
    /// The file.
    pub path: PathBuf,
    /// The reason.
    pub source: io::Error,
}

impl Error {
    /// Tells a process that went away or is closed to us from a failure of our own.
    pub(super) fn of(source: io::Error, path: impl FnOnce() -> PathBuf) -> Self {
        match source.raw_os_error() {
            // ENOENT by name; ESRCH through a held directory, or from a read.
            Some(libc::ENOENT | libc::ESRCH) => Error::Gone,
            Some(libc::EACCES | libc::EPERM) => Error::Denied,
            _ => Error::Failure(Failure { path: path(), source }),
        }
    }
}

/// A parent and its children, as far as they run the parent's program. We are one of them.
///
/// The program tells children apart from strangers: a parent that is PID 1 of a container inherits every orphan there,
/// and a child may run a shell command.
#[derive(Debug)]
pub struct Family {
    parent: Pid,
    program: FileId,
    /// When the system was started, in microseconds since the epoch.
    boot_time: i64,
}

/// Which file it is, by whatever name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct FileId {
    device: u64,
    inode: u64,
}

impl From<Metadata> for FileId {
    fn from(metadata: Metadata) -> Self {
        FileId { device: metadata.dev(), inode: metadata.ino() }
    }
}

impl Family {
    /// The family of `parent`, which runs the same program as we do.
    pub fn of(parent: Pid) -> Result<Self, Failure> {
        let path = "/proc/self/exe";
        match fs::metadata(path) {
            Ok(metadata) => Ok(Family { parent, program: metadata.into(), boot_time: boot_time() }),
            Err(source) => Err(Failure { path: path.into(), source }),
        }
    }

    /// Takes hold of a process of the family. [`Error::Gone`] if `pid` is not one.
    pub fn open(&self, pid: Pid) -> Result<Process, Error> {
        let mut process = self.hold(pid)?;
        let related = pid == self.parent || process.identity.parent == self.parent;
        if related && self.runs_our_program(&mut process)? { Ok(process) } else { Err(Error::Gone) }
    }

    /// Takes hold of any process.
    fn hold(&self, pid: Pid) -> Result<Process, Error> {
        let path = PathBuf::from(format!("/proc/{pid}"));
        let directory = OpenOptions::new().read(true).custom_flags(libc::O_PATH | libc::O_DIRECTORY).open(&path);
        let directory = directory.map_err(|source| unseen(pid, Error::of(source, || path.clone())))?;
        let mut process =
            Process { directory, path, identity: Identity::default(), program: None, boot_time: self.boot_time };
        let stat = process.open(c"stat", libc::O_RDONLY).map_err(|error| unseen(pid, error))?;
        process.identity = process.look(stat)?;
        Ok(process)
    }

    /// The parent, and its children, of whatever program: from the kernel's list, or from a look at every process where the
    /// kernel has none. One that comes or goes meanwhile may be in it or not. Calls `between`, which may unwind, at short intervals.
    pub fn pids(&self, buffer: &mut Buffer, mut between: impl FnMut()) -> Result<Vec<Pid>, Failure> {
        let path = PathBuf::from(format!("/proc/{0}/task/{0}/children", self.parent));
        buffer.clear();
        let read = File::open(&path).and_then(|mut file| buffer.append(&mut file, &mut between));
        let children = match read.map_err(|source| Error::of(source, || path)) {
            Ok(()) => children(buffer.text()),
            Err(Error::Failure(failure)) => return Err(failure),
            // Without the kernel's list, or a look at the parent's.
            Err(_) => self.search(between)?,
        };
        Ok(iter::once(self.parent).chain(children).collect())
    }

    /// Looks at every process for children of the parent.
    fn search(&self, mut between: impl FnMut()) -> Result<Vec<Pid>, Failure> {
        let failure = |source| Failure { path: "/proc".into(), source };
        let mut children = Vec::new();
        for entry in fs::read_dir("/proc").map_err(failure)? {
            between();
            let name = entry.map_err(failure)?.file_name();
            let Some(pid) = kv::decimal(name.as_bytes()).and_then(|pid| Pid::try_from(pid).ok()) else { continue };
            match self.hold(pid) {
                Ok(process) if process.identity.parent == self.parent => children.push(pid),
                Ok(_) | Err(Error::Gone | Error::Denied) => {}
                Err(Error::Failure(failure)) => return Err(failure),
            }
        }
        Ok(children)
    }

    /// Whether the process runs the family's program. A process of our user whose program we may not see counts as one that does:
    /// it is a child of the parent, and not to be able to read it is worth a word to the user.
    fn runs_our_program(&self, process: &mut Process) -> Result<bool, Error> {
        match process.file_id(c"exe") {
            Ok(program) => {
                process.program = Some(program);
                Ok(program == self.program)
            }
            // Not dumpable, or another user's: a stranger that a container's PID 1 has inherited.
            Err(Error::Denied) => Ok(process.is_ours()?),
            Err(error) => Err(error),
        }
    }
}

/// The pids in the kernel's list of children.
fn children(list: &[u8]) -> Vec<Pid> {
    list.split(|&byte| byte == b' ').filter_map(|word| Pid::try_from(kv::decimal(word)?).ok()).collect()
}

/// Why a process cannot even be looked at. With the mount option hidepid=1, /proc denies that to who may not trace the process;
/// with hidepid=2, it pretends that there is none. One of our user's is ours to signal all the same. Another user's is a
/// stranger.
fn unseen(pid: Pid, error: Error) -> Error {
    match error {
        Error::Gone | Error::Denied => {
            // SAFETY: the signal 0 only asks whether one could be sent.
            let exists = pid > 0 && unsafe { libc::kill(pid, 0) } == 0;
            if exists { Error::Denied } else { Error::Gone }
        }
        Error::Failure(_) => error,
    }
}

/// What `/proc/PID/stat` says about who a process is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Identity {
    parent: Pid,
    /// In clock ticks since boot.
    start_time: u64,
}

impl Identity {
    /// Parses stat. Refuses a process that has exited or is past giving up its address space, and a thread, which has an
    /// unlisted directory in `/proc` too, but no signal to send to a parent.
    fn parse(stat: &[u8]) -> Option<Result<Self, Error>> {
        // The second field is the program's name in parentheses, and the name may contain anything, parentheses too.
        let fields = stat.get(memrchr(b')', stat)? + 1..)?.trim_ascii();
        let mut fields = fields.split(|&byte| byte == b' ');
        // Numbered as in proc(5), where the name is field 2.
        let state = fields.next()?;
        let parent = Pid::try_from(kv::decimal(fields.next()?)?).ok()?;
        let start_time = kv::decimal(fields.nth(22 - 5)?)?;
        let virtual_size = fields.next()?;
        let exit_signal = fields.nth(38 - 24)?;
        let is_gone = matches!(state, b"Z" | b"X" | b"x") || virtual_size == b"0" || exit_signal == b"-1";
        Some(if is_gone { Err(Error::Gone) } else { Ok(Identity { parent, start_time }) })
    }
}

/// A process, held by its directory in `/proc`.
#[derive(Debug)]
pub struct Process {
    directory: File,
    path: PathBuf,
    identity: Identity,
    /// What it runs, where that is to be seen.
    program: Option<FileId>,
    boot_time: i64,
}

impl Process {
    /// Where the process's file is, for messages.
    pub fn path(&self, name: &CStr) -> PathBuf {
        self.path.join(Path::new(OsStr::from_bytes(name.to_bytes())))
    }

    /// Reads the whole of one of the process's files into `buffer`, and proves that it is whole: the process is still the
    /// same, and alive. `between_reads` is called after each read, and may unwind.
    pub fn read(&self, name: &CStr, buffer: &mut Buffer, between_reads: impl FnMut()) -> Result<(), Error> {
        buffer.clear();
        self.append(name, buffer, between_reads)?;
        self.look_again()
    }

    /// Reads several small files into `buffer`, each with a single read(2), which gives all of what the kernel prints at once.
    /// Proves nothing: the last of the files must.
    pub(super) fn read_small<'b, const N: usize>(
        &self,
        names: [&CStr; N],
        buffer: &'b mut Buffer,
    ) -> Result<[&'b [u8]; N], Error> {
        buffer.clear();
        let mut ends = [0; N];
        for (end, name) in ends.iter_mut().zip(names) {
            let mut file = self.open(name, libc::O_RDONLY)?;
            buffer.append_once(&mut file).map_err(|source| Error::of(source, || self.path(name)))?;
            *end = buffer.length;
        }
        let mut start = 0;
        Ok(ends.map(|end| &buffer.text()[mem::replace(&mut start, end)..end]))
    }

    /// What the process calls itself.
    pub fn title<'b>(&self, buffer: &'b mut Buffer) -> Result<&'b [u8], Error> {
        self.read(c"cmdline", buffer, || ())?;
        // It stands where the arguments were, and is filled up with blanks or zero bytes.
        let is_padding = |byte: &u8| matches!(byte, 0 | b' ');
        let text = buffer.text();
        Ok(&text[..text.iter().rposition(|byte| !is_padding(byte)).map_or(0, |last| last + 1)])
    }

    /// When the process was started, in microseconds since the epoch. As exact as the kernel's clock ticks, and the same in each
    /// call unless the system's clock is set.
    pub fn start_time(&self) -> i64 {
        let tick = 1_000_000 / TICKS_PER_SECOND;
        let start = self.boot_time.saturating_add((self.identity.start_time as i64).saturating_mul(tick));
        // What is below a tick comes from reading two clocks one after the other.
        start.saturating_add(tick / 2).div_euclid(tick).saturating_mul(tick)
    }

    /// Reads one of the process's files behind what is in the buffer.
    fn append(&self, name: &CStr, buffer: &mut Buffer, between_reads: impl FnMut()) -> Result<(), Error> {
        let mut file = self.open(name, libc::O_RDONLY)?;
        buffer.append(&mut file, between_reads).map_err(|source| Error::of(source, || self.path(name)))
    }

    /// Proves that the process is still the same, and alive.
    pub(super) fn look_again(&self) -> Result<(), Error> {
        let stat = self.open(c"stat", libc::O_RDONLY)?;
        let is_same = self.look(stat)? == self.identity;
        let runs_the_same = match self.program {
            Some(program) => self.file_id(c"exe")? == program,
            None => true,
        };
        if is_same && runs_the_same { Ok(()) } else { Err(Error::Gone) }
    }

    /// Who the process is at this moment, by its stat.
    fn look(&self, mut file: File) -> Result<Identity, Error> {
        // 52 numbers of up to 20 digits and a name of up to 64 bytes fit.
        let mut stat = [0; 2048];
        let length = read(&mut file, &mut stat).map_err(|source| Error::of(source, || self.path(c"stat")))?;
        Identity::parse(&stat[..length]).unwrap_or_else(|| Err(self.malformed(c"stat")))
    }

    /// The failure of a file that we cannot make sense of.
    pub(super) fn malformed(&self, name: &CStr) -> Error {
        let source = io::Error::new(io::ErrorKind::InvalidData, MALFORMED);
        Error::Failure(Failure { path: self.path(name), source })
    }

    /// Which file one of the links in the process's directory leads to.
    fn file_id(&self, name: &CStr) -> Result<FileId, Error> {
        let mut stat = MaybeUninit::uninit();
        // SAFETY: the descriptor is open for as long as `self.directory` lives, `name` ends with a NUL, and `stat` is ours to fill.
        let failed = unsafe { libc::fstatat(self.directory.as_raw_fd(), name.as_ptr(), stat.as_mut_ptr(), 0) } != 0;
        if failed {
            return Err(Error::of(io::Error::last_os_error(), || self.path(name)));
        }
        // SAFETY: fstatat() has not failed, and so has filled it.
        let stat: libc::stat = unsafe { stat.assume_init() };
        Ok(FileId { device: stat.st_dev, inode: stat.st_ino })
    }

    /// Whether the process is our user's.
    fn is_ours(&self) -> Result<bool, Error> {
        // The directory is root's where the process is not dumpable; status has the user itself.
        let mut buffer = Buffer::default();
        let [status] = self.read_small([c"status"], &mut buffer)?;
        let line = status.split(|&byte| byte == b'\n').find_map(|line| line.strip_prefix(b"Uid:"));
        // Real, effective, saved, file system's.
        let effective = line.and_then(|line| line.split(|&byte| byte == b'\t').nth(2)).and_then(kv::decimal);
        // SAFETY: always succeeds.
        Ok(effective == Some(unsafe { libc::geteuid() }.into()))
    }

    /// Opens one of the process's files, by way of the directory that we hold.
    pub(super) fn open(&self, name: &CStr, flags: i32) -> Result<File, Error> {
        // SAFETY: the descriptor is open for as long as `self.directory` lives, and `name` ends with a NUL.
        let fd = unsafe { libc::openat(self.directory.as_raw_fd(), name.as_ptr(), flags | libc::O_CLOEXEC) };
        if fd < 0 {
            return Err(Error::of(io::Error::last_os_error(), || self.path(name)));
        }
        // SAFETY: openat() has just opened it, so nobody else owns it.
        Ok(unsafe { File::from_raw_fd(fd) })
    }
}

/// What the kernel divides a second into for users, on every architecture that we support.
const TICKS_PER_SECOND: i64 = 100;

/// When the system was started, in microseconds since the epoch.
fn boot_time() -> i64 {
    let now = |clock| {
        let mut time = MaybeUninit::uninit();
        // SAFETY: the time is ours to fill. Both clocks are there since Linux 2.6.39, so it is filled.
        unsafe { libc::clock_gettime(clock, time.as_mut_ptr()) };
        // SAFETY: as above.
        let time: libc::timespec = unsafe { time.assume_init() };
        time.tv_sec * 1_000_000 + time.tv_nsec / 1000
    };
    let look = || {
        let (before, real, after) = (now(libc::CLOCK_BOOTTIME), now(libc::CLOCK_REALTIME), now(libc::CLOCK_BOOTTIME));
        (after - before, real - before.midpoint(after))
    };
    // The best of a few, for we may have to wait for a processor between the clocks.
    let mut best = look();
    for _ in 0..10 {
        if best.0 < 1000 {
            break;
        }
        best = best.min(look());
    }
    best.1
}

/// One read(2), repeated only if a signal came first.
fn read(file: &mut File, space: &mut [u8]) -> io::Result<usize> {
    loop {
        match file.read(space) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

/// Room for the whole of one file, used again for the next. It grows to the largest file and never shrinks.
#[derive(Debug, Default)]
pub struct Buffer {
    bytes: Vec<u8>,
    length: usize,
}

impl Buffer {
    /// What read(2) is always offered. The kernel gives about a page a call, but a record with a long path is larger, and
    /// is consistent in itself only if it is read in one go: 4096 bytes of path, each escaped to four, and its keys.
    const LEAST_SPACE: usize = 32 * 1024;

    /// How large the buffer is to begin with: any small file, and an idle backend's maps. More than this the allocator would
    /// take from the kernel anew, page by page, in each call.
    const INITIAL: usize = 64 * 1024;

    /// What was read last.
    pub fn text(&self) -> &[u8] {
        &self.bytes[..self.length]
    }

    /// Forgets what was read.
    fn clear(&mut self) {
        self.length = 0;
    }

    /// Reads a file to its end, behind what was read before.
    fn append(&mut self, file: &mut File, mut between_reads: impl FnMut()) -> io::Result<()> {
        while self.append_once(file)? > 0 {
            between_reads();
        }
        Ok(())
    }

    /// Reads once, behind what was read before, and says how much came.
    fn append_once(&mut self, file: &mut File) -> io::Result<usize> {
        self.make_space()?;
        let count = read(file, &mut self.bytes[self.length..])?;
        self.length += count;
        Ok(count)
    }

    /// Grows the buffer if a read could need more than is left. To run out of memory is an error here, not the abort that
    /// a plain `Vec` would make of it.
    fn make_space(&mut self) -> io::Result<()> {
        if self.bytes.len() - self.length < Self::LEAST_SPACE {
            let size = (2 * self.bytes.len()).max(Self::INITIAL);
            self.bytes
                .try_reserve_exact(size - self.bytes.len())
                .map_err(|_| io::Error::from_raw_os_error(libc::ENOMEM))?;
            self.bytes.resize(size, 0);
        }
        Ok(())
    }
}

#[cfg(any(test, feature = "oracle"))]
pub mod naive;
#[cfg(test)]
pub(super) mod tests;
