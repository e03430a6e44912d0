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
category (text): what it is for: malloc, stack, jit, shared_memory, dynamic_shared_memory, io_uring, program, library, file, kernel, other
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

-- pg_meminfo_processes(): every process of the cluster, by the kernel's counters
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

COMMENT ON FUNCTION pg_meminfo_processes() IS
'Every process of the cluster: the postmaster, and its children that run the same program. From /proc/PID/status, stat,
oom_score and oom_score_adj; no page is walked, so each costs some 50 microseconds, whatever it holds. Some kernels from Linux 6.2
on count in batches for each processor, so on a machine with many the counters of RAM can be MBs off.
Sizes are in bytes. What the kernel does not print, or does not let us read, is NULL. pg_stat_activity, and with it
backend_type, is frozen within a transaction: what starts later in it is shown as starting.

pid (identifier): process
backend_type (text): postmaster, logger, starting for one that is not in pg_stat_activity yet or any more, or as there; never NULL
process_start (time): when the process was started (stat), to the hundredth of a second
virtual_size (bytes): address space (VmSize)
rss (bytes): in RAM (VmRSS), with all shared buffers that the process has touched; without hugetlb
peak_rss (bytes): the most that rss ever was (VmHWM), with all shared buffers that were touched
rss_anon (bytes): anonymous memory in RAM (RssAnon, Linux 4.5); pages that are still shared with the postmaster since fork are in it
rss_file (bytes): files in RAM (RssFile, Linux 4.5): program, libraries
rss_shmem (bytes): shared memory in RAM (RssShmem, Linux 4.5): what the process has touched of it; not to be added up
swap (bytes): anonymous memory in swap (VmSwap)
hugetlb (bytes): in hugetlb pages (HugetlbPages, Linux 4.4): mostly the main shared memory segment; not to be added up
locked (bytes): locked in RAM (VmLck)
page_tables (bytes): page tables (VmPTE): with pages of 4 kB, 2 MB for each GB of shared buffers touched, without huge pages
threads (number): threads (Threads)
oom_score (number): what the OOM killer would rank the process by (oom_score), 0 to 2000
oom_score_adj (number): what the OOM killer is told to add (oom_score_adj), -1000 to 1000; -1000 protects';

-- pg_meminfo: who holds memory, now
CREATE VIEW pg_meminfo AS
    SELECT p.pid,
           a.leader_pid,
           p.backend_type,
           a.datname,
           a.usename,
           a.application_name,
           a.client_addr,
           a.state,
           p.rss_anon + p.swap + p.page_tables AS private_estimate,
           p.virtual_size,
           p.rss,
           p.peak_rss,
           p.rss_anon,
           p.rss_file,
           p.rss_shmem,
           p.swap,
           p.hugetlb,
           p.locked,
           p.page_tables,
           p.threads,
           p.oom_score,
           p.oom_score_adj,
           p.rss + p.swap + p.page_tables AS oom_charge,
           coalesce(a.backend_start, p.process_start) AS backend_start,
           a.xact_start,
           a.query_start,
           a.state_change,
           a.query_id,
           a.query
    FROM pg_meminfo_processes() p LEFT JOIN pg_stat_activity a ON a.pid = p.pid;

GRANT SELECT ON pg_meminfo TO PUBLIC;

