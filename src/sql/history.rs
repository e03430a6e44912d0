//! `pg_meminfo_history()` and its companions: what the recorder has written.

use crate::model::history::incident::Incident;
use crate::model::history::sample::{Sample, Session};
use crate::pg::backend_status::{database_name, role_name};
use crate::pg::fmgr::{Call, sql_function};
use crate::pg::rows::{number, rows};
use crate::pg::{encoding, error};
use crate::recorder::history::{self, OutOfMemory};

use super::require_preloaded;

sql_function!("pg_meminfo_history" => samples);
sql_function!("pg_meminfo_session_history" => sessions);
sql_function!("pg_meminfo_incidents" => incidents);

rows! {
    /// The rows of `pg_meminfo_history()`.
    SampleRows(sample: &Sample) {
        at: timestamptz = Some(sample.at),
        server_start: timestamptz = Some(sample.server_start),
        processes: int4 = Some(sample.processes),
        private: int8 = Some(sample.private),
        headroom: int8 = sample.headroom,
        memory_limit: int8 = sample.limit,
        limited_by: text = sample.limited_by.as_deref(),
        oom_kills: int8 = sample.oom_kills,
        psi_some_usec: int8 = sample.psi_some,
        psi_full_usec: int8 = sample.psi_full,
    }
}

rows! {
    /// The rows of `pg_meminfo_session_history()`.
    SessionRows(at: i64, session: &Session, names: &Names) {
        at: timestamptz = Some(at),
        pid: int4 = Some(session.pid),
        leader_pid: int4 = session.leader,
        backend_start: timestamptz = Some(session.backend_start),
        backend_type: text = Some(&session.backend_type),
        datname: text = names.database.as_deref(),
        usename: text = names.role.as_deref(),
        application_name: text = text(&session.application),
        state: text = text(&session.state),
        query_start: timestamptz = number(session.query_start),
        query_id: int8 = number(session.query_id),
        query: text = text(&session.query),
        private: int8 = Some(session.private),
        peak_private: int8 = Some(session.peak.max(session.private)),
        growth: int8 = Some(session.growth),
    }
}

rows! {
    /// The rows of `pg_meminfo_incidents()`.
    IncidentRows(incident: &Incident, session: Option<&Session>, names: &Names, sample: Option<&Sample>) {
        at: timestamptz = Some(incident.at),
        cause: text = Some(incident.cause.name().as_bytes()),
        pid: int4 = number(incident.pid.into()),
        signal: int4 = number(incident.signal.into()),
        backend_type: text = session.map(|session| &session.backend_type[..]),
        datname: text = names.database.as_deref(),
        usename: text = names.role.as_deref(),
        application_name: text = session.and_then(|session| text(&session.application)),
        query_start: timestamptz = session.and_then(|session| number(session.query_start)),
        query_id: int8 = session.and_then(|session| number(session.query_id)),
        query: text = text(&incident.query),
        private: int8 = incident.held.or(session.map(|session| session.private)),
        growth_per_second: int8 = incident.growth_per_second,
        sampled_at: timestamptz = sample.map(|sample| sample.at),
        largest_pid: int4 = incident.largest.as_ref().map(|largest| largest.pid),
        largest_application_name: text = incident.largest.as_ref().and_then(|largest| text(&largest.application)),
        largest_private: int8 = incident.largest.as_ref().map(|largest| largest.private),
        largest_query: text = incident.largest.as_ref().and_then(|largest| text(&largest.query)),
        processes: int4 = sample.map(|sample| sample.processes),
        cluster_private: int8 = sample.map(|sample| sample.private),
        headroom: int8 = sample.and_then(|sample| sample.headroom),
        memory_limit: int8 = sample.and_then(|sample| sample.limit),
        oom_kills: int8 = incident.oom_kills,
    }
}

/// The names of a session's role and database, if there still are such.
#[derive(Debug, Default)]
struct Names {
    database: Option<Vec<u8>>,
    role: Option<Vec<u8>>,
}

impl Names {
    fn of(session: &Session) -> Self {
        let database = (session.database != 0).then(|| database_name(session.database)).flatten();
        let role = (session.user != 0).then(|| role_name(session.user)).flatten();
        Names { database, role }
    }
}

/// NULL for an empty text. One that was cut may end within a character.
fn text(text: &[u8]) -> Option<&[u8]> {
    (!text.is_empty()).then(|| encoding::clip(text))
}

/// The range of time that a call asks for.
fn range(call: &Call) -> (i64, i64) {
    (call.timestamptz(0).unwrap_or(i64::MIN), call.timestamptz(1).unwrap_or(i64::MAX))
}

fn samples(call: &Call) {
    require_preloaded();
    let (from, until) = range(call);
    let mut rows = SampleRows::start(call);
    unwrap_or_raise(history::each_sample(from, until, |sample| rows.put(&sample)));
}

fn sessions(call: &Call) {
    require_preloaded();
    let (from, until) = range(call);
    let mut rows = SessionRows::start(call);
    unwrap_or_raise(history::each_sample(from, until, |sample| {
        for session in &sample.sessions {
            rows.put(sample.at, session, &Names::of(session));
        }
    }));
}

fn incidents(call: &Call) {
    require_preloaded();
    let mut rows = IncidentRows::start(call);
    unwrap_or_raise(history::each_incident(|incident| {
        let session = incident.session.as_ref();
        rows.put(&incident, session, &session.map(Names::of).unwrap_or_default(), incident.sample.as_ref());
    }));
}

fn unwrap_or_raise(read: Result<(), OutOfMemory>) {
    read.unwrap_or_else(|OutOfMemory| error::raise_out_of_memory());
}
