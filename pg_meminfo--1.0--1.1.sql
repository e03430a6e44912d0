/* pg_meminfo--1.0--1.1.sql */

-- complain if script is sourced in psql, rather than via ALTER EXTENSION
\echo Use "ALTER EXTENSION pg_meminfo UPDATE TO '1.1'" to load this file. \quit

-- pg_meminfo_contexts(): memory contexts of one process
CREATE FUNCTION pg_meminfo_contexts(
    IN pid int,
    OUT id int,
    OUT parent_id int,
    OUT name text,
    OUT ident text,
    OUT type text,
    OUT level int,
    OUT path int[],
    OUT total_bytes bigint,
    OUT tree_bytes bigint
) RETURNS SETOF record
AS 'MODULE_PATHNAME', 'pg_meminfo_contexts'
LANGUAGE C VOLATILE STRICT PARALLEL RESTRICTED COST 10000 ROWS 200;
COMMENT ON FUNCTION pg_meminfo_contexts(int) IS
'Memory contexts of one process of the cluster, read from its memory while it goes on running; no rows for any other
pid. All rows describe one moment. The process is neither stopped nor asked, so a busy one can be read, too. An idle
process is read in about 0.2 ms, and 1 to 2 ms more for each 1,000 contexts.
If the contexts change during all of 20,000 attempts or for two seconds, if there are more than a million, or if the
kernel does not let the server trace the process, there are no rows, and a WARNING says why. Needs a superuser or a
member of pg_read_all_stats, because an identifier can be the text of a statement.
The columns name, ident, type, level, path and total_bytes are those of pg_backend_memory_contexts in PostgreSQL 18.

id (number): the context''s number in this result, from 1; a parent comes before its children
parent_id (number): id of its parent; NULL for TopMemoryContext
name (text): its name; that of a hash table''s context is the hash table''s
ident (text): its identifier, such as the text of a prepared statement or the name of an index; at most 1,023 bytes;
  NULL if it has none
type (text): AllocSet, Generation, Slab or Bump
level (number): its depth; 1 for TopMemoryContext
path (numbers): the ids from TopMemoryContext to this context; NULL below level 1,000
total_bytes (bytes): allocated for this context alone, used or not (MemoryContextData.mem_allocated)
tree_bytes (bytes): allocated for this context and all contexts below it';

-- pg_meminfo_statements(): what statements have needed at their peaks
CREATE FUNCTION pg_meminfo_statements(
    OUT userid oid,
    OUT dbid oid,
    OUT queryid bigint,
    OUT toplevel boolean,
    OUT heavy_calls bigint,
    OUT errors bigint,
    OUT peak_private bigint,
    OUT peak_private_at_most bigint,
    OUT growth bigint,
    OUT growth_planning bigint,
    OUT kept bigint,
    OUT workers_peak bigint,
    OUT worker_peak_max bigint,
    OUT major_faults bigint,
    OUT worst_at timestamptz,
    OUT worst_pid int,
    OUT worst_query text,
    OUT stats_since timestamptz
) RETURNS SETOF record
AS 'MODULE_PATHNAME', 'pg_meminfo_statements'
LANGUAGE C VOLATILE STRICT PARALLEL SAFE COST 1000 ROWS 500;
COMMENT ON FUNCTION pg_meminfo_statements() IS
'Statements that have grown by 1 MB or more, and how much private memory they needed at their peaks, measured by the
process that executed them. Needs the library in shared_preload_libraries; otherwise, an ERROR says so. Keyed like
pg_stat_statements. At most pg_meminfo.max_statements; if there are more, those that have grown least are removed.
Kept over a restart, but not over a crash. Needs a superuser or a member of pg_read_all_stats.
Figures below 1 MB are not exact. Private memory does not include shared memory, huge pages of hugetlbfs, and what is
in swap.

