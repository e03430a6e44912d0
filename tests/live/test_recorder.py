"""The recorder: samples, incidents after a crash restart, its files, and what it costs nobody."""

import contextlib
import datetime
import os
import pathlib
import signal
import subprocess
import time
import zlib

import psycopg
import pytest
from conftest import (
    OOM_ADJUST,
    PRELOADED,
    base_backup,
    in_mounts,
    insert_in_pieces,
    limited,
    one_major,
    preload,
    private,
    protect,
    rows,
    start_cluster,
    wait_until,
)

MB = 2**20

# Small files, so that they are soon full.
SMALL = "pg_meminfo.history_size = 1MB"
# A second is long for a test.
FAST = "pg_meminfo.sample_interval = 100"

DIRECTORY = "pg_stat_tmp"
HISTORY = f"{DIRECTORY}/pg_meminfo.history"


@pytest.fixture(scope="module")
def recorded():
    """A cluster whose recorder runs, and in which no process comes and goes by itself."""
    with start_cluster(PRELOADED, FAST, "autovacuum = off") as cluster:
        yield cluster


def recorder(connection):
    """The pid of the recorder. None if there is none."""
    row = connection.execute("SELECT pid FROM pg_stat_activity WHERE backend_type = 'pg_meminfo recorder'").fetchone()
    return row and row[0]


def count(connection, since="-infinity"):
    return connection.execute("SELECT count(*) FROM pg_meminfo_history(%s)", [since]).fetchone()[0]


def now(connection):
    return connection.execute("SELECT clock_timestamp()").fetchone()[0]


def incidents(connection, cause=None):
    return rows(connection.execute("SELECT * FROM pg_meminfo_incidents WHERE cause = %s OR %s::text IS NULL", [cause, cause]))


def reconnect(cluster):
    """A session in a cluster that is restarting."""
    found = []

    def is_up():
        with contextlib.suppress(psycopg.OperationalError):
            found.append(cluster.connect())
        return found

    wait_until(is_up)
    return found[0]


@pytest.mark.kernels
def test_a_sample_has_what_the_kernel_says(recorded):
    with recorded.connect(application_name="holder") as session, recorded.connect() as connection:
        session.execute("CREATE TEMP TABLE held (x int)")
        session.execute("SET pg_meminfo.readers = 1")
        session.execute("DO $$ BEGIN PERFORM set_config('my.held', repeat('x', 50000000), false); END $$")
        start = now(connection)
        wait_until(lambda: count(connection, start) > 1)
        query = "SELECT * FROM pg_meminfo_session_history(%s) WHERE pid = %s ORDER BY at DESC LIMIT 1"
        pid = session.info.backend_pid
        [row] = rows(connection.execute(query, [start, pid]))
        assert row["private"] == private(pid) and row["private"] > 40 * MB
        assert (row["application_name"], row["usename"], row["datname"]) == ("holder", "postgres", "postgres")
        assert (row["state"], row["backend_type"]) == ("idle", "client backend")
        assert row["query"].startswith("DO $$ BEGIN PERFORM") and row["peak_private"] >= row["private"]
        activity = "SELECT backend_start, query_start, query_id FROM pg_stat_activity WHERE pid = %s"
        expected = connection.execute(activity, [pid]).fetchone()
        assert (row["backend_start"], row["query_start"], row["query_id"]) == expected


def test_a_sample_is_about_all_processes(recorded):
    with recorded.sessions(20), recorded.connect() as connection:
        start = now(connection)
        wait_until(lambda: count(connection, start) > 2)

        def last_sample():
            return rows(connection.execute("SELECT * FROM pg_meminfo_history(%s) ORDER BY at DESC LIMIT 1", [start]))[0]

        def has_all():
            # And the postmaster. Sessions of earlier tests may have been there when the sample was taken.
            processes = connection.execute("SELECT count(*) FROM pg_stat_activity").fetchone()[0] + 1
            return processes <= last_sample()["processes"] <= processes + 2

        # PostgreSQL 19 starts and ends I/O workers as it needs them.
        wait_until(has_all)
        last = last_sample()
        sessions = rows(connection.execute("SELECT * FROM pg_meminfo_session_history(%s) WHERE at = %s", [start, last["at"]]))
        assert len(sessions) >= 12 and recorder(connection) in {row["pid"] for row in sessions}
        assert sum(row["private"] for row in sessions) <= last["private"]
        assert last["headroom"] <= last["memory_limit"]
        assert last["server_start"] == connection.execute("SELECT pg_postmaster_start_time()").fetchone()[0]

        def is_headroom_that_of_the_host():
            query = "SELECT history.headroom, host.headroom FROM pg_meminfo_history AS history, pg_meminfo_host AS host ORDER BY at DESC LIMIT 1"
            sampled, current = connection.execute(query).fetchone()
            return abs(sampled - current) < 500 * MB

        # Between the two, other programs may end that hold more.
        wait_until(is_headroom_that_of_the_host)


