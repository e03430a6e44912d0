/* pg_meminfo--1.0.sql */

-- complain if script is sourced in psql, rather than via CREATE EXTENSION
\echo Use "CREATE EXTENSION pg_meminfo" to load this file. \quit

--
-- Every function checks the role itself: superusers and members of
-- pg_read_all_stats. So execution is left to PUBLIC, and views over the
-- functions are granted to PUBLIC.
--

-- get_all_smaps(): the published contract, in kB
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

COMMENT ON FUNCTION get_all_smaps() IS
'Every mapping of every process in pg_stat_activity, from /proc/PID/smaps. The kernel walks the pages of shared memory
again for each process: expect milliseconds a process, and more the more of shared_buffers it has touched.
Sizes are in kB. A field that the kernel does not print is 0 or empty; a number that int4 cannot hold is NULL.

pid (identifier): process
start_address (hex address): first address of the mapping
end_address (hex address): first address behind the mapping
permissions (text): r, w, x where allowed, then p for private or s for shared
byte_offset (hex bytes): where in the file the mapping starts
dev_major (hex number): major number of the file''s device; wider than two digits where the number is
dev_minor (hex number): minor number of the file''s device; wider than two digits where the number is
inode (number): inode of the file, 0 without one; NULL beyond int4
sys_path (text): path of the file or the kernel''s name for the mapping; empty if anonymous
mem_size (kB): address space (Size)
kernel_page_size (kB): page size that the kernel uses (KernelPageSize)
mmu_page_size (kB): page size that the hardware uses (MMUPageSize)
rss (kB): in RAM, counted in full in every process that maps it (Rss); without hugetlb
pss (kB): in RAM, each page divided by the number of processes that map it (Pss); without hugetlb
pss_dirty (kB): the dirty part of pss (Pss_Dirty, Linux 6.0)
shared_clean (kB): clean pages that other processes map too (Shared_Clean)
shared_dirty (kB): dirty pages that other processes map too (Shared_Dirty)
private_clean (kB): clean pages that no other process maps (Private_Clean); in a shared mapping too
private_dirty (kB): dirty pages that no other process maps (Private_Dirty); in a shared mapping too
referenced (kB): accessed since the kernel last looked (Referenced)
anonymous (kB): not backed by a file, among it the changed pages of a private file mapping (Anonymous)
ksm (kB): merged with equal pages by KSM (KSM, Linux 6.6)
lazy_free (kB): given up with MADV_FREE and not yet taken (LazyFree, Linux 4.12)
anon_huge_pages (kB): in transparent huge pages (AnonHugePages)
shmem_pmd_mapped (kB): shared memory in huge pages (ShmemPmdMapped, Linux 4.8)
file_pmd_mapped (kB): page cache in huge pages (FilePmdMapped, Linux 5.4)
shared_huge_tlb (kB): in hugetlb pages that other processes map too (Shared_Hugetlb, Linux 4.4); not in rss
private_huge_tlb (kB): in hugetlb pages that no other process maps (Private_Hugetlb, Linux 4.4); not in rss
swap (kB): in swap (Swap); of a shared mapping the whole object''s, in every process
swap_pss (kB): in swap, each page divided by the number of processes (SwapPss, Linux 4.3); without shared mappings
locked (kB): locked in RAM by mlock, divided like pss (Locked); Linux 4.14 to 4.17 print all of pss here
thp_eligible (0 or 1): whether transparent huge pages may be used (THPeligible, Linux 5.0)
vm_flags (text): flags of the mapping, two-letter words of proc(5) (VmFlags)';