userid (identifier): the user who executed it
dbid (identifier): the database
queryid (identifier): as in pg_stat_statements and pg_stat_activity; NULL for work that has none, such as autovacuum
toplevel (flag): whether the client executed it, not another statement
heavy_calls (number): calls that have grown by 1 MB or more
errors (number): how many of them ended by an ERROR
peak_private (bytes): largest private memory of the session while it ran, at least
peak_private_at_most (bytes): the same, at most; the kernel tells only the peak of all resident memory (ru_maxrss), so
  shared buffers touched for the first time leave a range
growth (bytes): largest growth of a call over what the session held when it was started or planned
growth_planning (bytes): largest growth while it was planned, for calls that have grown
kept (bytes): the most that the session still held more when its next statement started; 0 until then
workers_peak (bytes): largest growth of all parallel workers of a call together, each at its own peak
worker_peak_max (bytes): largest growth of one parallel worker
major_faults (number): page faults that waited for a disk, in calls that have grown (ru_majflt)
worst_at (time): end of the call with the largest growth
worst_pid (identifier): process that executed it
worst_query (text): its text, with its values, cut at track_activity_query_size or 4 kB; NULL if it failed inside
  another statement
stats_since (time): when the statement got into the list';

CREATE VIEW pg_meminfo_statements AS
    SELECT s.userid, s.dbid, s.queryid, s.toplevel, s.heavy_calls, s.errors, s.peak_private, s.peak_private_at_most,
           s.growth, s.growth_planning, s.kept, s.workers_peak, s.worker_peak_max, s.major_faults, s.worst_at,
           s.worst_pid, s.worst_query, s.stats_since
    FROM pg_meminfo_statements() s;

GRANT SELECT ON pg_meminfo_statements TO PUBLIC;


-- pg_meminfo_statements_info(): about the list itself
CREATE FUNCTION pg_meminfo_statements_info(
    OUT entries bigint,
    OUT dealloc bigint,
    OUT stats_reset timestamptz,
    OUT method text
) RETURNS SETOF record
AS 'MODULE_PATHNAME', 'pg_meminfo_statements_info'
LANGUAGE C VOLATILE STRICT PARALLEL SAFE ROWS 1;
COMMENT ON FUNCTION pg_meminfo_statements_info() IS
'One row about pg_meminfo_statements itself. Needs the library in shared_preload_libraries, and a superuser or a member
of pg_read_all_stats.

entries (number): statements in the list
dealloc (number): how many times the statements that have grown least were removed because the list was full
stats_reset (time): when all statements were last removed by pg_meminfo_statements_reset(), or the list began
method (text): clear_refs if the kernel lets a process lower its high-water mark (Linux 4.0); lifetime if not: then a
  peak is seen only if it is the highest of its session so far, or if it lasts until the statement ends';

-- pg_meminfo_statements_reset(): removes statements from the list
CREATE FUNCTION pg_meminfo_statements_reset(
    IN userid oid DEFAULT 0,
    IN dbid oid DEFAULT 0,
    IN queryid bigint DEFAULT 0
) RETURNS void
AS 'MODULE_PATHNAME', 'pg_meminfo_statements_reset'
LANGUAGE C VOLATILE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION pg_meminfo_statements_reset(oid, oid, bigint) IS
'Removes the statements of this user, database and query id from pg_meminfo_statements. 0, the default, stands for any.
Only for superusers, unless granted.';

REVOKE ALL ON FUNCTION pg_meminfo_statements_reset(oid, oid, bigint) FROM PUBLIC;

-- pg_meminfo_history(): what the cluster held in the past
CREATE FUNCTION pg_meminfo_history(
    IN starting timestamptz DEFAULT '-infinity',
    IN ending timestamptz DEFAULT 'infinity',
    OUT at timestamptz,
    OUT server_start timestamptz,
    OUT processes int,
    OUT private bigint,
    OUT headroom bigint,
    OUT memory_limit bigint,
    OUT limited_by text,
    OUT oom_kills bigint,
    OUT psi_some_usec bigint,
    OUT psi_full_usec bigint
) RETURNS SETOF record
AS 'MODULE_PATHNAME', 'pg_meminfo_history'
LANGUAGE C VOLATILE STRICT PARALLEL SAFE COST 10000 ROWS 10000;
COMMENT ON FUNCTION pg_meminfo_history(timestamptz, timestamptz) IS
'Samples of the cluster''s memory in a range of time, also from before a crash, the oldest first. Needs the library in
shared_preload_libraries; otherwise, an ERROR says so. Needs a superuser or a member of pg_read_all_stats.
There is one sample for each pg_meminfo.sample_interval, and more while memory is short. For older times, one sample a
minute is kept: that in which the cluster held most. Only the range is read from the files.

