"""Processes that the kernel does not permit the server to read."""

import errno
import os

import pytest
from conftest import (
    each_kernel,
    in_mounts,
    preload,
    start_cluster,
    wait_until,
    with_notices,
)

NOT_DUMPABLE = """
#include <sys/prctl.h>
__attribute__((constructor)) static void hide(void) { prctl(PR_SET_DUMPABLE, 0); }
"""

# Reading a file fails, from an offset on. Another file gives the error, the offset and the path. The kernel knows no
# ioctl, as on Linux 6.10 and older, so that files are read.
READ_FAILS = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>
ssize_t read(int descriptor, void *space, size_t size) {{
    static ssize_t (*real)(int, void *, size_t);
    char link[32], path[64] = "", failing[64];
    int error, from;
    FILE *file;
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    if (readlink(link, path, sizeof path - 1) > 0 && !strncmp(path, "/proc/", 6) && (file = fopen("{}", "r"))) {{
        int found = fscanf(file, "%d %d %63s", &error, &from, failing) == 3 && !strcmp(path, failing);
        fclose(file);
        if (found && lseek(descriptor, 0, SEEK_CUR) >= from) {{ errno = error; return -1; }}
    }}
    if (!real) real = dlsym(RTLD_NEXT, "read");
    return real(descriptor, space, size);
}}
int ioctl(int descriptor, unsigned long request, ...) {{
    errno = ENOTTY;
    return -1;
}}
"""


@pytest.fixture(scope="module", params=[each_kernel("plain"), "hidepid=1", each_kernel("hidepid=2")])
def hidden(request, tmp_path_factory):
    """A cluster in which no process may read another, with each of the ways in which /proc denies it."""
    library = preload(tmp_path_factory.mktemp("hidden"), NOT_DUMPABLE)
    within = () if request.param == "plain" else in_mounts(f"mount -t proc -o {request.param} proc /proc")
    with start_cluster(within=within, LD_PRELOAD=library) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def failing(tmp_path_factory):
    """A cluster in which reading a file can fail, and a function that sets the file and the error."""
    directory = tmp_path_factory.mktemp("failing")
    which = directory / "which"
    with start_cluster(LD_PRELOAD=preload(directory, READ_FAILS.format(which))) as cluster:

        def fail(error, offset, path):
            which.write_text(f"{error} {offset} {path}")

        yield cluster, fail


@pytest.fixture(scope="module", params=["hidepid=1", each_kernel("hidepid=2")])
def closed(request):
    """An ordinary cluster, where /proc is mounted with hidepid."""
    with start_cluster(within=in_mounts(f"mount -t proc -o {request.param} proc /proc")) as cluster:
        yield cluster


def assert_warns(notices, message):
    """There is one WARNING, with this message and with a HINT."""
    [(severity, sqlstate, primary, hint)] = notices
    assert (severity, sqlstate, primary) == ("WARNING", "01000", message)
    assert "dumpable" in hint and "AppArmor" in hint


def test_all_processes_are_counted_in_one_warning(hidden):
    with hidden.connect() as connection:

        def counts_all():
            """True unless a process starts or exits meanwhile."""
            others = connection.execute("SELECT count(*) - 1 FROM pg_stat_activity").fetchone()[0]
            rows, notices = with_notices(connection, "SELECT DISTINCT pid FROM get_all_smaps()")
            assert rows == [(connection.info.backend_pid,)]
            message = notices[0][2]
            assert_warns(notices, message)
            return message == f"could not read the memory of {others} processes: permission denied"

        wait_until(counts_all)


def test_one_warning_a_statement_for_functions_of_a_pid(hidden):
    with hidden.connect() as connection:
        first = "SELECT pid FROM pg_stat_activity WHERE backend_type = 'checkpointer'"
        # Clients are let in before it has started.
        wait_until(lambda: connection.execute(first).fetchall())
        [(pid,)] = connection.execute(first).fetchall()
        message = f"could not read the memory of process {pid}: permission denied"
        for function in "pg_meminfo_smaps", "pg_meminfo_rollup", "pg_meminfo_private":
            for _ in range(2):
                rows, notices = with_notices(connection, f"SELECT * FROM {function}({pid})")
                assert rows == []
                assert_warns(notices, message)
            each = f"SELECT DISTINCT pid FROM pg_stat_activity, LATERAL {function}(pid) AS f"
            rows, notices = with_notices(connection, each)
            assert rows == [(connection.info.backend_pid,)]
            assert len(notices) == 1
        rows, notices = with_notices(connection, "SELECT pid FROM smap_summary")
        assert rows == [(connection.info.backend_pid,)]
        assert len(notices) == 1


def test_own_process_is_readable(hidden):
    with hidden.connect() as connection:
        rows, notices = with_notices(connection, "SELECT * FROM pg_meminfo_smaps(pg_backend_pid())")
        assert len(rows) > 10
        assert notices == []


def test_the_clusters_own_processes_are_not_hidden_from_it(closed):
    with closed.connect() as connection:
        query = "SELECT (SELECT count(DISTINCT pid) FROM get_all_smaps()) = (SELECT count(*) FROM pg_stat_activity)"
        # Unless one comes or goes meanwhile.
        wait_until(lambda: with_notices(connection, query) == ([(True,)], []))


def test_hidden_strangers_give_no_rows_and_no_warning(closed):
    with closed.connect() as connection:
        for stranger in 1, os.getpid(), 2**31 - 1:
            assert with_notices(connection, "SELECT * FROM pg_meminfo_smaps(%s)", [stranger]) == ([], [])


def test_a_process_that_cannot_be_read_keeps_its_row(hidden, request):
    """Its sizes are NULL. Its type is not."""
    with hidden.connect() as connection, hidden.connect() as other:
        rows, notices = with_notices(connection, "SELECT pid, backend_type, rss FROM pg_meminfo")
        sizes = {pid: rss for pid, _, rss in rows}
        assert {connection.info.backend_pid, other.info.backend_pid, hidden.postmaster} <= sizes.keys()
        assert all(backend_type for _, backend_type, _ in rows)
        assert sizes[connection.info.backend_pid] > 0
        if "plain" not in request.node.name:
            assert sizes[other.info.backend_pid] is None
        assert notices == []


def test_a_sum_that_lacks_a_part_is_unknown(hidden):
    """It is NULL, not too small. Even our own pagemap cannot be opened, as a process that is not dumpable belongs to
    root. The main segment is also mapped in our own process, so its resident size is known."""
    with hidden.connect() as connection:
        query = """
            SELECT processes, unreadable, private, dynamic_shared_memory, total, shared_memory_resident > 1000000
            FROM pg_meminfo_cluster
        """
        [(processes, *row)], notices = with_notices(connection, query)
        assert row == [processes, None, None, None, True]
        assert_warns(notices, f"could not read the memory of {processes} processes: permission denied")


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize(
    ("file", "of_pid", "of_all"),
    [
        ("smaps", "pg_meminfo_smaps", "SELECT DISTINCT pid FROM get_all_smaps()"),
        ("smaps_rollup", "pg_meminfo_rollup", None),
        ("maps", "pg_meminfo_private", "SELECT kind FROM pg_meminfo_segments"),
    ],
    ids=["smaps", "smaps_rollup", "maps"],
)
def test_what_cannot_be_read_though_it_was_opened(failing, file, of_pid, of_all, offset):
    """A process whose read is denied, as on Linux 3.10, is left out with a WARNING. One that has exited by then is left
    out silently. There is never half of one."""
    cluster, fail = failing
    with cluster.connect() as connection, cluster.connect() as session:
        pid = session.info.backend_pid

        def read():
            rows, notices = with_notices(connection, f"SELECT * FROM {of_pid}({pid})")
            return rows, notices, *(with_notices(connection, of_all) if of_all else ([], []))

        fail(errno.EACCES, offset, f"/proc/{pid}/{file}")
        rows, notices, all_rows, all_notices = read()
        assert rows == []
        assert_warns(notices, f"could not read the memory of process {pid}: permission denied")
        assert (pid,) not in all_rows
        if of_all:
            assert_warns(all_notices, "could not read the memory of 1 process: permission denied")
        fail(errno.ESRCH, offset, f"/proc/{pid}/{file}")
        rows, notices, all_rows, all_notices = read()
        assert (rows, notices, all_notices) == ([], [], [])
        assert (pid,) not in all_rows
        fail(0, 0, "none")
        rows, notices, all_rows, all_notices = read()
        assert rows != [] and (notices, all_notices) == ([], [])
        assert file != "smaps" or (pid,) in all_rows


def test_a_sum_that_lacks_what_was_denied_at_a_read(failing):
    """It is NULL if a process was denied. A process that has exited does not make it NULL."""
    cluster, fail = failing
    with cluster.connect() as connection, cluster.connect() as session:
        query = "SELECT unreadable, private IS NULL, total IS NULL FROM pg_meminfo_cluster"
        fail(errno.EACCES, 0, f"/proc/{session.info.backend_pid}/maps")
        rows, notices = with_notices(connection, query)
        assert rows == [(1, True, True)]
        assert_warns(notices, "could not read the memory of 1 process: permission denied")
        fail(errno.ESRCH, 0, f"/proc/{session.info.backend_pid}/maps")
        assert with_notices(connection, query) == ([(0, False, False)], [])
        fail(0, 0, "none")
