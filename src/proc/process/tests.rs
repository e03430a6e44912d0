use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use proptest::prelude::*;

use super::*;

/// Waits for what is sure to come, unless /proc does not show it here.
fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < Duration::from_secs(60), "waited a minute for {what}");
        std::thread::yield_now();
    }
}

/// A child process, which runs until it is dropped.
pub(in crate::proc) struct Running(Child);

impl Running {
    /// A child that runs this very program, as a backend runs the postmaster's.
    pub fn sibling() -> Self {
        let this_waits = ["--exact", "proc::process::tests::waits", "--ignored", "--nocapture"];
        Self::start(Command::new("/proc/self/exe").args(this_waits))
    }

    /// A sibling that has come to rest.
    pub fn waiting() -> Self {
        let child = Self::sibling();
        let threads = || fs::read_dir(format!("/proc/{}/task", child.pid())).unwrap();
        // The test's own thread reads from its standard input, descriptor 0, and the main thread waits for it.
        let rests = |tid: &std::ffi::OsStr| {
            let call = fs::read_to_string(Path::new("/proc").join(tid).join("syscall")).unwrap_or_default();
            call.starts_with(&format!("{} 0x0 ", libc::SYS_read))
        };
        until("the child to wait", || threads().any(|thread| rests(&thread.unwrap().file_name())));
        child
    }

    pub fn stranger() -> Self {
        Self::start(&mut Command::new("cat"))
    }

    fn start(command: &mut Command) -> Self {
        Running(command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap())
    }

    pub fn pid(&self) -> Pid {
        self.0.id() as Pid
    }

    /// Ends the process and leaves it a zombie.
    pub fn kill(&mut self) {
        self.0.kill().unwrap();
        let stat = format!("/proc/{}/stat", self.pid());
        until("the child to die", || fs::read_to_string(&stat).unwrap().contains(") Z "));
    }

    /// Ends the process and removes it from the process table.
    pub fn reap(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }

