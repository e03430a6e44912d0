//! Deaths of the postmaster's children: noted by the postmaster, taken over by the recorder.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use crate::model::history::incident::{Death, MAX_DEATH};
use crate::pg::{error, log_hook, settings, this_process};

const FILE: &str = "pg_stat_tmp/pg_meminfo.deaths";
const TAKEN_FILE: &str = "pg_stat_tmp/pg_meminfo.deaths.taken";

/// The postmaster notes no more if nobody takes over what it has noted.
const MAX_SIZE: u64 = 256 * 1024;

/// Notes what the postmaster writes to the log. Allocates nothing: memory may be short.
pub struct Postmaster;

impl log_hook::Observer for Postmaster {
    fn child_was_terminated(message: &[u8], detail: Option<&[u8]>) {
        let Some(death) = Death::parse(this_process::now(), message, detail) else { return };
        let mut buffer = [0; MAX_DEATH];
        let Some(record) = death.encode(&mut buffer) else { return };
        // Whatever fails here, the log has the message.
        let mut options = OpenOptions::new();
        if let Ok(mut file) = options.append(true).create(true).mode(settings::file_mode()).open(FILE)
            && file.metadata().is_ok_and(|metadata| metadata.len() < MAX_SIZE)
        {
            let _ = file.write_all(record);
        }
    }
}

/// The file of what has been noted. It is empty if there is none.
pub fn take() -> Vec<u8> {
    // One that an earlier recorder has not finished comes first.
    let is_left = Path::new(TAKEN_FILE).exists();
    if !is_left {
        match fs::rename(FILE, TAKEN_FILE) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Vec::new(),
            Err(error) => {
                error::log_file(Path::new(FILE), "could not rename file", &error);
                return Vec::new();
            }
        }
    }
    fs::read(TAKEN_FILE).unwrap_or_else(|error| {
        error::log_file(Path::new(TAKEN_FILE), "could not read file", &error);
        Vec::new()
    })
}

/// What was taken has become incidents.
pub fn finish() {
    let _ = fs::remove_file(TAKEN_FILE);
}
