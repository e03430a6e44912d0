//! How the SQL functions report failures: the ERROR for each error that `proc` returns, and the WARNINGs about denied
//! processes.

use crate::pg::error;
use crate::proc::error::Error;
use crate::proc::process::Pid;

const DENIED_HINT: &str = "The server can read only dumpable processes of its own user. Check PR_SET_DUMPABLE in prctl(2), \
                           file capabilities of the server's executable, the mount options of /proc, and the rules of \
                           AppArmor or SELinux.";

/// Returns the value, or raises the ERROR that describes why there is none.
#[track_caller]
pub fn unwrap_or_raise<T>(result: Result<T, Error>) -> T {
    match result {
        Ok(value) => value,
        Err(Error::Malformed { path, detail }) => error::raise_malformed(&path, &detail),
        Err(Error::Failed { path, source }) => error::raise_file_access(&path, &source),
        Err(Error::Gone | Error::Denied) => unreachable!("such a process is left out"),
    }
}

/// Warns that this number of processes is missing from a result, unless it is 0.
pub fn warn_of_denied(processes: usize) {
    match processes {
        0 => {}
        1 => error::warn("could not read the memory of 1 process: permission denied".into(), DENIED_HINT),
        n => error::warn(format!("could not read the memory of {n} processes: permission denied"), DENIED_HINT),
    }
}

/// Warns, once per statement, that a process is missing from a result.
pub fn warn_if_denied(pid: Pid, denied: usize) {
    if denied > 0 {
        let message = format!("could not read the memory of process {pid}: permission denied");
        error::warn_once_a_statement(message, DENIED_HINT);
    }
}
