//! pg_meminfo answers, in SQL, how much memory a Postgres cluster really uses, which sessions hold it, and why.
//!
//! Two worlds and a bridge:
//!
//! - [`proc`] reads what the kernel prints under `/proc`. It knows nothing of Postgres, and builds and tests without it.
//! - `pg` is Postgres's C ABI: entry points, result sets, privileges, backends, errors. It knows nothing of `/proc`.
//! - `sql` joins them: one file for each family of SQL functions.
//!
//! Dependencies run one way, from `sql` to both of the others. Without one of the features `pg15` to `pg19` the crate is
//! the first world alone.

#[cfg(not(target_os = "linux"))]
compile_error!("pg_meminfo reads Linux's /proc and runs nowhere else");

#[cfg(all(feature = "postgres", panic = "abort"))]
compile_error!("a panic must unwind to the entry guard: build with panic = \"unwind\"");

pub mod proc;

#[cfg(feature = "postgres")]
mod pg;
#[cfg(feature = "postgres")]
mod sql;
