//! What a process holds privately, by what it is for: maps says where the private mappings are, pagemap what is in them.

use std::io;

use memchr::memchr_iter;

use super::category::{Category, Landmarks};
use super::maps;
use super::pagemap::{Entries, Held, Pagemap, Part};
use super::process::{Buffer, Error, Process};

/// The private mappings of one category.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// How many there are.
    pub mappings: u64,
    /// Their address space, in bytes.
    pub virtual_size: u64,
    /// What is in them. `None` if pagemap is denied, or the kernel is built without.
    pub held: Option<Held>,
}

/// Room that is used again for the next process.
#[derive(Debug, Default)]
pub struct Scratch {
    buffer: Buffer,
    entries: Entries,
    parts: Vec<Part>,
    categories: Vec<Category>,
}

impl Scratch {
    /// The maps of the process that was looked at last.
    pub fn maps(&self) -> &[u8] {
        self.buffer.text()
    }
}

/// What a process holds in its private mappings, for each category in the order of [`Category::ALL`]. Calls `between`, which
/// may unwind, after each read.
pub fn by_category(
    process: &Process,
    landmarks: &Landmarks,
    scratch: &mut Scratch,
    mut between: impl FnMut(),
) -> Result<[Usage; Category::COUNT], Error> {
    let Scratch { buffer, entries, parts, categories } = scratch;
    process.read(c"maps", buffer, &mut between)?;
    parts.clear();
    categories.clear();
    // A process can have tens of thousands.
    let lines = memchr_iter(b'\n', buffer.text()).count();
    let is_reserved = parts.try_reserve(lines).and_then(|()| categories.try_reserve(lines));
    is_reserved.map_err(|_| Error::of(io::Error::from_raw_os_error(libc::ENOMEM), || process.path(c"maps")))?;
    for line in maps::lines(buffer.text()) {
        let (header, range) = line.ok_or_else(|| process.malformed(c"maps"))?;
        if header.permissions.ends_with(b"p") {
            parts.push(Part { range, has_access: !header.permissions.starts_with(b"---") });
            categories.push(landmarks.category(&header));
        }
    }

    let mut usages = [Usage::default(); Category::COUNT];
    for (part, &category) in parts.iter().zip(&*categories) {
        let usage = &mut usages[category as usize];
        usage.mappings += 1;
        usage.virtual_size += part.range.end.saturating_sub(part.range.start);
    }
    let file = match process.open(c"pagemap", libc::O_RDONLY) {
        Ok(file) => Some(file),
        // A process that is gone is found out below.
        Err(Error::Denied | Error::Gone) => None,
        Err(error) => return Err(error),
    };
    if let Some(file) = file {
        let take = |at: usize, held: Held| {
            let sum = usages[categories[at] as usize].held.get_or_insert_default();
            sum.resident += held.resident;
            sum.private += held.private;
            sum.swap += held.swap;
        };
        let read = Pagemap::new(file, entries).held(parts, between, take);
        read.map_err(|source: io::Error| Error::of(source, || process.path(c"pagemap")))?;
    }
    process.look_again()?;
    Ok(usages)
}

#[cfg(test)]
mod tests {
    use super::super::process::tests::{Running, family, me};
    use super::super::smaps::{self, Field, Value};
    use super::*;

    fn landmarks() -> Landmarks {
        let program = std::env::current_exe().unwrap().into_os_string().into_encoded_bytes();
        Landmarks { program, in_main_segment: 0, system_v_key: 0 }
    }

    fn usages(process: &Process) -> Result<[Usage; Category::COUNT], Error> {
        by_category(process, &landmarks(), &mut Scratch::default(), || ())
    }

    #[test]
    fn as_smaps_has_it() {
        // A child that waits does not change; but the program's own pages are its alone only while no other test runs it.
        let child = Running::waiting();
        let process = family().open(child.pid()).unwrap();
        let mut attempts = 0;
        let usages = loop {
            let usages = usages(&process).unwrap();
            let found =
                usages.map(|usage| (usage.mappings, usage.virtual_size, usage.held.map_or(0, |held| held.private)));
            let expected = from_smaps(&process);
            if found == expected {
                break usages;
            }
            attempts += 1;
            assert!(attempts < 1000, "{found:?} is not {expected:?}");
        };
        assert!(usages[Category::Malloc as usize].held.unwrap().private > 0);
        assert!(usages[Category::Program as usize].held.unwrap().resident > 0);
    }

    /// How many private mappings, their size and what is private in them, for each category, as smaps says.
    fn from_smaps(process: &Process) -> [(u64, u64, u64); Category::COUNT] {
        let mut buffer = Buffer::default();
        process.read(c"smaps", &mut buffer, || ()).unwrap();
        let mut sums = [(0, 0, 0); Category::COUNT];
        for mapping in smaps::mappings(buffer.text()).map(Result::unwrap) {
            let bytes = |field| match mapping.value(field) {
                Value::Number(kilobytes) => kilobytes * 1024,
                Value::Absent | Value::Unusable => 0,
            };
            if mapping.header.permissions.ends_with(b"p") {
                let sum = &mut sums[landmarks().category(&mapping.header) as usize];
                sum.0 += 1;
                sum.1 += bytes(Field::Size);
                sum.2 += bytes(Field::PrivateClean) + bytes(Field::PrivateDirty) + bytes(Field::PrivateHugetlb);
            }
        }
        sums
    }

    #[test]
    fn one_that_is_gone_has_nothing() {
        for end in [Running::kill, Running::reap] {
            let mut child = Running::waiting();
            let process = family().open(child.pid()).unwrap();
            let mut reads = 0;
            let result = by_category(&process, &landmarks(), &mut Scratch::default(), || {
                reads += 1;
                if reads == 3 {
                    end(&mut child);
                }
            });
            assert!(matches!(result, Err(Error::Gone)), "{result:?}");
            assert!(reads >= 3);
        }
    }

    #[test]
    fn scratch_is_used_again() {
        let mut scratch = Scratch::default();
        let child = Running::waiting();
        let process = family().open(child.pid()).unwrap();
        let own = family().open(me()).unwrap();
        let mut attempts = 0;
        loop {
            by_category(&own, &landmarks(), &mut scratch, || ()).unwrap();
            let again = by_category(&process, &landmarks(), &mut scratch, || ()).unwrap();
            let fresh = usages(&process).unwrap();
            if again == fresh {
                break;
            }
            // Other tests run the program, too.
            attempts += 1;
            assert!(attempts < 1000, "{again:?} is not {fresh:?}");
        }
    }
}
