"""pg_meminfo_host and pg_meminfo_cgroups: the machine and the cgroups that the server runs in."""

import contextlib
import os
import pathlib
import subprocess
import uuid

import psycopg
import pytest
from conftest import (
    OOM_ADJUST,
    in_mounts,
    limited,
    memory_cgroup,
    protect,
    rows,
    start_cluster,
    wait_until,
)

pytestmark = pytest.mark.kernels

MB = 2**20


def host(connection):
    [row] = rows(connection.execute("SELECT * FROM pg_meminfo_host"))
    return row


def cgroups(connection):
    return rows(connection.execute("SELECT * FROM pg_meminfo_cgroups ORDER BY level"))


def test_the_machine_as_its_files_have_it(connection):
    same = {
        "memory_total": "MemTotal", "swap_total": "SwapTotal", "commit_limit": "CommitLimit", "huge_page_size": "Hugepagesize",
        "huge_pages_total": "HugePages_Total", "huge_pages_free": "HugePages_Free", "huge_pages_reserved": "HugePages_Rsvd",
    }  # fmt: skip

    def meminfo():
        lines = (line.split(":") for line in pathlib.Path("/proc/meminfo").read_text().splitlines())
        return {key: int(value.split()[0]) * (1024 if value.endswith(" kB") else 1) for key, value in lines}

    def agree():
        """At a moment at which the figures that change all the time do not change much."""
        before, row, now = meminfo(), host(connection), meminfo()
        if any(before.get(key) != now.get(key) for key in same.values()):
            return False
        assert {name: row[name] for name in same} == {name: now.get(key) for name, key in same.items()}
        changing = {"memory_available": "MemAvailable", "committed": "Committed_AS", "swap_free": "SwapFree"}
        return all(abs(row[name] - now[key]) < 8 * MB for name, key in changing.items())

    wait_until(agree)

    def kills():
        vmstat = dict(line.split() for line in pathlib.Path("/proc/vmstat").read_text().splitlines())
        return int(vmstat["oom_kill"])

    before, row, after = kills(), host(connection), kills()
    assert before <= row["oom_kills"] <= after
    assert row["overcommit_memory"] == int(pathlib.Path("/proc/sys/vm/overcommit_memory").read_text())
    shm = os.statvfs("/dev/shm")
    assert row["dev_shm_size"] == shm.f_blocks * shm.f_frsize
    assert 0 <= row["dev_shm_available"] <= row["dev_shm_size"]


def test_cgroups_as_their_files_have_them(connection):
    version, own = memory_cgroup(connection.info.backend_pid)
    if not own.is_dir():
        pytest.skip("our cgroup is not mounted at the usual place")
    found = cgroups(connection)
    assert [row["version"] for row in found] == [version] * len(found)
    assert [row["level"] for row in found] == list(range(len(found)))
    limit_name, usage_name = {1: ("memory.limit_in_bytes", "memory.usage_in_bytes"), 2: ("memory.max", "memory.current")}[version]
    for level, directory in enumerate([own, *own.parents][: len(found)]):
        assert str(directory).endswith(found[level]["path"].rstrip("/"))
        limit, usage = directory / limit_name, directory / usage_name
        if limit.exists():
            text = limit.read_text().strip()
            is_unlimited = text == "max" or int(text) > 2**62
            assert (found[level]["memory_limit"], found[level]["unlimited"]) == ((None, True) if is_unlimited else (int(text), False))
        if usage.exists():

            def agrees():
                """At a moment at which other processes do little."""
                row = cgroups(connection)[level]
                stat = dict(line.split() for line in (directory / "memory.stat").read_text().splitlines())
                inactive = int(stat["total_inactive_file" if version == 1 else "inactive_file"])
                in_use = int(usage.read_text())
                return abs(row["usage"] - in_use) < 8 * MB and abs(row["working_set"] - (in_use - inactive)) < 8 * MB

            wait_until(agrees)


