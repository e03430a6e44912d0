"""Memory and open descriptors of the calling session do not grow with the number of calls or of processes."""

import itertools
import re
import statistics
import subprocess

import psutil
import psycopg
import pytest
from conftest import READERS, one_major, start_cluster

KILOBYTE = 1024
MEGABYTE = 1024 * KILOBYTE


def anonymous(cluster, pid):
    """Anonymous memory of a process in bytes."""
    # Not RssAnon in status, which may lag by some pages per processor.
    rollup = subprocess.run([*cluster.as_owner, "cat", f"/proc/{pid}/smaps_rollup"], capture_output=True, text=True, check=True).stdout
    return int(re.search(r"^Anonymous:\s+(\d+) kB$", rollup, re.MULTILINE)[1]) * KILOBYTE


def descriptors(cluster, pid):
    """What each open descriptor of a process refers to."""
    command = [*cluster.as_owner, "sh", "-c", f"ls -l /proc/{pid}/fd | sed 's/.* -> //' | sort"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def assert_flat(cluster, connection, call, calls):
    """A session's memory and descriptors do not grow with the number of calls. A leak goes on for as long as calls are
    made, so with it none of three such series is flat. Without one, memory can grow by chance in one of them."""
    assert any(is_flat(cluster, connection.info.backend_pid, call, calls) for _ in range(3))


def is_flat(cluster, pid, call, calls):
    """Whether memory is the same after so many calls. A leak grows in most tenths of the calls, and in the second half
    is never as small as in the first. Without a leak, the allocator grows in a step now and then. With threads, memory
    goes up and down by some buffers, which hides for a while what leaks meanwhile: then only the halves tell."""

    def after_a_tenth():
        for _ in range(calls // 10):
            call()
        return anonymous(cluster, pid), descriptors(cluster, pid)

    before = psutil.Process(pid).memory_info().rss
    sizes, opened = zip(*(after_a_tenth() for _ in range(11)))
    print(f"{calls} calls: VmRSS {before // KILOBYTE} kB before, {psutil.Process(pid).memory_info().rss // KILOBYTE} kB after")
    print(f"anonymous memory in kB after each tenth: {[size // KILOBYTE for size in sizes]}")
    assert all(each == opened[0] for each in opened)
    growth = min(sizes[6:]) - min(sizes[1:6])
    # Fewer than 16 bytes per call.
    if READERS > 1:
        return growth < 16 * calls / 2 + 256 * KILOBYTE
    steps = statistics.median(after - before for before, after in itertools.pairwise(sizes))
    return steps < 16 * calls / 10 or growth < 16 * calls / 2


@pytest.fixture(scope="module")
def cluster(cluster):
    """With threads, a cluster with one malloc arena: of several, threads use different ones from call to call."""
    if READERS == 1:
        yield cluster
    else:
        with start_cluster("autovacuum_naptime = 1d", MALLOC_ARENA_MAX="1") as calm:
            yield calm


@pytest.fixture(params=[one_major(1000), pytest.param(10000, marks=pytest.mark.long)])
def calls(request):
    return request.param


@pytest.mark.parametrize("what", ["get_all_smaps()", "pg_meminfo_processes()", "pg_meminfo_cluster()", "pg_meminfo_host(), pg_meminfo_cgroups()"])
def test_calls(cluster, connection, calls, what):
    assert_flat(cluster, connection, lambda: connection.execute(f"SELECT count(*) FROM {what}"), calls)


def test_cancelled_calls(cluster, connection, calls):
    """Each call is cancelled while it reads: none is finished so early."""
    connection.execute("SET statement_timeout = '5ms'")

    def cancelled():
        with pytest.raises(psycopg.errors.QueryCanceled):
            connection.execute("SELECT count(*) FROM (SELECT get_all_smaps() FROM generate_series(1, 1000)) AS s")

    assert_flat(cluster, connection, cancelled, calls)


def test_failing_calls(cluster, connection, calls):
    """Each call fails when its result set is written to a temporary file."""
    connection.execute("SET work_mem = '64kB'")
    connection.execute("SET temp_file_limit = '64kB'")

    def failing():
        with pytest.raises(psycopg.errors.ConfigurationLimitExceeded):
            connection.execute("SELECT count(*) FROM get_all_smaps()")

    assert_flat(cluster, connection, failing, calls)


@pytest.mark.long
def test_memory_does_not_grow_with_the_number_of_processes():
    """A thousand processes have some 60 MB of rows. Reading them needs work_mem and a constant. With more work_mem the
    same session exceeds the limit, which proves that the limit is effective."""
    with start_cluster("max_connections = 1100", "shared_buffers = 16MB") as cluster, cluster.sessions(1000):
        with cluster.connect() as connection:
            count = "SELECT count(DISTINCT pid) FROM get_all_smaps()"
            connection.execute("SELECT * FROM pg_meminfo_smaps(pg_backend_pid())")
            connection.execute("SET work_mem = '4MB'")
            pid = connection.info.backend_pid
            # The constant includes the buffers of each reading thread.
            constant = (8 if READERS == 1 else 8 * READERS) * MEGABYTE
            limit = psutil.Process(pid).memory_info().data + 4 * MEGABYTE + constant
            cluster.limit(pid, "data", limit)
            assert connection.execute(count).fetchone()[0] > 1000
            connection.execute("SET work_mem = '1GB'")
            with pytest.raises(psycopg.errors.OutOfMemory):
                connection.execute(count)
            connection.execute("SET work_mem = '4MB'")
            assert connection.execute(count).fetchone()[0] > 1000
