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
    /// The query that it was executing, or nothing.
    pub query: &'a [u8],
}

/// The longest query of a death.
const MAX_QUERY: usize = 512;

/// The size of a buffer that has room for any death.
pub const MAX_DEATH: usize = MAX_QUERY + 64;

impl<'a> Death<'a> {
    /// The death that the postmaster's log tells of. The message may be translated: `(PID` and the pid are in each
    /// translation, and the next number is that of the signal. In the detail, the query follows the first colon.
    pub fn parse(at: i64, message: &[u8], detail: Option<&'a [u8]>) -> Option<Self> {
        let start = memchr::memmem::find(message, b"(PID ")? + b"(PID ".len();
        let mut numbers = message[start..].split(|byte| !byte.is_ascii_digit()).filter(|digits| !digits.is_empty());
        let mut number = || std::str::from_utf8(numbers.next()?).ok()?.parse().ok();
        let (pid, signal) = (number()?, number()?);
        let query = detail.and_then(|detail| {
            let colon = memchr::memmem::find(detail, b": ")?;
            Some(&detail[colon + 2..])
        });
        let query = query.unwrap_or_default();
        Some(Death { at, pid, signal, query: &query[..query.len().min(MAX_QUERY)] })
    }

    /// Writes it into the buffer as a record of a file: its length, a checksum and the record. Allocates nothing.
    pub fn encode<'b>(&self, buffer: &'b mut [u8; MAX_DEATH]) -> Option<&'b [u8]> {
        let (header, rest) = buffer.split_at_mut(8);
        let record = postcard::to_slice(self, rest).ok()?;
        header[..4].copy_from_slice(&(record.len() as u32).to_le_bytes());
        header[4..].copy_from_slice(&crc32fast::hash(record).to_le_bytes());
        let length = 8 + record.len();
        Some(&buffer[..length])
    }

    /// The deaths in a file. What follows something damaged is left out.
    pub fn decode_all(mut bytes: &'a [u8]) -> Vec<Self> {
        let mut deaths = Vec::new();
        while let Some((header, rest)) = bytes.split_first_chunk::<8>() {
            let number = |from: usize| u32::from_le_bytes([0, 1, 2, 3].map(|nth| header[from + nth]));
            let Some((record, after)) = rest.split_at_checked(number(0) as usize) else { break };
            let Ok(death) = postcard::from_bytes(record) else { break };
            if crc32fast::hash(record) != number(4) {
                break;
            }
            deaths.push(death);
            bytes = after;
        }
        deaths
    }
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
    /// The server has ended without a shutdown. Perhaps all of its processes were killed.
    ServerEnd,
    /// A session holds much.
    SessionMemory,
    /// Little memory is left.
    MinHeadroom,
    /// The guard has begun to limit all sessions.
    Brake,
    /// The guard has canceled the statement of a session.
    Cancel,
    /// The guard has terminated a session.
    Terminate,
    /// A session was refused more memory, by its own limit or by the guard.
    Refusal,
}

