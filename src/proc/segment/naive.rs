//! The oracle: collects all mappings of segments, then groups them by segment. For the table of System V segments, it
//! splits every row into words.

use std::collections::HashMap;

use super::super::category::Category;
use super::super::category::naive::{IN_MAIN_SEGMENT, category, classifier};
use super::super::fields::naive::decimal;
use super::super::maps::naive::{NaiveHeader, parse};
use super::{Attachment, Residency, attach, residency_of_system_v};

/// The parser and the oracle find the same segments in the maps of two processes. The second lacks the first mapping.
pub fn assert_agrees(text: &[u8]) {
    let second = text.iter().position(|&byte| byte == b'\n').map_or(text, |end| &text[end + 1..]);
    let maps = [(1, text), (2, second)];
    let mut ours = Vec::new();
    let mut is_parsed = true;
    for (pid, text) in maps {
        match Attachment::all(text, &classifier()) {
            Ok(attachments) => attach(&mut ours, pid, attachments),
            Err(_) => is_parsed = false,
        }
    }

    let headers: Option<Vec<NaiveHeader>> = parse(text).into_iter().collect();
    let Some(headers) = headers else { return assert!(!is_parsed) };
    assert!(is_parsed);
    let mut attached = Vec::new();
    for (pid, headers) in [(1, &headers[..]), (2, headers.get(1..).unwrap_or_default())] {
        attached.extend(headers.iter().filter_map(|header| {
            let range = header.range()?;
            let is_main = range.contains(&IN_MAIN_SEGMENT);
            let is_segment = is_main || category(header) == Category::DynamicSharedMemory;
            let key = (is_main, header.inode.parse::<u64>().ok(), &header.path);
            (is_segment && header.permissions.ends_with('s')).then_some((key, pid, range))
        }));
    }
    let mut keys = Vec::new();
    for (key, ..) in &attached {
        if !keys.contains(&key) {
            keys.push(key);
        }
    }
    assert_eq!(ours.len(), keys.len());
    for (ours, key) in ours.iter().zip(keys) {
        let of_this: Vec<_> = attached.iter().filter(|(other, ..)| other == key).collect();
        let mut pids: Vec<_> = of_this.iter().map(|(_, pid, _)| *pid).collect();
        pids.dedup();
        let size = of_this.iter().map(|(.., range)| if range.is_empty() { 0 } else { range.end - range.start }).max();
        let name: String = ours.name.iter().map(|&byte| byte as char).collect();
        assert_eq!(&(ours.is_main, ours.inode, &name), key);
        assert_eq!((Some(ours.size), &ours.pids, &ours.range), (size, &pids, &of_this[0].2));
    }
}

/// The parser and the oracle find the same in a table of System V segments, for each number that is first or second in
/// a line, and for 0, which may not be in the table.
pub fn assert_table_agrees(table: &[u8]) {
    let text: String = table.iter().map(|&byte| byte as char).collect();
    let rows: Vec<Vec<&str>> =
        text.split('\n').map(|line| line.split(' ').filter(|word| !word.is_empty()).collect()).collect();
    // If a name is repeated, the first column counts.
    let columns: HashMap<&str, usize> = rows[0].iter().enumerate().rev().map(|(at, &name)| (name, at)).collect();
    let ids = rows.iter().flat_map(|row| row.iter().take(2)).take(64).filter_map(|word| decimal(word));
    for id in ids.chain([0]) {
        let cell = |row: &[&str], name| decimal(row.get(columns[name])?);
        let expected = if !columns.contains_key("shmid") || !columns.contains_key("rss") {
            Residency::Unknown
        } else if let Some(row) = rows[1..].iter().find(|row| cell(row, "shmid") == Some(id)) {
            cell(row, "rss").map_or(Residency::Unknown, Residency::Bytes)
        } else {
            Residency::Gone
        };
        assert_eq!(residency_of_system_v(table, id), expected, "{id}");
    }
}