COMMENT ON VIEW pg_meminfo IS
'Every process of the cluster, what memory it holds and what it does: pg_meminfo_processes() with pg_stat_activity. Safe to
poll every second: some 50 microseconds a process.';
COMMENT ON COLUMN pg_meminfo.pid IS 'identifier: process';
COMMENT ON COLUMN pg_meminfo.leader_pid IS 'identifier: leader of the parallel group, for a worker (pg_stat_activity)';
COMMENT ON COLUMN pg_meminfo.backend_type IS 'text: postmaster, logger, starting, or as in pg_stat_activity';
COMMENT ON COLUMN pg_meminfo.datname IS 'name: database (pg_stat_activity)';
COMMENT ON COLUMN pg_meminfo.usename IS 'name: user (pg_stat_activity)';
COMMENT ON COLUMN pg_meminfo.application_name IS 'text: application (pg_stat_activity)';
COMMENT ON COLUMN pg_meminfo.client_addr IS 'address: client (pg_stat_activity)';
COMMENT ON COLUMN pg_meminfo.state IS 'text: what the session does (pg_stat_activity)';
COMMENT ON COLUMN pg_meminfo.private_estimate IS 'bytes: rss_anon + swap + page_tables: the anonymous memory of the process; pages that are still shared with the postmaster since fork are in it; NULL before Linux 4.5';
COMMENT ON COLUMN pg_meminfo.virtual_size IS 'bytes: address space (VmSize)';
COMMENT ON COLUMN pg_meminfo.rss IS 'bytes: in RAM (VmRSS), with all shared buffers that the process has touched; without hugetlb';
COMMENT ON COLUMN pg_meminfo.peak_rss IS 'bytes: the most that rss ever was (VmHWM), with all shared buffers that were touched';
COMMENT ON COLUMN pg_meminfo.rss_anon IS 'bytes: anonymous memory in RAM (RssAnon, Linux 4.5); pages that are still shared with the postmaster since fork are in it';
COMMENT ON COLUMN pg_meminfo.rss_file IS 'bytes: files in RAM (RssFile, Linux 4.5): program, libraries';
COMMENT ON COLUMN pg_meminfo.rss_shmem IS 'bytes: shared memory in RAM (RssShmem, Linux 4.5): what the process has touched of it; not to be added up';
COMMENT ON COLUMN pg_meminfo.swap IS 'bytes: anonymous memory in swap (VmSwap)';
COMMENT ON COLUMN pg_meminfo.hugetlb IS 'bytes: in hugetlb pages (HugetlbPages, Linux 4.4): mostly the main shared memory segment; not to be added up';
COMMENT ON COLUMN pg_meminfo.locked IS 'bytes: locked in RAM (VmLck)';
COMMENT ON COLUMN pg_meminfo.page_tables IS 'bytes: page tables (VmPTE): with pages of 4 kB, 2 MB for each GB of shared buffers touched, without huge pages';
COMMENT ON COLUMN pg_meminfo.threads IS 'number: threads (Threads)';
COMMENT ON COLUMN pg_meminfo.oom_score IS 'number: what the OOM killer would rank the process by (oom_score), 0 to 2000';
COMMENT ON COLUMN pg_meminfo.oom_score_adj IS 'number: what the OOM killer is told to add (oom_score_adj), -1000 to 1000; -1000 protects';
COMMENT ON COLUMN pg_meminfo.oom_charge IS 'bytes: rss + swap + page_tables: what the OOM killer compares, before oom_score_adj';
COMMENT ON COLUMN pg_meminfo.backend_start IS 'time: start of the session (pg_stat_activity), or else of the process';
COMMENT ON COLUMN pg_meminfo.xact_start IS 'time: start of the transaction (pg_stat_activity)';
COMMENT ON COLUMN pg_meminfo.query_start IS 'time: start of the query (pg_stat_activity)';
COMMENT ON COLUMN pg_meminfo.state_change IS 'time: last change of state (pg_stat_activity)';
COMMENT ON COLUMN pg_meminfo.query_id IS 'number: identifier of the query (pg_stat_activity)';
COMMENT ON COLUMN pg_meminfo.query IS 'text: the query, or the last one (pg_stat_activity)';

-- pg_meminfo_rollup(): the mappings of one process, added up by the kernel
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

COMMENT ON FUNCTION pg_meminfo_rollup(int) IS
'The mappings of one process of the cluster added up, from /proc/PID/smaps_rollup (Linux 4.14); no rows if it is not one, or on
an older kernel. The kernel walks the pages of shared memory: expect a third of a millisecond, and as much as for
pg_meminfo_smaps() where the process has touched much of shared_buffers.
Sizes are in bytes. What the kernel does not print is NULL.

rss (bytes): in RAM, counted in full in every process that maps it (Rss); without hugetlb
pss (bytes): in RAM, each page divided by the number of processes that map it (Pss); without hugetlb
pss_dirty (bytes): the dirty part of pss (Pss_Dirty, Linux 6.0)
pss_anon (bytes): the anonymous part of pss (Pss_Anon, Linux 5.3)
pss_file (bytes): the part of pss that is of files (Pss_File, Linux 5.3)
pss_shmem (bytes): the part of pss that is shared memory (Pss_Shmem, Linux 5.3)
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
locked (bytes): locked in RAM by mlock, divided like pss (Locked); Linux 4.14 to 4.17 print all of pss here';

-- pg_meminfo_private(): what one process holds alone
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