at (time): when the sample was taken
server_start (time): when the postmaster was started
processes (number): processes of the cluster, without the logger and those that are just starting
private (bytes): private memory of these processes together (resident minus shared pages of statm)
headroom (bytes): what could still be allocated without swapping, within all limits; NULL if unknown
memory_limit (bytes): the limit to which the headroom refers: that of a cgroup, or the size of RAM
limited_by (text): path of the cgroup with that limit; NULL if it is the RAM of the machine
oom_kills (number): processes that the OOM killer has killed: counter of the cgroup, or of the machine since it was
  booted; NULL if the kernel does not say
psi_some_usec (microseconds): time in which some task of the cgroup waited for memory; NULL with cgroup
  version 1
psi_full_usec (microseconds): time in which all tasks of the cgroup waited for memory; NULL with cgroup version
  1';

CREATE VIEW pg_meminfo_history AS
    SELECT h.at, h.server_start, h.processes, h.private, h.headroom, h.memory_limit, h.limited_by, h.oom_kills,
           h.psi_some_usec, h.psi_full_usec
    FROM pg_meminfo_history() h;

GRANT SELECT ON pg_meminfo_history TO PUBLIC;

-- pg_meminfo_session_history(): what its largest sessions held in the past
CREATE FUNCTION pg_meminfo_session_history(
    IN starting timestamptz DEFAULT '-infinity',
    IN ending timestamptz DEFAULT 'infinity',
    OUT at timestamptz,
    OUT pid int,
    OUT leader_pid int,
    OUT backend_start timestamptz,
    OUT backend_type text,
    OUT datname text,
    OUT usename text,
    OUT application_name text,
    OUT state text,
    OUT query_start timestamptz,
    OUT query_id bigint,
    OUT query text,
    OUT private bigint,
    OUT peak_private bigint,
    OUT growth bigint
) RETURNS SETOF record
AS 'MODULE_PATHNAME', 'pg_meminfo_session_history'
LANGUAGE C VOLATILE STRICT PARALLEL SAFE COST 10000 ROWS 100000;
COMMENT ON FUNCTION pg_meminfo_session_history(timestamptz, timestamptz) IS
'The processes of each sample of pg_meminfo_history: the 12 that held most, and of the others the 4 that grew most; of
the samples that are kept for each minute, 4. So sums over them are not those of the cluster. Needs the library in
shared_preload_libraries, and a superuser or a member of pg_read_all_stats.

at (time): when the sample was taken
pid (identifier): process
leader_pid (identifier): leader of a parallel worker; NULL for other processes
backend_start (time): when the process was started
backend_type (text): as in pg_stat_activity; postmaster for the postmaster
datname (text): database; NULL if there is none, or no longer
usename (text): role; NULL if there is none, or no longer
application_name (text): application; NULL if empty
state (text): as in pg_stat_activity; NULL if it has none
query_start (time): when the query was started; NULL if there is none
query_id (identifier): as in pg_stat_activity; NULL if there is none
query (text): beginning of the query, at most 256 bytes; NULL if there is none, or pg_meminfo.history_queries is off
private (bytes): private memory (resident minus shared pages of statm)
peak_private (bytes): largest private memory since the sample before; more than private only where the process has
  noticed that itself, for pg_meminfo_statements
growth (bytes): by how much private memory has grown since the sample before';

CREATE VIEW pg_meminfo_session_history AS
    SELECT s.at, s.pid, s.leader_pid, s.backend_start, s.backend_type, s.datname, s.usename, s.application_name,
           s.state, s.query_start, s.query_id, s.query, s.private, s.peak_private, s.growth
    FROM pg_meminfo_session_history() s;

