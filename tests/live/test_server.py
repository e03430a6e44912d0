"""The server's own limits and states."""

import subprocess

import psycopg
import pytest
from conftest import wait_until


def works(connection):
    return connection.execute("SELECT count(*) > 10 FROM get_all_smaps()").fetchone()[0]


def test_no_descriptor_is_left(cluster, connection):
    """An error of its own class, not a process that is missing; and the session goes on."""
    assert works(connection)
    pid = connection.info.backend_pid

    def limit(soft):
        command = [*cluster.as_owner, "prlimit", f"--pid={pid}", f"--nofile={soft}:"]
        subprocess.run(command, check=True)

    before = subprocess.run(
        [*cluster.as_owner, "prlimit", f"--pid={pid}", "--nofile", "--output=SOFT", "--noheadings"],
        check=True, capture_output=True, text=True,
    ).stdout.strip()  # fmt: skip
    # Descriptors that are open stay open; 0 to 2 always are.
    limit(3)
    try:
        for query in "get_all_smaps()", "pg_meminfo_smaps(pg_backend_pid())", "smap_summary":
            with pytest.raises(psycopg.errors.InsufficientResources) as error:
                connection.execute(f"SELECT * FROM {query}")
            assert error.value.diag.sqlstate == "53000"
            assert error.value.diag.message_primary.endswith(": Too many open files")
    finally:
        limit(before)
    assert works(connection)


def test_temp_file_limit(connection):
    """The result set spills beyond work_mem, and no further than it may."""
    connection.execute("SET work_mem = '64kB'")
    connection.execute("SET temp_file_limit = '64kB'")
    with pytest.raises(psycopg.errors.ConfigurationLimitExceeded):
        connection.execute("SELECT * FROM get_all_smaps()")
    connection.execute("RESET temp_file_limit")
    assert works(connection)


def test_hot_standby(cluster):
    """It needs no write, and shows the processes that only a standby has."""
    backup = [cluster.programs / "pg_basebackup", "-h", cluster.host, "-p", "5432", "-U", "postgres", "-D", "{data}", "-R", "-c", "fast"]
    with cluster.start_another("standby", backup) as standby, standby.connect() as connection:
        assert connection.execute("SELECT pg_is_in_recovery()").fetchone() == (True,)
        assert works(connection)
        only_here = "SELECT count(*) FROM pg_stat_activity WHERE backend_type IN ('startup', 'walreceiver')"
        wait_until(lambda: connection.execute(only_here).fetchone() == (2,))
        missing = "SELECT backend_type FROM pg_stat_activity WHERE pid NOT IN (SELECT pid FROM smap_summary)"
        assert connection.execute(missing).fetchall() == []


def test_parallel_query(connection):
    """The functions run in the leader, and the workers do the rest."""
    for setting in "parallel_setup_cost = 0", "parallel_tuple_cost = 0", "min_parallel_table_scan_size = 0":
        connection.execute(f"SET {setting}")
    connection.execute("CREATE TABLE IF NOT EXISTS parallel_t AS SELECT pid FROM pg_stat_activity, generate_series(1, 10000)")
    connection.execute("ANALYZE parallel_t")
    query = "SELECT count(*) > 0 FROM parallel_t WHERE pid IN (SELECT pid FROM get_all_smaps())"
    plan = "\n".join(line for (line,) in connection.execute(f"EXPLAIN {query}"))
    assert "Workers Planned" in plan, plan
    assert connection.execute(query).fetchone() == (True,)
    connection.execute("DROP TABLE parallel_t")
