/* pg_meminfo--1.0.sql */

-- complain if script is sourced in psql, rather than via CREATE EXTENSION
\echo Use "CREATE EXTENSION pg_meminfo" to load this file. \quit

--
-- Every function checks that the role is a superuser or a member of
-- pg_read_all_stats. So PUBLIC keeps EXECUTE on the functions and gets SELECT
-- on the views.
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
'Every mapping of every process in pg_stat_activity, read from /proc/PID/smaps. For each process the kernel walks all
pages that the process maps, shared memory included: this takes about a millisecond per process, and more the more of
shared_buffers the process has touched.
Sizes are in kB. A field that the kernel does not print is 0 or an empty string. A number too large for int4 is NULL.

pid (identifier): process ID
start_address (hex address): start address
end_address (hex address): end address (exclusive)
permissions (text): r, w and x if reading, writing and executing are allowed, then p for private or s for shared
byte_offset (hex bytes): offset in the file at which the mapping starts
dev_major (hex number): major number of the file''s device; two digits, more if the number needs them
dev_minor (hex number): minor number of the file''s device; two digits, more if the number needs them
inode (number): inode of the file; 0 if there is no file; NULL if too large for int4
sys_path (text): path of the file, or the kernel''s name for the mapping; empty if anonymous
mem_size (kB): size in the address space (Size)
kernel_page_size (kB): page size used by the kernel (KernelPageSize)
mmu_page_size (kB): page size used by the hardware (MMUPageSize)
rss (kB): resident memory, counted in full in every process that maps it (Rss); excludes hugetlb pages
pss (kB): resident memory, each page divided by the number of processes that map it (Pss); excludes hugetlb pages
pss_dirty (kB): dirty part of pss (Pss_Dirty, Linux 6.0)
shared_clean (kB): clean pages that other processes map too (Shared_Clean)
shared_dirty (kB): dirty pages that other processes map too (Shared_Dirty)
private_clean (kB): clean pages that no other process maps (Private_Clean), including those of shared mappings
private_dirty (kB): dirty pages that no other process maps (Private_Dirty), including those of shared mappings
referenced (kB): pages accessed since the kernel last cleared their accessed bits (Referenced)
anonymous (kB): pages not backed by a file, including modified pages of private file mappings (Anonymous)
ksm (kB): pages merged with identical pages by KSM (KSM, Linux 6.6)
lazy_free (kB): pages marked with MADV_FREE that the kernel has not reclaimed yet (LazyFree, Linux 4.12)
anon_huge_pages (kB): anonymous memory in transparent huge pages (AnonHugePages)
shmem_pmd_mapped (kB): shared memory mapped with transparent huge pages (ShmemPmdMapped, Linux 4.8)
file_pmd_mapped (kB): page cache mapped with transparent huge pages (FilePmdMapped, Linux 5.4)
shared_huge_tlb (kB): hugetlb pages that other processes map too (Shared_Hugetlb, Linux 4.4); not in rss or pss
private_huge_tlb (kB): hugetlb pages that no other process maps (Private_Hugetlb, Linux 4.4); not in rss or pss
swap (kB): memory in swap (Swap); for a shared mapping, that of the whole object, repeated in every process
swap_pss (kB): memory in swap, each page divided by the number of processes that map it (SwapPss, Linux 4.3);
  excludes shared mappings
locked (kB): memory locked by mlock, divided like pss (Locked); Linux 4.14 to 4.17 print all of pss here
thp_eligible (0 or 1): whether the mapping may use transparent huge pages (THPeligible, Linux 5.0)
vm_flags (text): flags of the mapping as two-letter codes, see proc(5) (VmFlags, Linux 3.8)';

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
'Every mapping of one process of the cluster, read from /proc/PID/smaps; no rows for any other pid. The kernel walks all
pages that the process maps, shared memory included: this takes about a millisecond, and more the more of shared_buffers
the process has touched.
Sizes are in bytes. A field that the kernel does not print is NULL.

