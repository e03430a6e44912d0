//! The background worker that takes samples, and writes them and incidents.

use std::collections::VecDeque;
use std::fs::File;

use crate::guard::controller::{self, Controller, Event};
use crate::model::guard::{End, Refusal};
use crate::model::history::incident::{Cause, Death, Incident, oom_kills};
use crate::model::history::pace;
use crate::model::history::ring::Ring;
use crate::model::history::sample::Sample;
use crate::model::history::thresholds::Thresholds;
use crate::pg::background_worker::Work;
use crate::pg::{error, settings, this_process};
use crate::proc::resident;
use crate::proc::root::Root;

use super::files::{INCIDENTS, Kind, MINUTES, SAMPLES};
use super::history::OutOfMemory;
use super::sampler::Sampler;
use super::{deaths, history};

/// How many samples are kept in memory, for the growth of a session.
const RECENT: usize = 64;

/// So many samples before an incident are looked at for its sessions: those of ten seconds, if there are 50 a second.
const BEFORE: usize = 512;

/// A sample of a minute has so many sessions.
const SESSIONS_OF_MINUTE: usize = 4;

const MINUTE: i64 = 60_000_000;

/// A death explains that the server has ended, if it came at most so many microseconds before the last sample, or after
/// it.
const EXPLAINS: i64 = 10_000_000;

/// At most so many incidents are kept until they can be written.
const MAX_UNWRITTEN: usize = 256;

/// After a failure to write, a file is left alone for so many microseconds.
const PAUSE: i64 = 10 * MINUTE;

/// A file, if it can be written.
struct Output {
    kind: Kind,
    ring: Option<Ring<File>>,
    /// When it is to be tried again.
    next_try: i64,
}

impl Output {
    fn new(kind: Kind) -> Self {
        Output { kind, ring: kind.open(), next_try: this_process::now() + PAUSE }
    }

    /// Whether the record was written.
    fn write(&mut self, at: i64, record: &[u8]) -> bool {
        let now = this_process::now();
        if self.ring.is_none() && now >= self.next_try {
            *self = Output::new(self.kind);
        }
        let Some(ring) = &mut self.ring else { return false };
        let written = ring.append(at, record);
        if let Err(error) = &written {
            error::log(format!("could not write the history of memory: {error}"), None);
            (self.ring, self.next_try) = (None, now + PAUSE);
        }
        written.is_ok()
    }

    fn write_sample(&mut self, sample: &Sample) {
        if let Some(record) = sample.encode() {
            self.write(sample.at, &record);
        }
    }
}

/// The recorder.
pub struct Recorder {
    sampler: Sampler,
    samples: Output,
    minutes: Output,
    incidents: Output,
    /// Incidents that could not be written yet, the oldest first.
    unwritten: VecDeque<Incident>,
    recent: VecDeque<Sample>,
    written: Option<Sample>,
    /// The sample of this minute in which the cluster held most.
    minute: Option<Sample>,
    thresholds: Thresholds,
    guard: Controller,
    /// When to look next at what the postmaster has noted.
    next_deaths: i64,
}

impl Work for Recorder {
    fn start() -> Self {
        resident::reserve_memory();
        // One for each process stays open.
        resident::raise_descriptor_limit();
        let mut recorder = Recorder {
            sampler: Sampler::new(Root::default()),
            samples: Output::new(SAMPLES),
            minutes: Output::new(MINUTES),
            incidents: Output::new(INCIDENTS),
            unwritten: VecDeque::new(),
            recent: VecDeque::with_capacity(RECENT),
            written: None,
            minute: None,
            thresholds: Thresholds::default(),
            guard: Controller::new(),
            next_deaths: 0,
        };
        recorder.explain_the_past();
        recorder
    }

    fn run(&mut self) -> u64 {
        let sample = self.sampler.sample();
        // Before anything is written, which can take long.
        let mut events = controller::take_refusals(sample.at);
        match self.sampler.moment(&sample) {
            Some(moment) => events.extend(self.guard.run(&moment)),
            None => self.guard.run_blind(),
        }
        let interval = settings::sample_interval();
        if pace::is_worth_writing(self.written.as_ref(), &sample, interval) {
            self.samples.write_sample(&sample);
            self.written = Some(sample.clone());
            self.sampler.has_been_written();
            if self.next_deaths <= sample.at {
                self.take_deaths();
            }
        }
        self.keep_minute(&sample);
        // The guard must not come too late, either.
        let min_headroom = sample.limit.and_then(settings::guard::min_headroom).unwrap_or(0);
        let left = sample.headroom.map(|headroom| headroom.saturating_sub(min_headroom));
        let next = pace::interval(left, settings::pressure_interval(), interval);
        if self.recent.len() == RECENT {
            self.recent.pop_front();
        }
        self.recent.push_back(sample);
        events.into_iter().for_each(|event| self.report_guard(event));
        self.watch_thresholds();
        next
    }

    fn end(&mut self) {
        self.guard.finish();
        let sample = Sample { is_last: true, ..self.sampler.sample() };
        self.samples.write_sample(&sample);
        if let Some(minute) = self.minute.take() {
            self.minutes.write_sample(&minute);
        }
    }
}

