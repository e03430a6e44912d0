--
-- The processes that have rows
--

-- Every process that is in pg_stat_activity both before and after the calls
CREATE TEMP TABLE before AS SELECT pid, backend_type, backend_start FROM pg_stat_activity;
CREATE TEMP TABLE found AS
    SELECT DISTINCT 'get_all_smaps' AS by, pid FROM get_all_smaps()
    UNION ALL SELECT DISTINCT 'pg_meminfo_smaps', pid FROM before, LATERAL pg_meminfo_smaps(pid)
    UNION ALL SELECT 'smap_summary', pid FROM smap_summary;
SELECT by, backend_type AS missing
FROM before JOIN pg_stat_activity USING (pid, backend_type, backend_start),
    (VALUES ('get_all_smaps'), ('pg_meminfo_smaps'), ('smap_summary')) AS v (by)
WHERE NOT EXISTS (SELECT FROM found WHERE found.pid = before.pid AND found.by = v.by);
SELECT by, count(*) > 4 AS ok FROM found GROUP BY by ORDER BY by;

-- No other processes
SELECT count(*) AS strangers FROM get_all_smaps() s
WHERE s.pid NOT IN (SELECT pid FROM pg_stat_activity) AND s.pid NOT IN (SELECT pid FROM before);

-- Processes that every cluster has
-- Clients are let in before these have started.
DO $$ BEGIN
    FOR n IN 1..6000 LOOP
        EXIT WHEN 3 = (SELECT count(*) FROM pg_stat_activity
            WHERE backend_type IN ('checkpointer', 'background writer', 'walwriter'));
        PERFORM pg_sleep(0.01), pg_stat_clear_snapshot();
    END LOOP;
END $$;
SELECT a.backend_type, count(*) > 0 AS has_mappings
FROM pg_stat_activity a, LATERAL pg_meminfo_smaps(a.pid)
WHERE a.backend_type IN ('checkpointer', 'background writer', 'walwriter') OR a.pid = pg_backend_pid()
GROUP BY a.backend_type ORDER BY a.backend_type;

-- The postmaster is a process of the cluster, although it is not in pg_stat_activity
SELECT count(*) > 0 AS has_mappings
FROM pg_meminfo_smaps(split_part(pg_read_file('postmaster.pid'), E'\n', 1)::int);

-- Any other pid gives no rows
SELECT count(*) FROM pg_meminfo_smaps(1);
SELECT count(*) FROM pg_meminfo_smaps(0);
SELECT count(*) FROM pg_meminfo_smaps(-1);
SELECT count(*) FROM pg_meminfo_smaps(2147483647);
SELECT count(*) FROM pg_meminfo_smaps((-2147483648)::int);
SELECT count(*) FROM pg_meminfo_smaps(NULL);

-- A backend's mappings include the executable, the stack, the heap and the main shared memory segment
SELECT bool_or(name ~ '/postgres$' AND permissions = 'r-xp') AS program,
    bool_or(name = '[stack]') AS stack,
    bool_or(name = '[heap]' OR name IS NULL AND permissions = 'rw-p') AS heap,
    bool_or(permissions = 'rw-s' AND size >= pg_size_bytes(current_setting('shared_buffers'))) AS shared_memory
FROM pg_meminfo_smaps(pg_backend_pid());
