//! The statements that have needed much memory, in a table of fixed size, which all processes of a server share.
//!
//! The entries stand one behind the other. An index finds one by its key: an open hash table of entry numbers. If the
//! table is full, those that have grown least go.

use std::collections::TryReserveError;

/// What a statement is known by, as in pg_stat_statements.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    /// The OID of the user.
    pub user: u32,
    /// The OID of the database.
    pub database: u32,
    /// The query id.
    pub query_id: i64,
    /// 1 for a statement of the client, 0 for one inside another.
    pub toplevel: u64,
}

/// A statement, with what its calls have needed. Amounts of memory are in bytes, times in microseconds since the
/// Unix epoch.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Entry {
    /// What it is known by.
    pub key: Key,
    /// How many calls have grown at all.
    pub heavy_calls: u64,
    /// How many of these have ended by an ERROR.
    pub errors: u64,
    /// The largest peak of private memory: at least.
    pub peak: u64,
    /// The largest peak of private memory: at most.
    pub peak_at_most: u64,
    /// The most by which a call has grown.
    pub growth: u64,
    /// The most by which planning has grown.
    pub growth_planning: u64,
    /// The most that has remained when the next statement started.
    pub kept: u64,
    /// The most by which all parallel workers of a call have grown.
    pub workers_peak: u64,
    /// The most by which one parallel worker has grown.
    pub worker_peak_max: u64,
    /// The number of major faults.
    pub major_faults: u64,
    /// When the call that grew most ended.
    pub worst_at: i64,
    /// The process that executed it.
    pub worst_pid: u64,
    /// Since when the statement is in the table.
    pub since: i64,
    /// The length of the text.
    pub text_length: u64,
}

/// How many words of 64 bits an entry has.
pub const WORDS: usize = size_of::<Entry>() / size_of::<u64>();

/// What one call of a statement has needed.
#[derive(Clone, Copy, Debug, Default)]
pub struct Call<'a> {
    /// Whether it has ended by an ERROR.
    pub is_error: bool,
    /// As in an [`Entry`].
    pub peak: u64,
    /// As in an [`Entry`].
    pub peak_at_most: u64,
    /// As in an [`Entry`].
    pub growth: u64,
    /// As in an [`Entry`].
    pub growth_planning: u64,
    /// As in an [`Entry`].
    pub workers_peak: u64,
    /// As in an [`Entry`].
    pub worker_peak_max: u64,
    /// As in an [`Entry`].
    pub major_faults: u64,
    /// When it ended.
    pub at: i64,
    /// The process that executed it.
    pub pid: u64,
    /// The text of the statement, if it is known.
    pub text: Option<&'a [u8]>,
}

/// The table in its memory.
#[derive(Debug)]
pub struct Table<'a> {
    /// The number of entries.
    pub count: &'a mut u64,
    /// How many times entries had to go because the table was full.
    pub deallocations: &'a mut u64,
    /// Room for entries.
    pub entries: &'a mut [Entry],
    /// Room for the texts, of the same size for each entry.
    pub texts: &'a mut [u8],
    /// For each hash value one more than the number of an entry, or 0. Its length is a power of two, and at least twice
    /// that of the entries.
    pub index: &'a mut [u32],
}

/// The length of the index for a number of entries.
pub fn index_length(entries: usize) -> usize {
    (2 * entries).next_power_of_two()
}

/// The part of the entries that goes at once if the table is full.
const DEALLOCATED: usize = 20;

