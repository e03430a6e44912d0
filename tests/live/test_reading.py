"""Which files are read and when reading stops, observed from outside with strace."""

import collections
import contextlib
import itertools
import os
import re
import signal
import subprocess
import threading
import time

import psutil
import psycopg
import pytest
from conftest import (
    PATIENCE,
    READERS,
    one_major,
    start_cluster,
    wait_until,
    with_notices,
)


@contextlib.contextmanager
def traced(pid, tmp_path, *calls):
    """The system calls and signals of a process, in a list that is filled at the end of the block."""
    log = tmp_path / "strace"
    command = ["strace", "-f", "-p", str(pid), "-o", str(log), "-e", f"trace={','.join(['openat', 'read', 'close', *calls])}"]
    tracer = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    message = tracer.stderr.readline()
    if "ttached" not in message:
        tracer.wait()
        pytest.skip(f"strace is not permitted here: {message.strip()}")
    lines = []
    try:
        yield lines
    finally:
        tracer.terminate()
        tracer.wait()
        tracer.stderr.close()
        lines += whole_calls(log.read_text().splitlines())


def whole_calls(lines):
    """The calls of all threads of a process, without the thread ids. A call that strace has split in two, because
    another thread made one meanwhile, is joined at the place where it ended."""
    begun = {}
    for line in lines:
        thread, line = line.split(maxsplit=1)
        if line.endswith(" <unfinished ...>"):
            begun[thread] = line.removesuffix(" <unfinished ...>")
        elif match := re.match(r"<\.\.\. \w+ resumed>(.*)", line):
            yield begun.pop(thread) + match[1]
        else:
            yield line


def opened(lines):
    """How often the smaps of each process was opened, relative to a descriptor of its directory."""
    directories, count = {}, collections.Counter()
    for line in lines:
        if match := re.search(r'openat\(AT_FDCWD, "/proc/(\d+)".* = (\d+)$', line):
            directories[match[2]] = int(match[1])
        elif match := re.search(r'openat\((\d+), "smaps".* = \d+$', line):
            count[directories[match[1]]] += 1
    return count


def processes(connection):
    return {pid for (pid,) in connection.execute("SELECT pid FROM pg_stat_activity")}


def mapped(connection):
    return {pid for (pid,) in connection.execute("SELECT DISTINCT pid FROM get_all_smaps()")}


def test_a_condition_on_pid_opens_one_file(cluster, connection, tmp_path):
    with cluster.connect() as idle:
        pid = idle.info.backend_pid
        for query in [
            "SELECT * FROM smap_summary WHERE pid = %(pid)s",
            "SELECT * FROM pg_stat_activity JOIN smap_summary USING (pid) WHERE pid = %(pid)s",
            "SELECT * FROM pg_meminfo_smaps(%(pid)s)",
        ]:
            with traced(connection.info.backend_pid, tmp_path) as lines:
                assert connection.execute(query, {"pid": pid}).fetchall()
            assert opened(lines) == {pid: 1}


def test_without_a_condition_each_file_is_opened_once(connection, tmp_path):
    for query in ["SELECT * FROM smap_summary", "SELECT * FROM get_all_smaps()"]:
        before = processes(connection)
        with traced(connection.info.backend_pid, tmp_path) as lines:
            connection.execute(query)
        after = processes(connection)
        assert before & after <= set(opened(lines)) <= before | after
        assert set(opened(lines).values()) == {1}


def test_nothing_is_opened_for_a_role_without_the_privilege(connection, tmp_path):
    connection.execute("CREATE ROLE nobody")
    connection.execute("SET ROLE nobody")
    with traced(connection.info.backend_pid, tmp_path) as lines:
        for query in ["get_all_smaps()", "pg_meminfo_smaps(pg_backend_pid())", "smap_summary"]:
            with pytest.raises(psycopg.errors.InsufficientPrivilege) as error:
                connection.execute(f"SELECT * FROM {query}")
            assert error.value.diag.sqlstate == "42501"
            assert error.value.diag.message_primary == "Must be superuser or member of pg_read_all_stats."
            assert error.value.diag.message_detail is None
    assert not any("/proc/" in line for line in lines)
    connection.execute("RESET ROLE")
    connection.execute("DROP ROLE nobody")