def test_a_range_of_time(recorded):
    with recorded.connect() as connection:
        wait_until(lambda: count(connection) > 15)
        times = [row[0] for row in connection.execute("SELECT at FROM pg_meminfo_history")]
        assert times == sorted(times)
        first, last = times[3], times[8]
        between = [row[0] for row in connection.execute("SELECT at FROM pg_meminfo_history(%s, %s)", [first, last])]
        assert between == times[3:9]
        sessions = connection.execute("SELECT DISTINCT at FROM pg_meminfo_session_history(%s, %s) ORDER BY at", [first, last])
        assert [row[0] for row in sessions] == between
        assert count(connection, "infinity") == 0


def test_a_parallel_worker_has_its_leader(recorded):
    with recorded.connect() as connection, recorded.running_in_parallel(connection) as leader:
        start = now(connection)
        query = "SELECT count(DISTINCT pid) FROM pg_meminfo_session_history(%s) WHERE leader_pid = %s"
        wait_until(lambda: connection.execute(query, [start, leader]).fetchone() == (2,))


def test_who_may_read_it(recorded):
    with recorded.connect() as connection:
        connection.execute("CREATE ROLE nobody")
        connection.execute("SET ROLE nobody")
        for view in "history", "session_history", "incidents":
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute(f"SELECT * FROM pg_meminfo_{view}")
        connection.execute("RESET ROLE")
        connection.execute("DROP ROLE nobody")


def test_it_needs_the_library_preloaded(connection):
    for view in "history", "session_history", "incidents":
        with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState):
            connection.execute(f"SELECT * FROM pg_meminfo_{view}")


def test_texts_can_be_left_out():
    with start_cluster(PRELOADED, FAST, "pg_meminfo.history_queries = off") as cluster, cluster.connect() as connection:
        start = now(connection)
        wait_until(lambda: count(connection, start) > 1)
        query = "SELECT count(*), count(query) FROM pg_meminfo_session_history WHERE backend_type = 'client backend'"
        sessions, texts = connection.execute(query).fetchone()
        assert sessions > 0 and texts == 0
        pid = connection.info.backend_pid
        with pytest.raises(psycopg.OperationalError):
            connection.execute("COPY (SELECT 1) TO PROGRAM 'kill -9 $PPID'")
        [incident] = incidents_after_restart(cluster, pid)
        assert incident["cause"] == "kill" and incident["query"] is None
        wait_until(lambda: not list((cluster.data / DIRECTORY).glob("pg_meminfo.deaths*")))
        for path in (cluster.data / DIRECTORY).glob("pg_meminfo*"):
            assert b"kill -9" not in path.read_bytes(), path


def test_it_cannot_be_canceled(recorded):
    with recorded.connect() as connection:
        pid = recorder(connection)
        assert connection.execute("SELECT pg_cancel_backend(%s)", [pid]).fetchone() == (True,)
        start = now(connection)
        wait_until(lambda: count(connection, start) > 3)
        assert recorder(connection) == pid


def test_it_can_be_off():
    with start_cluster(PRELOADED, "pg_meminfo.recorder = off") as cluster, cluster.connect() as connection:
        assert recorder(connection) is None and count(connection) == 0
        assert not list((cluster.data / DIRECTORY).glob("pg_meminfo*"))


@pytest.mark.one_major
def test_the_oldest_samples_go_and_the_files_keep_their_size():
    fastest = "pg_meminfo.sample_interval = 10"
    with start_cluster(PRELOADED, SMALL, fastest) as cluster, cluster.connect() as connection, cluster.sessions(15):
        start = now(connection)
        wait_until(lambda: count(connection, start) > 10)
        end = now(connection)
        early = "SELECT count(*) FROM pg_meminfo_history(%s, %s)"
        assert connection.execute(early, [start, end]).fetchone()[0] > 10
        # That of a minute at most is left.
        wait_until(lambda: connection.execute(early, [start, end]).fetchone()[0] <= 1)
        sizes = sum(path.stat().st_size for path in (cluster.data / DIRECTORY).glob("pg_meminfo.[hm]*"))
        assert sizes <= MB
        # 12 of 15 and some others, 20 and more samples.
        assert count(connection) > 20


# Ways of needing memory without end.
EATERS = {
    "array_agg": "SELECT array_agg(n) FROM generate_series(1, 300000000) AS n",
    "sort": "SELECT count(*) FROM (SELECT n, repeat('x', 100) AS x FROM generate_series(1, 30000000) AS n ORDER BY x, n OFFSET 1) AS s",
    "repeat": "SELECT length(string_agg(repeat('x', 100000), '')) FROM generate_series(1, 20000)",
    "plpgsql": "DO $$ DECLARE held text[]; BEGIN FOR n IN 1..30000 LOOP held := held || repeat('x', 100000); END LOOP; END $$",
}


