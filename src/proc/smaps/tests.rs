use proptest::prelude::*;

use super::naive::assert_agrees;
use super::*;

/// The only mapping in a text. Panics if there is an error.
fn only(text: &[u8]) -> Mapping<'_> {
    let mut mappings = mappings(text);
    let mapping = mappings.next().expect("a mapping").expect("a well-formed one");
    assert!(mappings.next().is_none(), "more than one mapping");
    mapping
}

const ONLY_IN_ROLLUP: [Field; 3] = [Field::PssAnon, Field::PssFile, Field::PssShmem];

fn values(mapping: &Mapping) -> [Value; Field::COUNT] {
    std::array::from_fn(|at| mapping.keys.value(at))
}

/// A header line for `path`, padded as the kernel pads it.
fn header(path: &[u8]) -> Vec<u8> {
    let mut line = b"7f0000000000-7f0000001000 rw-p 00000000 00:00 0 ".to_vec();
    line.resize(73, b' ');
    line.extend_from_slice(path);
    line.push(b'\n');
    line
}

fn path_of(path: &[u8]) -> Vec<u8> {
    only(&header(path)).header.path.to_vec()
}

/// The number of the line at which parsing fails.
fn refused_at(text: &[u8]) -> usize {
    let malformed = mappings(text).find_map(Result::err).expect("an error").to_string();
    malformed.strip_prefix("Line ").and_then(|rest| rest.split(' ').next()?.parse().ok()).expect("a line's number")
}

// The file: records, keys, order.

#[test]
fn an_empty_file_has_no_mapping() {
    assert!(mappings(b"").next().is_none());
}

#[test]
fn fields_have_the_position_of_their_key() {
    assert_eq!(KEYS[Field::Size as usize], b"Size");
    assert_eq!(KEYS[Field::Locked as usize], b"Locked");
    assert_eq!(KEYS[Field::ThpEligible as usize], b"THPeligible");
    assert_eq!(KEYS[Field::ProtectionKey as usize], b"ProtectionKey");
    for (at, field) in Field::ALL[..Field::QUANTITIES].iter().copied().enumerate() {
        assert_eq!(field as usize, at);
        // Keys and names differ only in underscores and in the case of acronyms.
        let plain = |text: &str| text.replace('_', "").to_lowercase();
        assert_eq!(plain(&format!("{field:?}")), plain(std::str::from_utf8(KEYS[at]).unwrap()));
    }
}

#[test]
fn keys_of_old_and_new_kernels() {
    // The keys that each kernel does not print, according to the history of fs/proc/task_mmu.c.
    let absent_before: [(&str, &[Field]); 6] = [
        (
            include_str!("../../../tests/fixtures/linux-3.10.smaps"),
            &[
                Field::PssDirty,
                Field::Ksm,
                Field::LazyFree,
                Field::ShmemPmdMapped,
                Field::FilePmdMapped,
                Field::SharedHugetlb,
                Field::PrivateHugetlb,
                Field::SwapPss,
                Field::ThpEligible,
                Field::ProtectionKey,
            ],
        ),
        (
            include_str!("../../../tests/fixtures/linux-4.4.smaps"),
            &[
                Field::PssDirty,
                Field::Ksm,
                Field::LazyFree,
                Field::ShmemPmdMapped,
                Field::FilePmdMapped,
                Field::ThpEligible,
                Field::ProtectionKey,
            ],
        ),
        (
            include_str!("../../../tests/fixtures/linux-4.14.smaps"),
            &[Field::PssDirty, Field::Ksm, Field::FilePmdMapped, Field::ThpEligible],
        ),
        (include_str!("../../../tests/fixtures/linux-5.4.smaps"), &[Field::PssDirty, Field::Ksm]),
        (include_str!("../../../tests/fixtures/linux-6.1.smaps"), &[Field::Ksm]),
        // A machine without protection keys.
        (include_str!("../../../tests/fixtures/linux-6.6.smaps"), &[Field::ProtectionKey]),
    ];
    for (text, absent) in absent_before {
        let all: Vec<_> = mappings(text.as_bytes()).map(Result::unwrap).collect();
        assert_eq!(all.len(), 6);
        for mapping in &all {
            for (at, value) in values(mapping).into_iter().enumerate() {
                let is_absent = absent.iter().chain(&ONLY_IN_ROLLUP).any(|&field| field as usize == at);
                assert_eq!(value == Value::Absent, is_absent, "{}", KEYS[at].escape_ascii());
            }
            assert_eq!(mapping.value(Field::KernelPageSize), Value::Number(4));
            assert!(mapping.vm_flags().is_some_and(|flags| flags.starts_with(b"rd")));
        }
        assert_eq!(all[0].value(Field::Size), Value::Number(7196));
        assert_eq!(all[2].header.path, b"/dev/zero (deleted)");
        assert_eq!(all[3].header.path, b"");
        assert_eq!(all[5].header.start, b"ffffffffff600000");
        assert_agrees(text.as_bytes());
    }
}

