//! Everything that differs between major versions of Postgres.

use core::ffi::{c_char, c_int};

use pgrx_pg_sys as pg_sys;

/// The entry of pg_stat_activity at an index.
#[cfg(feature = "pg15")]
pub use pg_sys::pgstat_fetch_stat_local_beentry as local_beentry;
/// The entry of pg_stat_activity at an index.
#[cfg(not(feature = "pg15"))]
pub use pg_sys::pgstat_get_local_beentry_by_index as local_beentry;

const ABI_EXTRA: [c_char; 32] = {
    let text = pg_sys::FMGR_ABI_EXTRA.to_bytes();
    let mut padded = [0; 32];
    let mut at = 0;
    while at < text.len() {
        padded[at] = text[at] as c_char;
        at += 1;
    }
    padded
};

/// The values that the server compares with its own before it accepts the library.
#[cfg(any(feature = "pg15", feature = "pg16", feature = "pg17"))]
pub const MAGIC: pg_sys::Pg_magic_struct = pg_sys::Pg_magic_struct {
    len: size_of::<pg_sys::Pg_magic_struct>() as i32,
    version: (pg_sys::PG_VERSION_NUM / 100) as i32,
    funcmaxargs: pg_sys::FUNC_MAX_ARGS as i32,
    indexmaxkeys: pg_sys::INDEX_MAX_KEYS as i32,
    namedatalen: pg_sys::NAMEDATALEN as i32,
    float8byval: pg_sys::FLOAT8PASSBYVAL as i32,
    abi_extra: ABI_EXTRA,
};

/// The values that the server compares with its own before it accepts the library. Since version 18 they also include
/// our name and version, for pg_get_loaded_modules().
#[cfg(not(any(feature = "pg15", feature = "pg16", feature = "pg17")))]
pub const MAGIC: pg_sys::Pg_magic_struct = pg_sys::Pg_magic_struct {
    len: size_of::<pg_sys::Pg_magic_struct>() as i32,
    abi_fields: pg_sys::Pg_abi_values {
        version: (pg_sys::PG_VERSION_NUM / 100) as i32,
        funcmaxargs: pg_sys::FUNC_MAX_ARGS as i32,
        indexmaxkeys: pg_sys::INDEX_MAX_KEYS as i32,
        namedatalen: pg_sys::NAMEDATALEN as i32,
        float8byval: pg_sys::FLOAT8PASSBYVAL as i32,
        abi_extra: ABI_EXTRA,
    },
    name: c"pg_meminfo".as_ptr(),
    version: concat!(env!("PG_MEMINFO_VERSION"), "\0").as_ptr().cast(),
};

/// A type of memory contexts: its name in pg_backend_memory_contexts, its node tag, and a function that creates a
/// context below another, with blocks of this size.
pub type CreatableContextType =
    (&'static str, pg_sys::NodeTag, fn(pg_sys::MemoryContext, usize) -> pg_sys::MemoryContext);

const CONTEXT_NAME: *const c_char = c"pg_meminfo".as_ptr();

/// The types of memory contexts.
pub const CONTEXT_TYPES: &[CreatableContextType] = &[
    ("AllocSet", pg_sys::NodeTag::T_AllocSetContext, |parent, size| {
        // SAFETY: the parent is a valid context, and the name is constant.
        unsafe { pg_sys::AllocSetContextCreateInternal(parent, CONTEXT_NAME, 0, size, size) }
    }),
    ("Generation", pg_sys::NodeTag::T_GenerationContext, |parent, size| {
        // SAFETY: as above.
        unsafe { pg_sys::GenerationContextCreate(parent, CONTEXT_NAME, 0, size, size) }
    }),
    ("Slab", pg_sys::NodeTag::T_SlabContext, |parent, size| {
        // SAFETY: as above. A block has room for several chunks.
        unsafe { pg_sys::SlabContextCreate(parent, CONTEXT_NAME, size, size / 16) }
    }),
    #[cfg(not(any(feature = "pg15", feature = "pg16")))]
    ("Bump", pg_sys::NodeTag::T_BumpContext, |parent, size| {
        // SAFETY: as above.
        unsafe { pg_sys::BumpContextCreate(parent, CONTEXT_NAME, 0, size, size) }
    }),
];

/// The executor's main function.
#[cfg(any(feature = "pg15", feature = "pg16", feature = "pg17"))]
pub type ExecutorRun = unsafe extern "C-unwind" fn(*mut pg_sys::QueryDesc, pg_sys::ScanDirection::Type, u64, bool);
/// The executor's main function.
#[cfg(not(any(feature = "pg15", feature = "pg16", feature = "pg17")))]
pub type ExecutorRun = unsafe extern "C-unwind" fn(*mut pg_sys::QueryDesc, pg_sys::ScanDirection::Type, u64);

/// The planner.
#[cfg(not(feature = "pg19"))]
pub type Planner = unsafe extern "C-unwind" fn(
    *mut pg_sys::Query,
    *const c_char,
    c_int,
    pg_sys::ParamListInfo,
) -> *mut pg_sys::PlannedStmt;
/// The planner.
#[cfg(feature = "pg19")]
pub type Planner = unsafe extern "C-unwind" fn(
    *mut pg_sys::Query,
    *const c_char,
    c_int,
    pg_sys::ParamListInfo,
    *mut pg_sys::ExplainState,
) -> *mut pg_sys::PlannedStmt;

// Not those of pgrx, which would set up a guard. See the rules in hooks.rs.
unsafe extern "C-unwind" {
    /// The executor's main function.
    #[cfg(any(feature = "pg15", feature = "pg16", feature = "pg17"))]
    pub fn standard_ExecutorRun(
        query: *mut pg_sys::QueryDesc,
        direction: pg_sys::ScanDirection::Type,
        count: u64,
        once: bool,
    );
    /// The executor's main function.
    #[cfg(not(any(feature = "pg15", feature = "pg16", feature = "pg17")))]
    pub fn standard_ExecutorRun(query: *mut pg_sys::QueryDesc, direction: pg_sys::ScanDirection::Type, count: u64);
    /// The planner.
    #[cfg(not(feature = "pg19"))]
    pub fn standard_planner(
        parse: *mut pg_sys::Query,
        text: *const c_char,
        options: c_int,
        parameters: pg_sys::ParamListInfo,
    ) -> *mut pg_sys::PlannedStmt;
    /// The planner.
    #[cfg(feature = "pg19")]
    pub fn standard_planner(
        parse: *mut pg_sys::Query,
        text: *const c_char,
        options: c_int,
        parameters: pg_sys::ParamListInfo,
        explain: *mut pg_sys::ExplainState,
    ) -> *mut pg_sys::PlannedStmt;
}

/// Utility statements that can take long, and much memory. CALL and DO are not among them, because what they execute
/// counts.
pub const COSTLY_UTILITIES: &[pg_sys::NodeTag] = &[
    pg_sys::NodeTag::T_AlterTableStmt,
    #[cfg(not(feature = "pg19"))]
    pg_sys::NodeTag::T_ClusterStmt,
    pg_sys::NodeTag::T_CopyStmt,
    pg_sys::NodeTag::T_CreateTableAsStmt,
    pg_sys::NodeTag::T_IndexStmt,
    pg_sys::NodeTag::T_RefreshMatViewStmt,
    pg_sys::NodeTag::T_ReindexStmt,
    #[cfg(feature = "pg19")]
    pg_sys::NodeTag::T_RepackStmt,
    pg_sys::NodeTag::T_VacuumStmt,
];
