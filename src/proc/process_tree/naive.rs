//! The oracle: a list of children as text, split into words.

use super::super::fields::naive::decimal;
use super::{Pid, children};

/// The parser and the oracle find the same pids in any text.
pub fn assert_agrees(list: &[u8]) {
    let text: String = list.iter().map(|&byte| byte as char).collect();
    let pids: Vec<Pid> = text.split(' ').filter_map(|word| decimal(word)?.to_string().parse().ok()).collect();
    assert_eq!(children(list), pids);
}