#[test]
fn this_kernel() {
    let text = std::fs::read("/proc/self/smaps").unwrap();
    let all: Vec<_> = mappings(&text).map(Result::unwrap).collect();
    assert!(all.iter().any(|mapping| mapping.header.path == b"[stack]"));
    for mapping in &all {
        let address = |hex: &[u8]| u64::from_str_radix(std::str::from_utf8(hex).unwrap(), 16).unwrap();
        let size = (address(mapping.header.end) - address(mapping.header.start)) / 1024;
        assert_eq!(mapping.value(Field::Size), Value::Number(size));
        assert!(!Field::ALL[..Field::QUANTITIES].iter().any(|&field| mapping.value(field) == Value::Unusable));
    }
    assert_agrees(&text);
}

#[test]
fn vm_flags_do_not_end_a_mapping() {
    let mut text = header(b"");
    text.extend_from_slice(b"Rss: 4 kB\nVmFlags: rd wr \nPss: 2 kB\n");
    let mapping = only(&text);
    assert_eq!(mapping.value(Field::Rss), Value::Number(4));
    assert_eq!(mapping.value(Field::Pss), Value::Number(2));
    assert_eq!(mapping.vm_flags(), Some(&b"rd wr"[..]));
}

#[test]
fn vm_flags_absent_empty_or_many() {
    assert_eq!(only(&header(b"")).vm_flags(), None);
    for (line, flags) in [
        ("VmFlags:\n", ""),
        ("VmFlags: \n", ""),
        ("VmFlags: rd\n", "rd"),
        ("VmFlags: rd ?? wr \n", "rd ?? wr"),
        ("VmFlags: rd longflag wr \n", "rd longflag wr"),
    ] {
        assert_eq!(only(&[&header(b"")[..], line.as_bytes()].concat()).vm_flags(), Some(flags.as_bytes()));
    }
    let forty = vec!["mm"; 40].join(" ");
    let text = [&header(b"")[..], format!("VmFlags: {forty} \n").as_bytes()].concat();
    assert_eq!(only(&text).vm_flags(), Some(forty.as_bytes()));
}

#[test]
fn nothing_is_carried_over_to_the_next_mapping() {
    let mut text = header(b"/first");
    text.extend_from_slice(b"Size: 4 kB\nRss: 4 kB\nLocked: 8 kB\nTHPeligible: 1\nVmFlags: rd lo \n");
    text.extend_from_slice(&header(b""));
    text.extend_from_slice(b"Size: 8 kB\n");
    let all: Vec<_> = mappings(&text).map(Result::unwrap).collect();
    assert_eq!(all[1].header.path, b"");
    assert_eq!(all[1].vm_flags(), None);
    for (at, value) in values(&all[1]).into_iter().enumerate() {
        assert_eq!(value, if at == 0 { Value::Number(8) } else { Value::Absent });
    }
}

#[test]
fn a_rollup_is_one_mapping() {
    let text = b"55a0c0000000-7ffd00000000 ---p 00000000 00:00 0                          [rollup]\n\
        Rss:                5868 kB\nPss:                1432 kB\nPss_Dirty:           580 kB\n\
        Pss_Anon:            440 kB\nPss_File:            928 kB\nPss_Shmem:            64 kB\n\
        Shared_Clean:       4900 kB\nLocked:                7 kB\n";
    let rollup = only(text);
    assert_eq!(rollup.header.path, b"[rollup]");
    for (field, number) in [
        (Field::Rss, 5868),
        (Field::Pss, 1432),
        (Field::PssDirty, 580),
        (Field::PssAnon, 440),
        (Field::PssFile, 928),
        (Field::PssShmem, 64),
        (Field::SharedClean, 4900),
        (Field::Locked, 7),
    ] {
        assert_eq!(rollup.value(field), Value::Number(number), "{field:?}");
    }
    assert_eq!(rollup.value(Field::Size), Value::Absent);
    assert_agrees(text);
}

