"""pg_meminfo_private(pid) compared with smaps, for every kind of private memory."""

import contextlib
import ctypes
import os
import re
import subprocess
import threading

import psycopg
import pytest
from conftest import PAGE, in_mounts, preload, start_cluster, wait_until, with_notices
from test_reading import traced

PRIVATE = "SELECT category, mappings, virtual_size, private FROM pg_meminfo_private(%(pid)s) ORDER BY category"
SMAPS = """
    SELECT category, count(*), sum(size)::bigint, sum(private_clean + private_dirty + private_hugetlb)::bigint
    FROM pg_meminfo_smaps(%(pid)s) WHERE permissions ~ 'p$' GROUP BY category ORDER BY category
"""


def assert_same(connection, pid):
    """For an idle process, both give the same figures to the kilobyte. What it shares changes as other processes start
    and exit, so this is repeated."""

    def both():
        return [connection.execute(query, {"pid": pid}).fetchall() for query in (PRIVATE, SMAPS, PRIVATE)]

    rows = None

    def agree():
        nonlocal rows
        rows = both()
        return rows[0] == rows[1] == rows[2] != []

    try:
        wait_until(agree)
    except AssertionError:
        assert rows[0] == rows[1]
        raise
    return {category: private for category, _, _, private in rows[0]}


@pytest.mark.kernels
def test_as_smaps_has_it(cluster, connection):
    with cluster.sessions(3) as sessions:
        for session in sessions:
            private = assert_same(connection, session.info.backend_pid)
            assert private["malloc"] > 100_000
        for (pid,) in connection.execute("SELECT pid FROM pg_meminfo WHERE backend_type IN ('checkpointer', 'background writer')").fetchall():
            assert_same(connection, pid)


def test_a_session_that_only_reads_shared_buffers_holds_nothing_of_them():
    """smaps counts as private what only one process has touched, even in shared buffers. This function does not."""
    # Workers would read a part of the table for the session.
    settings = ["shared_buffers = 256MB", "huge_pages = off", "max_parallel_workers_per_gather = 0"]
    with start_cluster(*settings) as cluster, cluster.connect() as connection:
        cluster.fill_shared_buffers(connection, "big", 100)
        with cluster.connect() as reader:
            pid = reader.info.backend_pid
            private = "SELECT sum(private)::bigint FROM pg_meminfo_private(%s)"
            before = connection.execute(private, [pid]).fetchone()[0]
            reader.execute("SELECT count(*) FROM big")
            [(rss_shmem, estimate)] = connection.execute("SELECT rss_shmem, private_estimate FROM pg_meminfo WHERE pid = %s", [pid])
            assert rss_shmem > 90_000_000
            after = connection.execute(private, [pid]).fetchone()[0]
            assert after - before < 10_000_000
            assert estimate < 20_000_000


def malloc_of(connection, session):
    query = "SELECT private FROM pg_meminfo_private(%s) WHERE category = 'malloc'"
    return connection.execute(query, [session.info.backend_pid]).fetchone()[0]


def test_a_sort_is_private_memory_while_it_lasts(cluster, connection):
    with cluster.connect("work_mem=256MB") as session:

        def estimate():
            estimates = "SELECT private_estimate FROM pg_meminfo WHERE pid = %s"
            return connection.execute(estimates, [session.info.backend_pid]).fetchone()[0]

        estimate_before = estimate()
        before = malloc_of(connection, session)
        session.execute("BEGIN; DECLARE c CURSOR FOR SELECT repeat(n::text, 20) AS t FROM generate_series(1, 1300000) AS n ORDER BY t")
        session.execute("FETCH 1 FROM c")
        [(used,)] = session.execute("SELECT sum(total_bytes)::bigint FROM pg_backend_memory_contexts").fetchall()
        # The sort has not filled its array of tuples.
        assert malloc_of(connection, session) - before > 0.8 * (used - 5_000_000) > 200_000_000
        assert 200_000_000 < estimate() - estimate_before < 400_000_000
        session.execute("COMMIT")
        assert malloc_of(connection, session) - before < 10_000_000
        assert estimate() - estimate_before < 10_000_000


