//! A parent and its children that run the same program: the postmaster and all processes of its cluster.
//!
//! Other children are not part of the tree: a parent that is PID 1 of a container inherits every orphan there, and a
//! child may run a shell command.

use std::fs::{self, File};
use std::iter;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use super::buffer::Buffer;
use super::error::Error;
use super::fields;
use super::process::{FileId, Pid, Process};
use super::root::Root;
use super::system;

/// A parent and its children that run its program. This process is one of them.
#[derive(Debug)]
pub struct ProcessTree {
    root: Root,
    parent: Pid,
    program: FileId,
    /// When the system was started, in microseconds since the epoch.
    boot_time: i64,
}

impl ProcessTree {
    /// The process tree of `parent`, which runs the same program as this process.
    pub fn of(root: Root, parent: Pid) -> Result<Self, Error> {
        let path = root.path("/proc/self/exe");
        match fs::metadata(&path) {
            Ok(metadata) => Ok(ProcessTree { root, parent, program: metadata.into(), boot_time: system::boot_time() }),
            Err(source) => Err(Error::Failed { path, source }),
        }
    }

    /// Pins a process of the tree. [`Error::Gone`] if `pid` is not in the tree.
    pub fn pin(&self, pid: Pid) -> Result<Process, Error> {
        let mut process = Process::pin(&self.root, pid)?;
        let is_related = pid == self.parent || process.identity.parent == self.parent;
        if is_related && self.runs_our_program(&mut process)? { Ok(process) } else { Err(Error::Gone) }
    }

    /// The pids of the parent and of its children, whatever program they run. They come from the kernel's list of
    /// children, or from a search of `/proc` if there is no such list. A process that starts or exits during the call
    /// may be included or not. Calls `check_interrupts`, which may unwind, at short intervals.
    pub fn pids(&self, buffer: &mut Buffer, mut check_interrupts: impl FnMut()) -> Result<Vec<Pid>, Error> {
        let path = self.root.path(format!("/proc/{0}/task/{0}/children", self.parent));
        buffer.clear();
        let read = File::open(&path).and_then(|mut file| buffer.append(&mut file, &mut check_interrupts));
        let children = match read.map_err(|source| Error::of_process(source, || path)) {
            Ok(()) => children(buffer.text()),
            // The kernel is built without the list, or does not let us read it.
            Err(Error::Gone | Error::Denied) => self.search(check_interrupts)?,
            Err(error) => return Err(error),
        };
        Ok(iter::once(self.parent).chain(children).collect())
    }

    /// When a process was started, in microseconds since the epoch. As exact as the kernel's clock ticks, and the same
    /// in each call unless the system's clock is set.
    pub fn start_time(&self, process: &Process) -> i64 {
        process.start_time(self.boot_time)
    }

    /// Searches `/proc` for children of the parent.
    fn search(&self, mut check_interrupts: impl FnMut()) -> Result<Vec<Pid>, Error> {
        let proc: PathBuf = self.root.path("/proc");
        let failed = |source| Error::Failed { path: proc.clone(), source };
        let mut children = Vec::new();
        for entry in fs::read_dir(&proc).map_err(failed)? {
            check_interrupts();
            let name = entry.map_err(failed)?.file_name();
            let Some(pid) = fields::decimal(name.as_bytes()).and_then(|pid| Pid::try_from(pid).ok()) else { continue };
            match Process::pin(&self.root, pid) {
                Ok(process) if process.identity.parent == self.parent => children.push(pid),
                Ok(_) | Err(Error::Gone | Error::Denied) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(children)
    }

    /// Whether the process runs the tree's program. If we may not see its program, it counts as running it if it
    /// belongs to our user: it is a child of the parent, and the user must be warned that we cannot read it.
    fn runs_our_program(&self, process: &mut Process) -> Result<bool, Error> {
        match process.file_id(c"exe") {
            Ok(program) => {
                process.program = Some(program);
                Ok(program == self.program)
            }
            // Either not dumpable, or another user's process, which PID 1 of a container has inherited.
            Err(Error::Denied) => process.is_of_our_user(),
            Err(error) => Err(error),
        }
    }
}

/// Parses the kernel's list of children.
fn children(list: &[u8]) -> Vec<Pid> {
    list.split(|&byte| byte == b' ').filter_map(|word| Pid::try_from(fields::decimal(word)?).ok()).collect()
}

#[cfg(any(test, feature = "oracle"))]
pub mod naive;
#[cfg(test)]
mod tests;
