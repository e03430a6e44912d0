//! The kernel's side: what `/proc` prints, and how to read it without being lied to.
//!
//! Nothing in here knows Postgres.

pub mod ahead;
pub mod category;
pub mod cgroup;
pub mod host;
pub mod kv;
pub mod maps;
pub mod page_tables;
pub mod pagemap;
pub mod private;
pub mod process;
pub mod segment;
pub mod smaps;
pub mod status;
