"""Yama, which restricts ptrace, restricts nothing of what the server reads but the memory of its processes.

A ptrace_scope of 3 cannot be lowered, and with it no test could trace a process. So this file has a name that makes it
the last one, and the order of its tests matters. It runs only in the virtual machines of scripts/check-kernels.
"""

import pathlib

import pytest
from conftest import start_cluster, with_notices
from test_guest_access import assert_reads_all, may_open

pytestmark = pytest.mark.guest

SCOPE = pathlib.Path("/proc/sys/kernel/yama/ptrace_scope")


@pytest.mark.parametrize("scope", [0, 1, 2, 3])
def test_at_each_scope_the_server_reads_its_own_processes(cluster, scope):
    if not SCOPE.exists():
        pytest.skip("this kernel has no Yama")
    SCOPE.write_text(str(scope))
    with cluster.sessions(1) as [session]:
        # Yama restricts attaching to a process, which opening this file requires.
        assert may_open(cluster, f"/proc/{session.info.backend_pid}/mem") == (scope == 0)
        assert_reads_all(cluster, session)
        reads_contexts(cluster, scope == 0, scope)
        with start_cluster("shared_preload_libraries = 'pg_meminfo'") as preloaded:
            reads_contexts(preloaded, scope <= 1, scope)
        with start_cluster("shared_preload_libraries = 'pg_meminfo'", "pg_meminfo.set_ptracer = off") as unwilling:
            reads_contexts(unwilling, scope == 0, scope)


def reads_contexts(cluster, may, scope):
    """Asserts that a session may read the memory of each of the server's processes, or of none but its own."""
    with cluster.connect() as connection:
        pids = "SELECT pid FROM pg_meminfo_processes() WHERE pid <> pg_backend_pid() AND backend_type <> 'starting'"
        others = [pid for (pid,) in connection.execute(pids)]
        assert cluster.postmaster in others
        for pid in others:
            rows, notices = with_notices(connection, "SELECT name FROM pg_meminfo_contexts(%s) WHERE level = 1", [pid])
            if may:
                assert rows in ([("TopMemoryContext",)], []) and notices == []
            else:
                assert rows == []
                [(severity, _, message, hint)] = notices
                assert (severity, message) == ("WARNING", f"could not read the memory contexts of process {pid}: permission denied")
                assert f"ptrace_scope is {scope}" in hint or (scope > 1 and "ptrace_scope is 2 or 3" in hint)
        assert connection.execute("SELECT count(*) FROM pg_meminfo_contexts(pg_backend_pid())").fetchone()[0] > 50
