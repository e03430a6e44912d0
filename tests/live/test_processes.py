"""pg_meminfo and pg_meminfo_mappings: every process of the cluster, with the kernel's figures of its memory."""

import pathlib
import re
import socket

import psutil
import pytest
from conftest import each_kernel, preload, start_cluster, wait_until
from test_denied import NOT_DUMPABLE
from test_reading import opened, traced

COUNTERS = {
    "virtual_size": "VmSize", "rss": "VmRSS", "peak_rss": "VmHWM", "rss_anon": "RssAnon", "rss_file": "RssFile",
    "rss_shmem": "RssShmem", "swap": "VmSwap", "hugetlb": "HugetlbPages", "locked": "VmLck", "page_tables": "VmPTE",
}  # fmt: skip


def types(connection):
    """The type of each process, by pid."""
    rows = connection.execute("SELECT pid, backend_type FROM pg_meminfo").fetchall()
    assert len(rows) == len(dict(rows))
    return dict(rows)


def tree(cluster):
    """The postmaster and its children, by the parent of each process in /proc."""
    children = [p.info["pid"] for p in psutil.process_iter(["pid", "ppid"]) if p.info["ppid"] == cluster.postmaster]
    return {cluster.postmaster, *children}


@pytest.mark.kernels
def test_the_whole_process_tree(cluster):
    """With a logger, a standby and a parallel query: each process of a cluster is shown with its type, none of the
    other cluster."""
    backup = [cluster.programs / "pg_basebackup", "-h", "{host}", "-p", "5432", "-U", "postgres", "-D", "{data}", "-R", "-c", "fast"]
    with start_cluster("logging_collector = on") as primary, primary.connect() as connection:
        backup = [str(word).replace("{host}", str(primary.host)) for word in backup]
        with primary.start_another("standby", backup) as standby, standby.connect() as on_standby:
            with primary.running_in_parallel(connection) as leader:
                expected = {"postmaster", "logger", "checkpointer", "client backend", "walsender", "parallel worker"}
                wait_until(lambda: expected <= set(types(connection).values()))
                wait_until(lambda: types(connection).keys() == tree(primary))
                wait_until(lambda: "starting" not in types(connection).values())
                leaders = "SELECT DISTINCT leader_pid FROM pg_meminfo WHERE backend_type = 'parallel worker'"
                assert connection.execute(leaders).fetchall() == [(leader,)]

            wait_until(lambda: {"postmaster", "startup", "walreceiver"} <= set(types(on_standby).values()))
            wait_until(lambda: types(on_standby).keys() == tree(standby))
            assert not types(on_standby).keys() & types(connection).keys()


@pytest.mark.kernels
def test_a_session_that_is_not_authenticated_yet(cluster, connection):
    with socket.socket(socket.AF_UNIX) as stranger:
        stranger.connect(f"{cluster.host}/.s.PGSQL.5432")

        def others():
            """The types of the processes that are not in pg_stat_activity, without the postmaster."""
            active = {pid for (pid,) in connection.execute("SELECT pid FROM pg_stat_activity")}
            found = types(connection)
            return [found.get(pid) for pid in tree(cluster) - active - {cluster.postmaster}]

        # The client sends no startup packet.
        wait_until(lambda: others() == ["starting"])


@pytest.mark.kernels
def test_a_child_of_a_session_is_no_process_of_the_cluster(cluster, connection):
    with cluster.running("COPY (SELECT 1) TO PROGRAM 'sleep 1000'") as pid:
        parent = psutil.Process(pid)
        wait_until(lambda: parent.children(recursive=True))
        descendants = parent.children(recursive=True)
        assert not {child.pid for child in descendants} & set(types(connection))
        assert pid in types(connection)
        for child in descendants:
            child.kill()


def test_a_user_named_logger_is_not_the_logger(cluster, connection):
    connection.execute('CREATE ROLE "logger" SUPERUSER LOGIN')
    with cluster.connect(user="logger") as session:
        assert types(connection)[session.info.backend_pid] == "client backend"
    connection.execute('DROP ROLE "logger"')


