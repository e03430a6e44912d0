//! `pg_meminfo_statements()` and its companions: what statements have needed at their peaks.

use crate::model::statements::table::Entry;
use crate::pg::fmgr::{Call, sql_function};
use crate::pg::rows::rows;
use crate::pg::{access, encoding, error, interrupts, this_process};
use crate::statements::shared::{self, Method};

use super::require_preloaded;

sql_function!("pg_meminfo_statements" => statements);
sql_function!("pg_meminfo_statements_info" => info);
sql_function!("pg_meminfo_statements_reset" => reset, access::granted_by_sql);

rows! {
    /// The rows of `pg_meminfo_statements()`.
    StatementRows(entry: &Entry, text: Option<&[u8]>) {
        userid: oid = Some(entry.key.user),
        dbid: oid = Some(entry.key.database),
        queryid: int8 = (entry.key.query_id != 0).then_some(entry.key.query_id),
        toplevel: bool = Some(entry.key.toplevel != 0),
        heavy_calls: int8 = Some(entry.heavy_calls),
        errors: int8 = Some(entry.errors),
        peak_private: int8 = Some(entry.peak),
        peak_private_at_most: int8 = Some(entry.peak_at_most),
        growth: int8 = Some(entry.growth),
        growth_planning: int8 = Some(entry.growth_planning),
        kept: int8 = Some(entry.kept),
        workers_peak: int8 = Some(entry.workers_peak),
        worker_peak_max: int8 = Some(entry.worker_peak_max),
        major_faults: int8 = Some(entry.major_faults),
        worst_at: timestamptz = Some(entry.worst_at),
        worst_pid: int4 = Some(entry.worst_pid),
        worst_query: text = text,
        stats_since: timestamptz = Some(entry.since),
    }
}

rows! {
    /// The row of `pg_meminfo_statements_info()`.
    InfoRows(entries: u64, deallocations: u64, reset_at: i64, method: &str) {
        entries: int8 = Some(entries),
        dealloc: int8 = Some(deallocations),
        stats_reset: timestamptz = Some(reset_at),
        method: text = Some(method.as_bytes()),
    }
}

fn statements(call: &Call) {
    require_preloaded();
    let mut rows = StatementRows::start(call);
    // Copied, so that nobody waits while rows are made.
    let (mut entries, mut texts) = (Vec::new(), Vec::new());
    let size = shared::read(|table| {
        error::reserve(&mut entries, table.entries.len());
        entries.extend_from_slice(table.entries);
        error::reserve(&mut texts, table.texts.len());
        texts.extend_from_slice(table.texts);
        table.text_size
    });
    for (entry, text) in entries.iter().zip(texts.chunks(size.max(1))) {
        interrupts::check();
        let text = &text[..entry.text_length as usize];
        // A text that fills its place has been cut, perhaps within a character.
        let whole = if text.len() < size { text } else { encoding::clip(text) };
        rows.put(entry, (!whole.is_empty()).then_some(whole));
    }
}

fn info(call: &Call) {
    require_preloaded();
    let mut rows = InfoRows::start(call);
    let (entries, deallocations, reset_at) =
        shared::read(|table| (table.entries.len() as u64, table.deallocations, table.reset_at));
    let method = match shared::method() {
        Method::Lowered => "clear_refs",
        Method::Lifetime => "lifetime",
    };
    rows.put(entries, deallocations, reset_at, method);
}

fn reset(call: &Call) {
    require_preloaded();
    let [user, database] = [0, 1].map(|nth| call.oid(nth).unwrap_or(0));
    let query_id = call.int8(2).unwrap_or(0);
    shared::write(|table, reset_at| {
        table.remove(|entry| {
            (user == 0 || user == entry.key.user)
                && (database == 0 || database == entry.key.database)
                && (query_id == 0 || query_id == entry.key.query_id)
        });
        if (user, database, query_id) == (0, 0, 0) {
            *table.deallocations = 0;
            *reset_at = this_process::now();
        }
    });
}
