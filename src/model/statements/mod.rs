//! Statements and the memory that they need: measured by a [`meter`], followed by a [`follower`] through their
//! [`executions`], kept in a [`table`], and saved in a [`file`].

pub mod executions;
pub mod file;
pub mod follower;
pub mod meter;
pub mod table;
