-- The C functions of pg_meminfo 1.0, as released. Never change them: databases that have not run ALTER EXTENSION UPDATE
-- still call them, whatever version the library has.

CREATE FUNCTION get_all_smaps(
    OUT pid INT,
    OUT start_address TEXT,
    OUT end_address TEXT,
    OUT permissions CHAR(4),
    OUT byte_offset TEXT,
    OUT dev_major CHAR(2),
    OUT dev_minor CHAR(2),
    OUT inode INT,
    OUT sys_path TEXT,
    OUT mem_size INT,
    OUT kernel_page_size INT,
    OUT mmu_page_size INT,
    OUT rss INT,
    OUT pss INT,
    OUT pss_dirty INT,
    OUT shared_clean INT,
    OUT shared_dirty INT,
    OUT private_clean INT,
    OUT private_dirty INT,
    OUT referenced INT,
    OUT anonymous INT,
    OUT ksm INT,
    OUT lazy_free INT,
    OUT anon_huge_pages INT,
    OUT shmem_pmd_mapped INT,
    OUT file_pmd_mapped INT,
    OUT shared_huge_tlb INT,
    OUT private_huge_tlb INT,
    OUT swap INT,
    OUT swap_pss INT,
    OUT locked INT,
    OUT thp_eligible INT,
    OUT vm_flags TEXT
) RETURNS SETOF record
AS 'MODULE_PATHNAME', 'get_smaps'
LANGUAGE C VOLATILE PARALLEL RESTRICTED COST 10000000 ROWS 25000;

CREATE FUNCTION pg_meminfo_smaps(
    IN pid int,
    OUT start_address text,
    OUT end_address text,
    OUT permissions text,
    OUT byte_offset bigint,
    OUT device text,
    OUT inode bigint,
    OUT name text,
    OUT category text,
    OUT size bigint,
    OUT kernel_page_size bigint,
    OUT mmu_page_size bigint,
    OUT rss bigint,
    OUT pss bigint,
    OUT pss_dirty bigint,
    OUT shared_clean bigint,
    OUT shared_dirty bigint,
    OUT private_clean bigint,
    OUT private_dirty bigint,
    OUT referenced bigint,
    OUT anonymous bigint,
    OUT ksm bigint,
    OUT lazy_free bigint,
    OUT anon_huge_pages bigint,
    OUT shmem_pmd_mapped bigint,
    OUT file_pmd_mapped bigint,
    OUT shared_hugetlb bigint,
    OUT private_hugetlb bigint,
    OUT swap bigint,
    OUT swap_pss bigint,
    OUT locked bigint,
    OUT thp_eligible boolean,
    OUT protection_key int,
    OUT vm_flags text
) RETURNS SETOF record
AS 'MODULE_PATHNAME', 'pg_meminfo_smaps'
LANGUAGE C VOLATILE STRICT PARALLEL RESTRICTED COST 100000 ROWS 250;

CREATE FUNCTION pg_meminfo_processes(
    OUT pid int,
    OUT backend_type text,
    OUT process_start timestamptz,
    OUT virtual_size bigint,
    OUT rss bigint,
    OUT peak_rss bigint,
    OUT rss_anon bigint,
    OUT rss_file bigint,
    OUT rss_shmem bigint,
    OUT swap bigint,
    OUT hugetlb bigint,
    OUT locked bigint,
    OUT page_tables bigint,
    OUT threads int,
    OUT oom_score int,
    OUT oom_score_adj int
) RETURNS SETOF record
AS 'MODULE_PATHNAME', 'pg_meminfo_processes'
LANGUAGE C VOLATILE PARALLEL RESTRICTED COST 100000 ROWS 100;

