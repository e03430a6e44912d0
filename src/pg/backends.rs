//! Which processes Postgres knows.

use pgrx_pg_sys as pg_sys;

use super::version::local_beentry;

/// The pid of the postmaster. In single-user mode, which has none, our own.
pub fn postmaster_pid() -> i32 {
    // SAFETY: a plain variable, set before any function can run.
    let postmaster = unsafe { pg_sys::PostmasterPid };
    // SAFETY: as above.
    if postmaster != 0 { postmaster } else { unsafe { pg_sys::MyProcPid } }
}

/// The pids in pg_stat_activity, in its order. Like the view, frozen at its first use in a transaction.
pub fn pids() -> Vec<i32> {
    // SAFETY: a transaction is open, as in every call of an SQL function.
    let count = unsafe { pg_sys::pgstat_fetch_stat_numbackends() };
    let pid = |index| {
        // SAFETY: as above, and the index is within the count.
        let entry = unsafe { local_beentry(index) };
        // SAFETY: the entry is null, or lies in the snapshot, which lives until the end of the transaction.
        unsafe { entry.as_ref() }.map(|entry| entry.backendStatus.st_procpid)
    };
    (1..=count).filter_map(pid).filter(|&pid| pid > 0).collect()
}
