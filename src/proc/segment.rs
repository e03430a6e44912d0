//! Shared memory segments: which ones exist, which processes are attached, how much of each is resident.
//!
//! Segments are found in the maps of the attached processes, and each counts once. The kernel is asked how much of the
//! whole segment is resident: by mincore(2), which looks up the pages in the mapped object itself, or through the
//! system's table of System V segments. smaps would report it again for each process, and only the pages that this
//! process has touched.

use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::ptr;

use super::category::{Category, Classifier};
use super::error::{Error, Malformed};
use super::fields;
use super::maps::{self, Header};
use super::process::Pid;
use super::root::{Root, read_if_visible};
use super::system::page_size;

const SYSTEM_V: &str = "/proc/sysvipc/shm";

/// A segment of shared memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Whether it is the main segment.
    pub is_main: bool,
    /// The kernel's name for the segment.
    pub name: Vec<u8>,
    /// The inode. For a System V segment, that is its identifier.
    pub inode: Option<u64>,
    /// The size of its largest mapping, in bytes.
    pub size: u64,
    /// The attached processes.
    pub pids: Vec<Pid>,
    /// The addresses at which it is mapped in the process that was found first. The main segment has the same in each
    /// process.
    range: Range<u64>,
}

/// How much of a segment is resident.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Residency {
    /// The number of bytes.
    Bytes(u64),
    /// The segment no longer exists.
    Gone,
    /// The kernel does not say: the segment no longer has a name, or its file is denied.
    Unknown,
}

impl Residency {
    /// The number of bytes: none if the segment is gone. `None` if it is unknown.
    pub fn bytes(self) -> Option<u64> {
        match self {
            Residency::Bytes(bytes) => Some(bytes),
            Residency::Gone => Some(0),
            Residency::Unknown => None,
        }
    }
}

/// A mapping of a segment in a process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attachment {
    is_main: bool,
    name: Vec<u8>,
    inode: Option<u64>,
    range: Range<u64>,
}

impl Attachment {
    /// The attachment, if the mapping is one of a segment.
    pub fn of(mapping: &Header<'_>, range: &Range<u64>, classifier: &Classifier) -> Option<Self> {
        if !mapping.permissions.ends_with(b"s") {
            return None;
        }
        let is_main = range.contains(&classifier.in_main_segment);
        // Ignore the small System V segment that guards the data directory.
        let is_segment = is_main || classifier.classify(mapping) == Category::DynamicSharedMemory;
        is_segment.then(|| Attachment {
            is_main,
            name: mapping.path.to_vec(),
            inode: mapping.inode,
            range: range.clone(),
        })
    }

    /// All attachments in a process's maps.
    pub fn all(maps: &[u8], classifier: &Classifier) -> Result<Vec<Self>, Malformed> {
        let mut attachments = Vec::new();
        for line in maps::lines(maps) {
            let (header, range) = line?;
            attachments.extend(Self::of(&header, &range, classifier));
        }
        Ok(attachments)
    }
}

/// Adds the attachments of a process to the segments.
pub fn attach(segments: &mut Vec<Segment>, pid: Pid, attachments: impl IntoIterator<Item = Attachment>) {
    for Attachment { is_main, name, inode, range } in attachments {
        let size = range.end.saturating_sub(range.start);
        let known = segments
            .iter_mut()
            .find(|segment| segment.is_main == is_main && segment.inode == inode && segment.name == name);
        match known {
            None => segments.push(Segment { is_main, name, inode, size, pids: vec![pid], range }),
            Some(segment) => {
                segment.size = segment.size.max(size);
                if segment.pids.last() != Some(&pid) {
                    segment.pids.push(pid);
                }
            }
        }
    }
}

impl Segment {
    /// Whether the segment is on huge pages. Postgres does not create System V segments on huge pages.
    pub fn is_huge(&self) -> bool {
        self.name.starts_with(b"/anon_hugepage")
    }

