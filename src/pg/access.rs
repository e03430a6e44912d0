//! The privilege check. The addresses of a process's memory and the files that it maps are not for every user to see.

use pg_sys::errcodes::PgSqlErrorCode;
use pgrx_pg_sys as pg_sys;

use super::error;

/// Raises an ERROR unless the current user is a superuser or a member of pg_read_all_stats.
pub fn require_read_all_stats() {
    // SAFETY: a transaction is open, as in every call of an SQL function.
    let user = unsafe { pg_sys::GetUserId() };
    let role = pg_sys::Oid::from(pg_sys::ROLE_PG_READ_ALL_STATS);
    // SAFETY: as above; both are OIDs of roles. The result is true for a superuser.
    if !unsafe { pg_sys::has_privs_of_role(user, role) } {
        error::raise(
            PgSqlErrorCode::ERRCODE_INSUFFICIENT_PRIVILEGE,
            "Must be superuser or member of pg_read_all_stats.",
            None,
        );
    }
}

/// For functions that the extension's script revokes from PUBLIC: whoever may call them may do so.
pub fn granted_by_sql() {}
