"""pg_meminfo_cgroups and pg_meminfo_host under limits that only a machine of our own can have: on several levels, with
swap, with kills of the OOM killer. Runs in the virtual machines of scripts/check-kernels, with cgroup version 2."""

import contextlib
import os
import pathlib
import signal
import subprocess
import time
import uuid

import psycopg
import pytest
from conftest import PAGE, in_cgroup, remove_cgroup, rows, wait_until

MB = 2**20
TOP = pathlib.Path("/sys/fs/cgroup")

# These change all the time. Besides, each processor charges up to 64 pages in advance.
MOVING = {"usage", "working_set", "anon", "file", "shmem", "kernel", "headroom"}
SLACK = 2 * 64 * PAGE * os.cpu_count()


def has_memory():
    controllers = TOP / "cgroup.subtree_control"
    return controllers.exists() and "memory" in controllers.read_text().split()


pytestmark = [pytest.mark.guest, pytest.mark.skipif(not has_memory(), reason="cgroup version 2 does not account for memory here")]


@contextlib.contextmanager
def nested(*names):
    """Cgroups with the memory controller, each below the one before. Their directories, the innermost first."""
    directories = [TOP.joinpath(*names[:depth]) for depth in range(len(names), 0, -1)]
    try:
        for directory in reversed(directories):
            directory.mkdir()
            if directory != directories[0]:
                (directory / "cgroup.subtree_control").write_text("+memory")
        yield directories
    finally:
        remove_cgroup(directories[-1])


def unique(suffix=""):
    return f"pg_meminfo_{uuid.uuid4().hex}{suffix}"


def backup(cluster):
    """The command that copies a running cluster, which is faster than initdb."""
    copy = f"'{cluster.programs}/pg_basebackup' -h '{cluster.host}' -p 5432 -U postgres -D {{data}} -c fast --no-sync"
    return ["sh", "-c", f"{copy} && echo \"shared_buffers = '16MB'\" >>{{data}}/postgresql.conf"]


@contextlib.contextmanager
def changes():
    """A function that writes a file. At the end of the block, the files have their old content again."""
    with contextlib.ExitStack() as stack:

        def change(file, value):
            old = file.read_text()
            stack.callback(lambda: file.write_text(old))
            file.write_text(str(value))

        yield change


def hold(session, megabytes):
    """Makes a session hold this much memory until it ends."""
    session.execute("SELECT length(set_config('held.text', repeat('x', %s), false))", [megabytes * MB])


def keys(text):
    """A file with a key and a number in each line."""
    return {line.split()[0].rstrip(":"): int(line.split()[1]) for line in text.splitlines()}


def path_of(directory):
    """A cgroup's path, in the hierarchy."""
    return str(directory).removeprefix(str(TOP)) or "/"


def as_files_have_it(directory):
    """The row of a cgroup, apart from its level."""

    def read(name):
        """None if the kernel has no such file, or does not keep the statistic."""
        try:
            return (directory / name).read_text()
        except OSError:
            return None

    def number(name):
        text = read(name)
        return None if text in (None, "max\n") else int(text)

    def stalled(kind):
        lines = [line for line in (read("memory.pressure") or "").splitlines() if line.startswith(kind)]
        return int(lines[0].split("total=")[1]) if lines else None

    stat, events = (keys(read(name) or "") for name in ("memory.stat", "memory.events"))
    usage, group = number("memory.current"), number("memory.oom.group")
    return {
        "path": path_of(directory), "version": 2, "memory_limit": number("memory.max"), "memory_high": number("memory.high"),
        "usage": usage, "working_set": None if usage is None else usage - stat["inactive_file"],
        "anon": stat.get("anon"), "file": stat.get("file"), "shmem": stat.get("shmem"), "kernel": stat.get("kernel"),
        "swap_limit": number("memory.swap.max"), "swap_usage": number("memory.swap.current"),
        "unlimited": number("memory.max") is None, "oom_kills": events.get("oom_kill"), "oom_group": None if group is None else group == 1,
        "psi_some_usec": stalled("some"), "psi_full_usec": stalled("full"),
    }  # fmt: skip