CREATE FUNCTION pg_meminfo_rollup(
    IN pid int,
    OUT rss bigint,
    OUT pss bigint,
    OUT pss_dirty bigint,
    OUT pss_anon bigint,
    OUT pss_file bigint,
    OUT pss_shmem bigint,
    OUT shared_clean bigint,
    OUT shared_dirty bigint,
    OUT private_clean bigint,
    OUT private_dirty bigint,
    OUT referenced bigint,
    OUT anonymous bigint,
    OUT ksm bigint,
    OUT lazy_free bigint,
    OUT anon_huge_pages bigint,
    OUT shmem_pmd_mapped bigint,
    OUT file_pmd_mapped bigint,
    OUT shared_hugetlb bigint,
    OUT private_hugetlb bigint,
    OUT swap bigint,
    OUT swap_pss bigint,
    OUT locked bigint
) RETURNS SETOF record
AS 'MODULE_PATHNAME', 'pg_meminfo_rollup'
LANGUAGE C VOLATILE STRICT PARALLEL RESTRICTED COST 50000 ROWS 1;

CREATE FUNCTION pg_meminfo_private(
    IN pid int,
    OUT category text,
    OUT mappings bigint,
    OUT virtual_size bigint,
    OUT resident bigint,
    OUT private bigint,
    OUT swap bigint
) RETURNS SETOF record
AS 'MODULE_PATHNAME', 'pg_meminfo_private'
LANGUAGE C VOLATILE STRICT PARALLEL RESTRICTED COST 50000 ROWS 7;

CREATE FUNCTION pg_meminfo_segments(
    OUT kind text,
    OUT name text,
    OUT inode bigint,
    OUT size bigint,
    OUT resident bigint,
    OUT huge boolean,
    OUT processes int,
    OUT leader_pid int
) RETURNS SETOF record
AS 'MODULE_PATHNAME', 'pg_meminfo_segments'
LANGUAGE C VOLATILE PARALLEL RESTRICTED COST 1000000 ROWS 10;

CREATE FUNCTION pg_meminfo_cluster(
    OUT processes int,
    OUT unreadable int,
    OUT private bigint,
    OUT shared_memory bigint,
    OUT shared_memory_resident bigint,
    OUT dynamic_shared_memory bigint,
    OUT page_tables bigint,
    OUT total bigint,
    OUT swap bigint,
    OUT huge_pages_status text,
    OUT huge_pages_needed bigint,
    OUT page_tables_saved bigint
) RETURNS SETOF record
AS 'MODULE_PATHNAME', 'pg_meminfo_cluster'
LANGUAGE C VOLATILE PARALLEL RESTRICTED COST 10000000 ROWS 1;

CREATE FUNCTION pg_meminfo_host(
    OUT memory_total bigint,
    OUT memory_available bigint,
    OUT swap_total bigint,
    OUT swap_free bigint,
    OUT commit_limit bigint,
    OUT committed bigint,
    OUT overcommit_memory int,
    OUT headroom bigint,
    OUT headroom_source text,
    OUT huge_page_size bigint,
    OUT huge_pages_total bigint,
    OUT huge_pages_free bigint,
    OUT huge_pages_reserved bigint,
    OUT oom_kills bigint,
    OUT dev_shm_size bigint,
    OUT dev_shm_available bigint
) RETURNS SETOF record
AS 'MODULE_PATHNAME', 'pg_meminfo_host'
LANGUAGE C VOLATILE PARALLEL RESTRICTED COST 1000 ROWS 1;

CREATE FUNCTION pg_meminfo_cgroups(
    OUT level int,
    OUT path text,
    OUT version int,
    OUT memory_limit bigint,
    OUT memory_high bigint,
    OUT usage bigint,
    OUT working_set bigint,
    OUT anon bigint,
    OUT file bigint,
    OUT shmem bigint,
    OUT kernel bigint,
    OUT swap_limit bigint,
    OUT swap_usage bigint,
    OUT unlimited boolean,
    OUT oom_kills bigint,
    OUT oom_group boolean,
    OUT psi_some_usec bigint,
    OUT psi_full_usec bigint
) RETURNS SETOF record
AS 'MODULE_PATHNAME', 'pg_meminfo_cgroups'
LANGUAGE C VOLATILE PARALLEL RESTRICTED COST 1000 ROWS 4;