start_address (hex address): start address
end_address (hex address): end address (exclusive)
permissions (text): r, w and x if reading, writing and executing are allowed, then p for private or s for shared
byte_offset (bytes): offset in the file at which the mapping starts; NULL if too large for bigint
device (hex numbers): major and minor number of the file''s device, separated by a colon
inode (number): inode of the file; 0 if there is no file; NULL if too large for bigint
name (text): path of the file, or the kernel''s name for the mapping; NULL if anonymous
category (text): what the mapping is used for: malloc, stack, jit, shared_memory, dynamic_shared_memory, io_uring,
  program, library, file, kernel or other
size (bytes): size in the address space (Size)
kernel_page_size (bytes): page size used by the kernel (KernelPageSize)
mmu_page_size (bytes): page size used by the hardware (MMUPageSize)
rss (bytes): resident memory, counted in full in every process that maps it (Rss); excludes hugetlb pages
pss (bytes): resident memory, each page divided by the number of processes that map it (Pss); excludes hugetlb pages
pss_dirty (bytes): dirty part of pss (Pss_Dirty, Linux 6.0)
shared_clean (bytes): clean pages that other processes map too (Shared_Clean)
shared_dirty (bytes): dirty pages that other processes map too (Shared_Dirty)
private_clean (bytes): clean pages that no other process maps (Private_Clean), including those of shared mappings
private_dirty (bytes): dirty pages that no other process maps (Private_Dirty), including those of shared mappings
referenced (bytes): pages accessed since the kernel last cleared their accessed bits (Referenced)
anonymous (bytes): pages not backed by a file, including modified pages of private file mappings (Anonymous)
ksm (bytes): pages merged with identical pages by KSM (KSM, Linux 6.6)
lazy_free (bytes): pages marked with MADV_FREE that the kernel has not reclaimed yet (LazyFree, Linux 4.12)
anon_huge_pages (bytes): anonymous memory in transparent huge pages (AnonHugePages)
shmem_pmd_mapped (bytes): shared memory mapped with transparent huge pages (ShmemPmdMapped, Linux 4.8)
file_pmd_mapped (bytes): page cache mapped with transparent huge pages (FilePmdMapped, Linux 5.4)
shared_hugetlb (bytes): hugetlb pages that other processes map too (Shared_Hugetlb, Linux 4.4); not in rss or pss
private_hugetlb (bytes): hugetlb pages that no other process maps (Private_Hugetlb, Linux 4.4); not in rss or pss
swap (bytes): memory in swap (Swap); for a shared mapping, that of the whole object, repeated in every process
swap_pss (bytes): memory in swap, each page divided by the number of processes that map it (SwapPss, Linux 4.3);
  excludes shared mappings
locked (bytes): memory locked by mlock, divided like pss (Locked); Linux 4.14 to 4.17 print all of pss here
thp_eligible (flag): whether the mapping may use transparent huge pages (THPeligible, Linux 5.0)
protection_key (number): memory protection key (ProtectionKey, Linux 4.6, only on processors that have such keys)
vm_flags (text): flags of the mapping as two-letter codes, see proc(5) (VmFlags, Linux 3.8)';

-- smap_summary: get_all_smaps() added up for each process, in kB
--
-- The sums are inside LATERAL instead of GROUP BY, so that conditions and joins
-- on pid select the processes before any of their files is read.
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
those processes are read. Each process takes as long as pg_meminfo_smaps().
A field that the kernel does not print is 0.';
COMMENT ON COLUMN smap_summary.kernel_page_size IS 'kB: largest page size used by the kernel (KernelPageSize)';
COMMENT ON COLUMN smap_summary.mmu_page_size IS 'kB: largest page size used by the hardware (MMUPageSize)';
COMMENT ON COLUMN smap_summary.thp_eligible IS
'mappings: number of mappings that may use transparent huge pages (THPeligible, Linux 5.0)';

