"""pg_meminfo_segments: each segment of shared memory once."""

import os
import subprocess

import psutil
import pytest
from conftest import one_major, start_cluster, wait_until
from test_reading import traced

MB = 2**20


def segments(connection, kind):
    query = "SELECT name, inode, size, resident, huge, processes, leader_pid FROM pg_meminfo_segments WHERE kind = %s"
    return connection.execute(query, [kind]).fetchall()


def main_segment(connection):
    [segment] = segments(connection, "main")
    return segment


def touch_all(cluster, connection):
    """Fills shared buffers, and touches them in a session that then exits. Returns how many bytes it had touched."""
    cluster.fill_shared_buffers(connection, "big", 100)
    with cluster.connect("max_parallel_workers_per_gather=0") as session:
        session.execute("SELECT count(*) FROM big")
        query = "SELECT rss_shmem FROM pg_meminfo WHERE pid = %s"
        return connection.execute(query, [session.info.backend_pid]).fetchone()[0]


@pytest.mark.kernels
@pytest.mark.parametrize("form", ["mmap", "sysv"])
def test_the_main_segment(form):
    """All pages that any process has touched are resident, even after it has exited."""
    with start_cluster(f"shared_memory_type = {form}", "huge_pages = off", "shared_buffers = 256MB") as cluster:
        with cluster.connect() as connection:
            touched = touch_all(cluster, connection)
            assert touched > 10 * MB
            name, inode, size, resident, huge, processes, leader = main_segment(connection)
            assert size > 256 * MB and touched - 4 * MB < resident <= size
            assert (huge, leader) == (False, None)
            everybody = "SELECT count(*) FROM pg_meminfo"
            wait_until(lambda: main_segment(connection)[5] == connection.execute(everybody).fetchone()[0])
            assert processes >= 4
            if form == "sysv":
                with open("/proc/sysvipc/shm") as file:
                    names, *rows = (line.split() for line in file)
                [row] = [dict(zip(names, row)) for row in rows if int(row[names.index("shmid")]) == inode]
                # The size is aligned to a page, and other processes may have touched more since.
                assert 0 <= int(row["rss"]) - resident < 4 * MB and abs(int(row["size"]) - size) < MB
            else:
                assert name == "/dev/zero (deleted)"


@pytest.mark.kernels
def test_on_huge_pages(huge_pages):
    try:
        with start_cluster("huge_pages = on", "shared_buffers = 64MB") as cluster, cluster.connect() as connection:
            name, _, size, resident, huge, _, _ = main_segment(connection)
            assert (name, huge, resident) == ("/anon_hugepage (deleted)", True, size)
    except AssertionError as error:
        if "did not start" in str(error):
            pytest.skip("huge pages are not available here")
        raise


@pytest.mark.parametrize("form", ["posix", one_major("sysv"), one_major("mmap")])
def test_a_parallel_hash_join_has_its_leader(form):
    """Its hash table of 400 MB is in no process's private memory, and is freed after the query."""
    shm = os.statvfs("/dev/shm")
    # In containers, /dev/shm often has 64 MB. The data directory may be in memory, and has the table twice, once as
    # WAL.
    has_room = psutil.virtual_memory().available > 3000 * MB and (form != "posix" or shm.f_bavail * shm.f_frsize > 600 * MB)
    megabytes = 400 if has_room else 20
    settings = [f"dynamic_shared_memory_type = {form}", "huge_pages = off", "shared_buffers = 64MB", "max_parallel_workers = 4"]
    with start_cluster(*settings) as cluster, cluster.connect() as connection:
        rows = f"generate_series(1, {megabytes * 500})"
        connection.execute(f"CREATE TABLE a AS SELECT n, repeat('x', 1950) AS x FROM {rows} AS n")
        connection.execute("CREATE FUNCTION slow(text) RETURNS int LANGUAGE plpgsql PARALLEL SAFE AS 'BEGIN PERFORM pg_sleep(1000); RETURN 1; END'")
        connection.execute("VACUUM ANALYZE a")
        parallel = [
            "parallel_setup_cost=0", "parallel_tuple_cost=0", "min_parallel_table_scan_size=0", "max_parallel_workers_per_gather=2",
            "work_mem=256MB", "enable_mergejoin=off", "enable_nestloop=off",
        ]  # fmt: skip
        before = {segment[:2] for segment in segments(connection, "dynamic")}

        def new():
            return [segment for segment in segments(connection, "dynamic") if segment[:2] not in before]

        with cluster.running("SELECT count(slow(a.x || b.x)) FROM a JOIN a AS b USING (n)", *parallel) as leader:
            # The hash table is complete, and the join has begun.
            asleep = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND %s IN (pid, leader_pid)"
            wait_until(lambda: connection.execute(asleep, [leader]).fetchone()[0] == 3)
            found = new()
            assert sum(size for _, _, size, *_ in found) > 0.9 * megabytes * MB
            assert sum(resident for _, _, _, resident, *_ in found) > 0.9 * megabytes * MB
            assert {leader_pid for *_, leader_pid in found} == {leader}
            private = "SELECT sum(private)::bigint FROM pg_meminfo m, pg_meminfo_private(m.pid) WHERE %s IN (m.pid, m.leader_pid)"
            assert connection.execute(private, [leader]).fetchone()[0] < 25 * MB
        wait_until(lambda: new() == [])


@pytest.mark.kernels
def test_no_page_is_walked_for_each_process(connection, tmp_path):
    with traced(connection.info.backend_pid, tmp_path) as lines:
        connection.execute("SELECT * FROM pg_meminfo_segments").fetchall()
    assert sum('"maps"' in line for line in lines) >= 5
    assert not any('"smaps' in line or '"pagemap' in line for line in lines)


@pytest.mark.kernels
def test_nothing_stays_mapped_or_open(cluster, connection):
    """The function opens and maps the files of the segments to measure them."""
    pid = connection.info.backend_pid

    def state():
        connection.execute("SELECT * FROM pg_meminfo_segments").fetchall()
        shown = subprocess.run(
            [*cluster.as_owner, "sh", "-c", f"ls -l /proc/{pid}/fd | sed 's/.* -> //' | sort; grep -c PostgreSQL. /proc/{pid}/maps"],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        return shown.stdout

    first = state()
    for _ in range(10):
        assert state() == first
