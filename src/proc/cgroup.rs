//! Our own cgroup and its visible ancestors: their limits, the memory charged to them, and OOM kills.
//!
//! Two files say where they are. `/proc/self/cgroup` has our path in each hierarchy. `/proc/self/mountinfo` says where
//! a hierarchy, or a part of it, is mounted. Both are relative to our cgroup namespace. So a container's own cgroup is
//! `/` there, and the cgroups above it are hidden, whether they have limits or not.
//!
//! Memory is accounted in only one hierarchy, even if both versions are mounted: that of version 1 if `memory` is among
//! our controllers of version 1, otherwise that of version 2. The versions have different names for the same things. A
//! value that a version does not have is `None`.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::error::Error;
use super::fields::{self, lines};
use super::root::{Root, read_if_visible};

/// The version of the cgroup interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// cgroup: a hierarchy for each controller, or for several.
    One,
    /// cgroup2: a single hierarchy.
    Two,
}

/// A limit on memory or swap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// A number of bytes.
    Bytes(u64),
    /// No limit in this cgroup. An ancestor may still have one.
    Unlimited,
}

impl Limit {
    /// The number of bytes, if there is a limit.
    pub fn bytes(self) -> Option<u64> {
        match self {
            Limit::Bytes(bytes) => Some(bytes),
            Limit::Unlimited => None,
        }
    }
}

/// A cgroup: its limits, and the memory charged to it and its descendants. In bytes; `None` if the kernel does not have
/// the value or does not let us read it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cgroup {
    /// The path in the hierarchy, relative to our cgroup namespace.
    pub path: Vec<u8>,
    /// The version of the hierarchy.
    pub version: Version,
    /// The usage at which the OOM killer is invoked (memory.max, memory.limit_in_bytes).
    pub limit: Option<Limit>,
    /// The usage at which processes are throttled (memory.high).
    pub high: Option<Limit>,
    /// The memory that is charged, including page cache (memory.current, memory.usage_in_bytes).
    pub usage: Option<u64>,
    /// The part of the usage that is page cache and was not used recently. It is reclaimed first, without harm.
    pub inactive_file: Option<u64>,
    /// The part that is page cache and was used recently.
    pub active_file: Option<u64>,
    /// Anonymous memory.
    pub anon: Option<u64>,
    /// Page cache, including shared memory.
    pub file: Option<u64>,
    /// Shared memory, including files in tmpfs.
    pub shmem: Option<u64>,
    /// Kernel memory that is charged to the cgroup, such as page tables.
    pub kernel: Option<u64>,
    /// The limit on swap. In version 1, the limit on memory and swap minus the limit on memory.
    pub swap_limit: Option<Limit>,
    /// The swap that is used.
    pub swap: Option<u64>,
    /// The number of processes that the OOM killer has killed. In version 1, processes of descendants are not included.
    pub oom_kills: Option<u64>,
    /// Whether the OOM killer kills all processes of the cgroup together.
    pub oom_group: Option<bool>,
    /// The time, in microseconds, during which at least one task waited for memory.
    pub psi_some: Option<u64>,
    /// The time, in microseconds, during which all tasks waited for memory.
    pub psi_full: Option<u64>,
}

/// At most so much page cache is needed, in bytes: programs that run are in there.
const NEEDED_CACHE: u64 = 64 << 20;

impl Cgroup {
    /// The memory that cannot be reclaimed without harm: usage minus inactive page cache, as the kubelet computes it.
    pub fn working_set(&self) -> Option<u64> {
        Some(self.usage?.saturating_sub(self.inactive_file?))
    }

    /// The memory that cannot be reclaimed: usage minus page cache, of which a part is taken to be needed, as the kernel
    /// does for MemAvailable.
    pub fn unreclaimable(&self) -> Option<u64> {
        let cache = self.inactive_file?.saturating_add(self.active_file?);
        Some(self.usage?.saturating_sub(cache - NEEDED_CACHE.min(cache / 2)))
    }
}

/// Our own cgroup, its parent, and so on. Empty if the kernel has no cgroups, `None` if our own is hidden.
pub fn own_cgroups(root: &Root) -> Result<Option<Vec<Cgroup>>, Error> {
    let read = |path| read_if_visible(&root.path(path)).map(Option::unwrap_or_default);
    let cgroup = read("/proc/self/cgroup")?;
    let Some((version, path)) = membership(&cgroup) else { return Ok(Some(Vec::new())) };
    let mountinfo = read("/proc/self/mountinfo")?;
    match MountedCgroup::find(version, path, &mountinfo) {
        Some(place) => place.cgroups(root),
        None => Ok(None),
    }
}

/// Where our cgroup is mounted.
#[derive(Clone, Debug, PartialEq, Eq)]
struct MountedCgroup {
    version: Version,
    /// `major:minor` of the mounted file system.
    device: Vec<u8>,
    mount_point: PathBuf,
    /// The path of the cgroup at the mount point.
    top: Vec<u8>,
    /// The names of the cgroups on the way from there to ours.
    names: Vec<Vec<u8>>,
}

