//! Incidents: a process that was killed or has crashed, or a threshold that was crossed.

use serde::{Deserialize, Serialize};

use super::sample::{Sample, Session, encode};

/// A child of the postmaster has been ended by a signal. The postmaster notes this at once, with what only it knows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Death<'a> {
    /// When, in microseconds since the Unix epoch.
    pub at: i64,
    /// The process.
    pub pid: i32,
    /// The signal.
    pub signal: i32,
    /// How many processes the OOM killer has killed since the postmaster last looked. `None` if the kernel does not say.
    pub oom_kills: Option<u64>,
    /// The query that it was executing, or nothing.
    pub query: &'a [u8],
}

/// What happened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Cause {
    /// The OOM killer has killed a process.
    OomKill,
    /// A process was killed by SIGKILL, and the kernel does not say whether it was the OOM killer.
    PossibleOomKill,
    /// A process was killed by SIGKILL, but not by the OOM killer.
    #[default]
    Kill,
    /// A process has crashed.
    Crash,
    /// A session holds much.
    SessionMemory,
    /// Little memory is left.
    MinHeadroom,
}

impl Cause {
    /// Its name in SQL.
    pub fn name(self) -> &'static str {
        match self {
            Cause::OomKill => "oom kill",
            Cause::PossibleOomKill => "possible oom kill",
            Cause::Kill => "kill",
            Cause::Crash => "crash",
            Cause::SessionMemory => "session memory",
            Cause::MinHeadroom => "min headroom",
        }
    }
}

/// An incident, with what was known of the cluster just before.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Incident {
    /// When, in microseconds since the Unix epoch.
    pub at: i64,
    /// What happened.
    pub cause: Cause,
    /// The process, or 0 if it is about all of them.
    pub pid: i32,
    /// The signal that ended it, or 0.
    pub signal: i32,
    /// How many processes the OOM killer has killed meanwhile.
    pub oom_kills: Option<u64>,
    /// The process in the last sample. `None` if it was not among the largest, or had not been sampled yet.
    pub session: Option<Session>,
    /// By how many bytes a second it has grown, up to the last sample.
    pub growth_per_second: Option<i64>,
    /// The query that it was executing.
    pub query: Vec<u8>,
    /// The process that held most in the last sample.
    pub largest: Option<Session>,
    /// The last sample, without its sessions.
    pub sample: Option<Sample>,
}

/// Over how many microseconds growth is measured.
const GROWTH_OVER: i64 = 5_000_000;

/// An older sample says nothing about a process that has ended, because its pid may have been used before.
const MAX_AGE: i64 = 60_000_000;

impl Incident {
    /// The incident of a death. `samples` are those before it, the oldest first.
    pub fn of_death(death: &Death, samples: &[Sample]) -> Self {
        let cause = match (death.signal, death.oom_kills) {
            (libc::SIGKILL, Some(0)) => Cause::Kill,
            (libc::SIGKILL, Some(_)) => Cause::OomKill,
            (libc::SIGKILL, None) => Cause::PossibleOomKill,
            _ => Cause::Crash,
        };
        let incident = Incident {
            at: death.at,
            cause,
            pid: death.pid,
            signal: death.signal,
            oom_kills: death.oom_kills,
            query: death.query.to_vec(),
            ..Incident::default()
        };
        incident.with_samples(samples)
    }

    /// The incident of a threshold that a process has crossed, or all together if the pid is 0. The last of `samples` has seen
    /// it.
    pub fn of_threshold(cause: Cause, pid: i32, samples: &[Sample]) -> Self {
        let at = samples.last().map_or(0, |sample| sample.at);
        Incident { at, cause, pid, ..Incident::default() }.with_samples(samples)
    }

