//! Makes bytes from outside the database storable as text.

use pgrx_pg_sys as pg_sys;

use super::error;

/// Returns `bytes` if they are valid in the database's encoding, otherwise a copy in `scratch` in which each byte that
/// is not part of a valid character is replaced by `\xNN`.
pub fn storable<'a>(bytes: &'a [u8], scratch: &'a mut Vec<u8>) -> &'a [u8] {
    if is_plain(bytes) {
        return bytes;
    }
    scratch.clear();
    error::reserve(scratch, bytes.len() * "\\xNN".len());
    let mut rest = bytes;
    loop {
        let (valid, invalid) = rest.split_at(valid_prefix(rest));
        scratch.extend_from_slice(valid);
        let Some((byte, after)) = invalid.split_first() else { return scratch };
        scratch.extend_from_slice(format!("\\x{byte:02x}").as_bytes());
        rest = after;
    }
}

/// The text without an incomplete character at its end. For a text in another encoding than the database's, the end may
/// be anywhere.
pub fn clip(text: &[u8]) -> &[u8] {
    // Some encodings look at two bytes to find the length of a character.
    let padded = [text, b"\0"].concat();
    let length = i32::try_from(text.len()).expect("a text is shorter than 2 GiB");
    // SAFETY: reads a plain variable.
    let encoding = unsafe { pg_sys::GetDatabaseEncoding() };
    // SAFETY: the length is that of the text, which is only read.
    let clipped = unsafe { pg_sys::pg_encoding_mbcliplen(encoding, padded.as_ptr().cast(), length, length) };
    &text[..clipped as usize]
}

/// Whether the bytes are ASCII without a zero byte. Every server encoding contains ASCII, and none allows a zero byte.
/// Looks at eight bytes at a time; the last eight may overlap with those before.
fn is_plain(bytes: &[u8]) -> bool {
    const EACH: u64 = 0x0101_0101_0101_0101;
    // A byte is refused if its highest bit is set, or if subtracting one sets it by a borrow, as it does for a zero
    // byte.
    let are_plain = |word: u64| (word | word.wrapping_sub(EACH)) & (EACH << 7) == 0;
    let (words, _) = bytes.as_chunks();
    match bytes.last_chunk() {
        Some(&last) => words.iter().chain([&last]).all(|&word| are_plain(u64::from_ne_bytes(word))),
        None => bytes.iter().all(|byte| (1..0x80).contains(byte)),
    }
}

/// The number of bytes at the beginning that are complete, valid characters.
fn valid_prefix(bytes: &[u8]) -> usize {
    let length = i32::try_from(bytes.len()).expect("a line of /proc is shorter than 2 GiB");
    // SAFETY: reads a plain variable.
    let encoding = unsafe { pg_sys::GetDatabaseEncoding() };
    // SAFETY: the pointer and the length are those of one slice, which is only read.
    let valid = unsafe { pg_sys::pg_encoding_verifymbstr(encoding, bytes.as_ptr().cast(), length) };
    valid as usize
}