GRANT SELECT ON pg_meminfo_session_history TO PUBLIC;

-- pg_meminfo_incidents(): what happened
CREATE FUNCTION pg_meminfo_incidents(
    OUT at timestamptz,
    OUT cause text,
    OUT pid int,
    OUT signal int,
    OUT backend_type text,
    OUT datname text,
    OUT usename text,
    OUT application_name text,
    OUT query_start timestamptz,
    OUT query_id bigint,
    OUT query text,
    OUT private bigint,
    OUT growth_per_second bigint,
    OUT sampled_at timestamptz,
    OUT largest_pid int,
    OUT largest_application_name text,
    OUT largest_private bigint,
    OUT largest_query text,
    OUT processes int,
    OUT cluster_private bigint,
    OUT headroom bigint,
    OUT memory_limit bigint,
    OUT oom_kills bigint
) RETURNS SETOF record
AS 'MODULE_PATHNAME', 'pg_meminfo_incidents'
LANGUAGE C VOLATILE STRICT PARALLEL SAFE COST 1000 ROWS 100;
COMMENT ON FUNCTION pg_meminfo_incidents() IS
'Processes of the cluster that were killed or have crashed, and thresholds that were crossed, the oldest first; kept
longer than samples. The process, the signal and the query are those of the postmaster''s message, the rest is from the
last sample before. Needs the library in shared_preload_libraries, and a superuser or a member of pg_read_all_stats.

at (time): when it happened
cause (text): oom kill; possible oom kill if it was SIGKILL and the kernel does not count kills; kill if it was SIGKILL
  and not the OOM killer; crash for another signal; server end if all ended without a shutdown; session memory and min
  headroom for the settings pg_meminfo.log_session_memory and pg_meminfo.log_min_headroom; brake, cancel,
  terminate and refusal for what the guard has done, refusal also for pg_meminfo.session_memory_limit
pid (identifier): process that was killed or crossed the threshold; NULL if it is about all of them
signal (number): signal that ended it; NULL if none did
backend_type (text): as in pg_stat_activity; this and the next five columns are NULL if no sample has the process
datname (text): database
usename (text): role
application_name (text): application
query_start (time): when its query was started
query_id (identifier): query id
query (text): its query, as the postmaster or the last sample has it; NULL if there is none, or
  pg_meminfo.history_queries is off
private (bytes): private memory that it held in the last sample; for session memory, cancel and terminate together with
  its parallel workers; for refusal what it had mapped
growth_per_second (bytes): how fast it had grown within the last 5 seconds before that sample; NULL if only one sample
  has it
sampled_at (time): when the last sample was taken; NULL if there was none within a minute
largest_pid (identifier): process that held most in that sample, which need not be the one that was killed
largest_application_name (text): its application
largest_private (bytes): private memory that it held
largest_query (text): its query
processes (number): processes of the cluster in that sample
cluster_private (bytes): private memory of all of them
headroom (bytes): what could still be allocated then
memory_limit (bytes): the limit to which the headroom refers
oom_kills (number): processes that the OOM killer has killed from that sample until the recorder went on';

CREATE VIEW pg_meminfo_incidents AS
    SELECT i.at, i.cause, i.pid, i.signal, i.backend_type, i.datname, i.usename, i.application_name, i.query_start,
           i.query_id, i.query, i.private, i.growth_per_second, i.sampled_at, i.largest_pid,
           i.largest_application_name, i.largest_private, i.largest_query, i.processes, i.cluster_private, i.headroom,
           i.memory_limit, i.oom_kills
    FROM pg_meminfo_incidents() i;

GRANT SELECT ON pg_meminfo_incidents TO PUBLIC;

