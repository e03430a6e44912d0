//! pg_meminfo answers, in SQL, how much memory a Postgres cluster really uses, which sessions use it, and why.
//!
//! The modules, from bottom to top:
//!
//! - [`model`] is pure logic without system calls: the walk of a tree of memory contexts, the peaks of statements,
//!   the history of a cluster.
//! - [`proc`] reads what the kernel prints under `/proc`. It does not link Postgres, and is built and tested without
//!   it.
//! - `pg` is the interface to Postgres's C ABI: entry points, rows, privileges, backends, errors. It does not know
//!   `/proc`.
//! - `cluster` combines the two: the processes of this cluster and their memory. It returns results and errors.
//! - `statements` measures the memory of statements, by hooks, and keeps the result in shared memory.
//! - `guard` limits the memory of sessions, and ends the statement of one before the OOM killer comes for all.
//! - `recorder` keeps a history of that, by a background worker, and incidents that survive a crash.
//! - `sql` turns them into rows, WARNINGs and ERRORs: one file for each group of SQL functions.
//! - `init` runs when a server loads the library.
//!
//! A module depends only on those listed before it, and `proc` and `pg` do not depend on each other. Without any of the
//! features `pg15` to `pg19`, the crate consists of `model` and `proc` alone.

#[cfg(not(target_os = "linux"))]
compile_error!("pg_meminfo reads Linux's /proc and runs nowhere else");

#[cfg(all(feature = "postgres", panic = "abort"))]
compile_error!("a panic must unwind to the entry guard: build with panic = \"unwind\"");

pub mod model;
pub mod proc;

#[cfg(feature = "postgres")]
mod cluster;
#[cfg(feature = "postgres")]
mod guard;
#[cfg(feature = "postgres")]
mod init;
#[cfg(feature = "postgres")]
mod pg;
#[cfg(feature = "postgres")]
mod recorder;
#[cfg(feature = "postgres")]
mod sql;
#[cfg(feature = "postgres")]
mod statements;