#[test]
fn keys_may_have_any_order() {
    let mut text = header(b"");
    for (at, key) in KEYS[..Field::QUANTITIES].iter().enumerate().rev() {
        text.extend_from_slice(key);
        text.extend_from_slice(format!(": {at} kB\n").as_bytes());
    }
    let mapping = only(&text);
    for (at, field) in Field::ALL[..Field::QUANTITIES].iter().copied().enumerate() {
        assert_eq!(mapping.value(field), Value::Number(at as u64));
    }
}

#[test]
fn unknown_keys_are_skipped() {
    let file = include_str!("../../../tests/fixtures/linux-6.1.smaps");
    let expected: Vec<_> = mappings(file.as_bytes()).map(|mapping| values(&mapping.unwrap())).collect();
    for unknown in [
        "Nonlinear: 7 kB",
        "rss: 7 kB",
        "dead: 7 kB",
        "Name:           [heap]",
        "Rss_: 7 kB",
        "Rs: 7 kB",
        "Pss_Locked: 7 kB",
    ] {
        let text: String = file.lines().flat_map(|line| [line, unknown]).flat_map(|line| [line, "\n"]).collect();
        let found: Vec<_> = mappings(text.as_bytes()).map(|mapping| values(&mapping.unwrap())).collect();
        assert_eq!(found, expected, "{unknown}");
        assert_agrees(text.as_bytes());
    }
}

// The header.

#[test]
fn devices_of_any_width() {
    for (device, major, minor) in [("fe:00", "fe", "00"), ("103:05", "103", "05"), ("00:1a3", "00", "1a3")] {
        let text = format!("00400000-00401000 r--p 00000000 {device} 12                           /bin/a\n");
        let mapping = only(text.as_bytes());
        assert_eq!(mapping.header.device, device.as_bytes());
        assert_eq!((mapping.header.major, mapping.header.minor), (major.as_bytes(), minor.as_bytes()));
    }
}

#[test]
fn inodes_of_64_bits() {
    for (inode, number) in [
        ("0", Some(0)),
        ("8594129217", Some(8594129217)),
        ("18446744073709551615", Some(u64::MAX)),
        ("18446744073709551616", None),
    ] {
        let text = format!("00400000-00401000 r--p 00000000 fe:00 {inode}   /bin/a\n");
        assert_eq!(only(text.as_bytes()).header.inode, number);
    }
}

#[test]
fn addresses_and_offsets_of_64_bits() {
    let mapping = only(b"ffffffffff600000-ffffffffff601000 --xp ffffffffffffffff 00:00 0 [vsyscall]\n");
    assert_eq!(mapping.header.start, b"ffffffffff600000");
    assert_eq!(mapping.header.byte_offset(), Some(u64::MAX));
    assert_eq!(only(b"1-2 r--p 10000000000000000 00:00 0\n").header.byte_offset(), None);
    assert_eq!(only(b"1-2 r--p 00001a00 00:00 0 \n").header.byte_offset(), Some(0x1a00));
}

#[test]
fn a_path_extends_to_the_end_of_the_line() {
    for path in [
        "",
        "/usr/lib/libc.so.6",
        "/tmp/two  blanks and\ttab",
        "/tmp/trailing blank ",
        "/tmp/gone (deleted)",
        "/tmp/gone (deleted) (deleted)",
        r"/tmp/new\012line",
        "/tmp/key: 12 kB",
        "/tmp/00400000-00401000 r--p 00000000 fe:00 12",
        "[heap]",
        "[stack]",
        "[vdso]",
        "[vvar]",
        "[vvar_vclock]",
        "[vsyscall]",
        "/dev/zero (deleted)",
        "/anon_hugepage (deleted)",
        "/SYSV009bc041 (deleted)",
        "/dev/shm/PostgreSQL.2483627",
        "/var/lib/postgresql/15/main/pg_dynshmem/mmap.2483627",
        "anon_inode:[io_uring]",
        "[anon:NAME]",
        "[anon: glibc: malloc arena]",
        "[anon_shmem:NAME]",
        "/memfd:foo bar (deleted)",
        "/usr/lib/locale/locale-archive",
    ] {
        assert_eq!(path_of(path.as_bytes()), path.as_bytes());
    }
    assert_eq!(path_of(b"/tmp/\xff\xfe\xc3"), b"/tmp/\xff\xfe\xc3");
    let longest = vec![b'p'; 4 * 4096];
    assert_eq!(path_of(&longest), longest);
}