COMMENT ON FUNCTION pg_meminfo_private(int) IS
'What one process of the cluster holds in its private mappings, by category, from /proc/PID/maps and pagemap; no rows if it is
not one. Shared memory is not looked at: the cost grows with the process''s own memory, and not with shared_buffers. Half a
millisecond for an idle session, and 2 ms for each GB that it holds.
Sizes are in bytes. Where the kernel denies pagemap, the last three are NULL. Before Linux 6.7, a mapping without
permissions is taken to be empty, and one that is large is read all over.

category (text): what the mappings are for: malloc, stack, jit, program, library, file, kernel, other
mappings (number): private mappings of this category
virtual_size (bytes): their address space
resident (bytes): pages in RAM (pagemap bit 63), the kernel''s page of zeros included
private (bytes): pages in RAM that no other process maps (pagemap bits 63 and 56); NULL before Linux 4.2
swap (bytes): pages in swap (pagemap bit 62)';

-- pg_meminfo_mappings: every mapping of every process
--
-- The processes come first, so that conditions on pid and backend_type choose
-- them before any smaps is read.
CREATE VIEW pg_meminfo_mappings AS
    SELECT p.pid,
           p.backend_type,
           m.start_address,
           m.end_address,
           m.permissions,
           m.byte_offset,
           m.device,
           m.inode,
           m.name,
           m.category,
           m.size,
           m.kernel_page_size,
           m.mmu_page_size,
           m.rss,
           m.pss,
           m.pss_dirty,
           m.shared_clean,
           m.shared_dirty,
           m.private_clean,
           m.private_dirty,
           m.referenced,
           m.anonymous,
           m.ksm,
           m.lazy_free,
           m.anon_huge_pages,
           m.shmem_pmd_mapped,
           m.file_pmd_mapped,
           m.shared_hugetlb,
           m.private_hugetlb,
           m.swap,
           m.swap_pss,
           m.locked,
           m.thp_eligible,
           m.protection_key,
           m.vm_flags
    FROM pg_meminfo_processes() p, LATERAL pg_meminfo_smaps(p.pid) m;

GRANT SELECT ON pg_meminfo_mappings TO PUBLIC;

