//! `Key:   value` lines, as smaps, smaps_rollup, status and meminfo print them.
//!
//! The kernel pads between the colon and the value with blanks or tabs, by amounts that change from version to version.
//! A quantity is decimal and followed by ` kB`; a flag or an index stands alone. Both readers below take exactly that
//! and nothing looser: a number whose unit is missing was cut off, and one with another unit would be off by its factor.

use memchr::memchr2;

/// Splits `Key: value` at the colon. `None` if the line has no key: no colon, nothing before it, or a blank before it.
pub fn split(line: &[u8]) -> Option<(&[u8], &[u8])> {
    let at = memchr2(b':', b' ', line)?;
    (line[at] == b':' && at > 0).then(|| (&line[..at], &line[at + 1..]))
}

/// The number of kilobytes in a value such as `     132 kB`.
pub fn kilobytes(value: &[u8]) -> Option<u64> {
    decimal(trim(value).strip_suffix(b" kB")?)
}

/// The number in a value such as `           1`.
pub fn number(value: &[u8]) -> Option<u64> {
    decimal(trim(value))
}

/// A value without the blanks and tabs around it.
pub fn trim(value: &[u8]) -> &[u8] {
    value.trim_ascii()
}

/// Decimal digits, all of them and nothing else. `None` if there are none, or if they exceed 64 bits.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn splits_at_the_first_colon() {
        assert_eq!(split(b"Rss:   4 kB"), Some((&b"Rss"[..], &b"   4 kB"[..])));
        assert_eq!(split(b"Name:           [anon:a]"), Some((&b"Name"[..], &b"           [anon:a]"[..])));
        assert_eq!(split(b"VmFlags:"), Some((&b"VmFlags"[..], &b""[..])));
    }

    #[test]
    fn a_mapping_header_is_no_key() {
        assert_eq!(split(b"00400000-00401000 r--p 00000000 fe:01 12 /bin/a:b"), None);
        assert_eq!(split(b""), None);
        assert_eq!(split(b":"), None);
        assert_eq!(split(b"Rss"), None);
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
}