def test_prepared_statements_stay(cluster, connection):
    """An idle session can hold much memory."""
    with cluster.connect("plan_cache_mode=force_generic_plan") as session:
        before = malloc_of(connection, session)
        columns = ", ".join(f"n + {column} AS c{column}" for column in range(200))
        for number in range(100):
            session.execute(f"PREPARE s{number} AS SELECT {columns} FROM generate_series(1, 1) AS n")
            session.execute(f"EXECUTE s{number}")
        [(cached,)] = session.execute(
            "SELECT sum(total_bytes)::bigint FROM pg_backend_memory_contexts WHERE name IN ('CachedPlan', 'CachedPlanSource', 'CachedPlanQuery')"
        ).fetchall()
        # Postgres has not touched all that it has allocated.
        assert malloc_of(connection, session) - before > 0.6 * cached > 10_000_000
        session.execute("SELECT 1")
        assert malloc_of(connection, session) - before > 0.6 * cached


def test_temporary_tables_are_private_up_to_temp_buffers(cluster, connection):
    with cluster.connect("temp_buffers=64MB") as session:
        before = malloc_of(connection, session)
        session.execute("CREATE TEMP TABLE t AS SELECT n, repeat('x', 1000) FROM generate_series(1, 50000) AS n")
        assert malloc_of(connection, session) - before > 40_000_000
        session.execute("DROP TABLE t")
        # The session keeps the buffers for the next temporary table.
        assert malloc_of(connection, session) - before > 40_000_000


