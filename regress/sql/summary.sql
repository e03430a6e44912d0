--
-- smap_summary
--

-- One row for each process
SELECT count(*) = count(DISTINCT pid) AS one_row_each FROM smap_summary;
SELECT count(*) AS own FROM smap_summary WHERE pid = pg_backend_pid();
SELECT count(*) AS nobody FROM smap_summary WHERE pid = 0;

-- The sums are right. A sleeping process does not change, so smap_summary must agree with the contract read before and
-- after. But the checkpointer's PSS changes with other processes of the machine, so retry until all three agree.
DO $$
DECLARE
    checkpointer int := (SELECT pid FROM pg_stat_activity WHERE backend_type = 'checkpointer');
    before record;
    summary record;
    after record;
BEGIN
    WHILE clock_timestamp() < now() + interval '1 minute' LOOP
        before := NULL;
        SELECT pid, sum(mem_size), max(kernel_page_size)::bigint, max(mmu_page_size)::bigint, sum(rss), sum(pss),
            sum(pss_dirty), sum(shared_clean), sum(shared_dirty), sum(private_clean), sum(private_dirty),
            sum(referenced), sum(anonymous), sum(ksm), sum(lazy_free), sum(anon_huge_pages), sum(shmem_pmd_mapped),
            sum(file_pmd_mapped), sum(shared_huge_tlb), sum(private_huge_tlb), sum(swap), sum(swap_pss), sum(locked),
            sum(thp_eligible)
        INTO before FROM get_all_smaps() WHERE pid = checkpointer GROUP BY pid;
        SELECT * INTO summary FROM smap_summary WHERE pid = checkpointer;
        SELECT pid, sum(mem_size), max(kernel_page_size)::bigint, max(mmu_page_size)::bigint, sum(rss), sum(pss),
            sum(pss_dirty), sum(shared_clean), sum(shared_dirty), sum(private_clean), sum(private_dirty),
            sum(referenced), sum(anonymous), sum(ksm), sum(lazy_free), sum(anon_huge_pages), sum(shmem_pmd_mapped),
            sum(file_pmd_mapped), sum(shared_huge_tlb), sum(private_huge_tlb), sum(swap), sum(swap_pss), sum(locked),
            sum(thp_eligible)
        INTO after FROM get_all_smaps() WHERE pid = checkpointer GROUP BY pid;
        EXIT WHEN before = after AND before = summary;
    END LOOP;
    IF before IS DISTINCT FROM after THEN
        RAISE EXCEPTION 'the checkpointer does not hold still';
    END IF;
    RAISE NOTICE 'same sums: %', before = summary;
END
$$;

-- A query reads only the processes that it asks for. Returns the number of times that it calls the function.
CREATE FUNCTION calls(query text) RETURNS numeric LANGUAGE plpgsql AS $$
DECLARE
    plan jsonb;
BEGIN
    EXECUTE 'EXPLAIN (ANALYZE, FORMAT JSON) ' || query INTO plan;
    RETURN (SELECT sum((node -> 'Actual Loops')::numeric)
            FROM jsonb_path_query(plan, 'strict $.**?(@."Function Name" == "pg_meminfo_smaps")') AS node);
END
$$;
SELECT calls('SELECT * FROM smap_summary') = count(*) AS all_of_them FROM pg_stat_activity;
SELECT calls('SELECT * FROM smap_summary WHERE pid = pg_backend_pid()');
SELECT calls(format('SELECT * FROM smap_summary WHERE pid = %s', pg_backend_pid()));
SELECT calls('SELECT * FROM smap_summary WHERE pid = 0');
SELECT calls('SELECT * FROM smap_summary WHERE pid IN (0, pg_backend_pid())');
SELECT calls('SELECT * FROM pg_stat_activity JOIN smap_summary USING (pid) WHERE pid = pg_backend_pid()');
SELECT calls($$SELECT * FROM pg_stat_activity JOIN smap_summary USING (pid) WHERE backend_type = 'checkpointer'$$);
SELECT calls($$SELECT * FROM smap_summary
               WHERE pid IN (SELECT pid FROM pg_stat_activity WHERE backend_type = 'checkpointer')$$);
SELECT calls('SELECT * FROM (VALUES (pg_backend_pid()), (0)) AS v (pid), LATERAL (SELECT rss FROM smap_summary WHERE pid = v.pid) s');
DROP FUNCTION calls;