-- pg_meminfo_processes(): every process of the cluster, with the kernel's counters
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
'Every process of the cluster: the postmaster and those of its children that run the same program. Read from
/proc/PID/status, stat, oom_score and oom_score_adj. No pages are walked, so each process takes about 50 microseconds,
however much memory it holds. From Linux 6.2 on, some kernels update their counters in batches per processor: on a
machine with many processors, the counters of resident memory can be off by megabytes.
Sizes are in bytes. What the kernel does not print, or denies, is NULL. pg_stat_activity, and with it backend_type, is
frozen within a transaction: a process that starts later in the transaction is shown as starting.

pid (identifier): process ID
backend_type (text): postmaster, logger, starting for a process not yet or no longer in pg_stat_activity, otherwise as
  in pg_stat_activity; never NULL
process_start (time): time when the process was started (stat), accurate to 10 ms
virtual_size (bytes): size of the address space (VmSize)
rss (bytes): resident memory, including all shared buffers that the process has touched (VmRSS); excludes hugetlb pages
peak_rss (bytes): highest value of rss so far (VmHWM)
rss_anon (bytes): resident anonymous memory (RssAnon, Linux 4.5), including pages still shared with the postmaster
  since fork
rss_file (bytes): resident pages of files such as the program and libraries (RssFile, Linux 4.5)
rss_shmem (bytes): resident pages of shared memory that the process has touched (RssShmem, Linux 4.5); do not
  sum over processes, which share these pages
swap (bytes): anonymous memory in swap (VmSwap)
hugetlb (bytes): memory in hugetlb pages, mostly the main shared memory segment (HugetlbPages, Linux 4.4); do not
  sum over processes, which share these pages
locked (bytes): locked memory (VmLck)
page_tables (bytes): page tables (VmPTE); with 4 kB pages and without huge pages, 2 MB per GB of shared buffers touched
threads (number): number of threads (Threads)
oom_score (number): score by which the OOM killer ranks the process, 0 to 2000 (oom_score)
oom_score_adj (number): adjustment added to the score, -1000 to 1000 (oom_score_adj); -1000 protects the process';

-- pg_meminfo: memory and activity of every process
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
'Every process of the cluster, the memory it holds and what it is doing: pg_meminfo_processes() joined with
pg_stat_activity. Can be polled every second: each process takes about 50 microseconds.';
COMMENT ON COLUMN pg_meminfo.leader_pid IS
'identifier: leader of the parallel group, for a parallel worker (pg_stat_activity)';
COMMENT ON COLUMN pg_meminfo.datname IS 'name: database (pg_stat_activity)';
COMMENT ON COLUMN pg_meminfo.usename IS 'name: user (pg_stat_activity)';
COMMENT ON COLUMN pg_meminfo.application_name IS 'text: name of the application (pg_stat_activity)';
COMMENT ON COLUMN pg_meminfo.client_addr IS 'address: client (pg_stat_activity)';
COMMENT ON COLUMN pg_meminfo.state IS 'text: state of the session (pg_stat_activity)';
COMMENT ON COLUMN pg_meminfo.private_estimate IS
'bytes: rss_anon + swap + page_tables, an estimate of private memory that includes pages still shared with the '
'postmaster since fork; NULL before Linux 4.5';
COMMENT ON COLUMN pg_meminfo.oom_charge IS
'bytes: rss + swap + page_tables, which the OOM killer compares before it applies oom_score_adj';
COMMENT ON COLUMN pg_meminfo.backend_start IS
'time: start of the session (pg_stat_activity), or of the process if there is no session';
COMMENT ON COLUMN pg_meminfo.xact_start IS 'time: start of the current transaction (pg_stat_activity)';
COMMENT ON COLUMN pg_meminfo.query_start IS 'time: start of the current or last query (pg_stat_activity)';
COMMENT ON COLUMN pg_meminfo.state_change IS 'time: last change of state (pg_stat_activity)';
COMMENT ON COLUMN pg_meminfo.query_id IS 'number: identifier of the query (pg_stat_activity)';
COMMENT ON COLUMN pg_meminfo.query IS 'text: current or last query (pg_stat_activity)';

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
'The mappings of one process of the cluster, added up by the kernel, read from /proc/PID/smaps_rollup (Linux 4.14); no
rows for any other pid or on an older kernel. The kernel walks all pages that the process maps, shared memory included:
this takes a third of a millisecond, or as long as pg_meminfo_smaps() if the process has touched much of
shared_buffers.
Sizes are in bytes. A field that the kernel does not print is NULL.