@contextlib.contextmanager
def swap(directory):
    """256 MB of swap until the end of the block. Skips the test where none can be added."""
    file = directory / "swap"
    with open(file, "wb") as writer:
        for _ in range(256):
            writer.write(bytes(2**20))
    file.chmod(0o600)
    for command in ["mkswap", file], ["swapon", file]:
        made = subprocess.run(command, capture_output=True, text=True, check=False)
        if made.returncode != 0:
            pytest.skip(f"cannot add swap here: {made.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["swapoff", file], check=True)


def page_out(pid, start, end):
    """Makes the kernel swap out a mapping of another process: process_madvise(2) with MADV_PAGEOUT."""
    class Range(ctypes.Structure):
        _fields_ = [("start", ctypes.c_size_t), ("length", ctypes.c_size_t)]

    descriptor = os.pidfd_open(pid)
    try:
        part = Range(start, end - start)
        libc = ctypes.CDLL(None, use_errno=True)
        length = ctypes.c_size_t(1)
        if libc.syscall(440, descriptor, ctypes.byref(part), length, 21, 0) < 0:
            pytest.skip(f"cannot swap out a process here: {os.strerror(ctypes.get_errno())}")
    finally:
        os.close(descriptor)


@pytest.mark.kernels
def test_what_is_swapped_still_counts(cluster, connection, tmp_path):
    """Swapped memory stays in private_estimate, and every function shows it as swap, until it is freed."""
    with swap(tmp_path), cluster.connect("work_mem=256MB") as session:
        pid = session.info.backend_pid

        def held():
            query = """
                SELECT m.swap, m.private_estimate, m.rss_anon, sum(p.swap)::bigint, sum(p.private)::bigint
                FROM pg_meminfo m, pg_meminfo_private(m.pid) p WHERE m.pid = %s GROUP BY m.swap, m.private_estimate, m.rss_anon
            """
            return connection.execute(query, [pid]).fetchone()

        session.execute("BEGIN; DECLARE c CURSOR FOR SELECT repeat(n::text, 20) AS t FROM generate_series(1, 300000) AS n ORDER BY t")
        session.execute("FETCH 1 FROM c")
        _, estimate_before, _, swap_before, private_before = held()
        assert private_before > 50_000_000
        malloc = "SELECT start_address, end_address FROM pg_meminfo_smaps(%s) WHERE category = 'malloc' AND permissions = 'rw-p'"
        for start, end in connection.execute(malloc, [pid]).fetchall():
            page_out(pid, int(start, 16), int(end, 16))
        with open(f"/proc/{pid}/status") as file:
            if "VmSwap:\t       0 kB\n" in file.read():
                pytest.skip("nothing was swapped out, as in a cgroup without swap")
        swapped, estimate, resident, swap_by_pages, private = held()
        # The counters of status may lag by some pages.
        lag = max(1_000_000, 128 * PAGE)
        assert swapped - swap_before > 0.8 * private_before
        assert abs(swapped - swap_by_pages) < lag
        assert abs(estimate - estimate_before) < 5 * lag and resident < 0.5 * estimate
        assert private < 0.3 * private_before
        cluster_wide = "SELECT swap FROM pg_meminfo_cluster"
        assert connection.execute(cluster_wide).fetchone()[0] >= swapped
        with_smaps = "SELECT sum(swap)::bigint FROM pg_meminfo_smaps(%s) WHERE permissions ~ 'p$'"
        assert abs(connection.execute(with_smaps, [pid]).fetchone()[0] - swapped) < lag
        session.execute("COMMIT")
        assert held()[0] < 0.2 * swapped


# Gives each session every kind of memory for which pagemap and smaps might differ. It is allocated after the fork,
# because they do differ for a huge page that is still shared with the postmaster.
KINDS = """
#define _GNU_SOURCE
#include <pthread.h>
#include <string.h>
#include <sys/mman.h>
#define MB (1024 * 1024L)
static char *get(long size, int protection, int flags) {
    /* Huge pages that are not reserved may be missing when they are touched, which is a SIGBUS. */
    if (!(flags & MAP_HUGETLB)) flags |= MAP_NORESERVE;
    char *p = mmap(0, size, protection, flags | MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return p == MAP_FAILED ? 0 : p;
}
static void child(void) {
    char *p;
    /* Written, then set to PROT_NONE. */
    p = get(3 * MB, PROT_READ | PROT_WRITE, 0); memset(p, 1, MB); mprotect(p, 3 * MB, PROT_NONE);
    /* Only read: the shared zero page. */
    p = get(5 * MB, PROT_READ | PROT_WRITE, 0);
    for (long i = 0; i < 5 * MB; i += 4096) *(volatile char *)(p + i);
    /* Transparent huge pages, if available. */
    p = get(8 * MB, PROT_READ | PROT_WRITE, 0); madvise(p, 8 * MB, MADV_HUGEPAGE); memset(p, 1, 8 * MB);
    /* Private huge pages, if available. */
    p = get(4 * MB, PROT_READ | PROT_WRITE, MAP_HUGETLB | MAP_POPULATE); if (p) memset(p, 1, 4 * MB);
    /* Reservations of 16 TiB, one of them with a few pages in it. */
    p = get(16 * 1024 * 1024 * MB, PROT_READ | PROT_WRITE, 0);
    if (p) { madvise(p, 16 * 1024 * 1024 * MB, MADV_NOHUGEPAGE); for (int i = 0; i < 10; i++) p[i * 1024 * 1024 * MB] = 1; }
    get(16 * 1024 * 1024 * MB, PROT_NONE, 0);
    /* Memory that is writable and executable. */
    p = get(MB, PROT_READ | PROT_WRITE | PROT_EXEC, 0); memset(p, 1, MB);
}
__attribute__((constructor)) static void start(void) { pthread_atfork(0, 0, child); }
"""


@pytest.mark.kernels
def test_memory_of_every_kind(tmp_path, huge_pages):
    release = tuple(int(number) for number in re.findall(r"\d+", os.uname().release)[:2])
    if release < (6, 7):
        pytest.skip("before Linux 6.7, mappings without access count as empty, and reservations are read as a whole")
    with start_cluster("huge_pages = off", LD_PRELOAD=preload(tmp_path, KINDS)) as cluster, cluster.connect() as connection:
        with cluster.sessions(1) as [session]:
            private = assert_same(connection, session.info.backend_pid)
            assert private["malloc"] >= 8 * 2**20 + 10 * PAGE
            # PROT_NONE memory has no category of its own.
            assert private["other"] >= 2**20
            assert private["jit"] >= 2**20
            # This returns soon. With pages of 4 kB, the entries of a reservation of 16 TiB would be 32 GB to read.
            query = "SELECT sum(virtual_size) > 32::numeric * 2 ^ 40 FROM pg_meminfo_private(%s)"
            assert connection.execute(query, [session.info.backend_pid]).fetchone() == (True,)


def test_huge_pages_that_are_in_shared_memory_are_not_private(huge_pages):
    try:
        with start_cluster("huge_pages = on", "shared_buffers = 64MB") as cluster, cluster.connect() as connection:
            with cluster.sessions(1) as [session]:
                pid = session.info.backend_pid
                assert_same(connection, pid)
                query = "SELECT category, shared_hugetlb + private_hugetlb FROM pg_meminfo_smaps(%s) WHERE shared_hugetlb + private_hugetlb > 0"
                assert {category for category, _ in connection.execute(query, [pid])} == {"shared_memory"}
                assert connection.execute("SELECT hugetlb FROM pg_meminfo WHERE pid = %s", [pid]).fetchone()[0] > 0
    except AssertionError as error:
        if "did not start" in str(error):
            pytest.skip("huge pages are not available here")
        raise


def test_a_cancel_while_a_large_process_is_read(tmp_path):
    """It has 100 GB of address space in mappings whose entries are all read, in 3,200 reads with pages of 4 kB."""
    # Of two protections in turn, so that the kernel does not merge them into one mapping.
    many = """
        #include <pthread.h>
        #include <sys/mman.h>
        static void child(void) {
            for (int i = 0; i < 200; i++)
                mmap(0, 512L << 20, PROT_READ | (i % 2 ? PROT_WRITE : 0), MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        }
        __attribute__((constructor)) static void start(void) { pthread_atfork(0, 0, child); }
    """
    with start_cluster("huge_pages = off", LD_PRELOAD=preload(tmp_path, many)) as cluster, cluster.connect() as reader:

        def cancel_when_reading():
            wait_until(lambda: (tmp_path / "strace").read_text().count("pread64(") >= 100)
            reader.cancel()

        with cluster.sessions(1) as [large], traced(reader.info.backend_pid, tmp_path, "pread64") as lines:
            canceller = threading.Thread(target=cancel_when_reading)
            canceller.start()
            with pytest.raises(psycopg.errors.QueryCanceled):
                reader.execute("SELECT pg_meminfo_private(%s) FROM generate_series(1, 1000)", [large.info.backend_pid])
            canceller.join()
        at = next(number for number, line in enumerate(lines) if line.startswith("--- SIGINT"))
        assert sum(line.startswith("pread64") for line in lines[:at]) >= 100
        assert sum(line.startswith("pread64") for line in lines[at:]) <= 1


@pytest.mark.kernels
def test_rollup_is_the_sum_of_the_mappings(cluster, connection):
    sums = "rss pss pss_dirty shared_clean shared_dirty private_clean private_dirty referenced anonymous swap locked".split()
    with cluster.sessions(1) as [session]:
        pid = session.info.backend_pid
        rollup = f"SELECT {', '.join(sums)} FROM pg_meminfo_rollup({pid})"
        summed = f"SELECT {', '.join(f'sum({name})::bigint' for name in sums)} FROM pg_meminfo_smaps({pid})"

        def agree():
            # Each mapping's PSS is rounded down to a kilobyte. Before Linux 6.0 there is no Pss_Dirty.
            a, b = connection.execute(rollup).fetchone(), connection.execute(summed).fetchone()
            close = all(a[n] == b[n] if None in (a[n], b[n]) else 0 <= a[n] - b[n] < 1024 * 300 for n in (1, 2, 10))
            return close and all(a[n] == b[n] for n in range(len(sums)) if n not in (1, 2, 10))

        wait_until(agree)
        parts = f"SELECT pss - pss_anon - pss_file - pss_shmem FROM pg_meminfo_rollup({pid})"
        assert abs(connection.execute(parts).fetchone()[0]) <= 3 * 1024
    for stranger in 1, 0, -1, 2**31 - 1:
        for function in "rollup", "private":
            assert connection.execute(f"SELECT count(*) FROM pg_meminfo_{function}(%s)", [stranger]).fetchone() == (0,)


# Like a kernel before 4.14: smaps_rollup does not exist.
WITHOUT_ROLLUP = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <string.h>
int openat(int directory, const char *path, int flags, unsigned mode) {
    if (!strcmp(path, "smaps_rollup")) {
        errno = ENOENT;
        return -1;
    }
    return ((int (*)(int, const char *, int, unsigned))dlsym(RTLD_NEXT, "openat"))(directory, path, flags, mode);
}
"""


def test_without_rollup_there_are_no_rows(tmp_path):
    with start_cluster(LD_PRELOAD=preload(tmp_path, WITHOUT_ROLLUP)) as cluster, cluster.connect() as connection:
        assert connection.execute("SELECT * FROM pg_meminfo_rollup(pg_backend_pid())").fetchall() == []
        assert connection.execute("SELECT count(*) > 10 FROM pg_meminfo_smaps(pg_backend_pid())").fetchone() == (True,)


def test_without_pagemap_there_are_only_sizes(tmp_path):
    """The figures that need pagemap are NULL, without an error."""
    with start_cluster(within=in_mounts()) as cluster, cluster.connect() as connection, cluster.sessions(1) as [session]:
        closed = tmp_path / "closed"
        closed.touch(mode=0o000)
        target = f"/proc/{session.info.backend_pid}/pagemap"
        enter = ["nsenter", "--target", str(cluster.postmaster), "--mount"]
        subprocess.run([*enter, "mount", "--bind", closed, target], check=True)
        query = "SELECT mappings > 0, virtual_size > 0, resident, private, swap FROM pg_meminfo_private(%s)"
        rows = connection.execute(query, [session.info.backend_pid]).fetchall()
        assert len(rows) > 3 and set(rows) == {(True, True, None, None, None)}


# The release of the kernel is the text of a file.
RELEASE = """
#define _GNU_SOURCE
#include <stdio.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <unistd.h>
int uname(struct utsname *names) {{
    FILE *file = fopen("{}", "r");
    int result = syscall(SYS_uname, names);
    if (file) {{
        if (fscanf(file, "%64s", names->release) != 1) result = -1;
        fclose(file);
    }}
    return result;
}}
"""


@pytest.mark.parametrize(("release", "tells"), [("3.10.0-1160.el7.x86_64", False), ("4.1.52", False), ("4.2.0-42-generic", True)])
def test_before_linux_4_2_private_is_null(tmp_path, release, tells):
    """There is no WARNING, as nothing is denied. Resident and swapped memory is known."""
    file = tmp_path / "osrelease"
    file.write_text(f"{release}\n")
    with start_cluster(LD_PRELOAD=preload(tmp_path, RELEASE.format(file))) as cluster, cluster.connect() as connection, cluster.sessions(1) as [session]:
        query = "SELECT resident > 0, swap >= 0, private IS NOT NULL FROM pg_meminfo_private(%s) WHERE category IN ('malloc', 'program')"
        for pid in session.info.backend_pid, connection.info.backend_pid:
            assert with_notices(connection, query, [pid]) == ([(True, True, tells)] * 2, [])
        query = """
            SELECT unreadable = CASE WHEN private IS NULL THEN processes ELSE 0 END, private IS NOT NULL, total IS NOT NULL,
                   shared_memory_resident > 0, page_tables > 0, swap >= 0
            FROM pg_meminfo_cluster
        """
        assert with_notices(connection, query) == ([(True, tells, tells, True, True, True)], [])


# Like a kernel before 6.7: PAGEMAP_SCAN does not exist. Each session has large mappings and mappings without access.
WITHOUT_SCAN = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <stdarg.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#define MB (1024 * 1024L)
int ioctl(int descriptor, unsigned long request, ...) {
    static int (*real)(int, unsigned long, ...);
    va_list rest;
    void *argument;
    if (_IOC_TYPE(request) == 'f' && _IOC_NR(request) == 16) { errno = ENOTTY; return -1; }
    va_start(rest, request);
    argument = va_arg(rest, void *);
    va_end(rest);
    if (!real) real = dlsym(RTLD_NEXT, "ioctl");
    return real(descriptor, request, argument);
}
static char *get(long size, int protection) {
    char *p = mmap(0, size, protection, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) return 0;
    madvise(p, size, MADV_NOHUGEPAGE);
    return p;
}
static void child(void) {
    char *p = get(3 * 1024 * MB, PROT_READ | PROT_WRITE);
    /* Touched at both ends and in between. */
    if (p) { memset(p, 1, MB); memset(p + 1500 * MB, 1, 7 * MB); p[3 * 1024 * MB - 1] = 1; }
    get(16 * 1024 * 1024 * MB, PROT_NONE);
    p = get(3 * MB, PROT_READ | PROT_WRITE);
    if (p) { memset(p, 1, MB); mprotect(p, 3 * MB, PROT_NONE); }
}
__attribute__((constructor)) static void start(void) { pthread_atfork(0, 0, child); }
"""


@pytest.mark.kernels
def test_before_linux_6_7_large_mappings_are_read_as_a_whole(tmp_path):
    """And mappings without access count as empty, even a reservation of 16 TiB."""
    with start_cluster("huge_pages = off", LD_PRELOAD=preload(tmp_path, WITHOUT_SCAN)) as cluster, cluster.connect() as connection:
        with cluster.sessions(1) as [session]:
            pid = session.info.backend_pid

            def both():
                found, expected = ({row[0]: row[1:] for row in connection.execute(query, {"pid": pid})} for query in (PRIVATE, SMAPS))
                return found, expected, found.pop("other"), expected.pop("other")

            def agree():
                found, expected, other, other_expected = both()
                # smaps counts only one thing more: the megabyte that was written and then set to PROT_NONE.
                return found == expected and other == (*other_expected[:2], other_expected[2] - 2**20)

            wait_until(agree)
            found, _, other, _ = both()
            assert found["malloc"][1] > 3 * 2**30 and found["malloc"][2] > 8 * 2**20
            assert other[1] > 16 * 2**40
