//! Room for the whole text of one file, used again for the next.

use std::fs::File;
use std::io::{self, Read};

/// Room for the whole of one file, used again for the next. It grows to the largest file and never shrinks.
#[derive(Debug, Default)]
pub struct Buffer {
    bytes: Vec<u8>,
    length: usize,
}

impl Buffer {
    /// The room that each read(2) is offered. The kernel returns about a page a call, but a record with a long path is
    /// larger, and is consistent in itself only if one read returns it whole: 4096 bytes of path, each escaped to four, and
    /// its keys.
    const LEAST_SPACE: usize = 32 * 1024;

    /// The size to begin with: any small file, and an idle backend's maps. The allocator would take a larger buffer from the
    /// kernel anew, page by page, in each call.
    const INITIAL: usize = 64 * 1024;

    /// What was read last.
    pub fn text(&self) -> &[u8] {
        &self.bytes[..self.length]
    }

    /// Forgets what was read.
    pub(super) fn clear(&mut self) {
        self.length = 0;
    }

    /// Reads a file to its end, after what was read before. Calls `check_interrupts`, which may unwind, after each read.
    pub(super) fn append(&mut self, file: &mut File, mut check_interrupts: impl FnMut()) -> io::Result<()> {
        while self.append_once(file)? > 0 {
            check_interrupts();
        }
        Ok(())
    }

    /// Reads once, after what was read before, and returns the number of bytes.
    pub(super) fn append_once(&mut self, file: &mut File) -> io::Result<usize> {
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

/// One read(2), repeated only if a signal came first.
pub(super) fn read(file: &mut File, space: &mut [u8]) -> io::Result<usize> {
    loop {
        match file.read(space) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Seek, Write};

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_buffer_holds_each_file_exactly(sizes in prop::collection::vec(0..2_000_000usize, 1..4)) {
            let mut buffer = Buffer::default();
            for (nth, size) in sizes.into_iter().enumerate() {
                let content: Vec<u8> = (0..size).map(|at| (at * 31 + nth) as u8).collect();
                let mut file = tempfile::tempfile().unwrap();
                file.write_all(&content).unwrap();
                file.rewind().unwrap();
                buffer.clear();
                prop_assert!(buffer.append(&mut file, || ()).is_ok());
                prop_assert!(buffer.text() == content);
            }
        }
    }
}