def test_the_logger_of_a_cluster_with_a_name():
    with start_cluster("logging_collector = on", "cluster_name = 'a: b'") as cluster, cluster.connect() as connection:
        # It has no title before it has started.
        wait_until(lambda: list(types(connection).values()).count("logger") == 1)
        wait_until(lambda: types(connection).keys() == tree(cluster))


@pytest.mark.kernels
def test_counters_are_the_kernels(cluster, connection):
    """For an idle process they are the same as in /proc."""
    with cluster.connect() as idle:
        process = psutil.Process(idle.info.backend_pid)
        columns = ", ".join([*COUNTERS, "threads", "oom_score", "oom_score_adj", "extract(epoch FROM process_start)"])

        def kernels():
            with open(f"/proc/{process.pid}/status") as file:
                status = dict(line.rstrip("\n").split(":", 1) for line in file)
            row = [int(re.fullmatch(r"\s*(\d+) kB", status[key])[1]) * 1024 if key in status else None for key in COUNTERS.values()]
            for name in "oom_score", "oom_score_adj":
                with open(f"/proc/{process.pid}/{name}") as file:
                    status[name] = int(file.read())
            return [*row, int(status["Threads"]), status["oom_score"], status["oom_score_adj"]]

        query = f"SELECT {columns} FROM pg_meminfo_processes() WHERE pid = %s"
        # oom_score depends on the free memory of the machine, and so on other processes.
        wait_until(lambda: (before := kernels()) == list(connection.execute(query, [process.pid]).fetchone()[:-1]) == before)
        started = connection.execute(query, [process.pid]).fetchone()[-1]
        # psutil rounds the boot time to a second, and keeps it, although the clock may be set since.
        psutil.boot_time()
        assert abs(float(started) - psutil.Process(process.pid).create_time()) < 1.1


@pytest.mark.kernels
def test_no_page_is_walked(connection, tmp_path):
    with traced(connection.info.backend_pid, tmp_path) as lines:
        connection.execute("SELECT * FROM pg_meminfo").fetchall()
    names = {match[1] for line in lines if (match := re.search(r'openat\(\d+, "([^"]+)"', line))}
    assert names <= {"stat", "exe", "status", "oom_score", "oom_score_adj", "cmdline"}
    assert {"stat", "status", "oom_score"} <= names


@pytest.mark.kernels
@pytest.mark.parametrize("condition", ["pid = %(pid)s", "pid IN (%(pid)s, 0)", "pid = %(pid)s AND category = 'malloc'"])
def test_conditions_on_mappings_choose_the_files(cluster, connection, tmp_path, condition):
    with cluster.connect() as idle:
        pid = idle.info.backend_pid
        with traced(connection.info.backend_pid, tmp_path) as lines:
            assert connection.execute(f"SELECT * FROM pg_meminfo_mappings WHERE {condition}", {"pid": pid}).fetchall()
        assert opened(lines) == {pid: 1}


@pytest.mark.kernels
def test_a_condition_on_the_type_chooses_the_files(connection, tmp_path):
    query = "SELECT pid FROM pg_stat_activity WHERE backend_type = 'checkpointer'"
    [(checkpointer,)] = connection.execute(query).fetchall()
    with traced(connection.info.backend_pid, tmp_path) as lines:
        assert connection.execute("SELECT * FROM pg_meminfo_mappings WHERE backend_type = 'checkpointer'").fetchall()
    assert opened(lines) == {checkpointer: 1}


def categories(connection, pid):
    query = "SELECT category, name, permissions, size FROM pg_meminfo_mappings WHERE pid = %s"
    return connection.execute(query, [pid]).fetchall()


SEGMENT = 100 * 1024 * 1024