rss (bytes): resident memory, counted in full in every process that maps it (Rss); excludes hugetlb pages
pss (bytes): resident memory, each page divided by the number of processes that map it (Pss); excludes hugetlb pages
pss_dirty (bytes): dirty part of pss (Pss_Dirty, Linux 6.0)
pss_anon (bytes): part of pss that is anonymous memory (Pss_Anon, Linux 5.3)
pss_file (bytes): part of pss that is files (Pss_File, Linux 5.3)
pss_shmem (bytes): part of pss that is shared memory (Pss_Shmem, Linux 5.3)
shared_clean (bytes): clean pages that other processes map too (Shared_Clean)
shared_dirty (bytes): dirty pages that other processes map too (Shared_Dirty)
private_clean (bytes): clean pages that no other process maps (Private_Clean), including those of shared mappings
private_dirty (bytes): dirty pages that no other process maps (Private_Dirty), including those of shared mappings
referenced (bytes): pages accessed since the kernel last cleared their accessed bits (Referenced)
anonymous (bytes): pages not backed by a file, including modified pages of private file mappings (Anonymous)
ksm (bytes): pages merged with identical pages by KSM (KSM, Linux 6.6)
lazy_free (bytes): pages marked with MADV_FREE that the kernel has not reclaimed yet (LazyFree, Linux 4.12)
anon_huge_pages (bytes): anonymous memory in transparent huge pages (AnonHugePages)
shmem_pmd_mapped (bytes): shared memory mapped with transparent huge pages (ShmemPmdMapped, Linux 4.8)
file_pmd_mapped (bytes): page cache mapped with transparent huge pages (FilePmdMapped, Linux 5.4)
shared_hugetlb (bytes): hugetlb pages that other processes map too (Shared_Hugetlb, Linux 4.4); not in rss or pss
private_hugetlb (bytes): hugetlb pages that no other process maps (Private_Hugetlb, Linux 4.4); not in rss or pss
swap (bytes): memory in swap (Swap); for a shared mapping, that of the whole object, repeated in every process
swap_pss (bytes): memory in swap, each page divided by the number of processes that map it (SwapPss, Linux 4.3);
  excludes shared mappings
locked (bytes): memory locked by mlock, divided like pss (Locked); Linux 4.14 to 4.17 print all of pss here';

-- pg_meminfo_private(): private memory of one process
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
'Memory in the private mappings of one process of the cluster, by category, read from /proc/PID/maps and pagemap; no
rows for any other pid. Shared memory is not looked at, so the time grows with the process''s own memory and not with
shared_buffers: half a millisecond for an idle session, plus 2 ms per GB of its own memory.
Sizes are in bytes. If the kernel denies pagemap, resident, private and swap are NULL. Before Linux 6.7, a mapping
without permissions is assumed to be empty, and a large mapping is read in full.

category (text): what the mappings are used for: malloc, stack, jit, program, library, file, kernel or other
mappings (number): number of private mappings of this category
virtual_size (bytes): size of these mappings in the address space
resident (bytes): resident pages (pagemap bit 63), including the kernel''s zero page
private (bytes): resident pages that no other process maps (pagemap bits 63 and 56); NULL before Linux 4.2
swap (bytes): pages in swap (pagemap bit 62)';

