//! `/proc/PID/smaps`: bytes to [`Mapping`]s.
//!
//! # The format
//!
//! A mapping is a header line, `start-end perms offset major:minor inode [padding path]`, followed by `Key: value` lines.
//! Nothing marks its end: the next header does, or the end of the file. `VmFlags` is usually the last key, but older
//! kernels lack it and newer ones may print more behind it, so it ends nothing here.
//!
//! Which keys there are, in what order and how padded, depends on the kernel's version. A key is therefore always matched
//! by its name. One that we do not know is skipped; one that is missing stays [`Value::Absent`], because every mapping
//! starts from a blank state.
//!
//! A key line is told from a header by what comes first in it, a colon or a blank: a key has no blank before its colon,
//! a header has its first colon in its fourth word. So a vendor's lower-case key `dead:` is no address, and a path with
//! a colon is no key.
//!
//! # How it works
//!
//! One pass, no allocation: every text of a [`Mapping`] is a slice of the input, and the numbers sit in an array indexed
//! by [`Field`]. Lines are found with `memchr`. Keys come in the kernel's order, the order of [`Field`], so the key after
//! the last one is tried first; on a kernel with the full set of keys that guess never fails, and each key costs one
//! comparison. When it fails, the search goes on from there and wraps around, so a key that a kernel leaves out costs one
//! more comparison.
//!
//! # What is refused
//!
//! A line that is neither a header nor a key, a key before the first header, and a last line without its newline are
//! [`Malformed`]. Skipping such a line could drop a mapping from a sum, or credit its numbers to the mapping before, and
//! nobody would notice. A value that is not of its key's form is [`Value::Unusable`], and costs only itself.
//!
//! # What was rejected
//!
//! - A regular expression or `sscanf` per line: as slow again as the kernel's own work, and more.
//! - A hash map of keys per mapping, or owned strings: allocation per row, for rows that live microseconds.
//! - Matching by position: page sizes moved, and every few kernels put another key in the middle.
//! - A perfect hash of the key: no faster than a guess that is right, and it hides the key set.
//! - Ending a mapping at `VmFlags`: see above.
//! - Parsing while reading: a process that exits leaves half a file, which must not become rows.

use std::fmt;

use memchr::{memchr, memchr_iter};

use super::kv;

/// A number of a mapping, in the order in which current kernels print them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // the names are the kernel's
pub enum Field {
    Size,
    KernelPageSize,
    MmuPageSize,
    Rss,
    Pss,
    PssDirty,
    SharedClean,
    SharedDirty,
    PrivateClean,
    PrivateDirty,
    Referenced,
    Anonymous,
    Ksm,
    LazyFree,
    AnonHugePages,
    ShmemPmdMapped,
    FilePmdMapped,
    SharedHugetlb,
    PrivateHugetlb,
    Swap,
    SwapPss,
    Locked,
    ThpEligible,
    ProtectionKey,
}

impl Field {
    /// How many there are.
    pub const COUNT: usize = KEYS.len();

    /// Those that are a quantity in kilobytes, from `Size` to `Locked`.
    pub const KILOBYTES: [Field; 22] = [
        Field::Size,
        Field::KernelPageSize,
        Field::MmuPageSize,
        Field::Rss,
        Field::Pss,
        Field::PssDirty,
        Field::SharedClean,
        Field::SharedDirty,
        Field::PrivateClean,
        Field::PrivateDirty,
        Field::Referenced,
        Field::Anonymous,
        Field::Ksm,
        Field::LazyFree,
        Field::AnonHugePages,
        Field::ShmemPmdMapped,
        Field::FilePmdMapped,
        Field::SharedHugetlb,
        Field::PrivateHugetlb,
        Field::Swap,
        Field::SwapPss,
        Field::Locked,
    ];
}

