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
    /// The death that the postmaster's log tells of. The message may be translated: `PID` and the pid are in each
    /// translation, after the name of the process, and the next number is that of the signal. In the detail, the query
    /// follows the first colon. (The Chinese translation of PostgreSQL 15 has some words after the query, too.)
    pub fn parse(at: i64, message: &[u8], detail: Option<&'a [u8]>) -> Option<Self> {
        // The name of a background worker can have the like: the last is the one. The parentheses around it are others
        // in Chinese.
        let is_pid = |start: &usize| message.get(*start).is_some_and(u8::is_ascii_digit);
        let start = memchr::memmem::find_iter(message, b"PID ").map(|at| at + b"PID ".len()).filter(is_pid).last()?;
        let mut numbers = message[start..].split(|byte| !byte.is_ascii_digit()).filter(|digits| !digits.is_empty());
        let mut number = || std::str::from_utf8(numbers.next()?).ok()?.parse().ok();
        let (pid, signal) = (number()?, number()?);
        let query = detail.and_then(|detail| {
            let query = &detail[memchr::memchr(b':', detail)? + 1..];
            Some(query.strip_prefix(b" ").unwrap_or(query))
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
    /// The process in the last sample that has it. `None` if it was not among the largest, or had not been sampled yet.
    pub session: Option<Session>,
    /// What it held together with its parallel workers, if that is what has crossed a threshold.
    pub held: Option<u64>,
    /// By how many bytes a second it has grown, up to the last sample.
    pub growth_per_second: Option<i64>,
    /// The query that it was executing.
    pub query: Vec<u8>,
    /// The process that held most in the sample.
    pub largest: Option<Session>,
    /// The last sample, without its sessions. If the process was ended, the last that has the process.
    pub sample: Option<Sample>,
}

/// Over how many microseconds growth is measured.
const GROWTH_OVER: i64 = 5_000_000;

/// An older sample says nothing about a process that has ended, because its pid may have been used before.
const MAX_AGE: i64 = 60_000_000;

/// For so many microseconds a process can be on its way out.
const MAX_EXIT: i64 = 10_000_000;

/// How many processes the OOM killer has killed from shortly before a death until now: from the last sample that is
/// certainly from before the kill. `known` is when the last death was explained: kills before it are not those of this
/// one. `None` if that is unknown.
pub fn oom_kills(death: i64, known: i64, samples: &[Sample], now: &Sample) -> Option<u64> {
    // The kernel counts when it kills, and the process needs some time to exit. So the last samples may be from after
    // that.
    let first = death.saturating_sub(MAX_EXIT);
    let is_before = |sample: &&Sample| sample.at > known && sample.at <= first;
    let is_near = |sample: &&Sample| sample.at > known && sample.at <= death;
    // Samples can be further apart than that.
    let before = samples.iter().rfind(is_before).or_else(|| samples.iter().find(is_near));
    let before = before.or_else(|| samples.iter().rfind(|sample| sample.at <= death))?;
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

    /// The incident of a session that was refused more than it held, in a statement that was started then.
    pub fn of_refusal(pid: i32, held: u64, statement: i64, samples: &[Sample]) -> Self {
        let mut incident = Incident::of_session(Cause::Refusal, pid, held, samples);
        // Meanwhile the session may execute another one.
        if let Some(session) = incident.session.as_mut().filter(|session| session.query_start != statement) {
            let is_meant = |session: &&Session| session.query_start == statement;
            let meant = samples.iter().rev().find_map(|sample| sample.session(pid).filter(is_meant));
            session.query_start = statement;
            session.query_id = meant.map_or(0, |meant| meant.query_id);
            incident.query = meant.map(|meant| meant.query.clone()).unwrap_or_default();
        }
        incident
    }

    /// The incident of a threshold that a process has crossed, or all together if the pid is 0. The last of `samples` is
    /// the one in which this was seen. It need not have the process among its sessions.
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
        let has_it = |sample: &&Sample| sample.session(self.pid).is_some() && self.at - sample.at <= MAX_EXIT;
        let recent = || samples.iter().rev().filter(is_recent);
        let Some(last) = recent().next() else { return self };
        let seen = recent().find(has_it).unwrap_or(last);
        // A process that has been killed gives up its memory before the postmaster notices. Samples of that time say
        // nothing. Of one that lives, the last says how much memory is left now.
        let of_cluster = if self.is_death() { seen } else { last };
        self.largest = of_cluster.sessions.first().cloned();
        self.session = seen.session(self.pid).cloned();
        if let Some(session) = &self.session {
            let is_same = |other: &&Session| other.backend_start == session.backend_start;
            let before = |sample: &Sample| {
                let other = sample.session(self.pid).filter(is_same)?;
                let passed = seen.at - sample.at;
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
        let mut sample = of_cluster.clone();
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
    use super::super::sample::tests::{known_sample, known_session, longest_sample, longest_session};
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
        let wanted = Death { at: 5, pid: 4711, signal: 9, query: b"SELECT ': '" };
        // The catalog of each language, of PostgreSQL 19 where nothing else is said.
        for (message, detail) in [
            ("server process (PID 4711) was terminated by signal 9: Killed", "Failed process was running: "),
            ("Serverprozess (PID 4711) wurde von Signal 9 beendet: Killed", "Der fehlgeschlagene Prozess führte aus: "),
            (
                "proceso ayudante «x» (PID 4711) fue terminado por una señal 9: Killed",
                "El proceso que falló estaba ejecutando: ",
            ),
            (
                "processus serveur (PID 4711) a été arrêté par le signal 9 : Killed",
                "Le processus qui a échoué exécutait : ",
            ),
            ("server process (PID 4711)はシグナル9で終了しました: Killed", "失敗したプロセスが実行していました: "),
            ("server process (PID 4711) დასრულდა სიგნალით: 9: Killed", "შეცდომის მქონე პროცესს გაშვებული ჰქონდა: "),
            ("server process (PID 4711) 프로세스가 9번 시그널을 받아 종료됨: Killed", "프로세스 실행 실패: "),
            (
                "server process (PID 4711) был завершён по сигналу 9: Killed",
                "Завершившийся процесс выполнял действие: ",
            ),
            (
                "sunucu süreci (PID 4711) 9 sinyali tarafından sonlandırıldı: Killed",
                "Başarısız olan sürecin çalıştırdığı: ",
            ),
            ("server process（PID 4711）被信号 9 终止: Killed", "出错进程当时正在运行: "),
            // Of 15.
            ("服务器进程 (PID 4711) 被信号 9 中断: Killed", "失败进程:"),
            ("server process (PID 4711) 由訊號 9 結束: Killed", "出錯行程當時正在執行: "),
            // The name of a background worker is anything.
            (
                "background worker \"x 12\" (PID 4711) was terminated by signal 9: Killed",
                "Failed process was running: ",
            ),
            (
                "background worker \"(PID 5) 6\" (PID 4711) was terminated by signal 9: Killed",
                "Failed process was running: ",
            ),
            ("后台工作进程 \"PID 5\"（PID 4711）被信号 9 终止: Killed", "出错进程当时正在运行: "),
        ] {
            let detail = format!("{detail}SELECT ': '");
            let death = Death::parse(5, message.as_bytes(), Some(detail.as_bytes()));
            assert_eq!(death.as_ref(), Some(&wanted), "{message}");
        }
        let death = |message: &str| Death::parse(5, message.as_bytes(), None);
        assert_eq!(death("server process (PID x) was terminated by signal 9"), None);
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
    fn the_statement_that_was_refused_memory_is_named() {
        let of = |at, query_start, query: &[u8]| {
            let session =
                Session { pid: 7, query_start, query_id: query_start, query: query.into(), ..Session::default() };
            Sample { at, sessions: vec![session], ..Sample::default() }
        };
        let samples = [of(1, 10, b"eats"), of(2, 10, b"eats"), of(3, 20, b"next")];
        for (statement, query_id, query) in [(10, 10, "eats"), (20, 20, "next"), (15, 0, "")] {
            let incident = Incident::of_refusal(7, 1 << 20, statement, &samples);
            let session = incident.session.unwrap();
            assert_eq!((session.query_start, session.query_id), (statement, query_id));
            assert_eq!(incident.query, query.as_bytes());
        }
        assert_eq!(Incident::of_refusal(8, 1 << 20, 10, &samples).session, None);
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
    fn of_the_living_the_cluster_is_that_of_the_last_sample() {
        let with = |sample: Sample, headroom| Sample { headroom: Some(headroom), processes: 3, ..sample };
        let samples = [
            with(sample(96_000_000, &[(7, 200), (9, 100)]), 5000),
            with(sample(97_000_000, &[(7, 600), (9, 500)]), 4000),
            with(sample(99_000_000, &[(9, 800)]), 100),
        ];
        for cause in [Cause::Cancel, Cause::Terminate, Cause::Refusal, Cause::SessionMemory] {
            let incident = Incident::of_session(cause, 7, 900, &samples);
            let last = incident.sample.as_ref().unwrap();
            assert_eq!((incident.at, last.at, last.headroom), (99_000_000, 99_000_000, Some(100)));
            assert_eq!(incident.largest.as_ref().unwrap().private, 800);
            // What is known of the process itself is older.
            assert_eq!(incident.session.as_ref().unwrap().private, 600);
            assert_eq!((incident.growth_per_second, &incident.query[..]), (Some(400), &b"held"[..]));
        }
        assert_eq!(Incident::of_threshold(Cause::MinHeadroom, 0, &samples).largest.unwrap().pid, 9);
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
        // What was killed long before the death was another one.
        let samples = [counted(50_000_000, 1), counted(70_000_000, 3), counted(88_000_000, 3), counted(97_000_000, 3)];
        assert_eq!(oom_kills(100_000_000, 0, &samples, &now), Some(0));
        // The only sample of the last seconds is perhaps from after the kill.
        let samples = [counted(60_000_000, 1), counted(70_000_000, 2), counted(99_000_000, 3)];
        assert_eq!(oom_kills(100_000_000, 0, &samples, &now), Some(1));
        // None is from just before the death, and one from after it.
        let samples = [counted(60_000_000, 1), counted(70_000_000, 2), counted(100_500_000, 3)];
        assert_eq!(oom_kills(100_000_000, 80_000_000, &samples, &now), Some(1));
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

    /// If this fails, a file that another library has written cannot be read. See VERSION in ring.rs.
    #[test]
    fn the_bytes_of_an_incident_are_known() {
        let incident = Incident {
            at: 20,
            cause: Cause::Refusal,
            pid: 21,
            signal: 22,
            oom_kills: Some(23),
            session: None,
            held: Some(24),
            growth_per_second: Some(25),
            query: b"its query".into(),
            largest: Some(known_session()),
            sample: Some(known_sample()),
        };
        let session = b"\x02\x01\x04\x06\x04type\x04\x05\x0bapplication\x05state\x0c\x0e\x05query\x08\x09\x14";
        let wanted = [
            &b"\x28\x0a\x2a\x2c\x01\x17\x00\x01\x18\x01\x32\x09its query\x01"[..],
            session,
            b"\x01",
            &known_sample().encode().unwrap(),
        ];
        assert_eq!(incident.encode().unwrap(), wanted.concat());
        let causes = [
            "oom kill",
            "possible oom kill",
            "kill",
            "crash",
            "server end",
            "session memory",
            "min headroom",
            "brake",
            "cancel",
            "terminate",
            "refusal",
        ];
        for (byte, name) in (0..).zip(causes) {
            let incident = Incident::decode(&[0, byte, 0, 0, 0, 0, 0, 0, 0, 0, 0]).unwrap();
            assert_eq!(incident.cause.name(), name);
        }
        assert_eq!(Incident::decode(&[0, causes.len() as u8, 0, 0, 0, 0, 0, 0, 0, 0, 0]), None);
    }

    /// What a postmaster has noted before an update, the recorder of the new library takes over.
    #[test]
    fn the_bytes_of_a_death_are_known() {
        let death = Death { at: 1, pid: 2, signal: 9, query: b"query" };
        let wanted = b"\x09\x00\x00\x00pl\xa6\x0e\x02\x04\x12\x05query";
        assert_eq!(death.encode(&mut [0; MAX_DEATH]).unwrap(), wanted);
    }

    #[test]
    fn the_longest_fits() {
        let session = || Some(longest_session());
        let longest = Incident {
            at: i64::MIN,
            cause: Cause::Refusal,
            pid: i32::MIN,
            signal: i32::MIN,
            oom_kills: Some(u64::MAX),
            session: session(),
            held: Some(u64::MAX),
            growth_per_second: Some(i64::MIN),
            query: vec![b'q'; MAX_QUERY],
            largest: session(),
            sample: Some(longest_sample(0)),
        };
        assert_eq!(Incident::decode(&longest.encode().unwrap()), Some(longest));
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_do_no_harm(bytes: Vec<u8>) {
            let _ = (Incident::decode(&bytes), Death::decode_all(&bytes));
            let _ = Death::parse(0, &bytes, Some(&bytes));
        }
    }
}
