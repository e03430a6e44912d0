"""Every row and field equals what an independent parser gets from the same file."""

import contextlib
import threading
import time

import naive
import psutil
import psycopg
import pytest
from conftest import PATIENCE, preload, start_cluster, wait_until

AUXILIARY = ["checkpointer", "background writer", "walwriter", "autovacuum launcher", "logical replication launcher"]


def assert_eventually(connection, pid, query, expected):
    """A query about a process returns what is expected for the text of its smaps.

    A sleeping process keeps its private pages, but its share of common pages changes as other processes of the machine
    start and exit. So this is repeated until the file is the same before and after the query, and the rows match it.
    A function of Postgres reads the file: root without the capability to trace, as in many containers, may not.
    """

    def smaps():
        return connection.execute("SELECT pg_read_binary_file(%s)", [f"/proc/{pid}/smaps"]).fetchone()[0]

    deadline = time.monotonic() + 60 * PATIENCE
    while time.monotonic() < deadline:
        before = smaps()
        rows = connection.execute(query, [pid]).fetchall()
        if before == smaps() and rows == expected(before):
            return
    assert rows == expected(before)
    raise AssertionError(f"process {pid} does not hold still")


def assert_same(connection, pid, in_activity=True):
    """Each function returns for a process what the kernel prints."""
    for query, expected in [
        (f"SELECT {naive.SMAPS_COLUMNS} FROM pg_meminfo_smaps(%s)", naive.smaps_rows),
        (
            "SELECT * FROM get_all_smaps() WHERE pid = %s",
            lambda text: naive.contract_rows(pid, text) if in_activity else [],
        ),
        (
            "SELECT * FROM smap_summary WHERE pid = %s",
            lambda text: [naive.summary_row(pid, text)] if in_activity else [],
        ),
    ]:
        assert_eventually(connection, pid, query, expected)
    assert connection.execute("SELECT count(*) > 10 FROM pg_meminfo_smaps(%s)", [pid]).fetchone() == (True,)


@pytest.mark.kernels
@pytest.mark.parametrize("backend_type", AUXILIARY)
def test_auxiliary_process(connection, backend_type):
    pid = connection.execute("SELECT pid FROM pg_stat_activity WHERE backend_type = %s", [backend_type]).fetchone()[0]
    assert_same(connection, pid)


@pytest.mark.kernels
def test_idle_session(cluster, connection):
    with cluster.connect() as idle:
        idle.execute("CREATE TEMP TABLE t AS SELECT generate_series(1, 100000)")
        idle.execute("SELECT count(*) FROM get_all_smaps()")
        assert_same(connection, idle.info.backend_pid)


@pytest.mark.kernels
def test_idle_in_transaction(cluster, connection):
    with cluster.connect() as idle:
        idle.execute("BEGIN")
        idle.execute("DECLARE c CURSOR FOR SELECT * FROM generate_series(1, 1000000) AS i ORDER BY -i")
        idle.execute("FETCH 1 FROM c")
        assert_same(connection, idle.info.backend_pid)


@pytest.mark.kernels
def test_pg_sleep(cluster, connection):
    with cluster.connect() as sleeper:

        def sleep():
            with contextlib.suppress(psycopg.errors.QueryCanceled):
                sleeper.execute("SELECT pg_sleep(3600)")

        thread = threading.Thread(target=sleep)
        thread.start()
        pid = sleeper.info.backend_pid
        sleeps = "SELECT wait_event = 'PgSleep' FROM pg_stat_activity WHERE pid = %s"
        wait_until(lambda: connection.execute(sleeps, [pid]).fetchone() == (True,))
        try:
            assert_same(connection, pid)
        finally:
            sleeper.cancel()
            thread.join()


@pytest.mark.kernels
def test_postmaster(cluster, connection):
    assert_same(connection, cluster.postmaster, in_activity=False)


@pytest.mark.kernels
def test_psutil_agrees(cluster, connection):
    """psutil, which has a parser of its own, gives the same figures."""
    fields = ["size", "rss", "pss", "shared_clean", "shared_dirty", "private_clean", "private_dirty", "referenced", "anonymous", "swap"]
    query = f"SELECT start_address || '-' || end_address, {', '.join(fields)} FROM pg_meminfo_smaps(%s)"
    with cluster.connect() as idle:
        pid = idle.info.backend_pid
        process = psutil.Process(pid)

        def psutil_rows():
            maps = process.memory_maps(grouped=False)
            return {tuple([m.addr] + [getattr(m, field) for field in fields]) for m in maps}

        try:
            psutil_rows()
        except psutil.AccessDenied:
            pytest.skip("not permitted to read the server's processes")

        def agree():
            before = psutil_rows()
            ours = connection.execute(query, [pid]).fetchall()
            return before == psutil_rows() and len(ours) > 10 and set(ours) == before

        wait_until(agree)


RESERVES_3_TIB = r"""
#include <sys/mman.h>
__attribute__((constructor)) static void reserve(void)
{
    void *p = mmap(0, 3ULL << 40, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED)
        __builtin_trap();
}
"""


def test_mapping_of_3_tib(tmp_path):
    """Sanitizers and JIT engines make such mappings. The size is NULL in get_all_smaps() and right in smap_summary."""
    with start_cluster(LD_PRELOAD=preload(tmp_path, RESERVES_3_TIB)) as cluster:
        with cluster.connect() as connection, cluster.connect() as idle:
            pid = idle.info.backend_pid
            assert_same(connection, pid)
            kilobytes = 3 * 2**30
            null = "SELECT count(*) FROM get_all_smaps() WHERE pid = %s AND mem_size IS NULL"
            assert connection.execute(null, [pid]).fetchone() == (1,)
            whole = "SELECT mem_size FROM smap_summary WHERE pid = %s"
            assert kilobytes < connection.execute(whole, [pid]).fetchone()[0] < kilobytes + 2**20
            in_bytes = "SELECT max(size) FROM pg_meminfo_smaps(%s)"
            # The kernel may have merged it with an adjacent mapping.
            assert 3 * 2**40 <= connection.execute(in_bytes, [pid]).fetchone()[0] < 3 * 2**40 + 2**20