def left_open(lines):
    """Descriptors of files in /proc that were opened and not closed, by path or relative to such a descriptor."""
    descriptors = set()
    for line in lines:
        if match := re.match(r'openat\((\d+|AT_FDCWD), "([^"]*)".* = (\d+)$', line):
            if match[1] in descriptors or match[2].startswith("/proc/"):
                descriptors.add(match[3])
        elif match := re.match(r"close\((\d+)\)", line):
            descriptors.discard(match[1])
    return descriptors


def reads_after(lines, at):
    """The number of reads of smaps from this line on."""
    smaps, reads = None, 0
    for number, line in enumerate(lines):
        if match := re.match(r'openat\(\d+, "smaps".* = (\d+)$', line):
            smaps = match[1]
        elif line.startswith(f"close({smaps})"):
            smaps = None
        elif number >= at and re.match(rf"read\({smaps}, .* = [1-9]\d*$", line):
            reads += 1
    return reads


# Reads all files again and again, so that it is always stopped while it reads.
ENDLESS = "SELECT count(*) FROM (SELECT get_all_smaps() FROM generate_series(1, 10000)) AS s"


@pytest.fixture(scope="module", params=["idle", one_major("gigabytes")])
def scanned(request, cluster):
    """A cluster to read, and one whose sessions have each touched 1 GB of shared buffers, where reading is slow."""
    if request.param == "idle":
        with cluster.sessions(20):
            yield cluster
        return
    if psutil.virtual_memory().available < 6 * 2**30 or psutil.disk_usage(cluster.data).free < 4 * 2**30:
        pytest.skip("there are less than 6 GB of memory or 4 GB of disk")
    with start_cluster("shared_buffers = 4500MB", "huge_pages = off", "max_wal_size = 10GB", "max_parallel_workers_per_gather = 0") as cluster:
        with cluster.connect() as connection, cluster.sessions(20) as sessions:
            # Less than a quarter of shared buffers: a scan of a larger table would use a ring buffer.
            cluster.fill_shared_buffers(connection, "big", 1000)
            for session in sessions:
                session.execute("SELECT count(*) FROM big")
            least = "SELECT min(rss_shmem) FROM pg_meminfo WHERE backend_type = 'client backend' AND pid = ANY (%s)"
            [(touched,)] = connection.execute(least, [[session.info.backend_pid for session in sessions]]).fetchall()
            assert touched > 900 * 2**20
            yield cluster


@pytest.fixture
def scanner(scanned):
    """A session in that cluster."""
    with scanned.connect() as connection:
        yield connection


def reset_timeout(connection):
    """Resets statement_timeout, which on a busy machine can cancel even that statement."""

    def is_reset():
        with contextlib.suppress(psycopg.errors.QueryCanceled):
            connection.execute("RESET statement_timeout")
            return True

    wait_until(is_reset)


def has_read(tmp_path):
    """Whether the trace shows that a few files have been read."""
    return (tmp_path / "strace").read_text().count('"smaps"') >= 5


def assert_stopped(lines, signal):
    """The signal came while files were read, and after it there was at most one more read. With threads, at most as
    many files were read as there are buffers, two per thread."""
    at = next(number for number, line in enumerate(lines) if line.startswith(f"--- {signal}"))
    before = opened(lines[:at])
    assert sum(before.values()) > 0
    if READERS == 1:
        assert reads_after(lines, at) <= 1
    assert sum((opened(lines) - before).values()) <= (1 if READERS == 1 else 2 * READERS)


def test_reading_stops_at_a_cancel(scanner, tmp_path):
    def cancel_when_reading():
        wait_until(lambda: has_read(tmp_path))
        scanner.cancel()

    with traced(scanner.info.backend_pid, tmp_path) as lines:
        canceller = threading.Thread(target=cancel_when_reading)
        canceller.start()
        with pytest.raises(psycopg.errors.QueryCanceled):
            scanner.execute(ENDLESS)
        canceller.join()
    assert_stopped(lines, "SIGINT")
    assert left_open(lines) == set()


def started(lines):
    """The number of threads that were started."""
    return sum(bool(re.match(r"clone3?\(.* = [1-9]\d*$", line)) for line in lines)