impl MountedCgroup {
    fn find(version: Version, path: &[u8], mountinfo: &[u8]) -> Option<Self> {
        let mut mounts: Vec<Mount> = Vec::new();
        for mount in lines(mountinfo).filter_map(Mount::parse) {
            // A later mount hides an earlier one at the same place.
            mounts.retain(|earlier| earlier.point != mount.point);
            if mount.is_of(version) {
                mounts.push(mount);
            }
        }
        let places = mounts.into_iter().filter_map(|mount| {
            let names = below(&mount.root, path)?;
            Some(MountedCgroup {
                version,
                device: mount.device.to_vec(),
                mount_point: mount.point,
                top: mount.root,
                names,
            })
        });
        // If several parts of the hierarchy are mounted, use the one that shows the most of our ancestors.
        places.max_by_key(|place| place.names.len())
    }

    fn cgroups(&self, root: &Root) -> Result<Option<Vec<Cgroup>>, Error> {
        let mut cgroups = Vec::new();
        for depth in (0..=self.names.len()).rev() {
            let names = &self.names[..depth];
            let mut directory = root.path(&self.mount_point);
            let mut path = self.top.clone();
            for name in names {
                directory.push(OsStr::from_bytes(name));
                if !path.ends_with(b"/") {
                    path.push(b'/');
                }
                path.extend_from_slice(name);
            }
            if !self.is_in(&directory) {
                return Ok(None);
            }
            cgroups.push(Directory(directory).cgroup(path, self.version)?);
        }
        Ok(Some(cgroups))
    }

    /// Whether a directory exists and belongs to the hierarchy: it has not been removed, and nothing is mounted over
    /// it.
    fn is_in(&self, directory: &Path) -> bool {
        fs::metadata(directory).is_ok_and(|metadata| {
            let device = metadata.dev();
            format!("{}:{}", libc::major(device), libc::minor(device)).as_bytes() == self.device
        })
    }
}

/// The version of the hierarchy in which our memory is accounted, and our path in it.
fn membership(cgroup: &[u8]) -> Option<(Version, &[u8])> {
    let memberships = || {
        lines(cgroup).filter_map(|line| {
            let mut fields = line.splitn(3, |&byte| byte == b':');
            Some((fields.next()?, fields.next()?, fields.next()?))
        })
    };
    let mut controllers = memberships().map(|(_, controllers, path)| (controllers, path));
    if let Some((_, path)) = controllers.find(|(controllers, _)| has_word(controllers, b"memory")) {
        return Some((Version::One, path));
    }
    memberships()
        .find(|(id, controllers, _)| id == b"0" && controllers.is_empty())
        .map(|(_, _, path)| (Version::Two, path))
}

/// The fields of a line of mountinfo that are needed here.
struct Mount<'a> {
    device: &'a [u8],
    root: Vec<u8>,
    point: PathBuf,
    file_system: &'a [u8],
    options: &'a [u8],
}

impl<'a> Mount<'a> {
    fn parse(line: &'a [u8]) -> Option<Self> {
        let mut fields = line.split(|&byte| byte == b' ');
        let device = fields.nth(2)?;
        let root = unescaped(fields.next()?);
        let point = PathBuf::from(OsStr::from_bytes(&unescaped(fields.next()?)));
        // Next come mount options, any number of optional fields, and a separator.
        fields.find(|field| field == b"-")?;
        let file_system = fields.next()?;
        let options = fields.nth(1)?;
        Some(Mount { device, root, point, file_system, options })
    }

    fn is_of(&self, version: Version) -> bool {
        match version {
            Version::One => self.file_system == b"cgroup" && has_word(self.options, b"memory"),
            Version::Two => self.file_system == b"cgroup2",
        }
    }
}

/// The names on the way from the cgroup `root` to the cgroup `path`. `None` if `path` is not below `root`, or if only
/// one of them is inside our cgroup namespace, because the names in between are hidden.
fn below(root: &[u8], path: &[u8]) -> Option<Vec<Vec<u8>>> {
    let rest = path.strip_prefix(root)?;
    if !(rest.is_empty() || rest.starts_with(b"/") || root.ends_with(b"/")) {
        return None;
    }
    let names: Vec<_> = rest.split(|&byte| byte == b'/').filter(|name| !name.is_empty()).map(<[u8]>::to_vec).collect();
    (!names.iter().any(|name| name == b"..")).then_some(names)
}

/// Undoes the kernel's escaping of blanks and other characters, such as `\040`.
fn unescaped(text: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((&first, after)) = rest.split_first() {
        let octal = (first == b'\\').then(|| after.split_first_chunk::<3>()).flatten();
        let escaped = octal.and_then(|(digits, after)| {
            // from_str_radix() would accept a sign, too.
            let digits = digits.iter().all(u8::is_ascii_digit).then_some(digits)?;
            let byte = u8::from_str_radix(str::from_utf8(digits).ok()?, 8).ok()?;
            Some((byte, after))
        });
        let (byte, after) = escaped.unwrap_or((first, after));
        bytes.push(byte);
        rest = after;
    }
    bytes
}

