//! Postgres's main shared memory segment: where it is, and how many huge pages it needs.

use core::ffi::CStr;

use pgrx_pg_sys as pg_sys;

/// An address in the main segment.
pub fn address() -> u64 {
    // SAFETY: a plain variable, set before any function can run.
    unsafe { pg_sys::ProcGlobal }.addr() as u64
}

/// The key of a System V segment: the main segment itself, or the small one that guards the data directory.
pub fn system_v_key() -> u32 {
    // SAFETY: as above. Postgres keeps a key_t, 32 bits wide, in a larger type.
    unsafe { pg_sys::UsedShmemSegID as u32 }
}

/// The size of the main segment, in bytes (shared_memory_size). `None` if Postgres does not know it.
pub fn size() -> Option<u64> {
    Some(setting(c"shared_memory_size")?.to_str().ok()?.parse::<u64>().ok()? << 20)
}

/// Whether the main segment is in huge pages. PostgreSQL 15 and 16 only know whether it may be.
pub fn may_be_in_huge_pages() -> bool {
    match setting(c"huge_pages_status") {
        Some(status) => status == c"on",
        None => setting(c"huge_pages") != Some(c"off"),
    }
}

/// The value of a setting, in a buffer that is valid until the next call. `None` if there is no such setting.
fn setting(name: &CStr) -> Option<&'static CStr> {
    let (is_missing_ok, is_restricted) = (true, false);
    // SAFETY: the name ends with a NUL.
    let text = unsafe { pg_sys::GetConfigOption(name.as_ptr(), is_missing_ok, is_restricted) };
    // SAFETY: null, or a text in such a buffer.
    (!text.is_null()).then(|| unsafe { CStr::from_ptr(text) })
}

/// The number of huge pages that the main segment needs (shared_memory_size_in_huge_pages). `None` if Postgres does not
/// know it.
pub fn huge_pages_needed() -> Option<u64> {
    // Postgres returns -1 if it does not know the number.
    setting(c"shared_memory_size_in_huge_pages")?.to_str().ok()?.parse().ok()
}
