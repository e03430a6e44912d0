//! Reads the history, in any process.

use crate::model::history::incident::Incident;
use crate::model::history::ring;
use crate::model::history::sample::Sample;

use super::files::{INCIDENTS, MINUTES, SAMPLES};

/// Passes the samples of a range of time to `visit`, the oldest first: one a minute as long as there are no others.
/// Times are in microseconds since the Unix epoch.
pub fn each_sample(from: i64, until: i64, mut visit: impl FnMut(Sample)) {
    let samples = SAMPLES.read();
    let begin = samples.as_ref().and_then(|(file, header)| ring::first_time(file, *header)).unwrap_or(i64::MAX);
    if let Some((file, header)) = MINUTES.read()
        && from < begin
    {
        each_of(&file, header, from, until.min(begin.saturating_sub(1)), &mut visit);
    }
    if let Some((file, header)) = samples {
        each_of(&file, header, from, until, &mut visit);
    }
}

fn each_of(file: &std::fs::File, header: ring::Header, from: i64, until: i64, visit: &mut impl FnMut(Sample)) {
    ring::read(file, header, from, until, |_, record| {
        if let Some(sample) = Sample::decode(record)
            && (from..=until).contains(&sample.at)
        {
            visit(sample);
        }
    });
}

/// The last sample that was written, however long ago.
pub fn last_sample() -> Option<Sample> {
    let (file, header) = SAMPLES.read()?;
    let mut last = None;
    ring::read_newest(&file, header, |record| last = Sample::decode(record).or(last.take()));
    last
}

/// Passes the samples of the seconds before a time to `visit`, the oldest first.
pub fn each_written_sample(until: i64, mut visit: impl FnMut(Sample)) {
    const SECONDS: i64 = 90_000_000;
    if let Some((file, header)) = SAMPLES.read() {
        each_of(&file, header, until.saturating_sub(SECONDS), until, &mut visit);
    }
}

/// Passes the incidents to `visit`, the oldest first.
pub fn each_incident(mut visit: impl FnMut(Incident)) {
    if let Some((file, header)) = INCIDENTS.read() {
        ring::read(&file, header, i64::MIN, i64::MAX, |_, record| {
            if let Some(incident) = Incident::decode(record) {
                visit(incident);
            }
        });
    }
}
