"""Limits of the server's resources, a standby, and parallel query."""

import errno

import psycopg
import pytest
from conftest import preload, start_cluster, wait_until


def works(connection):
    return connection.execute("SELECT count(*) > 10 FROM get_all_smaps()").fetchone()[0]


def test_no_descriptor_is_left(cluster, connection):
    """This is an error with its own SQLSTATE, and no process is silently left out. The session continues."""
    assert works(connection)
    pid = connection.info.backend_pid

    # A lower limit closes no descriptor. Descriptors 0 to 2 are always open.
    before = cluster.limit(pid, "nofile", 3)
    try:
        for query in "get_all_smaps()", "pg_meminfo_smaps(pg_backend_pid())", "smap_summary":
            with pytest.raises(psycopg.errors.InsufficientResources) as error:
                connection.execute(f"SELECT * FROM {query}")
            assert error.value.diag.sqlstate == "53000"
            assert error.value.diag.message_primary.endswith(": Too many open files")
    finally:
        cluster.limit(pid, "nofile", before)
    assert works(connection)


def test_temp_file_limit(connection):
    """A result set larger than work_mem is written to temporary files, up to the limit."""
    connection.execute("SET work_mem = '64kB'")
    connection.execute("SET temp_file_limit = '64kB'")
    with pytest.raises(psycopg.errors.ConfigurationLimitExceeded):
        connection.execute("SELECT * FROM get_all_smaps()")
    connection.execute("RESET temp_file_limit")
    assert works(connection)


@pytest.mark.parametrize(("readers", "rounds"), [(1, 1000), (4, 300)])
def test_errors_of_postgres_that_are_caught(connection, readers, rounds):
    """Errors that Postgres raises within our function, many times in one statement, leave nothing on its error stack:
    that has room for five, and the sixth is a PANIC."""
    connection.execute(f"SET pg_meminfo.readers = {readers}")
    connection.execute("SET work_mem = '64kB'")
    connection.execute("SET temp_file_limit = '64kB'")
    connection.execute(f"""
        DO $$
        BEGIN
            FOR n IN 1..{rounds} LOOP
                BEGIN
                    PERFORM count(*) FROM get_all_smaps();
                    RAISE EXCEPTION 'nothing failed in round %', n;
                EXCEPTION WHEN configuration_limit_exceeded THEN
                    NULL;
                END;
            END LOOP;
        END
        $$
    """)
    connection.execute("RESET temp_file_limit")
    assert works(connection)


def test_hot_standby(cluster):
    """The functions write nothing, and show the processes that only a standby has."""
    backup = [cluster.programs / "pg_basebackup", "-h", cluster.host, "-p", "5432", "-U", "postgres", "-D", "{data}", "-R", "-c", "fast"]
    with cluster.start_another("standby", backup) as standby, standby.connect() as connection:
        assert connection.execute("SELECT pg_is_in_recovery()").fetchone() == (True,)
        assert works(connection)
        only_here = "SELECT count(*) FROM pg_stat_activity WHERE backend_type IN ('startup', 'walreceiver')"
        wait_until(lambda: connection.execute(only_here).fetchone() == (2,))
        missing = "SELECT backend_type FROM pg_stat_activity WHERE pid NOT IN (SELECT pid FROM smap_summary)"
        # False if a process exits before it is read.
        wait_until(lambda: connection.execute(missing).fetchall() == [])


def test_parallel_query(connection):
    """The functions run in the leader, the rest of the query in parallel workers."""
    for setting in "parallel_setup_cost = 0", "parallel_tuple_cost = 0", "min_parallel_table_scan_size = 0":
        connection.execute(f"SET {setting}")
    connection.execute("CREATE TABLE IF NOT EXISTS parallel_t AS SELECT pid FROM pg_stat_activity, generate_series(1, 10000)")
    connection.execute("ANALYZE parallel_t")
    query = "SELECT count(*) > 0 FROM parallel_t WHERE pid IN (SELECT pid FROM get_all_smaps())"
    plan = "\n".join(line for (line,) in connection.execute(f"EXPLAIN {query}"))
    assert "Workers Planned" in plan, plan
    assert connection.execute(query).fetchone() == (True,)
    connection.execute("DROP TABLE parallel_t")


def test_out_of_shared_memory(cluster, connection):
    """A statement that calls our function and runs out of shared memory fails as usual. The function needs none."""
    with cluster.connect() as greedy:
        take_all = "SELECT pg_advisory_lock(n) FROM generate_series(1, 10000000) AS n, {}"
        for source in "(SELECT count(*) FROM get_all_smaps()) AS s", "(SELECT get_all_smaps() LIMIT 1) AS s":
            with pytest.raises(psycopg.errors.OutOfMemory) as error:
                greedy.execute(take_all.format(source))
            assert error.value.diag.message_primary == "out of shared memory"
            # Session-level locks survive the error, so the lock table is full now.
            assert works(greedy)
            assert works(connection)
        greedy.execute("SELECT pg_advisory_unlock_all()")
    assert works(connection)


FAILS = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
/* Opening smaps fails with the error number in a file. */
int openat(int directory, const char *path, int flags, ...) {{
    static int (*real)(int, const char *, int, ...);
    va_list rest;
    int mode;
    if (!strcmp(path, "smaps")) {{
        FILE *file = fopen("{}", "r");
        if (file) {{
            int error;
            if (fscanf(file, "%d", &error) != 1) error = 0;
            fclose(file);
            if (error) {{ errno = error; return -1; }}
        }}
    }}
    if (!real) real = dlsym(RTLD_NEXT, "openat");
    va_start(rest, flags);
    mode = va_arg(rest, int);
    va_end(rest);
    return real(directory, path, flags, mode);
}}
"""


def test_failures_of_the_system_are_errors(tmp_path):
    """Such a failure says nothing about the process, so the process must not be left out."""
    which = tmp_path / "errno"
    with start_cluster(LD_PRELOAD=preload(tmp_path, FAILS.format(which))) as cluster, cluster.connect() as connection:
        assert works(connection)
        for number, sqlstate, text in [
            (errno.EMFILE, "53000", "Too many open files"),
            (errno.ENFILE, "53000", "Too many open files in system"),
            (errno.ENOMEM, "53200", "Cannot allocate memory"),
            (errno.EIO, "58030", "Input/output error"),
        ]:
            which.write_text(str(number))
            for query in "get_all_smaps()", "pg_meminfo_smaps(pg_backend_pid())", "smap_summary":
                with pytest.raises(psycopg.Error) as error:
                    connection.execute(f"SELECT * FROM {query}")
                assert error.value.diag.sqlstate == sqlstate
                assert error.value.diag.message_primary.endswith(f"/smaps\": {text}")
        which.unlink()
        assert works(connection)
