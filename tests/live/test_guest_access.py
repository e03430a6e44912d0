"""What a machine's security settings permit the server to read: hidepid, hardening sysctls and AppArmor.

These tests change the machine, so they run only in the virtual machines of scripts/check-kernels. Yama has a file of
its own, test_yama.py.
"""

import contextlib
import pathlib
import shutil
import subprocess

import pytest
from conftest import start_cluster, wait_until, with_notices
from test_cluster import from_smaps
from test_denied import assert_warns
from test_guest_memory import setting
from test_processes import tree

pytestmark = pytest.mark.guest

# Each gives the pids of the processes that it could read.
OF_ALL_PROCESSES = [
    "SELECT pid FROM pg_meminfo WHERE rss > 0 AND private_estimate > 0",
    "SELECT DISTINCT pid FROM pg_meminfo_mappings",
    "SELECT pid FROM pg_meminfo_processes(), pg_meminfo_rollup(pid)",
    "SELECT DISTINCT pid FROM pg_meminfo_processes(), pg_meminfo_private(pid) AS p WHERE p.private > 0",
]
OF_PG_STAT_ACTIVITY = ["SELECT DISTINCT pid FROM get_all_smaps()", "SELECT pid FROM smap_summary"]
WHOLE = "SELECT processes, unreadable, private > 0, total > 0, page_tables > 0, shared_memory_resident > 0 FROM pg_meminfo_cluster"


def assert_reads_all(cluster, session):
    """Every function and view has all processes, without a WARNING, and the figures of an idle session are right."""
    with cluster.connect() as connection:

        def has_all(query, expected):
            """Unless a process starts or exits meanwhile."""
            return with_notices(connection, query) == (expected(), [])

        def pids(query):
            found, notices = with_notices(connection, query)
            assert notices == []
            return {pid for (pid,) in found}

        for query in OF_ALL_PROCESSES:
            wait_until(lambda query=query: pids(query) == tree(cluster))
        for query in OF_PG_STAT_ACTIVITY:
            wait_until(lambda query=query: pids(query) == tree(cluster) - {cluster.postmaster})
        wait_until(lambda: has_all(WHOLE, lambda: [(len(tree(cluster)), 0, True, True, True, True)]))
        main = "SELECT processes FROM pg_meminfo_segments WHERE kind = 'main'"
        wait_until(lambda: has_all(main, lambda: [(len(tree(cluster)),)]))
        for view in "pg_meminfo_host", "pg_meminfo_cgroups":
            found, notices = with_notices(connection, f"SELECT * FROM {view}")
            assert found and notices == []
        pid = session.info.backend_pid
        private = "SELECT sum(private)::bigint FROM pg_meminfo_private(%s)"
        wait_until(lambda: from_smaps(pid) == connection.execute(private, [pid]).fetchone()[0] == from_smaps(pid))


def may_open(cluster, path):
    """Whether the server's user may open a file."""
    opened = [*cluster.as_owner, "sh", "-c", ': <"$1"', "sh", path]
    return subprocess.run(opened, stderr=subprocess.DEVNULL, check=False).returncode == 0


def test_hidepid_for_the_whole_machine(cluster):
    """Even then the server's processes are visible to the server, and only they are."""
    with cluster.sessions(1) as [session]:
        assert may_open(cluster, "/proc/1/status")
        subprocess.run(["mount", "-o", "remount,hidepid=2", "/proc"], check=True)
        try:
            assert not may_open(cluster, "/proc/1/status")
            assert_reads_all(cluster, session)
        finally:
            subprocess.run(["mount", "-o", "remount,hidepid=0", "/proc"], check=True)
        assert may_open(cluster, "/proc/1/status")