    fn with_samples(mut self, samples: &[Sample]) -> Self {
        let is_recent = |sample: &&Sample| (self.at - MAX_AGE..=self.at).contains(&sample.at);
        let Some(last) = samples.iter().rev().find(is_recent) else { return self };
        self.largest = last.sessions.first().cloned();
        self.session = last.session(self.pid).cloned();
        if let Some(session) = &self.session {
            let is_same = |other: &&Session| other.backend_start == session.backend_start;
            let before = |sample: &Sample| {
                let other = sample.session(self.pid).filter(is_same)?;
                let passed = last.at - sample.at;
                (1..=GROWTH_OVER).contains(&passed).then_some((passed, other.private))
            };
            self.growth_per_second = samples.iter().find_map(before).map(|(passed, private)| {
                let growth = i128::from(session.private) - i128::from(private);
                (growth * 1_000_000 / i128::from(passed)) as i64
            });
            if self.query.is_empty() {
                self.query.clone_from(&session.query);
            }
        }
        let mut sample = last.clone();
        sample.sessions.clear();
        self.sample = Some(sample);
        self
    }

    /// The bytes of a record. `None` if it is too long.
    pub fn encode(&self) -> Option<Vec<u8>> {
        encode(self)
    }

    /// The incident of a record. `None` if the record is not one.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        postcard::from_bytes(bytes).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(at: i64, sessions: &[(i32, u64)]) -> Sample {
        let session = |&(pid, private)| Session { pid, private, backend_start: 5, query: b"held".into(), ..Session::default() };
        Sample { at, sessions: sessions.iter().map(session).collect(), ..Sample::default() }
    }

    fn death(signal: i32, oom_kills: Option<u64>) -> Death<'static> {
        Death { at: 100_000_000, pid: 7, signal, oom_kills, query: b"" }
    }

    #[test]
    fn the_victim_and_the_largest_are_named() {
        let samples = [
            sample(98_000_000, &[(9, 800), (7, 100)]),
            sample(99_000_000, &[(9, 900), (7, 600)]),
            // After it.
            sample(101_000_000, &[(3, 10)]),
        ];
        let incident = Incident::of_death(&death(libc::SIGKILL, Some(1)), &samples);
        assert_eq!(incident.cause, Cause::OomKill);
        assert_eq!(incident.session.as_ref().unwrap().private, 600);
        assert_eq!(incident.growth_per_second, Some(500));
        assert_eq!((incident.largest.as_ref().unwrap().pid, &incident.query[..]), (9, &b"held"[..]));
        assert_eq!(incident.sample.as_ref().unwrap().at, 99_000_000);
        assert_eq!(Incident::decode(&incident.encode().unwrap()).unwrap(), incident);
    }

    #[test]
    fn what_the_postmaster_says_comes_first() {
        let incident = Incident::of_death(
            &Death { query: b"its own", ..death(libc::SIGSEGV, Some(0)) },
            &[sample(99_000_000, &[(7, 600)])],
        );
        assert_eq!((incident.cause, &incident.query[..]), (Cause::Crash, &b"its own"[..]));
        assert_eq!(incident.growth_per_second, None);
    }

    #[test]
    fn it_is_said_if_it_is_not_sure() {
        assert_eq!(Incident::of_death(&death(libc::SIGKILL, None), &[]).cause, Cause::PossibleOomKill);
        assert_eq!(Incident::of_death(&death(libc::SIGKILL, Some(0)), &[]).cause, Cause::Kill);
        // Nothing is claimed from a sample of long ago.
        let old = [sample(1_000_000, &[(7, 600)])];
        let incident = Incident::of_death(&death(libc::SIGKILL, Some(1)), &old);
        assert!(incident.session.is_none() && incident.largest.is_none());
    }

    #[test]
    fn another_process_with_the_same_pid() {
        let mut earlier = sample(98_000_000, &[(7, 100)]);
        earlier.sessions[0].backend_start = 4;
        let incident = Incident::of_death(&death(libc::SIGKILL, Some(1)), &[earlier, sample(99_000_000, &[(7, 600)])]);
        assert_eq!(incident.growth_per_second, None);
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_do_no_harm(bytes: Vec<u8>) {
            let _ = Incident::decode(&bytes);
        }
    }
}
