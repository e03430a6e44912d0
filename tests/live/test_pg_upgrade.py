"""pg_upgrade of a cluster with the extension, which is preloaded on both sides."""

import os
import pathlib
import shutil
import signal
import subprocess

import pytest
from conftest import Cluster, start_cluster, wait_until

# Of another installation: OLD_PG_CONFIG, or Debian's 15.
OLD = pathlib.Path(os.environ.get("OLD_PG_CONFIG") or "/usr/lib/postgresql/15/bin/pg_config")
NEW = shutil.which(os.environ.get("PG_CONFIG") or "pg_config")

SETTINGS = ["shared_preload_libraries = 'pg_meminfo'", "pg_meminfo.sample_interval = 100", "pg_meminfo.min_headroom = 1MB"]


def ask(pg_config, option):
    return subprocess.run([pg_config, option], capture_output=True, text=True, check=True).stdout.strip()


def add_programs(cluster, pg_config):
    """Copies the programs that pg_upgrade needs."""
    for program in pathlib.Path(ask(pg_config, "--bindir")).iterdir():
        if not (cluster.programs / program.name).exists():
            shutil.copy(program, cluster.programs)


def shut_down(cluster):
    os.kill(cluster.postmaster, signal.SIGINT)
    wait_until(lambda: not (cluster.data / "postmaster.pid").exists())


def test_a_cluster_of_an_older_version():
    if int(ask(NEW, "--version").split()[1][:2]) < 18 or not OLD.exists():
        pytest.skip("this is about PostgreSQL 18 or later, beside an older one: Debian's 15, or OLD_PG_CONFIG")
    with (
        start_cluster(*SETTINGS, PG_CONFIG=str(OLD), CLUSTER_TEMPLATE="") as old,
        start_cluster(*SETTINGS, PG_CONFIG=NEW) as new,
    ):
        with old.connect() as connection:
            connection.execute("CREATE VIEW mine AS SELECT pid, rss FROM pg_meminfo")
            connection.execute("CREATE DATABASE older")
        with old.connect(dbname="older") as connection:
            connection.execute("CREATE EXTENSION pg_meminfo VERSION '1.0'")
        shut_down(old)
        add_programs(old, OLD)
        add_programs(new, NEW)
        work = new.data.parent
        owner = {"check": True, "cwd": work, "stdout": subprocess.DEVNULL}
        data = work / "upgraded"
        initdb = [new.programs / "initdb", "-D", data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-locale", "--no-sync"]
        subprocess.run([*new.as_owner, *initdb, "--no-data-checksums"], **owner)
        with open(data / "postgresql.conf", "a") as configuration:
            configuration.write("\n".join([*SETTINGS, ""]))
        upgrade = [new.programs / "pg_upgrade", "-b", old.programs, "-B", new.programs, "-d", old.data, "-D", data, "-U", "postgres"]
        subprocess.run([*new.as_owner, *upgrade, "--socketdir", new.host, "-p", "5433", "-P", "5434"], **owner)
        socket = work / "upgraded_socket"
        subprocess.run([*new.as_owner, "mkdir", "-m", "700", socket], **owner)
        options = ["-c", f"unix_socket_directories={socket}", "-c", "listen_addresses="]
        server = new.start_server(data, work / "upgraded.log", *options)
        try:
            ready = [new.programs / "pg_isready", "-q", "-h", socket, "-p", "5432"]
            wait_until(lambda: subprocess.run(ready, check=False).returncode == 0)
            with Cluster(socket, data).connect() as connection:
                assert connection.execute("SELECT count(*) > 0 FROM mine").fetchone() == (True,)
                wait_until(lambda: connection.execute("SELECT count(*) > 0 FROM pg_meminfo_history").fetchone() == (True,))
                # While pg_upgrade ran the servers, nothing was recorded.
                query = "SELECT count(*) FROM pg_meminfo_history WHERE at < pg_postmaster_start_time()"
                assert connection.execute(query).fetchone() == (0,)
                assert connection.execute("SELECT count(*) FROM pg_meminfo_incidents").fetchone() == (0,)
            with Cluster(socket, data).connect(dbname="older") as connection:
                connection.execute("ALTER EXTENSION pg_meminfo UPDATE")
                assert connection.execute("SELECT recorder_pid > 0 FROM pg_meminfo_guard").fetchone() == (True,)
        finally:
            server.send_signal(signal.SIGQUIT)
            server.wait()