-- pg_meminfo_guard(): what the guard does now
CREATE FUNCTION pg_meminfo_guard(
    OUT recorder_pid int,
    OUT guard_action text,
    OUT min_headroom bigint,
    OUT session_memory_limit bigint,
    OUT headroom bigint,
    OUT memory_limit bigint,
    OUT is_short boolean,
    OUT share bigint,
    OUT limited int,
    OUT shortages bigint,
    OUT refusals bigint,
    OUT cancels bigint,
    OUT terminations bigint,
    OUT acted_at timestamptz,
    OUT acted_on int
) RETURNS SETOF record
AS 'MODULE_PATHNAME', 'pg_meminfo_guard'
LANGUAGE C VOLATILE STRICT PARALLEL SAFE COST 10 ROWS 1;
COMMENT ON FUNCTION pg_meminfo_guard() IS
'What the guard does now: one row. Counters are from the start of the server, or its restart after a crash. Needs
pg_meminfo in shared_preload_libraries, and a superuser or a member of pg_read_all_stats.

recorder_pid (identifier): process that samples memory and runs the guard; NULL if there is none
guard_action (text): pg_meminfo.guard_action; NULL if nothing is done, because pg_meminfo.min_headroom is -1 or 0, or no
  sample has been taken yet
min_headroom (bytes): pg_meminfo.min_headroom; NULL as above
session_memory_limit (bytes): pg_meminfo.session_memory_limit in this session; NULL if there is none
headroom (bytes): what could still be allocated at the last sample, without swapping
memory_limit (bytes): the limit to which the headroom refers
is_short (flag): whether memory is short: since less than min_headroom was left, until a quarter more is; NULL as above
share (bytes): how much more each session may map now; NULL if sessions are not limited
limited (number): client backends and parallel workers that are limited so
shortages (number): how often memory has become short
refusals (number): ERRORs and FATALs "out of memory" because of session_memory_limit or the share
cancels (number): statements that the guard has canceled
terminations (number): sessions that the guard has terminated
acted_at (time): when a session was last refused memory, canceled or terminated, or memory last became short, as the
  recorder has noted it; NULL if never
acted_on (identifier): the process; NULL if it was all of them';

CREATE VIEW pg_meminfo_guard AS
    SELECT g.recorder_pid, g.guard_action, g.min_headroom, g.session_memory_limit, g.headroom, g.memory_limit, g.is_short,
           g.share, g.limited, g.shortages, g.refusals, g.cancels, g.terminations, g.acted_at, g.acted_on
    FROM pg_meminfo_guard() g;

GRANT SELECT ON pg_meminfo_guard TO PUBLIC;

-- The comments of the new views and their columns, as those of the other views: from the comments of the functions below
DO $$
DECLARE
    -- ALTER EXTENSION puts the extension's schema first in the search path
    extension_schema CONSTANT pg_catalog.name := pg_catalog.current_schema();
    pair record;
    line record;
BEGIN
    -- Nothing in the extension's schema can be called by what follows
    SET LOCAL search_path = pg_catalog, pg_temp;
    FOR pair IN
        SELECT format('%I.%I', extension_schema, view)::regclass AS view,
               obj_description(format('%I.%s', extension_schema, function)::regprocedure, 'pg_proc') AS text
        FROM (VALUES ('pg_meminfo_statements', 'pg_meminfo_statements()'),
                     ('pg_meminfo_history', 'pg_meminfo_history(timestamptz, timestamptz)'),
                     ('pg_meminfo_session_history', 'pg_meminfo_session_history(timestamptz, timestamptz)'),
                     ('pg_meminfo_incidents', 'pg_meminfo_incidents()'),
                     ('pg_meminfo_guard', 'pg_meminfo_guard()')) AS pairs (view, function)
    LOOP
        EXECUTE format('COMMENT ON VIEW %s IS %L', pair.view, split_part(pair.text, E'\n\n', 1));
        FOR line IN
            SELECT attname AS name, format('%s: %s', match[2], replace(match[3], E'\n  ', ' ')) AS text
            FROM regexp_matches(pair.text, E'\n([a-z0-9_]+) \\(([^)]+)\\): ([^\n]+(?:\n  [^\n]+)*)', 'g') AS match
                JOIN pg_attribute ON attrelid = pair.view AND attname = match[1]
        LOOP
            EXECUTE format('COMMENT ON COLUMN %s.%I IS %L', pair.view, line.name, line.text);
        END LOOP;
    END LOOP;
END
$$;
