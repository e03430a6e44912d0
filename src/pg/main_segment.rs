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

/// The number of huge pages that the main segment needs (shared_memory_size_in_huge_pages). `None` if Postgres does not
/// know it.
pub fn huge_pages_needed() -> Option<u64> {
    // SAFETY: the name ends with a NUL, and every major version that we support has this setting.
    let text = unsafe { pg_sys::GetConfigOption(c"shared_memory_size_in_huge_pages".as_ptr(), false, false) };
    // SAFETY: a text in a buffer that is valid until the next call.
    let text = unsafe { CStr::from_ptr(text) };
    // Postgres returns -1 if it does not know the number.
    text.to_str().ok()?.parse().ok()
}