    /// How much of the segment is resident. Calls `check_interrupts`, which may unwind, at short intervals.
    pub fn residency(&self, root: &Root, check_interrupts: impl FnMut()) -> Result<Residency, Error> {
        let name = OsStr::from_bytes(&self.name);
        if self.is_huge() {
            // mincore() would count only our own pages. Huge pages are never swapped, and are reserved when they are
            // mapped.
            Ok(Residency::Bytes(self.size))
        } else if self.is_main {
            let resident = resident_in(&self.range, check_interrupts).map(Residency::Bytes);
            resident.map_err(|source| Error::Failed { path: "/proc/self/maps".into(), source })
        } else if self.name.starts_with(b"/SYSV") {
            let path = root.path(SYSTEM_V);
            // The kernel may be built without this table, or deny it.
            let table = read_if_visible(&path)?;
            Ok(table.zip(self.inode).map_or(Residency::Unknown, |(table, id)| residency_of_system_v(&table, id)))
        } else if self.name.ends_with(b" (deleted)") {
            // The segment can be reached only through the mappings of the attached processes.
            Ok(Residency::Unknown)
        } else {
            let path = root.path(name);
            self.residency_of_file(&path, check_interrupts).map_err(|source| Error::Failed { path, source })
        }
    }

    fn residency_of_file(&self, path: &Path, check_interrupts: impl FnMut()) -> io::Result<Residency> {
        let file = match OpenOptions::new().read(true).write(true).custom_flags(libc::O_NOFOLLOW).open(path) {
            Ok(file) => file,
            Err(error) => {
                return match error.raw_os_error() {
                    Some(libc::ENOENT) => Ok(Residency::Gone),
                    Some(libc::EACCES | libc::EPERM | libc::ELOOP) => Ok(Residency::Unknown),
                    _ => Err(error),
                };
            }
        };
        let metadata = file.metadata()?;
        if Some(metadata.ino()) != self.inode || metadata.len() == 0 {
            return Ok(Residency::Gone);
        }
        let mapping = Mapped::new(&file, metadata.len())?;
        resident_in(&mapping.0, check_interrupts).map(Residency::Bytes)
    }
}

/// A mapping of a file, of which no page is accessed.
struct Mapped(Range<u64>);

impl Mapped {
    fn new(file: &File, size: u64) -> io::Result<Self> {
        // SAFETY: a new mapping, at an address that the kernel chooses.
        let start = unsafe {
            libc::mmap(ptr::null_mut(), size as usize, libc::PROT_READ, libc::MAP_SHARED, file.as_raw_fd(), 0)
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = start.addr() as u64;
        Ok(Mapped(start..start + size))
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        let start = ptr::without_provenance_mut(self.0.start as usize);
        // SAFETY: the mapping is ours, and nothing points into it.
        unsafe { libc::munmap(start, (self.0.end - self.0.start) as usize) };
    }
}

/// How much of a range of our own address space is resident, whichever process touched it.
fn resident_in(range: &Range<u64>, mut check_interrupts: impl FnMut()) -> io::Result<u64> {
    const PAGES: usize = 16 * 1024;
    let page_size = page_size();
    let mut states = [0; PAGES];
    let mut resident = 0;
    let mut start = range.start;
    while start < range.end {
        let pages = (range.end - start).div_ceil(page_size).min(PAGES as u64);
        let address = ptr::without_provenance_mut(start as usize);
        // SAFETY: the kernel does not access the range, which need only be mapped, and writes a byte for each page.
        if unsafe { libc::mincore(address, (pages * page_size) as usize, states.as_mut_ptr()) } != 0 {
            return Err(io::Error::last_os_error());
        }
        resident += page_size * states[..pages as usize].iter().map(|state| u64::from(state & 1)).sum::<u64>();
        start += pages * page_size;
        check_interrupts();
    }
    Ok(resident)
}

/// The resident size of a segment in the text of /proc/sysvipc/shm.
fn residency_of_system_v(table: &[u8], id: u64) -> Residency {
    let mut lines = fields::lines(table).map(words);
    let names = lines.next().unwrap_or_default();
    let column = |name: &[u8]| names.iter().position(|&found| found == name);
    let (Some(shmid), Some(rss)) = (column(b"shmid"), column(b"rss")) else { return Residency::Unknown };
    match lines.find(|line| line.get(shmid).and_then(|word| fields::decimal(word)) == Some(id)) {
        Some(line) => line.get(rss).and_then(|word| fields::decimal(word)).map_or(Residency::Unknown, Residency::Bytes),
        None => Residency::Gone,
    }
}

fn words(line: &[u8]) -> Vec<&[u8]> {
    line.split(|&byte| byte == b' ').filter(|word| !word.is_empty()).collect()
}

#[cfg(any(test, feature = "oracle"))]
pub mod naive;

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn classifier() -> Classifier {
        Classifier { program: b"/bin/postgres".to_vec(), in_main_segment: 0x7f00_0000_1000, system_v_key: 0x9b_c041 }
    }

    fn attachments(maps: &[u8]) -> Vec<Attachment> {
        Attachment::all(maps, &classifier()).unwrap()
    }