def is_left(directory):
    return as_files_have_it(directory)["memory_limit"] - as_files_have_it(directory)["working_set"]


def host_as_files_have_it(directories):
    """Those columns of pg_meminfo_host that depend on limits, swap and kills."""
    meminfo = {key: size * 1024 for key, size in keys(pathlib.Path("/proc/meminfo").read_text()).items()}
    left = {path_of(directory): is_left(directory) for directory in directories if as_files_have_it(directory)["memory_limit"]}
    left["host"] = meminfo["MemAvailable"]
    source = min(left, key=left.get)
    kills = keys(pathlib.Path("/proc/vmstat").read_text())["oom_kill"]
    swap = {"swap_total": meminfo["SwapTotal"], "swap_free": meminfo["SwapFree"]}
    return {"headroom": left[source], "headroom_source": source, "oom_kills": kills, **swap}


def agreed(query, as_files):
    """The rows of a query, at a moment at which each value is between those that the files have before and after."""

    def is_between(name, value, first, last):
        if not all(type(each) is int for each in (value, first, last)):
            return value == first
        slack = SLACK if name in MOVING else 0
        return min(first, last) - slack <= value <= max(first, last) + slack

    for _ in range(20):
        before, found, after = as_files(), rows(query()), as_files()
        assert len(found) == len(before)
        values = [(name, row[name], first[name], last[name]) for row, first, last in zip(found, before, after) for name in first]
        different = [each for each in values if not is_between(*each)]
        if not different:
            return found
        time.sleep(0.1)
    pytest.fail(f"the view, the files before and after: {different}")


def cgroups(connection, directories):
    """The rows of pg_meminfo_cgroups, which agree with the files of these directories and of the root."""
    query = "SELECT * FROM pg_meminfo_cgroups ORDER BY level"
    every = [*directories, TOP]
    found = agreed(lambda: connection.execute(query), lambda: [as_files_have_it(directory) for directory in every])
    assert [row["level"] for row in found] == list(range(len(every)))
    return found


def host(connection, directories):
    """The row of pg_meminfo_host, which agrees with the files."""
    [row] = agreed(lambda: connection.execute("SELECT * FROM pg_meminfo_host"), lambda: [host_as_files_have_it(directories)])
    return row


def exceed(session):
    """Lets a session exceed the limit of its cgroup, and be killed."""
    with pytest.raises(psycopg.OperationalError):
        session.execute("SELECT length(repeat('x', 900000000))")


@contextlib.contextmanager
def after_restart(server):
    """A session, once the postmaster has restarted all processes."""
    with contextlib.ExitStack() as stack:

        def is_up():
            with contextlib.suppress(psycopg.Error):
                return stack.enter_context(server.connect())

        sessions = []
        wait_until(lambda: sessions.append(is_up()) or sessions[-1])
        yield sessions[-1]


@pytest.fixture(scope="module")
def service(cluster):
    """A cluster in a cgroup as systemd would name it, and the directories of that cgroup and its ancestors."""
    with nested(unique(".slice"), "system-postgresql.slice", "postgresql@17\\x2dmain.service") as directories:
        with cluster.start_another("service", backup(cluster), in_cgroup(directories[0])) as server:
            yield server, directories


def test_names_as_systemd_makes_them(service):
    server, directories = service
    with server.connect() as connection:
        own, parent, grandparent, top = cgroups(connection, directories)
        [line] = pathlib.Path(f"/proc/{connection.info.backend_pid}/cgroup").read_text().splitlines()
        assert line == "0::" + own["path"]
        assert own["path"].endswith(".slice/system-postgresql.slice/postgresql@17\\x2dmain.service")
        assert [parent["path"], grandparent["path"], top["path"]] == [path_of(directory) for directory in [*directories[1:], TOP]]


