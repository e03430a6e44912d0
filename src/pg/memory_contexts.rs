//! Where a process of this server keeps its memory contexts, from the headers of the major version.

use core::mem::offset_of;

use pgrx_pg_sys as pg_sys;

use super::compat;

/// A type of memory contexts: its name in pg_backend_memory_contexts, its node tag, and the address of its functions.
pub type ContextType = (&'static str, u32, u64);

/// The offsets of the fields of a MemoryContextData: tag, allocated bytes, methods, parent, first child, previous
/// child, next child, name, identifier; and its size.
pub const OFFSETS: [usize; 10] = [
    offset_of!(pg_sys::MemoryContextData, type_),
    offset_of!(pg_sys::MemoryContextData, mem_allocated),
    offset_of!(pg_sys::MemoryContextData, methods),
    offset_of!(pg_sys::MemoryContextData, parent),
    offset_of!(pg_sys::MemoryContextData, firstchild),
    offset_of!(pg_sys::MemoryContextData, prevchild),
    offset_of!(pg_sys::MemoryContextData, nextchild),
    offset_of!(pg_sys::MemoryContextData, name),
    offset_of!(pg_sys::MemoryContextData, ident),
    size_of::<pg_sys::MemoryContextData>(),
];

/// The address of the variable TopMemoryContext. It is the same in all processes of the server, which are forked from
/// the postmaster.
pub fn top_address() -> u64 {
    (&raw const pg_sys::TopMemoryContext).addr() as u64
}

/// The types of memory contexts. A context of each type is created for this, and deleted.
pub fn types() -> Vec<ContextType> {
    const SIZE: usize = pg_sys::ALLOCSET_SMALL_INITSIZE as usize;
    // SAFETY: a plain variable.
    let parent = unsafe { pg_sys::CurrentMemoryContext };
    let type_of = |&(name, tag, create): &compat::CreatableContextType| {
        let context = create(parent, SIZE);
        // SAFETY: it has just been created.
        let methods = unsafe { (*context).methods };
        // SAFETY: as above, and nothing refers to it.
        unsafe { pg_sys::MemoryContextDelete(context) };
        (name, tag as u32, methods.addr() as u64)
    };
    compat::CONTEXT_TYPES.iter().map(type_of).collect()
}
