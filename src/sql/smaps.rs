//! `get_all_smaps()`, `pg_meminfo_smaps(pid)` and `pg_meminfo_rollup(pid)`: the mappings of processes.

use std::ffi::CStr;

use crate::cluster::Cluster;
use crate::pg::fmgr::{Call, sql_function};
use crate::pg::rows::rows;
use crate::pg::{interrupts, settings};
use crate::proc::category::Category;
use crate::proc::process::Pid;
use crate::proc::root::Root;
use crate::proc::smaps::{self, Field, Mapping, Value};

use super::report::{unwrap_or_raise, warn_if_denied, warn_of_denied};

sql_function!("get_smaps" => get_all_smaps);
sql_function!("pg_meminfo_smaps" => smaps_of_process);
sql_function!("pg_meminfo_rollup" => rollup_of_process);

rows! {
    /// The rows of `get_all_smaps()`, the published contract: kB, as int4.
    ContractRows(pid: Pid, mapping: &Mapping) {
        pid: int4 = Some(pid),
        start_address: text = Some(mapping.header.start),
        end_address: text = Some(mapping.header.end),
        permissions: bpchar = Some(mapping.header.permissions),
        byte_offset: text = Some(mapping.header.offset),
        dev_major: bpchar = Some(mapping.header.major),
        dev_minor: bpchar = Some(mapping.header.minor),
        inode: int4 = mapping.header.inode,
        sys_path: text = Some(mapping.header.path),
        mem_size: int4 = as_printed(mapping, Field::Size),
        kernel_page_size: int4 = as_printed(mapping, Field::KernelPageSize),
        mmu_page_size: int4 = as_printed(mapping, Field::MmuPageSize),
        rss: int4 = as_printed(mapping, Field::Rss),
        pss: int4 = as_printed(mapping, Field::Pss),
        pss_dirty: int4 = as_printed(mapping, Field::PssDirty),
        shared_clean: int4 = as_printed(mapping, Field::SharedClean),
        shared_dirty: int4 = as_printed(mapping, Field::SharedDirty),
        private_clean: int4 = as_printed(mapping, Field::PrivateClean),
        private_dirty: int4 = as_printed(mapping, Field::PrivateDirty),
        referenced: int4 = as_printed(mapping, Field::Referenced),
        anonymous: int4 = as_printed(mapping, Field::Anonymous),
        ksm: int4 = as_printed(mapping, Field::Ksm),
        lazy_free: int4 = as_printed(mapping, Field::LazyFree),
        anon_huge_pages: int4 = as_printed(mapping, Field::AnonHugePages),
        shmem_pmd_mapped: int4 = as_printed(mapping, Field::ShmemPmdMapped),
        file_pmd_mapped: int4 = as_printed(mapping, Field::FilePmdMapped),
        shared_huge_tlb: int4 = as_printed(mapping, Field::SharedHugetlb),
        private_huge_tlb: int4 = as_printed(mapping, Field::PrivateHugetlb),
        swap: int4 = as_printed(mapping, Field::Swap),
        swap_pss: int4 = as_printed(mapping, Field::SwapPss),
        locked: int4 = as_printed(mapping, Field::Locked),
        thp_eligible: int4 = as_printed(mapping, Field::ThpEligible),
        vm_flags: text = Some(mapping.vm_flags().unwrap_or_default()),
    }
}

rows! {
    /// The rows of `pg_meminfo_smaps(pid)`: bytes, as bigint.
    SmapsRows(mapping: &Mapping, category: Category) {
        start_address: text = Some(mapping.header.start),
        end_address: text = Some(mapping.header.end),
        permissions: text = Some(mapping.header.permissions),
        byte_offset: int8 = mapping.header.byte_offset(),
        device: text = Some(mapping.header.device),
        inode: int8 = mapping.header.inode,
        name: text = (!mapping.header.path.is_empty()).then_some(mapping.header.path),
        category: text = Some(category.name().as_bytes()),
        size: int8 = bytes(mapping, Field::Size),
        kernel_page_size: int8 = bytes(mapping, Field::KernelPageSize),
        mmu_page_size: int8 = bytes(mapping, Field::MmuPageSize),
        rss: int8 = bytes(mapping, Field::Rss),
        pss: int8 = bytes(mapping, Field::Pss),
        pss_dirty: int8 = bytes(mapping, Field::PssDirty),
        shared_clean: int8 = bytes(mapping, Field::SharedClean),
        shared_dirty: int8 = bytes(mapping, Field::SharedDirty),
        private_clean: int8 = bytes(mapping, Field::PrivateClean),
        private_dirty: int8 = bytes(mapping, Field::PrivateDirty),
        referenced: int8 = bytes(mapping, Field::Referenced),
        anonymous: int8 = bytes(mapping, Field::Anonymous),
        ksm: int8 = bytes(mapping, Field::Ksm),
        lazy_free: int8 = bytes(mapping, Field::LazyFree),
        anon_huge_pages: int8 = bytes(mapping, Field::AnonHugePages),
        shmem_pmd_mapped: int8 = bytes(mapping, Field::ShmemPmdMapped),
        file_pmd_mapped: int8 = bytes(mapping, Field::FilePmdMapped),
        shared_hugetlb: int8 = bytes(mapping, Field::SharedHugetlb),
        private_hugetlb: int8 = bytes(mapping, Field::PrivateHugetlb),
        swap: int8 = bytes(mapping, Field::Swap),
        swap_pss: int8 = bytes(mapping, Field::SwapPss),
        locked: int8 = bytes(mapping, Field::Locked),
        thp_eligible: bool = number(mapping, Field::ThpEligible).map(|flag| flag != 0),
        protection_key: int4 = number(mapping, Field::ProtectionKey),
        vm_flags: text = mapping.vm_flags(),
    }
}

