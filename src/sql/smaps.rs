//! Every mapping: `get_all_smaps()` and `pg_meminfo_smaps(pid)`.

use std::ffi::CStr;

use crate::pg::fmgr::{Call, sql_function};
use crate::pg::srf::{Column, ResultSet};
use crate::pg::{backends, interrupts};
use crate::proc::category::Category;
use crate::proc::process::Pid;
use crate::proc::smaps::{self, Field, Mapping, Value};

use super::landmarks;
use super::reader::{Reader, raise_malformed};

sql_function! {
    /// `get_all_smaps()`
    "get_smaps", "pg_finfo_get_smaps" => get_smaps, get_smaps_info, get_all_smaps
}

sql_function! {
    /// `pg_meminfo_smaps(pid)`
    "pg_meminfo_smaps", "pg_finfo_pg_meminfo_smaps" => pg_meminfo_smaps, pg_meminfo_smaps_info, smaps_of_process
}

sql_function! {
    /// `pg_meminfo_rollup(pid)`
    "pg_meminfo_rollup", "pg_finfo_pg_meminfo_rollup" => pg_meminfo_rollup, pg_meminfo_rollup_info, rollup_of_process
}

/// The published contract: kB, as int4.
const CONTRACT: [Column; 33] = [
    Column::int4("pid"),
    Column::text("start_address"),
    Column::text("end_address"),
    Column::char("permissions"),
    Column::text("byte_offset"),
    Column::char("dev_major"),
    Column::char("dev_minor"),
    Column::int4("inode"),
    Column::text("sys_path"),
    Column::int4("mem_size"),
    Column::int4("kernel_page_size"),
    Column::int4("mmu_page_size"),
    Column::int4("rss"),
    Column::int4("pss"),
    Column::int4("pss_dirty"),
    Column::int4("shared_clean"),
    Column::int4("shared_dirty"),
    Column::int4("private_clean"),
    Column::int4("private_dirty"),
    Column::int4("referenced"),
    Column::int4("anonymous"),
    Column::int4("ksm"),
    Column::int4("lazy_free"),
    Column::int4("anon_huge_pages"),
    Column::int4("shmem_pmd_mapped"),
    Column::int4("file_pmd_mapped"),
    Column::int4("shared_huge_tlb"),
    Column::int4("private_huge_tlb"),
    Column::int4("swap"),
    Column::int4("swap_pss"),
    Column::int4("locked"),
    Column::int4("thp_eligible"),
    Column::text("vm_flags"),
];

/// The fields of the contract, in the order of its columns: as the kernel prints them, and no more.
const CONTRACT_FIELDS: [Field; 23] = {
    let mut fields = [Field::ThpEligible; 23];
    let mut at = 0;
    while at < Field::KILOBYTES.len() {
        fields[at] = Field::KILOBYTES[at];
        at += 1;
    }
    fields
};

/// The new surface: bytes, as bigint.
const SMAPS: [Column; 33] = [
    Column::text("start_address"),
    Column::text("end_address"),
    Column::text("permissions"),
    Column::int8("byte_offset"),
    Column::text("device"),
    Column::int8("inode"),
    Column::text("name"),
    Column::text("category"),
    Column::int8("size"),
    Column::int8("kernel_page_size"),
    Column::int8("mmu_page_size"),
    Column::int8("rss"),
    Column::int8("pss"),
    Column::int8("pss_dirty"),
    Column::int8("shared_clean"),
    Column::int8("shared_dirty"),
    Column::int8("private_clean"),
    Column::int8("private_dirty"),
    Column::int8("referenced"),
    Column::int8("anonymous"),
    Column::int8("ksm"),
    Column::int8("lazy_free"),
    Column::int8("anon_huge_pages"),
    Column::int8("shmem_pmd_mapped"),
    Column::int8("file_pmd_mapped"),
    Column::int8("shared_hugetlb"),
    Column::int8("private_hugetlb"),
    Column::int8("swap"),
    Column::int8("swap_pss"),
    Column::int8("locked"),
    Column::bool("thp_eligible"),
    Column::int4("protection_key"),
    Column::text("vm_flags"),
];

/// A process's mappings added up by the kernel: its keys of smaps_rollup.
const ROLLUP: [(Column, Field); 22] = [
    (Column::int8("rss"), Field::Rss),
    (Column::int8("pss"), Field::Pss),
    (Column::int8("pss_dirty"), Field::PssDirty),
    (Column::int8("pss_anon"), Field::PssAnon),
    (Column::int8("pss_file"), Field::PssFile),
    (Column::int8("pss_shmem"), Field::PssShmem),
    (Column::int8("shared_clean"), Field::SharedClean),
    (Column::int8("shared_dirty"), Field::SharedDirty),
    (Column::int8("private_clean"), Field::PrivateClean),
    (Column::int8("private_dirty"), Field::PrivateDirty),
    (Column::int8("referenced"), Field::Referenced),
    (Column::int8("anonymous"), Field::Anonymous),
    (Column::int8("ksm"), Field::Ksm),
    (Column::int8("lazy_free"), Field::LazyFree),
    (Column::int8("anon_huge_pages"), Field::AnonHugePages),
    (Column::int8("shmem_pmd_mapped"), Field::ShmemPmdMapped),
    (Column::int8("file_pmd_mapped"), Field::FilePmdMapped),
    (Column::int8("shared_hugetlb"), Field::SharedHugetlb),
    (Column::int8("private_hugetlb"), Field::PrivateHugetlb),
    (Column::int8("swap"), Field::Swap),
    (Column::int8("swap_pss"), Field::SwapPss),
    (Column::int8("locked"), Field::Locked),
];