@pytest.mark.parametrize(
    ("main", "dynamic"),
    [("mmap", "posix"), ("mmap", "sysv"), ("mmap", "mmap"), ("sysv", "posix"), each_kernel("sysv", "sysv"), ("sysv", "mmap")],
)
def test_shared_memory_in_each_of_its_forms(main, dynamic):
    settings = [f"shared_memory_type = {main}", f"dynamic_shared_memory_type = {dynamic}", "huge_pages = off"]
    with start_cluster(*settings, "shared_buffers = 100MB") as cluster, cluster.connect() as connection:
        with cluster.running_in_parallel(connection) as busy:
            rows = categories(connection, busy)
            main_segments = [row for row in rows if row[0] == "shared_memory" and row[3] >= SEGMENT]
            dynamic_segments = [row for row in rows if row[0] == "dynamic_shared_memory"]
            assert len(main_segments) == 1
            assert main_segments[0][1] == "/dev/zero (deleted)" if main == "mmap" else main_segments[0][1].startswith("/SYSV")
            prefix = {"posix": "/dev/shm/PostgreSQL.", "sysv": "/SYSV", "mmap": f"{cluster.data}/pg_dynshmem/mmap."}[dynamic]
            assert dynamic_segments and all(row[1].startswith(prefix) for row in dynamic_segments)
            assert all(row[2].endswith("s") for row in main_segments + dynamic_segments)
            # Every other shared mapping has a category of its own, too: none is "other".
            shared = [row for row in rows if row[2].endswith("s")]
            assert {row[0] for row in shared} <= {"shared_memory", "dynamic_shared_memory", "io_uring", "file", "library"}


@pytest.mark.kernels
def test_compiled_code(cluster, connection):
    """A JIT-compiled query has executable anonymous memory, and the libraries of the compiler."""
    settings = ["jit=on", "jit_above_cost=0", "jit_inline_above_cost=0", "jit_optimize_above_cost=0", "max_parallel_workers_per_gather=0"]
    with cluster.connect(*settings) as session:
        pid = session.info.backend_pid
        if not session.execute("SELECT pg_jit_available()").fetchone()[0]:
            pytest.skip("this server has no JIT")
        assert not any(row[0] == "jit" for row in categories(connection, connection.info.backend_pid))
        session.execute("BEGIN; DECLARE c CURSOR FOR SELECT sum(n) OVER (ORDER BY n + 1) FROM generate_series(1, 100) AS n")
        session.execute("FETCH 1 FROM c")
        compiled = [row for row in categories(connection, pid) if row[0] == "jit"]
        assert any(row[1] is None and "x" in row[2] for row in compiled)
        assert any(row[1] and "libLLVM" in row[1] for row in compiled)


@pytest.mark.kernels
def test_io_uring(cluster, connection):
    """From PostgreSQL 18 on, if built with liburing. With newer kernels the rings can be in the main segment."""
    methods = connection.execute("SELECT enumvals FROM pg_settings WHERE name = 'io_method'").fetchall()
    if methods == [] or "io_uring" not in methods[0][0]:
        pytest.skip("this server has no io_uring")
    disabled = pathlib.Path("/proc/sys/kernel/io_uring_disabled")
    if disabled.exists() and disabled.read_text() != "0\n":
        pytest.skip("io_uring is not permitted here")
    with start_cluster("io_method = io_uring") as rings, rings.connect() as session:
        mappings = categories(session, session.info.backend_pid)
        assert all(row[0] == "io_uring" for row in mappings if row[1] and "io_uring" in row[1])
        assert not any(row[0] == "other" for row in mappings if row[2].endswith("s"))


def test_counters_need_less_than_mappings(tmp_path):
    """The status of a process that is not dumpable is readable. Only its mappings are left out, with a WARNING."""
    with start_cluster(LD_PRELOAD=preload(tmp_path, NOT_DUMPABLE)) as cluster, cluster.connect() as connection:
        wait_until(lambda: types(connection).keys() == tree(cluster))
        assert connection.execute("SELECT count(*) FROM pg_meminfo WHERE rss IS NULL").fetchone() == (0,)
        listed = connection.execute("SELECT DISTINCT pid FROM pg_meminfo_mappings").fetchall()
        assert listed == [(connection.info.backend_pid,)]
