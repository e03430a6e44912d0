//! `pg_meminfo_contexts(pid)`: the memory contexts of a process.

use crate::cluster::Cluster;
use crate::cluster::contexts::Contexts;
use crate::model::context_tree::{Context, MAX_TEXT, Outcome, Tree};
use crate::pg::fmgr::{Call, sql_function};
use crate::pg::rows::rows;
use crate::pg::{encoding, error, interrupts};
use crate::proc::process::Pid;
use crate::proc::ptrace_access::Obstacle;
use crate::proc::root::Root;

use super::report::unwrap_or_raise;

sql_function!("pg_meminfo_contexts" => contexts_of_process);

/// A deeper context has no path: the sum of the lengths of all paths is quadratic in the depth.
const MAX_PATH: usize = 1000;

rows! {
    /// The rows of `pg_meminfo_contexts(pid)`.
    ContextRows(id: usize, parent: Option<usize>, context: &Context, name: Option<&[u8]>, ident: Option<&[u8]>, path: Option<&[i32]>) {
        id: int4 = Some(id),
        parent_id: int4 = parent,
        name: text = name,
        ident: text = ident,
        type: text = Some(context.type_name.as_bytes()),
        level: int4 = Some(context.level),
        path: int4_array = path,
        total_bytes: int8 = Some(context.total),
        tree_bytes: int8 = Some(context.tree_total),
    }
}

fn contexts_of_process(call: &Call) {
    let mut rows = ContextRows::start(call);
    let Some(pid) = call.int4(0) else { return };
    let cluster = unwrap_or_raise(Cluster::of_this_server(Root::default(), 1));
    match unwrap_or_raise(cluster.contexts(pid, interrupts::check)) {
        Contexts::Read(Outcome::Found(tree, passes)) => {
            error::debug(|| format!("read the memory contexts of process {pid} in {passes} passes"));
            put_tree(&mut rows, &tree);
        }
        Contexts::Read(Outcome::KeptChanging(passes)) => {
            warn(pid, &format!("they changed during each of {passes} attempts"), "Try again, or at another time.");
        }
        Contexts::Read(Outcome::TooMany) => warn(pid, "there are too many", "At most a million can be shown."),
        Contexts::Denied(obstacle) => warn(pid, "permission denied", hint(obstacle)),
        Contexts::Gone => {}
    }
}

fn put_tree(rows: &mut ContextRows, tree: &Tree) {
    // The ids from the root to the context, which are one higher than the indexes.
    let mut path: Vec<i32> = Vec::new();
    for (index, context) in tree.contexts.iter().enumerate() {
        interrupts::check();
        path.truncate(context.level - 1);
        error::reserve(&mut path, 1);
        path.push(index as i32 + 1);
        let (name, ident) = match (tree.name(context), tree.ident(context)) {
            // Like pg_backend_memory_contexts: a hash table's name says more than that it is one.
            (Some(b"dynahash"), Some(ident)) => (Some(ident), None),
            (name, ident) => (name, ident),
        };
        let shown_path = (context.level <= MAX_PATH).then_some(path.as_slice());
        rows.put(
            index + 1,
            context.parent.map(|parent| parent + 1),
            context,
            name.map(whole),
            ident.map(whole),
            shown_path,
        );
    }
}

/// A text without the part of a character at its end, where it was cut.
fn whole(text: &[u8]) -> &[u8] {
    if text.len() < MAX_TEXT { text } else { encoding::clip(text) }
}

fn warn(pid: Pid, reason: &str, hint: &'static str) {
    error::warn_once_a_statement(format!("could not read the memory contexts of process {pid}: {reason}"), hint);
}

fn hint(obstacle: Obstacle) -> &'static str {
    match obstacle {
        Obstacle::NotDumpable => {
            "The process is not dumpable. Check PR_SET_DUMPABLE in prctl(2), and file capabilities of the server's \
             executable."
        }
        Obstacle::YamaRestricted => {
            "kernel.yama.ptrace_scope is 1. Add pg_meminfo to shared_preload_libraries, with pg_meminfo.set_ptracer on, or \
             set kernel.yama.ptrace_scope to 0."
        }
        Obstacle::YamaAdministrators => {
            "kernel.yama.ptrace_scope is 2 or 3, so the server may not read the memory of its processes. Set it to 1 or 0."
        }
        Obstacle::Other => {
            "The server needs the right to trace processes of its own user. Check the rules of AppArmor or SELinux, and the \
             seccomp filter of the container."
        }
    }
}
