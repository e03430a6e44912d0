//! The kernel's side: what `/proc` prints, and how to read it without being misled.
//!
//! Nothing here links Postgres, although [`category`] and [`segment`] know what Postgres maps. The directory below which the
//! kernel's file systems are is an argument ([`root::Root`]), so that a test can make one up.
//!
//! A callback named `check_interrupts` is called at short intervals while a call lasts. It may unwind; whatever was opened by
//! then is closed.

pub mod address_space;
pub mod buffer;
pub mod category;
pub mod cgroup;
pub mod error;
pub mod fields;
pub mod host;
pub mod identity;
pub mod maps;
pub mod page_tables;
pub mod pagemap;
pub mod process;
pub mod process_tree;
pub mod read_pool;
pub mod root;
pub mod segment;
pub mod smaps;
pub mod status;
mod system;
#[cfg(test)]
mod test_support;