/// What each [`Field`] is called in the file, by its position in the enum. The last two have no unit.
const KEYS: [&[u8]; 24] = [
    b"Size",
    b"KernelPageSize",
    b"MMUPageSize",
    b"Rss",
    b"Pss",
    b"Pss_Dirty",
    b"Shared_Clean",
    b"Shared_Dirty",
    b"Private_Clean",
    b"Private_Dirty",
    b"Referenced",
    b"Anonymous",
    b"KSM",
    b"LazyFree",
    b"AnonHugePages",
    b"ShmemPmdMapped",
    b"FilePmdMapped",
    b"Shared_Hugetlb",
    b"Private_Hugetlb",
    b"Swap",
    b"SwapPss",
    b"Locked",
    b"THPeligible",
    b"ProtectionKey",
];

/// The fields that are a quantity, as current kernels start their lines.
const LABELS: [[u8; 16]; Field::KILOBYTES.len()] = {
    let mut labels = [[0; 16]; Field::KILOBYTES.len()];
    let mut at = 0;
    while at < labels.len() {
        labels[at] = kv::label(KEYS[at]);
        at += 1;
    }
    labels
};

const VM_FLAGS: &[u8] = b"VmFlags";

/// What a mapping says about one [`Field`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Value {
    /// This kernel does not print the key.
    Absent,
    /// The key is there, but what follows is not a number of its form, or exceeds 64 bits.
    Unusable,
    /// The number, in kilobytes where the kernel's unit is kB.
    Number(u64),
}

/// One mapping: a header line and the keys below it. Texts are as the kernel prints them.
#[derive(Clone, Debug)]
pub struct Mapping<'a> {
    /// First address, hexadecimal.
    pub start: &'a [u8],
    /// First address behind the mapping, hexadecimal.
    pub end: &'a [u8],
    /// Such as `rw-p`.
    pub permissions: &'a [u8],
    /// Offset into the file in bytes, hexadecimal. See [`Mapping::byte_offset`].
    pub offset: &'a [u8],
    /// `major:minor`, hexadecimal, each at least two digits wide.
    pub device: &'a [u8],
    /// `None` if it exceeds 64 bits.
    pub inode: Option<u64>,
    /// The path or the kernel's name for the mapping; empty if it has none.
    pub path: &'a [u8],
    /// The words of `VmFlags` without blanks around them. `None` if the kernel does not print the key.
    pub vm_flags: Option<&'a [u8]>,
    values: [Value; Field::COUNT],
}

impl<'a> Mapping<'a> {
    /// What the mapping says about a field.
    pub fn value(&self, field: Field) -> Value {
        self.values[field as usize]
    }

    /// Major and minor number of the device, hexadecimal.
    pub fn device_parts(&self) -> (&'a [u8], &'a [u8]) {
        kv::split(self.device).expect("a header is parsed only with a colon in its device")
    }

    /// The offset as a number. `None` if it exceeds 64 bits.
    pub fn byte_offset(&self) -> Option<u64> {
        self.offset.iter().try_fold(0u64, |sum, &byte| {
            let digit = (byte as char).to_digit(16).expect("a header is parsed only with a hexadecimal offset");
            Some(sum.checked_mul(16)? | u64::from(digit))
        })
    }

    /// Parses a header line. `None` if it is not one.
    fn from_header(line: &'a [u8]) -> Option<Self> {
        let (range, rest) = word(line)?;
        let (permissions, rest) = word(rest)?;
        let (offset, rest) = word(rest)?;
        let (device, rest) = word(rest)?;
        // Nothing but padding comes between the inode and the path, and a path never starts with a blank.
        let (inode, rest) = word(rest)?;
        let path = rest.iter().position(|&byte| byte != b' ').map_or(&b""[..], |at| &rest[at..]);

        let dash = memchr(b'-', range)?;
        let (start, end) = (&range[..dash], &range[dash + 1..]);
        let (major, minor) = kv::split(device)?;
        let hexadecimal = [start, end, offset, major, minor].into_iter().all(is_hexadecimal);
        if !hexadecimal || permissions.len() != 4 || !inode.iter().all(u8::is_ascii_digit) {
            return None;
        }
        Some(Mapping {
            start,
            end,
            permissions,
            offset,
            device,
            inode: kv::decimal(inode),
            path,
            vm_flags: None,
            values: [Value::Absent; Field::COUNT],
        })
    }

