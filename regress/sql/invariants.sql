--
-- Invariants of every row on any machine
--
CREATE TEMP TABLE contract AS SELECT * FROM get_all_smaps();
CREATE TEMP TABLE mappings AS
    SELECT a.pid, m.* FROM pg_stat_activity a, LATERAL pg_meminfo_smaps(a.pid) m;

SELECT count(*) > 0 AS has_rows FROM contract;
SELECT count(*) > 0 AS has_rows FROM mappings;

-- A page is resident at most once in a mapping, and its proportional share is not larger than the page
SELECT count(*) AS violations FROM contract
WHERE NOT (pss <= rss AND rss <= mem_size AND pss_dirty <= pss AND swap_pss <= swap AND referenced <= rss);
SELECT count(*) AS violations FROM mappings
WHERE NOT (pss <= rss AND rss <= size AND pss_dirty <= pss AND swap_pss <= swap AND referenced <= rss);

-- Every resident page is either clean or dirty, and either shared or private
SELECT count(*) AS violations FROM contract
WHERE rss <> shared_clean + shared_dirty + private_clean + private_dirty;
SELECT count(*) AS violations FROM mappings
WHERE rss <> shared_clean + shared_dirty + private_clean + private_dirty;

-- Sizes agree with the addresses, are whole pages, and are not negative
CREATE FUNCTION address(hex text) RETURNS numeric LANGUAGE sql IMMUTABLE AS $$
    SELECT sum(('x' || lpad(digit, 8, '0'))::bit(32)::int * 16::numeric ^ (length(hex) - nth))
    FROM unnest(string_to_array(hex, NULL)) WITH ORDINALITY AS t (digit, nth)
$$;
SELECT count(*) AS violations FROM contract
WHERE (address(end_address) - address(start_address)) / 1024 <> mem_size
    OR mem_size % kernel_page_size <> 0 OR rss % mmu_page_size <> 0 OR least(
        mem_size, rss, pss, pss_dirty, shared_clean, shared_dirty, private_clean, private_dirty, referenced, anonymous,
        ksm, lazy_free, anon_huge_pages, shmem_pmd_mapped, file_pmd_mapped, shared_huge_tlb, private_huge_tlb, swap,
        swap_pss, locked) < 0;
SELECT count(*) AS violations FROM mappings
WHERE address(end_address) - address(start_address) <> size;

-- Texts have the form in which the kernel prints them
SELECT count(*) AS violations FROM contract
WHERE start_address !~ '^[0-9a-f]{8,16}$' OR end_address !~ '^[0-9a-f]{8,16}$' OR permissions !~ '^[r-][w-][x-][sp]$'
    OR byte_offset !~ '^[0-9a-f]{8,16}$' OR dev_major !~ '^[0-9a-f]{2,3}$' OR dev_minor !~ '^[0-9a-f]{2,5}$'
    OR thp_eligible NOT IN (0, 1) OR vm_flags !~ '^([^ ]+( [^ ]+)*)?$'
    OR pid IS NULL OR sys_path IS NULL;

-- No mapping is shown twice, in processes that do not change their mappings while they are read
SELECT count(*) AS violations
FROM (SELECT pid, start_address FROM contract GROUP BY pid, start_address HAVING count(*) > 1) AS twice
    JOIN pg_stat_activity USING (pid)
WHERE backend_type IN ('checkpointer', 'background writer', 'walwriter') OR pid = pg_backend_pid();

-- get_all_smaps() and pg_meminfo_smaps() show the same file in different units. Compare those of the
-- background writer's program, because they do not change.
SELECT count(*) > 0 AS found, bool_and(c.mem_size * 1024 = m.size) AS size, bool_and(c.inode = m.inode) AS inode,
    bool_and(c.dev_major || ':' || c.dev_minor = m.device) AS device, bool_and(c.sys_path = m.name) AS name,
    bool_and(c.permissions = m.permissions) AS permissions, bool_and(c.vm_flags = m.vm_flags) AS vm_flags,
    bool_and(address(c.byte_offset) = m.byte_offset) AS byte_offset,
    bool_and(c.kernel_page_size * 1024 = m.kernel_page_size) AS kernel_page_size,
    bool_and(c.thp_eligible::boolean = m.thp_eligible) AS thp_eligible
FROM contract c JOIN mappings m USING (pid, start_address, end_address)
WHERE pid = (SELECT pid FROM pg_stat_activity WHERE backend_type = 'background writer') AND name ~ '/postgres$';

-- The name of an anonymous mapping is '' in get_all_smaps() and NULL in pg_meminfo_smaps()
SELECT count(*) > 0 AS found, bool_and(m.name IS NULL) AS is_null
FROM contract c JOIN mappings m USING (pid, start_address, end_address)
WHERE c.sys_path = '';
SELECT count(*) AS empty FROM mappings WHERE name = '';

DROP FUNCTION address;
