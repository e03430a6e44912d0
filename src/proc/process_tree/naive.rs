//! The oracle: a list of children as text, split into words.

use super::super::fields::naive::decimal;
use super::{Pid, children};

/// Both find the same pids in a list of children.
pub fn assert_agrees(list: &[u8]) {
    let text: String = list.iter().map(|&byte| byte as char).collect();
    let pids: Vec<Pid> = text.split(' ').filter_map(|word| decimal(word)?.to_string().parse().ok()).collect();
    assert_eq!(children(list), pids);
}