    /// Takes a key line. `expected` is the position of the key that the kernel prints next.
    fn set(&mut self, key: &'a [u8], value: &'a [u8], expected: &mut usize) {
        if key == VM_FLAGS {
            self.vm_flags = Some(kv::trim(value));
        } else if let Some(at) = (*expected..Field::COUNT).chain(0..*expected).find(|&at| KEYS[at] == key) {
            let number = if at < Field::KILOBYTES.len() { kv::kilobytes(value) } else { kv::number(value) };
            self.values[at] = number.map_or(Value::Unusable, Value::Number);
            *expected = at + 1;
        }
    }
}

/// The first word of a text, and what follows the blank behind it. `None` if the text starts with a blank or is empty.
fn word(text: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = memchr(b' ', text).unwrap_or(text.len());
    (end > 0).then(|| (&text[..end], text.get(end + 1..).unwrap_or_default()))
}

fn is_hexadecimal(text: &[u8]) -> bool {
    !text.is_empty() && text.iter().all(u8::is_ascii_hexdigit)
}

/// The mappings in the text of a whole smaps file, in its order. Ends after the first error.
pub fn mappings(text: &[u8]) -> Mappings<'_> {
    Mappings { text, rest: text }
}

/// See [`mappings`].
#[derive(Clone, Debug)]
pub struct Mappings<'a> {
    text: &'a [u8],
    rest: &'a [u8],
}

impl<'a> Mappings<'a> {
    /// The next line without its newline, and what comes behind it. `None` at the end and if the newline is missing.
    fn line(&self) -> Option<(&'a [u8], &'a [u8])> {
        let end = memchr(b'\n', self.rest)?;
        Some((&self.rest[..end], &self.rest[end + 1..]))
    }

    #[cold]
    fn malformed(&mut self) -> Malformed {
        let before = &self.text[..self.text.len() - self.rest.len()];
        let number = memchr_iter(b'\n', before).count() + 1;
        let line = &self.rest[..memchr(b'\n', self.rest).unwrap_or(self.rest.len())];
        self.rest = &[];
        Malformed { number, start: line[..line.len().min(Malformed::SHOWN)].escape_ascii().to_string() }
    }
}

impl<'a> Iterator for Mappings<'a> {
    type Item = Result<Mapping<'a>, Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let Some((mut mapping, rest)) = self.line().and_then(|(line, rest)| Some((Mapping::from_header(line)?, rest)))
        else {
            return Some(Err(self.malformed()));
        };
        self.rest = rest;
        let mut expected = 0;
        loop {
            while expected < Field::KILOBYTES.len()
                && let Some((number, rest)) = kv::kilobytes_of(&LABELS[expected], self.rest)
            {
                mapping.values[expected] = Value::Number(number);
                expected += 1;
                self.rest = rest;
            }
            let Some((line, rest)) = self.line() else { break };
            let Some((key, value)) = kv::split(line) else { break };
            mapping.set(key, value, &mut expected);
            self.rest = rest;
        }
        Some(Ok(mapping))
    }
}

/// A line that has no place in an smaps file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Malformed {
    /// Counted from one.
    pub number: usize,
    /// How the line starts, escaped to ASCII.
    pub start: String,
}

impl Malformed {
    /// How many bytes of the line are kept.
    const SHOWN: usize = 80;
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Line {} is neither a mapping nor a whole \"Key: value\" line: \"{}\".", self.number, self.start)
    }
}

impl std::error::Error for Malformed {}

#[cfg(any(test, feature = "oracle"))]
pub mod naive;
#[cfg(test)]
mod tests;