-- pg_meminfo_mappings: every mapping of every process
--
-- The processes come first, so that conditions on pid and backend_type select
-- them before any smaps file is read.
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
'Every mapping of every process of the cluster, read from /proc/PID/smaps, in bytes. With a condition on pid or
backend_type, only the smaps files of those processes are read. Each process takes as long as pg_meminfo_smaps().
A field that the kernel does not print is NULL.';

-- pg_meminfo_segments(): each shared memory segment once
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
'Every shared memory segment mapped by a process of the cluster, each once, read from /proc/PID/maps of all processes.
No pages are walked process by process: this takes 0.05 milliseconds per process (0.3 before Linux 6.11), plus 25 ms per
GB of the main shared memory segment.
Sizes are in bytes.

kind (text): main for the main shared memory segment, which contains shared_buffers, or dynamic
name (text): the kernel''s name for the segment
inode (number): inode of the segment''s file; for a System V segment, its identifier; NULL if too large for bigint
size (bytes): size of the segment as it is mapped
resident (bytes): resident part, whichever process touched it (mincore, or /proc/sysvipc/shm); all of it if the
  segment uses huge pages; NULL if its file was removed or cannot be read
huge (flag): whether the segment uses huge pages
processes (number): number of attached processes
leader_pid (identifier): process ID of the only attached process, or of the leader if all attached processes belong to
  one parallel group; otherwise NULL, as for the main segment';

-- pg_meminfo_segments: the same, as a view
CREATE VIEW pg_meminfo_segments AS
    SELECT s.kind, s.name, s.inode, s.size, s.resident, s.huge, s.processes, s.leader_pid
    FROM pg_meminfo_segments() s;

GRANT SELECT ON pg_meminfo_segments TO PUBLIC;

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
'Memory of the whole cluster, in one row that adds up: private memory counted page by page (pagemap), each shared memory
segment counted once, and page tables. This takes half a millisecond per process, plus 25 ms per GB of the main shared
memory segment: poll it every minute, not every second.
Sizes are in bytes. What the kernel does not report is NULL. If a part of a sum is unknown, the sum is NULL rather than
too small; a WARNING then says for how many processes the kernel denied access.

processes (number): processes of the cluster
unreadable (number): processes whose private memory could not be read; if not 0, private and total are NULL. If the
  kernel denies their maps too, dynamic_shared_memory and page_tables_saved are also NULL; if it denies all of their
  files, so are page_tables and swap
private (bytes): resident pages of private mappings that no other process maps (pagemap, Linux 4.2)
shared_memory (bytes): size of the main shared memory segment, which contains shared_buffers
shared_memory_resident (bytes): resident part of the main segment, whichever process touched it (mincore); all of it
  if the segment uses huge pages
dynamic_shared_memory (bytes): resident size of all dynamic shared memory segments with an attached process (mincore,
  /proc/sysvipc/shm); NULL if a segment''s file was removed
page_tables (bytes): page tables of all processes (VmPTE)
total (bytes): private + shared_memory_resident + dynamic_shared_memory + page_tables; excludes the few MB that
  processes still share with the postmaster since fork, and files mapped by more than one process
swap (bytes): anonymous memory of all processes in swap (VmSwap), an upper bound: pages still shared with the postmaster
  since fork count once per process; not in total
huge_pages_status (text): on if the main segment uses huge pages, otherwise off
huge_pages_needed (number): huge pages, of the size set by huge_page_size, that the main segment needs or would need
  (shared_memory_size_in_huge_pages); NULL if Postgres does not know
page_tables_saved (bytes): lower bound on the page-table memory that huge pages for the main segment would save,
  estimated from maps and VmPTE; 0 if they are in use';

-- pg_meminfo_cluster: the same, as a view
CREATE VIEW pg_meminfo_cluster AS
    SELECT s.processes, s.unreadable, s.private, s.shared_memory, s.shared_memory_resident,
           s.dynamic_shared_memory, s.page_tables, s.total, s.swap, s.huge_pages_status, s.huge_pages_needed,
           s.page_tables_saved
    FROM pg_meminfo_cluster() s;

