//! A sample: what a cluster and its largest sessions held at a moment.

use serde::{Deserialize, Serialize};

/// The cluster at a moment. Amounts of memory are in bytes, times in microseconds since the Unix epoch.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sample {
    /// When the sample was taken.
    pub at: i64,
    /// When the server was started. A crash restart does not change it.
    pub server_start: i64,
    /// The number of processes.
    pub processes: u32,
    /// Private memory of all processes together.
    pub private: u64,
    /// How much more can be allocated without swapping. `None` if it is unknown.
    pub headroom: Option<u64>,
    /// The limit that the headroom is below: that of a cgroup, or the size of RAM.
    pub limit: Option<u64>,
    /// The path of the cgroup with that limit. `None` if it is the machine's.
    pub limited_by: Option<Vec<u8>>,
    /// How many processes the OOM killer has killed. `None` if the kernel does not say.
    pub oom_kills: Option<u64>,
    /// For how long some task has waited for memory, in microseconds.
    pub psi_some: Option<u64>,
    /// For how long all tasks have waited for memory, in microseconds.
    pub psi_full: Option<u64>,
    /// It is the last one before a shutdown.
    pub is_last: bool,
    /// The processes that hold or grow most, those that hold most first.
    pub sessions: Vec<Session>,
}

/// A process of the cluster at that moment.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Session {
    /// The pid.
    pub pid: i32,
    /// The pid of the leader, if it is a parallel worker.
    pub leader: Option<i32>,
    /// When it was started.
    pub backend_start: i64,
    /// The type, as in pg_stat_activity.
    pub backend_type: Vec<u8>,
    /// The OID of the role, or 0.
    pub user: u32,
    /// The OID of the database, or 0.
    pub database: u32,
    /// The application's name.
    pub application: Vec<u8>,
    /// The state, as in pg_stat_activity. Empty if it has none.
    pub state: Vec<u8>,
    /// The query id, or 0.
    pub query_id: i64,
    /// When the query was started, or 0.
    pub query_start: i64,
    /// The beginning of the query's text.
    pub query: Vec<u8>,
    /// Its private memory.
    pub private: u64,
    /// The largest private memory that it has noticed itself since the last sample, or 0.
    pub peak: u64,
    /// By how much its private memory has grown since the last sample.
    pub growth: i64,
}

impl Sample {
    /// The bytes of a record. If that would be too long, the last sessions are left out. `None` if it is too long
    /// without any, too.
    pub fn encode(&self) -> Option<Vec<u8>> {
        // Names of usual lengths leave room, so this is rare.
        encode(self).or_else(|| {
            let mut shorter = self.clone();
            while shorter.sessions.pop().is_some() {
                if let Some(bytes) = encode(&shorter) {
                    return Some(bytes);
                }
            }
            None
        })
    }

    /// The sample of a record. `None` if the record is not one.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        postcard::from_bytes(bytes).ok()
    }

    /// The process with this pid.
    pub fn session(&self, pid: i32) -> Option<&Session> {
        self.sessions.iter().find(|session| session.pid == pid)
    }
}

pub(super) fn encode(record: &impl Serialize) -> Option<Vec<u8>> {
    // Longer ones have no place in a block.
    let mut bytes = vec![0; super::ring::MAX_RECORD];
    let length = postcard::to_slice(record, &mut bytes).ok()?.len();
    bytes.truncate(length);
    Some(bytes)
}

/// A process and its memory, before the details of the largest are known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reading {
    /// The pid.
    pub pid: i32,
    /// Private memory.
    pub private: u64,
    /// By how much it has grown since the last sample.
    pub growth: i64,
    /// Private address space that it can write to.
    pub mapped: u64,
}

