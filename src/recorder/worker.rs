//! The background worker that takes samples, and writes them and incidents.

use std::collections::VecDeque;
use std::fs::File;

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
use super::sampler::Sampler;
use super::{deaths, history};

/// How many samples are kept in memory, for the growth of a session.
const RECENT: usize = 64;

/// A sample of a minute has so many sessions.
const SESSIONS_OF_MINUTE: usize = 4;

const MINUTE: i64 = 60_000_000;

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

    fn write(&mut self, at: i64, record: Option<Vec<u8>>) {
        let now = this_process::now();
        if self.ring.is_none() && now >= self.next_try {
            *self = Output::new(self.kind);
        }
        if let Some(ring) = &mut self.ring
            && let Some(record) = record
            && let Err(error) = ring.append(at, &record)
        {
            error::log(format!("could not write the history of memory: {error}"), None);
            (self.ring, self.next_try) = (None, now + PAUSE);
        }
    }
}

/// The recorder.
pub struct Recorder {
    sampler: Sampler,
    samples: Output,
    minutes: Output,
    incidents: Output,
    recent: VecDeque<Sample>,
    written: Option<Sample>,
    /// The sample of this minute in which the cluster held most.
    minute: Option<Sample>,
    thresholds: Thresholds,
}

impl Work for Recorder {
    fn start() -> Self {
        // One for each process stays open.
        resident::raise_descriptor_limit();
        let mut recorder = Recorder {
            sampler: Sampler::new(Root::default()),
            samples: Output::new(SAMPLES),
            minutes: Output::new(MINUTES),
            incidents: Output::new(INCIDENTS),
            recent: VecDeque::with_capacity(RECENT),
            written: None,
            minute: None,
            thresholds: Thresholds::default(),
        };
        recorder.explain_the_past();
        recorder
    }

    fn run(&mut self) -> u64 {
        let sample = self.sampler.sample();
        let interval = settings::sample_interval();
        if pace::is_worth_writing(self.written.as_ref(), &sample, interval) {
            self.samples.write(sample.at, sample.encode());
            self.written = Some(sample.clone());
            self.take_deaths();
        }
        self.keep_minute(&sample);
        let next = pace::interval(sample.headroom, settings::pressure_interval(), interval);
        if self.recent.len() == RECENT {
            self.recent.pop_front();
        }
        self.recent.push_back(sample);
        self.watch_thresholds();
        next
    }

    fn end(&mut self) {
        let sample = Sample { is_last: true, ..self.sampler.sample() };
        self.samples.write(sample.at, sample.encode());
        if let Some(minute) = self.minute.take() {
            self.minutes.write(minute.at, minute.encode());
        }
    }
}

impl Recorder {
    /// What has happened while there was no recorder.
    fn explain_the_past(&mut self) {
        let now = self.sampler.sample();
        let before = samples_before(now.at);
        let last_death = self.take_deaths();
        let Some(last) = before.last() else { return };
        let is_explained = last_death.is_some_and(|death| death >= last.at);
        if last.server_start != now.server_start && !last.is_last && !is_explained {
            let kills = oom_kills(last.at, i64::MIN, &before, &now);
            self.report(&Incident::of_server_end(kills, &before));
        }
    }

    /// Makes incidents of what the postmaster has noted. Returns when the last of it happened.
    fn take_deaths(&mut self) -> Option<i64> {
        let bytes = deaths::take();
        if bytes.is_empty() {
            return None;
        }
        let now = self.sampler.sample();
        // The postmaster notes only the first of those that end in a crash restart.
        let mut known = i64::MIN;
        history::each_incident(|incident| known = known.max(incident.at));
        let deaths = Death::decode_all(&bytes);
        for death in &deaths {
            let before = samples_before(death.at);
            let kills = oom_kills(death.at, known, &before, &now);
            self.report(&Incident::of_death(death, kills, &before));
        }
        deaths::finish();
        deaths.last().map(|death| death.at)
    }

    fn keep_minute(&mut self, sample: &Sample) {
        let minute = sample.at.div_euclid(MINUTE);
        if let Some(kept) = self.minute.take_if(|kept| kept.at.div_euclid(MINUTE) != minute) {
            self.minutes.write(kept.at, kept.encode());
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
        for pid in self.thresholds.cross(limit, &sessions) {
            let incident = Incident::of_threshold(Cause::SessionMemory, pid, self.recent.make_contiguous());
            self.report(&incident);
        }
        let headroom = self.recent.back().and_then(|sample| sample.headroom);
        if self.thresholds.run_short(settings::log_min_headroom(), headroom) {
            let incident = Incident::of_threshold(Cause::MinHeadroom, 0, self.recent.make_contiguous());
            self.report(&incident);
        }
    }

    /// Writes an incident to its file and to the log.
    fn report(&mut self, incident: &Incident) {
        self.incidents.write(incident.at, incident.encode());
        error::log(incident.message(), incident.detail());
    }
}

/// The samples of the last seconds before a time.
fn samples_before(at: i64) -> Vec<Sample> {
    let mut samples = VecDeque::with_capacity(RECENT);
    history::each_written_sample(at, |sample| {
        if samples.len() == RECENT {
            samples.pop_front();
        }
        samples.push_back(sample);
    });
    samples.into()
}