def test_as_many_threads_as_readers(cluster, tmp_path):
    """But not more than there are files. Failed calls do not change that, as they release what they used."""
    with cluster.connect("pg_meminfo.readers=4") as connection:
        pid = connection.info.backend_pid

        def threads(query):
            with traced(pid, tmp_path, "clone", "clone3") as lines:
                connection.execute(query)
            return started(lines)

        assert threads("SELECT count(*) FROM get_all_smaps()") == 4
        assert threads("SELECT count(*) FROM pg_meminfo_segments") == 4
        assert threads("SELECT count(*) FROM pg_meminfo_smaps(pg_backend_pid())") == 0
        connection.execute("SET pg_meminfo.readers = 16")

        def are_as_many_as_processes():
            before = len(processes(connection))
            count = threads("SELECT count(*) FROM get_all_smaps()")
            # Sessions of earlier tests may still be exiting.
            return before == len(processes(connection)) and count == min(before, 16)

        wait_until(are_as_many_as_processes)
        connection.execute("SET pg_meminfo.readers = 1")
        assert threads("SELECT count(*) FROM get_all_smaps()") == 0

        connection.execute("SET pg_meminfo.readers = 4")
        connection.execute("SET statement_timeout = '5ms'")
        for _ in range(200):
            with pytest.raises(psycopg.errors.QueryCanceled):
                connection.execute(ENDLESS)
        reset_timeout(connection)
        assert threads("SELECT count(*) FROM get_all_smaps()") == 4


def test_no_more_threads_than_there_are_descriptors_for(tmp_path):
    """Only a third of the descriptors of a session is available outside Postgres's own file handling."""
    with start_cluster("max_files_per_process = 100") as cluster, cluster.connect("pg_meminfo.readers=16") as connection:
        with cluster.sessions(20), traced(connection.info.backend_pid, tmp_path, "clone", "clone3") as lines:
            assert len(mapped(connection)) > 20
        assert 1 < started(lines) < 16


def test_reading_stops_at_statement_timeout(scanner, tmp_path):
    for seconds in 0.3, 3, 30:
        with traced(scanner.info.backend_pid, tmp_path) as lines:
            scanner.execute(f"SET statement_timeout = '{seconds}s'")
            with pytest.raises(psycopg.errors.QueryCanceled):
                scanner.execute(ENDLESS)
            reset_timeout(scanner)
        # On a busy machine the timeout can come before the first file.
        if opened(itertools.takewhile(lambda line: not line.startswith("--- SIGINT"), lines)):
            break
    # The handler of SIGALRM sends it.
    assert_stopped(lines, "SIGINT")
    assert left_open(lines) == set()


def test_reading_stops_at_a_terminate(scanned, scanner, tmp_path):
    """The session exits normally. After a crash, the postmaster would terminate all others."""
    victim = scanned.connect()
    pid = victim.info.backend_pid

    def terminate_when_reading():
        wait_until(lambda: has_read(tmp_path))
        scanner.execute("SELECT pg_terminate_backend(%s)", [pid])

    with traced(pid, tmp_path) as lines:
        terminator = threading.Thread(target=terminate_when_reading)
        terminator.start()
        with pytest.raises(psycopg.OperationalError):
            victim.execute(ENDLESS)
        terminator.join()
        # Not the exit of one of its threads.
        wait_until(lambda: re.search(rf"^{pid} +\+\+\+ exited", (tmp_path / "strace").read_text(), re.M))
    victim.close()
    assert_stopped(lines, "SIGTERM")
    assert lines[-1].startswith("+++ exited with 1 ")
    assert scanner.execute("SELECT 1").fetchone() == (1,)


def test_reading_stops_when_the_client_is_gone(scanned, scanner):
    client = scanned.connect()
    client.execute("SET client_connection_check_interval = '10ms'")
    pid = client.info.backend_pid
    client.pgconn.send_query(ENDLESS.encode())
    running = "SELECT count(*) FROM pg_stat_activity WHERE pid = %s AND state = 'active'"
    wait_until(lambda: scanner.execute(running, [pid]).fetchone() == (1,))
    client.pgconn.finish()
    exists = "SELECT count(*) FROM pg_stat_activity WHERE pid = %s"
    wait_until(lambda: scanner.execute(exists, [pid]).fetchone() == (0,))