/// Brings those to the front that a sample is about: the `largest` that hold most, and the `growing` that have grown
/// most of the others. Returns how many these are. The largest come first.
pub fn choose(readings: &mut [Reading], largest: usize, growing: usize) -> usize {
    readings.sort_unstable_by_key(|reading| std::cmp::Reverse(reading.private));
    let largest = largest.min(readings.len());
    let others = &mut readings[largest..];
    others.sort_unstable_by_key(|reading| std::cmp::Reverse(reading.growth));
    largest + others.iter().take(growing).take_while(|reading| reading.growth > 0).count()
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_largest_and_those_that_grow_are_chosen(
            values in prop::collection::vec((0_u64..1000, -50_i64..50), 0..60),
            largest in 0_usize..20,
            growing in 0_usize..8,
        ) {
            let mut readings: Vec<_> =
                (1..).zip(&values).map(|(pid, &(private, growth))| Reading { pid, private, growth, mapped: private }).collect();
            let chosen = choose(&mut readings, largest, growing);
            let (chosen, left) = readings.split_at(chosen);
            prop_assert_eq!(chosen.len() + left.len(), values.len());
            // Nobody who is left holds more than one of the largest, or has grown more than one of the growing.
            let (first, grown) = chosen.split_at(largest.min(chosen.len()));
            prop_assert!(first.iter().all(|a| left.iter().chain(grown).all(|b| a.private >= b.private)));
            prop_assert!(grown.iter().all(|a| a.growth > 0 && left.iter().all(|b| a.growth >= b.growth)));
            prop_assert!(grown.len() == growing || left.iter().all(|b| b.growth <= 0) || growing == 0);
            prop_assert!(first.is_sorted_by_key(|reading| std::cmp::Reverse(reading.private)));
        }

        #[test]
        fn any_bytes_do_no_harm(bytes: Vec<u8>) {
            let _ = Sample::decode(&bytes);
        }
    }

    #[test]
    fn encoded_and_back() {
        let session = Session { pid: 7, query: b"SELECT 1".to_vec(), growth: -5, ..Session::default() };
        let sample = Sample { at: 99, headroom: Some(1 << 40), sessions: vec![session; 16], ..Sample::default() };
        let bytes = sample.encode().unwrap();
        assert_eq!(Sample::decode(&bytes).unwrap(), sample);
        assert!(Sample::decode(&bytes[..bytes.len() - 1]).is_none());
    }

    /// A session with all that it can have: see the sizes in the sampler, NAMEDATALEN and BGW_MAXLEN.
    pub fn longest_session() -> Session {
        Session {
            pid: i32::MIN,
            leader: Some(i32::MIN),
            backend_start: i64::MIN,
            backend_type: vec![b't'; 95],
            user: u32::MAX,
            database: u32::MAX,
            application: vec![b'a'; 63],
            state: b"idle in transaction (aborted)".to_vec(),
            query_id: i64::MIN,
            query_start: i64::MIN,
            query: vec![b'q'; 256],
            private: u64::MAX,
            peak: u64::MAX,
            growth: i64::MIN,
        }
    }

    /// A sample with that many of them.
    pub fn longest_sample(sessions: usize) -> Sample {
        Sample {
            at: i64::MIN,
            server_start: i64::MIN,
            processes: u32::MAX,
            private: u64::MAX,
            headroom: Some(u64::MAX),
            limit: Some(u64::MAX),
            limited_by: Some(vec![b'c'; libc::PATH_MAX as usize]),
            oom_kills: Some(u64::MAX),
            psi_some: Some(u64::MAX),
            psi_full: Some(u64::MAX),
            is_last: true,
            sessions: vec![longest_session(); sessions],
        }
    }

    /// A session each of whose fields has another value.
    pub fn known_session() -> Session {
        Session {
            pid: 1,
            leader: Some(2),
            backend_start: 3,
            backend_type: b"type".into(),
            user: 4,
            database: 5,
            application: b"application".into(),
            state: b"state".into(),
            query_id: 6,
            query_start: 7,
            query: b"query".into(),
            private: 8,
            peak: 9,
            growth: 10,
        }
    }

    pub fn known_sample() -> Sample {
        Sample {
            at: 11,
            server_start: 12,
            processes: 13,
            private: 14,
            headroom: Some(15),
            limit: Some(16),
            limited_by: Some(b"cgroup".into()),
            oom_kills: Some(17),
            psi_some: Some(18),
            psi_full: None,
            is_last: true,
            sessions: vec![known_session()],
        }
    }

    /// If this fails, a file that another library has written cannot be read. See VERSION in ring.rs.
    #[test]
    fn the_bytes_of_a_sample_are_known() {
        let session = b"\x02\x01\x04\x06\x04type\x04\x05\x0bapplication\x05state\x0c\x0e\x05query\x08\x09\x14";
        let sample = b"\x16\x18\x0d\x0e\x01\x0f\x01\x10\x01\x06cgroup\x01\x11\x01\x12\x00\x01\x01";
        assert_eq!(known_sample().encode().unwrap(), [&sample[..], session].concat());
    }

    #[test]
    fn what_is_too_long_loses_its_last_sessions() {
        let sample = longest_sample(16);
        let kept = Sample::decode(&sample.encode().unwrap()).unwrap();
        let count = kept.sessions.len();
        assert!((5..16).contains(&count), "{count}");
        assert_eq!(kept, longest_sample(count));
        // One more would not have fit.
        assert!(encode(&longest_sample(count + 1)).is_none());
        // That of a minute.
        assert_eq!(Sample::decode(&longest_sample(4).encode().unwrap()), Some(longest_sample(4)));
        // What a sample of usual lengths has.
        let usual =
            Session { application: b"psql".to_vec(), backend_type: b"client backend".to_vec(), ..longest_session() };
        let usual = Sample { limited_by: Some(vec![b'c'; 100]), sessions: vec![usual; 16], ..longest_sample(0) };
        assert_eq!(Sample::decode(&usual.encode().unwrap()), Some(usual));
    }
}
