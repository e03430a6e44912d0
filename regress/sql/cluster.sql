--
-- The whole cluster, the machine, and the cgroups
--

-- One row, in which total is the sum of its parts
SELECT processes >= 5 AS processes, unreadable, total = private + shared_memory_resident + dynamic_shared_memory + page_tables AS total,
    private > 1000000 AS private, shared_memory >= pg_size_bytes(current_setting('shared_buffers')) AS shared_memory,
    shared_memory_resident BETWEEN 1000000 AND shared_memory AS resident, page_tables > 100000 AS page_tables,
    page_tables_saved < page_tables AS saved, swap >= 0 AS swap, huge_pages_status IN ('on', 'off') AS status,
    huge_pages_needed = nullif(current_setting('shared_memory_size_in_huge_pages'), '-1')::bigint AS needed
FROM pg_meminfo_cluster;
-- The main segment as in pg_meminfo_segments
SELECT c.shared_memory = s.size AS size, c.huge_pages_status = CASE WHEN s.huge THEN 'on' ELSE 'off' END AS status
FROM pg_meminfo_cluster c, pg_meminfo_segments s WHERE s.kind = 'main';
-- The same value as the setting huge_pages_status, which Postgres has since version 17
SELECT huge_pages_status = coalesce(current_setting('huge_pages_status', true), huge_pages_status) AS status FROM pg_meminfo_cluster;

-- A value that the machine or the container does not show is NULL
SELECT memory_available <= memory_total AS memory, swap_free <= swap_total AS swap, overcommit_memory IN (0, 1, 2) AS overcommit,
    coalesce(headroom <= memory_available, true) AS headroom,
    coalesce(headroom_source = 'host' OR headroom_source IN (SELECT path FROM pg_meminfo_cgroups), true) AS source,
    huge_pages_reserved <= huge_pages_free AND huge_pages_free <= huge_pages_total AS huge_pages,
    coalesce(dev_shm_available <= dev_shm_size, true) AS dev_shm, coalesce(oom_kills >= 0, true) AS oom_kills
FROM pg_meminfo_host;

-- There may be no cgroups
SELECT count(*) AS violations FROM pg_meminfo_cgroups
WHERE NOT (working_set <= usage AND unlimited = (memory_limit IS NULL) AND version IN (1, 2) AND path ~ '^/')
    OR NOT (psi_full_usec <= psi_some_usec);
SELECT coalesce(min(level) = 0 AND max(level) = count(*) - 1 AND count(DISTINCT level) = count(*), true) AS levels FROM pg_meminfo_cgroups;
