use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};

use super::super::system::page_size;
use super::super::test_support::{Running, me, our_tree, until};
use super::*;

fn read_all(process: &Process, name: &CStr) -> Result<Vec<u8>, Error> {
    let mut buffer = Buffer::default();
    process.read(name, &mut buffer, || ())?;
    Ok(buffer.text().to_vec())
}

fn is_gone<T>(result: Result<T, Error>) -> bool {
    matches!(result, Err(Error::Gone))
}

fn pin(pid: Pid) -> Process {
    Process::pin(&Root::default(), pid).unwrap()
}

// Processes that exit.

#[test]
fn a_zombie_is_gone() {
    let mut child = Running::sibling();
    child.kill();
    assert!(is_gone(our_tree().pin(child.pid())));
}

#[test]
fn a_process_that_exits_after_pinning_is_gone() {
    for end in [Running::kill, Running::reap] {
        let mut child = Running::sibling();
        let process = our_tree().pin(child.pid()).unwrap();
        end(&mut child);
        assert!(is_gone(read_all(&process, c"smaps")));
    }
}

#[test]
fn a_process_that_exits_during_a_read_is_gone() {
    let mut buffer = Buffer::default();
    for end in [Running::kill, Running::reap] {
        let mut child = Running::sibling();
        let process = our_tree().pin(child.pid()).unwrap();
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
fn another_process_with_the_same_pid_is_gone() {
    let child = Running::sibling();
    let mut process = our_tree().pin(child.pid()).unwrap();
    process.identity.start_time += 1;
    assert!(is_gone(read_all(&process, c"smaps")));
}

#[test]
fn a_process_with_a_new_parent_is_gone() {
    let child = Running::sibling();
    let mut process = our_tree().pin(child.pid()).unwrap();
    process.identity.parent += 1;
    assert!(is_gone(read_all(&process, c"smaps")));
}

#[test]
fn a_process_that_executes_another_program_is_gone() {
    let child = Running::sibling();
    let mut process = our_tree().pin(child.pid()).unwrap();
    let program = process.program.as_mut().unwrap();
    program.inode += 1;
    assert!(is_gone(read_all(&process, c"smaps")));
}

// Reading files.

#[test]
fn a_file_of_several_reads_is_read_to_its_end() {
    // Read our own smaps, because a child that has just been started has few mappings.
    let mut buffer = Buffer::default();
    let mut reads = 0;
    pin(me()).read(c"smaps", &mut buffer, || reads += 1).unwrap();
    let smaps = buffer.text();
    assert!(smaps.len() > 4096 && smaps.ends_with(b"\n"));
    let pages = smaps.len().div_ceil(page_size() as usize);
    assert!(reads >= pages, "smaps comes at most a page at a time: {reads} reads");
}

#[test]
fn unwinding_between_reads_leaks_no_descriptor() {
    let child = Running::sibling();
    let unwound = catch_unwind(AssertUnwindSafe(|| {
        let process = pin(child.pid());
        assert!(child.descriptors() > 0);
        let _ = process.read(c"smaps", &mut Buffer::default(), || std::panic::resume_unwind(Box::new(())));
    }));
    assert!(unwound.is_err());
    // Another test may be looking at all processes.
    until("no descriptor is open", || child.descriptors() == 0);
}

#[test]
fn failures_leak_no_descriptor() {
    let child = Running::sibling();
    let process = pin(child.pid());
    assert!(is_gone(read_all(&process, c"no_such_file")));
    assert!(read_all(&process, c"task").is_err());
    until("one descriptor is open", || child.descriptors() == 1);
    drop(process);
    until("no descriptor is open", || child.descriptors() == 0);
}

#[test]
fn small_files_are_read_together() {
    let child = Running::waiting();
    let process = pin(child.pid());
    let mut buffer = Buffer::default();
    let [adj, cmdline, again] =
        process.read_small([c"oom_score_adj", c"cmdline", c"oom_score_adj"], &mut buffer).unwrap();
    assert_eq!(adj, fs::read(format!("/proc/{}/oom_score_adj", child.pid())).unwrap());
    assert_eq!(cmdline, fs::read(format!("/proc/{}/cmdline", child.pid())).unwrap());
    assert_eq!(again, adj);
    assert!(is_gone(process.read_small([c"oom_score_adj", c"no_such_file"], &mut buffer)));
}

#[test]
fn the_title_of_a_process() {
    let mut child = Running::stranger();
    let process = pin(child.pid());
    let mut buffer = Buffer::default();
    // The kernel sets the title a moment after the program. Until then the child has ours, or none.
    until("the exec", || process.title(&mut buffer).unwrap() == b"cat");
    child.kill();
    assert!(is_gone(process.title(&mut buffer)));
}

#[test]
fn the_user_of_a_process() {
    let child = Running::sibling();
    assert!(pin(child.pid()).is_of_our_user().unwrap());
    // The owner of the directory. For a dumpable process, that is its user.
    let owner = fs::metadata("/proc/1").unwrap().uid();
    // SAFETY: always succeeds.
    assert_eq!(pin(1).is_of_our_user().unwrap(), owner == unsafe { libc::geteuid() });
}

#[test]
fn reading_a_directory_is_an_error() {
    let child = Running::sibling();
    let Err(Error::Failed { path, source }) = read_all(&pin(child.pid()), c"task") else {
        panic!("a directory was read")
    };
    assert_eq!(path, PathBuf::from(format!("/proc/{}/task", child.pid())));
    assert_eq!(source.raw_os_error(), Some(libc::EISDIR));
}
