//! Where the kernel's file systems are, and the reading of small files in them.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

use super::error::Error;

/// The directory below which `/proc`, `/sys` and `/dev` are: `/`, unless a test makes one up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Root(PathBuf);

impl Default for Root {
    fn default() -> Self {
        Root("/".into())
    }
}

impl From<&Path> for Root {
    fn from(path: &Path) -> Self {
        Root(path.into())
    }
}

impl Root {
    /// Where a file is that has this absolute path on a running system.
    pub fn path(&self, absolute: impl AsRef<OsStr>) -> PathBuf {
        let absolute = Path::new(absolute.as_ref());
        self.0.join(absolute.strip_prefix("/").unwrap_or(absolute))
    }
}

/// The whole of a small file. `None` if there is none, or we may not read it.
pub(super) fn read_if_visible(path: &Path) -> Result<Option<Vec<u8>>, Error> {
    match fs::read(path) {
        Ok(text) => Ok(Some(text)),
        Err(source) => match source.raw_os_error() {
            // The last two are of cgroups: it was removed, or the kernel was told not to keep that account.
            Some(libc::ENOENT | libc::EACCES | libc::EPERM | libc::ENODEV | libc::EOPNOTSUPP) => Ok(None),
            _ => Err(Error::Failed { path: path.into(), source }),
        },
    }
}
