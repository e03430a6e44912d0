//! Pure logic: no system calls and no Postgres. Everything here is tested and fuzzed on made-up input.

pub mod context_tree;
pub mod guard;
pub mod history;
pub mod memory;
pub mod statements;
