//! The oracle: parses stat in a slow and obvious way, as text split into words.

use super::Identity;

/// The parser and the oracle agree on any text.
pub fn assert_agrees(stat: &[u8]) {
    let ours = match Identity::parse(stat) {
        Err(_) => Ok(None),
        Ok(Some(identity)) => Ok(Some((identity.parent, identity.start_time))),
        Ok(None) => Err("gone"),
    };
    assert_eq!(ours, parse(stat), "{}", stat.escape_ascii());
}

/// Parent and start time, `None` if the text is malformed, or an error if the process is gone.
fn parse(stat: &[u8]) -> Result<Option<(i32, u64)>, &'static str> {
    let text: String = stat.iter().map(|&byte| byte as char).collect();
    let Some((_, after_name)) = text.rsplit_once(')') else { return Ok(None) };
    // The first word is field 3 of proc(5).
    let space = [' ', '\t', '\n', '\r', '\x0c'];
    let words: Vec<&str> = after_name.trim_matches(space).split(' ').collect();
    let field = |number: usize| words.get(number - 3).copied();
    let digits = |word: Option<&str>| word.filter(|word| word.chars().all(|c| c.is_ascii_digit())).map(str::to_owned);
    let (Some(parent), Some(start_time)) = (digits(field(4)), digits(field(22))) else { return Ok(None) };
    let (Ok(parent), Ok(start_time)) = (parent.parse(), start_time.parse()) else { return Ok(None) };
    let (Some(virtual_size), Some(exit_signal)) = (field(23), field(38)) else { return Ok(None) };
    if ["Z", "X", "x"].contains(&words[0]) || virtual_size == "0" || exit_signal == "-1" {
        return Err("gone");
    }
    Ok(Some((parent, start_time)))
}