COMMENT ON VIEW pg_meminfo_mappings IS
'Every mapping of every process of the cluster, from /proc/PID/smaps, in bytes. With a condition on pid or backend_type, only
the smaps of those processes is read. The cost for each is that of pg_meminfo_smaps().';
COMMENT ON COLUMN pg_meminfo_mappings.pid IS 'identifier: process';
COMMENT ON COLUMN pg_meminfo_mappings.backend_type IS 'text: postmaster, logger, starting, or as in pg_stat_activity';
COMMENT ON COLUMN pg_meminfo_mappings.start_address IS 'hex address: first address of the mapping';
COMMENT ON COLUMN pg_meminfo_mappings.end_address IS 'hex address: first address behind the mapping';
COMMENT ON COLUMN pg_meminfo_mappings.permissions IS 'text: r, w, x where allowed, then p for private or s for shared';
COMMENT ON COLUMN pg_meminfo_mappings.byte_offset IS 'bytes: where in the file the mapping starts; NULL beyond bigint';
COMMENT ON COLUMN pg_meminfo_mappings.device IS 'hex numbers: major and minor number of the file''s device';
COMMENT ON COLUMN pg_meminfo_mappings.inode IS 'number: inode of the file, 0 without one; NULL beyond bigint';
COMMENT ON COLUMN pg_meminfo_mappings.name IS 'text: path of the file or the kernel''s name for the mapping; NULL if anonymous';
COMMENT ON COLUMN pg_meminfo_mappings.category IS 'text: what it is for: malloc, stack, jit, shared_memory, dynamic_shared_memory, io_uring, program, library, file, kernel, other';
COMMENT ON COLUMN pg_meminfo_mappings.size IS 'bytes: address space (Size)';
COMMENT ON COLUMN pg_meminfo_mappings.kernel_page_size IS 'bytes: page size that the kernel uses (KernelPageSize)';
COMMENT ON COLUMN pg_meminfo_mappings.mmu_page_size IS 'bytes: page size that the hardware uses (MMUPageSize)';
COMMENT ON COLUMN pg_meminfo_mappings.rss IS 'bytes: in RAM, counted in full in every process that maps it (Rss); without hugetlb';
COMMENT ON COLUMN pg_meminfo_mappings.pss IS 'bytes: in RAM, each page divided by the number of processes that map it (Pss); without hugetlb';
COMMENT ON COLUMN pg_meminfo_mappings.pss_dirty IS 'bytes: the dirty part of pss (Pss_Dirty, Linux 6.0)';
COMMENT ON COLUMN pg_meminfo_mappings.shared_clean IS 'bytes: clean pages that other processes map too (Shared_Clean)';
COMMENT ON COLUMN pg_meminfo_mappings.shared_dirty IS 'bytes: dirty pages that other processes map too (Shared_Dirty)';
COMMENT ON COLUMN pg_meminfo_mappings.private_clean IS 'bytes: clean pages that no other process maps (Private_Clean); in a shared mapping too';
COMMENT ON COLUMN pg_meminfo_mappings.private_dirty IS 'bytes: dirty pages that no other process maps (Private_Dirty); in a shared mapping too';
COMMENT ON COLUMN pg_meminfo_mappings.referenced IS 'bytes: accessed since the kernel last looked (Referenced)';
COMMENT ON COLUMN pg_meminfo_mappings.anonymous IS 'bytes: not backed by a file, among it the changed pages of a private file mapping (Anonymous)';
COMMENT ON COLUMN pg_meminfo_mappings.ksm IS 'bytes: merged with equal pages by KSM (KSM, Linux 6.6)';
COMMENT ON COLUMN pg_meminfo_mappings.lazy_free IS 'bytes: given up with MADV_FREE and not yet taken (LazyFree, Linux 4.12)';
COMMENT ON COLUMN pg_meminfo_mappings.anon_huge_pages IS 'bytes: in transparent huge pages (AnonHugePages)';
COMMENT ON COLUMN pg_meminfo_mappings.shmem_pmd_mapped IS 'bytes: shared memory in huge pages (ShmemPmdMapped, Linux 4.8)';
COMMENT ON COLUMN pg_meminfo_mappings.file_pmd_mapped IS 'bytes: page cache in huge pages (FilePmdMapped, Linux 5.4)';
COMMENT ON COLUMN pg_meminfo_mappings.shared_hugetlb IS 'bytes: in hugetlb pages that other processes map too (Shared_Hugetlb, Linux 4.4); not in rss';
COMMENT ON COLUMN pg_meminfo_mappings.private_hugetlb IS 'bytes: in hugetlb pages that no other process maps (Private_Hugetlb, Linux 4.4); not in rss';
COMMENT ON COLUMN pg_meminfo_mappings.swap IS 'bytes: in swap (Swap); of a shared mapping the whole object''s, in every process';
COMMENT ON COLUMN pg_meminfo_mappings.swap_pss IS 'bytes: in swap, each page divided by the number of processes (SwapPss, Linux 4.3); without shared mappings';
COMMENT ON COLUMN pg_meminfo_mappings.locked IS 'bytes: locked in RAM by mlock, divided like pss (Locked); Linux 4.14 to 4.17 print all of pss here';
COMMENT ON COLUMN pg_meminfo_mappings.thp_eligible IS 'flag: whether transparent huge pages may be used (THPeligible, Linux 5.0)';
COMMENT ON COLUMN pg_meminfo_mappings.protection_key IS 'number: memory protection key (ProtectionKey, Linux 4.6, on processors that have them)';
COMMENT ON COLUMN pg_meminfo_mappings.vm_flags IS 'text: flags of the mapping, two-letter words of proc(5) (VmFlags)';

-- pg_meminfo_segments(): shared memory, each segment once
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

COMMENT ON FUNCTION pg_meminfo_segments() IS
'Every shared memory segment that a process of the cluster has mapped, once, from /proc/PID/maps of each. No pages are walked for
each process: expect a third of a millisecond a process, and 25 ms for each GB of the main segment.
Sizes are in bytes.

kind (text): main, where shared_buffers are, or dynamic
name (text): the kernel''s name for it
inode (number): inode of its file; of a System V segment, its identifier; NULL beyond bigint
size (bytes): as it is mapped
resident (bytes): in RAM, whoever has touched it (mincore, or /proc/sysvipc/shm); on huge pages all of it; NULL if its file was removed or cannot be read
huge (flag): whether it is on huge pages
processes (number): attached processes
leader_pid (identifier): the process that all who are attached are, or are parallel workers of; NULL otherwise';