    /// How many descriptors of ours lead into the process's directory.
    pub fn held(&self) -> usize {
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

pub(in crate::proc) fn me() -> Pid {
    std::process::id() as Pid
}

pub(in crate::proc) fn family() -> Family {
    Family::of(me()).unwrap()
}

fn read_all(process: &Process, name: &CStr) -> Result<Vec<u8>, Error> {
    let mut buffer = Buffer::default();
    process.read(name, &mut buffer, || ())?;
    Ok(buffer.text().to_vec())
}

fn is_gone<T>(result: Result<T, Error>) -> bool {
    matches!(result, Err(Error::Gone))
}

// Who belongs to the family.

#[test]
fn the_parent_and_its_children() {
    let parent = family().open(me()).unwrap();
    assert_eq!(read_all(&parent, c"cmdline").unwrap(), fs::read("/proc/self/cmdline").unwrap());
    let child = Running::waiting();
    let process = family().open(child.pid()).unwrap();
    let expected = fs::read(format!("/proc/{}/cmdline", child.pid())).unwrap();
    assert_eq!(read_all(&process, c"cmdline").unwrap(), expected);
}

#[test]
fn a_child_with_another_program_is_a_stranger() {
    assert!(is_gone(family().open(Running::stranger().pid())));
}

#[test]
fn somebody_elses_child_is_a_stranger() {
    let child = Running::sibling();
    let other_family = Family { parent: Running::stranger().pid(), ..family() };
    assert!(is_gone(other_family.open(child.pid())));
}

#[test]
fn no_such_process() {
    for pid in [Pid::MAX, 0, -1, Pid::MIN] {
        assert!(is_gone(family().open(pid)), "{pid}");
    }
}

#[test]
fn a_thread_is_no_process() {
    let (send, receive) = std::sync::mpsc::channel();
    let (stop, stopped) = std::sync::mpsc::channel::<()>();
    let thread = std::thread::spawn(move || {
        let own = fs::read_link("/proc/thread-self").unwrap();
        send.send(own.file_name().unwrap().to_str().unwrap().parse::<Pid>().unwrap()).unwrap();
        let _ = stopped.recv();
    });
    let tid = receive.recv().unwrap();
    assert_ne!(tid, me());
    // As seen from a parent, the thread's parent is that of its process.
    let grandparent = family().open(me()).unwrap().identity.parent;
    assert!(is_gone(Family { parent: grandparent, ..family() }.open(tid)));
    drop(stop);
    thread.join().unwrap();
}

// Processes that go away.

#[test]
fn a_zombie_is_gone() {
    let mut child = Running::sibling();
    child.kill();
    assert!(is_gone(family().open(child.pid())));
}

#[test]
fn gone_after_it_was_opened() {
    for end in [Running::kill, Running::reap] {
        let mut child = Running::sibling();
        let process = family().open(child.pid()).unwrap();
        end(&mut child);
        assert!(is_gone(read_all(&process, c"smaps")));
    }
}

#[test]
fn gone_in_mid_file() {
    let mut buffer = Buffer::default();
    for end in [Running::kill, Running::reap] {
        let mut child = Running::sibling();
        let process = family().open(child.pid()).unwrap();
        let mut reads = 0;
        let result = process.read(c"smaps", &mut buffer, || {
            reads += 1;
            if reads == 1 {
                end(&mut child);
            }
        });
        assert!(is_gone(result));
        assert!(reads > 0);
    }
}

#[test]
fn another_process_with_the_same_pid_is_not_the_same() {
    let child = Running::sibling();
    let mut process = family().open(child.pid()).unwrap();
    process.identity.start_time += 1;
    assert!(is_gone(read_all(&process, c"smaps")));
}

#[test]
fn an_adopted_process_is_no_longer_of_the_family() {
    let child = Running::sibling();
    let mut process = family().open(child.pid()).unwrap();
    process.identity.parent += 1;
    assert!(is_gone(read_all(&process, c"smaps")));
}

#[test]
fn a_process_that_has_become_another_program_is_gone() {
    let child = Running::sibling();
    let mut process = family().open(child.pid()).unwrap();
    let program = process.program.as_mut().unwrap();
    program.inode += 1;
    assert!(is_gone(read_all(&process, c"smaps")));
}

// Reading.

#[test]
fn reads_the_whole_file_between_calls() {
    // Our own: a child that has just been started has mapped little yet.
    let mut buffer = Buffer::default();
    let mut reads = 0;
    let process = family().open(me()).unwrap();
    process.read(c"smaps", &mut buffer, || reads += 1).unwrap();
    let smaps = buffer.text();
    assert!(smaps.len() > 4096 && smaps.ends_with(b"\n"));
    assert!(reads > 1, "smaps comes a page at a time");
}

#[test]
fn unwinding_between_reads_leaks_no_descriptor() {
    let child = Running::sibling();
    let unwound = catch_unwind(AssertUnwindSafe(|| {
        let process = family().open(child.pid()).unwrap();
        assert!(child.held() > 0);
        let _ = process.read(c"smaps", &mut Buffer::default(), || std::panic::resume_unwind(Box::new(())));
    }));
    assert!(unwound.is_err());
    assert_eq!(child.held(), 0);
}

#[test]
fn failures_leak_no_descriptor() {
    let child = Running::sibling();
    let process = family().open(child.pid()).unwrap();
    assert!(is_gone(read_all(&process, c"no_such_file")));
    assert!(read_all(&process, c"task").is_err());
    assert_eq!(child.held(), 1);
    drop(process);
    assert_eq!(child.held(), 0);
}

#[test]
fn small_files_are_read_together() {
    let child = Running::waiting();
    let process = family().open(child.pid()).unwrap();
    let mut buffer = Buffer::default();
    let [adj, cmdline, again] =
        process.read_small([c"oom_score_adj", c"cmdline", c"oom_score_adj"], &mut buffer).unwrap();
    assert_eq!(adj, fs::read(format!("/proc/{}/oom_score_adj", child.pid())).unwrap());
    assert_eq!(cmdline, fs::read(format!("/proc/{}/cmdline", child.pid())).unwrap());
    assert_eq!(again, adj);
    assert!(is_gone(process.read_small([c"oom_score_adj", c"no_such_file"], &mut buffer)));
}

#[test]
fn what_a_process_calls_itself() {
    let mut child = Running::stranger();
    let process = family().hold(child.pid()).unwrap();
    let mut buffer = Buffer::default();
    // Until exec it is called as we are.
    until("the exec", || process.title(&mut buffer).unwrap() == b"cat");
    child.kill();
    assert!(is_gone(process.title(&mut buffer)));
}

#[test]
fn a_process_started_when_it_did() {
    let micros = || SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_micros() as i64;
    let before = micros();
    let child = Running::sibling();
    let started = family().open(child.pid()).unwrap().start_time();
    // A tick is 10 ms; the clock may be set by a little meanwhile.
    assert!((before - 1_000_000..micros() + 1_000_000).contains(&started), "{before} {started}");
}

#[test]
fn a_start_is_the_same_each_time() {
    let child = Running::sibling();
    let starts: Vec<_> = (0..1000).map(|_| family().open(child.pid()).unwrap().start_time()).collect();
    // Two readings may lie on both sides of where rounding changes.
    let (first, last) = (starts.iter().min().unwrap(), starts.iter().max().unwrap());
    assert!(last - first <= 10_000 && first % 10_000 == 0);
}

#[test]
fn whose_process_it_is() {
    let child = Running::sibling();
    assert!(family().hold(child.pid()).unwrap().is_ours().unwrap());
    // Of whoever the directory belongs to, which for a dumpable process is its user.
    let owner = fs::metadata("/proc/1").unwrap().uid();
    // SAFETY: always succeeds.
    assert_eq!(family().hold(1).unwrap().is_ours().unwrap(), owner == unsafe { libc::geteuid() });
}

#[test]
fn the_kernels_list_of_children_and_a_search_find_the_same() {
    // The kernel's list is that of a thread's children, so the parent must not be one of the tests' threads.
    let parent = Running::start(Command::new("sh").args(["-c", "sleep 1000 & sleep 1000 & echo; read line"]));
    let family = Family { parent: parent.pid(), ..family() };
    let mut parent = parent;
    let started = parent.0.stdout.as_mut().unwrap();
    let _ = started.read(&mut [0]);
    let mut calls = 0;
    let mut searched = family.search(|| calls += 1).unwrap();
    assert_eq!(searched.len(), 2);
    assert!(calls > 3);
    searched.insert(0, parent.pid());
    assert_eq!(family.pids(&mut Buffer::default(), || ()).unwrap(), searched);
    for child in &searched[1..] {
        // SAFETY: it is a child of the parent, which has not reaped it.
        unsafe { libc::kill(*child, libc::SIGKILL) };
    }
}

#[test]
fn a_directory_is_not_read() {
    let child = Running::sibling();
    let process = family().open(child.pid()).unwrap();
    let Err(Error::Failure(Failure { path, source })) = read_all(&process, c"task") else {
        panic!("a directory was read")
    };
    assert_eq!(path, PathBuf::from(format!("/proc/{}/task", child.pid())));
    assert_eq!(source.raw_os_error(), Some(libc::EISDIR));
}

#[test]
fn whose_failure_it_is() {
    let of = |errno| Error::of(io::Error::from_raw_os_error(errno), || PathBuf::from("/proc/1/smaps"));
    for errno in [libc::ENOENT, libc::ESRCH] {
        assert!(matches!(of(errno), Error::Gone));
    }
    for errno in [libc::EACCES, libc::EPERM] {
        assert!(matches!(of(errno), Error::Denied));
    }
    for errno in [libc::EMFILE, libc::ENFILE, libc::ENOMEM, libc::EIO, libc::EISDIR, libc::ENOTDIR] {
        assert!(matches!(of(errno), Error::Failure(failure) if failure.source.raw_os_error() == Some(errno)));
    }
}

/// stat(5) of a sleeping process with a start time of 4711, a virtual size of 8192 and an exit signal of 17.
const STAT: &str =
    "12 (NAME) S 7 1 1 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 4711 8192 3 1 1 1 1 1 1 0 0 0 0 0 0 0 17 0 0 0 0\n";

fn parse_stat(stat: &str) -> Option<Result<Identity, Error>> {
    Identity::parse(stat.as_bytes())
}

#[test]
fn stat_with_any_program_name() {
    for name in ["postgres", "a b", ")", ") Z 1 (", "(", ""] {
        let identity = parse_stat(&STAT.replace("NAME", name)).unwrap().unwrap();
        assert_eq!(identity, Identity { parent: 7, start_time: 4711 });
    }
}

#[test]
fn stat_of_a_process_that_is_gone() {
    for (alive, gone) in [(" S ", " Z "), (" S ", " X "), (" S ", " x "), (" 8192 ", " 0 "), (" 17 ", " -1 ")] {
        assert!(STAT.contains(alive));
        assert!(is_gone(parse_stat(&STAT.replace(alive, gone)).unwrap()), "{gone}");
    }
}

#[test]
fn stat_cut_short() {
    for bad in ["", "12", "12 (postgres", "12 (postgres)", "12 (postgres) S", "12 (postgres) S 7 1 1"] {
        assert!(parse_stat(bad).is_none(), "{bad}");
    }
}

proptest! {
    #[test]
    fn stat_agrees_with_the_oracle(
        name in "[ -~]{0,16}", state in "[A-Za-z]", numbers in prop::collection::vec("-?[0-9]{1,21}|0|-1", 0..60),
    ) {
        naive::assert_agrees(format!("12 ({name}) {state} {}\n", numbers.join(" ")).as_bytes());
    }

    #[test]
    fn damaged_stat_agrees_with_the_oracle(at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let mut stat = STAT.as_bytes().to_vec();
        let at = at.index(stat.len());
        stat[at] = byte;
        naive::assert_agrees(&stat);
        naive::assert_agrees(&stat[..at]);
    }

    #[test]
    fn a_buffer_holds_each_file_exactly(sizes in prop::collection::vec(0..2_000_000usize, 1..4)) {
        let mut buffer = Buffer::default();
        for (nth, size) in sizes.into_iter().enumerate() {
            let content: Vec<u8> = (0..size).map(|at| (at * 31 + nth) as u8).collect();
            let mut file = tempfile::tempfile().unwrap();
            file.write_all(&content).unwrap();
            io::Seek::rewind(&mut file).unwrap();
            buffer.clear();
            prop_assert!(buffer.append(&mut file, || ()).is_ok());
            prop_assert!(buffer.text() == content);
        }
    }
}
