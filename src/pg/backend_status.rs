//! What the processes of the server say of themselves, read directly in shared memory. The snapshot of pg_stat_activity
//! would copy all of it, with the texts of all queries; this copies only what is asked for.

use core::ffi::{CStr, c_char};
use core::ptr;
use core::sync::atomic::{Ordering, fence};

use pg_sys::BackendState;
use pgrx_pg_sys as pg_sys;

use super::backends;
use super::this_process::unix_time;

/// The entries of all processes. Only a process that has one itself finds them.
#[derive(Clone, Copy, Debug)]
pub struct BackendStatuses {
    first: *const pg_sys::PgBackendStatus,
    count: usize,
}

/// A process that has an entry.
#[derive(Clone, Copy, Debug)]
pub struct Listed {
    /// Its pid.
    pub pid: i32,
    /// When it was started, in microseconds since the Unix epoch.
    pub start: i64,
    nth: usize,
    kind: pg_sys::BackendType::Type,
}

/// What a process does.
#[derive(Clone, Debug, Default)]
pub struct Activity {
    /// The OID of the role, or 0.
    pub user: u32,
    /// The OID of the database, or 0.
    pub database: u32,
    /// The application's name.
    pub application: Vec<u8>,
    /// The state, as in pg_stat_activity. Empty if it has none.
    pub state: &'static str,
    /// The query id, or 0.
    pub query_id: i64,
    /// When the query was started, in microseconds since the Unix epoch, or 0.
    pub query_start: i64,
    /// The beginning of the query's text. It may end within a character.
    pub query: Vec<u8>,
}

impl BackendStatuses {
    /// Those of this server. `None` if this process has no entry.
    pub fn find() -> Option<Self> {
        // SAFETY: a plain variable.
        let own = unsafe { pg_sys::MyBEEntry };
        // The entries of an array that Postgres does not show are in the order of these numbers.
        #[cfg(any(feature = "pg15", feature = "pg16"))]
        // SAFETY: a plain variable. It counts from 1.
        let nth = unsafe { pg_sys::MyBackendId } - 1;
        #[cfg(not(any(feature = "pg15", feature = "pg16")))]
        // SAFETY: a plain variable.
        let nth = unsafe { pg_sys::MyProcNumber };
        #[cfg(any(feature = "pg15", feature = "pg16"))]
        let auxiliary = pg_sys::AuxProcType::NUM_AUXPROCTYPES as usize;
        #[cfg(not(any(feature = "pg15", feature = "pg16")))]
        let auxiliary = pg_sys::NUM_AUXILIARY_PROCS as usize;
        let nth = usize::try_from(nth).ok()?;
        if own.is_null() {
            return None;
        }
        let first = own.wrapping_sub(nth);
        Some(BackendStatuses { first, count: super::this_process::max_backends() + auxiliary })
    }

    fn entry(&self, nth: usize) -> *const pg_sys::PgBackendStatus {
        assert!(nth < self.count);
        self.first.wrapping_add(nth)
    }

    /// The processes.
    pub fn iter(&self) -> impl Iterator<Item = Listed> {
        (0..self.count).filter_map(|nth| self.listed(nth))
    }

    fn listed(&self, nth: usize) -> Option<Listed> {
        let entry = self.entry(nth);
        // SAFETY: the entry is in shared memory, which is never freed.
        let pid = unsafe { &raw const (*entry).st_procpid };
        // SAFETY: as above. The reads are volatile because other processes write the fields.
        let pid = unsafe { pid.read_volatile() };
        // SAFETY: as above.
        let start = unsafe { &raw const (*entry).st_proc_start_timestamp };
        // SAFETY: as above.
        let kind = unsafe { &raw const (*entry).st_backendType };
        // SAFETY: as above. A process that is just starting may have the values of another one for a moment.
        let start = unix_time(unsafe { start.read_volatile() });
        // SAFETY: as above.
        (pid > 0).then(|| Listed { pid, start, nth, kind: unsafe { kind.read_volatile() } })
    }

    /// Whether a process executes a statement, and when that or its last one was started, in microseconds since the
    /// Unix epoch. This is cheap, but not of one moment.
    pub fn statement(&self, listed: Listed) -> (bool, i64) {
        let entry = self.entry(listed.nth);
        // SAFETY: the entry is in shared memory, which is never freed.
        let state = unsafe { &raw const (*entry).st_state };
        // SAFETY: as above.
        let start = unsafe { &raw const (*entry).st_activity_start_timestamp };
        // SAFETY: as above. The reads are volatile because other processes write the fields.
        let state = unsafe { state.read_volatile() };
        // SAFETY: as above.
        let start = unix_time(unsafe { start.read_volatile() });
        (state == BackendState::STATE_RUNNING, start)
    }

