//! A reusable buffer for the content of a file.

use std::fs::File;
use std::io::{self, Read};

/// A reusable buffer for the content of a file. It grows to the size of the largest file and never shrinks.
#[derive(Debug, Default)]
pub struct Buffer {
    bytes: Vec<u8>,
    length: usize,
}

impl Buffer {
    /// The free space that each read(2) must have. The kernel usually returns about a page per call. But a record of
    /// smaps is consistent only if one read returns all of it, and with a long path it is larger than a page: a path of
    /// 4096 bytes, each of which may be escaped to four, and the keys.
    const LEAST_SPACE: usize = 32 * 1024;

    /// The initial size. It is enough for any small file and for the maps of an idle backend. The allocator would get a
    /// larger buffer from the kernel anew, page by page, in each call.
    const INITIAL: usize = 64 * 1024;

    /// The content that was read last.
    pub fn text(&self) -> &[u8] {
        &self.bytes[..self.length]
    }

    /// Discards the content.
    pub(super) fn clear(&mut self) {
        self.length = 0;
    }

    /// Reads a file to its end and appends it to the content. Calls `check_interrupts`, which may unwind, after each
    /// read.
    pub(super) fn append(&mut self, file: &mut File, mut check_interrupts: impl FnMut()) -> io::Result<()> {
        while self.append_once(file)? > 0 {
            check_interrupts();
        }
        Ok(())
    }

    /// Adds a short text, after what was read before.
    pub(super) fn push(&mut self, text: &[u8]) -> io::Result<()> {
        self.make_space()?;
        self.bytes[self.length..self.length + text.len()].copy_from_slice(text);
        self.length += text.len();
        Ok(())
    }

    /// Reads once, appends what was read to the content, and returns the number of bytes.
    pub(super) fn append_once(&mut self, file: &mut File) -> io::Result<usize> {
        self.make_space()?;
        let count = read(file, &mut self.bytes[self.length..])?;
        self.length += count;
        Ok(count)
    }

    /// Grows the buffer if it has less free space than a read may need. A lack of memory is an error here; a plain
    /// `Vec` would abort the process.
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

/// Calls read(2), again if a signal interrupts it.
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
