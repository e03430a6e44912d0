"""Yama, which restricts ptrace, does not restrict what the server reads.

A ptrace_scope of 3 cannot be lowered, and with it no test could trace a process. So this file has a name that makes it the
last one, and the order of its tests matters. It runs only in the virtual machines of scripts/check-kernels.
"""

import pathlib

import pytest
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
