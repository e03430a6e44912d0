//! The bridge: each SQL function reads by way of `proc` and answers by way of `pg`. One file for each family of functions.

mod cluster;
mod host;
mod landmarks;
mod private;
mod processes;
mod reader;
mod segments;
mod smaps;
