//! Parses `/proc/PID/smaps`, and smaps_rollup, which has a single record of the same form, into [`Mapping`]s.
//!
//! # The format
//!
//! A mapping is a header line, `start-end perms offset major:minor inode [padding path]`, followed by `Key: value`
//! lines. Nothing marks its end except the next header or the end of the file. `VmFlags` is usually the last key, but
//! older kernels do not print it and newer ones may print more keys after it, so it does not end a mapping here.
//!
//! The kernel's version determines which keys there are, their order and their padding. A key is therefore always
//! matched by its name. An unknown key is skipped. A missing key is [`Value::Absent`], because nothing is carried over
//! from the mapping before.
//!
//! A key line has a colon before its first blank. A header has a blank before its first colon, which is in its fourth
//! word. So a vendor's lower-case key such as `dead:` is not mistaken for an address, nor a path with a colon for a
//! key.
//!
//! # How it works
//!
//! There is one pass and no allocation: every text of a [`Mapping`] is a slice of the input, and the numbers are in an
//! array indexed by [`Field`]. Lines are found with `memchr`. The order of [`Field`] is that in which current kernels
//! print the keys, so the key after the last one is tried first. If a kernel prints all keys, this guess is always
//! right and each key costs one comparison. If the guess is wrong, the search continues from there and wraps around, so
//! each key that a kernel does not print costs one more comparison.
//!
//! # What is refused
//!
//! A line that is neither a header nor a key, a key before the first header, and a last line without its newline are
//! [`Malformed`]. If such a line were skipped, a sum could lack a mapping, or numbers could be added to the mapping
//! before, and nobody would notice. A value that does not have the form that its key needs is [`Value::Unusable`]; the
//! rest of the mapping is still used.
//!
//! # What was rejected
//!
//! - A regular expression or `sscanf` for each line: takes at least as long as the kernel needs to print the file.
//! - A hash map of keys for each mapping, or owned strings: one or more allocations for each row.
//! - Matching keys by position: page sizes have moved, and new keys are often inserted in the middle.
//! - A perfect hash of the key: no faster than a guess that is right, and it hides the set of keys.
//! - Ending a mapping at `VmFlags`: see above.
//! - Parsing while reading: if the process exits, half a file has been read, and that must not become rows.

use memchr::{memchr, memchr_iter};

use super::error::Malformed;
use super::fields;
use super::maps::Header;

/// Declares the fields, each with its key in the file.
macro_rules! fields {
    ($($field:ident => $key:literal,)*) => {
        /// A number of a mapping. The fields are in the order in which current kernels print them.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[allow(missing_docs)] // the names are the kernel's
        pub enum Field {
            $($field,)*
        }

        impl Field {
            /// All fields. The position of a field is its number.
            pub const ALL: [Field; KEYS.len()] = [$(Field::$field),*];
        }

        /// The keys, by the number of the [`Field`].
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
    // A number without a unit.
    ThpEligible => b"THPeligible",
    ProtectionKey => b"ProtectionKey",
    // Printed only in smaps_rollup, after PssDirty.
    PssAnon => b"Pss_Anon",
    PssFile => b"Pss_File",
    PssShmem => b"Pss_Shmem",
}

impl Field {
    /// The number of fields.
    pub const COUNT: usize = Self::ALL.len();

    /// The number of fields that smaps prints in kilobytes for each mapping: the first ones, from `Size` to `Locked`.
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

/// The value of a [`Field`] in a mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Value {
    /// This kernel does not print the key.
    Absent,
    /// The kernel prints the key, but its value does not have the right form or exceeds 64 bits.
    Unusable,
    /// The number, in kilobytes if the kernel prints it in kB.
    Number(u64),
}

/// A mapping: a header line and the keys that follow it.
#[derive(Clone, Debug)]
pub struct Mapping<'a> {
    /// Where the mapping is, and what is mapped there.
    pub header: Header<'a>,
    keys: Keys<'a>,
}

/// The keys of a mapping.
#[derive(Clone, Debug, Default)]
struct Keys<'a> {
    /// The number of each field, or zero.
    numbers: [u64; Field::COUNT],
    /// A bit for each field: whether its key is present.
    present: u32,
    /// A bit for each field: whether its number is usable.
    usable: u32,
    vm_flags: Option<&'a [u8]>,
}

impl<'a> Mapping<'a> {
    /// The value of a field.
    #[inline]
    pub fn value(&self, field: Field) -> Value {
        self.keys.value(field as usize)
    }

    /// The words of `VmFlags` without blanks at either end. `None` if the kernel does not print the key.
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
        // If a key is repeated, the last value counts.
        self.usable = self.usable & !(1 << at) | u32::from(number.is_some()) << at;
        self.numbers[at] = number.unwrap_or_default();
    }

    /// Parses the keys at the start of a text, and returns the rest.
    fn read<'t: 'a>(&mut self, mut text: &'t [u8]) -> &'t [u8] {
        // The field whose key is expected next.
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
            // In a header, a blank comes before the first colon.
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

/// The mappings in a whole smaps file, in its order. Ends after the first error.
pub fn mappings(text: &[u8]) -> Mappings<'_> {
    Mappings { text, rest: text }
}

/// The maximum length of a malformed line in a message, in bytes.
const MAX_SHOWN: usize = 80;

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
        let start = line[..line.len().min(MAX_SHOWN)].escape_ascii();
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