def test_limits_on_several_levels(service):
    """The headroom is what the tightest level leaves, which need not be the one with the smallest limit."""
    server, directories = service
    own, parent, grandparent = directories
    shm = pathlib.Path("/dev/shm") / unique()

    def limit(change, directory, megabytes):
        """Limits a cgroup to this much more than it has."""
        change(directory / "memory.max", as_files_have_it(directory)["working_set"] + megabytes * MB)

    with server.connect() as connection, changes() as change:
        assert [row["unlimited"] for row in cgroups(connection, directories)] == [True] * 4
        assert host(connection, directories)["headroom_source"] == "host"

        limit(change, parent, 60)
        limit(change, grandparent, 90)
        assert [row["unlimited"] for row in cgroups(connection, directories)] == [True, False, False, True]
        row = host(connection, directories)
        assert row["headroom_source"] == path_of(parent) and 50 * MB < row["headroom"] <= 61 * MB

        # A neighbour of the parent fills the grandparent, which has the larger limit.
        neighbour = grandparent / "neighbour"
        neighbour.mkdir()
        try:
            subprocess.run(in_cgroup(neighbour, "sh", "-c", 'head -c 50M /dev/zero >"$0"', shm), check=True)
            found = cgroups(connection, directories)
            assert found[1]["memory_limit"] < found[2]["memory_limit"]
            assert found[2]["usage"] - found[1]["usage"] > 50 * MB
            row = host(connection, directories)
            assert row["headroom_source"] == path_of(grandparent) and 30 * MB < row["headroom"] <= 41 * MB

            limit(change, own, 20)
            row = host(connection, directories)
            assert row["headroom_source"] == path_of(own) and 10 * MB < row["headroom"] <= 21 * MB
        finally:
            shm.unlink()
            wait_until(lambda: neighbour.rmdir() is None)

        # Limits that are larger than the machine.
        for directory in directories:
            (directory / "memory.max").write_text(str(2**50))
        assert [row["unlimited"] for row in cgroups(connection, directories)] == [False, False, False, True]
        assert host(connection, directories)["headroom_source"] == "host"


def test_memory_high_slows_down(service):
    """A session that needs more than memory.high is slowed down. The headroom refers to memory.max alone."""
    server, directories = service
    own = directories[0]
    with server.connect() as connection, server.connect() as session, changes() as change:
        before = cgroups(connection, directories)[0]
        high = before["usage"] + 16 * MB
        change(own / "memory.high", high)
        change(own / "memory.max", high + 100 * MB)
        throttled = keys((own / "memory.events").read_text())["high"]
        session.pgconn.send_query(b"SELECT length(repeat('x', 40000000))")
        # The kernel adds up the time every two seconds.
        wait_until(lambda: pressure(own) is None or pressure(own) > (before["psi_some_usec"] or 0) + 500000)
        wait_until(lambda: keys((own / "memory.events").read_text())["high"] > throttled)
        during = cgroups(connection, directories)[0]
        assert during["memory_high"] == high
        assert high - 4 * MB < during["usage"] < high + 16 * MB
        if before["psi_some_usec"] is not None:
            assert during["psi_some_usec"] - before["psi_some_usec"] > 500000
        row = host(connection, directories)
        assert row["headroom_source"] == path_of(own) and row["headroom"] > 80 * MB
        # Without the limit the query ends.
        (own / "memory.high").write_text("max")
        [result] = iter(session.pgconn.get_result, None)
        assert result.get_value(0, 0) == b"40000000"


def pressure(directory):
    return as_files_have_it(directory)["psi_some_usec"]


def test_without_pressure_statistics(service):
    """NULL where the kernel does not keep them: if started with psi=0, or for single cgroups since Linux 6.1."""
    server, directories = service
    with server.connect() as connection:
        known = [row["psi_some_usec"] is not None for row in cgroups(connection, directories)]
        is_off = "psi=0" in pathlib.Path("/proc/cmdline").read_text().split()
        assert known == [not is_off] * 4
        setting = directories[1] / "cgroup.pressure"
        if is_off or not setting.exists():
            return
        with changes() as change:
            change(setting, 0)
            found = cgroups(connection, directories)
            assert [row["psi_some_usec"] is None for row in found] == [False, True, False, False]
            assert [row["psi_full_usec"] is None for row in found] == [False, True, False, False]


