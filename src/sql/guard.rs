//! `pg_meminfo_guard()`: what the guard does now.

use std::sync::atomic::Ordering;

use crate::guard::shared::{Guards, guards};
use crate::pg::fmgr::{Call, sql_function};
use crate::pg::rows::{number, rows};
use crate::pg::settings::guard as settings;

use super::require_preloaded;

sql_function!("pg_meminfo_guard" => guard);

rows! {
    /// The row of `pg_meminfo_guard()`.
    GuardRow(guards: &Guards, min_headroom: Option<u64>, action: i32) {
        recorder_pid: int4 = number(i64::from(guards.pid.load(Ordering::Relaxed))),
        guard_action: text = min_headroom.map(|_| settings::action_name(action).as_bytes()),
        min_headroom: int8 = min_headroom,
        session_memory_limit: int8 = settings::session_memory_limit(),
        headroom: int8 = amount(guards.headroom.load(Ordering::Relaxed), guards),
        memory_limit: int8 = amount(guards.limit.load(Ordering::Relaxed), guards),
        is_short: bool = min_headroom.map(|_| guards.is_short.load(Ordering::Relaxed)),
        share: int8 = number(guards.share.load(Ordering::Relaxed) as i64),
        limited: int4 = Some(guards.limited.load(Ordering::Relaxed)),
        shortages: int8 = Some(guards.shortages.load(Ordering::Relaxed)),
        refusals: int8 = Some(guards.refusals.load(Ordering::Relaxed)),
        cancels: int8 = Some(guards.cancels.load(Ordering::Relaxed)),
        terminations: int8 = Some(guards.terminations.load(Ordering::Relaxed)),
        acted_at: timestamptz = number(guards.acted_at.load(Ordering::Relaxed)),
        acted_on: int4 = number(i64::from(guards.acted_on.load(Ordering::Relaxed))),
    }
}

/// NULL before the first sample, whose limit is never 0.
fn amount(bytes: u64, guards: &Guards) -> Option<u64> {
    (guards.limit.load(Ordering::Relaxed) != 0).then_some(bytes)
}

fn guard(call: &Call) {
    require_preloaded();
    let Some(guards) = guards() else { return };
    // The settings as the recorder has them. This session may not have been told yet.
    let min_headroom = guards.min_headroom.load(Ordering::Relaxed);
    GuardRow::start(call).put(
        guards,
        (min_headroom > 0).then_some(min_headroom),
        guards.action.load(Ordering::Relaxed),
    );
}