/// The directory of a cgroup.
struct Directory(PathBuf);

impl Directory {
    fn read(&self, name: &str) -> Result<Option<Vec<u8>>, Error> {
        read_if_visible(&self.0.join(name))
    }

    fn number(&self, name: &str) -> Result<Option<u64>, Error> {
        Ok(self.read(name)?.and_then(|text| fields::number(&text)))
    }

    /// Reads a limit. The file does not exist in the root cgroup, or if the controller is not enabled; then there is no
    /// limit.
    fn limit(&self, name: &str) -> Result<Option<Limit>, Error> {
        if let Some(text) = self.read(name)? {
            return Ok(limit(&text));
        }
        let exists = fs::metadata(self.0.join(name));
        Ok(exists.is_err_and(|error| error.kind() == io::ErrorKind::NotFound).then_some(Limit::Unlimited))
    }

    fn cgroup(&self, path: Vec<u8>, version: Version) -> Result<Cgroup, Error> {
        let stat = self.read("memory.stat")?.unwrap_or_default();
        let stat = |key: &str| fields::flat_keyed(&stat, key.as_bytes());
        match version {
            Version::One => {
                let limit = self.limit("memory.limit_in_bytes")?;
                let oom_control = self.read("memory.oom_control")?.unwrap_or_default();
                Ok(Cgroup {
                    path,
                    version,
                    limit,
                    high: None,
                    usage: self.number("memory.usage_in_bytes")?,
                    inactive_file: stat("total_inactive_file"),
                    active_file: stat("total_active_file"),
                    anon: stat("total_rss"),
                    file: stat("total_cache"),
                    shmem: stat("total_shmem"),
                    kernel: self.number("memory.kmem.usage_in_bytes")?,
                    swap_limit: remainder(self.limit("memory.memsw.limit_in_bytes")?, limit),
                    swap: stat("total_swap"),
                    oom_kills: fields::flat_keyed(&oom_control, b"oom_kill"),
                    oom_group: None,
                    psi_some: None,
                    psi_full: None,
                })
            }
            Version::Two => {
                let events = self.read("memory.events")?.unwrap_or_default();
                let pressure = self.read("memory.pressure")?.unwrap_or_default();
                Ok(Cgroup {
                    path,
                    version,
                    limit: self.limit("memory.max")?,
                    high: self.limit("memory.high")?,
                    usage: self.number("memory.current")?,
                    inactive_file: stat("inactive_file"),
                    active_file: stat("active_file"),
                    anon: stat("anon"),
                    file: stat("file"),
                    shmem: stat("shmem"),
                    kernel: stat("kernel"),
                    swap_limit: self.limit("memory.swap.max")?,
                    swap: self.number("memory.swap.current")?,
                    oom_kills: fields::flat_keyed(&events, b"oom_kill"),
                    oom_group: self.number("memory.oom.group")?.map(|flag| flag != 0),
                    psi_some: total(&pressure, b"some "),
                    psi_full: total(&pressure, b"full "),
                })
            }
        }
    }
}

/// Parses a limit: a number or `max`. Instead of `max`, version 1 prints the largest multiple of the page size that
/// fits in a signed 64-bit number.
fn limit(text: &[u8]) -> Option<Limit> {
    const LARGEST_PAGE: u64 = 64 * 1024;
    match text.trim_ascii() {
        b"max" => Some(Limit::Unlimited),
        number => match fields::decimal(number)? {
            number if number > i64::MAX as u64 - LARGEST_PAGE => Some(Limit::Unlimited),
            number => Some(Limit::Bytes(number)),
        },
    }
}

/// The limit on the second of two quantities that follows from a limit on their sum and a limit on the first.
fn remainder(both: Option<Limit>, first: Option<Limit>) -> Option<Limit> {
    match (both?, first?) {
        (Limit::Bytes(both), Limit::Bytes(first)) => Some(Limit::Bytes(both.saturating_sub(first))),
        // If the sum is not limited, the first is not limited either. If only the sum is limited, that is the limit.
        (both, Limit::Unlimited) | (both @ Limit::Unlimited, _) => Some(both),
    }
}

/// The total in a line such as `some avg10=0.00 avg60=0.00 avg300=0.00 total=12`.
fn total(pressure: &[u8], kind: &[u8]) -> Option<u64> {
    let words = lines(pressure).find_map(|line| line.strip_prefix(kind))?;
    words.split(|&byte| byte == b' ').find_map(|word| fields::decimal(word.strip_prefix(b"total=")?))
}

/// Whether a comma-separated list contains a word.
fn has_word(list: &[u8], wanted: &[u8]) -> bool {
    list.split(|&byte| byte == b',').any(|word| word == wanted)
}

#[cfg(any(test, feature = "oracle"))]
pub mod naive;
#[cfg(test)]
pub(super) mod tests;