impl Recorder {
    /// What has happened while there was no recorder.
    fn explain_the_past(&mut self) {
        self.take_deaths();
        let Some(Some(last)) = or_log(history::last_sample()) else { return };
        let now = self.sampler.sample();
        if last.server_start == now.server_start || last.is_last {
            return;
        }
        let mut is_explained = false;
        let read = history::each_incident(|incident| {
            is_explained |= incident.is_death() && incident.at >= last.at - EXPLAINS;
        });
        if or_log(read).is_some() && !is_explained {
            let before = samples_before(last.at);
            let kills = oom_kills(last.at, i64::MIN, &before, &now);
            self.report(Incident::of_server_end(kills, &before));
        }
    }

    /// Makes incidents of what the postmaster has noted.
    fn take_deaths(&mut self) {
        self.write_incidents();
        if !self.unwritten.is_empty() {
            // What was taken last can be among them. It would be reported again.
            return;
        }
        let bytes = match deaths::take() {
            Ok(Some(bytes)) => bytes,
            Ok(None) => return,
            Err(deaths::Failed) => {
                self.next_deaths = this_process::now() + PAUSE;
                return;
            }
        };
        let now = self.sampler.sample();
        // When the last death was explained, and those that are known: an earlier recorder may not have finished, and
        // the postmaster may have noted one again.
        let (mut known, mut reported) = (i64::MIN, Vec::new());
        let read = history::each_incident(|incident| {
            if incident.is_death() {
                known = known.max(incident.at);
                reported.push((incident.at, incident.pid));
            }
        });
        if or_log(read).is_none() {
            self.next_deaths = this_process::now() + PAUSE;
            return;
        }
        for death in Death::decode_all(&bytes) {
            if reported.contains(&(death.at, death.pid)) {
                continue;
            }
            let before = samples_before(death.at);
            let kills = oom_kills(death.at, known, &before, &now);
            self.report(Incident::of_death(&death, kills, &before));
            known = known.max(death.at);
            reported.push((death.at, death.pid));
        }
        // A recorder that ends before the rest is written leaves it to the next one.
        if self.unwritten.is_empty() {
            deaths::finish();
        }
    }

    fn keep_minute(&mut self, sample: &Sample) {
        let minute = sample.at.div_euclid(MINUTE);
        if let Some(kept) = self.minute.take_if(|kept| kept.at.div_euclid(MINUTE) != minute) {
            self.minutes.write_sample(&kept);
        }
        if self.minute.as_ref().is_none_or(|kept| sample.private > kept.private) {
            let mut sample = sample.clone();
            sample.sessions.truncate(SESSIONS_OF_MINUTE);
            self.minute = Some(sample);
        }
    }

    fn watch_thresholds(&mut self) {
        let limit = settings::log_session_memory();
        let sessions = if limit.is_some() { self.sampler.groups() } else { Vec::new() };
        for (pid, held) in self.thresholds.cross(limit, &sessions) {
            let incident = Incident::of_session(Cause::SessionMemory, pid, held, self.recent.make_contiguous());
            self.report(incident);
        }
        let headroom = self.recent.back().and_then(|sample| sample.headroom);
        if self.thresholds.run_short(settings::log_min_headroom(), headroom) {
            let incident = Incident::of_threshold(Cause::MinHeadroom, 0, self.recent.make_contiguous());
            self.report(incident);
        }
    }

    /// What the guard has done.
    fn report_guard(&mut self, event: Event) {
        let recent = self.recent.make_contiguous();
        let incident = match event {
            Event::Short { is_braking: true } => Incident::of_threshold(Cause::Brake, 0, recent),
            Event::Short { is_braking: false } => Incident::of_threshold(Cause::MinHeadroom, 0, recent),
            Event::Ended(order) => {
                let cause = if order.end == End::Cancel { Cause::Cancel } else { Cause::Terminate };
                Incident::of_session(cause, order.pid, order.held, recent)
            }
            Event::Refused(Refusal { pid, mapped, statement }) => Incident::of_refusal(pid, mapped, statement, recent),
            Event::NoReason => {
                let message = "memory is running out, but no session that may be canceled holds a tenth of it";
                let detail = Incident::of_threshold(Cause::MinHeadroom, 0, recent).detail();
                return error::log(message.to_string(), detail);
            }
        };
        self.report(incident);
    }

    /// Writes an incident to the log and to its file, or keeps it until it can be written there.
    fn report(&mut self, incident: Incident) {
        error::log(incident.message(), incident.detail());
        if self.unwritten.len() == MAX_UNWRITTEN {
            self.unwritten.pop_front();
        }
        self.unwritten.push_back(incident);
        self.write_incidents();
    }

    fn write_incidents(&mut self) {
        while let Some(incident) = self.unwritten.front() {
            if let Some(record) = incident.encode()
                && !self.incidents.write(incident.at, &record)
            {
                return;
            }
            self.unwritten.pop_front();
        }
    }
}

/// The samples of the 90 seconds before a time. While memory is short, there are many: only the last have their
/// sessions.
fn samples_before(at: i64) -> Vec<Sample> {
    let mut samples: Vec<Sample> = Vec::new();
    let read = history::each_written_sample(at, |sample| {
        if let Some(nth) = samples.len().checked_sub(BEFORE) {
            samples[nth].sessions = Vec::new();
        }
        samples.push(sample);
    });
    // What happened is worth more than what was known before it.
    or_log(read);
    samples
}

/// What was read. `None` if there is not enough memory, which has been logged.
fn or_log<T>(read: Result<T, OutOfMemory>) -> Option<T> {
    if read.is_err() {
        error::log("could not read the history of memory: out of memory".to_string(), None);
    }
    read.ok()
}