#[test]
fn padding_of_any_width() {
    for line in ["1-2 r--p 0 00:00 0 /a\n", "1-2 r--p 0 00:00 0                  /a\n"] {
        assert_eq!(only(line.as_bytes()).header.path, b"/a");
    }
    for line in ["1-2 r--p 0 00:00 0\n", "1-2 r--p 0 00:00 0 \n", "1-2 r--p 0 00:00 0      \n"] {
        assert_eq!(only(line.as_bytes()).header.path, b"");
    }
}

// Values.

#[test]
fn sizes_of_64_bits() {
    let mut text = header(b"");
    text.extend_from_slice(b"Size:   2147483648 kB\nRss: 17179869184 kB\nPss: 18446744073709551615 kB\n");
    let mapping = only(&text);
    assert_eq!(mapping.value(Field::Size), Value::Number(2147483648));
    assert_eq!(mapping.value(Field::Rss), Value::Number(17179869184));
    assert_eq!(mapping.value(Field::Pss), Value::Number(u64::MAX));
}

#[test]
fn a_bad_value_does_not_affect_others() {
    for bad in
        ["Rss:", "Rss: ", "Rss: kB", "Rss: 4", "Rss: 4 MB", "Rss: -4 kB", "Rss: 4 4 kB", "Rss: 18446744073709551616 kB"]
    {
        let text = [&header(b"")[..], b"Size: 8 kB\n", bad.as_bytes(), b"\nPss: 2 kB\n"].concat();
        let mapping = only(&text);
        assert_eq!(mapping.value(Field::Rss), Value::Unusable, "{bad}");
        assert_eq!(mapping.value(Field::Size), Value::Number(8));
        assert_eq!(mapping.value(Field::Pss), Value::Number(2));
    }
}

#[test]
fn flags_and_indexes_have_no_unit() {
    let text = [&header(b"")[..], b"THPeligible:           1\nProtectionKey:        12\n"].concat();
    assert_eq!(only(&text).value(Field::ThpEligible), Value::Number(1));
    assert_eq!(only(&text).value(Field::ProtectionKey), Value::Number(12));
}

// What is refused.

#[test]
fn lines_that_are_neither_header_nor_key_are_refused() {
    let file = include_bytes!("../../../tests/fixtures/linux-5.4.smaps");
    for bad in [
        &b""[..],
        b"Rss",
        b"Rss 4 kB",
        b" Rss: 4 kB",
        b": 4 kB",
        b"00400000-00401000",
        b"00400000-00401000 r--p",
        b"00400000-00401000 r--p 00000000",
        b"00400000-00401000 r--p 00000000 fe:00",
        b"00400000-00401000 r--p 00000000 fe:00 ",
        b"00400000-00401000 r--p 00000000 fe00 12",
        b"00400000-00401000 r--p 00000000 fe: 12",
        b"00400000-00401000 r--p 0000000g fe:00 12",
        b"00400000 00401000 r--p 00000000 fe:00 12",
        b"-00401000 r--p 00000000 fe:00 12",
        b"00400000- r--p 00000000 fe:00 12",
        b"00400000-00401000 r-p 00000000 fe:00 12",
        b"00400000-00401000 r--p 00000000 fe:00 12a",
        b"00400000-00401000  r--p 00000000 fe:00 12",
        b"\x00\x01\x02",
    ] {
        let lines: Vec<&[u8]> = file.split_inclusive(|&byte| byte == b'\n').collect();
        for at in [0, 1, 24, lines.len()] {
            let text = [&lines[..at].concat()[..], bad, b"\n", &lines[at..].concat()[..]].concat();
            assert_eq!(refused_at(&text), at + 1, "{}", bad.escape_ascii());
            assert_agrees(&text);
        }
    }
}

#[test]
fn a_key_before_the_first_mapping_is_refused() {
    assert_eq!(refused_at(b"Rss: 4 kB\n"), 1);
}

