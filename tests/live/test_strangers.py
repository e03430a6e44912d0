"""Processes that are not of this cluster, even if they look like it."""

import contextlib
import os
import pathlib
import signal
import subprocess
import threading

import psutil
import pytest
from conftest import in_mounts, wait_until, with_notices

pytestmark = pytest.mark.kernels

LAST_PID = pathlib.Path("/proc/sys/kernel/ns_last_pid")

INITDB = ["-D", "{data}", "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-locale", "--no-sync"]


def initdb(cluster):
    return [cluster.programs / "initdb", *INITDB]


def rows_of(connection, pid):
    return connection.execute("SELECT count(*) FROM pg_meminfo_smaps(%s)", [pid]).fetchone()[0]


def test_another_cluster_of_the_same_user_and_program(cluster, connection):
    with cluster.start_another("other", initdb(cluster)) as other, other.connect() as theirs:
        backend = theirs.info.backend_pid
        assert rows_of(theirs, backend) > 10
        assert rows_of(theirs, other.postmaster) > 10
        for pid in backend, other.postmaster:
            assert rows_of(connection, pid) == 0
        for pid in connection.info.backend_pid, cluster.postmaster:
            assert rows_of(theirs, pid) == 0


def test_a_child_of_a_backend(cluster, connection):
    """A program that COPY runs belongs to the session, and is no process of the cluster."""
    with cluster.connect() as session:
        session.execute("CREATE TEMP TABLE t (pid int)")
        # COPY reads the shell's pid, and the shell then waits for the pipe.
        pipe = cluster.data.parent / "pipe"
        subprocess.run([*cluster.as_owner, "mkfifo", pipe], check=True)
        copy = threading.Thread(target=lambda: session.execute(f"COPY t FROM PROGRAM 'echo $$; cat {pipe} >&2'"))
        copy.start()
        children = f"/proc/{session.info.backend_pid}/task/{session.info.backend_pid}/children"
        read = "SELECT pg_read_file(%s)"
        wait_until(lambda: connection.execute(read, [children]).fetchone()[0].strip())
        [child] = map(int, connection.execute(read, [children]).fetchone()[0].split())
        try:
            assert rows_of(connection, child) == 0
        finally:
            pipe.write_text("")
            copy.join()
        assert session.execute("SELECT pid FROM t").fetchall() == [(child,)]


def test_a_postmaster_that_is_pid_1_and_has_inherited_strangers(cluster):
    """As in a container. Orphans of other programs become its children, but do not run its program."""
    in_mounts()
    within = ["unshare", "--pid", "--fork", "--mount-proc"]
    another = cluster.start_another("first_process", initdb(cluster), within)
    with another as contained, contained.connect() as connection, contextlib.ExitStack() as stack:
        assert contained.postmaster == 1
        assert rows_of(connection, 1) > 10
        assert rows_of(connection, connection.info.backend_pid) > 10
        # Outside its namespace the postmaster has another pid: that of the child of unshare.
        command = [str(cluster.programs / "postgres"), "-D", str(contained.data)]
        # A child that has just been forked has the same command line.
        alike = {p.pid: p.info["ppid"] for p in psutil.process_iter(["cmdline", "ppid"]) if (p.info["cmdline"] or [])[:3] == command}
        [outside] = [pid for pid, parent in alike.items() if parent not in alike]
        # unshare exits after its child, and does not pass signals on.
        stack.callback(wait_until, lambda: not psutil.pid_exists(outside))
        stack.callback(os.kill, outside, signal.SIGQUIT)
        enter = ["nsenter", f"--target={outside}", "--pid", "--mount"]
        # The shell exits before its child, which becomes one of PID 1. It runs as the server's user, then as root.
        for user in cluster.as_owner, []:
            subprocess.run([*enter, *user, "sh", "-c", "exec sleep 1000 & exit"], check=True)
        children = [*enter, "sh", "-c", "grep -l '^Name:.sleep$' /proc/[0-9]*/status | cut -d/ -f3"]

        def found():
            return subprocess.run(children, capture_output=True, text=True, check=True).stdout.split()

        wait_until(lambda: len(found()) == 2)
        strangers = [int(pid) for pid in found()]
        for stranger in strangers:
            parent = [*enter, "sed", "-n", "s/^PPid:.//p", f"/proc/{stranger}/status"]
            wait_until(lambda: subprocess.run(parent, capture_output=True, text=True, check=True).stdout == "1\n")
            assert rows_of(connection, stranger) == 0
        rows, notices = with_notices(connection, "SELECT pid FROM pg_meminfo")
        assert not set(strangers) & {pid for (pid,) in rows}
        assert with_notices(connection, "SELECT * FROM pg_meminfo_segments")[1] == notices == []
        listed = "SELECT count(*) FROM get_all_smaps() WHERE pid NOT IN (SELECT pid FROM pg_stat_activity)"
        # A worker can exit between the two. A stranger would stay.
        wait_until(lambda: connection.execute(listed).fetchone() == (0,))


@contextlib.contextmanager
def frozen_snapshot_of_one_gone(cluster, connection):
    """The pid of a session that has exited and that the transaction of connection still sees in pg_stat_activity."""
    session = cluster.connect()
    pid = session.info.backend_pid
    with connection.transaction():
        listed = "SELECT count(*) FROM pg_stat_activity WHERE pid = %s"
        assert connection.execute(listed, [pid]).fetchone() == (1,)
        session.close()
        wait_until(lambda: not psutil.pid_exists(pid))
        yield pid
        assert connection.execute(listed, [pid]).fetchone() == (1,)
        everything = "SELECT count(*) FROM get_all_smaps() WHERE pid = %s"
        assert connection.execute(everything, [pid]).fetchone() == (0,)
        assert rows_of(connection, pid) == 0


def make_process_of(pid, make):
    """Creates processes until one has this pid. Skips the test if another process gets it."""
    for _ in range(30):
        try:
            LAST_PID.write_text(str(pid - 1))
        except OSError as error:
            pytest.skip(f"cannot choose the next pid here: {error}")
        if make() == pid:
            return
    pytest.skip("another process has taken the pid")


def test_a_pid_that_belongs_to_another_program_now(cluster, connection):
    with contextlib.ExitStack() as stack, frozen_snapshot_of_one_gone(cluster, connection) as pid:

        def start():
            sleeper = stack.enter_context(subprocess.Popen([*cluster.as_owner, "sleep", "1000"]))
            stack.callback(sleeper.kill)
            return sleeper.pid

        make_process_of(pid, start)
        wait_until(lambda: psutil.Process(pid).name() == "sleep")


def test_a_pid_that_belongs_to_another_cluster_now(cluster, connection):
    """The other cluster has the same user and the same program."""
    with cluster.start_another("heir", initdb(cluster)) as other, contextlib.ExitStack() as stack:
        with frozen_snapshot_of_one_gone(cluster, connection) as pid, other.connect() as witness:
            make_process_of(pid, lambda: stack.enter_context(other.connect()).info.backend_pid)
            assert rows_of(witness, pid) > 10