@contextlib.contextmanager
def swap(megabytes):
    """Swap of this size, until the end of the block."""
    file = pathlib.Path("/var/tmp") / unique()
    try:
        subprocess.run(["dd", "if=/dev/zero", f"of={file}", "bs=1M", f"count={megabytes}", "status=none"], check=True)
        file.chmod(0o600)
        subprocess.run(["mkswap", file], check=True, stdout=subprocess.DEVNULL)
        subprocess.run(["swapon", file], check=True)
        try:
            yield
        finally:
            subprocess.run(["swapoff", file], check=True)
    finally:
        file.unlink()


def swap_out(directory, megabytes):
    """Moves memory of a cgroup to swap, until this much is there. memory.high kills nothing."""

    def is_out():
        """The kernel may reclaim page cache first."""
        usage = as_files_have_it(directory)["usage"]
        (directory / "memory.high").write_text(str(usage - 2 * MB))
        (directory / "memory.high").write_text("max")
        return as_files_have_it(directory)["swap_usage"] > megabytes * MB

    wait_until(is_out)


def test_swap_and_its_limit(service):
    server, directories = service
    own, parent, _ = directories
    with swap(32), server.connect() as connection, changes() as change:
        change(parent / "memory.swap.max", 16 * MB)
        change(own / "memory.high", "max")
        with server.connect() as session:
            hold(session, 40)
            found, before = cgroups(connection, directories), host(connection, directories)
            assert [row["swap_limit"] for row in found] == [None, 16 * MB, None, None]
            assert before["swap_total"] == 32 * MB - os.sysconf("SC_PAGESIZE")
            assert found[0]["swap_usage"] == 0

            unswapped = found[0]["anon"] + found[0]["shmem"]
            swap_out(own, 6)
            found, during = cgroups(connection, directories), host(connection, directories)
            assert 6 * MB < found[0]["swap_usage"] <= 16 * MB
            assert found[0]["anon"] + found[0]["shmem"] < unswapped - 4 * MB
            # Each processor has a cache of free slots (SWAP_SLOTS_CACHE_SIZE), which are not counted as free.
            allowed = max(2 * MB, 64 * os.cpu_count() * os.sysconf("SC_PAGESIZE"))
            assert abs(before["swap_free"] - during["swap_free"] - found[0]["swap_usage"]) < allowed
            status = keys_of_status(session.info.backend_pid)
            assert 0 < status["VmSwap"] <= found[0]["swap_usage"] // 1024 + 1024

            # Up to the limit of the parent, and no further.
            swap_out(own, 14)
            for _ in range(8):
                swap_out(own, 0)
            found = cgroups(connection, directories)
            assert 14 * MB < found[1]["swap_usage"] <= found[1]["swap_limit"]
            assert [row["oom_kills"] for row in found[:3]] == [0, 0, 0]


def keys_of_status(pid):
    lines = [line.split() for line in pathlib.Path(f"/proc/{pid}/status").read_text().splitlines()]
    return {line[0].rstrip(":"): int(line[1]) for line in lines if len(line) == 3 and line[2] == "kB"}


def test_a_kill_by_the_limit_of_an_ancestor(service):
    """It counts once: on the machine, in the cgroup of the process that was killed, and in the ancestors of that,
    whichever has the limit."""
    server, directories = service
    parent = directories[1]
    with changes() as change:
        with server.connect() as connection:
            found, before = cgroups(connection, directories), host(connection, directories)
            change(parent / "memory.max", found[1]["usage"] + 32 * MB)
        with server.connect() as session:
            exceed(session)
        with after_restart(server) as connection:
            now = cgroups(connection, directories)
            assert [row["oom_kills"] - old["oom_kills"] for row, old in zip(now[:3], found)] == [1, 1, 1]
            assert now[3]["oom_kills"] is None
            assert host(connection, directories)["oom_kills"] == before["oom_kills"] + 1
            # The kernel says where the process was, and where the limit.
            local = [keys((directory / "memory.events.local").read_text()) for directory in directories]
            assert [events["oom_kill"] for events in local] == [now[0]["oom_kills"], 0, 0]
            assert [events["oom"] > 0 for events in local] == [False, True, False]
            assert [row["memory_limit"] for row in now] == [None, found[1]["usage"] + 32 * MB, None, None]