def test_hardening_sysctls(cluster):
    """Those that distributions and hardening guides set."""
    hardened = {
        "kernel/kptr_restrict": 2,
        "kernel/dmesg_restrict": 1,
        "kernel/perf_event_paranoid": 3,
        # 1 could not be undone.
        "kernel/unprivileged_bpf_disabled": 2,
        "kernel/randomize_va_space": 2,
        "kernel/io_uring_disabled": 2,
        "fs/suid_dumpable": 0,
        "fs/protected_regular": 2,
        "vm/unprivileged_userfaultfd": 0,
        "vm/overcommit_memory": 2,
        "user/max_user_namespaces": 0,
    }
    with contextlib.ExitStack() as stack:
        for name, value in hardened.items():
            # io_uring_disabled is from Linux 6.6 on.
            if pathlib.Path(f"/proc/sys/{name}").exists():
                stack.enter_context(setting(f"/proc/sys/{name}", str(value)))
        [session] = stack.enter_context(cluster.sessions(1))
        assert_reads_all(cluster, session)
        policy = "SELECT overcommit_memory, commit_limit FROM pg_meminfo_host"
        limit = pathlib.Path("/proc/meminfo").read_text().split("CommitLimit:")[1].split()[0]
        assert session.execute(policy).fetchone() == (2, 1024 * int(limit))


# Everything except access to other processes.
PROFILE = """
abi <abi/3.0>,
profile pg_meminfo_test flags=(attach_disconnected) {{
    capability,
    file,
    mount,
    umount,
    network,
    signal,
    unix,
    {}
}}
"""


@contextlib.contextmanager
def confined(rule):
    """A cluster under a profile of AppArmor with this rule. Skips the test without AppArmor."""
    enabled = pathlib.Path("/sys/module/apparmor/parameters/enabled")
    if not enabled.exists() or enabled.read_text() != "Y\n":
        pytest.skip("this kernel does not use AppArmor")
    if not shutil.which("apparmor_parser"):
        pytest.skip("apparmor_parser is not installed")

    def profile(action):
        subprocess.run(["apparmor_parser", action, "--skip-cache"], input=PROFILE.format(rule), text=True, check=True)

    profile("--add")
    try:
        with start_cluster(SERVER_WITHIN="aa-exec -p pg_meminfo_test --") as cluster:
            assert pathlib.Path(f"/proc/{cluster.postmaster}/attr/current").read_text() == "pg_meminfo_test (enforce)\n"
            yield cluster
    finally:
        profile("--remove")


def test_apparmor_without_a_rule_for_ptrace():
    """The server may read none of its processes except the one that reads. Their counters are not denied."""
    with confined("") as cluster, cluster.connect() as connection, cluster.sessions(1) as [session]:
        own, pid = connection.info.backend_pid, session.info.backend_pid
        for query in "SELECT DISTINCT pid FROM pg_meminfo_mappings", *OF_PG_STAT_ACTIVITY:
            found, notices = with_notices(connection, query)
            assert found == [(own,)], query
            assert_warns(notices, notices[0][2])
        for function in "smaps", "rollup", "private":
            found, notices = with_notices(connection, f"SELECT * FROM pg_meminfo_{function}({pid})")
            assert found == []
            assert_warns(notices, f"could not read the memory of process {pid}: permission denied")

        def counts_all():
            """Unless a process starts or exits meanwhile."""
            others = len(tree(cluster)) - 1
            found, notices = with_notices(connection, "SELECT processes, unreadable, private, total FROM pg_meminfo_cluster")
            message = f"could not read the memory of {others} processes: permission denied"
            return found == [(others + 1, others, None, None)] and [notice[2] for notice in notices] == [message]

        def has_counters():
            found, notices = with_notices(connection, "SELECT pid FROM pg_meminfo WHERE rss > 0 AND private_estimate > 0")
            return ({pid for (pid,) in found}, notices) == (tree(cluster), [])

        wait_until(counts_all)
        wait_until(has_counters)


def test_apparmor_with_a_rule_for_ptrace():
    """The rule permits to read processes under the same profile, and to be read by them."""
    with confined("ptrace (read, readby) peer=pg_meminfo_test,") as cluster, cluster.sessions(1) as [session]:
        assert_reads_all(cluster, session)
