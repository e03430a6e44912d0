//! The files of the history: opened, made, or set aside.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use crate::model::history::ring::{Header, Reader, Ring, Unusable};
use crate::pg::{error, interrupts, settings, this_process};

/// A file of the history. The names are relative to the data directory, where all server processes run.
#[derive(Clone, Copy, Debug)]
pub struct Kind {
    name: &'static str,
    size: fn() -> u64,
}

/// All samples.
pub const SAMPLES: Kind = Kind { name: "pg_stat_tmp/pg_meminfo.history", size: || settings::history_size() / 4 * 3 };

/// A sample of each minute: the one in which the cluster held most.
pub const MINUTES: Kind = Kind { name: "pg_stat_tmp/pg_meminfo.minutes", size: || settings::history_size() / 4 };

/// Incidents.
pub const INCIDENTS: Kind = Kind { name: "pg_stat_tmp/pg_meminfo.incidents", size: || 1 << 20 };

/// There is not enough memory to read a file of the history.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutOfMemory;

impl Kind {
    fn wanted(self) -> Header {
        Header::for_size((self.size)(), this_process::system_identifier())
    }

    /// Opens the file for the recorder, which goes on with it. Makes it if there is none. One that cannot be used is
    /// set aside; one of another size is copied. `None` if there cannot be a file, which has been logged.
    pub fn open(self) -> Option<Ring<File>> {
        let opened = OpenOptions::new().read(true).write(true).open(self.name);
        let reason = match opened {
            Ok(file) => match Ring::open(file) {
                Ok(ring) if ring.header() == self.wanted() => return Some(ring),
                Ok(ring) if ring.header().cluster == self.wanted().cluster => return self.resize(&ring),
                Ok(_) => "it belongs to another cluster".to_string(),
                Err(Unusable::Foreign) => "it is of another version of pg_meminfo".to_string(),
                Err(Unusable::Damaged) => "it is damaged".to_string(),
                // It may be all right, and is tried again.
                Err(Unusable::Io(error)) => return self.log("could not read file", &error),
                Err(Unusable::OutOfMemory) => {
                    return self.log("could not read file", &io::ErrorKind::OutOfMemory.into());
                }
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => return self.make(),
            Err(error) => return self.log("could not open file", &error),
        };
        let aside = format!("{}.old", self.name);
        error::log(
            format!("could not use file \"{}\": {reason}", self.name),
            Some(format!("It is kept as \"{aside}\". The history begins anew.")),
        );
        if let Err(error) = fs::rename(self.name, &aside) {
            return self.log("could not rename file", &error);
        }
        self.make()
    }

    fn log<T>(self, what: &str, error: &io::Error) -> Option<T> {
        error::log_file(Path::new(self.name), what, error);
        None
    }

    /// A reader of the file, in any process. `None` if there is no file that can be read. It checks for interrupts, so
    /// it may unwind.
    pub fn read(self) -> Result<Option<Reader<File>>, OutOfMemory> {
        let Ok(file) = File::open(self.name) else { return Ok(None) };
        match Reader::open(file, interrupts::check) {
            Ok(reader) => Ok(Some(reader)),
            Err(Unusable::OutOfMemory) => Err(OutOfMemory),
            Err(_) => Ok(None),
        }
    }

    fn make(self) -> Option<Ring<File>> {
        self.replace(|_| Ok(()))
    }

    /// Copies what has room.
    fn resize(self, old: &Ring<File>) -> Option<Ring<File>> {
        self.replace(|new| new.copy(old))
    }

    /// Makes a new file, fills it, and only then gives it its name.
    fn replace(self, fill: impl FnOnce(&mut Ring<File>) -> io::Result<()>) -> Option<Ring<File>> {
        let new = format!("{}.tmp", self.name);
        let made = self.allocate(&new).and_then(|file| {
            let mut ring = Ring::create(file, self.wanted())?;
            fill(&mut ring)?;
            fs::rename(&new, self.name)?;
            Ok(ring)
        });
        made.map_or_else(
            |error| {
                // A failed allocation has used up what was left.
                let _ = fs::remove_file(&new);
                self.log("could not write file", &error)
            },
            Some,
        )
    }

    /// A new file with all of its blocks, so that a full disk is found now and not later.
    fn allocate(self, path: &str) -> io::Result<File> {
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).create(true).truncate(true).mode(settings::file_mode()).open(path)?;
        // SAFETY: the descriptor is open.
        let allocate = || unsafe { libc::posix_fallocate(file.as_raw_fd(), 0, self.wanted().size() as libc::off_t) };
        loop {
            match allocate() {
                0 => return Ok(file),
                libc::EINTR => {}
                errno => return Err(io::Error::from_raw_os_error(errno)),
            }
        }
    }
}