rows! {
    /// The row of `pg_meminfo_rollup(pid)`: the sums over a process's mappings that the kernel prints in smaps_rollup.
    RollupRow(rollup: &Mapping) {
        rss: int8 = bytes(rollup, Field::Rss),
        pss: int8 = bytes(rollup, Field::Pss),
        pss_dirty: int8 = bytes(rollup, Field::PssDirty),
        pss_anon: int8 = bytes(rollup, Field::PssAnon),
        pss_file: int8 = bytes(rollup, Field::PssFile),
        pss_shmem: int8 = bytes(rollup, Field::PssShmem),
        shared_clean: int8 = bytes(rollup, Field::SharedClean),
        shared_dirty: int8 = bytes(rollup, Field::SharedDirty),
        private_clean: int8 = bytes(rollup, Field::PrivateClean),
        private_dirty: int8 = bytes(rollup, Field::PrivateDirty),
        referenced: int8 = bytes(rollup, Field::Referenced),
        anonymous: int8 = bytes(rollup, Field::Anonymous),
        ksm: int8 = bytes(rollup, Field::Ksm),
        lazy_free: int8 = bytes(rollup, Field::LazyFree),
        anon_huge_pages: int8 = bytes(rollup, Field::AnonHugePages),
        shmem_pmd_mapped: int8 = bytes(rollup, Field::ShmemPmdMapped),
        file_pmd_mapped: int8 = bytes(rollup, Field::FilePmdMapped),
        shared_hugetlb: int8 = bytes(rollup, Field::SharedHugetlb),
        private_hugetlb: int8 = bytes(rollup, Field::PrivateHugetlb),
        swap: int8 = bytes(rollup, Field::Swap),
        swap_pss: int8 = bytes(rollup, Field::SwapPss),
        locked: int8 = bytes(rollup, Field::Locked),
    }
}

fn get_all_smaps(call: &Call) {
    let mut rows = ContractRows::start(call);
    let cluster = unwrap_or_raise(Cluster::of_this_server(Root::default(), settings::readers()));
    warn_of_denied(read_mappings(&cluster, &cluster.backends(), c"smaps", |pid, mapping| rows.put(pid, mapping)));
}

fn smaps_of_process(call: &Call) {
    let mut rows = SmapsRows::start(call);
    let Some(pid) = call.int4(0) else { return };
    let cluster = unwrap_or_raise(Cluster::of_this_server(Root::default(), 1));
    let classifier = cluster.classifier();
    let put = |_, mapping: &Mapping| rows.put(mapping, classifier.classify(&mapping.header));
    warn_if_denied(pid, read_mappings(&cluster, &[pid], c"smaps", put));
}

fn rollup_of_process(call: &Call) {
    let mut row = RollupRow::start(call);
    let Some(pid) = call.int4(0) else { return };
    let cluster = unwrap_or_raise(Cluster::of_this_server(Root::default(), 1));
    warn_if_denied(pid, read_mappings(&cluster, &[pid], c"smaps_rollup", |_, rollup| row.put(rollup)));
}

/// Passes each mapping in a file of each process to `put`. Returns the number of processes that were denied.
fn read_mappings(cluster: &Cluster, pids: &[Pid], file: &CStr, mut put: impl FnMut(Pid, &Mapping)) -> usize {
    unwrap_or_raise(cluster.read_file_of_each(pids, file, interrupts::check, |pid, text| {
        for mapping in smaps::mappings(text.bytes()) {
            interrupts::check();
            put(pid, &mapping.map_err(|malformed| malformed.in_file(text.path.clone()))?);
        }
        Ok(())
    }))
}

/// A number for the contract: 0 if the kernel does not print the key, NULL if the value is unusable.
#[inline]
fn as_printed(mapping: &Mapping, field: Field) -> Option<u64> {
    match mapping.value(field) {
        Value::Absent => Some(0),
        Value::Unusable => None,
        Value::Number(number) => Some(number),
    }
}

/// A field's number. `None` if the kernel does not print the key, or if the value is unusable.
#[inline]
fn number(mapping: &Mapping, field: Field) -> Option<u64> {
    match mapping.value(field) {
        Value::Absent | Value::Unusable => None,
        Value::Number(number) => Some(number),
    }
}

/// A quantity in bytes. `None` also if it exceeds 64 bits.
#[inline]
fn bytes(mapping: &Mapping, field: Field) -> Option<u64> {
    number(mapping, field)?.checked_mul(1024)
}
