//! The processes of this cluster and their memory: combines what `pg` knows of them with what `proc` reads.
//!
//! Nothing here raises, warns or prints, so that both SQL functions and a background worker can use it. A function
//! returns what it found, and an [`Error`] only if it can return nothing. A process that has exited is left out. A
//! process that the kernel does not let us read is counted by [`Cluster::read_each`], by which all processes are read.
//!
//! As in [`crate::proc`], `check_interrupts` is called at short intervals and may unwind. A Postgres function that
//! fails unwinds too.

use std::collections::BTreeMap;
use std::ffi::CStr;
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use crate::pg::backends::{self, Backend};
use crate::pg::{fd, main_segment};
use crate::proc::address_space::{AddressSpace, Scratch};
use crate::proc::buffer::Buffer;
use crate::proc::category::Classifier;
use crate::proc::error::Error;
use crate::proc::pagemap;
use crate::proc::process::{Pid, Process};
use crate::proc::process_tree::ProcessTree;
use crate::proc::read_pool;
use crate::proc::root::Root;

pub mod contexts;
pub mod processes;
pub mod segments;
pub mod totals;

/// The processes of this cluster.
pub struct Cluster {
    root: Root,
    tree: ProcessTree,
    classifier: Classifier,
    threads: usize,
}

/// The whole content of one of a process's files.
#[derive(Debug, Default)]
pub struct Text {
    /// The path of the file.
    pub path: PathBuf,
    buffer: Buffer,
}

impl Text {
    /// The content.
    pub fn bytes(&self) -> &[u8] {
        self.buffer.text()
    }
}

impl Cluster {
    /// The cluster of this server, seen below a root. Up to `threads` threads read its processes at the same time.
    pub fn of_this_server(root: Root, threads: usize) -> Result<Self, Error> {
        let tree = ProcessTree::of(root.clone(), backends::postmaster_pid())?;
        let program = fs::read_link(root.path("/proc/self/exe")).unwrap_or_default().into_os_string().into_vec();
        let classifier = Classifier {
            // After an upgrade, the executable that is still running has been deleted.
            program: program.strip_suffix(b" (deleted)").unwrap_or(&program).to_vec(),
            in_main_segment: main_segment::address(),
            system_v_key: main_segment::system_v_key(),
        };
        Ok(Cluster { root, tree, classifier, threads })
    }

    /// The pids of the processes in pg_stat_activity.
    pub fn backends(&self) -> Vec<Pid> {
        backends::all().iter().map(|backend| backend.pid).collect()
    }

    /// The classifier of its processes' mappings.
    pub fn classifier(&self) -> &Classifier {
        &self.classifier
    }

    /// Whether the kernel says which pages are private.
    pub fn tells_private(&self) -> bool {
        pagemap::tells_private(&self.root)
    }

    /// Reads a whole file of each process and passes it to `visit`. Returns the number of processes that were denied.
    pub fn read_file_of_each(
        &self,
        pids: &[Pid],
        name: &CStr,
        check_interrupts: impl FnMut(),
        mut visit: impl FnMut(Pid, &Text) -> Result<(), Error>,
    ) -> Result<usize, Error> {
        let read = |process: &Process, text: &mut Text, check_interrupts: &mut dyn FnMut()| {
            text.path = process.path(name);
            process.read(name, &mut text.buffer, check_interrupts)
        };
        self.read_each(pids, self.threads, check_interrupts, read, |pid, text: Option<&mut Text>| match text {
            Some(text) => visit(pid, text),
            None => Ok(()),
        })
    }

    /// The address space of a process. `None` if it is not a process of the cluster, has exited, or is denied. Also
    /// returns the number of processes that were denied.
    pub fn address_space(
        &self,
        pid: Pid,
        check_interrupts: impl FnMut(),
    ) -> Result<(Option<AddressSpace>, usize), Error> {
        let mut found = None;
        let read = |process: &Process, space: &mut Option<AddressSpace>, check_interrupts: &mut dyn FnMut()| {
            let read = AddressSpace::read(process, &self.classifier, &mut Scratch::default(), check_interrupts)?;
            if read.pagemap_denied {
                return Err(Error::Denied);
            }
            *space = Some(read);
            Ok(())
        };
        let denied = self.read_each(&[pid], 1, check_interrupts, read, |_, space| {
            found = space.and_then(Option::take);
            Ok(())
        })?;
        Ok((found, denied))
    }

    /// Reads each process by `read`, with up to `threads` threads, and passes the result to `visit`, or `None` if the
    /// process is denied. Leaves out pids that are not processes of the cluster, and processes that exit before they
    /// have been read. Returns the number of processes that were denied.
    fn read_each<R: Default + Send>(
        &self,
        pids: &[Pid],
        threads: usize,
        check_interrupts: impl FnMut(),
        read: impl Fn(&Process, &mut R, &mut dyn FnMut()) -> Result<(), Error> + Sync,
        mut visit: impl FnMut(Pid, Option<&mut R>) -> Result<(), Error>,
    ) -> Result<usize, Error> {
        let mut denied = 0;
        let count_denied = |pid, result: Result<&mut R, Error>| match result {
            Ok(result) => visit(pid, Some(result)),
            Err(Error::Gone) => Ok(()),
            Err(Error::Denied) => {
                denied += 1;
                visit(pid, None)
            }
            Err(error) => Err(error),
        };
        let run = |threads| read_pool::read_each(&self.tree, pids, threads, check_interrupts, read, count_denied);
        match threads.min(pids.len()) {
            0 | 1 => run(0),
            threads => fd::reserve(threads, read_pool::DESCRIPTORS, run),
        }?;
        Ok(denied)
    }

    /// The pids of all processes that may belong to the cluster: those in pg_stat_activity, and the other children of
    /// the postmaster.
    fn candidates(&self, check_interrupts: impl FnMut()) -> Result<BTreeMap<Pid, Option<Backend>>, Error> {
        let children = self.tree.pids(&mut Buffer::default(), check_interrupts)?.into_iter().map(|pid| (pid, None));
        Ok(children.chain(backends::all().into_iter().map(|backend| (backend.pid, Some(backend)))).collect())
    }
}