@pytest.mark.one_major
def test_a_cluster_near_its_limit_and_beyond():
    """Limit, usage and headroom of a cgroup while the cluster in it fills it. When a session exceeds the limit, the
    kill is counted."""
    with limited(256) as (directory, within):
        settings = ["shared_buffers = 16MB", "huge_pages = off", "restart_after_crash = on", "autovacuum = off"]
        with start_cluster(*settings, within=within, **OOM_ADJUST) as cluster:
            protect(cluster)
            with cluster.connect() as connection:
                own, *ancestors = cgroups(connection)
                assert own["path"].endswith(directory.name)
                assert (own["memory_limit"], own["unlimited"], own["version"]) == (256 * MB, False, memory_cgroup("self")[0])
                assert 0 < own["working_set"] <= own["usage"] <= 256 * MB
                assert own["oom_kills"] == 0
                assert own["anon"] > MB
                # The root cgroup of version 2 has no usage.
                if any((directory.parent / name).exists() for name in ("memory.current", "memory.usage_in_bytes")):
                    assert own["usage"] < ancestors[0]["usage"]
                else:
                    assert ancestors[0]["usage"] is None

                def is_left():
                    row, [own, *_] = host(connection), cgroups(connection)
                    left = 256 * MB - own["working_set"]
                    return row["headroom_source"] == own["path"] and abs(row["headroom"] - left) < MB

                wait_until(is_left)

                with cluster.connect("work_mem=1GB") as session:
                    session.execute("BEGIN; DECLARE c CURSOR FOR SELECT repeat(n::text, 20) AS t FROM generate_series(1, 150000) AS n ORDER BY t")
                    session.execute("FETCH 1 FROM c")
                    query = "SELECT private_estimate FROM pg_meminfo WHERE pid = %s"
                    [(held,)] = connection.execute(query, [session.info.backend_pid]).fetchall()
                    assert held > 20 * MB
                    # Not usage: page cache may have been dropped meanwhile.
                    assert cgroups(connection)[0]["anon"] - own["anon"] > held / 2
                    during = host(connection)

            kills = during["oom_kills"]
            with cluster.connect() as session, pytest.raises(psycopg.OperationalError):
                session.execute("SELECT length(repeat('x', 900000000))")

            def is_counted():
                # The postmaster terminates all sessions and restarts.
                with contextlib.suppress(psycopg.Error), cluster.connect() as connection:
                    return cgroups(connection)[0]["oom_kills"] >= 1 and host(connection)["oom_kills"] > kills

            wait_until(is_counted)


@pytest.mark.one_major
def test_in_a_namespace_of_its_own():
    """As in a container: its own cgroup is the root, and those above it are not visible."""
    with limited(256) as (_, within):
        version, _ = memory_cgroup("self")
        mount = {1: "mount -t cgroup -o memory", 2: "mount -t cgroup2"}[version]
        mounts = f"mount -t tmpfs tmpfs /sys/fs/cgroup && mkdir /sys/fs/cgroup/own && {mount} cgroup /sys/fs/cgroup/own"
        namespace = ["unshare", "--cgroup", "--mount", "sh", "-c", f'{mounts} && exec "$@"', "sh"]
        attempt = subprocess.run([*within, *namespace, "true"], stderr=subprocess.PIPE, text=True, check=False)
        if attempt.returncode != 0:
            pytest.skip(f"cannot create a cgroup namespace here: {attempt.stderr.strip()}")
        with start_cluster("shared_buffers = 16MB", "huge_pages = off", within=[*within, *namespace]) as cluster:
            with cluster.connect() as connection:
                [own] = cgroups(connection)
                assert (own["level"], own["path"], own["memory_limit"]) == (0, "/", 256 * MB)
                assert host(connection)["headroom_source"] == "/"
        # If the mount is still the machine's, the path from there to our cgroup is not known.
        with start_cluster("shared_buffers = 16MB", within=[*within, "unshare", "--cgroup", "--mount"]) as cluster, cluster.connect() as connection:
            assert cgroups(connection) == []
            assert host(connection)["headroom"] is None


@pytest.fixture(scope="module")
def elsewhere():
    """A cluster with a mount namespace of its own, where other files can be mounted over those of a session."""
    with start_cluster(within=in_mounts()) as cluster:
        yield cluster


@contextlib.contextmanager
def shown(cluster, files):
    """A session with these files as its cgroup, its mountinfo and its cgroup file system. They are written to a
    directory, whose path and device replace {tree} and {device}."""
    tree = cluster.data / f"tree_{uuid.uuid4().hex}"
    device = os.stat(cluster.data).st_dev
    for name, text in files.items():
        path = tree / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text.replace("{tree}", str(tree)).replace("{device}", f"{os.major(device)}:{os.minor(device)}"))
    subprocess.run(["chmod", "-R", "a+rX", tree], check=True)
    with cluster.connect() as connection:
        for name in "cgroup", "mountinfo":
            target = f"/proc/{connection.info.backend_pid}/{name}"
            enter = ["nsenter", "--target", str(cluster.postmaster), "--mount"]
            subprocess.run([*enter, "mount", "--bind", tree / name, target], check=True)
        yield connection, tree


