//! The oracle: treats the files of cgroups as text, and addresses words by their position.

use std::path::Path;

use super::super::fields::naive::decimal;
use super::{Limit, Mount, MountedCgroup, Version, limit, membership, total};

/// The parsers and the oracle agree on any text: as the files cgroup and mountinfo with an empty line between them, and
/// as each of the smaller files.
pub fn assert_agrees(bytes: &[u8]) {
    let gap = bytes.windows(2).position(|pair| pair == b"\n\n").unwrap_or(bytes.len());
    let (cgroup, mountinfo) = bytes.split_at(gap);
    let naive_mountinfo = latin1(mountinfo);

    let ours = membership(cgroup);
    let oracle = naive_membership(&latin1(cgroup));
    assert_eq!(ours.map(|(version, path)| (version, latin1(path))), oracle);
    let ours = ours.and_then(|(version, path)| MountedCgroup::find(version, path, mountinfo));
    let oracle = oracle.and_then(|(version, path)| NaiveMountedCgroup::find(version, &path, &naive_mountinfo));
    match (ours, oracle) {
        (Some(ours), Some(oracle)) => oracle.assert_same(&ours),
        (None, None) => {}
        (ours, oracle) => panic!("{ours:?}\nbut the oracle says\n{oracle:?}"),
    }
    for (line, naive) in mountinfo.split(|&byte| byte == b'\n').zip(naive_mountinfo.split('\n')) {
        match (Mount::parse(line), NaiveMount::parse(naive)) {
            (Some(ours), Some(oracle)) => oracle.assert_same(&ours),
            (ours, oracle) => assert_eq!(ours.is_some(), oracle.is_some(), "{naive}"),
        }
    }

    let text = latin1(bytes);
    assert_eq!(limit(bytes), naive_limit(&text));
    for kind in ["some ", "full "] {
        assert_eq!(total(bytes, kind.as_bytes()), naive_total(&text, kind), "{kind}");
    }
}

fn latin1(bytes: &[u8]) -> String {
    bytes.iter().map(|&byte| byte as char).collect()
}

fn bytes(latin1: &str) -> Vec<u8> {
    latin1.chars().map(|c| c as u8).collect()
}

fn naive_membership(cgroup: &str) -> Option<(Version, String)> {
    let mut two = None;
    for line in cgroup.split('\n') {
        let Some((_, rest)) = line.split_once(':') else { continue };
        let Some((controllers, path)) = rest.split_once(':') else { continue };
        if controllers.split(',').any(|controller| controller == "memory") {
            return Some((Version::One, path.into()));
        }
        if two.is_none() && line.starts_with("0::") {
            two = Some((Version::Two, path.into()));
        }
    }
    two
}

#[derive(Debug)]
struct NaiveMount {
    device: String,
    root: String,
    point: String,
    file_system: String,
    options: String,
}

impl NaiveMount {
    fn parse(line: &str) -> Option<Self> {
        let words: Vec<&str> = line.split(' ').collect();
        let separator = (5..words.len()).find(|&at| words[at] == "-")?;
        Some(NaiveMount {
            device: words[2].into(),
            root: naive_unescaped(words[3]),
            point: naive_unescaped(words[4]),
            file_system: words.get(separator + 1)?.to_string(),
            options: words.get(separator + 3)?.to_string(),
        })
    }

    fn assert_same(&self, ours: &Mount<'_>) {
        assert_eq!(latin1(ours.device), self.device);
        assert_eq!(latin1(&ours.root), self.root);
        assert_eq!(latin1(ours.point.as_os_str().as_encoded_bytes()), self.point);
        assert_eq!(latin1(ours.file_system), self.file_system);
        assert_eq!(latin1(ours.options), self.options);
    }

    fn is_of(&self, version: Version) -> bool {
        match version {
            Version::One => self.file_system == "cgroup" && format!(",{},", self.options).contains(",memory,"),
            Version::Two => self.file_system == "cgroup2",
        }
    }
}

/// Replaces a backslash followed by three octal digits by that byte. Everything else is unchanged.
fn naive_unescaped(text: &str) -> String {
    let mut parts = text.split('\\');
    let mut unescaped = parts.next().unwrap_or_default().to_string();
    for part in parts {
        let digits: String = part.chars().take(3).take_while(|c| ('0'..='7').contains(c)).collect();
        match u32::from_str_radix(&digits, 8) {
            Ok(byte @ 0..=255) if digits.len() == 3 => {
                unescaped.extend(char::from_u32(byte));
                unescaped += &part[3..];
            }
            _ => {
                unescaped.push('\\');
                unescaped += part;
            }
        }
    }
    unescaped
}

#[derive(Debug)]
struct NaiveMountedCgroup {
    version: Version,
    mount: NaiveMount,
    names: Vec<String>,
}

impl NaiveMountedCgroup {
    fn find(version: Version, path: &str, mountinfo: &str) -> Option<Self> {
        let mounts: Vec<_> = mountinfo.split('\n').filter_map(NaiveMount::parse).collect();
        // Compare as paths, because `/a//b` is `/a/b`.
        let points: Vec<_> = mounts.iter().map(|mount| Path::new(&mount.point).to_owned()).collect();
        let mut found: Option<Self> = None;
        for (at, mount) in mounts.into_iter().enumerate() {
            if points[at + 1..].contains(&points[at]) || !mount.is_of(version) {
                continue;
            }
            let Some(names) = naive_below(&mount.root, path) else { continue };
            if found.as_ref().is_none_or(|found| names.len() >= found.names.len()) {
                found = Some(NaiveMountedCgroup { version, mount, names });
            }
        }
        found
    }

    fn assert_same(&self, ours: &MountedCgroup) {
        assert_eq!(ours.version, self.version);
        assert_eq!(ours.device, bytes(&self.mount.device));
        assert_eq!(ours.mount_point.as_os_str().as_encoded_bytes(), bytes(&self.mount.point));
        assert_eq!(ours.top, bytes(&self.mount.root));
        assert_eq!(ours.names, self.names.iter().map(|name| bytes(name)).collect::<Vec<_>>());
    }
}

fn naive_below(root: &str, path: &str) -> Option<Vec<String>> {
    let directory = if root.ends_with('/') { root.to_string() } else { format!("{root}/") };
    if path == root {
        return Some(Vec::new());
    }
    if !path.starts_with(&directory) {
        return None;
    }
    let names: Vec<String> = path[directory.len()..].split('/').map(String::from).collect();
    if names.iter().any(|name| name == "..") {
        return None;
    }
    Some(names.into_iter().filter(|name| !name.is_empty()).collect())
}

fn naive_limit(text: &str) -> Option<Limit> {
    let word = text.trim_matches([' ', '\t', '\n', '\r', '\x0c']);
    // In version 1, no limit is printed as the largest multiple of the page size, at most 64 kB, that fits in a signed
    // number.
    match decimal(word) {
        Some(bytes) if bytes <= (1 << 63) - 1 - (64 << 10) => Some(Limit::Bytes(bytes)),
        Some(_) => Some(Limit::Unlimited),
        None => (word == "max").then_some(Limit::Unlimited),
    }
}

fn naive_total(text: &str, kind: &str) -> Option<u64> {
    let line = text.split('\n').find(|line| line.starts_with(kind))?;
    let totals = line.split(' ').skip(1).filter_map(|word| word.split_once('='));
    totals.filter(|(name, _)| *name == "total").find_map(|(_, value)| decimal(value))
}
