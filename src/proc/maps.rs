//! The line that describes where a mapping is: every line of `/proc/PID/maps`, and the header of each record of smaps.
//!
//! `start-end perms offset major:minor inode [padding path]`. All numbers except the inode are hexadecimal. The path is
//! everything after the padding, up to the end of the line: it may contain blanks, ` (deleted)` and any byte but a
//! newline.

use std::iter;
use std::ops::Range;

use memchr::memchr;

use super::error::Malformed;
use super::fields;

/// Where a mapping is, and what is mapped there. Texts are as the kernel prints them.
#[derive(Clone, Debug)]
pub struct Header<'a> {
    /// Start address, hexadecimal.
    pub start: &'a [u8],
    /// End address (exclusive), hexadecimal.
    pub end: &'a [u8],
    /// The addresses as numbers. `None` if one exceeds 64 bits.
    pub range: Option<Range<u64>>,
    /// Permissions, such as `rw-p`.
    pub permissions: &'a [u8],
    /// Offset into the file in bytes, hexadecimal. See [`Header::byte_offset`].
    pub offset: &'a [u8],
    /// `major:minor` of the device, hexadecimal, each at least two digits wide.
    pub device: &'a [u8],
    /// The device's major number.
    pub major: &'a [u8],
    /// The device's minor number.
    pub minor: &'a [u8],
    /// The inode. `None` if it exceeds 64 bits.
    pub inode: Option<u64>,
    /// The path, or the kernel's name for the mapping. Empty if it has none.
    pub path: &'a [u8],
}

impl<'a> Header<'a> {
    /// Parses a line. `None` if it does not have this form.
    #[inline]
    pub fn parse(line: &'a [u8]) -> Option<Self> {
        let (start, first, rest) = hexadecimal(line, b'-')?;
        let (end, last, rest) = hexadecimal(rest, b' ')?;
        let (permissions, rest) = rest.split_at_checked(4)?;
        let rest = rest.strip_prefix(b" ")?;
        let (offset, _, device_on) = hexadecimal(rest, b' ')?;
        let (major, _, rest) = hexadecimal(device_on, b':')?;
        let (minor, _, rest) = hexadecimal(rest, b' ')?;
        let device = &device_on[..major.len() + 1 + minor.len()];
        let digits = rest.iter().position(|byte| !byte.is_ascii_digit()).unwrap_or(rest.len());
        let (inode, rest) = rest.split_at(digits);
        // There is only padding between the inode and the path, and a path never starts with a blank.
        let blanks = rest.iter().position(|&byte| byte != b' ').unwrap_or(rest.len());
        let path = &rest[blanks..];
        let is_header = !inode.is_empty() && (path.is_empty() || blanks > 0) && !permissions.contains(&b' ');
        let range = first.zip(last).map(|(first, last)| first..last);
        let inode = fields::decimal(inode);
        is_header.then_some(Header { start, end, range, permissions, offset, device, major, minor, inode, path })
    }

    /// Whether an address is in the mapping.
    pub fn contains(&self, address: u64) -> bool {
        self.range.as_ref().is_some_and(|range| range.contains(&address))
    }

    /// The offset as a number. `None` if it exceeds 64 bits.
    pub fn byte_offset(&self) -> Option<u64> {
        self.offset.iter().try_fold(0, |number, &digit| shifted_in(number, DIGITS[usize::from(digit)]))
    }
}

/// The lines of a maps file, each with its addresses as numbers. A line of another form or without its newline gives an
/// error.
pub fn lines(text: &[u8]) -> impl Iterator<Item = Result<(Header<'_>, Range<u64>), Malformed>> {
    let mut rest = text;
    iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let line = memchr(b'\n', rest).map(|end| &rest[..end]);
        rest = line.map_or(&[], |line| &rest[line.len() + 1..]);
        let header = line.and_then(Header::parse);
        Some(header.and_then(|header| header.range.clone().map(|range| (header, range))).ok_or(Malformed::LINE))
    })
}

/// The value of each byte as a hexadecimal digit, or [`NO_DIGIT`].
const DIGITS: [u8; 256] = {
    let mut digits = [NO_DIGIT; 256];
    let mut value = 0;
    while value < 16 {
        digits[b"0123456789abcdef"[value] as usize] = value as u8;
        digits[b"0123456789ABCDEF"[value] as usize] = value as u8;
        value += 1;
    }
    digits
};
const NO_DIGIT: u8 = 16;

/// Appends a hexadecimal digit to a number. `None` if the result exceeds 64 bits.
#[inline]
fn shifted_in(number: u64, digit: u8) -> Option<u64> {
    (number >> 60 == 0).then_some(number << 4 | u64::from(digit))
}

/// The hexadecimal digits at the start of a text, their value (`None` if it exceeds 64 bits), and what follows the byte
/// `end` after them. `None` if there is no digit, or if another byte follows the digits.
#[inline]
fn hexadecimal(text: &[u8], end: u8) -> Option<(&[u8], Option<u64>, &[u8])> {
    let mut number = Some(0);
    let mut digits = 0;
    loop {
        let byte = *text.get(digits)?;
        let digit = DIGITS[usize::from(byte)];
        if digit == NO_DIGIT {
            return (byte == end && digits > 0).then(|| (&text[..digits], number, &text[digits + 1..]));
        }
        number = number.and_then(|number| shifted_in(number, digit));
        digits += 1;
    }
}

#[cfg(any(test, feature = "oracle"))]
pub mod naive;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::{category, page_tables, segment};

    /// Compares everything that is derived from maps with its oracle.
    fn assert_agrees(text: &[u8]) {
        super::naive::assert_agrees(text);
        category::naive::assert_agrees(text);
        page_tables::naive::assert_agrees(text);
        segment::naive::assert_agrees(text);
    }

    #[test]
    fn processes() {
        assert_agrees(include_bytes!("../../tests/fixtures/linux-6.6.maps"));
        assert_agrees(&std::fs::read("/proc/self/maps").unwrap());
    }

    proptest! {
        #[test]
        fn agrees_with_the_oracle(
            lines in prop::collection::vec(
                concat!(
                    "[0-9a-f]{1,17}-[0-9a-f]{1,17} [r-][w-][x-][ps] [0-9a-f]{8} 0[01]:1 [1-3]",
                    "( {1,9}\\[?/?(SYSV|libLLVM|stack|\\.so|\\.1| |:|b)*( \\(deleted\\))?)?",
                ),
                0..9,
            ),
            end in "\n?",
        ) {
            assert_agrees((lines.join("\n") + &end).as_bytes());
        }

        #[test]
        fn agrees_on_ascending_addresses(gaps in prop::collection::vec((0..3u64 << 30, 1..3u64 << 30), 1..9)) {
            let mut end = 0x7eff_0000_0000;
            let line = |(gap, size)| {
                let start = end + (gap & !0xfff);
                end = start + (size | 0xfff) + 1;
                format!("{start:x}-{end:x} rw-s 00000000 00:01 7 /dev/zero (deleted)\n")
            };
            assert_agrees(gaps.into_iter().map(line).collect::<String>().as_bytes());
        }
    }
}
