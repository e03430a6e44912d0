//! What the kernel prints under `/proc`, and how to read it without being misled.
//!
//! Nothing here links Postgres, although [`category`] and [`segment`] know which mappings Postgres makes. The directory
//! that contains the kernel's file systems is an argument ([`root::Root`]), so that a test can make up a system.
//!
//! A callback named `check_interrupts` is called at short intervals. It may unwind; all files that are open are then
//! closed.

pub mod address_space;
pub mod buffer;
pub mod category;
pub mod cgroup;
pub mod clock;
pub mod data_limit;
pub mod error;
pub mod fields;
pub mod host;
pub mod identity;
pub mod maps;
pub mod own_memory;
pub mod page_tables;
pub mod pagemap;
pub mod process;
pub mod process_tree;
pub mod processor;
pub mod ptrace_access;
pub mod read_pool;
pub mod remote_memory;
pub mod resident;
pub mod root;
pub mod segment;
pub mod shared_maps;
pub mod smaps;
pub mod status;
mod system;
#[cfg(test)]
mod test_support;
