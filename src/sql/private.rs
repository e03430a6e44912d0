//! What a process holds alone: `pg_meminfo_private(pid)`.

use crate::pg::fmgr::{Call, sql_function};
use crate::pg::interrupts;
use crate::pg::srf::{Column, ResultSet};
use crate::proc::category::Category;
use crate::proc::pagemap;
use crate::proc::private::{self, Scratch};

use super::landmarks;
use super::reader::Reader;

sql_function! {
    /// `pg_meminfo_private(pid)`
    "pg_meminfo_private", "pg_finfo_pg_meminfo_private" => pg_meminfo_private, pg_meminfo_private_info, private_of_process
}

const PRIVATE: [Column; 6] = [
    Column::text("category"),
    Column::int8("mappings"),
    Column::int8("virtual_size"),
    Column::int8("resident"),
    Column::int8("private"),
    Column::int8("swap"),
];

fn private_of_process(call: &Call) {
    let mut rows = ResultSet::start(call, &PRIVATE);
    let Some(pid) = call.int4(0) else { return };
    let mut reader = Reader::new();
    let landmarks = landmarks::find();
    let usages = reader
        .look_at(pid, |process| private::by_category(process, &landmarks, &mut Scratch::default(), interrupts::check));
    reader.warn_if_denied(pid);
    let tells_private = pagemap::tells_private();
    for (category, usage) in Category::ALL.into_iter().zip(usages.into_iter().flatten()) {
        if usage.mappings == 0 {
            continue;
        }
        rows.text(Some(category.name().as_bytes()));
        rows.int8(Some(usage.mappings));
        rows.int8(Some(usage.virtual_size));
        rows.int8(usage.held.map(|held| held.resident));
        rows.int8(usage.held.filter(|_| tells_private).map(|held| held.private));
        rows.int8(usage.held.map(|held| held.swap));
        rows.end_row();
    }
}
