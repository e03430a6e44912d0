//! The file in which the table is kept while the server is down.
//!
//! It begins with a magic number, a version and the lengths; then come the entries, each followed by its text, and in
//! the end the CRC-32 of all that. All numbers are little-endian. A file of another version, or one that is damaged, is
//! not read at all.

use std::collections::TryReserveError;

use super::table::{Entry, Table, WORDS};

const MAGIC: [u8; 8] = *b"pgmemst\n";

/// The version of the format. A change of [`Entry`] is a new one.
const VERSION: u32 = 1;

/// What stands before the entries.
const HEADER: usize = MAGIC.len() + 4 * size_of::<u64>();

/// What is saved beside the entries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    /// How many times entries had to go because the table was full.
    pub deallocations: u64,
    /// When all entries were last reset.
    pub reset_at: i64,
}

/// Why a file cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unusable {
    /// It is not such a file, or of another version.
    Foreign,
    /// Its end is missing, or its checksum is wrong.
    Damaged,
    /// There is no memory for it.
    OutOfMemory,
}

impl From<TryReserveError> for Unusable {
    fn from(_: TryReserveError) -> Self {
        Unusable::OutOfMemory
    }
}

/// The content of the file for a table.
pub fn encode(table: &Table, statistics: Statistics) -> Result<Vec<u8>, TryReserveError> {
    let texts: u64 = table.iter().map(|(entry, _)| entry.text_length).sum();
    let mut bytes = Vec::new();
    bytes.try_reserve_exact(HEADER + *table.count as usize * size_of::<Entry>() + texts as usize + size_of::<u32>())?;
    bytes.extend_from_slice(&MAGIC);
    for number in [VERSION.into(), *table.count, statistics.deallocations, statistics.reset_at as u64] {
        bytes.extend_from_slice(&number.to_le_bytes());
    }
    for (entry, text) in table.iter() {
        for word in entry.to_words() {
            bytes.extend_from_slice(&word.to_le_bytes());
        }
        bytes.extend_from_slice(text);
    }
    let checksum = crc32fast::hash(&bytes);
    bytes.extend_from_slice(&checksum.to_le_bytes());
    Ok(bytes)
}

/// Adds the entries of a file to a table.
pub fn decode(bytes: &[u8], table: &mut Table) -> Result<Statistics, Unusable> {
    let mut header = bytes.strip_prefix(&MAGIC).ok_or(Unusable::Foreign)?;
    let version = take_number(&mut header).ok_or(Unusable::Foreign)?;
    if version != u64::from(VERSION) {
        return Err(Unusable::Foreign);
    }
    let (content, checksum) = bytes.split_last_chunk().ok_or(Unusable::Damaged)?;
    if crc32fast::hash(content) != u32::from_le_bytes(*checksum) {
        return Err(Unusable::Damaged);
    }
    let mut rest = content.get(MAGIC.len() + size_of::<u64>()..).ok_or(Unusable::Damaged)?;
    let mut number = || take_number(&mut rest).ok_or(Unusable::Damaged);
    let (count, deallocations, reset_at) = (number()?, number()?, number()? as i64);
    for _ in 0..count {
        let mut words = [0; WORDS];
        for word in &mut words {
            *word = take_number(&mut rest).ok_or(Unusable::Damaged)?;
        }
        let entry = Entry::from_words(words);
        let length = usize::try_from(entry.text_length).map_err(|_| Unusable::Damaged)?;
        let (text, after) = rest.split_at_checked(length).ok_or(Unusable::Damaged)?;
        rest = after;
        table.restore(entry, text)?;
    }
    Ok(Statistics { deallocations, reset_at })
}

fn take_number(bytes: &mut &[u8]) -> Option<u64> {
    let (number, rest) = bytes.split_first_chunk()?;
    *bytes = rest;
    Some(u64::from_le_bytes(*number))
}

#[cfg(test)]
mod tests;
