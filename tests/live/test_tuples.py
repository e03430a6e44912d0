"""Rows have the format that Postgres requires, even when they are stored in a table."""

import psycopg
import pytest


def test_postgres_finds_nothing_wrong_with_a_table_of_our_rows(cluster, connection):
    try:
        connection.execute("CREATE EXTENSION IF NOT EXISTS amcheck")
    except psycopg.errors.FeatureNotSupported:
        pytest.skip("this server has no amcheck")
    for query in [
        "get_all_smaps()", "pg_meminfo_smaps(pg_backend_pid())", "pg_meminfo_rollup(pg_backend_pid())",
        "pg_meminfo_private(pg_backend_pid())", "pg_meminfo_processes()", "pg_meminfo_segments()", "pg_meminfo_cluster()", "pg_meminfo_host()", "pg_meminfo_cgroups()", "smap_summary", "pg_meminfo",
    ]:  # fmt: skip
        connection.execute(f"CREATE TABLE kept AS SELECT * FROM {query}")
        # A machine may have no cgroups.
        assert connection.execute("SELECT count(*) FROM kept").fetchone()[0] > 0 or query == "pg_meminfo_cgroups()"
        assert connection.execute("SELECT * FROM verify_heapam('kept')").fetchall() == [], query
        connection.execute("DROP TABLE kept")
