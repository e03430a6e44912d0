use std::collections::HashSet;
use std::ffi::CStr;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};

use super::super::buffer::Buffer;
use super::super::test_support::{Running, me, our_tree};
use super::*;

/// Reads a file of each process, and passes its content on.
fn read_file_of_each(
    pids: &[Pid],
    name: &CStr,
    threads: usize,
    check_interrupts: impl FnMut(),
    mut visit: impl FnMut(Pid, Result<&[u8], Error>),
) {
    let read = |process: &Process, buffer: &mut Buffer, check_interrupts: &mut dyn FnMut()| {
        process.read(name, buffer, check_interrupts)
    };
    let visit = |pid, result: Result<&mut Buffer, Error>| {
        visit(pid, result.map(|buffer| buffer.text()));
        Ok(())
    };
    read_each(&our_tree(), pids, threads, check_interrupts, read, visit).unwrap();
}

/// Some children, and other pids: our own, and one that does not exist.
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
        read_file_of_each(
            &pids,
            c"cmdline",
            threads,
            || (),
            |pid, result| match result {
                Ok(text) => {
                    assert_eq!(text, fs::read(format!("/proc/{pid}/cmdline")).unwrap());
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
    read_file_of_each(&[], c"smaps", 4, || (), |_, _| panic!("there is no process"));
}

#[test]
fn unwinding_ends_all_threads_and_leaks_no_descriptor() {
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
                read_file_of_each(&pids, c"smaps", threads, || count(&mut calls), |_, _| ());
            }));
            assert_eq!(unwound.unwrap_err().downcast_ref(), Some(&"our own"));
            calls = 0;
            let unwound = catch_unwind(AssertUnwindSafe(|| {
                read_file_of_each(&pids, c"smaps", threads, || (), |_, _| count(&mut calls));
            }));
            assert_eq!(unwound.unwrap_err().downcast_ref(), Some(&"our own"));
            assert_eq!(children.iter().map(Running::descriptors).sum::<usize>(), 0);
        }
    }
}

#[test]
fn signals_are_blocked_in_threads_only() {
    let mask = |task: &str| {
        let status = fs::read_to_string(format!("{task}/status")).ok()?;
        let line = status.lines().find(|line| line.starts_with("SigBlk:"))?;
        u64::from_str_radix(line.split_whitespace().nth(1)?, 16).ok()
    };
    let own = mask("/proc/thread-self").unwrap();
    let (_children, pids) = some_processes();
    let mut masks = Vec::new();
    read_file_of_each(
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
    // All 64 signals, except SIGKILL and SIGSTOP, which cannot be blocked, and two that the C library uses itself.
    let all = !((1 << 8) | (1 << 18) | (1 << 31) | (1 << 32));
    assert!(!masks.is_empty());
    assert!(masks.iter().all(|mask| mask | !all == !0), "{masks:x?}");
    assert_eq!(mask("/proc/thread-self"), Some(own));
}

#[test]
fn descriptors_stay_below_the_maximum() {
    let (children, pids) = some_processes();
    let threads = 2;
    read_file_of_each(
        &pids,
        c"smaps",
        threads,
        || (),
        |_, _| {
            let descriptors: usize = children.iter().map(Running::descriptors).sum();
            assert!(descriptors <= threads * DESCRIPTORS, "{descriptors}");
        },
    );
}

#[test]
fn an_error_of_visit_ends_reading() {
    let (children, pids) = some_processes();
    for threads in [1, 2, 4] {
        let mut visits = 0;
        let read = |_: &Process, _: &mut (), _: &mut dyn FnMut()| Ok(());
        let result = read_each(
            &our_tree(),
            &pids,
            threads,
            || (),
            read,
            |_, _| {
                visits += 1;
                if visits == 3 { Err(Error::Denied) } else { Ok(()) }
            },
        );
        assert!(matches!(result, Err(Error::Denied)));
        assert_eq!(visits, 3);
        assert_eq!(children.iter().map(Running::descriptors).sum::<usize>(), 0);
    }
}

#[test]
fn threads_stop_in_the_middle_of_a_process() {
    let (_children, pids) = some_processes();
    let reads = AtomicUsize::new(0);
    // Nothing but a stop ends this.
    let read = |_: &Process, _: &mut (), check_interrupts: &mut dyn FnMut()| loop {
        check_interrupts();
        reads.fetch_add(1, Ordering::Relaxed);
    };
    let wait_and_unwind = || {
        if reads.load(Ordering::Relaxed) > 1000 {
            std::panic::resume_unwind(Box::new("our own"));
        }
    };
    let unwound =
        catch_unwind(AssertUnwindSafe(|| read_each(&our_tree(), &pids, 2, wait_and_unwind, read, |_, _| Ok(()))));
    assert_eq!(unwound.unwrap_err().downcast_ref(), Some(&"our own"));
}