@pytest.fixture
def in_small_cgroup():
    """A cluster in a cgroup with a limit of 400 MB."""
    with limited(400) as (directory, within):
        # An eater can be at the limit within less than a second.
        settings = [PRELOADED, FAST, "shared_buffers = 32MB", "work_mem = 2GB", "max_parallel_workers_per_gather = 0"]
        with start_cluster(*settings, within=within, **OOM_ADJUST) as cluster:
            protect(cluster)
            yield cluster, directory


def incidents_after_restart(cluster, pid):
    """The incidents of a process. They are reported after the restart, before which a session may still be let in."""
    found = []

    def is_reported():
        with contextlib.suppress(psycopg.OperationalError), cluster.connect() as connection:
            found[:] = [row for row in incidents(connection) if pid in (None, row["pid"])]
        return found

    wait_until(is_reported)
    return found


def wait_until_sampled(session, least=0):
    """Waits until a sample has seen a session hold more than so many bytes."""
    seen = "SELECT count(*) > 0 FROM pg_meminfo_session_history WHERE pid = pg_backend_pid() AND private > %s"
    wait_until(lambda: session.execute(seen, [least]).fetchone()[0])


def eat(cluster, query, name):
    """Lets a session execute a query until the OOM killer ends it, when samples have seen it hold 40 MB. Returns its
    pid."""
    with cluster.connect(application_name=name) as session:
        pid = session.info.backend_pid
        session.execute("SELECT length(set_config('my.held', repeat('x', 40000000), false))")
        wait_until_sampled(session, 30 * MB)
        with pytest.raises(psycopg.OperationalError):
            session.execute(query)
        return pid


# The kernel takes each in the same way, whatever the server.
@pytest.mark.parametrize("name", ["array_agg", *(one_major(name) for name in EATERS if name != "array_agg")])
def test_who_was_killed_by_the_oom_killer(in_small_cgroup, name):
    cluster, _ = in_small_cgroup
    with cluster.connect() as before:
        wait_until(lambda: count(before) > 1)
    # It waits, so that a sample sees it, however soon it has eaten all.
    query = f"SELECT pg_sleep(1); {EATERS[name]}"
    pid = eat(cluster, query, f"eats by {name}")
    [incident] = incidents_after_restart(cluster, None)
    with cluster.connect() as connection:
        assert (incident["cause"], incident["pid"], incident["signal"]) == ("oom kill", pid, signal.SIGKILL)
        assert incident["application_name"] == f"eats by {name}"
        assert (incident["datname"], incident["usename"]) == ("postgres", "postgres")
        assert query.startswith(incident["query"].rstrip()) or incident["query"].startswith(query)
        assert incident["largest_pid"] == pid and incident["oom_kills"] == 1
        # What the samples saw last is not long ago, unless the kernel keeps the recorder waiting for memory, too.
        age = (incident["at"] - incident["sampled_at"]).total_seconds()
        assert 0 <= age < 60
        assert 30 * MB < incident["private"] <= 400 * MB
        assert cluster.log_has(f"process {pid} was killed by the OOM killer")
        # The history goes on, and shows what was before.
        history = "SELECT count(*) FROM pg_meminfo_session_history(%s, %s) WHERE pid = %s"
        last = incident["sampled_at"]
        assert connection.execute(history, [last, last, pid]).fetchone()[0] >= 1
        # If the kernel keeps the recorder waiting from the first sample of the session on, its growth is not known.
        known = connection.execute(history, [last - datetime.timedelta(seconds=5), last, pid]).fetchone()[0] > 1
        assert (incident["growth_per_second"] is not None) == known
        wait_until(lambda: count(connection, incident["at"]) > 1)


def test_a_parallel_hash_join_that_was_killed(in_small_cgroup):
    """Its hash table is in shared memory, so nobody holds much by itself. The kernel takes the leader or a worker."""
    cluster, _ = in_small_cgroup
    name = "joins"
    with cluster.connect() as connection:
        connection.execute("CREATE UNLOGGED TABLE large (n int, x text)")
        insert = "INSERT INTO large SELECT {} + generate_series(1, 100000), repeat('x', 200)"
        insert_in_pieces(connection, [insert.format(start) for start in range(0, 2000000, 100000)])
        connection.execute("ANALYZE large")
        os.sync()
    settings = [
        "max_parallel_workers_per_gather=2",
        "min_parallel_table_scan_size=0",
        "parallel_setup_cost=0",
        "parallel_tuple_cost=0",
        "work_mem=2GB",
        "enable_mergejoin=off",
        "enable_nestloop=off",
    ]
    query = "SELECT count(*) FROM large AS a JOIN large AS b ON a.n = b.n AND a.x = b.x"
    with cluster.connect(*settings, application_name=name) as session:
        pid = session.info.backend_pid
        plan = "\n".join(line for (line,) in session.execute(f"EXPLAIN {query}"))
        assert "Parallel Hash Join" in plan
        wait_until_sampled(session)
        with pytest.raises(psycopg.OperationalError):
            session.execute(query)
    [incident] = incidents_after_restart(cluster, None)
    with cluster.connect() as connection:
        assert incident["cause"] == "oom kill" and incident["application_name"] == name
        assert incident["query"].startswith(query)
        group = "SELECT DISTINCT coalesce(leader_pid, pid) FROM pg_meminfo_session_history WHERE pid = %s"
        assert connection.execute(group, [incident["pid"]]).fetchall() == [(pid,)]