GRANT SELECT ON pg_meminfo_cluster TO PUBLIC;

-- pg_meminfo_host(): memory of the machine
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
'Memory of the machine, and how much of it is still available to the cluster. Read from /proc/meminfo, /proc/vmstat,
/proc/sys/vm/overcommit_memory, /dev/shm and the cgroups. This takes a millisecond.
Sizes are in bytes. What the kernel does not print is NULL.

memory_total (bytes): usable RAM (MemTotal)
memory_available (bytes): memory available without swapping, as estimated by the kernel (MemAvailable, Linux 3.14)
swap_total (bytes): size of swap (SwapTotal)
swap_free (bytes): unused swap (SwapFree)
commit_limit (bytes): most memory that the kernel commits if overcommit_memory is 2 (CommitLimit)
committed (bytes): memory that the kernel has committed (Committed_AS)
overcommit_memory (number): overcommit policy: 0 heuristic, 1 always, 2 up to commit_limit (vm.overcommit_memory)
headroom (bytes): memory still available to the cluster without swapping: the least of memory_available and, for each
  cgroup of this session that has a limit, memory_limit - working_set; NULL if any of these is unknown
headroom_source (text): which of them is the least: host, or the path of the cgroup
huge_page_size (bytes): default size of a huge page (Hugepagesize)
huge_pages_total (number): huge pages of that size (HugePages_Total)
huge_pages_free (number): those not in use (HugePages_Free)
huge_pages_reserved (number): those not in use, but reserved (HugePages_Rsvd)
oom_kills (number): processes killed by the OOM killer since boot, on the whole machine (oom_kill in vmstat, Linux 4.13)
dev_shm_size (bytes): size of /dev/shm, which holds dynamic shared memory of type posix (statvfs); NULL if unlimited
dev_shm_available (bytes): free space in /dev/shm (statvfs); NULL if unlimited';

-- pg_meminfo_host: the same, as a view
CREATE VIEW pg_meminfo_host AS
    SELECT s.memory_total, s.memory_available, s.swap_total, s.swap_free, s.commit_limit, s.committed,
           s.overcommit_memory, s.headroom, s.headroom_source, s.huge_page_size, s.huge_pages_total,
           s.huge_pages_free, s.huge_pages_reserved, s.oom_kills, s.dev_shm_size, s.dev_shm_available
    FROM pg_meminfo_host() s;

GRANT SELECT ON pg_meminfo_host TO PUBLIC;

-- pg_meminfo_cgroups(): the cgroup of the session and its ancestors
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
'The cgroup of this session, its parent, and so on, as far as they are visible from within the container: their limits,
the memory charged to them, OOM kills and memory pressure. This takes a tenth of a millisecond per cgroup. No rows if
the session''s own cgroup is not visible.
Sizes are in bytes. What the kernel does not print, or does not have in this version of cgroups, is NULL.

level (number): distance from the session''s own cgroup: 0 for that cgroup, 1 for its parent, and so on
path (text): path in the hierarchy, as seen from within the container (/proc/self/cgroup)
version (number): version of the cgroup hierarchy that accounts for memory, 1 or 2
memory_limit (bytes): limit at which the OOM killer acts (memory.max; memory.limit_in_bytes); NULL if unlimited
memory_high (bytes): limit at which processes are slowed down (memory.high); NULL if unlimited, and in version 1
usage (bytes): memory charged, including page cache (memory.current; memory.usage_in_bytes)
working_set (bytes): usage without inactive page cache, computed as the kubelet does
anon (bytes): anonymous memory (anon; total_rss)
file (bytes): page cache, including shared memory (file; total_cache)
shmem (bytes): shared memory and files in tmpfs (shmem; total_shmem)
kernel (bytes): memory of the kernel, such as page tables (kernel, Linux 5.18; memory.kmem.usage_in_bytes)
swap_limit (bytes): limit on swap (memory.swap.max; memory.memsw.limit_in_bytes - memory.limit_in_bytes); NULL if
  unlimited