-- pg_meminfo_segments: the same, as a view
CREATE VIEW pg_meminfo_segments AS
    SELECT s.kind, s.name, s.inode, s.size, s.resident, s.huge, s.processes, s.leader_pid
    FROM pg_meminfo_segments() s;

GRANT SELECT ON pg_meminfo_segments TO PUBLIC;

COMMENT ON VIEW pg_meminfo_segments IS
'Every shared memory segment of the cluster, once: pg_meminfo_segments(). Costs a third of a millisecond a process, and 25 ms for
each GB of the main segment.';
COMMENT ON COLUMN pg_meminfo_segments.kind IS 'text: main, where shared_buffers are, or dynamic';
COMMENT ON COLUMN pg_meminfo_segments.name IS 'text: the kernel''s name for it';
COMMENT ON COLUMN pg_meminfo_segments.inode IS 'number: inode of its file; of a System V segment, its identifier; NULL beyond bigint';
COMMENT ON COLUMN pg_meminfo_segments.size IS 'bytes: as it is mapped';
COMMENT ON COLUMN pg_meminfo_segments.resident IS 'bytes: in RAM, whoever has touched it (mincore, or /proc/sysvipc/shm); on huge pages all of it; NULL if its file was removed or cannot be read';
COMMENT ON COLUMN pg_meminfo_segments.huge IS 'flag: whether it is on huge pages';
COMMENT ON COLUMN pg_meminfo_segments.processes IS 'number: attached processes';
COMMENT ON COLUMN pg_meminfo_segments.leader_pid IS 'identifier: the process that all who are attached are, or are parallel workers of; NULL otherwise';

-- pg_meminfo_cluster(): the whole cluster, in one row
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

COMMENT ON FUNCTION pg_meminfo_cluster() IS
'The whole cluster in one row that adds up. Private memory page by page (pagemap), each shared memory segment once, page
tables. Costs what pg_meminfo_private() costs for each process, and pg_meminfo_segments() once: for polling each minute, not
each second.
Sizes are in bytes. What the kernel does not tell is NULL. A sum is NULL, not too small, if a part of it cannot be told; a
WARNING then counts the processes that are denied.

processes (number): processes of the cluster
unreadable (number): those among them whose private memory cannot be told; if there are any, private and total are NULL; where their maps are denied, also dynamic_shared_memory and page_tables_saved; where /proc shows nothing of them, also page_tables and swap
private (bytes): in RAM, in private mappings, and mapped by no other process (pagemap, Linux 4.2)
shared_memory (bytes): size of the main shared memory segment, where shared_buffers are
shared_memory_resident (bytes): in RAM of it, whoever has touched it (mincore); on huge pages all of it
dynamic_shared_memory (bytes): in RAM of all dynamic shared memory segments that a process is attached to (mincore, /proc/sysvipc/shm); NULL if the file of one was removed
page_tables (bytes): page tables of all processes (VmPTE)
total (bytes): private + shared_memory_resident + dynamic_shared_memory + page_tables; without the few MB that processes share with the postmaster since fork, and without files that more than one maps
swap (bytes): anonymous memory of all processes in swap (VmSwap), at most: what is still shared with the postmaster since fork counts in each; not in total
huge_pages_status (text): on or off: whether the main segment is on huge pages
huge_pages_needed (number): huge pages, of the size that huge_page_size says, that the main segment takes or would take (shared_memory_size_in_huge_pages); NULL where Postgres does not know
page_tables_saved (bytes): page tables that there would be less, at least, with the main segment on huge pages; an estimate from maps and VmPTE. 0 if it is';

-- pg_meminfo_cluster: the same, as a view
CREATE VIEW pg_meminfo_cluster AS
    SELECT s.processes, s.unreadable, s.private, s.shared_memory, s.shared_memory_resident,
           s.dynamic_shared_memory, s.page_tables, s.total, s.swap, s.huge_pages_status, s.huge_pages_needed,
           s.page_tables_saved
    FROM pg_meminfo_cluster() s;

GRANT SELECT ON pg_meminfo_cluster TO PUBLIC;