@pytest.mark.one_major
@pytest.mark.parametrize("seconds", [5, pytest.param(300, marks=pytest.mark.long)])
def test_sessions_and_workers_that_come_and_go(cluster, connection, seconds):
    """There is no error, no incomplete process, and no process outside the cluster: each one has mapped this cluster's
    program, which is at the beginning of smaps, and its stack, which is near the end."""
    stop = threading.Event()
    connection.execute("CREATE TABLE IF NOT EXISTS churned AS SELECT generate_series(1, 200000) AS n")
    parallel = ["min_parallel_table_scan_size=0", "parallel_setup_cost=0", "parallel_tuple_cost=0"]

    def churn():
        while not stop.is_set():
            with cluster.connect(*parallel) as session:
                # So slow that its workers are seen.
                session.execute("SELECT count(*) FROM churned WHERE n % 50000 > 0 OR pg_sleep(0.02) IS NOT NULL")

    threads = [threading.Thread(target=churn) for _ in range(4)]
    for thread in threads:
        thread.start()
    query = """
        SELECT pid, bool_or(sys_path = %s), bool_or(sys_path = '[stack]'), bool_or(backend_type = 'parallel worker')
        FROM get_all_smaps() LEFT JOIN pg_stat_activity USING (pid) GROUP BY pid
    """
    seen, workers = set(), set()
    try:
        start = time.monotonic()

        def has_enough():
            return len(seen - workers) > 20 and workers

        # On a busy machine it may be longer until a query sees a parallel worker.
        while time.monotonic() < start + seconds or (not has_enough() and time.monotonic() < start + seconds + 120 * PATIENCE):
            for pid, has_program, has_stack, is_worker in connection.execute(query, [str(cluster.programs / "postgres")]):
                assert has_program and has_stack, pid
                seen.add(pid)
                if is_worker:
                    workers.add(pid)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert has_enough(), (len(seen), len(workers))


def test_a_session_killed_while_it_reads(tmp_path):
    """The postmaster treats that as a crash and restarts the cluster, in which the extension works as before."""
    with start_cluster() as cluster:
        victim = cluster.connect()
        with traced(victim.info.backend_pid, tmp_path):
            victim.pgconn.send_query(ENDLESS.encode())
            wait_until(lambda: has_read(tmp_path))
            os.kill(victim.info.backend_pid, signal.SIGKILL)
            wait_until(lambda: cluster.log_has("all server processes terminated; reinitializing"))
            wait_until(lambda: (tmp_path / "strace").read_text().endswith("+++ killed by SIGKILL +++\n"))
        victim.close()

        def connects():
            with contextlib.suppress(psycopg.OperationalError), cluster.connect():
                return True

        wait_until(connects)
        with cluster.connect() as connection:
            listed = "SELECT (SELECT count(DISTINCT pid) FROM get_all_smaps()) = (SELECT count(*) FROM pg_stat_activity)"
            # False if a process exits before it is read.
            wait_until(lambda: connection.execute(listed).fetchone() == (True,))


def test_a_zombie_gives_no_rows():
    """A process that has exited and that the postmaster has not reaped yet is still in pg_stat_activity."""
    with start_cluster() as cluster, cluster.connect() as connection, cluster.sessions(1) as [victim]:
        pid = victim.info.backend_pid
        assert pid in mapped(connection)
        os.kill(cluster.postmaster, signal.SIGSTOP)
        try:
            os.kill(pid, signal.SIGKILL)
            wait_until(lambda: psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
            assert pid in processes(connection)
            assert pid not in mapped(connection)
            wait_until(lambda: mapped(connection) == processes(connection) - {pid})
            of_pid = [f"pg_meminfo_{function}(%s)" for function in ("smaps", "rollup", "private")]
            for query in *of_pid, "smap_summary WHERE pid = %s", "pg_meminfo WHERE pid = %s":
                assert with_notices(connection, f"SELECT count(*) FROM {query}", [pid]) == ([(0,)], []), query
        finally:
            os.kill(cluster.postmaster, signal.SIGCONT)
