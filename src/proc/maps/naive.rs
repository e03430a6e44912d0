//! The oracle: parses maps in a slow and obvious way, as text split at blanks.

use std::ops::Range;

use super::{Header, lines};

/// The parser and the oracle agree on every line of any text.
pub fn assert_agrees(text: &[u8]) {
    let ours: Vec<_> = lines(text).map(Result::ok).collect();
    let oracle = parse(text);
    assert_eq!(ours.len(), oracle.len());
    for pair in ours.into_iter().zip(oracle) {
        match pair {
            (Some((header, range)), Some(oracle)) => {
                oracle.assert_same(&header);
                assert_eq!(Some(range), oracle.range());
            }
            (None, None) => {}
            (ours, oracle) => panic!("{ours:?}\nbut the oracle says\n{oracle:?}"),
        }
    }
}

/// The lines of a file. A line is `None` if it has another form, an address that exceeds 64 bits, or no newline. Bytes
/// are read as Latin-1, which has a character for each byte.
pub(in crate::proc) fn parse(text: &[u8]) -> Vec<Option<NaiveHeader>> {
    let text: String = text.iter().map(|&byte| byte as char).collect();
    let line = |line: &str| NaiveHeader::parse(line.strip_suffix('\n')?).filter(|header| header.range().is_some());
    text.split_inclusive('\n').map(line).collect()
}

/// A line of maps, as text.
#[derive(Debug, Default, PartialEq, Eq)]
pub(in crate::proc) struct NaiveHeader {
    pub start: String,
    pub end: String,
    pub permissions: String,
    pub offset: String,
    pub device: String,
    pub inode: String,
    pub path: String,
}

impl NaiveHeader {
    pub fn parse(line: &str) -> Option<Self> {
        let mut parts = line.splitn(6, ' ');
        let (start, end) = parts.next()?.split_once('-')?;
        let permissions = parts.next()?;
        let offset = parts.next()?;
        let device = parts.next()?;
        let (major, minor) = device.split_once(':')?;
        let inode = parts.next()?;
        let path = parts.next().unwrap_or("").trim_start_matches(' ');

        let hexadecimal = |text: &str| !text.is_empty() && text.chars().all(|c| c.is_ascii_hexdigit());
        let decimal = |text: &str| !text.is_empty() && text.chars().all(|c| c.is_ascii_digit());
        if ![start, end, offset, major, minor].into_iter().all(hexadecimal)
            || permissions.chars().count() != 4
            || !decimal(inode)
        {
            return None;
        }
        Some(NaiveHeader {
            start: start.into(),
            end: end.into(),
            permissions: permissions.into(),
            offset: offset.into(),
            device: device.into(),
            inode: inode.into(),
            path: path.into(),
        })
    }

    /// The addresses. `None` if one exceeds 64 bits.
    pub fn range(&self) -> Option<Range<u64>> {
        let address = |text| u64::from_str_radix(text, 16).ok();
        Some(address(&self.start)?..address(&self.end)?)
    }

    pub fn assert_same(&self, ours: &Header<'_>) {
        let latin1 = |bytes: &[u8]| bytes.iter().map(|&byte| byte as char).collect::<String>();
        assert_eq!(ours.range, self.range());
        for (ours, oracle) in [
            (ours.start, &self.start),
            (ours.end, &self.end),
            (ours.permissions, &self.permissions),
            (ours.offset, &self.offset),
            (ours.device, &self.device),
            (ours.path, &self.path),
        ] {
            assert_eq!(&latin1(ours), oracle);
        }
        assert_eq!(Some((latin1(ours.major).as_str(), latin1(ours.minor).as_str())), self.device.split_once(':'));
        assert_eq!(ours.inode, self.inode.parse().ok());
        assert_eq!(ours.byte_offset(), u64::from_str_radix(&self.offset, 16).ok());
    }
}