def test_another_process_is_killed_than_the_one_that_held_most(recorded):
    """As when the kernel takes an innocent neighbour."""
    with recorded.connect(application_name="large") as large, recorded.connect(application_name="small") as small:
        large.execute("DO $$ BEGIN PERFORM set_config('my.held', repeat('x', 100000000), false); END $$")
        start = now(large)
        wait_until(lambda: count(large, start) > 1)
        pids = large.info.backend_pid, small.info.backend_pid
        os.kill(pids[1], signal.SIGKILL)
        wait_until(lambda: not pathlib.Path(f"/proc/{pids[0]}").exists())
    [incident] = incidents_after_restart(recorded, pids[1])
    assert (incident["cause"], incident["application_name"]) == ("kill", "small")
    assert (incident["largest_pid"], incident["largest_application_name"]) == (pids[0], "large")
    assert incident["largest_private"] > 90 * MB > incident["private"]


def test_a_process_that_crashes(recorded):
    with recorded.connect(application_name="crashes") as session:
        start = now(session)
        wait_until(lambda: count(session, start) > 1)
        pid = session.info.backend_pid
        os.kill(pid, signal.SIGSEGV)
        wait_until(lambda: not pathlib.Path(f"/proc/{pid}").exists())
    [incident] = incidents_after_restart(recorded, pid)
    assert (incident["cause"], incident["signal"]) == ("crash", signal.SIGSEGV)
    assert incident["application_name"] == "crashes"


def test_the_recorder_is_killed(recorded):
    with recorded.connect() as connection:
        pid = recorder(connection)
        start = now(connection)
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not pathlib.Path(f"/proc/{pid}").exists())
    [incident] = incidents_after_restart(recorded, pid)
    assert incident["cause"] == "kill"
    with recorded.connect() as connection:
        wait_until(lambda: count(connection, start) > 1)
        assert recorder(connection) not in (None, pid)


