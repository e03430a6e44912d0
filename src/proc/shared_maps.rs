//! The shared mappings of a process, as lines of maps.
//!
//! A backend has a few shared mappings among hundreds of private ones. From Linux 6.11 on, the kernel can be asked for
//! the shared ones alone (`PROCMAP_QUERY`, an ioctl of maps), which costs a tenth of printing all. The answer is
//! written as the lines that the kernel would print, so the parser of maps reads it as well. If the kernel does not
//! answer, all of maps is read.

use std::ffi::CStr;
use std::fs::File;
use std::io::{self, Write};
use std::mem::size_of;
use std::os::fd::AsRawFd;

use super::buffer::Buffer;
use super::error::Error;
use super::process::Process;

/// Reads into `buffer` the lines of a process's maps, at least those of its shared mappings. Calls `check_interrupts`,
/// which may unwind, at short intervals.
pub fn read(process: &Process, buffer: &mut Buffer, mut check_interrupts: impl FnMut()) -> Result<(), Error> {
    let file = process.open(c"maps")?;
    if query_all(&file, buffer, &mut check_interrupts).is_ok() {
        process.revalidate()
    } else {
        process.read(c"maps", buffer, check_interrupts)
    }
}

/// Asks for one shared mapping after the other.
fn query_all(file: &File, buffer: &mut Buffer, check_interrupts: &mut impl FnMut()) -> io::Result<()> {
    const PATH_MAX: usize = libc::PATH_MAX as usize;
    let mut name = [0; PATH_MAX];
    let mut line = Vec::new();
    let mut address = 0;
    buffer.clear();
    loop {
        check_interrupts();
        let mut query = Query {
            size: size_of::<Query>() as u64,
            query_flags: VMA_SHARED | COVERING_OR_NEXT_VMA,
            query_addr: address,
            vma_name_size: name.len() as u32,
            vma_name_addr: name.as_mut_ptr().expose_provenance() as u64,
            ..Query::default()
        };
        // SAFETY: the kernel writes to `query`, and to `name` no more than its size.
        if unsafe { libc::ioctl(file.as_raw_fd(), PROCMAP_QUERY, &raw mut query) } != 0 {
            match io::Error::last_os_error() {
                // There is no mapping from this address on.
                error if error.raw_os_error() == Some(libc::ENOENT) => return Ok(()),
                error if error.kind() == io::ErrorKind::Interrupted => continue,
                error => return Err(error),
            }
        }
        let name = if query.vma_name_size == 0 { c"" } else { CStr::from_bytes_until_nul(&name).unwrap_or_default() };
        line.clear();
        query.print(name, &mut line)?;
        buffer.push(&line)?;
        address = query.vma_end;
    }
}

// From linux/fs.h, Linux 6.11.

const VMA_READABLE: u64 = 1;
const VMA_WRITABLE: u64 = 1 << 1;
const VMA_EXECUTABLE: u64 = 1 << 2;
const VMA_SHARED: u64 = 1 << 3;
const COVERING_OR_NEXT_VMA: u64 = 1 << 4;

/// `_IOWR('f', 17, struct procmap_query)`
const PROCMAP_QUERY: libc::c_ulong =
    3 << 30 | (size_of::<Query>() as libc::c_ulong) << 16 | (b'f' as libc::c_ulong) << 8 | 17;

/// `struct procmap_query`
#[repr(C)]
#[derive(Default)]
struct Query {
    size: u64,
    query_flags: u64,
    query_addr: u64,
    vma_start: u64,
    vma_end: u64,
    vma_flags: u64,
    vma_page_size: u64,
    vma_offset: u64,
    inode: u64,
    dev_major: u32,
    dev_minor: u32,
    vma_name_size: u32,
    build_id_size: u32,
    vma_name_addr: u64,
    build_id_addr: u64,
}