COMMENT ON VIEW pg_meminfo_cluster IS
'The whole cluster in one row that adds up: pg_meminfo_cluster(). Costs a millisecond a process, and 25 ms for each GB of the main
segment: for polling each minute, not each second.';
COMMENT ON COLUMN pg_meminfo_cluster.processes IS 'number: processes of the cluster';
COMMENT ON COLUMN pg_meminfo_cluster.unreadable IS 'number: those among them whose private memory cannot be told; if there are any, private and total are NULL; where their maps are denied, also dynamic_shared_memory and page_tables_saved; where /proc shows nothing of them, also page_tables and swap';
COMMENT ON COLUMN pg_meminfo_cluster.private IS 'bytes: in RAM, in private mappings, and mapped by no other process (pagemap, Linux 4.2)';
COMMENT ON COLUMN pg_meminfo_cluster.shared_memory IS 'bytes: size of the main shared memory segment, where shared_buffers are';
COMMENT ON COLUMN pg_meminfo_cluster.shared_memory_resident IS 'bytes: in RAM of it, whoever has touched it (mincore); on huge pages all of it';
COMMENT ON COLUMN pg_meminfo_cluster.dynamic_shared_memory IS 'bytes: in RAM of all dynamic shared memory segments that a process is attached to (mincore, /proc/sysvipc/shm); NULL if the file of one was removed';
COMMENT ON COLUMN pg_meminfo_cluster.page_tables IS 'bytes: page tables of all processes (VmPTE)';
COMMENT ON COLUMN pg_meminfo_cluster.total IS 'bytes: private + shared_memory_resident + dynamic_shared_memory + page_tables; without the few MB that processes share with the postmaster since fork, and without files that more than one maps';
COMMENT ON COLUMN pg_meminfo_cluster.swap IS 'bytes: anonymous memory of all processes in swap (VmSwap), at most: what is still shared with the postmaster since fork counts in each; not in total';
COMMENT ON COLUMN pg_meminfo_cluster.huge_pages_status IS 'text: on or off: whether the main segment is on huge pages';
COMMENT ON COLUMN pg_meminfo_cluster.huge_pages_needed IS 'number: huge pages, of the size that huge_page_size says, that the main segment takes or would take (shared_memory_size_in_huge_pages); NULL where Postgres does not know';
COMMENT ON COLUMN pg_meminfo_cluster.page_tables_saved IS 'bytes: page tables that there would be less, at least, with the main segment on huge pages; an estimate from maps and VmPTE. 0 if it is';

-- pg_meminfo_host(): the machine around
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

COMMENT ON FUNCTION pg_meminfo_host() IS
'The machine around: its memory, and how much of it is left for the cluster. From
/proc/meminfo, /proc/vmstat, /proc/sys/vm/overcommit_memory, /dev/shm, and the cgroups. Costs a millisecond.
Sizes are in bytes. What the kernel does not print is NULL.

memory_total (bytes): RAM (MemTotal)
memory_available (bytes): what could be had without swapping (MemAvailable, Linux 3.14)
swap_total (bytes): swap (SwapTotal)
swap_free (bytes): free swap (SwapFree)
commit_limit (bytes): how much the kernel promises at most if overcommit_memory is 2 (CommitLimit)
committed (bytes): how much it has promised (Committed_AS)
overcommit_memory (number): how the kernel promises memory: 0 by a guess, 1 always, 2 up to commit_limit (vm.overcommit_memory)
headroom (bytes): what is left without swapping: the least of memory_available and, for each cgroup that we are in and that is limited, memory_limit - working_set; NULL if one of these cannot be told
headroom_source (text): which of them is the least: host, or the path of the cgroup
huge_page_size (bytes): default size of a huge page (Hugepagesize)
huge_pages_total (number): huge pages of that size (HugePages_Total)
huge_pages_free (number): those that are not in use (HugePages_Free)
huge_pages_reserved (number): those that are not in use, but promised (HugePages_Rsvd)
oom_kills (number): processes that the OOM killer has taken since boot, on the whole machine (oom_kill of vmstat, Linux 4.13)
dev_shm_size (bytes): size of /dev/shm, where dynamic shared memory of type posix is (statvfs); NULL if it is not limited
dev_shm_available (bytes): free space in /dev/shm; NULL if it is not limited';

-- pg_meminfo_host: the same, as a view
CREATE VIEW pg_meminfo_host AS
    SELECT s.memory_total, s.memory_available, s.swap_total, s.swap_free, s.commit_limit, s.committed,
           s.overcommit_memory, s.headroom, s.headroom_source, s.huge_page_size, s.huge_pages_total,
           s.huge_pages_free, s.huge_pages_reserved, s.oom_kills, s.dev_shm_size, s.dev_shm_available
    FROM pg_meminfo_host() s;

