//! pg_meminfo answers, in SQL, how much memory a Postgres cluster really uses, which sessions hold it, and why.
//!
//! Two sides, and what stands on them:
//!
//! - [`proc`] reads what the kernel prints under `/proc`. It links no Postgres, and builds and is tested without it.
//! - `pg` is Postgres's C ABI: entry points, rows, privileges, backends, errors. It knows no `/proc`.
//! - `cluster` joins them: the processes of this cluster, and what they hold. It returns results and errors.
//! - `sql` makes rows, WARNINGs and ERRORs of them: one file for each family of SQL functions.
//! - `init` is what happens when a server loads the library.
//!
//! Dependencies run down only: from `init` and `sql` to `cluster`, and from there to `proc` and `pg`, which do not know each
//! other. Without one of the features `pg15` to `pg19` the crate is the first side alone.

#[cfg(not(target_os = "linux"))]
compile_error!("pg_meminfo reads Linux's /proc and runs nowhere else");

#[cfg(all(feature = "postgres", panic = "abort"))]
compile_error!("a panic must unwind to the entry guard: build with panic = \"unwind\"");

pub mod proc;

#[cfg(feature = "postgres")]
mod cluster;
#[cfg(feature = "postgres")]
mod init;
#[cfg(feature = "postgres")]
mod pg;
#[cfg(feature = "postgres")]
mod sql;
