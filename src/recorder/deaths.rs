//! Deaths of the postmaster's children: noted by the postmaster, taken over by the recorder.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use crate::model::history::incident::{Death, MAX_DEATH};
use crate::pg::{error, log_hook, settings, this_process};

const FILE: &str = "pg_stat_tmp/pg_meminfo.deaths";
const TAKEN_FILE: &str = "pg_stat_tmp/pg_meminfo.deaths.taken";

/// The postmaster notes no more if nobody takes over what it has noted.
const MAX_SIZE: u64 = 256 * 1024;

/// How often the postmaster notes a death that may not have been taken over. The recorder reports it once.
const TRIES: usize = 3;

/// Notes what the postmaster writes to the log. Allocates nothing: memory may be short.
pub struct Postmaster;

impl log_hook::Observer for Postmaster {
    fn child_was_terminated(message: &[u8], detail: Option<&[u8]>) {
        // The detail is the text of the process's query.
        let detail = detail.filter(|_| settings::history_queries());
        let Some(death) = Death::parse(this_process::now(), message, detail) else { return };
        let mut buffer = [0; MAX_DEATH];
        let Some(record) = death.encode(&mut buffer) else { return };
        // Whatever fails here, the log has the message.
        let _ = (0..TRIES).any(|_| note(record).unwrap_or(true));
    }
}

/// Adds a record to the file. False if the recorder has taken the file over meanwhile: perhaps it was still empty.
fn note(record: &[u8]) -> io::Result<bool> {
    let mut file = OpenOptions::new().append(true).create(true).mode(settings::file_mode()).open(FILE)?;
    let metadata = file.metadata()?;
    if metadata.len() < MAX_SIZE {
        file.write_all(record).inspect_err(|_| {
            // Whatever follows half a record could not be read.
            let _ = file.set_len(metadata.len());
        })?;
    }
    Ok(fs::metadata(FILE).is_ok_and(|now| now.ino() == metadata.ino()))
}

/// The content of the file of what has been noted. `None` if there is none. A failure has been logged.
pub fn take() -> Result<Option<Vec<u8>>, Failed> {
    // One that an earlier recorder has not finished comes first.
    if !Path::new(TAKEN_FILE).exists() {
        match fs::rename(FILE, TAKEN_FILE) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            renamed => renamed.map_err(|error| Failed::log(FILE, "could not rename file", &error))?,
        }
    }
    fs::read(TAKEN_FILE).map(Some).map_err(|error| Failed::log(TAKEN_FILE, "could not read file", &error))
}

/// A failure that has been logged.
#[derive(Debug)]
pub struct Failed;

impl Failed {
    fn log(file: &str, what: &str, error: &io::Error) -> Self {
        error::log_file(Path::new(file), what, error);
        Failed
    }
}

/// What was taken has become incidents, and these have been written.
pub fn finish() {
    let _ = fs::remove_file(TAKEN_FILE);
}
