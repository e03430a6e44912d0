//! Compares the table with a map.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

/// The memory of a table.
pub struct Storage {
    count: u64,
    deallocations: u64,
    entries: Vec<Entry>,
    texts: Vec<u8>,
    index: Vec<u32>,
}

impl Storage {
    pub fn new(entries: usize, text: usize) -> Self {
        Storage {
            count: 0,
            deallocations: 0,
            entries: vec![Entry::default(); entries],
            texts: vec![0; entries * text],
            index: vec![0; index_length(entries)],
        }
    }

    pub fn table(&mut self) -> Table<'_> {
        let Storage { count, deallocations, entries, texts, index } = self;
        Table { count, deallocations, entries, texts, index }
    }
}

pub fn key(query_id: i64) -> Key {
    Key { user: 10, database: 5, query_id, toplevel: 1 }
}

#[derive(Clone, Debug)]
enum Action {
    Add(i64, u64, Option<Vec<u8>>),
    Keep(i64, u64),
    Remove(i64),
}

fn action() -> impl Strategy<Value = Action> {
    let text = prop::option::of(prop::collection::vec(any::<u8>(), 0..12));
    prop_oneof![
        6 => (0_i64..40, 0_u64..1000, text).prop_map(|(id, growth, text)| Action::Add(id, growth, text)),
        1 => (0_i64..40, 0_u64..1000).prop_map(|(id, kept)| Action::Keep(id, kept)),
        1 => (0_i64..40).prop_map(Action::Remove),
    ]
}

proptest! {
    #[test]
    fn it_is_a_map(actions in prop::collection::vec(action(), 0..200)) {
        let mut storage = Storage::new(64, 8);
        let mut table = storage.table();
        // Calls, growth, kept and text.
        let mut map: BTreeMap<i64, (u64, u64, u64, Vec<u8>)> = BTreeMap::new();
        for action in actions {
            match action {
                Action::Add(id, growth, text) => {
                    let call = Call { growth, text: text.as_deref(), ..Call::default() };
                    table.add(key(id), &call).unwrap();
                    let known = map.entry(id).or_default();
                    known.0 += 1;
                    if growth >= known.1 {
                        known.1 = growth;
                        known.3 = text.unwrap_or_default();
                        known.3.truncate(8);
                    }
                }
                Action::Keep(id, kept) => {
                    table.keep(key(id), kept);
                    if let Some(known) = map.get_mut(&id) {
                        known.2 = known.2.max(kept);
                    }
                }
                Action::Remove(id) => {
                    table.remove(|entry| entry.key == key(id));
                    map.remove(&id);
                }
            }
        }
        let found: BTreeMap<_, _> = table.iter().map(|(entry, text)| {
            (entry.key.query_id, (entry.heavy_calls, entry.growth, entry.kept, text.to_vec()))
        }).collect();
        prop_assert_eq!(found, map);
        prop_assert_eq!(*table.deallocations, 0);
    }

    #[test]
    fn the_smallest_go(growths in prop::collection::vec(0_u64..50, 41..300)) {
        let mut storage = Storage::new(40, 4);
        let mut table = storage.table();
        for (id, &growth) in (0..).zip(&growths) {
            let before: Vec<_> = table.iter().map(|(entry, _)| entry.growth).collect();
            table.add(key(id), &Call { growth, ..Call::default() }).unwrap();
            let mut after: Vec<_> = table.iter().map(|(entry, _)| entry.growth).collect();
            // The new one always gets in.
            let new = after.pop().unwrap();
            prop_assert_eq!(new, growth);
            if before.len() == 40 {
                let (mut before, mut after) = (before, after);
                before.sort_unstable();
                after.sort_unstable();
                prop_assert_eq!(&before[2..], &after[..]);
            }
        }
        prop_assert!(*table.deallocations > 0 || growths.len() <= 40);
    }
}

#[test]
fn a_call_that_has_grown_less_is_not_the_worst() {
    let mut storage = Storage::new(10, 20);
    let mut table = storage.table();
    let worst = Call { growth: 100, peak: 150, at: 7, pid: 1, text: Some(b"worst"), ..Call::default() };
    table.add(key(1), &worst).unwrap();
    let later = Call { is_error: true, growth: 90, peak: 500, at: 9, pid: 2, text: Some(b"later"), ..worst };
    table.add(key(1), &later).unwrap();
    let (entry, text) = table.iter().next().unwrap();
    assert_eq!((entry.heavy_calls, entry.errors, entry.growth, entry.peak), (2, 1, 100, 500));
    assert_eq!((entry.worst_at, entry.worst_pid, entry.since, text), (7, 1, 7, &b"worst"[..]));
}

#[test]
fn the_text_of_another_call_is_not_that_of_the_worst() {
    let mut storage = Storage::new(10, 20);
    let mut table = storage.table();
    let known = Call { growth: 100, at: 7, text: Some(b"known"), ..Call::default() };
    table.add(key(1), &known).unwrap();
    table.add(key(1), &Call { growth: 200, at: 9, text: None, ..known }).unwrap();
    let (entry, text) = table.iter().next().unwrap();
    assert_eq!((entry.growth, entry.worst_at, text), (200, 9, &b""[..]));
}

#[test]
fn words_and_back() {
    let words: [u64; WORDS] = std::array::from_fn(|nth| nth as u64 * 0x0101_0101_0101);
    assert_eq!(Entry::from_words(words).to_words(), words);
}