    /// What a process does: at most `query_size` bytes of its query. `None` if it has exited, or changes too fast.
    pub fn activity(&self, listed: Listed, query_size: usize) -> Option<Activity> {
        const TRIES: usize = 20;
        let entry = self.entry(listed.nth);
        // SAFETY: as above.
        let changes = unsafe { &raw const (*entry).st_changecount };
        for _ in 0..TRIES {
            // SAFETY: as above.
            let before = unsafe { changes.read_volatile() };
            fence(Ordering::Acquire);
            // SAFETY: as above. The copy is used only if it was complete.
            let status = unsafe { ptr::read_volatile(entry) };
            let application = copy(status.st_appname, pg_sys::NAMEDATALEN as usize);
            let query = copy(status.st_activity_raw, query_size);
            fence(Ordering::Acquire);
            // SAFETY: as above.
            let after = unsafe { changes.read_volatile() };
            if before == after && before % 2 == 0 {
                let start = status.st_activity_start_timestamp;
                return (status.st_procpid == listed.pid).then(|| Activity {
                    user: status.st_userid.to_u32(),
                    database: status.st_databaseid.to_u32(),
                    application,
                    state: state_name(status.st_state),
                    query_id: status.st_query_id as i64,
                    query_start: if start == 0 { 0 } else { unix_time(start) },
                    query,
                });
            }
        }
        None
    }
}

/// At most `size` bytes of a text in shared memory.
fn copy(text: *const c_char, size: usize) -> Vec<u8> {
    let mut copy = Vec::new();
    if text.is_null() || copy.try_reserve_exact(size).is_err() {
        return copy;
    }
    for at in 0..size {
        // SAFETY: the text ends with a NUL, which is never overwritten, and is in shared memory.
        let byte = unsafe { text.wrapping_add(at).read_volatile() } as u8;
        if byte == 0 {
            break;
        }
        copy.push(byte);
    }
    copy
}

/// The state as pg_stat_activity shows it.
fn state_name(state: BackendState::Type) -> &'static str {
    match state {
        #[cfg(any(feature = "pg18", feature = "pg19"))]
        BackendState::STATE_STARTING => "starting",
        BackendState::STATE_IDLE => "idle",
        BackendState::STATE_RUNNING => "active",
        BackendState::STATE_IDLEINTRANSACTION => "idle in transaction",
        BackendState::STATE_FASTPATH => "fastpath function call",
        BackendState::STATE_IDLEINTRANSACTION_ABORTED => "idle in transaction (aborted)",
        BackendState::STATE_DISABLED => "disabled",
        _ => "",
    }
}

impl Listed {
    /// The type that pg_stat_activity shows.
    pub fn type_name(&self) -> Vec<u8> {
        backends::type_name(self.pid, self.kind)
    }

    /// Whether it serves a client.
    pub fn is_client_backend(&self) -> bool {
        self.kind == pg_sys::BackendType::B_BACKEND
    }

    /// The pid of its leader if it is a parallel worker.
    pub fn leader(&self) -> Option<i32> {
        (self.kind == pg_sys::BackendType::B_BG_WORKER).then(|| backends::leader(self.pid)).flatten()
    }
}

/// When the statement of this process was started that pg_stat_activity shows, in microseconds since the Unix epoch. It
/// may be called in a signal handler.
pub fn own_statement() -> Option<i64> {
    // SAFETY: a plain variable.
    let entry = unsafe { pg_sys::MyBEEntry };
    // SAFETY: it is null, or points to this process's entry in shared memory, which only this process changes.
    Some(unix_time(unsafe { entry.as_ref() }?.st_activity_start_timestamp))
}

/// The name of a database. `None` if there is none.
pub fn database_name(database: u32) -> Option<Vec<u8>> {
    // SAFETY: a transaction is open, as in every call of an SQL function.
    owned(unsafe { pg_sys::get_database_name(database.into()) })
}

/// The name of a role. `None` if there is none.
pub fn role_name(role: u32) -> Option<Vec<u8>> {
    let is_missing_ok = true;
    // SAFETY: as above.
    owned(unsafe { pg_sys::GetUserNameFromId(role.into(), is_missing_ok) })
}

/// A copy of a name that was allocated for us. It is freed, for a call asks for very many of them.
fn owned(name: *mut c_char) -> Option<Vec<u8>> {
    if name.is_null() {
        return None;
    }
    // SAFETY: it ends with a NUL.
    let copy = unsafe { CStr::from_ptr(name) }.to_bytes().to_vec();
    // SAFETY: nobody else has it.
    unsafe { pg_sys::pfree(name.cast()) };
    Some(copy)
}
