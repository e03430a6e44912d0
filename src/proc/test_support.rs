//! Shared by the tests of several files: child processes that wait and exit when told, and made-up trees of files.

use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::process::Pid;
use super::process_tree::ProcessTree;
use super::root::Root;

/// The stat of a process that sleeps.
pub fn stat_of(pid: Pid, parent: Pid) -> String {
    let zeros = " 0".repeat(13);
    format!("{pid} (postgres) S {parent} 1 1 0 -1 0 1 0 0 0 0 0 0 0 20 0 1 0 4711 8192 3{zeros} 17\n")
}

/// Waits for a condition that will certainly become true, although perhaps not at once. PATIENCE in the environment
/// multiplies the limit of a minute, for machines that are slow.
pub fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let patience = std::env::var("PATIENCE").map_or(1.0, |number| number.parse().expect("PATIENCE is a number"));
    let limit = Duration::from_secs(60).mul_f64(patience);
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < limit, "waited {limit:?} for {what}");
        thread::yield_now();
    }
}

/// A child process. It runs until it is dropped.
pub struct Running(Child);

impl Running {
    /// A child that runs the same program as this process, as a backend runs the postmaster's.
    pub fn sibling() -> Self {
        let this_waits = ["--exact", "proc::test_support::waits", "--ignored", "--nocapture"];
        Self::start(Command::new("/proc/self/exe").args(this_waits))
    }

    /// A sibling that has started and now only waits.
    pub fn waiting() -> Self {
        let child = Self::sibling();
        let threads = || fs::read_dir(format!("/proc/{}/task", child.pid())).unwrap();
        // The test's own thread reads from standard input, descriptor 0, and the main thread waits for that thread.
        let rests = |tid: &std::ffi::OsStr| {
            let read = |name| fs::read_to_string(Path::new("/proc").join(tid).join(name)).unwrap_or_default();
            // With ptrace_scope 2, Yama lets only root see the system call, with 3 nobody. Standard input is a pipe.
            read("syscall").starts_with(&format!("{} 0x0 ", libc::SYS_read)) || read("wchan").ends_with("pipe_read")
        };
        until("the child to wait", || threads().any(|thread| rests(&thread.unwrap().file_name())));
        child
    }

    /// A child that runs another program.
    pub fn stranger() -> Self {
        let child = Self::start(&mut Command::new("cat"));
        let ours = fs::read_link("/proc/self/exe").unwrap();
        // Some kernels let us continue a moment before the child has its new program.
        until("the exec", || child.program() != ours);
        child
    }

    /// A child that runs a command.
    pub fn start(command: &mut Command) -> Self {
        Running(command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap())
    }

    pub fn pid(&self) -> Pid {
        self.0.id() as Pid
    }

    /// The path of the program that the child runs.
    fn program(&self) -> PathBuf {
        fs::read_link(format!("/proc/{}/exe", self.pid())).unwrap()
    }

    pub fn stdout(&mut self) -> &mut ChildStdout {
        self.0.stdout.as_mut().unwrap()
    }

    /// Kills the process and leaves it as a zombie.
    pub fn kill(&mut self) {
        self.0.kill().unwrap();
        let stat = format!("/proc/{}/stat", self.pid());
        until("the child to die", || fs::read_to_string(&stat).unwrap().contains(") Z "));
    }

    /// Kills the process and removes it from the process table.
    pub fn reap(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }

    /// The number of our open descriptors for files in the process's directory, including the directory.
    pub fn descriptors(&self) -> usize {
        let directory = format!("/proc/{}", self.pid());
        let links = fs::read_dir("/proc/self/fd").unwrap().filter_map(|entry| fs::read_link(entry.ok()?.path()).ok());
        links.filter(|link| link.starts_with(&directory)).count()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
#[ignore = "not a test: what the children of other tests run"]
fn waits() {
    let _ = io::stdin().read(&mut [0]);
}

pub fn me() -> Pid {
    std::process::id() as Pid
}

/// The tree whose parent is this process.
pub fn our_tree() -> ProcessTree {
    ProcessTree::of(Root::default(), me()).unwrap()
}

/// Files below a directory that stands for `/`.
pub struct MadeUpRoot(TempDir);

impl MadeUpRoot {
    /// Creates files with these names and contents. In the contents, DEVICE is replaced by the device of the directory.
    pub fn new(files: &[(&str, &str)]) -> Self {
        let root = MadeUpRoot(tempfile::tempdir().unwrap());
        let device = fs::metadata(root.path()).unwrap().dev();
        let device = format!("{}:{}", libc::major(device), libc::minor(device));
        for (name, text) in files {
            root.write(name, text.replace("DEVICE", &device));
        }
        root
    }

    /// Creates a file, or replaces its content.
    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) {
        let path = self.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }

    pub fn root(&self) -> Root {
        Root::from(self.path())
    }
}
