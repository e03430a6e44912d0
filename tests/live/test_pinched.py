"""Postgres's own regression tests while sessions are refused memory again and again: whatever fails, nothing breaks."""

import collections
import os
import pathlib
import re
import shutil
import subprocess
import sys

import psycopg
import pytest
from conftest import start_cluster, wait_until

pytestmark = pytest.mark.long

SETTINGS = [
    "shared_preload_libraries = 'pg_meminfo'",
    "pg_meminfo.session_memory_limit = 64MB",
    "jit = off",
    "compute_query_id = regress",
    "max_prepared_transactions = 20",
    # What a statement that has failed was to release may never be released.
    "lock_timeout = 5s",
    "statement_timeout = 60s",
    "autovacuum_naptime = 1s",
    "log_line_prefix = '[%p] %b|%e|'",
]

CHECK_INDEXES = """SELECT count(bt_index_check(c.oid, true)) FROM pg_index JOIN pg_class c ON c.oid = indexrelid
    JOIN pg_am a ON a.oid = relam AND amname = 'btree' WHERE relkind = 'i' AND indisvalid AND relpersistence <> 't'"""
CHECK_TABLES = """SELECT c.oid::regclass, v.* FROM pg_class c JOIN pg_am a ON a.oid = relam AND amname = 'heap',
    LATERAL verify_heapam(c.oid) v WHERE relkind IN ('r', 'm', 't') AND relpersistence <> 't'"""


@pytest.fixture
def suite():
    """The directory of the regression tests of this server's source, with their libraries in dl."""
    source = os.environ.get("REGRESS_SOURCE")
    if not source:
        pytest.skip("the source of this server's regression tests is not here")
    return pathlib.Path(source)


def test_postgres_stands_it(suite):
    pgxs = subprocess.run(["pg_config", "--pgxs"], capture_output=True, text=True, check=True).stdout.strip()
    with start_cluster(*SETTINGS) as cluster:
        work = cluster.data.parent / "regress"
        shutil.copytree(suite, work)
        owner = cluster.data.stat()
        for path in [work, *work.glob("**/*")]:
            os.chown(path, owner.st_uid, owner.st_gid)
        program = work / "pg_regress"
        shutil.copy(pathlib.Path(pgxs).parent.parent / "test/regress/pg_regress", program)
        where = [f"--inputdir={work}", f"--outputdir={work}", f"--dlpath={work}/dl", f"--bindir={cluster.programs}"]
        server = [f"--host={cluster.host}", "--port=5432", "--user=postgres"]
        command = [*cluster.as_owner, program, *where, *server, "--encoding=UTF8", f"--schedule={work}/parallel_schedule"]
        output = work / "output"
        with output.open("w") as file:
            tests = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, cwd=work)
        # Without what the first test makes, there would be nothing to test.
        wait_until(lambda: "test_setup" in output.read_text() or tests.poll() is not None)
        pincher = subprocess.Popen([*cluster.as_owner, sys.executable, pathlib.Path(__file__).parent / "pinch.py", cluster.data])
        try:
            tests.wait(timeout=600)
        finally:
            pincher.kill()
            pincher.wait()
            tests.kill()
        log = (cluster.data.parent / "log").read_text(errors="replace")
        lines = re.findall(r"^\[\d+\] ([^|]*)\|([^|]*)\|(ERROR|FATAL|PANIC|LOG):  (.*)$", log, re.MULTILINE)
        refused = collections.Counter((kind, level) for kind, code, level, _ in lines if code == "53200")
        print(dict(refused))
        assert refused["client backend", "ERROR"] > 50
        assert {kind for kind, _ in refused} <= {"client backend", "parallel worker"}
        assert not [line for line in lines if line[2] == "PANIC" or "terminated by signal" in line[3]]
        assert "terminating any other active server processes" not in log
        check(cluster)


def check(cluster):
    with cluster.connect("pg_meminfo.session_memory_limit=-1") as connection:
        try:
            connection.execute("CREATE EXTENSION amcheck")
        except psycopg.errors.FeatureNotSupported:
            pytest.skip("this server has no amcheck")
        # What the tests have prepared holds locks, if its COMMIT PREPARED was refused.
        prepared = connection.execute("SELECT database, gid FROM pg_prepared_xacts").fetchall()
        for name, gid in prepared:
            with cluster.connect(dbname=name) as session:
                session.execute(f"ROLLBACK PREPARED '{gid}'")
        names = [name for (name,) in connection.execute("SELECT datname FROM pg_database WHERE datallowconn")]
    for name in names:
        settings = ["pg_meminfo.session_memory_limit=-1", "lock_timeout=10s", "statement_timeout=100s"]
        with cluster.connect(*settings, dbname=name) as connection:
            connection.execute("CREATE EXTENSION IF NOT EXISTS amcheck SCHEMA pg_catalog")
            assert connection.execute(CHECK_INDEXES).fetchone()[0] > 100
            assert connection.execute(CHECK_TABLES).fetchall() == []