swap_usage (bytes): memory in swap (memory.swap.current; total_swap)
unlimited (flag): whether this cgroup has no memory limit
oom_kills (number): processes killed by the OOM killer (oom_kill in memory.events, including descendants from Linux 5.2
  on; in memory.oom_control, Linux 4.13, without descendants)
oom_group (flag): whether the OOM killer kills all processes of the cgroup together (memory.oom.group, Linux 4.19);
  NULL in version 1
psi_some_usec (microseconds): time in which some task waited for memory (some in memory.pressure, Linux 4.20); NULL in
  version 1
psi_full_usec (microseconds): time in which all tasks waited for memory (full in memory.pressure, Linux 4.20); NULL in
  version 1';

-- pg_meminfo_cgroups: the same, as a view
CREATE VIEW pg_meminfo_cgroups AS
    SELECT s.level, s.path, s.version, s.memory_limit, s.memory_high, s.usage, s.working_set, s.anon, s.file,
           s.shmem, s.kernel, s.swap_limit, s.swap_usage, s.unlimited, s.oom_kills, s.oom_group,
           s.psi_some_usec, s.psi_full_usec
    FROM pg_meminfo_cgroups() s;

GRANT SELECT ON pg_meminfo_cgroups TO PUBLIC;

--
-- Comments of the views
--
-- A view above has a comment of its own only for what the function below it
-- does not say. All other comments are copied here: to a view, the function's
-- text before the list of columns; to a column, its line in that list. A line
-- may continue on lines that are indented by two spaces.
--
DO $$
DECLARE
    -- CREATE EXTENSION puts the extension's schema first in the search path
    extension_schema CONSTANT pg_catalog.name := pg_catalog.current_schema();
    pair record;
    line record;
BEGIN
    -- Nothing in the extension's schema can be called by what follows
    SET LOCAL search_path = pg_catalog, pg_temp;
    FOR pair IN
        SELECT format('%I.%I', extension_schema, view)::regclass AS view,
               obj_description(format('%I.%s', extension_schema, function)::regprocedure, 'pg_proc') AS text
        FROM (VALUES
            (1, 'smap_summary', 'get_all_smaps()'),
            (2, 'pg_meminfo', 'pg_meminfo_processes()'),
            -- Both have a column rss; the view shows the one of smaps
            (3, 'pg_meminfo_mappings', 'pg_meminfo_smaps(int)'),
            (4, 'pg_meminfo_mappings', 'pg_meminfo_processes()'),
            (5, 'pg_meminfo_segments', 'pg_meminfo_segments()'),
            (6, 'pg_meminfo_cluster', 'pg_meminfo_cluster()'),
            (7, 'pg_meminfo_host', 'pg_meminfo_host()'),
            (8, 'pg_meminfo_cgroups', 'pg_meminfo_cgroups()')
        ) AS pairs (number, view, function)
        ORDER BY number
    LOOP
        IF obj_description(pair.view, 'pg_class') IS NULL THEN
            EXECUTE format('COMMENT ON VIEW %s IS %L', pair.view, split_part(pair.text, E'\n\n', 1));
        END IF;
        FOR line IN
            SELECT attname AS name, format('%s: %s', match[2], replace(match[3], E'\n  ', ' ')) AS text
            FROM regexp_matches(pair.text, E'\n([a-z0-9_]+) \\(([^)]+)\\): ([^\n]+(?:\n  [^\n]+)*)', 'g') AS match
                JOIN pg_attribute ON attrelid = pair.view AND attname = match[1]
            WHERE col_description(attrelid, attnum) IS NULL
        LOOP
            EXECUTE format('COMMENT ON COLUMN %s.%I IS %L', pair.view, line.name, line.text);
        END LOOP;
    END LOOP;
END
$$;
