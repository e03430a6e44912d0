"""Which files are read, in which order, and when reading stops: seen from outside, by strace."""

import collections
import contextlib
import re
import subprocess
import threading

import psycopg
import pytest
from conftest import wait_until


@contextlib.contextmanager
def traced(pid, tmp_path):
    """The system calls and signals of a process, in a list that is filled when the block ends."""
    log = tmp_path / "strace"
    command = ["strace", "-p", str(pid), "-o", str(log), "-e", "trace=openat,read,close"]
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
        lines += log.read_text().splitlines()


def opened(lines):
    """How often which process's smaps was opened; by way of its directory, which names it."""
    directories, count = {}, collections.Counter()
    for line in lines:
        if match := re.search(r'openat\(AT_FDCWD, "/proc/(\d+)".* = (\d+)$', line):
            directories[match[2]] = int(match[1])
        elif match := re.search(r'openat\((\d+), "smaps".* = \d+$', line):
            count[directories[match[1]]] += 1
    return count


def processes(connection):
    return {pid for (pid,) in connection.execute("SELECT pid FROM pg_stat_activity")}


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
    """Descriptors of files under /proc, or reached from one, that were opened and not closed."""
    descriptors = set()
    for line in lines:
        if match := re.match(r'openat\((\d+|AT_FDCWD), "([^"]*)".* = (\d+)$', line):
            if match[1] in descriptors or match[2].startswith("/proc/"):
                descriptors.add(match[3])
        elif match := re.match(r"close\((\d+)\)", line):
            descriptors.discard(match[1])
    return descriptors


def pieces_read_after(lines, at):
    """How many pieces of smaps are read from that line on."""
    smaps, pieces = None, 0
    for number, line in enumerate(lines):
        if match := re.match(r'openat\(\d+, "smaps".* = (\d+)$', line):
            smaps = match[1]
        elif line.startswith(f"close({smaps})"):
            smaps = None
        elif number >= at and re.match(rf"read\({smaps}, .* = [1-9]\d*$", line):
            pieces += 1
    return pieces


def assert_stopped(lines):
    """A cancel came in the middle of the reading, and after it at most one more piece of a file was read.

    A statement_timeout sends the same signal, from the handler of its timer's.
    """
    at = next(number for number, line in enumerate(lines) if line.startswith("--- SIGINT"))
    assert 0 < sum(opened(lines[:at]).values()) < 60
    assert pieces_read_after(lines, at) <= 1
    assert left_open(lines) == set()


def test_reading_stops_at_a_cancel(cluster, connection, tmp_path):
    pid = connection.info.backend_pid
    with cluster.sessions(60):
        connection.execute("SELECT count(*) FROM get_all_smaps()")

        def cancel_when_reading():
            wait_until(lambda: (tmp_path / "strace").read_text().count('"smaps"') >= 5)
            connection.cancel()

        with traced(pid, tmp_path) as lines:
            canceller = threading.Thread(target=cancel_when_reading)
            canceller.start()
            with pytest.raises(psycopg.errors.QueryCanceled):
                connection.execute("SELECT count(*) FROM get_all_smaps()")
            canceller.join()
    assert_stopped(lines)


def test_reading_stops_at_statement_timeout(cluster, connection, tmp_path):
    pid = connection.info.backend_pid
    with cluster.sessions(60):
        connection.execute("SELECT count(*) FROM get_all_smaps()")
        # Long enough for a first file; shorter than the whole on any machine, or else shortened until it is.
        timeout = 200
        while True:
            with traced(pid, tmp_path) as lines, contextlib.suppress(psycopg.errors.QueryCanceled):
                connection.execute(f"SET statement_timeout = {timeout}")
                connection.execute("SELECT count(*) FROM get_all_smaps()")
                timeout = timeout * 2 // 3
                assert timeout > 0
                continue
            break
        connection.execute("RESET statement_timeout")
    assert_stopped(lines)


def test_sessions_that_come_and_go(cluster, connection):
    """No error, no process in part: each that is listed has its stack, which comes near the end of the file."""
    stop = threading.Event()

    def churn():
        while not stop.is_set():
            with cluster.connect() as session:
                session.execute("SELECT 1")

    threads = [threading.Thread(target=churn) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        seen = set()
        for _ in range(200):
            query = "SELECT pid, bool_or(sys_path = '[stack]') FROM get_all_smaps() GROUP BY pid"
            rows = connection.execute(query).fetchall()
            assert all(has_stack for _, has_stack in rows)
            seen |= {pid for pid, _ in rows}
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert len(seen) > 20, "no session came or went"
