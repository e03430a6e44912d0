//! `/proc/PID/smaps`, and smaps_rollup, which is a single such record: bytes to [`Mapping`]s.
//!
//! # The format
//!
//! A mapping is a header line, `start-end perms offset major:minor inode [padding path]`, followed by `Key: value` lines.
//! Nothing marks its end: the next header does, or the end of the file. `VmFlags` is usually the last key, but older
//! kernels lack it and newer ones may print more after it, so it ends nothing here.
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

use memchr::{memchr, memchr_iter};

use super::error::Malformed;
use super::fields;
use super::maps::Header;

/// Declares the fields, each with its key in the file.
macro_rules! fields {
    ($($field:ident => $key:literal,)*) => {
        /// A number of a mapping, in the order in which current kernels print them.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[allow(missing_docs)] // the names are the kernel's
        pub enum Field {
            $($field,)*
        }

        impl Field {
            /// All of them, each at the position of its number.
            pub const ALL: [Field; KEYS.len()] = [$(Field::$field),*];
        }

        /// The key of each [`Field`], by its position in the enum.
        const KEYS: [&[u8]; [$(Field::$field),*].len()] = [$($key),*];
    };
}

fields! {
    Size => b"Size",
    KernelPageSize => b"KernelPageSize",
    MmuPageSize => b"MMUPageSize",
    Rss => b"Rss",
    Pss => b"Pss",
    PssDirty => b"Pss_Dirty",
    SharedClean => b"Shared_Clean",
    SharedDirty => b"Shared_Dirty",
    PrivateClean => b"Private_Clean",
    PrivateDirty => b"Private_Dirty",
    Referenced => b"Referenced",
    Anonymous => b"Anonymous",
    Ksm => b"KSM",
    LazyFree => b"LazyFree",
    AnonHugePages => b"AnonHugePages",
    ShmemPmdMapped => b"ShmemPmdMapped",
    FilePmdMapped => b"FilePmdMapped",
    SharedHugetlb => b"Shared_Hugetlb",
    PrivateHugetlb => b"Private_Hugetlb",
    Swap => b"Swap",
    SwapPss => b"SwapPss",
    Locked => b"Locked",
    // Without a unit.
    ThpEligible => b"THPeligible",
    ProtectionKey => b"ProtectionKey",
    // Only in smaps_rollup, after PssDirty there.
    PssAnon => b"Pss_Anon",
    PssFile => b"Pss_File",
    PssShmem => b"Pss_Shmem",
}

impl Field {
    /// The number of fields.
    pub const COUNT: usize = Self::ALL.len();

    /// The number of fields that smaps has for each mapping in kilobytes: the first ones, from `Size` to `Locked`.
    const QUANTITIES: usize = Field::Locked as usize + 1;
}

/// The start of each quantity's line, as current kernels print it.
const LABELS: [[u8; 16]; Field::QUANTITIES] = {
    let mut labels = [[0; 16]; Field::QUANTITIES];
    let mut at = 0;
    while at < labels.len() {
        labels[at] = fields::label(KEYS[at]);
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

/// One mapping: a header line and the keys below it.
#[derive(Clone, Debug)]
pub struct Mapping<'a> {
    /// Its place, and what is mapped there.
    pub header: Header<'a>,
    keys: Keys<'a>,
}

/// The keys of a mapping.
#[derive(Clone, Debug, Default)]
struct Keys<'a> {
    /// By field. Zero where there is no number.
    numbers: [u64; Field::COUNT],
    /// A bit for each field: whether its key is there.
    present: u32,
    /// A bit for each field: whether its number is.
    usable: u32,
    vm_flags: Option<&'a [u8]>,
}

impl<'a> Mapping<'a> {
    /// What the mapping says about a field.
    #[inline]
    pub fn value(&self, field: Field) -> Value {
        self.keys.value(field as usize)
    }

    /// The words of `VmFlags` without blanks around them. `None` if the kernel does not print the key.
    pub fn vm_flags(&self) -> Option<&'a [u8]> {
        self.keys.vm_flags
    }
}

impl<'a> Keys<'a> {
    #[inline]
    fn value(&self, at: usize) -> Value {
        if self.usable & (1 << at) != 0 {
            Value::Number(self.numbers[at])
        } else if self.present & (1 << at) != 0 {
            Value::Unusable
        } else {
            Value::Absent
        }
    }

    #[inline]
    fn set(&mut self, at: usize, number: Option<u64>) {
        self.present |= 1 << at;
        // The last one counts, should a key come twice.
        self.usable = self.usable & !(1 << at) | u32::from(number.is_some()) << at;
        self.numbers[at] = number.unwrap_or_default();
    }

    /// Reads the keys that a text starts with, and returns what follows them.
    fn read<'t: 'a>(&mut self, mut text: &'t [u8]) -> &'t [u8] {
        // The position of the key that the kernel prints next.
        let mut expected = 0;
        loop {
            let first = expected;
            while let Some(label) = LABELS.get(expected)
                && let Some((line, rest)) = text.split_first_chunk()
                && let Some(number) = fields::kilobytes_of(label, line)
            {
                self.numbers[expected] = number;
                expected += 1;
                text = rest;
            }
            let read = (1 << expected) - (1 << first);
            self.present |= read;
            self.usable |= read;
            // A header has a blank before its first colon.
            let Some((key, after)) = fields::key(text) else { return text };
            let Some(end) = memchr(b'\n', after) else { return text };
            let (value, rest) = (&after[..end], &after[end + 1..]);
            if key == VM_FLAGS {
                self.vm_flags = Some(value.trim_ascii());
            } else if let Some(at) = (expected..Field::COUNT).chain(0..expected).find(|&at| KEYS[at] == key) {
                let is_plain = at == Field::ThpEligible as usize || at == Field::ProtectionKey as usize;
                self.set(at, if is_plain { fields::number(value) } else { fields::kilobytes(value) });
                expected = at + 1;
            }
            text = rest;
        }
    }
}

/// The mappings in the text of a whole smaps file, in its order. Ends after the first error.
pub fn mappings(text: &[u8]) -> Mappings<'_> {
    Mappings { text, rest: text }
}

/// How many bytes of a malformed line are shown.
const SHOWN: usize = 80;

/// See [`mappings`].
#[derive(Clone, Debug)]
pub struct Mappings<'a> {
    text: &'a [u8],
    rest: &'a [u8],
}

impl<'a> Mappings<'a> {
    #[cold]
    fn malformed(&mut self) -> Malformed {
        let before = &self.text[..self.text.len() - self.rest.len()];
        let number = memchr_iter(b'\n', before).count() + 1;
        let line = &self.rest[..memchr(b'\n', self.rest).unwrap_or(self.rest.len())];
        self.rest = &[];
        let start = line[..line.len().min(SHOWN)].escape_ascii();
        Malformed(format!("Line {number} is neither a mapping nor a whole \"Key: value\" line: \"{start}\".").into())
    }
}

impl<'a> Iterator for Mappings<'a> {
    type Item = Result<Mapping<'a>, Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let line = memchr(b'\n', self.rest).map(|end| self.rest.split_at(end));
        let Some((header, rest)) = line.and_then(|(line, rest)| Some((Header::parse(line)?, &rest[1..]))) else {
            return Some(Err(self.malformed()));
        };
        let mut keys = Keys::default();
        self.rest = keys.read(rest);
        Some(Ok(Mapping { header, keys }))
    }
}

#[cfg(any(test, feature = "oracle"))]
pub mod naive;
#[cfg(test)]
mod tests;
