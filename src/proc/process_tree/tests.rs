use std::io::Read;
use std::os::unix::fs::symlink;
use std::process::Command;
use std::time::SystemTime;

use super::super::test_support::{MadeUpRoot, Running, me, our_tree};
use super::*;

fn is_gone<T>(result: Result<T, Error>) -> bool {
    matches!(result, Err(Error::Gone))
}

// Which processes belong to the tree.

#[test]
fn the_parent_and_its_children() {
    let cmdline = |process: &Process| {
        let mut buffer = Buffer::default();
        process.read(c"cmdline", &mut buffer, || ()).unwrap();
        buffer.text().to_vec()
    };
    let parent = our_tree().pin(me()).unwrap();
    assert_eq!(cmdline(&parent), fs::read("/proc/self/cmdline").unwrap());
    let child = Running::waiting();
    let process = our_tree().pin(child.pid()).unwrap();
    assert_eq!(cmdline(&process), fs::read(format!("/proc/{}/cmdline", child.pid())).unwrap());
}

#[test]
fn a_child_with_another_program_is_not_in_the_tree() {
    assert!(is_gone(our_tree().pin(Running::stranger().pid())));
}

#[test]
fn a_child_of_another_parent_is_not_in_the_tree() {
    let child = Running::sibling();
    let other_tree = ProcessTree { parent: Running::stranger().pid(), ..our_tree() };
    assert!(is_gone(other_tree.pin(child.pid())));
}

#[test]
fn no_such_process() {
    for pid in [Pid::MAX, 0, -1, Pid::MIN] {
        assert!(is_gone(our_tree().pin(pid)), "{pid}");
    }
}

#[test]
fn a_thread_is_not_in_the_tree() {
    let (send, receive) = std::sync::mpsc::channel();
    let (stop, stopped) = std::sync::mpsc::channel::<()>();
    let thread = std::thread::spawn(move || {
        let own = fs::read_link("/proc/thread-self").unwrap();
        send.send(own.file_name().unwrap().to_str().unwrap().parse::<Pid>().unwrap()).unwrap();
        let _ = stopped.recv();
    });
    let tid = receive.recv().unwrap();
    assert_ne!(tid, me());
    // The parent of a thread is the parent of its process.
    let grandparent = our_tree().pin(me()).unwrap().identity.parent;
    assert!(is_gone(ProcessTree { parent: grandparent, ..our_tree() }.pin(tid)));
    drop(stop);
    thread.join().unwrap();
}

#[test]
fn the_list_of_children_and_a_search_agree() {
    // The kernel keeps a list of children per thread, so the parent must not be one of the threads that run tests.
    let mut parent = Running::start(Command::new("sh").args(["-c", "sleep 1000 & sleep 1000 & echo; read line"]));
    let tree = ProcessTree { parent: parent.pid(), ..our_tree() };
    let _ = parent.stdout().read(&mut [0]);
    let mut calls = 0;
    let mut searched = tree.search(|| calls += 1).unwrap();
    assert_eq!(searched.len(), 2);
    assert!(calls > 3);
    let mut listed = tree.pids(&mut Buffer::default(), || ()).unwrap();
    assert_eq!(listed.remove(0), parent.pid());
    // A search finds them by pid, which may have begun again with small ones.
    listed.sort_unstable();
    searched.sort_unstable();
    assert_eq!(listed, searched);
    for child in &searched {
        // SAFETY: the process is a child of the parent, which has not reaped it.
        unsafe { libc::kill(*child, libc::SIGKILL) };
    }
}

// Start times.

#[test]
fn the_start_time_of_a_new_process() {
    let micros = || SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_micros() as i64;
    let before = micros();
    let child = Running::sibling();
    let tree = our_tree();
    let started = tree.start_time(&tree.pin(child.pid()).unwrap());
    // A tick is 10 ms, and the clock may have been adjusted a little.
    assert!((before - 1_000_000..micros() + 1_000_000).contains(&started), "{before} {started}");
}

#[test]
fn the_start_time_does_not_change() {
    let child = Running::sibling();
    let start = |tree: ProcessTree| tree.start_time(&tree.pin(child.pid()).unwrap());
    let starts: Vec<_> = (0..1000).map(|_| start(our_tree())).collect();
    // Two readings may be rounded to different ticks.
    let (first, last) = (starts.iter().min().unwrap(), starts.iter().max().unwrap());
    assert!(last - first <= 10_000 && first % 10_000 == 0);
}

// A made-up system. Its pids are larger than those of any kernel.

const POSTMASTER: Pid = 2_000_000_001;
const BACKEND: Pid = 2_000_000_002;
const ARCHIVE_COMMAND: Pid = 2_000_000_003;

fn made_up_system() -> MadeUpRoot {
    let root = MadeUpRoot::new(&[("bin/postgres", "one program"), ("bin/sh", "another")]);
    let process = |pid: Pid, parent: Pid, program: &str| {
        let stat = format!(
            "{pid} (postgres) S {parent} 1 1 0 -1 0 1 0 0 0 0 0 0 0 20 0 1 0 4711 8192 3 1 1 1 1 1 1 0 0 0 0 0 0 0 17 0\n"
        );
        root.write(&format!("proc/{pid}/stat"), stat);
        root.write(&format!("proc/{pid}/maps"), "");
        symlink(root.path().join(program), root.path().join(format!("proc/{pid}/exe"))).unwrap();
    };
    process(POSTMASTER, 1, "bin/postgres");
    process(BACKEND, POSTMASTER, "bin/postgres");
    process(ARCHIVE_COMMAND, POSTMASTER, "bin/sh");
    symlink(root.path().join(format!("proc/{BACKEND}")), root.path().join("proc/self")).unwrap();
    root
}

#[test]
fn the_processes_of_a_made_up_system() {
    let system = made_up_system();
    let tree = ProcessTree::of(system.root(), POSTMASTER).unwrap();
    let mut buffer = Buffer::default();
    let mut searched = tree.pids(&mut buffer, || ()).unwrap();
    searched.sort_unstable();
    assert_eq!(searched, [POSTMASTER, BACKEND, ARCHIVE_COMMAND], "by a search");
    system.write(&format!("proc/{POSTMASTER}/task/{POSTMASTER}/children"), format!("{BACKEND} "));
    assert_eq!(tree.pids(&mut buffer, || ()).unwrap(), [POSTMASTER, BACKEND], "by the list");

    assert!(is_gone(tree.pin(ARCHIVE_COMMAND)));
    let backend = tree.pin(BACKEND).unwrap();
    assert!(backend.read(c"maps", &mut buffer, || ()).is_ok());
    system.write(&format!("proc/{BACKEND}/stat"), "no stat");
    let Err(Error::Malformed { path, .. }) = backend.read(c"maps", &mut buffer, || ()) else {
        panic!("stat is not one")
    };
    assert_eq!(path, system.path().join(format!("proc/{BACKEND}/stat")));
}