# The first time that the file is opened.
OPENS_SLOWLY = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>
int open64(const char *path, int flags, ...) {
    static int (*real)(const char *, int, ...);
    static int slept;
    const char *end = path + strlen(path);
    int mode = 0600, descriptor;
    if (flags & O_CREAT) {
        __builtin_va_list arguments;
        __builtin_va_start(arguments, flags);
        mode = __builtin_va_arg(arguments, int);
        __builtin_va_end(arguments);
    }
    if (!real) real = (int (*)(const char *, int, ...)) dlsym(RTLD_NEXT, "open64");
    descriptor = real(path, flags, mode);
    if (end - path > 17 && !strcmp(end - 17, "pg_meminfo.deaths") && !slept++) sleep(1);
    return descriptor;
}
"""


@pytest.mark.one_major
def test_the_postmaster_is_slow_to_note_a_death(tmp_path):
    """Between opening the file and writing to it, the recorder takes it over."""
    settings = [PRELOADED, FAST, "autovacuum = off"]
    with start_cluster(*settings, LD_PRELOAD=preload(tmp_path, OPENS_SLOWLY)) as cluster:
        with cluster.connect() as connection:
            wait_until(lambda: count(connection) > 1)
            pid = connection.info.backend_pid
            start = time.monotonic()
            os.kill(pid, signal.SIGKILL)
        [incident] = incidents_after_restart(cluster, pid)
        assert incident["cause"] == "kill" and time.monotonic() - start > 1


def test_the_recorder_is_terminated(recorded):
    """It starts again, and nothing is restarted with it."""
    with recorded.connect() as connection:
        pid = recorder(connection)
        connection.execute("SELECT pg_terminate_backend(%s)", [pid])
        wait_until(lambda: recorder(connection) not in (None, pid))
        start = now(connection)
        wait_until(lambda: count(connection, start) > 1)


@contextlib.contextmanager
def restarting(*settings):
    """A cluster, and a function that stops its server by a signal and starts it again."""
    with start_cluster(PRELOADED, FAST, SMALL) as template:
        with template.connect() as connection:
            connection.execute("CHECKPOINT")
            with template.start_another("again", base_backup(template)) as cluster:
                (cluster.data / "postgresql.auto.conf").write_text("\n".join([PRELOADED, FAST, SMALL, *settings, ""]))
                servers = []

                def restart(how, *options):
                    """Stops it, or waits until it has ended if the signal is 0, and starts it with other options."""
                    pid = servers[-1].pid if servers else cluster.postmaster
                    os.kill(pid, how)
                    # Otherwise it remains as a zombie, and its locks seem to be held.
                    with contextlib.suppress(ChildProcessError):
                        os.waitpid(pid, 0)
                    # The processes of a server that was killed need a moment to notice.
                    wait_until(lambda: not children(cluster.data))
                    with contextlib.suppress(FileNotFoundError):
                        (cluster.data / "postmaster.pid").unlink()
                    log = cluster.data.parent / "log"
                    always = ["-c", f"unix_socket_directories={cluster.host}", "-c", "listen_addresses=", "-c", "fsync=off"]
                    servers.append(cluster.start_server(cluster.data, log, *always, *options))
                    return reconnect(cluster)

                try:
                    yield cluster, restart
                finally:
                    for server in servers:
                        server.send_signal(signal.SIGQUIT)
                        server.wait()


def is_running(pid):
    """Whether a process exists and is no zombie."""
    with contextlib.suppress(OSError):
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    return False


def children(data):
    """The processes that work in a data directory."""
    found = []
    for path in pathlib.Path("/proc").glob("[0-9]*/cwd"):
        with contextlib.suppress(OSError):
            if path.resolve() == data.resolve() and is_running(int(path.parent.name)):
                found.append(path)
    return found


def test_what_survives_which_end():
    with restarting() as (cluster, restart):
        connection = restart(signal.SIGINT)
        wait_until(lambda: count(connection) > 2)
        start = now(connection)
        # A shutdown in good order is no incident.
        for how, ends in (signal.SIGINT, 0), (signal.SIGQUIT, 1), (signal.SIGKILL, 2), (signal.SIGINT, 2):
            connection.close()
            connection = restart(how)
            after = now(connection)
            wait_until(lambda: count(connection, after) > 1)
            assert connection.execute("SELECT count(*) FROM pg_meminfo_history WHERE at < %s", [start]).fetchone()[0] > 2
            assert len(incidents(connection, "server end")) == ends, how
        # With another size, what there was is kept.
        connection.close()
        connection = restart(signal.SIGINT, "-c", "pg_meminfo.history_size=4MB")
        wait_until(lambda: (cluster.data / HISTORY).stat().st_size == 3 * MB)
        assert connection.execute("SELECT count(*) FROM pg_meminfo_history WHERE at < %s", [start]).fetchone()[0] > 2
        assert len(incidents(connection)) == 2
        connection.close()


def test_a_server_that_does_not_restart_after_a_crash():
    """What the postmaster has noted is an incident when it is started again. The end of the server is not another."""
    with restarting("restart_after_crash = off") as (_, restart):
        connection = restart(signal.SIGINT)
        wait_until(lambda: count(connection) > 2)
        pid = connection.info.backend_pid
        os.kill(pid, signal.SIGKILL)
        connection.close()
        connection = restart(0)
        wait_until(lambda: incidents(connection))
        [incident] = incidents(connection)
        # It might be in another cgroup now, whose counter says nothing.
        assert (incident["cause"], incident["pid"]) == ("possible oom kill", pid)
        connection.close()


def damage(path):
    """Overwrites what is in the middle of the file's header."""
    with open(path, "r+b") as file:
        file.seek(18)
        file.write(b"\xff\xff")


def shorten(path):
    os.truncate(path, 100_000)


def make_foreign(path):
    with open(path, "r+b") as file:
        file.write(b"something else" * 1000)


def make_newer(path):
    with open(path, "r+b") as file:
        file.seek(8)
        file.write(b"\x63")


@pytest.mark.one_major
@pytest.mark.parametrize("spoil", [damage, shorten, make_foreign, make_newer], ids=lambda spoil: spoil.__name__)
def test_a_file_that_cannot_be_used_is_set_aside(spoil):
    with restarting() as (cluster, restart):
        connection = restart(signal.SIGINT)
        wait_until(lambda: count(connection) > 1)
        connection.close()
        path = cluster.data / HISTORY
        spoil(path)
        spoiled = path.read_bytes()[:64]
        connection = restart(signal.SIGKILL)
        wait_until(lambda: count(connection) > 1)
        aside = path.with_name(path.name + ".old")
        assert aside.read_bytes()[:64] == spoiled or spoil is damage
        assert cluster.log_has(f'could not use file "{HISTORY}"')
        connection.close()


