-- Where the cluster's memory is, as folded stacks in kB, for a flame graph:
--
--   psql -XAtq -f docs/flamegraph.sql | inferno-flamegraph --countname kB --nametype '' --title 'Memory' >memory.svg
--
-- Below malloc, the five processes that hold most of it have their memory contexts. In the name of a frame, semicolons,
-- backslashes and control characters are escaped as in JSON. The sum of all stacks is pg_meminfo_cluster.total plus
-- swapped memory, without processes that cannot be read, and without stacks of less than 1 kB. With psql -v pid=123 it
-- is only the private memory and the page tables of this process.
\if :{?pid}
\else
    \set pid ''
\endif
WITH RECURSIVE processes AS MATERIALIZED (
    SELECT m.pid, ARRAY[m.backend_type, m.datname, nullif(m.application_name, ''), m.pid::text] AS frames, m.page_tables
    FROM pg_meminfo m
    WHERE :'pid' IN ('', m.pid::text)
), private AS MATERIALIZED (
    SELECT m.pid, p.category, m.frames || p.category AS frames, p.private + p.swap AS bytes
    FROM processes m, LATERAL pg_meminfo_private(m.pid) p
), opened AS MATERIALIZED (
    SELECT l.pid, l.frames, l.bytes AS malloc, c.id, c.parent_id, c.name, c.total_bytes,
           sum(c.total_bytes) OVER (PARTITION BY l.pid) AS in_contexts
    FROM (SELECT * FROM private WHERE category = 'malloc' ORDER BY bytes DESC LIMIT 5) l,
         LATERAL pg_meminfo_contexts(l.pid) c
), contexts AS (
    SELECT o.pid, o.id, o.frames || o.name AS frames, o.total_bytes, o.malloc, o.in_contexts
    FROM opened o
    WHERE o.parent_id IS NULL
    UNION ALL
    SELECT o.pid, o.id, c.frames || o.name, o.total_bytes, o.malloc, o.in_contexts
    FROM contexts c, opened o
    WHERE o.pid = c.pid AND o.parent_id = c.id
), stacks AS (
    SELECT p.frames, p.bytes
    FROM private p
    WHERE p.category <> 'malloc' OR p.pid NOT IN (SELECT o.pid FROM opened o)
    UNION ALL
    -- Contexts can have more than malloc, because some of their memory has never been touched.
    SELECT c.frames, sum(c.total_bytes * least(1, c.malloc / c.in_contexts))
    FROM contexts c
    GROUP BY c.frames
    UNION ALL
    SELECT DISTINCT o.frames || 'not in contexts'::text, o.malloc - o.in_contexts
    FROM opened o
    UNION ALL
    SELECT m.frames || 'page tables'::text, m.page_tables
    FROM processes m
    UNION ALL
    SELECT ARRAY['shared memory', s.kind, nullif(s.name, ''), s.leader_pid::text], s.resident
    FROM pg_meminfo_segments s
    WHERE :'pid' = ''
)
SELECT array_to_string(ARRAY(
           SELECT replace(replace(substr(f.json, 2, length(f.json) - 2), ';', '\u003b'), chr(127), '\u007f')
           FROM unnest(s.frames) WITH ORDINALITY AS u (frame, nth), LATERAL (SELECT to_json(u.frame)::text AS json) f
           WHERE u.frame IS NOT NULL
           ORDER BY u.nth
       ), ';') || ' ' || div(s.bytes, 1024) AS stack
FROM stacks s
WHERE s.bytes >= 1024
ORDER BY s.frames;