const ROLLUP_COLUMNS: [Column; ROLLUP.len()] = {
    let mut columns = [Column::int8(""); ROLLUP.len()];
    let mut at = 0;
    while at < columns.len() {
        columns[at] = ROLLUP[at].0;
        at += 1;
    }
    columns
};

fn get_all_smaps(call: &Call) {
    let mut rows = ResultSet::start(call, &CONTRACT);
    let mut reader = Reader::new();
    let pids: Vec<_> = backends::all().iter().map(|backend| backend.pid).collect();
    read_mappings(&mut reader, &pids, c"smaps", |pid, mapping| put_contract_row(&mut rows, pid, mapping));
    reader.warn_of_denied();
}

fn smaps_of_process(call: &Call) {
    let mut rows = ResultSet::start(call, &SMAPS);
    let Some(pid) = call.int4(0) else { return };
    let mut reader = Reader::new();
    let landmarks = landmarks::find();
    read_mappings(&mut reader, &[pid], c"smaps", |_, mapping| {
        put_row(&mut rows, mapping, landmarks.category(&mapping.header))
    });
    reader.warn_if_denied(pid);
}

fn rollup_of_process(call: &Call) {
    let mut rows = ResultSet::start(call, &ROLLUP_COLUMNS);
    let Some(pid) = call.int4(0) else { return };
    let mut reader = Reader::new();
    read_mappings(&mut reader, &[pid], c"smaps_rollup", |_, rollup| {
        for (_, field) in ROLLUP {
            rows.int8(bytes(rollup, field));
        }
        rows.end_row();
    });
    reader.warn_if_denied(pid);
}

fn read_mappings(reader: &mut Reader, pids: &[Pid], file: &CStr, mut put: impl FnMut(Pid, &Mapping)) {
    reader.read_each(pids, file, |pid, text| {
        for mapping in smaps::mappings(text.bytes) {
            interrupts::check();
            put(pid, &mapping.unwrap_or_else(|malformed| raise_malformed(&text, &malformed)));
        }
    });
}

/// A key that the kernel does not print is 0 here, and a number that int4 cannot hold is NULL.
fn put_contract_row(rows: &mut ResultSet, pid: Pid, mapping: &Mapping) {
    let int4 = |number: u64| i32::try_from(number).ok();
    let number = |field| match mapping.value(field) {
        Value::Absent => Some(0),
        Value::Unusable => None,
        Value::Number(number) => int4(number),
    };
    rows.int4(Some(pid));
    rows.text(Some(mapping.header.start));
    rows.text(Some(mapping.header.end));
    rows.char(Some(mapping.header.permissions));
    rows.text(Some(mapping.header.offset));
    rows.char(Some(mapping.header.major));
    rows.char(Some(mapping.header.minor));
    rows.int4(mapping.header.inode.and_then(int4));
    rows.text(Some(mapping.header.path));
    rows.int4s(CONTRACT_FIELDS.map(number));
    rows.text(Some(mapping.vm_flags().unwrap_or_default()));
    rows.end_row();
}

/// A key that the kernel does not print is NULL here.
fn put_row(rows: &mut ResultSet, mapping: &Mapping, category: Category) {
    let number = |field| number(mapping, field);
    rows.text(Some(mapping.header.start));
    rows.text(Some(mapping.header.end));
    rows.text(Some(mapping.header.permissions));
    rows.int8(mapping.header.byte_offset());
    rows.text(Some(mapping.header.device));
    rows.int8(mapping.header.inode);
    rows.text((!mapping.header.path.is_empty()).then_some(mapping.header.path));
    rows.text(Some(category.name().as_bytes()));
    for field in Field::KILOBYTES {
        rows.int8(bytes(mapping, field));
    }
    rows.bool(number(Field::ThpEligible).map(|flag| flag != 0));
    rows.int4(number(Field::ProtectionKey).and_then(|key| i32::try_from(key).ok()));
    rows.text(mapping.vm_flags());
    rows.end_row();
}

/// A field's number. `None` if the kernel does not print one.
fn number(mapping: &Mapping, field: Field) -> Option<u64> {
    match mapping.value(field) {
        Value::Absent | Value::Unusable => None,
        Value::Number(number) => Some(number),
    }
}

/// A quantity in bytes. `None` too if 64 bits cannot hold it.
fn bytes(mapping: &Mapping, field: Field) -> Option<u64> {
    number(mapping, field)?.checked_mul(1024)
}