@pytest.mark.one_major
def test_an_incident_waits_for_its_file():
    """What the postmaster has noted is kept until it has been written, though another recorder must do that."""
    with start_cluster(PRELOADED, FAST) as cluster:
        with cluster.connect(application_name="victim") as victim:
            start = now(victim)
            wait_until(lambda: count(victim, start) > 1)
            pid = victim.info.backend_pid
            path = cluster.data / DIRECTORY / "pg_meminfo.incidents"
            path.unlink()
            path.mkdir()
            os.kill(pid, signal.SIGKILL)
            wait_until(lambda: not pathlib.Path(f"/proc/{pid}").exists())
        with reconnect(cluster) as connection:
            wait_until(lambda: recorder(connection))
            start = now(connection)
            wait_until(lambda: count(connection, start) > 10)
            message = f"LOG:  process {pid} was killed by SIGKILL"
            log = cluster.data.parent / "log"
            # Once, though it cannot be written again and again.
            assert log.read_text().count(message) == 1 and not incidents(connection)
            path.rmdir()
            connection.execute("SELECT pg_terminate_backend(%s)", [recorder(connection)])
            wait_until(lambda: incidents(connection))
            [incident] = incidents(connection)
            assert (incident["cause"], incident["pid"], incident["application_name"]) == ("kill", pid, "victim")
            # It is not taken over again.
            start = now(connection)
            wait_until(lambda: count(connection, start) > 10)
            assert len(incidents(connection)) == 1 and not list(path.parent.glob("pg_meminfo.deaths*"))


