-- Where the cluster's memory is, as folded stacks in kB, for a flame graph:
--
--   psql -XAtq -f docs/flamegraph.sql | inferno-flamegraph --countname kB --nametype '' --title 'Memory' >memory.svg
--
-- The sum of all stacks is pg_meminfo_cluster.total plus swapped memory, without processes that cannot be read. In the name
-- of a frame, semicolons, backslashes and control characters are escaped as in JSON.
WITH stacks AS (
    SELECT ARRAY[m.backend_type, m.datname, nullif(m.application_name, ''), m.pid::text, p.category] AS frames,
           p.private + p.swap AS bytes
    FROM pg_meminfo m, LATERAL pg_meminfo_private(m.pid) p
    UNION ALL
    SELECT ARRAY[m.backend_type, m.datname, nullif(m.application_name, ''), m.pid::text, 'page tables'], m.page_tables
    FROM pg_meminfo m
    UNION ALL
    SELECT ARRAY['shared memory', s.kind, nullif(s.name, ''), s.leader_pid::text], s.resident
    FROM pg_meminfo_segments s
)
SELECT array_to_string(ARRAY(
           SELECT replace(replace(substr(f.json, 2, length(f.json) - 2), ';', '\u003b'), chr(127), '\u007f')
           FROM unnest(s.frames) WITH ORDINALITY AS u (frame, nth), LATERAL (SELECT to_json(u.frame)::text AS json) f
           WHERE u.frame IS NOT NULL
           ORDER BY u.nth
       ), ';') || ' ' || s.bytes / 1024 AS stack
FROM stacks s
WHERE s.bytes >= 1024
ORDER BY s.frames;
