-- Where the cluster's memory is, as folded stacks in kB, for a flame graph:
--
--   psql -XAtq -f docs/flamegraph.sql | inferno-flamegraph --countname kB --nametype '' --title 'Memory' >memory.svg
--
-- All of it together is the total of pg_meminfo_cluster, and what is swapped; without processes that cannot be read. In a frame, a semicolon, a backslash and control
-- characters are written as JSON writes them.
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
