use proptest::prelude::*;

use super::super::table::tests::{Storage, key};
use super::*;

fn filled() -> Storage {
    let mut storage = Storage::new(10, 20);
    let mut table = storage.table();
    for id in 0..5 {
        let text = vec![b'x'; id as usize * 4];
        let entry = Entry { key: key(id), growth: 7, worst_at: -3, text_length: text.len() as u64, ..Entry::default() };
        table.restore(entry, &text).unwrap();
    }
    storage
}

const STATISTICS: Statistics = Statistics { deallocations: 3, reset_at: -5 };

#[test]
fn what_is_saved_is_restored() {
    let mut storage = filled();
    let bytes = encode(&storage.table(), STATISTICS).unwrap();
    let mut restored = Storage::new(10, 20);
    assert_eq!(decode(&bytes, &mut restored.table()), Ok(STATISTICS));
    assert!(storage.table().iter().eq(restored.table().iter()));

    // Less room for entries and for texts.
    let mut smaller = Storage::new(3, 6);
    assert_eq!(decode(&bytes, &mut smaller.table()), Ok(STATISTICS));
    assert_eq!(smaller.table().iter().map(|(_, text)| text.len()).max(), Some(6));
    assert!(smaller.table().iter().all(|(entry, text)| entry.text_length == text.len() as u64));
}

#[test]
fn another_version_is_foreign() {
    let mut bytes = encode(&filled().table(), STATISTICS).unwrap();
    bytes[MAGIC.len()] += 1;
    assert_eq!(decode(&bytes, &mut Storage::new(10, 20).table()), Err(Unusable::Foreign));
    assert_eq!(decode(b"", &mut Storage::new(10, 20).table()), Err(Unusable::Foreign));
}

proptest! {
    #[test]
    fn a_damaged_file_restores_nothing(at in any::<prop::sample::Index>(), bit in 0..8, length in any::<prop::sample::Index>()) {
        let bytes = encode(&filled().table(), STATISTICS).unwrap();
        let mut changed = bytes.clone();
        changed[at.index(bytes.len())] ^= 1_u8 << bit;
        for damaged in [&changed[..], &bytes[..length.index(bytes.len())]] {
            let mut storage = Storage::new(10, 20);
            prop_assert!(decode(damaged, &mut storage.table()).is_err());
            prop_assert_eq!(storage.table().iter().count(), 0);
        }
    }

    /// A file can say anything, and have the right checksum. Its entries are restored if the numbers are right: how many
    /// there are, and how long each text is.
    #[test]
    fn any_content_does_no_harm(
        entries in prop::collection::vec((any::<[u64; WORDS - 1]>(), prop::collection::vec(any::<u8>(), 0..40)), 0..16),
        count in prop::option::of(prop_oneof![0_u64..20, any::<u64>()]),
        wrong in prop::option::of((any::<prop::sample::Index>(), prop_oneof![0_u64..80, any::<u64>()])),
        rest in prop::collection::vec(any::<u8>(), 0..200),
    ) {
        let count = count.unwrap_or(entries.len() as u64);
        let wrong = wrong.filter(|_| !entries.is_empty()).map(|(at, length)| (at.index(entries.len()), length));
        let mut file = MAGIC.to_vec();
        let mut write = |number: u64| file.extend_from_slice(&number.to_le_bytes());
        [VERSION.into(), count, STATISTICS.deallocations, STATISTICS.reset_at as u64].into_iter().for_each(&mut write);
        let mut expected = Vec::new();
        for (nth, (words, text)) in entries.iter().enumerate() {
            let length = wrong.filter(|(at, _)| *at == nth).map_or(text.len() as u64, |(_, length)| length);
            let mut all = [length; WORDS];
            all[..WORDS - 1].copy_from_slice(words);
            all.iter().for_each(|word| file.extend_from_slice(&word.to_le_bytes()));
            file.extend_from_slice(text);
            let text = &text[..text.len().min(20)];
            expected.push((Entry { text_length: text.len() as u64, ..Entry::from_words(all) }, text));
        }
        file.extend_from_slice(&rest);
        let checksum = crc32fast::hash(&file);
        file.extend_from_slice(&checksum.to_le_bytes());

        let mut storage = Storage::new(16, 20);
        let outcome = decode(&file, &mut storage.table());
        let table = storage.table();
        prop_assert!(table.iter().all(|(entry, text)| entry.text_length == text.len() as u64 && text.len() <= 20));
        if wrong.is_none() && count <= entries.len() as u64 {
            prop_assert_eq!(outcome, Ok(STATISTICS));
            prop_assert!(table.iter().eq(expected[..count as usize].iter().map(|(entry, text)| (entry, *text))));
        }
    }
}