    const MAPS: &[u8] = b"\
        55a0c0000000-55a0c0001000 r-xp 00000000 fe:01 12                         /bin/postgres\n\
        7e0000000000-7e0000100000 rw-s 00000000 00:17 77                         /dev/shm/PostgreSQL.77\n\
        7e0000200000-7e0000300000 rw-s 00000000 00:01 9                          /SYSV7d2a4c11 (deleted)\n\
        7f0000000000-7f0010000000 rw-s 00000000 00:01 5                          /dev/zero (deleted)\n\
        7f0020000000-7f0020001000 rw-s 00000000 00:01 3                          /SYSV009bc041 (deleted)\n\
        7f0030000000-7f0030001000 rw-p 00000000 00:00 0 \n";

    #[test]
    fn each_segment_is_listed_once_with_its_processes() {
        let mut segments = Vec::new();
        attach(&mut segments, 1, attachments(MAPS));
        let only_main = MAPS.split_inclusive(|&byte| byte == b'\n').nth(3).unwrap();
        attach(&mut segments, 2, attachments(only_main));
        let found: Vec<_> = segments
            .iter()
            .map(|segment| {
                (
                    segment.is_main,
                    segment.name.escape_ascii().to_string(),
                    segment.inode,
                    segment.size,
                    segment.pids.clone(),
                )
            })
            .collect();
        let name = str::to_string;
        assert_eq!(
            found,
            [
                (false, name("/dev/shm/PostgreSQL.77"), Some(77), 0x100000, vec![1]),
                (false, name("/SYSV7d2a4c11 (deleted)"), Some(9), 0x100000, vec![1]),
                (true, name("/dev/zero (deleted)"), Some(5), 0x10000000, vec![1, 2]),
            ]
        );
        assert_eq!(Attachment::all(b"no maps\n", &classifier()), Err(Malformed::LINE));
        assert_eq!(Attachment::all(&MAPS[..100], &classifier()), Err(Malformed::LINE));
    }

    #[test]
    fn residency_of_a_file_that_we_have_not_mapped() {
        let mut file = tempfile::NamedTempFile::new_in("/dev/shm").unwrap();
        let page = page_size();
        file.write_all(&vec![1; 10 * page as usize]).unwrap();
        // A hole in the file.
        file.as_file().set_len(100 * page).unwrap();
        let segment = Segment {
            is_main: false,
            name: file.path().as_os_str().as_bytes().to_vec(),
            inode: Some(file.as_file().metadata().unwrap().ino()),
            size: 100 * page,
            pids: vec![],
            range: 0..0,
        };
        let mut calls = 0;
        assert_eq!(segment.residency(&Root::default(), || calls += 1).unwrap(), Residency::Bytes(10 * page));
        assert_eq!(calls, 1);
        let another = Segment { inode: Some(1), ..segment.clone() };
        assert_eq!(another.residency(&Root::default(), || ()).unwrap(), Residency::Gone);
        drop(file);
        assert_eq!(segment.residency(&Root::default(), || ()).unwrap(), Residency::Gone);
        let name = [segment.name.as_slice(), b" (deleted)"].concat();
        assert_eq!(Segment { name, ..segment }.residency(&Root::default(), || ()).unwrap(), Residency::Unknown);
    }

    #[test]
    fn the_table_of_system_v() {
        let table = b"       key      shmid perms                  size  cpid  lpid nattch   uid   gid  cuid  cgid      atime      dtime      ctime                   rss                  swap\n\
            10207297          3  1600                    56   555   560      5   105   111   105   111 1795369930 1795369930 1795369928                  4096                     0\n\
            -2100000         12  1600             146800640   555   560      5   105   111   105   111 1795369930 1795369930 1795369928              20480000                  8192\n";
        assert_eq!(residency_of_system_v(table, 3), Residency::Bytes(4096));
        assert_eq!(residency_of_system_v(table, 12), Residency::Bytes(20480000));
        assert_eq!(residency_of_system_v(table, 4), Residency::Gone);
        assert_eq!(residency_of_system_v(b"", 4), Residency::Unknown);
    }

    #[test]
    fn huge_pages_are_resident() {
        let mut segments = Vec::new();
        let maps =
            b"7f0000000000-7f0010000000 rw-s 00000000 00:10 5                          /anon_hugepage (deleted)\n";
        attach(&mut segments, 1, attachments(maps));
        assert!(segments[0].is_huge() && segments[0].is_main);
        assert_eq!(segments[0].residency(&Root::default(), || ()).unwrap(), Residency::Bytes(0x10000000));
    }
}