#[test]
fn the_refused_line_is_shown() {
    let text = [&header(b"")[..], b"Rss: 4 kB\n\xffoops \"here\"\n"].concat();
    let malformed = mappings(&text).find_map(Result::err).unwrap();
    assert_eq!(
        malformed.to_string(),
        r#"Line 3 is neither a mapping nor a whole "Key: value" line: "\xffoops \"here\""."#
    );
    let long = vec![b'x'; 5000];
    assert!(mappings(&long).find_map(Result::err).unwrap().to_string().len() < 200);
}

#[test]
fn parsing_ends_at_an_error() {
    let mut mappings = mappings(b"bad line\n1-2 r--p 0 00:00 0\n");
    assert!(mappings.next().unwrap().is_err());
    assert!(mappings.next().is_none());
}

/// A file that was cut within a line is refused. A file that was cut between two lines looks like one of an older
/// kernel, and the keys that are there are used.
#[test]
fn a_file_cut_at_every_byte() {
    let file = include_bytes!("../../../tests/fixtures/linux-5.4.smaps");
    for at in 0..=file.len() {
        let text = &file[..at];
        let whole_lines = at == 0 || file[at - 1] == b'\n';
        assert_eq!(mappings(text).all(|mapping| mapping.is_ok()), whole_lines, "cut at {at}");
        assert_agrees(text);
    }
}

// Generated files, on which the tokenizer and the oracle must agree.

fn key() -> impl Strategy<Value = String> {
    let known = prop::sample::select(KEYS.to_vec()).prop_map(|key| String::from_utf8(key.to_vec()).unwrap());
    prop_oneof![8 => known, 1 => Just("VmFlags".into()), 2 => "[A-Za-z_]{1,12}", 1 => "[a-f]{1,4}"]
}

fn value() -> impl Strategy<Value = String> {
    prop_oneof![
        8 => (any::<u64>(), 0..64u32, "[ \t]{0,12}").prop_map(|(n, shift, pad)| format!("{pad}{} kB", n >> shift)),
        1 => " {0,12}[0-9]{0,25}( kB| MB|kB|)",
        1 => "( ([a-z]{2}|[?]{2}|[a-z]{3,9})){0,40} ?",
        1 => "[ -~]{0,20}",
    ]
}

fn path() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        Just(vec![]),
        "/[ -~\t]{0,40}".prop_map(String::into_bytes),
        prop::collection::vec(any::<u8>().prop_filter("no newline", |byte| *byte != b'\n'), 0..60),
    ]
}

prop_compose! {
    fn generated_header()(
        start in any::<u64>(), end in any::<u64>(), permissions in "[r-][w-][x-][sp]", offset in "[0-9a-f]{1,17}",
        major in "[0-9a-f]{2,3}", minor in "[0-9a-f]{2,5}", inode in "[0-9]{1,21}", pad in " {0,30}", path in path(),
    ) -> Vec<u8> {
        let mut line = format!("{start:08x}-{end:08x} {permissions} {offset} {major}:{minor} {inode} {pad}").into_bytes();
        line.extend_from_slice(&path);
        line
    }
}

fn line() -> impl Strategy<Value = Vec<u8>> {
    let key_line = (key(), value()).prop_map(|(key, value)| format!("{key}:{value}").into_bytes());
    let garbage = prop::collection::vec(any::<u8>(), 0..30);
    prop_oneof![40 => key_line, 8 => generated_header(), 1 => garbage]
}

fn file(lines: impl Strategy<Value = Vec<u8>>) -> impl Strategy<Value = Vec<u8>> {
    (generated_header(), prop::collection::vec(lines, 0..60)).prop_map(|(first, lines)| {
        std::iter::once(first).chain(lines).flat_map(|line| [line, b"\n".to_vec()]).flatten().collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn agrees_with_the_oracle_on_generated_files(text in file(line())) {
        assert_agrees(&text);
    }

    #[test]
    fn agrees_with_the_oracle_on_any_bytes(text in prop::collection::vec(any::<u8>(), 0..300)) {
        assert_agrees(&text);
    }

    #[test]
    fn agrees_with_the_oracle_on_damaged_files(
        at in any::<prop::sample::Index>(), byte in any::<u8>(), cut in any::<prop::sample::Index>(),
    ) {
        let mut text = include_bytes!("../../../tests/fixtures/linux-6.6.smaps").to_vec();
        let at = at.index(text.len());
        text[at] = byte;
        assert_agrees(&text);
        text.truncate(cut.index(text.len()));
        assert_agrees(&text);
    }
}