def enlarge(path, size):
    """Replaces a file of the history by an empty one of another size, which takes no room on the disk."""
    header = bytearray(path.read_bytes()[:32])
    header[16:20] = (size // 8192 - 1).to_bytes(4, "little")
    header[28:] = zlib.crc32(header[:28]).to_bytes(4, "little")
    new = path.with_name("new")
    new.write_bytes(header)
    os.truncate(new, size)
    os.chown(new, path.stat().st_uid, path.stat().st_gid)
    new.rename(path)


@pytest.mark.one_major
@pytest.mark.parametrize("view", ["pg_meminfo_history", "pg_meminfo_session_history"])
def test_a_large_file_neither_hangs_nor_ends_a_session(view):
    with start_cluster(PRELOADED, FAST) as cluster, cluster.connect() as connection:
        wait_until(lambda: count(connection) > 0)
        enlarge(cluster.data / HISTORY, 64 * 2**30)
        query = f"SELECT count(*) FROM {view}"
        pid = connection.info.backend_pid
        start = time.monotonic()
        with pytest.raises(psycopg.errors.QueryCanceled), connection.transaction():
            connection.execute("SET LOCAL statement_timeout = 100")
            connection.execute(query)
        # To read the headers of all blocks takes a minute.
        assert time.monotonic() - start < 10
        connection.execute("SET pg_meminfo.session_memory_limit = '64MB'")
        with pytest.raises(psycopg.errors.OutOfMemory):
            connection.execute(query)
        assert connection.execute("SELECT pg_backend_pid()").fetchone() == (pid,)


@pytest.mark.one_major
def test_the_names_of_many_rows_take_no_memory():
    name = "n" * 63
    settings = [PRELOADED, "pg_meminfo.sample_interval = 10", "autovacuum = off"]
    with start_cluster(*settings) as cluster, cluster.connect() as connection, contextlib.ExitStack() as stack:
        connection.execute(f"CREATE ROLE {name} SUPERUSER LOGIN")
        connection.execute(f"CREATE DATABASE {name}")
        for _ in range(15):
            stack.enter_context(cluster.connect(user=name, dbname=name))
        query = "SELECT count(*) FROM pg_meminfo_session_history WHERE usename = %s AND datname = %s"

        def is_enough():
            time.sleep(0.5)
            return connection.execute(query, [name, name]).fetchone()[0] > 4000

        wait_until(is_enough)
        # The function runs in a context that is reset when it has returned. It is looked at from outside.
        loop = f"DO $$ BEGIN LOOP PERFORM FROM pg_meminfo_session_history WHERE usename = '{name}'; END LOOP; END $$"
        with cluster.running(loop) as pid:
            contexts = "SELECT max(total_bytes) FROM pg_meminfo_contexts(%s) WHERE name = 'ExprContext'"
            wait_until(lambda: connection.execute(contexts, [pid]).fetchone()[0])
            sizes = [connection.execute(contexts, [pid]).fetchone()[0] or 0 for _ in range(200)]
        # A name takes 80 bytes.
        assert 0 < max(sizes) < MB / 4


def test_a_base_backup_has_no_history(recorded):
    target = recorded.data.parent / "backup"
    backup = [recorded.programs / "pg_basebackup", "-h", recorded.host, "-p", "5432", "-U", "postgres", "-D", target]
    subprocess.run([*recorded.as_owner, *backup, "--checkpoint=fast"], check=True, cwd="/")
    assert (recorded.data / HISTORY).exists()
    assert (target / DIRECTORY).is_dir() and not list(target.glob("**/pg_meminfo*"))


def test_a_standby_has_its_own(recorded):
    with recorded.start_another("standby", base_backup(recorded, "-R")) as standby, standby.connect() as connection:
        start = now(connection)
        wait_until(lambda: count(connection, start) > 1)
        identity = "SELECT min(at) FROM pg_meminfo_history"
        own = connection.execute(identity).fetchone()[0]
        with recorded.connect() as primary:
            assert own > primary.execute(identity).fetchone()[0]
        connection.execute("SELECT pg_promote()")
        start = now(connection)
        wait_until(lambda: count(connection, start) > 1)
        # What the standby had is still there.
        assert connection.execute(identity).fetchone()[0] == own


def shut_down(cluster):
    os.kill(cluster.postmaster, signal.SIGINT)
    wait_until(lambda: not (cluster.data / "postmaster.pid").exists() and not children(cluster.data))


def test_pg_rewind_removes_it():
    settings = [PRELOADED, FAST, SMALL, "wal_log_hints = on", "wal_keep_size = 200MB", "autovacuum = off"]
    with start_cluster(*settings) as template, template.start_another("old", base_backup(template)) as old:
        with old.start_another("new", base_backup(old, "-R")) as new, new.connect() as connection:
            connection.execute("SELECT pg_promote()")
            connection.execute("CREATE TABLE of_new (x int)")
            connection.execute("CHECKPOINT")
            with old.connect() as session:
                session.execute("CREATE TABLE of_old (x int)")
            shut_down(old)
            assert (old.data / HISTORY).exists()
            source = f"host={new.host} port=5432 user=postgres dbname=postgres"
            rewind = [old.programs / "pg_rewind", "-D", old.data, "--source-server", source, "--no-sync"]
            subprocess.run([*old.as_owner, *rewind], check=True, cwd="/")
            assert (old.data / DIRECTORY).is_dir() and not list(old.data.glob("**/pg_meminfo*"))


def test_data_checksums(recorded):
    """They are not for its files."""
    with recorded.connect() as connection:
        # Since PostgreSQL 18 they are on by default.
        is_on = connection.execute("SHOW data_checksums").fetchone() == ("on",)
    with recorded.start_another("checked", base_backup(recorded)) as cluster:
        shut_down(cluster)
        for action in ["--check"] if is_on else ["--enable", "--check"]:
            checksums = [cluster.programs / "pg_checksums", action, "-D", cluster.data]
            subprocess.run([*cluster.as_owner, *checksums], check=True, cwd="/", stdout=subprocess.DEVNULL)
            options = [f"unix_socket_directories={cluster.host}", "listen_addresses=", "fsync=off"]
            words = [word for option in options for word in ("-c", option)]
            server = cluster.start_server(cluster.data, cluster.data.parent / "checked.log", *words)
            with reconnect(cluster) as connection:
                assert connection.execute("SHOW data_checksums").fetchone() == ("on",)
                start = now(connection)
                wait_until(lambda: count(connection, start) > 1)
            server.send_signal(signal.SIGINT)
            server.wait()
        assert (cluster.data / HISTORY).exists()


@pytest.mark.one_major
def test_a_full_disk_stops_recording_and_nothing_else(recorded):
    """pg_stat_tmp is a file system that is too small."""
    small = recorded.data.parent / "small_disk"
    within = in_mounts(f"mkdir -p {small}", f"mount -t tmpfs -o size=64k,mode=777 none {small}")
    backup = '"$0" -h "$1" -p 5432 -U postgres -D "$2" --checkpoint=fast'
    replace = 'rmdir "$2/pg_stat_tmp" && ln -s "$3" "$2/pg_stat_tmp"'
    copy = ["sh", "-c", f"{backup} && {replace}", recorded.programs / "pg_basebackup", recorded.host, "{data}", small]
    log = recorded.data.parent / "full.log"
    with recorded.start_another("full", copy, within) as cluster, cluster.connect() as session:
        failure = f'could not write file "{HISTORY}"'
        wait_until(lambda: failure in log.read_text())
        assert recorder(session) and count(session) == 0
        time.sleep(1)
        # Although it has taken ten samples since.
        assert log.read_text().count(failure) == 1
        assert session.execute("SELECT count(*) FROM generate_series(1, 1000)").fetchone() == (1000,)


@pytest.mark.one_major
def test_a_session_that_holds_much_is_logged_once():
    with start_cluster(PRELOADED, FAST, "pg_meminfo.log_session_memory = 100MB") as cluster:
        with cluster.connect(application_name="large") as session, cluster.connect() as connection:
            pid = session.info.backend_pid
            for expected in 1, 2:
                session.execute("DO $$ BEGIN PERFORM set_config('my.held', repeat('x', 150000000), false); END $$")
                wait_until(lambda: len(incidents(connection, "session memory")) == expected)
                start = now(connection)
                wait_until(lambda: count(connection, start) > 5)
                assert len(incidents(connection, "session memory")) == expected
                # Well below, and then above again.
                session.execute("SELECT set_config('my.held', '', false)")
                wait_until(lambda: private(pid) < 50 * MB)
                start = now(connection)
                wait_until(lambda: count(connection, start) > 2)
            incident = incidents(connection, "session memory")[0]
            assert (incident["pid"], incident["application_name"]) == (pid, "large")
            assert incident["private"] > 100 * MB
            assert cluster.log_has(f"process {pid} holds ")


def test_parallel_workers_count_under_their_leader():
    with start_cluster(PRELOADED, FAST, "pg_meminfo.log_session_memory = 100MB") as cluster, cluster.connect() as connection:
        connection.execute(
            """CREATE FUNCTION holds() RETURNS int LANGUAGE plpgsql PARALLEL SAFE AS $$
            DECLARE held text := repeat('x', 45000000); BEGIN PERFORM pg_sleep(1000); RETURN length(held); END $$"""
        )
        connection.execute("CREATE TABLE many AS SELECT generate_series(1, 1000) AS n")
        settings = ["parallel_setup_cost=0", "parallel_tuple_cost=0", "min_parallel_table_scan_size=0", "max_parallel_workers_per_gather=2"]
        # Each of the three holds 45 MB.
        with cluster.running("SELECT count(holds()) FROM many", *settings) as leader:
            wait_until(lambda: incidents(connection, "session memory"))
            [incident] = incidents(connection, "session memory")
            assert incident["pid"] == leader and incident["private"] > 100 * MB
            assert cluster.log_has(f"process {leader} holds ")


def test_little_memory_left_is_logged():
    with start_cluster(PRELOADED, FAST, "pg_meminfo.log_min_headroom = 1TB") as cluster, cluster.connect() as connection:
        wait_until(lambda: incidents(connection, "min headroom"))
        start = now(connection)
        wait_until(lambda: count(connection, start) > 3)
        [incident] = incidents(connection)
        assert incident["pid"] is None and incident["headroom"] < 2**40
        assert cluster.log_has("memory is running out: ")
        # A reload is obeyed.
        connection.execute("ALTER SYSTEM SET pg_meminfo.log_min_headroom = -1")
        connection.execute("SELECT pg_reload_conf()")
        wait_until(lambda: cluster.log_has('parameter "pg_meminfo.log_min_headroom" changed to "-1"'))
        start = now(connection)
        # The postmaster logs it before it tells the recorder.
        wait_until(lambda: count(connection, start) > 20)
        connection.execute("ALTER SYSTEM RESET pg_meminfo.log_min_headroom")
        connection.execute("SELECT pg_reload_conf()")
        wait_until(lambda: len(incidents(connection)) == 2)


@pytest.mark.one_major
def test_a_peak_between_two_samples_is_seen():
    with start_cluster(PRELOADED, "pg_meminfo.sample_interval = 3000") as cluster:
        with cluster.connect(application_name="peak") as session, cluster.connect() as connection:
            pid = session.info.backend_pid
            wait_until(lambda: count(connection) > 0)
            # A sample that is taken at the right moment would have it as private, too.
            query = "SELECT max(peak_private - private) FROM pg_meminfo_session_history WHERE pid = %s"

            def is_seen():
                session.execute("SELECT length(array_agg(repeat('x', 1000))::text) FROM generate_series(1, 100000)")
                time.sleep(0.5)
                more = connection.execute(query, [pid]).fetchone()[0]
                return more and more > 80 * MB

            wait_until(is_seen)


@pytest.mark.one_major
def test_it_does_not_grow_and_keeps_no_descriptors(recorded):
    with recorded.connect() as connection:
        pid = recorder(connection)
        wait_until(lambda: count(connection) > 20)
        descriptors = pathlib.Path(f"/proc/{pid}/fd")

        def use(sessions):
            with recorded.sessions(sessions):
                start = now(connection)
                wait_until(lambda: count(connection, start) > 2)
                return len(list(descriptors.iterdir()))

        few = use(1)
        many = use(30)
        assert many >= few + 25
        wait_until(lambda: len(list(descriptors.iterdir())) <= few)
        before = private(pid)
        for _ in range(5):
            use(30)
        assert private(pid) - before < 2 * MB


def test_a_shutdown_is_fast_and_the_extension_can_be_dropped(recorded):
    with recorded.connect() as connection:
        connection.execute("CREATE DATABASE other TEMPLATE template0")
        with recorded.connect(dbname="other") as other:
            other.execute("CREATE EXTENSION pg_meminfo")
            other.execute("DROP EXTENSION pg_meminfo")
        wait_until(lambda: not connection.execute("SELECT 1 FROM pg_stat_activity WHERE datname = 'other'").fetchall())
        # It waits until every process, also the recorder, has taken note.
        connection.execute("DROP DATABASE other")
    with restarting() as (_, restart):
        restart(signal.SIGINT).close()
