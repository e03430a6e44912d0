//! The history of a cluster's memory: samples, what is remarkable in them, and the file that keeps them.

pub mod incident;
pub mod pace;
pub mod ring;
pub mod sample;
pub mod thresholds;
