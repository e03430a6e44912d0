//! Reads the history, in any process. All functions check for interrupts, so they may unwind.

use std::fs::File;

use crate::model::history::incident::Incident;
use crate::model::history::ring::Reader;
use crate::model::history::sample::Sample;

pub use super::files::OutOfMemory;
use super::files::{INCIDENTS, MINUTES, SAMPLES};

/// Passes the samples of a range of time to `visit`, the oldest first: one a minute as long as there are no others.
/// Times are in microseconds since the Unix epoch.
pub fn each_sample(from: i64, until: i64, mut visit: impl FnMut(Sample)) -> Result<(), OutOfMemory> {
    let samples = SAMPLES.read()?;
    let begin = samples.as_ref().and_then(Reader::first_time).unwrap_or(i64::MAX);
    if from < begin
        && let Some(minutes) = MINUTES.read()?
    {
        each_of(&minutes, from, until.min(begin.saturating_sub(1)), &mut visit);
    }
    if let Some(samples) = samples {
        each_of(&samples, from, until, &mut visit);
    }
    Ok(())
}

fn each_of(samples: &Reader<File>, from: i64, until: i64, visit: &mut impl FnMut(Sample)) {
    samples.each(from, until, |record| {
        if let Some(sample) = Sample::decode(record)
            && (from..=until).contains(&sample.at)
        {
            visit(sample);
        }
    });
}

/// The last sample that was written, however long ago.
pub fn last_sample() -> Result<Option<Sample>, OutOfMemory> {
    Ok(SAMPLES.read()?.and_then(|samples| samples.last(Sample::decode)))
}

/// Passes the samples of the 90 seconds before a time to `visit`, the oldest first: those of the minute in which a
/// sample says something about a process that has ended, and one from before that.
pub fn each_written_sample(until: i64, mut visit: impl FnMut(Sample)) -> Result<(), OutOfMemory> {
    const SECONDS: i64 = 90_000_000;
    if let Some(samples) = SAMPLES.read()? {
        each_of(&samples, until.saturating_sub(SECONDS), until, &mut visit);
    }
    Ok(())
}

/// Passes the incidents to `visit`, the oldest first.
pub fn each_incident(mut visit: impl FnMut(Incident)) -> Result<(), OutOfMemory> {
    if let Some(incidents) = INCIDENTS.read()? {
        incidents.each(i64::MIN, i64::MAX, |record| {
            if let Some(incident) = Incident::decode(record) {
                visit(incident);
            }
        });
    }
    Ok(())
}
