//! `Key:   value` lines, as smaps, smaps_rollup, status and meminfo print them.
//!
//! The kernel pads between the colon and the value with blanks or tabs, and the width differs between versions. A
//! quantity is a decimal number followed by ` kB`; a flag or an index is a number without a unit. [`kilobytes`] and
//! [`number`] accept only that: a number without its unit was cut off, and a number with another unit would be wrong by
//! a factor. The kernel's other small formats follow: a file with a single number, and lines with a key and a number.

use std::mem;

use memchr::memchr_iter;

/// The key at the start of a text, and what follows its colon. `None` if the first line has no colon, or if nothing or
/// a blank comes before the colon.
#[inline]
pub fn key(text: &[u8]) -> Option<(&[u8], &[u8])> {
    // A loop is fast enough, because keys are short.
    let at = text.iter().position(|byte| matches!(byte, b':' | b' ' | b'\n'))?;
    (text[at] == b':' && at > 0).then(|| (&text[..at], &text[at + 1..]))
}

/// The lines of a text, without their newlines.
pub fn lines(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut start = 0;
    memchr_iter(b'\n', text).chain([text.len()]).map(move |end| &text[mem::replace(&mut start, end + 1)..end])
}

/// The number of kilobytes in a value such as `     132 kB`.
pub fn kilobytes(value: &[u8]) -> Option<u64> {
    decimal(value.trim_ascii().strip_suffix(b" kB")?)
}

/// The number in a value such as `           1`.
pub fn number(value: &[u8]) -> Option<u64> {
    decimal(value.trim_ascii())
}

/// The start of a key's line as current kernels print it: the key, its colon, and blanks up to the eight columns in
/// which the number is right-aligned.
pub const fn label(key: &[u8]) -> [u8; 16] {
    let mut label = [b' '; 16];
    let mut at = 0;
    while at < key.len() {
        label[at] = key[at];
        at += 1;
    }
    label[at] = b':';
    label
}

/// The length of a quantity's line as current kernels print it: label, eight columns, ` kB` and the newline.
pub const QUANTITY_LINE: usize = 28;

/// The number in a line for a key, if the line is exactly as current kernels print it. Finds what [`key`] and
/// [`kilobytes`] would find, without a loop. `None` for any other text, even if it has the key.
#[inline]
pub fn kilobytes_of(label: &[u8; 16], line: &[u8; QUANTITY_LINE]) -> Option<u64> {
    let (start, rest) = line.split_first_chunk()?;
    let (digits, unit) = rest.split_first_chunk()?;
    if start != label || unit != b" kB\n" {
        return None;
    }
    // By far the most frequent number.
    if digits == b"       0" { Some(0) } else { eight_columns(*digits) }
}

/// A decimal number, right-aligned in eight columns that are padded with blanks. All columns are processed at once, as
/// the bytes of a word.
#[inline]
fn eight_columns(columns: [u8; 8]) -> Option<u64> {
    const EACH: u64 = 0x0101_0101_0101_0101;
    // The first column is the lowest byte. A digit becomes its value, a blank becomes 16.
    let word = u64::from_le_bytes(columns) ^ (EACH * u64::from(b'0'));
    let blanks = (word ^ (EACH * 16)).trailing_zeros() / 8;
    // A blank counts as the digit 0. A word of blanks only has no number, and the shift fails.
    let word = word.checked_shr(8 * blanks)? << (8 * blanks);
    // Adding 118 to a byte above 9 sets its highest bit, unless the bit is already set.
    if (word.wrapping_add(EACH * 118) | word) & (EACH * 128) != 0 {
        return None;
    }
    // Add up pairs of columns, then groups of four, then all eight.
    let word = word * 10 + (word >> 8);
    let upper = (word & 0x0000_00ff_0000_00ff).wrapping_mul(100 + (1_000_000 << 32));
    let lower = ((word >> 16) & 0x0000_00ff_0000_00ff).wrapping_mul(1 + (10_000 << 32));
    Some(upper.wrapping_add(lower) >> 32)
}

/// The number in a file that contains only one number, possibly negative.
pub fn signed(text: &[u8]) -> Option<i32> {
    str::from_utf8(text.trim_ascii()).ok()?.parse().ok()
}

/// The number of a key in lines of the form `key number`, the kernel's flat keyed format: memory.stat and vmstat.
pub fn flat_keyed(text: &[u8], key: &[u8]) -> Option<u64> {
    let value = |line: &'_ [u8]| decimal(line.strip_prefix(key)?.strip_prefix(b" ")?);
    lines(text).find_map(value)
}

/// A number that consists of decimal digits only. `None` if the text is empty or the number exceeds 64 bits.
pub fn decimal(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0u64, |sum, byte| {
        let digit = byte.wrapping_sub(b'0');
        if digit > 9 {
            return None;
        }
        sum.checked_mul(10)?.checked_add(digit.into())
    })
}

#[cfg(any(test, feature = "oracle"))]
pub mod naive;

#[cfg(test)]
mod tests {
    use proptest::prelude::{ProptestConfig, prop_assert_eq, proptest};

    use super::*;

    #[test]
    fn a_key_ends_at_the_first_colon() {
        assert_eq!(key(b"Rss:   4 kB"), Some((&b"Rss"[..], &b"   4 kB"[..])));
        assert_eq!(key(b"Name:           [anon:a]"), Some((&b"Name"[..], &b"           [anon:a]"[..])));
        assert_eq!(key(b"VmFlags:"), Some((&b"VmFlags"[..], &b""[..])));
    }

