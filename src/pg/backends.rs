//! The processes that Postgres knows.

use core::ffi::{CStr, c_char};
use core::ptr;

use pgrx_pg_sys as pg_sys;

use super::compat::local_beentry;

/// The pid of the postmaster. In single-user mode there is none, and this is our own pid.
pub fn postmaster_pid() -> i32 {
    // SAFETY: a plain variable, set before any function can run.
    let postmaster = unsafe { pg_sys::PostmasterPid };
    // SAFETY: as above.
    if postmaster != 0 { postmaster } else { unsafe { pg_sys::MyProcPid } }
}

/// A process in pg_stat_activity.
#[derive(Clone, Debug)]
pub struct Backend {
    /// Its pid.
    pub pid: i32,
    kind: pg_sys::BackendType::Type,
}

/// The processes in pg_stat_activity, in its order. As in the view, they do not change within a transaction after the
/// first use.
pub fn all() -> Vec<Backend> {
    // SAFETY: a transaction is open, as in every call of an SQL function.
    let count = unsafe { pg_sys::pgstat_fetch_stat_numbackends() };
    let backend = |index| {
        // SAFETY: as above, and the index is within the count.
        let entry = unsafe { local_beentry(index) };
        // SAFETY: the entry is null, or lies in the snapshot, which lives until the end of the transaction.
        let status = &unsafe { entry.as_ref() }?.backendStatus;
        Some(Backend { pid: status.st_procpid, kind: status.st_backendType })
    };
    (1..=count).filter_map(backend).filter(|backend| backend.pid > 0).collect()
}

impl Backend {
    /// The type that pg_stat_activity shows.
    pub fn type_name(&self) -> Vec<u8> {
        type_name(self.pid, self.kind)
    }
}

/// The type that pg_stat_activity shows for a process of this kind. For a background worker that has just ended the
/// view shows NULL, and this is the generic name.
pub(super) fn type_name(pid: i32, kind: pg_sys::BackendType::Type) -> Vec<u8> {
    let name = if kind == pg_sys::BackendType::B_BG_WORKER {
        // SAFETY: acquires and releases its own lock. Returns null, or a text in a buffer that is valid until the next
        // call.
        unsafe { pg_sys::GetBackgroundWorkerTypeByPid(pid) }
    } else {
        ptr::null()
    };
    if name.is_null() {
        // SAFETY: the type is that of a process. Returns a constant text.
        copy(unsafe { pg_sys::GetBackendTypeDesc(kind) })
    } else {
        copy(name)
    }
}

/// The pid of the leader if the process is a parallel worker: leader_pid of pg_stat_activity, but at this moment.
pub fn leader(pid: i32) -> Option<i32> {
    // SAFETY: acquires and releases its own lock.
    let process = unsafe { pg_sys::BackendPidGetProc(pid) };
    if process.is_null() {
        return None;
    }
    // SAFETY: the entry is in an array in shared memory that is never freed.
    let leader = unsafe { &raw const (*process).lockGroupLeader };
    // SAFETY: as above. The read is volatile because other processes write the field.
    let leader = unsafe { leader.read_volatile() };
    if leader.is_null() {
        return None;
    }
    // SAFETY: as above.
    let leader = unsafe { &raw const (*leader).pid };
    // SAFETY: as above. By now the entry may belong to another process; pg_stat_activity has the same race.
    let leader = unsafe { leader.read_volatile() };
    (leader != pid && leader != 0).then_some(leader)
}

/// The title of this cluster's logger. The last word depends on the major version.
pub fn logger_title() -> Vec<u8> {
    // SAFETY: reads a setting that is fixed at server start.
    let cluster_name = unsafe { pg_sys::cluster_name };
    let mut title = b"postgres: ".to_vec();
    if !cluster_name.is_null() {
        let name = copy(cluster_name);
        if !name.is_empty() {
            title.extend_from_slice(&name);
            title.extend_from_slice(b": ");
        }
    }
    // SAFETY: a constant text.
    title.extend_from_slice(&copy(unsafe { pg_sys::GetBackendTypeDesc(pg_sys::BackendType::B_LOGGER) }));
    title
}

fn copy(text: *const c_char) -> Vec<u8> {
    // SAFETY: callers pass only texts of Postgres, which end with a NUL.
    unsafe { CStr::from_ptr(text) }.to_bytes().to_vec()
}