impl Query {
    /// Appends the mapping that was found as a line of maps.
    fn print(&self, name: &CStr, line: &mut Vec<u8>) -> io::Result<()> {
        let flag = |bit, letter| if self.vma_flags & bit != 0 { letter } else { '-' };
        let (readable, writable) = (flag(VMA_READABLE, 'r'), flag(VMA_WRITABLE, 'w'));
        let executable = flag(VMA_EXECUTABLE, 'x');
        write!(
            line,
            "{:08x}-{:08x} {readable}{writable}{executable}s {:08x} {:02x}:{:02x} {} ",
            self.vma_start, self.vma_end, self.vma_offset, self.dev_major, self.dev_minor, self.inode
        )?;
        for &byte in name.to_bytes() {
            // As the kernel escapes it there.
            line.extend_from_slice(if byte == b'\n' { b"\\012" } else { std::slice::from_ref(&byte) });
        }
        line.push(b'\n');
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::fd::FromRawFd;
    use std::ptr;

    use super::super::maps;
    use super::super::test_support::{MadeUpRoot, Running, me, our_tree, stat_of, until};
    use super::*;

    /// The headers of the shared mappings in a text of maps.
    fn shared(maps: &[u8]) -> Vec<String> {
        let headers = maps::lines(maps).map(|line| line.unwrap().0);
        headers.filter(|header| header.permissions.ends_with(b"s")).map(|header| format!("{header:?}")).collect()
    }

    /// A shared mapping of our own, until it is dropped.
    struct Mapped(*mut libc::c_void);

    impl Mapped {
        fn new(protection: i32, flags: i32, fd: i32) -> Self {
            // SAFETY: a new mapping, at an address that the kernel chooses.
            let start = unsafe { libc::mmap(ptr::null_mut(), 8192, protection, libc::MAP_SHARED | flags, fd, 0) };
            assert_ne!(start, libc::MAP_FAILED);
            Mapped(start)
        }
    }

    impl Drop for Mapped {
        fn drop(&mut self) {
            // SAFETY: the mapping is ours, and nothing points into it.
            unsafe { libc::munmap(self.0, 8192) };
        }
    }

    #[test]
    fn the_answer_is_what_the_kernel_prints() {
        // SAFETY: the name ends with a NUL.
        let fd = unsafe { libc::memfd_create(c"two\nlines and \\".as_ptr(), libc::MFD_CLOEXEC) };
        assert!(fd >= 0);
        // SAFETY: memfd_create() has just opened it, so nobody else owns it.
        let file = unsafe { File::from_raw_fd(fd) };
        file.set_len(8192).unwrap();
        let _file = Mapped::new(libc::PROT_READ | libc::PROT_EXEC, 0, fd);
        let _anonymous = Mapped::new(libc::PROT_READ | libc::PROT_WRITE, libc::MAP_ANONYMOUS, -1);
        let _no_access = Mapped::new(libc::PROT_NONE, libc::MAP_ANONYMOUS, -1);
        let mut buffer = Buffer::default();
        if let Err(error) = query_all(&File::open("/proc/self/maps").unwrap(), &mut buffer, &mut || ()) {
            assert_eq!(error.raw_os_error(), Some(libc::ENOTTY), "only older kernels do not answer");
            return;
        }
        // Another test may be mapping shared memory.
        until("two equal answers", || {
            query_all(&File::open("/proc/self/maps").unwrap(), &mut buffer, &mut || ()).unwrap();
            shared(buffer.text()) == shared(&fs::read("/proc/self/maps").unwrap())
        });
        let count = maps::lines(buffer.text()).count();
        assert!(count >= 3);
        assert_eq!(count, shared(buffer.text()).len());
    }

    #[test]
    fn a_process_is_read_whether_the_kernel_answers_or_not() {
        let mut buffer = Buffer::default();
        let process = our_tree().pin(me()).unwrap();
        let _anonymous = Mapped::new(libc::PROT_READ, libc::MAP_ANONYMOUS, -1);
        until("two equal answers", || {
            read(&process, &mut buffer, || ()).unwrap();
            shared(buffer.text()) == shared(&fs::read("/proc/self/maps").unwrap())
        });

        const PID: i32 = 2_000_000_001;
        let maps = "7e0000000000-7e0000100000 rw-s 00000000 00:17 77                         /dev/shm/PostgreSQL.77\n";
        let system = MadeUpRoot::new(&[]);
        let stat = stat_of(PID, 1);
        system.write(&format!("proc/{PID}/stat"), stat);
        system.write(&format!("proc/{PID}/maps"), maps);
        read(&Process::pin(&system.root(), PID).unwrap(), &mut buffer, || ()).unwrap();
        assert_eq!(buffer.text(), maps.as_bytes());
    }

    #[test]
    fn a_process_that_has_exited_is_gone() {
        for end in [Running::kill, Running::reap] {
            let mut child = Running::waiting();
            let process = our_tree().pin(child.pid()).unwrap();
            let mut checks = 0;
            let result = read(&process, &mut Buffer::default(), || {
                checks += 1;
                if checks == 1 {
                    end(&mut child);
                }
            });
            assert!(matches!(result, Err(Error::Gone)), "{result:?}");
        }
    }
}
