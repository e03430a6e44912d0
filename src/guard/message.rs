//! What the ERROR of a session says if it was a limit, or the guard, that has ended its statement.
//!
//! Nothing here asks for memory: there may be none left. Postgres keeps some for the texts of an ERROR.

use std::fmt::{self, Write};
use std::sync::atomic::{AtomicU64, Ordering};

use core::ffi::CStr;

use crate::model::guard::End;
use crate::pg::log_hook::Report;
use crate::proc::data_limit;

use super::session;
use super::shared::{Guards, Reason, guards};

const OUT_OF_MEMORY: &[u8] = b"out of memory";
const CANCELED: &[u8] = b"canceling statement due to user request";
const TERMINATED: &[u8] = b"terminating connection due to administrator command";

/// Postgres asks malloc for a block with room for more than what the message names, and malloc asks the kernel for
/// more than that.
const ROUNDED_UP: u64 = 9 << 20;

const SHORTAGE_HINT: &CStr = c"Lower work_mem, or process fewer rows at a time. See pg_meminfo_guard.";

const LENGTH: usize = 1024;

/// Writes what fits.
struct Writer<'a> {
    buffer: &'a mut [u8],
    length: usize,
}

impl Writer<'_> {
    fn write(&mut self, bytes: &[u8]) -> fmt::Result {
        let end = self.length + bytes.len();
        // A NUL must follow.
        if end >= self.buffer.len() {
            return Err(fmt::Error);
        }
        self.buffer[self.length..end].copy_from_slice(bytes);
        self.length = end;
        Ok(())
    }
}

impl Write for Writer<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.write(text.as_bytes())
    }
}

/// Sets the detail to what is written. One that is too long is left out.
fn set_detail(report: &mut Report, write: impl FnOnce(&mut Writer) -> fmt::Result) {
    let mut buffer = [0; LENGTH];
    let is_whole = write(&mut Writer { buffer: &mut buffer, length: 0 }).is_ok();
    if let Ok(text) = CStr::from_bytes_until_nul(&buffer)
        && is_whole
    {
        report.set_detail(text);
    }
}

const MB: u64 = 1 << 20;

/// Lets an ERROR or a FATAL say why it was raised. What follows is that the transaction is undone.
pub fn edit(report: &mut Report) {
    explain(report);
    session::lift();
}

fn explain(report: &mut Report) {
    match report.message_id() {
        Some(OUT_OF_MEMORY) if report.is_out_of_memory() && !report.has_hint() => explain_refusal(report),
        Some(CANCELED) if session::was_told(End::Cancel) => {
            report.set_message(c"canceling statement because the server is running out of memory");
            explain_end(report, |guards| &guards.cancels);
        }
        Some(TERMINATED) if session::was_told(End::Terminate) => {
            report.set_message(c"terminating connection because the server is running out of memory");
            explain_end(report, |guards| &guards.terminations);
        }
        _ => {}
    }
}

fn explain_end(report: &mut Report, count: fn(&Guards) -> &AtomicU64) {
    let (Some(slot), Some(guards)) = (session::slot(), guards()) else { return };
    count(guards).fetch_add(1, Ordering::Relaxed);
    let Reason { held, headroom, limit } = slot.reason();
    set_detail(report, |text| {
        let [held, left, limit] = [held / MB, headroom / MB, limit / MB];
        write!(text, "This session held {held} MB of private memory when {left} MB of {limit} MB was left.")
    });
    report.set_hint(SHORTAGE_HINT);
}

fn explain_refusal(report: &mut Report) {
    // A parallel worker that builds an index plans and executes nothing.
    session::join_leader();
    let (Some(slot), Some(guards), Some(mapped)) = (session::slot(), guards(), data_limit::own_mapped()) else {
        return;
    };
    let in_force = data_limit::own();
    let requested = report.detail().and_then(first_number).unwrap_or(0);
    // What it had may have been freed since, and the guard may have raised the limit.
    let is_within = mapped.saturating_add(requested).saturating_add(ROUNDED_UP) < in_force;
    // Dynamic shared memory is not counted.
    let is_shared = report.detail().is_some_and(|detail| memchr::memmem::find(detail, b"DSA").is_some());
    if in_force >= guards.ceiling() || is_shared || (is_within && data_limit::other_limits_apply()) {
        return;
    }
    // Copied, because the report is written to.
    let mut postgres = [0; LENGTH / 2];
    let detail = report.detail().unwrap_or_default();
    let length = if detail.len() <= postgres.len() { detail.len() } else { 0 };
    postgres[..length].copy_from_slice(&detail[..length]);
    let is_braking = slot.brake().is_some();
    set_detail(report, |text| {
        if length > 0 {
            text.write(&postgres[..length])?;
            text.write(b" ")?;
        }
        if !is_within {
            write!(text, "This session has {} MB of private memory. ", mapped / MB)?;
        }
        if is_braking {
            let [left, limit] = [&guards.headroom, &guards.limit].map(|value| value.load(Ordering::Relaxed) / MB);
            write!(text, "Each session can have only a share of what is left: {left} MB of {limit} MB.")
        } else {
            write!(text, "pg_meminfo.session_memory_limit is {} MB.", in_force / MB)
        }
    });
    report.set_hint(if is_braking {
        SHORTAGE_HINT
    } else {
        c"Lower work_mem, process fewer rows at a time, or raise pg_meminfo.session_memory_limit."
    });
    guards.keep_refusal(mapped);
}

/// The first number in a text: of the detail of "out of memory", the size that was requested, in any language.
fn first_number(text: &[u8]) -> Option<u64> {
    let digits = text.split(|byte| !byte.is_ascii_digit()).find(|digits| !digits.is_empty())?;
    std::str::from_utf8(digits).ok()?.parse().ok()
}
