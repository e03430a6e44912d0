//! What a process can read about its own memory so cheaply that it can do so for single statements: getrusage(2),
//! `/proc/self/statm`, and `/proc/self/clear_refs`, which lowers the high-water mark (Linux 4.0).
//!
//! Everything but [`OwnMemory::open`] may be called in a signal handler.

use std::fs::{File, OpenOptions};
use std::mem::MaybeUninit;
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::model::statements::meter::{Mark, Probe, Sample};

use super::system;

/// This process.
#[derive(Debug, Default)]
pub struct OwnMemory {
    statm: Option<File>,
    clear_refs: Option<File>,
    page_size: u64,
}

impl OwnMemory {
    /// Opens the files, which stay open. What cannot be opened is done without. Allocates nothing, because it may be
    /// called when there is no memory left.
    pub fn open(&mut self) {
        self.open_files(Path::new("/proc/self/statm"), Path::new("/proc/self/clear_refs"));
    }

    fn open_files(&mut self, statm: &Path, clear_refs: &Path) {
        self.page_size = system::page_size();
        self.statm = File::open(statm).ok();
        self.clear_refs = OpenOptions::new().write(true).open(clear_refs).ok();
    }

    /// Whether there is the file by which the mark is lowered.
    pub fn can_lower_mark(&self) -> bool {
        self.clear_refs.is_some()
    }

    /// Closes the files.
    pub fn close(&mut self) {
        self.statm = None;
        self.clear_refs = None;
    }
}

impl Probe for OwnMemory {
    fn mark(&mut self) -> Mark {
        let mut usage = MaybeUninit::<libc::rusage>::uninit();
        // Of the thread: the kernel adds up less, and the high-water mark is the same.
        // SAFETY: the kernel fills the structure.
        if unsafe { libc::getrusage(libc::RUSAGE_THREAD, usage.as_mut_ptr()) } != 0 {
            return Mark::default();
        }
        // SAFETY: it has been filled.
        let usage = unsafe { usage.assume_init() };
        Mark { resident: usage.ru_maxrss as u64 * 1024, major_faults: usage.ru_majflt as u64 }
    }

    fn sample(&mut self) -> Option<Sample> {
        let mut bytes = [0; 128];
        let length = self.statm.as_ref()?.read_at(&mut bytes, 0).ok()?;
        let Statm { resident, shared, .. } = parse_statm(&bytes[..length])?;
        let private = resident.saturating_sub(shared);
        Some(Sample { private: private * self.page_size, shared: shared * self.page_size })
    }

    fn lower_mark(&mut self) -> bool {
        // CLEAR_REFS_MM_HIWATER_RSS of the kernel.
        self.clear_refs.as_ref().is_some_and(|file| file.write_at(b"5", 0).is_ok())
    }

    fn is_open(&self) -> bool {
        self.statm.is_some()
    }
}

/// Numbers of `/proc/PID/statm`, in pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Statm {
    /// Resident pages.
    pub resident: u64,
    /// Resident pages of files and shared memory.
    pub shared: u64,
    /// Private pages of the address space that can be written to, with the stack.
    pub data: u64,
}

/// The numbers in a line of statm.
pub(super) fn parse_statm(line: &[u8]) -> Option<Statm> {
    let mut numbers = line.split(|byte| !byte.is_ascii_digit()).skip(1);
    let mut number = || std::str::from_utf8(numbers.next()?).ok()?.parse().ok();
    let [resident, shared, _, _, data] = [number()?, number()?, number()?, number()?, number()?];
    Some(Statm { resident, shared, data })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn touch(bytes: usize) -> Vec<u8> {
        let mut memory = vec![0; bytes];
        memory.iter_mut().step_by(1024).for_each(|byte| *byte = 1);
        std::hint::black_box(memory)
    }

    #[test]
    fn numbers_of_statm() {
        assert_eq!(
            parse_statm(b"69541 7020 6300 1939 0 800 0\n"),
            Some(Statm { resident: 7020, shared: 6300, data: 800 })
        );
        assert_eq!(parse_statm(b"69541 7020"), None);
        assert_eq!(parse_statm(b"69541 99999999999999999999 1 1 1 1 1"), None);
        assert_eq!(parse_statm(b""), None);
    }

    /// Other tests run at the same time, so the block is much larger than what they need.
    #[test]
    fn a_peak_that_has_passed_is_seen_until_the_mark_is_lowered() {
        const SIZE: usize = 512 << 20;
        let mut own = OwnMemory::default();
        own.open();
        let before = own.sample().unwrap().private;
        let block = touch(SIZE);
        let during = own.sample().unwrap().private;
        assert!(during > before + SIZE as u64 * 3 / 4);
        drop(block);
        assert!(own.mark().resident >= during);
        assert!(own.sample().unwrap().private < during - SIZE as u64 / 2);
        assert!(own.lower_mark());
        assert!(own.mark().resident < during - SIZE as u64 / 2);
    }

    #[test]
    fn without_proc_there_is_only_the_mark() {
        let mut own = OwnMemory::default();
        own.open_files(Path::new("/nonexistent/statm"), Path::new("/nonexistent/clear_refs"));
        assert!(!own.is_open() && own.sample().is_none() && !own.lower_mark());
        assert!(own.mark().resident > 0);
    }
}
