//! The oracle: parses smaps in a slow and obvious way, with owned strings and one map for each mapping.
//!
//! It shares no code with the tokenizer and works differently: it first splits the text into lines, recognizes headers
//! by their shape, and looks up the values by key at the end. Property tests and fuzzers compare the two.

use std::collections::HashMap;

use super::super::maps::naive::NaiveHeader;
use super::{KEYS, Malformed, Mapping, Value, mappings};

/// The tokenizer and the oracle agree on every mapping, key and error of any text.
pub fn assert_agrees(text: &[u8]) {
    let ours: Result<Vec<_>, Malformed> = mappings(text).collect();
    match (ours, parse(text)) {
        (Ok(ours), Ok(oracle)) => {
            assert_eq!(ours.len(), oracle.len());
            ours.iter().zip(&oracle).for_each(|(ours, oracle)| assert_same(ours, oracle));
        }
        (Err(ours), Err(line)) => assert!(ours.to_string().starts_with(&format!("Line {line} is ")), "{ours}"),
        (ours, oracle) => panic!("{ours:?}\nbut the oracle says\n{oracle:?}"),
    }
}

fn assert_same(ours: &Mapping<'_>, oracle: &NaiveMapping) {
    let latin1 = |bytes: &[u8]| bytes.iter().map(|&byte| byte as char).collect::<String>();
    oracle.header.assert_same(&ours.header);
    assert_eq!(
        ours.vm_flags().map(latin1),
        oracle.keys.get("VmFlags").map(|words| words.trim_matches([' ', '\t', '\r', '\x0c']).to_string())
    );
    for (at, key) in KEYS.iter().enumerate() {
        let expected = match number(oracle, &latin1(key)) {
            None => Value::Absent,
            Some(None) => Value::Unusable,
            Some(Some(number)) => Value::Number(number),
        };
        assert_eq!(ours.keys.value(at), expected, "{}", latin1(key));
    }
}

/// A mapping, with its keys as text.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct NaiveMapping {
    header: NaiveHeader,
    keys: HashMap<String, String>,
}

/// The mappings of a file, or the number of the first line that is neither a header nor a key line of a mapping. Bytes
/// are read as Latin-1, which has a character for each byte.
pub fn parse(text: &[u8]) -> Result<Vec<NaiveMapping>, usize> {
    let text: String = text.iter().map(|&byte| byte as char).collect();
    let mut mappings: Vec<NaiveMapping> = Vec::new();
    for (index, line) in text.split_inclusive('\n').enumerate() {
        let bad = index + 1;
        let line = line.strip_suffix('\n').ok_or(bad)?;
        if let Some(header) = NaiveHeader::parse(line) {
            mappings.push(NaiveMapping { header, keys: HashMap::new() });
            continue;
        }
        let (key, value) = line.split_once(':').ok_or(bad)?;
        if key.is_empty() || key.contains(' ') {
            return Err(bad);
        }
        let mapping = mappings.last_mut().ok_or(bad)?;
        mapping.keys.insert(key.to_string(), value.to_string());
    }
    Ok(mappings)
}

/// The number of a key. `None` if the key is absent, `Some(None)` if its value is not a 64-bit number with the unit
/// that the key needs.
fn number(mapping: &NaiveMapping, key: &str) -> Option<Option<u64>> {
    let value = mapping.keys.get(key)?;
    let space = [' ', '\t', '\r', '\x0c'];
    let value = value.trim_matches(space);
    let digits = if matches!(key, "THPeligible" | "ProtectionKey") { Some(value) } else { value.strip_suffix(" kB") };
    let Some(digits) = digits else { return Some(None) };
    if !digits.chars().all(|c| c.is_ascii_digit()) {
        return Some(None);
    }
    Some(digits.parse().ok())
}