    #[test]
    fn lines_end_at_newlines() {
        for text in [&b""[..], b"\n", b"a", b"a\n", b"\na\n\nb"] {
            assert!(lines(text).eq(text.split(|&byte| byte == b'\n')), "{}", text.escape_ascii());
        }
    }

    #[test]
    fn a_mapping_header_is_not_a_key() {
        assert_eq!(key(b"00400000-00401000 r--p 00000000 fe:01 12 /bin/a:b"), None);
        assert_eq!(key(b""), None);
        assert_eq!(key(b":"), None);
        assert_eq!(key(b"Rss"), None);
        assert_eq!(key(b"Rss\nPss: 4 kB"), None);
    }

    #[test]
    fn kilobytes_need_their_unit() {
        assert_eq!(kilobytes(b"                 132 kB"), Some(132));
        assert_eq!(kilobytes(b"\t     132 kB"), Some(132));
        assert_eq!(kilobytes(b" 18446744073709551615 kB"), Some(u64::MAX));
        for bad in
            [" 132", " 132 k", " 132 MB", " 132 KB", "132kB", " kB", "kB", "", " -4 kB", " +4 kB", " 4 4 kB", " 0x4 kB"]
        {
            assert_eq!(kilobytes(bad.as_bytes()), None, "{bad:?}");
        }
    }

    #[test]
    fn a_file_of_one_number() {
        assert_eq!(signed(b"-1000\n"), Some(-1000));
        assert_eq!(signed(b"668\n"), Some(668));
        for bad in [&b""[..], b"\n", b"1 2\n", b"99999999999\n", b"\xff"] {
            assert_eq!(signed(bad), None);
        }
    }

    #[test]
    fn a_flat_key_is_whole() {
        let text = b"anon 1\nfile_mapped 2\nfile 3\nnr_file 4\n";
        assert_eq!(flat_keyed(text, b"file"), Some(3));
        assert_eq!(flat_keyed(text, b"anon"), Some(1));
        assert_eq!(flat_keyed(text, b"fil"), None);
        assert_eq!(flat_keyed(b"anon1\n", b"anon"), None);
        assert_eq!(flat_keyed(b"anon 1 kB\nanonymous 1\n", b"anon"), None);
    }

    #[test]
    fn beyond_64_bits_is_no_number() {
        assert_eq!(number(b"18446744073709551616"), None);
        assert_eq!(kilobytes(b" 99999999999999999999999 kB"), None);
    }

    #[test]
    fn a_plain_number_has_no_unit() {
        assert_eq!(number(b"           1"), Some(1));
        assert_eq!(number(b"1 kB"), None);
        assert_eq!(number(b""), None);
    }

    /// What the two general functions find in a line.
    fn slowly(wanted: &[u8], line: &[u8]) -> Option<u64> {
        let (found, value) = key(line.strip_suffix(b"\n")?)?;
        (found == wanted).then(|| kilobytes(value))?
    }

    #[test]
    fn the_usual_layout_is_read_at_once() {
        for key in ["Rss", "Private_Hugetlb"] {
            for number in [0, 1, 9, 10, 4096, 1_234_567u64] {
                let width = 24 - (key.len() + 1);
                let line = format!("{key}:{number:>width$} kB\n").into_bytes();
                let read = kilobytes_of(&label(key.as_bytes()), line.as_slice().try_into().unwrap());
                assert_eq!(read, Some(number), "{key}");
                assert_eq!(slowly(key.as_bytes(), &line), Some(number), "{key}");
            }
        }
    }

    #[test]
    fn eight_columns_are_a_number() {
        for number in [0u64, 9, 10, 12_345_678, 99_999_999] {
            let columns = format!("{number:>8}").into_bytes();
            assert_eq!(eight_columns(columns.try_into().unwrap()), Some(number));
        }
        for bad in
            ["        ", "1 234567", "1234567 ", "   -1   ", "      1:", "      1/", "\t      1", "       \u{7f}"]
        {
            assert_eq!(eight_columns(bad.as_bytes().try_into().unwrap()), None, "{bad:?}");
        }
        assert_eq!(eight_columns([0xff; 8]), None);
    }

    #[test]
    fn other_layouts_are_not_read_at_once() {
        let label = label(b"Rss");
        for line in [
            "Rss:                     kB\n",
            "Rss:                   4 MB\n",
            "Rss:                   4 kB ",
            "Rss:                  4  kB\n",
            "Rss:                 4 kB\nPs",
            "Rss:\t                  4 kB\n",
            "Rss:                 - 4 kB\n",
            "Rss:                 4 4 kB\n",
            "Rss:                  4x kB\n",
            "Rss:               -   0 kB\n",
            "Pss:                   4 kB\n",
        ] {
            assert_eq!(kilobytes_of(&label, line.as_bytes().try_into().unwrap()), None, "{line:?}");
        }
    }

    proptest! {
        #[test]
        fn agrees_with_the_oracle(text in "[ \\n+-]?[0-9]{0,11}\n?|((oom_kill|anon|anon_|file) {0,2}[0-9]{0,21}[ \\n]?)*") {
            naive::assert_agrees(text.as_bytes());
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(20_000))]

        #[test]
        fn both_ways_agree(columns in "[ 0-9]{8}|[ ]{4}[0-9]{4}|[ -:]{8}", unit in " kB\n| kB\r| KB\n|\nkB\n") {
            let line = format!("Rss:            {columns}{unit}");
            let Ok(whole) = line.as_bytes().try_into() else { return Ok(()) };
            if let Some(number) = kilobytes_of(&label(b"Rss"), whole) {
                prop_assert_eq!(Some(number), slowly(b"Rss", line.as_bytes()));
            }
        }
    }
}
