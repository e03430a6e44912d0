--
-- smap_summary
--

-- One row for each process
SELECT count(*) = count(DISTINCT pid) AS one_row_each FROM smap_summary;
SELECT count(*) AS own FROM smap_summary WHERE pid = pg_backend_pid();
SELECT count(*) AS nobody FROM smap_summary WHERE pid = 0;

-- It adds up. A process that sleeps has the same sums whoever adds them: the checkpointer's, with the new surface between
-- two looks of the contract, as often as it takes until the two are equal.
DO $$
DECLARE
    checkpointer int := (SELECT pid FROM pg_stat_activity WHERE backend_type = 'checkpointer');
    before record;
    summary record;
    after record;
BEGIN
    FOR attempt IN 1..100 LOOP
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
        EXIT WHEN before = after;
    END LOOP;
    IF before IS DISTINCT FROM after THEN
        RAISE EXCEPTION 'the checkpointer does not hold still';
    END IF;
    RAISE NOTICE 'same sums: %', before = summary;
END
$$;

-- A condition on pid reaches the scan of pg_stat_activity, and the function runs once for what is left
EXPLAIN (COSTS OFF) SELECT rss FROM smap_summary WHERE pid = 1;

-- Also when the pid is the outer side's
EXPLAIN (COSTS OFF) SELECT s.rss FROM (VALUES (1), (2)) AS v (pid), LATERAL (SELECT rss FROM smap_summary WHERE pid = v.pid) s;
