//! The directory that contains the kernel's file systems, and how to read small files there.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

use super::error::Error;

/// The directory that contains `/proc`, `/sys` and `/dev`: `/`, except in tests that make up a system.
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
    /// The path of a file that is at `absolute` on a running system.
    pub fn path(&self, absolute: impl AsRef<OsStr>) -> PathBuf {
        let absolute = Path::new(absolute.as_ref());
        self.0.join(absolute.strip_prefix("/").unwrap_or(absolute))
    }
}

/// The content of a small file. `None` if it does not exist or we may not read it.
pub(super) fn read_if_visible(path: &Path) -> Result<Option<Vec<u8>>, Error> {
    match fs::read(path) {
        Ok(text) => Ok(Some(text)),
        Err(source) => match source.raw_os_error() {
            // The last two occur for cgroups: the cgroup was removed, or the kernel was told not to keep this
            // statistic.
            Some(libc::ENOENT | libc::EACCES | libc::EPERM | libc::ENODEV | libc::EOPNOTSUPP) => Ok(None),
            _ => Err(Error::Failed { path: path.into(), source }),
        },
    }
}