GRANT SELECT ON pg_meminfo_host TO PUBLIC;

COMMENT ON VIEW pg_meminfo_host IS
'The machine around, its memory and how much of it is left: pg_meminfo_host(). Costs a millisecond.';
COMMENT ON COLUMN pg_meminfo_host.memory_total IS 'bytes: RAM (MemTotal)';
COMMENT ON COLUMN pg_meminfo_host.memory_available IS 'bytes: what could be had without swapping (MemAvailable, Linux 3.14)';
COMMENT ON COLUMN pg_meminfo_host.swap_total IS 'bytes: swap (SwapTotal)';
COMMENT ON COLUMN pg_meminfo_host.swap_free IS 'bytes: free swap (SwapFree)';
COMMENT ON COLUMN pg_meminfo_host.commit_limit IS 'bytes: how much the kernel promises at most if overcommit_memory is 2 (CommitLimit)';
COMMENT ON COLUMN pg_meminfo_host.committed IS 'bytes: how much it has promised (Committed_AS)';
COMMENT ON COLUMN pg_meminfo_host.overcommit_memory IS 'number: how the kernel promises memory: 0 by a guess, 1 always, 2 up to commit_limit (vm.overcommit_memory)';
COMMENT ON COLUMN pg_meminfo_host.headroom IS 'bytes: what is left without swapping: the least of memory_available and, for each cgroup that we are in and that is limited, memory_limit - working_set; NULL if one of these cannot be told';
COMMENT ON COLUMN pg_meminfo_host.headroom_source IS 'text: which of them is the least: host, or the path of the cgroup';
COMMENT ON COLUMN pg_meminfo_host.huge_page_size IS 'bytes: default size of a huge page (Hugepagesize)';
COMMENT ON COLUMN pg_meminfo_host.huge_pages_total IS 'number: huge pages of that size (HugePages_Total)';
COMMENT ON COLUMN pg_meminfo_host.huge_pages_free IS 'number: those that are not in use (HugePages_Free)';
COMMENT ON COLUMN pg_meminfo_host.huge_pages_reserved IS 'number: those that are not in use, but promised (HugePages_Rsvd)';
COMMENT ON COLUMN pg_meminfo_host.oom_kills IS 'number: processes that the OOM killer has taken since boot, on the whole machine (oom_kill of vmstat, Linux 4.13)';
COMMENT ON COLUMN pg_meminfo_host.dev_shm_size IS 'bytes: size of /dev/shm, where dynamic shared memory of type posix is (statvfs); NULL if it is not limited';
COMMENT ON COLUMN pg_meminfo_host.dev_shm_available IS 'bytes: free space in /dev/shm; NULL if it is not limited';

-- pg_meminfo_cgroups(): the cgroups that we are in
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

COMMENT ON FUNCTION pg_meminfo_cgroups() IS
'The cgroup that this session is in, its parent, and so on, as far as they can be seen from within the container: their
limits, what is charged to them, and what came of it. Costs a tenth of a millisecond each. No rows if our own cannot be seen.
Sizes are in bytes. What the kernel does not print, or not in this version of cgroups, is NULL.

level (number): how far up it is: 0 for our own, 1 for its parent, and so on
path (text): path in the hierarchy, as seen from within the container (/proc/self/cgroup)
version (number): version of cgroups in which memory is accounted, 1 or 2
memory_limit (bytes): where the OOM killer comes (memory.max; memory.limit_in_bytes); NULL if unlimited
memory_high (bytes): where processes are slowed down (memory.high); NULL if unlimited, and in version 1
usage (bytes): what is charged, page cache included (memory.current; memory.usage_in_bytes)
working_set (bytes): usage without inactive page cache, as the kubelet counts
anon (bytes): anonymous memory (anon; total_rss)
file (bytes): page cache, shared memory included (file; total_cache)
shmem (bytes): shared memory and files of tmpfs (shmem; total_shmem)
kernel (bytes): the kernel''s own, such as page tables (kernel, Linux 5.18; memory.kmem.usage_in_bytes)
swap_limit (bytes): how much may be swapped (memory.swap.max; memory.memsw.limit_in_bytes - memory.limit_in_bytes); NULL if unlimited
swap_usage (bytes): what is swapped (memory.swap.current; total_swap)
unlimited (flag): whether this cgroup has no memory limit
oom_kills (number): processes that the OOM killer has taken (oom_kill of memory.events, from Linux 5.2 on with descendants; of memory.oom_control, Linux 4.13, without)
oom_group (flag): whether it takes all processes of the cgroup at once (memory.oom.group, Linux 4.19); NULL in version 1
psi_some_usec (microseconds): time in which some task waited for memory (some of memory.pressure, Linux 4.20); NULL in version 1
psi_full_usec (microseconds): time in which all of them did (full of memory.pressure, Linux 4.20); NULL in version 1';

