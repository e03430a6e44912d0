use std::collections::HashSet;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};

use super::super::process::tests::{Running, family, me};
use super::*;

/// Children, and what else a caller might ask for: a stranger, a pid that nobody has.
fn some_processes() -> (Vec<Running>, Vec<Pid>) {
    let children: Vec<_> = (0..12).map(|_| Running::waiting()).collect();
    let mut pids: Vec<_> = children.iter().map(Running::pid).collect();
    pids.extend([me(), Pid::MAX]);
    (children, pids)
}

#[test]
fn each_process_is_read_once_by_any_number_of_threads() {
    let (children, mut pids) = some_processes();
    let stranger = Running::stranger();
    pids.push(stranger.pid());
    for threads in [0, 1, 2, 4, 100] {
        let mut read = HashSet::new();
        let mut gone = HashSet::new();
        read_each(
            &family(),
            &pids,
            c"cmdline",
            threads,
            || (),
            |pid, result| match result {
                Ok(Text { path, bytes }) => {
                    assert_eq!(path, PathBuf::from(format!("/proc/{pid}/cmdline")));
                    assert_eq!(bytes, fs::read(path).unwrap());
                    assert!(read.insert(pid));
                }
                Err(Error::Gone) => assert!(gone.insert(pid)),
                Err(error) => panic!("{error:?}"),
            },
        );
        assert_eq!(read, children.iter().map(Running::pid).chain([me()]).collect());
        assert_eq!(gone, HashSet::from([Pid::MAX, stranger.pid()]));
    }
}

#[test]
fn nothing_to_read() {
    read_each(&family(), &[], c"smaps", 4, || (), |_, _| panic!("there is no process"));
}

#[test]
fn unwinding_ends_all_threads_and_leaves_no_descriptor() {
    let (children, pids) = some_processes();
    let unwind = || std::panic::resume_unwind(Box::new("our own"));
    for threads in [1, 2, 4] {
        for calls_before in [0, 1, 5] {
            let mut calls = 0;
            let count = |calls: &mut usize| {
                *calls += 1;
                if *calls > calls_before {
                    unwind();
                }
            };
            let unwound = catch_unwind(AssertUnwindSafe(|| {
                read_each(&family(), &pids, c"smaps", threads, || count(&mut calls), |_, _| ());
            }));
            assert_eq!(unwound.unwrap_err().downcast_ref(), Some(&"our own"));
            calls = 0;
            let unwound = catch_unwind(AssertUnwindSafe(|| {
                read_each(&family(), &pids, c"smaps", threads, || (), |_, _| count(&mut calls));
            }));
            assert_eq!(unwound.unwrap_err().downcast_ref(), Some(&"our own"));
            assert_eq!(children.iter().map(Running::held).sum::<usize>(), 0);
        }
    }
}

#[test]
fn threads_take_no_signals_and_the_caller_does_again() {
    let mask = |task: &str| {
        let status = fs::read_to_string(format!("{task}/status")).ok()?;
        let line = status.lines().find(|line| line.starts_with("SigBlk:"))?;
        u64::from_str_radix(line.split_whitespace().nth(1)?, 16).ok()
    };
    let own = mask("/proc/thread-self").unwrap();
    let (_children, pids) = some_processes();
    let mut masks = Vec::new();
    read_each(
        &family(),
        &pids,
        c"smaps",
        4,
        || (),
        |_, _| {
            for task in fs::read_dir("/proc/self/task").unwrap() {
                let task = task.unwrap().path();
                if fs::read(task.join("comm")).is_ok_and(|name| name == b"pg_meminfo\n") {
                    masks.extend(mask(task.to_str().unwrap()));
                }
            }
        },
    );
    // All 64 but SIGKILL and SIGSTOP, which cannot be, and the two that the C library keeps for itself.
    let all = !((1 << 8) | (1 << 18) | (1 << 31) | (1 << 32));
    assert!(!masks.is_empty());
    assert!(masks.iter().all(|mask| mask | !all == !0), "{masks:x?}");
    assert_eq!(mask("/proc/thread-self"), Some(own));
}

#[test]
fn no_more_than_the_descriptors_that_are_promised() {
    let (children, pids) = some_processes();
    let threads = 2;
    read_each(
        &family(),
        &pids,
        c"smaps",
        threads,
        || (),
        |_, _| {
            let held: usize = children.iter().map(Running::held).sum();
            assert!(held <= threads * DESCRIPTORS, "{held}");
        },
    );
}
