--
-- Memory by process: pg_meminfo, pg_meminfo_processes(), pg_meminfo_mappings
--

-- The postmaster and all processes in pg_stat_activity, once each
CREATE TEMP TABLE activity AS SELECT pid, backend_type, backend_start FROM pg_stat_activity;
CREATE TEMP TABLE processes AS SELECT * FROM pg_meminfo_processes();
SELECT backend_type AS missing
FROM activity JOIN pg_stat_activity USING (pid, backend_type, backend_start)
WHERE NOT EXISTS (SELECT FROM processes p WHERE p.pid = activity.pid AND p.backend_type = activity.backend_type);
SELECT count(*) = count(DISTINCT pid) AS once, count(*) FILTER (WHERE backend_type IS NULL) AS without_type FROM processes;
SELECT pid = split_part(pg_read_file('postmaster.pid'), E'\n', 1)::int AS is_postmaster FROM processes
WHERE backend_type = 'postmaster';

-- Relations between the counters
SELECT count(*) AS violations FROM processes
WHERE NOT (rss = rss_anon + rss_file + rss_shmem AND rss <= peak_rss AND rss <= virtual_size AND page_tables > 0
    AND threads >= 1 AND oom_score_adj BETWEEN -1000 AND 1000 AND oom_score BETWEEN 0 AND 2000
    AND least(swap, hugetlb, locked) >= 0);
SELECT count(*) AS violations FROM pg_meminfo
WHERE private_estimate <> rss_anon + swap + page_tables OR oom_charge <> rss + swap + page_tables;

-- Start times agree with pg_stat_activity. They are exact to 10 ms, and backend_start is set after the process starts.
SELECT count(*) AS violations FROM processes JOIN activity USING (pid)
WHERE backend_start - process_start NOT BETWEEN interval '-1 second' AND interval '1 minute';
SELECT bool_and(process_start <= now() AND process_start > pg_postmaster_start_time() - interval '1 minute') AS plausible
FROM processes;

-- Each process is joined to its session
SELECT backend_type, datname = current_database() AS datname, usename = current_user AS usename, state,
    query ~ 'FROM pg_meminfo\M' AS query, private_estimate > 1000000 AS private_estimate, rss > private_estimate - page_tables AS rss,
    backend_start = (SELECT backend_start FROM activity WHERE pid = pg_backend_pid()) AS backend_start
FROM pg_meminfo WHERE pid = pg_backend_pid();
SELECT backend_start IS NOT NULL AS has_start, datname, query FROM pg_meminfo WHERE backend_type = 'postmaster';

-- A typical query
SELECT count(*) > 4 AS rows FROM
    (SELECT pid, pg_size_pretty(private_estimate) FROM pg_meminfo ORDER BY private_estimate DESC LIMIT 10) AS top;

-- Every mapping has a category, and a process has mappings of the categories that every process needs
SELECT DISTINCT category FROM pg_meminfo_mappings
WHERE category NOT IN ('malloc', 'stack', 'jit', 'shared_memory', 'dynamic_shared_memory', 'io_uring', 'program', 'library',
    'file', 'kernel', 'other') OR category IS NULL;
SELECT category, count(*) > 0 AS has, bool_and(size > 0) AS sized
FROM pg_meminfo_mappings
WHERE pid = pg_backend_pid() AND category IN ('malloc', 'stack', 'shared_memory', 'program', 'library', 'kernel')
GROUP BY category ORDER BY category COLLATE "C";
SELECT max(size) >= pg_size_bytes(current_setting('shared_buffers')) AS main_segment, bool_and(permissions ~ 's$') AS shared
FROM pg_meminfo_mappings WHERE pid = pg_backend_pid() AND category = 'shared_memory';
-- The mappings of the postmaster, selected by backend_type
SELECT count(*) > 20 AS mappings, count(DISTINCT pid) AS processes FROM pg_meminfo_mappings WHERE backend_type = 'postmaster';

-- The rollup and the private memory of other processes
SELECT p.backend_type, count(r.*) AS rollups, bool_and(r.pss <= r.rss) AS pss
FROM pg_meminfo_processes() p, LATERAL pg_meminfo_rollup(p.pid) r
WHERE p.backend_type IN ('postmaster', 'checkpointer') GROUP BY p.backend_type ORDER BY p.backend_type;
SELECT p.backend_type, count(DISTINCT m.category) = count(*) AS once, bool_and(m.private <= m.resident) AS private,
    bool_and(m.resident <= m.virtual_size) AS resident, sum(m.private) BETWEEN 1 AND 100000000 AS sum
FROM pg_meminfo_processes() p, LATERAL pg_meminfo_private(p.pid) m
WHERE p.backend_type IN ('postmaster', 'checkpointer') GROUP BY p.backend_type ORDER BY p.backend_type;
SELECT count(*) FROM pg_meminfo_private(NULL);
SELECT count(*) FROM pg_meminfo_rollup(NULL);
-- The exact private memory does not exceed the estimate, which includes pages still shared with the postmaster. The
-- counters of the estimate may lag by some pages.
SELECT m.private_estimate + 1000000 >= (SELECT sum(private) FROM pg_meminfo_private(m.pid) WHERE category = 'malloc') AS bound
FROM pg_meminfo m WHERE backend_type = 'checkpointer';

-- The main segment is listed once, and all processes are attached
SELECT kind, size >= pg_size_bytes(current_setting('shared_buffers')) AS size, resident BETWEEN 1000000 AND size AS resident,
    processes >= 4 AS processes, leader_pid
FROM pg_meminfo_segments WHERE kind = 'main';
SELECT count(*) = count(DISTINCT (name, inode)) AS once, bool_and(resident <= size) AS resident,
    bool_and(processes > 0) AS processes FROM pg_meminfo_segments;