impl Table<'_> {
    /// The maximum length of a text.
    pub fn text_size(&self) -> usize {
        self.texts.len() / self.entries.len()
    }

    /// The entries, each with its text.
    pub fn iter(&self) -> impl Iterator<Item = (&Entry, &[u8])> {
        let size = self.text_size();
        self.entries[..*self.count as usize]
            .iter()
            .enumerate()
            .map(move |(at, entry)| (entry, &self.texts[at * size..][..entry.text_length as usize]))
    }

    /// Adds a call to the entry of its statement. If there is none, makes one.
    pub fn add(&mut self, key: Key, call: &Call) -> Result<(), TryReserveError> {
        let at = match self.find(key) {
            Some(at) => at,
            None => self.insert(Entry { key, since: call.at, ..Entry::default() })?,
        };
        let entry = &mut self.entries[at];
        entry.heavy_calls += 1;
        entry.errors += u64::from(call.is_error);
        entry.major_faults += call.major_faults;
        entry.peak = entry.peak.max(call.peak);
        entry.peak_at_most = entry.peak_at_most.max(call.peak_at_most);
        entry.growth_planning = entry.growth_planning.max(call.growth_planning);
        entry.workers_peak = entry.workers_peak.max(call.workers_peak);
        entry.worker_peak_max = entry.worker_peak_max.max(call.worker_peak_max);
        if call.growth >= entry.growth {
            entry.growth = call.growth;
            entry.worst_at = call.at;
            entry.worst_pid = call.pid;
            // Without a text, none rather than that of another call.
            self.set_text(at, call.text.unwrap_or_default());
        }
        Ok(())
    }

    /// What a call has kept.
    pub fn keep(&mut self, key: Key, kept: u64) {
        if let Some(at) = self.find(key) {
            let entry = &mut self.entries[at];
            entry.kept = entry.kept.max(kept);
        }
    }

    /// Removes the entries for which `is_to_go` is true.
    pub fn remove(&mut self, mut is_to_go: impl FnMut(&Entry) -> bool) {
        let size = self.text_size();
        let mut kept = 0;
        for at in 0..*self.count as usize {
            if !is_to_go(&self.entries[at]) {
                self.entries[kept] = self.entries[at];
                self.texts.copy_within(at * size..(at + 1) * size, kept * size);
                kept += 1;
            }
        }
        *self.count = kept as u64;
        self.index.fill(0);
        for at in 0..kept {
            let slot = self.free_slot(self.entries[at].key);
            self.index[slot] = at as u32 + 1;
        }
    }

    /// Adds an entry as it was saved, unless there is one with its key.
    pub fn restore(&mut self, entry: Entry, text: &[u8]) -> Result<(), TryReserveError> {
        if self.find(entry.key).is_none() {
            let at = self.insert(entry)?;
            self.set_text(at, text);
        }
        Ok(())
    }

    fn set_text(&mut self, at: usize, text: &[u8]) {
        let size = self.text_size();
        let length = text.len().min(size);
        self.texts[at * size..][..length].copy_from_slice(&text[..length]);
        self.entries[at].text_length = length as u64;
    }

    fn insert(&mut self, entry: Entry) -> Result<usize, TryReserveError> {
        if *self.count as usize == self.entries.len() {
            self.deallocate()?;
        }
        let at = *self.count as usize;
        self.entries[at] = Entry { text_length: 0, ..entry };
        *self.count += 1;
        let slot = self.free_slot(entry.key);
        self.index[slot] = at as u32 + 1;
        Ok(at)
    }

    /// Makes room: those that have grown least go.
    fn deallocate(&mut self) -> Result<(), TryReserveError> {
        let mut growths = Vec::new();
        growths.try_reserve_exact(self.entries.len())?;
        growths.extend(self.entries.iter().map(Entry::weight));
        let count = (self.entries.len() / DEALLOCATED).max(1);
        let (less, &mut limit, _) = growths.select_nth_unstable(count - 1);
        // Of those that have grown as little as the last one to go, as many as are needed.
        let mut equal = count - less.iter().filter(|&&growth| growth < limit).count();
        self.remove(|entry| {
            let is_equal = entry.weight() == limit && equal > 0;
            equal -= usize::from(is_equal);
            is_equal || entry.weight() < limit
        });
        *self.deallocations += 1;
        Ok(())
    }

    fn find(&self, key: Key) -> Option<usize> {
        self.slots(key).map(|slot| self.index[slot]).take_while(|&number| number != 0).find_map(|number| {
            let at = number as usize - 1;
            (self.entries[at].key == key).then_some(at)
        })
    }

    fn free_slot(&self, key: Key) -> usize {
        self.slots(key).find(|&slot| self.index[slot] == 0).expect("the index is never more than half full")
    }

    /// Where an entry can be in the index, in the order in which it is looked for.
    fn slots(&self, key: Key) -> impl Iterator<Item = usize> + use<> {
        let mask = self.index.len() - 1;
        let first = key.hash() as usize;
        (0..=mask).map(move |step| first.wrapping_add(step) & mask)
    }
}

impl Key {
    fn hash(self) -> u64 {
        const ODD: u64 = 0x9e37_79b9_7f4a_7c15;
        let ids = u64::from(self.user) << 32 | u64::from(self.database);
        let mixed = [ids, self.query_id as u64, self.toplevel]
            .into_iter()
            .fold(0_u64, |hash, word| (hash ^ word).wrapping_mul(ODD).rotate_left(29));
        mixed ^ mixed >> 32
    }
}

impl Entry {
    /// How much it matters.
    fn weight(&self) -> u64 {
        self.growth.max(self.workers_peak)
    }
}

/// Defines the two directions between an entry and words of 64 bits, from the fields after the key in their order.
macro_rules! words {
    ($($field:ident: $type:ty,)*) => {
        impl Entry {
            /// The entry as words.
            pub fn to_words(&self) -> [u64; WORDS] {
                let Key { user, database, query_id, toplevel } = self.key;
                [u64::from(user) << 32 | u64::from(database), query_id as u64, toplevel, $(self.$field as u64),*]
            }

            /// The entry that has been turned into these words.
            pub fn from_words(words: [u64; WORDS]) -> Self {
                let [ids, query_id, toplevel, $($field),*] = words;
                let key = Key { user: (ids >> 32) as u32, database: ids as u32, query_id: query_id as i64, toplevel };
                Entry { key, $($field: $field as $type),* }
            }
        }
    };
}

words! {
    heavy_calls: u64,
    errors: u64,
    peak: u64,
    peak_at_most: u64,
    growth: u64,
    growth_planning: u64,
    kept: u64,
    workers_peak: u64,
    worker_peak_max: u64,
    major_faults: u64,
    worst_at: i64,
    worst_pid: u64,
    since: i64,
    text_length: u64,
}

#[cfg(test)]
pub(in crate::model) mod tests;
