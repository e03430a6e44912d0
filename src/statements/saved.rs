//! Keeps the table in a file while the server is down.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use crate::model::statements::file::{Statistics, Unusable, decode, encode};
use crate::model::statements::table::Table;
use crate::pg::{error, settings};

/// The file, in the data directory, where Postgres keeps its own statistics while it is down.
const FILE: &str = "pg_stat/pg_meminfo.statements";
const NEW_FILE: &str = "pg_stat/pg_meminfo.statements.tmp";
const UNUSABLE_FILE: &str = "pg_stat/pg_meminfo.statements.old";

/// Fills the table from the file and removes the file, so that it is not there after a crash. Whatever is wrong with it
/// does not keep the server from starting.
pub fn restore(table: &mut Table, reset_at: &mut i64) {
    let bytes = match fs::read(FILE) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return,
        Err(error) => return error::log_file(Path::new(FILE), "could not read file", &error),
    };
    match decode(&bytes, table) {
        Ok(Statistics { deallocations, reset_at: since }) => {
            *table.deallocations = deallocations;
            *reset_at = since;
            if let Err(error) = fs::remove_file(FILE) {
                error::log_file(Path::new(FILE), "could not remove file", &error);
            }
        }
        Err(reason) => {
            let reason = match reason {
                Unusable::Foreign => "it is of another version of pg_meminfo",
                Unusable::Damaged => "it is damaged",
                Unusable::OutOfMemory => "out of memory",
            };
            error::log(
                format!("could not use file \"{FILE}\": {reason}"),
                Some(format!("It is kept as \"{UNUSABLE_FILE}\". Statistics of statements start anew.")),
            );
            table.remove(|_| true);
            if let Err(error) = fs::rename(FILE, UNUSABLE_FILE) {
                error::log_file(Path::new(FILE), "could not rename file", &error);
            }
        }
    }
}

/// Writes the table to the file.
pub fn save(table: &Table, reset_at: i64) {
    let statistics = Statistics { deallocations: *table.deallocations, reset_at };
    let written = encode(table, statistics).map_err(|_| io::ErrorKind::OutOfMemory.into()).and_then(|bytes| {
        let mut options = OpenOptions::new();
        let mut file = options.write(true).create(true).truncate(true).mode(settings::file_mode()).open(NEW_FILE)?;
        file.write_all(&bytes)?;
        file.sync_all()?;
        fs::rename(NEW_FILE, FILE)
    });
    if let Err(error) = written {
        error::log_file(Path::new(FILE), "could not write file", &error);
        let _ = fs::remove_file(NEW_FILE);
    }
}

/// Says that the kernel does not let processes lower their marks.
pub fn log_lifetime() {
    error::log(
        "peaks of statements are seen only if they are the highest of their sessions so far".to_string(),
        Some("\"/proc/self/clear_refs\" cannot be written.".to_string()),
    );
}