-- pg_meminfo_smaps(): the mappings of one process, in bytes
CREATE FUNCTION pg_meminfo_smaps(
    IN pid int,
    OUT start_address text,
    OUT end_address text,
    OUT permissions text,
    OUT byte_offset bigint,
    OUT device text,
    OUT inode bigint,
    OUT name text,
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

COMMENT ON FUNCTION pg_meminfo_smaps(int) IS
'Every mapping of one process of the cluster, from /proc/PID/smaps; no rows if it is not one. The kernel walks the pages
of shared memory: expect milliseconds, and more the more of shared_buffers the process has touched.
Sizes are in bytes. What the kernel does not print is NULL.

start_address (hex address): first address of the mapping
end_address (hex address): first address behind the mapping
permissions (text): r, w, x where allowed, then p for private or s for shared
byte_offset (bytes): where in the file the mapping starts; NULL beyond bigint
device (hex numbers): major and minor number of the file''s device
inode (number): inode of the file, 0 without one; NULL beyond bigint
name (text): path of the file or the kernel''s name for the mapping; NULL if anonymous
size (bytes): address space (Size)
kernel_page_size (bytes): page size that the kernel uses (KernelPageSize)
mmu_page_size (bytes): page size that the hardware uses (MMUPageSize)
rss (bytes): in RAM, counted in full in every process that maps it (Rss); without hugetlb
pss (bytes): in RAM, each page divided by the number of processes that map it (Pss); without hugetlb
pss_dirty (bytes): the dirty part of pss (Pss_Dirty, Linux 6.0)
shared_clean (bytes): clean pages that other processes map too (Shared_Clean)
shared_dirty (bytes): dirty pages that other processes map too (Shared_Dirty)
private_clean (bytes): clean pages that no other process maps (Private_Clean); in a shared mapping too
private_dirty (bytes): dirty pages that no other process maps (Private_Dirty); in a shared mapping too
referenced (bytes): accessed since the kernel last looked (Referenced)
anonymous (bytes): not backed by a file, among it the changed pages of a private file mapping (Anonymous)
ksm (bytes): merged with equal pages by KSM (KSM, Linux 6.6)
lazy_free (bytes): given up with MADV_FREE and not yet taken (LazyFree, Linux 4.12)
anon_huge_pages (bytes): in transparent huge pages (AnonHugePages)
shmem_pmd_mapped (bytes): shared memory in huge pages (ShmemPmdMapped, Linux 4.8)
file_pmd_mapped (bytes): page cache in huge pages (FilePmdMapped, Linux 5.4)
shared_hugetlb (bytes): in hugetlb pages that other processes map too (Shared_Hugetlb, Linux 4.4); not in rss
private_hugetlb (bytes): in hugetlb pages that no other process maps (Private_Hugetlb, Linux 4.4); not in rss
swap (bytes): in swap (Swap); of a shared mapping the whole object''s, in every process
swap_pss (bytes): in swap, each page divided by the number of processes (SwapPss, Linux 4.3); without shared mappings
locked (bytes): locked in RAM by mlock, divided like pss (Locked); Linux 4.14 to 4.17 print all of pss here
thp_eligible (flag): whether transparent huge pages may be used (THPeligible, Linux 5.0)
protection_key (number): memory protection key (ProtectionKey, Linux 4.6, on processors that have them)
vm_flags (text): flags of the mapping, two-letter words of proc(5) (VmFlags)';

-- smap_summary: get_all_smaps() added up for each process, in kB
--
-- Added up inside LATERAL, not by GROUP BY: so conditions on pid and joins
-- choose the processes before any of their files is read.
CREATE VIEW smap_summary AS
    SELECT a.pid,
           s.mem_size,
           s.kernel_page_size,
           s.mmu_page_size,
           s.rss,
           s.pss,
           s.pss_dirty,
           s.shared_clean,
           s.shared_dirty,
           s.private_clean,
           s.private_dirty,
           s.referenced,
           s.anonymous,
           s.ksm,
           s.lazy_free,
           s.anon_huge_pages,
           s.shmem_pmd_mapped,
           s.file_pmd_mapped,
           s.shared_huge_tlb,
           s.private_huge_tlb,
           s.swap,
           s.swap_pss,
           s.locked,
           s.thp_eligible
    FROM pg_stat_activity a, LATERAL (
        SELECT (coalesce(sum(m.size), 0) / 1024)::bigint AS mem_size,
               coalesce(max(m.kernel_page_size), 0) / 1024 AS kernel_page_size,
               coalesce(max(m.mmu_page_size), 0) / 1024 AS mmu_page_size,
               (coalesce(sum(m.rss), 0) / 1024)::bigint AS rss,
               (coalesce(sum(m.pss), 0) / 1024)::bigint AS pss,
               (coalesce(sum(m.pss_dirty), 0) / 1024)::bigint AS pss_dirty,
               (coalesce(sum(m.shared_clean), 0) / 1024)::bigint AS shared_clean,
               (coalesce(sum(m.shared_dirty), 0) / 1024)::bigint AS shared_dirty,
               (coalesce(sum(m.private_clean), 0) / 1024)::bigint AS private_clean,
               (coalesce(sum(m.private_dirty), 0) / 1024)::bigint AS private_dirty,
               (coalesce(sum(m.referenced), 0) / 1024)::bigint AS referenced,
               (coalesce(sum(m.anonymous), 0) / 1024)::bigint AS anonymous,
               (coalesce(sum(m.ksm), 0) / 1024)::bigint AS ksm,
               (coalesce(sum(m.lazy_free), 0) / 1024)::bigint AS lazy_free,
               (coalesce(sum(m.anon_huge_pages), 0) / 1024)::bigint AS anon_huge_pages,
               (coalesce(sum(m.shmem_pmd_mapped), 0) / 1024)::bigint AS shmem_pmd_mapped,
               (coalesce(sum(m.file_pmd_mapped), 0) / 1024)::bigint AS file_pmd_mapped,
               (coalesce(sum(m.shared_hugetlb), 0) / 1024)::bigint AS shared_huge_tlb,
               (coalesce(sum(m.private_hugetlb), 0) / 1024)::bigint AS private_huge_tlb,
               (coalesce(sum(m.swap), 0) / 1024)::bigint AS swap,
               (coalesce(sum(m.swap_pss), 0) / 1024)::bigint AS swap_pss,
               (coalesce(sum(m.locked), 0) / 1024)::bigint AS locked,
               count(*) FILTER (WHERE m.thp_eligible) AS thp_eligible
        FROM pg_meminfo_smaps(a.pid) m
        HAVING count(*) > 0
    ) s;

GRANT SELECT ON smap_summary TO PUBLIC;

COMMENT ON VIEW smap_summary IS
'Memory of each process in pg_stat_activity, its mappings added up, in kB. With a condition on pid, only the files of
those processes are read. The cost for each is that of pg_meminfo_smaps().';
COMMENT ON COLUMN smap_summary.pid IS 'identifier: process';
COMMENT ON COLUMN smap_summary.mem_size IS 'kB: address space (Size)';
COMMENT ON COLUMN smap_summary.kernel_page_size IS 'kB: largest page size that the kernel uses (KernelPageSize)';
COMMENT ON COLUMN smap_summary.mmu_page_size IS 'kB: largest page size that the hardware uses (MMUPageSize)';
COMMENT ON COLUMN smap_summary.rss IS 'kB: in RAM, counted in full in every process that maps it (Rss); without hugetlb';
COMMENT ON COLUMN smap_summary.pss IS 'kB: in RAM, each page divided by the number of processes that map it (Pss); without hugetlb';
COMMENT ON COLUMN smap_summary.pss_dirty IS 'kB: the dirty part of pss (Pss_Dirty, Linux 6.0)';
COMMENT ON COLUMN smap_summary.shared_clean IS 'kB: clean pages that other processes map too (Shared_Clean)';
COMMENT ON COLUMN smap_summary.shared_dirty IS 'kB: dirty pages that other processes map too (Shared_Dirty)';
COMMENT ON COLUMN smap_summary.private_clean IS 'kB: clean pages that no other process maps (Private_Clean); in a shared mapping too';
COMMENT ON COLUMN smap_summary.private_dirty IS 'kB: dirty pages that no other process maps (Private_Dirty); in a shared mapping too';
COMMENT ON COLUMN smap_summary.referenced IS 'kB: accessed since the kernel last looked (Referenced)';
COMMENT ON COLUMN smap_summary.anonymous IS 'kB: not backed by a file, among it the changed pages of a private file mapping (Anonymous)';
COMMENT ON COLUMN smap_summary.ksm IS 'kB: merged with equal pages by KSM (KSM, Linux 6.6)';
COMMENT ON COLUMN smap_summary.lazy_free IS 'kB: given up with MADV_FREE and not yet taken (LazyFree, Linux 4.12)';
COMMENT ON COLUMN smap_summary.anon_huge_pages IS 'kB: in transparent huge pages (AnonHugePages)';
COMMENT ON COLUMN smap_summary.shmem_pmd_mapped IS 'kB: shared memory in huge pages (ShmemPmdMapped, Linux 4.8)';
COMMENT ON COLUMN smap_summary.file_pmd_mapped IS 'kB: page cache in huge pages (FilePmdMapped, Linux 5.4)';
COMMENT ON COLUMN smap_summary.shared_huge_tlb IS 'kB: in hugetlb pages that other processes map too (Shared_Hugetlb, Linux 4.4); not in rss';
COMMENT ON COLUMN smap_summary.private_huge_tlb IS 'kB: in hugetlb pages that no other process maps (Private_Hugetlb, Linux 4.4); not in rss';
COMMENT ON COLUMN smap_summary.swap IS 'kB: in swap (Swap); of a shared mapping the whole object''s, in every process';
COMMENT ON COLUMN smap_summary.swap_pss IS 'kB: in swap, each page divided by the number of processes (SwapPss, Linux 4.3); without shared mappings';
COMMENT ON COLUMN smap_summary.locked IS 'kB: locked in RAM by mlock, divided like pss (Locked); Linux 4.14 to 4.17 print all of pss here';
COMMENT ON COLUMN smap_summary.thp_eligible IS 'mappings: those in which transparent huge pages may be used (THPeligible, Linux 5.0)';
