//! What Postgres knows about the process that we run in.

use core::ffi::c_int;

use pg_sys::BackendType;
use pgrx_pg_sys as pg_sys;

// Not those of pgrx, which would set up a guard. They return variables.
unsafe extern "C" {
    fn GetUserId() -> pg_sys::Oid;
    fn GetCurrentStatementStartTimestamp() -> pg_sys::TimestampTz;
    // It can only raise a FATAL, if there are too many.
    fn before_shmem_exit(function: unsafe extern "C-unwind" fn(c_int, pg_sys::Datum), argument: pg_sys::Datum);
    // As above.
    fn on_shmem_exit(function: unsafe extern "C-unwind" fn(c_int, pg_sys::Datum), argument: pg_sys::Datum);
}

/// The pid.
pub fn pid() -> i32 {
    // SAFETY: a plain variable.
    unsafe { pg_sys::MyProcPid }
}

/// The time at which Postgres begins to count, in microseconds since the Unix epoch.
pub(super) const EPOCH: i64 = (pg_sys::POSTGRES_EPOCH_JDATE - pg_sys::UNIX_EPOCH_JDATE) as i64 * 86_400_000_000;

/// The time, in microseconds since the Unix epoch.
pub fn now() -> i64 {
    // SAFETY: reads the clock.
    unix_time(unsafe { pg_sys::GetCurrentTimestamp() })
}

/// A time of Postgres in microseconds since the Unix epoch.
pub fn unix_time(time: pg_sys::TimestampTz) -> i64 {
    time.saturating_add(EPOCH)
}

/// When the server was started, in microseconds since the Unix epoch.
pub fn server_start() -> i64 {
    // SAFETY: a plain variable.
    unix_time(unsafe { pg_sys::PgStartTime })
}

/// What identifies the cluster.
pub fn system_identifier() -> u64 {
    // SAFETY: reads what the server has read when it started.
    unsafe { pg_sys::GetSystemIdentifier() }
}

/// Whether pg_upgrade has started the server.
pub fn is_upgrade() -> bool {
    // SAFETY: a plain variable.
    unsafe { pg_sys::IsBinaryUpgrade }
}

/// When the client's last message arrived, in nanoseconds since the Unix epoch.
#[inline]
pub fn message_arrived() -> u64 {
    statement_start() as u64 * 1000
}

/// When the statement was started that is being executed, or the last one: as in pg_stat_activity, in microseconds
/// since the Unix epoch. It may be called in a signal handler.
#[inline]
pub fn statement_start() -> i64 {
    // SAFETY: it reads a variable.
    unix_time(unsafe { GetCurrentStatementStartTimestamp() })
}

/// Whether it sends WAL to a standby or a subscriber.
pub fn is_wal_sender() -> bool {
    // SAFETY: a plain variable.
    unsafe { pg_sys::am_walsender }
}

/// Lets a function be called when this process exits, before it leaves shared memory, and before what was registered
/// earlier. It must not unwind.
pub fn at_exit(run: fn()) {
    // SAFETY: the function lives as long as the process. The frame of the caller is plain.
    unsafe { before_shmem_exit(exiting, pg_sys::Datum::from(run as usize)) };
}

unsafe extern "C-unwind" fn exiting(_: c_int, run: pg_sys::Datum) {
    // SAFETY: it was made of such a function.
    let run: fn() = unsafe { core::mem::transmute(run.value()) };
    run();
}

/// Whether this process has created temporary tables, and will remove them when it exits.
pub fn has_temporary_tables() -> bool {
    // SAFETY: a plain variable.
    let process = unsafe { pg_sys::MyProc };
    // SAFETY: it points to this process's structure, or is null.
    unsafe { process.as_ref() }.is_some_and(|process| process.tempNamespaceId != pg_sys::InvalidOid)
}

/// Lets a function be called when this process leaves shared memory: its transaction has been rolled back, and its
/// [`number`] is not yet that of another one. It must not unwind.
pub fn at_last(run: fn()) {
    // SAFETY: as in at_exit().
    unsafe { on_shmem_exit(exiting, pg_sys::Datum::from(run as usize)) };
}

/// The OID of the current user.
#[inline]
pub fn user() -> u32 {
    // SAFETY: a user is set while statements run.
    unsafe { GetUserId() }.to_u32()
}

/// The OID of the database, or 0.
pub fn database() -> u32 {
    // SAFETY: a plain variable.
    unsafe { pg_sys::MyDatabaseId }.to_u32()
}

/// Whether it is a child of a postmaster, and not a server in single-user mode.
pub fn is_child() -> bool {
    // SAFETY: a plain variable.
    unsafe { pg_sys::IsUnderPostmaster }
}

/// Whether it is a parallel worker.
#[inline]
pub fn is_parallel_worker() -> bool {
    // SAFETY: a plain variable.
    (unsafe { pg_sys::ParallelWorkerNumber }) >= 0
}

/// Whether it works for no client: an autovacuum worker, or a background worker, such as one that applies changes of
/// logical replication.
pub fn is_background() -> bool {
    // SAFETY: a plain variable.
    let kind = unsafe { pg_sys::MyBackendType };
    kind == BackendType::B_AUTOVAC_WORKER || kind == BackendType::B_BG_WORKER
}

/// How many processes can execute statements at the same time.
pub fn max_backends() -> usize {
    // SAFETY: a plain variable, set before shared memory is requested.
    (unsafe { pg_sys::MaxBackends }) as usize
}

/// The number of this process among those that can execute statements, from 0. `None` if it is none of them.
pub fn number() -> Option<usize> {
    // SAFETY: a plain variable.
    number_of(unsafe { pg_sys::MyProc })
}

/// The number and the pid of the leader if this is a parallel worker.
pub fn leader() -> Option<(usize, i32)> {
    // SAFETY: a plain variable.
    let process = unsafe { pg_sys::MyProc };
    // SAFETY: it points to this process's structure, or is null.
    let leader = unsafe { process.as_ref() }?.lockGroupLeader;
    if leader == process {
        return None;
    }
    let number = number_of(leader)?;
    // SAFETY: the number says that it points to one of the structures in shared memory.
    let pid = unsafe { &raw const (*leader).pid };
    // SAFETY: as above. The read is volatile because another process writes the field.
    Some((number, unsafe { pid.read_volatile() }))
}

fn number_of(process: *const pg_sys::PGPROC) -> Option<usize> {
    if process.is_null() {
        return None;
    }
    // SAFETY: a plain variable.
    let global = unsafe { pg_sys::ProcGlobal };
    // SAFETY: it is set before there are children.
    let first = unsafe { (*global).allProcs };
    let number = process.addr().checked_sub(first.addr())? / size_of::<pg_sys::PGPROC>();
    (number < max_backends()).then_some(number)
}