-- pg_meminfo_cgroups: the same, as a view
CREATE VIEW pg_meminfo_cgroups AS
    SELECT s.level, s.path, s.version, s.memory_limit, s.memory_high, s.usage, s.working_set, s.anon, s.file,
           s.shmem, s.kernel, s.swap_limit, s.swap_usage, s.unlimited, s.oom_kills, s.oom_group,
           s.psi_some_usec, s.psi_full_usec
    FROM pg_meminfo_cgroups() s;

GRANT SELECT ON pg_meminfo_cgroups TO PUBLIC;

COMMENT ON VIEW pg_meminfo_cgroups IS
'The cgroup that this session is in, its parent, and so on: pg_meminfo_cgroups(). Costs a tenth of a millisecond each.';
COMMENT ON COLUMN pg_meminfo_cgroups.level IS 'number: how far up it is: 0 for our own, 1 for its parent, and so on';
COMMENT ON COLUMN pg_meminfo_cgroups.path IS 'text: path in the hierarchy, as seen from within the container (/proc/self/cgroup)';
COMMENT ON COLUMN pg_meminfo_cgroups.version IS 'number: version of cgroups in which memory is accounted, 1 or 2';
COMMENT ON COLUMN pg_meminfo_cgroups.memory_limit IS 'bytes: where the OOM killer comes (memory.max; memory.limit_in_bytes); NULL if unlimited';
COMMENT ON COLUMN pg_meminfo_cgroups.memory_high IS 'bytes: where processes are slowed down (memory.high); NULL if unlimited, and in version 1';
COMMENT ON COLUMN pg_meminfo_cgroups.usage IS 'bytes: what is charged, page cache included (memory.current; memory.usage_in_bytes)';
COMMENT ON COLUMN pg_meminfo_cgroups.working_set IS 'bytes: usage without inactive page cache, as the kubelet counts';
COMMENT ON COLUMN pg_meminfo_cgroups.anon IS 'bytes: anonymous memory (anon; total_rss)';
COMMENT ON COLUMN pg_meminfo_cgroups.file IS 'bytes: page cache, shared memory included (file; total_cache)';
COMMENT ON COLUMN pg_meminfo_cgroups.shmem IS 'bytes: shared memory and files of tmpfs (shmem; total_shmem)';
COMMENT ON COLUMN pg_meminfo_cgroups.kernel IS 'bytes: the kernel''s own, such as page tables (kernel, Linux 5.18; memory.kmem.usage_in_bytes)';
COMMENT ON COLUMN pg_meminfo_cgroups.swap_limit IS 'bytes: how much may be swapped (memory.swap.max; memory.memsw.limit_in_bytes - memory.limit_in_bytes); NULL if unlimited';
COMMENT ON COLUMN pg_meminfo_cgroups.swap_usage IS 'bytes: what is swapped (memory.swap.current; total_swap)';
COMMENT ON COLUMN pg_meminfo_cgroups.unlimited IS 'flag: whether this cgroup has no memory limit';
COMMENT ON COLUMN pg_meminfo_cgroups.oom_kills IS 'number: processes that the OOM killer has taken (oom_kill of memory.events, from Linux 5.2 on with descendants; of memory.oom_control, Linux 4.13, without)';
COMMENT ON COLUMN pg_meminfo_cgroups.oom_group IS 'flag: whether it takes all processes of the cgroup at once (memory.oom.group, Linux 4.19); NULL in version 1';
COMMENT ON COLUMN pg_meminfo_cgroups.psi_some_usec IS 'microseconds: time in which some task waited for memory (some of memory.pressure, Linux 4.20); NULL in version 1';
COMMENT ON COLUMN pg_meminfo_cgroups.psi_full_usec IS 'microseconds: time in which all of them did (full of memory.pressure, Linux 4.20); NULL in version 1';