V2 = {
    "cgroup": "0::/kubepods/pod1/container\n",
    "mountinfo": "30 23 {device} / {tree}/fs rw,nosuid shared:4 - cgroup2 cgroup2 rw\n",
    "fs/kubepods/pod1/container/memory.max": "2000000000\n",
    "fs/kubepods/pod1/container/memory.high": "1800000000\n",
    "fs/kubepods/pod1/container/memory.current": "1000000000\n",
    "fs/kubepods/pod1/container/memory.stat": "anon 600000000\nfile 400000000\nkernel 5000\nshmem 300000000\ninactive_file 100000000\n",
    "fs/kubepods/pod1/container/memory.events": "max 3\noom 2\noom_kill 1\n",
    "fs/kubepods/pod1/container/memory.oom.group": "1\n",
    "fs/kubepods/pod1/container/memory.swap.max": "0\n",
    "fs/kubepods/pod1/container/memory.swap.current": "0\n",
    "fs/kubepods/pod1/container/memory.pressure": "some avg10=0.00 avg60=0.00 avg300=0.00 total=77\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=7\n",
    # This limit is larger than the container's, but less of it is left.
    "fs/kubepods/pod1/memory.max": "5000000000\n",
    "fs/kubepods/pod1/memory.current": "4950000000\n",
    "fs/kubepods/pod1/memory.stat": "anon 1\ninactive_file 0\n",
    "fs/kubepods/memory.max": "max\n",
    "fs/kubepods/memory.current": "6000000000\n",
    "fs/kubepods/memory.stat": "inactive_file 1000\n",
    "fs/cgroup.procs": "",
}


def test_version_2(elsewhere):
    with shown(elsewhere, V2) as (connection, _):
        own, pod, all_pods, top = cgroups(connection)
        assert own == {
            "level": 0, "path": "/kubepods/pod1/container", "version": 2, "memory_limit": 2000000000, "memory_high": 1800000000,
            "usage": 1000000000, "working_set": 900000000, "anon": 600000000, "file": 400000000, "shmem": 300000000,
            "kernel": 5000, "swap_limit": 0, "swap_usage": 0, "unlimited": False, "oom_kills": 1, "oom_group": True,
            "psi_some_usec": 77, "psi_full_usec": 7,
        }  # fmt: skip
        assert (pod["level"], pod["path"], pod["memory_limit"], pod["kernel"]) == (1, "/kubepods/pod1", 5000000000, None)
        assert (all_pods["memory_limit"], all_pods["unlimited"], all_pods["working_set"]) == (None, True, 5999999000)
        assert (top["path"], top["unlimited"], top["usage"]) == ("/", True, None)
        row = host(connection)
        assert (row["headroom"], row["headroom_source"]) == (50000000, "/kubepods/pod1")


def test_a_limit_that_cannot_be_read_is_unknown(elsewhere):
    with shown(elsewhere, V2) as (connection, tree):
        (tree / "fs/kubepods/pod1/memory.max").chmod(0)
        pod = cgroups(connection)[1]
        assert (pod["memory_limit"], pod["unlimited"]) == (None, None)
        row = host(connection)
        assert (row["headroom"], row["headroom_source"]) == (None, None)


def test_in_a_container(elsewhere):
    files = {"cgroup": "0::/\n", "mountinfo": V2["mountinfo"], "fs/memory.max": "1000000\n", "fs/memory.current": "900000\n"}
    files["fs/memory.stat"] = "inactive_file 1000\n"
    with shown(elsewhere, files) as (connection, _):
        [own] = cgroups(connection)
        assert (own["path"], own["memory_limit"], own["working_set"], own["swap_limit"]) == ("/", 1000000, 899000, None)
        assert host(connection)["headroom"] == 101000


def test_without_cgroups(elsewhere):
    with shown(elsewhere, {"cgroup": "", "mountinfo": ""}) as (connection, _):
        assert cgroups(connection) == []
        row = host(connection)
        assert (row["headroom"], row["headroom_source"]) == (row["memory_available"], "host")


def test_cgroups_that_cannot_be_seen(elsewhere):
    """If no cgroup file system is mounted, the headroom is NULL."""
    with shown(elsewhere, V2 | {"mountinfo": ""}) as (connection, _):
        assert cgroups(connection) == []
        row = host(connection)
        assert (row["headroom"], row["headroom_source"]) == (None, None)


def test_a_name_with_a_backslash(elsewhere):
    """systemd escapes names in this way."""
    files = V2 | {"cgroup": "0::/kubepods/a\\x2db\n", "fs/kubepods/a\\x2db/memory.max": "5\n"}
    with shown(elsewhere, files) as (connection, _):
        assert cgroups(connection)[0]["path"] == "/kubepods/a\\x2db"
