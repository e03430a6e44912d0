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

    #[test]
    fn any_bytes_do_no_harm(mut bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let mut file = MAGIC.to_vec();
        file.extend_from_slice(&u64::from(VERSION).to_le_bytes());
        file.append(&mut bytes);
        let checksum = crc32fast::hash(&file);
        file.extend_from_slice(&checksum.to_le_bytes());
        let _ = decode(&file, &mut Storage::new(10, 20).table());
    }
}
