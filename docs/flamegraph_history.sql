-- Where the cluster's private memory was at a moment of the past, as folded stacks in kB, for a flame graph:
--
--   psql -XAtq -v at='2026-11-28 03:00' -f docs/flamegraph_history.sql | inferno-flamegraph --countname kB >past.svg
--
-- The moment is that of the last sample within the minute before it. The processes that the sample does not name are
-- together in one stack. In the name of a frame, semicolons, backslashes and control characters are escaped as in JSON.
WITH sample AS MATERIALIZED (
    SELECT h.at, h.private
    FROM pg_meminfo_history(:'at'::timestamptz - interval '1 min', :'at') h
    ORDER BY h.at DESC
    LIMIT 1
), sessions AS MATERIALIZED (
    SELECT ARRAY[s.backend_type, s.datname, s.application_name, s.pid::text, left(s.query, 60)] AS frames, s.private
    FROM sample, LATERAL pg_meminfo_session_history(sample.at, sample.at) s
), stacks AS (
    SELECT s.frames, s.private AS bytes
    FROM sessions s
    UNION ALL
    SELECT ARRAY['other processes'], sample.private - (SELECT coalesce(sum(s.private), 0) FROM sessions s)
    FROM sample
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
