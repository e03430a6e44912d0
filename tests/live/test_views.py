"""Each view and each function of the extension on a running cluster, as a first look at a kernel."""

import pytest
from conftest import rows, start_cluster, wait_until, with_notices

pytestmark = pytest.mark.kernels

MEMBERS = """
    SELECT c.oid::regclass::text FROM pg_depend AS d JOIN pg_class AS c ON c.oid = d.objid
    WHERE d.deptype = 'e' AND d.refobjid = (SELECT oid FROM pg_extension WHERE extname = 'pg_meminfo')
        AND d.classid = 'pg_class'::regclass AND c.relkind = 'v'"""

FUNCTIONS = """
    SELECT p.proname, p.pronargs > p.pronargdefaults FROM pg_depend AS d JOIN pg_proc AS p ON p.oid = d.objid
    WHERE d.deptype = 'e' AND d.refobjid = (SELECT oid FROM pg_extension WHERE extname = 'pg_meminfo')
        AND d.classid = 'pg_proc'::regclass AND p.proretset"""


@pytest.fixture(scope="module")
def connection():
    """A session in a cluster with the library preloaded, so that everything can be called and has something to say."""
    settings = ["shared_preload_libraries = 'pg_meminfo'", "pg_meminfo.log_min_headroom = 1TB"]
    with start_cluster(*settings) as cluster, cluster.connect() as connection:
        connection.execute("SELECT length(repeat('heavy', 10000000))")
        # The recorder has taken its first sample, and finds that little is left.
        wait_until(lambda: connection.execute("SELECT count(*) FROM pg_meminfo_incidents").fetchone() != (0,))
        yield connection


def test_each_view_has_rows(connection):
    views = [name for (name,) in connection.execute(MEMBERS)]
    assert "pg_meminfo" in views
    for view in views:
        found, notices = with_notices(connection, f"SELECT * FROM {view}")
        assert (len(found) > 0, notices) == (True, []), view


def test_each_function_has_rows(connection):
    functions = connection.execute(FUNCTIONS).fetchall()
    assert ("get_all_smaps", False) in functions
    for name, of_a_pid in functions:
        call = f"{name}(pg_backend_pid())" if of_a_pid else f"{name}()"
        found, notices = with_notices(connection, f"SELECT * FROM {call}")
        assert (len(found) > 0, notices) == (True, []), call


def test_each_process_has_private_memory(connection):
    """Of every process in pg_stat_activity, and of the postmaster."""
    for row in rows(connection.execute("SELECT * FROM pg_meminfo")):
        assert row["private_estimate"] > 0, row
        assert row["private_estimate"] <= row["rss"] + row["swap"], row
