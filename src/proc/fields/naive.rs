//! The oracle: `Key: value` lines are stored in a map, and flat keyed lines are split at their first blank.

use std::collections::HashMap;

use super::{flat_keyed, number, signed};

/// The blanks that are trimmed.
const BLANKS: [char; 5] = [' ', '\t', '\n', '\r', '\x0c'];

/// Keys that the extension looks up, and one that it does not.
const FLAT_KEYS: [&str; 6] = ["oom_kill", "anon", "file", "shmem", "total_rss", "none"];

/// The parsers and the oracle agree on any text, read as a file with one number and as lines with keys and numbers.
pub fn assert_agrees(bytes: &[u8]) {
    let text: String = bytes.iter().map(|&byte| byte as char).collect();
    let word = text.trim_matches(BLANKS);
    assert_eq!(number(bytes), decimal(word));
    let digits = word.strip_prefix(['+', '-']).unwrap_or(word);
    let magnitude = decimal(digits).map(i128::from);
    let negated = if word.starts_with('-') { magnitude.map(|magnitude| -magnitude) } else { magnitude };
    assert_eq!(signed(bytes).map(i128::from), negated.filter(|number| (-(1 << 31)..1 << 31).contains(number)));
    for wanted in FLAT_KEYS {
        let lines = text.split('\n').filter_map(|line| line.split_once(' '));
        let mut values = lines.filter(|(key, _)| *key == wanted).filter_map(|(_, value)| decimal(value));
        assert_eq!(flat_keyed(bytes, wanted.as_bytes()), values.next(), "{wanted}");
    }
}

/// A number of up to 64 bits that consists of digits only.
pub(in crate::proc) fn decimal(text: &str) -> Option<u64> {
    if text.chars().all(|c| c.is_ascii_digit()) { text.parse().ok() } else { None }
}

/// The `Key: value` lines of a text. If a key is repeated, the last value counts.
pub(in crate::proc) struct NaiveKeys(HashMap<String, String>);

impl NaiveKeys {
    pub fn of(text: &[u8]) -> Self {
        let text: String = text.iter().map(|&byte| byte as char).collect();
        let lines = text.split('\n').filter_map(|line| line.split_once(':'));
        let lines = lines.filter(|(key, _)| !key.is_empty() && !key.contains(' '));
        NaiveKeys(lines.map(|(key, value)| (key.to_string(), value.trim_matches(BLANKS).to_string())).collect())
    }

    /// The value of a key in kilobytes, converted to bytes.
    pub fn bytes(&self, key: &str) -> Option<u64> {
        decimal(self.0.get(key)?.strip_suffix(" kB")?)?.checked_mul(1024)
    }

    pub fn number(&self, key: &str) -> Option<u64> {
        decimal(self.0.get(key)?)
    }
}