def test_the_whole_cgroup_is_killed(cluster):
    """With memory.oom.group the postmaster is killed too, so nothing restarts the cluster. When something else does, it
    recovers from a crash, and the kills are still counted."""
    with nested(unique(".slice"), "postgres.service") as directories:
        own = directories[0]
        with changes() as change:
            change(own / "memory.oom.group", 1)
            with cluster.start_another("group", backup(cluster), in_cgroup(own)) as server:
                postmaster = server.postmaster
                with server.connect() as session:
                    found, before = cgroups(session, directories), host(session, directories)
                    assert [row["oom_group"] for row in found] == [True, False, None]
                    processes = session.execute("SELECT count(*) + 1 FROM pg_stat_activity").fetchone()[0]
                    assert len((own / "cgroup.procs").read_text().split()) == processes
                    change(own / "memory.max", found[0]["usage"] + 32 * MB)
                    exceed(session)
                ended = os.waitid(os.P_PID, postmaster, os.WEXITED | os.WNOWAIT)
                assert (ended.si_code, ended.si_status) == (os.CLD_KILLED, signal.SIGKILL)
                wait_until(lambda: (own / "cgroup.procs").read_text() == "")
            with cluster.start_another("again", ["mv", server.data, "{data}"], in_cgroup(own)) as again, again.connect() as connection:
                assert "was not properly shut down" in (again.data.parent / "again.log").read_text()
                now = cgroups(connection, directories)
                assert now[0]["oom_group"] is True
                kills = now[0]["oom_kills"]
                assert kills == now[1]["oom_kills"] == host(connection, directories)["oom_kills"] - before["oom_kills"]
                # The kernel counts the process that it chose twice.
                assert kills == processes + 1


def test_limits_outside_of_a_container(cluster):
    """A cgroup namespace hides the cgroups above its root, and so their limits. Only kills become known."""
    with nested(unique(".pod"), "container") as (container, pod):
        mount = "mount -t cgroup2 cgroup2 /sys/fs/cgroup && cd /sys/fs/cgroup && mkdir postgres && echo $$ >postgres/cgroup.procs"
        namespace = ["unshare", "--cgroup", "--mount", "sh", "-c", f'{mount} && echo +memory >cgroup.subtree_control && exec "$@"', "sh"]
        with cluster.start_another("contained", backup(cluster), in_cgroup(container, *namespace)) as server, changes() as change:
            inside = [container / "postgres", container]

            def visible(connection):
                """The rows of pg_meminfo_cgroups, which agree with the files of the cgroups in the namespace."""

                def as_files():
                    return [as_files_have_it(directory) | {"path": path} for directory, path in zip(inside, ["/postgres", "/"])]

                return agreed(lambda: connection.execute("SELECT * FROM pg_meminfo_cgroups ORDER BY level"), as_files)

            with server.connect() as connection:
                change(container / "memory.max", as_files_have_it(container)["working_set"] + 200 * MB)
                change(pod / "memory.max", as_files_have_it(pod)["working_set"] + 32 * MB)
                assert [(row["level"], row["unlimited"], row["oom_kills"]) for row in visible(connection)] == [(0, True, 0), (1, False, 0)]
                [row] = agreed(lambda: connection.execute("SELECT headroom FROM pg_meminfo_host"), lambda: [{"headroom": is_left(container)}])
                assert row["headroom"] > 150 * MB > 40 * MB > is_left(pod)
                assert connection.execute("SELECT headroom_source FROM pg_meminfo_host").fetchone() == ("/",)
            with server.connect() as session:
                exceed(session)
            with after_restart(server) as connection:
                found = visible(connection)
                assert [row["oom_kills"] for row in found] == [1, 1]
                assert found[1]["usage"] < found[1]["memory_limit"] - 100 * MB
