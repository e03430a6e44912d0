//! Where Postgres's own shared memory is.

use pgrx_pg_sys as pg_sys;

/// An address in the main segment.
pub fn an_address() -> u64 {
    // SAFETY: a plain variable, set before any function can run.
    unsafe { pg_sys::ProcGlobal }.addr() as u64
}

/// The key of the System V segment that is the main segment, or a small one that guards it.
pub fn system_v_key() -> u32 {
    // SAFETY: as above. Postgres keeps a key_t, 32 bits wide, in a larger type.
    unsafe { pg_sys::UsedShmemSegID as u32 }
}