impl Cause {
    /// Its name in SQL.
    pub fn name(self) -> &'static str {
        match self {
            Cause::OomKill => "oom kill",
            Cause::PossibleOomKill => "possible oom kill",
            Cause::Kill => "kill",
            Cause::Crash => "crash",
            Cause::ServerEnd => "server end",
            Cause::SessionMemory => "session memory",
            Cause::MinHeadroom => "min headroom",
            Cause::Brake => "brake",
            Cause::Cancel => "cancel",
            Cause::Terminate => "terminate",
            Cause::Refusal => "refusal",
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
    /// What it held together with its parallel workers, if that is what has crossed a threshold.
    pub held: Option<u64>,
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

/// For so many microseconds a process can be on its way out.
const MAX_EXIT: i64 = 10_000_000;

/// How many processes the OOM killer has killed from the samples before a death until now. `known` is when the last
/// death was explained: kills before it are not those of this one. `None` if that is unknown.
pub fn oom_kills(death: i64, known: i64, samples: &[Sample], now: &Sample) -> Option<u64> {
    // The kernel counts when it kills, and the process needs some time to exit. So the last samples may be from after that.
    let is_before = |sample: &&Sample| sample.at > known.max(death.saturating_sub(MAX_AGE)) && sample.at <= death;
    let before = samples.iter().find(is_before).or(samples.last())?;
    let kills = now.oom_kills?.checked_sub(before.oom_kills?)?;
    // If the server has been started anew since, it may be in another cgroup, whose counter begins at 0.
    (kills > 0 || before.server_start == now.server_start).then_some(kills)
}

impl Incident {
    /// The incident of a death. `oom_kills` is how many processes the OOM killer has killed since the last sample,
    /// `None` if that is unknown; `samples` are those before the death, the oldest first.
    pub fn of_death(death: &Death, oom_kills: Option<u64>, samples: &[Sample]) -> Self {
        let cause = match (death.signal, oom_kills) {
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
            oom_kills,
            query: death.query.to_vec(),
            ..Incident::default()
        };
        incident.with_samples(samples)
    }

    /// The incident of a server that has ended without a shutdown. The last of `samples` is the last that it has
    /// written.
    pub fn of_server_end(oom_kills: Option<u64>, samples: &[Sample]) -> Self {
        Incident { oom_kills, ..Incident::of_threshold(Cause::ServerEnd, 0, samples) }
    }

    /// The incident of a session that holds much together with its parallel workers.
    pub fn of_session(cause: Cause, pid: i32, held: u64, samples: &[Sample]) -> Self {
        Incident { held: Some(held), ..Incident::of_threshold(cause, pid, samples) }
    }

    /// The incident of a threshold that a process has crossed, or all together if the pid is 0. The last of `samples`
    /// has seen it.
    pub fn of_threshold(cause: Cause, pid: i32, samples: &[Sample]) -> Self {
        let at = samples.last().map_or(0, |sample| sample.at);
        Incident { at, cause, pid, ..Incident::default() }.with_samples(samples)
    }

    /// Whether it is about a process that was ended.
    pub fn is_death(&self) -> bool {
        matches!(self.cause, Cause::OomKill | Cause::PossibleOomKill | Cause::Kill | Cause::Crash)
    }

    fn with_samples(mut self, samples: &[Sample]) -> Self {
        let is_recent = |sample: &&Sample| (self.at - MAX_AGE..=self.at).contains(&sample.at);
        // A process that has been killed gives up its memory before the postmaster notices. Samples of that time say
        // nothing.
        let has_it = |sample: &&Sample| sample.session(self.pid).is_some() && self.at - sample.at <= MAX_EXIT;
        let recent = || samples.iter().rev().filter(is_recent);
        let Some(last) = recent().find(has_it).or_else(|| recent().next()) else { return self };
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

    /// What the log says.
    pub fn message(&self) -> String {
        let pid = self.pid;
        let held = self.held.unwrap_or(0);
        let sample = self.sample.as_ref();
        let left = || {
            let left = sample.and_then(|sample| sample.headroom).unwrap_or(0);
            let limit = sample.and_then(|sample| sample.limit).unwrap_or(0);
            format!("{} of {} left", size(left), size(limit))
        };
        match self.cause {
            Cause::OomKill => format!("process {pid} was killed by the OOM killer"),
            Cause::PossibleOomKill => format!("process {pid} was killed, perhaps by the OOM killer"),
            Cause::Kill => format!("process {pid} was killed by SIGKILL, but not by the OOM killer"),
            Cause::Crash => format!("process {pid} was terminated by signal {}", self.signal),
            Cause::ServerEnd => "the server had ended without a shutdown".to_string(),
            Cause::SessionMemory => {
                let of_all = "of private memory with its parallel workers";
                format!("process {pid} holds {} {of_all}, more than log_session_memory", size(held))
            }
            Cause::MinHeadroom => format!("memory is running out: {}", left()),
            Cause::Brake => format!("memory is running out: {}; all sessions are limited to a share of that", left()),
            Cause::Cancel => {
                format!("canceling the statement of process {pid}, which holds {}: {}", size(held), left())
            }
            Cause::Terminate => format!("terminating process {pid}, which holds {}: {}", size(held), left()),
            Cause::Refusal => format!("process {pid} had {} and was refused more: {}", size(held), left()),
        }
    }

    /// The detail of what the log says: what is known from the last sample.
    pub fn detail(&self) -> Option<String> {
        let sample = self.sample.as_ref()?;
        let mut detail = String::new();
        if let Some(session) = &self.session {
            let application = printable(&session.application);
            detail +=
                &format!("It held {} of private memory; its application is \"{application}\". ", size(session.private));
        }
        detail += &format!("{} processes held {} of private memory", sample.processes, size(sample.private));
        if let Some(largest) = self.largest.as_ref().filter(|largest| largest.pid != self.pid) {
            detail += &format!("; process {} held the most, {}", largest.pid, size(largest.private));
        }
        detail += ".";
        if let Some(headroom) = sample.headroom {
            detail += &format!(" {} were left.", size(headroom));
        }
        if !self.query.is_empty() {
            detail += &format!(" Query: {}", printable(&self.query));
        }
        Some(detail)
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

/// An amount of memory for people.
fn size(bytes: u64) -> String {
    if bytes < 10 << 20 { format!("{} kB", bytes >> 10) } else { format!("{} MB", bytes >> 20) }
}

/// A text in an unknown encoding. The log may be in another one.
fn printable(text: &[u8]) -> String {
    String::from_utf8_lossy(text).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(at: i64, sessions: &[(i32, u64)]) -> Sample {
        let session =
            |&(pid, private)| Session { pid, private, backend_start: 5, query: b"held".into(), ..Session::default() };
        Sample { at, sessions: sessions.iter().map(session).collect(), ..Sample::default() }
    }

    fn death(signal: i32) -> Death<'static> {
        Death { at: 100_000_000, pid: 7, signal, query: b"" }
    }

    #[test]
    fn what_the_postmaster_writes() {
        let detail = "Failed process was running: SELECT ': '".as_bytes();
        let death = |message: &str| Death::parse(5, message.as_bytes(), Some(detail));
        let wanted = Some(Death { at: 5, pid: 4711, signal: 9, query: b"SELECT ': '" });
        assert_eq!(death("server process (PID 4711) was terminated by signal 9: Killed"), wanted);
        assert_eq!(death("Serverprozess (PID 4711) wurde von Signal 9 beendet: Killed"), wanted);
        assert_eq!(death("background worker \"x 12\" (PID 4711) was terminated by signal 9: Killed"), wanted);
        assert_eq!(death("server process was terminated"), None);
        let long = [b"running: ".to_vec(), vec![b'x'; 5000]].concat();
        let long = Death::parse(i64::MAX, b"(PID 2147483647) 64", Some(&long)).unwrap();
        let without = Death::parse(1, b"(PID 1) 6", None).unwrap();
        let mut file = Vec::new();
        for death in [&long, &without] {
            file.extend_from_slice(death.encode(&mut [0; MAX_DEATH]).unwrap());
        }
        assert_eq!(Death::decode_all(&file), [long.clone(), without]);
        for cut in 1..file.len() {
            assert!(Death::decode_all(&file[..cut]).len() < 2, "{cut}");
        }
        file[20] ^= 1;
        assert_eq!(Death::decode_all(&file), []);
    }

    #[test]
    fn the_victim_and_the_largest_are_named() {
        let samples = [
            sample(98_000_000, &[(9, 800), (7, 100)]),
            sample(99_000_000, &[(9, 900), (7, 600)]),
            // After it.
            sample(101_000_000, &[(3, 10)]),
        ];
        let incident = Incident::of_death(&death(libc::SIGKILL), Some(1), &samples);
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
            &Death { query: b"its own", ..death(libc::SIGSEGV) },
            Some(0),
            &[sample(99_000_000, &[(7, 600)])],
        );
        assert_eq!((incident.cause, &incident.query[..]), (Cause::Crash, &b"its own"[..]));
        assert_eq!(incident.growth_per_second, None);
    }

    #[test]
    fn the_victim_is_gone_from_the_last_sample() {
        let samples = [sample(98_000_000, &[(7, 600), (9, 500)]), sample(99_000_000, &[(9, 500)])];
        let incident = Incident::of_death(&death(libc::SIGKILL), Some(1), &samples);
        assert_eq!((incident.session.unwrap().private, incident.largest.unwrap().pid), (600, 7));
        assert_eq!(incident.sample.unwrap().at, 98_000_000);
    }

    #[test]
    fn kills_are_counted_from_before_the_death() {
        let counted = |at, kills| Sample { oom_kills: Some(kills), ..sample(at, &[]) };
        let samples = [counted(90_000_000, 1), counted(96_000_000, 2), counted(99_990_000, 3)];
        let now = counted(101_000_000, 3);
        // The last sample is from after the kill; the first from before another one, which has been explained.
        assert_eq!(oom_kills(100_000_000, 91_000_000, &samples, &now), Some(1));
        // Everything before 97 has been explained.
        assert_eq!(oom_kills(100_000_000, 97_000_000, &samples, &now), Some(0));
        assert_eq!(oom_kills(200_000_000, 0, &samples, &now), Some(0));
        assert_eq!(oom_kills(100_000_000, 0, &[], &now), None);
        // A new cgroup, in which nobody has been killed yet.
        let elsewhere = Sample { server_start: 1, ..counted(101_000_000, 3) };
        assert_eq!(oom_kills(200_000_000, 0, &samples, &elsewhere), None);
        assert_eq!(oom_kills(100_000_000, 0, &samples, &sample(101_000_000, &[])), None);
    }

    #[test]
    fn it_is_said_if_it_is_not_sure() {
        assert_eq!(Incident::of_death(&death(libc::SIGKILL), None, &[]).cause, Cause::PossibleOomKill);
        assert_eq!(Incident::of_death(&death(libc::SIGKILL), Some(0), &[]).cause, Cause::Kill);
        // Nothing is claimed from a sample of long ago.
        let old = [sample(1_000_000, &[(7, 600)])];
        let incident = Incident::of_death(&death(libc::SIGKILL), Some(1), &old);
        assert!(incident.session.is_none() && incident.largest.is_none());
    }

    #[test]
    fn another_process_with_the_same_pid() {
        let mut earlier = sample(98_000_000, &[(7, 100)]);
        earlier.sessions[0].backend_start = 4;
        let incident = Incident::of_death(&death(libc::SIGKILL), Some(1), &[earlier, sample(99_000_000, &[(7, 600)])]);
        assert_eq!(incident.growth_per_second, None);
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_do_no_harm(bytes: Vec<u8>) {
            let _ = (Incident::decode(&bytes), Death::decode_all(&bytes));
            let _ = Death::parse(0, &bytes, Some(&bytes));
        }
    }
}
