"""A database whose extension is at an older version works with this library, until ALTER EXTENSION UPDATE."""

import contextlib
import os
import pathlib
import re
import subprocess

import pytest
from conftest import ROOT

# The C functions of each release, as they were released.
RELEASES = {path.stem: path.read_text() for path in sorted((ROOT / "tests" / "releases").glob("*.sql"))}
SCRIPTS = {path.stem.removeprefix("pg_meminfo--"): path for path in ROOT.glob("pg_meminfo--*.sql")}


def c_functions(script):
    return re.findall(r"^CREATE FUNCTION.*?^LANGUAGE C[^;]*;", script, re.DOTALL | re.MULTILINE)


@contextlib.contextmanager
def new_database(cluster, name):
    """A session in a database of its own."""
    with cluster.connect() as connection:
        connection.execute(f"CREATE DATABASE {name}")
        try:
            with cluster.connect(dbname=name) as session:
                yield session
        finally:
            connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


def call_everything(session, schema):
    """Calls each C function in a schema, and reads each view. None raises or warns, and columns are as declared."""
    notices = []
    session.add_notice_handler(notices.append)
    functions = session.execute(
        """SELECT oid::regprocedure::text, proname, pronargs, array_length(proallargtypes, 1) - pronargs FROM pg_proc
        WHERE pronamespace = %s::regnamespace AND probin = '$libdir/pg_meminfo'""",
        [schema],
    ).fetchall()
    for signature, name, arguments, columns in functions:
        cursor = session.execute(f"SELECT * FROM {schema}.{name}({'pg_backend_pid()' if arguments else ''})")
        assert len(cursor.description) == columns, signature
        # Where the kernel has no cgroups, there are no rows for them.
        assert cursor.fetchall() or name == "pg_meminfo_cgroups", signature
    views = session.execute("SELECT relname FROM pg_class WHERE relkind = 'v' AND relnamespace = %s::regnamespace", [schema]).fetchall()
    for (view,) in views:
        session.execute(f"SELECT * FROM {schema}.{view}").fetchall()
    assert [notice.message_primary for notice in notices] == []
    return {name for _, name, _, _ in functions}


def members(session):
    """All that belongs to the extension: what it is, how it is declared, its comments and privileges."""
    return session.execute(
        """SELECT pg_describe_object(d.classid, d.objid, 0), pg_get_functiondef(p.oid), pg_get_viewdef(c.oid),
            obj_description(d.objid, d.classid::regclass::text::name),
            ARRAY(SELECT col_description(c.oid, attnum) FROM pg_attribute WHERE attrelid = c.oid AND attnum > 0 ORDER BY attnum),
            p.proacl, c.relacl
        FROM pg_depend d LEFT JOIN pg_proc p ON p.oid = d.objid LEFT JOIN pg_class c ON c.oid = d.objid AND c.relkind = 'v'
        WHERE d.deptype = 'e' AND d.refobjid = (SELECT oid FROM pg_extension WHERE extname = 'pg_meminfo')
        ORDER BY 1"""
    ).fetchall()


@pytest.mark.parametrize("release", RELEASES)
def test_the_functions_of_a_release_keep_their_columns(cluster, release):
    script = RELEASES[release].replace("MODULE_PATHNAME", "$libdir/pg_meminfo")
    with new_database(cluster, "of_a_release") as session:
        session.execute(script)
        assert len(call_everything(session, "public")) == len(c_functions(script)) > 0


@pytest.mark.parametrize("release", RELEASES)
def test_the_script_of_a_release_is_as_released(release):
    """A release keeps its installation script, or is reached by upgrades from one that does."""
    if release in SCRIPTS:
        assert c_functions(SCRIPTS[release].read_text()) == c_functions(RELEASES[release])


@pytest.mark.parametrize("release", [release for release in RELEASES if release in SCRIPTS])
def test_an_older_version_works_until_it_is_updated(cluster, release):
    with new_database(cluster, "fresh") as session:
        session.execute("CREATE EXTENSION pg_meminfo")
        fresh = members(session)
    with new_database(cluster, "updated") as session:
        session.execute(f"CREATE EXTENSION pg_meminfo VERSION '{release}'")
        call_everything(session, "public")
        session.execute("ALTER EXTENSION pg_meminfo UPDATE")
        updated = members(session)
        default = session.execute("SELECT default_version FROM pg_available_extensions WHERE name = 'pg_meminfo'").fetchone()
        assert session.execute("SELECT extversion FROM pg_extension WHERE extname = 'pg_meminfo'").fetchone() == default
    assert updated == fresh and len(fresh) > len(c_functions(RELEASES[release]))


def test_every_released_script_is_kept():
    """A new installation script means a new release, whose functions must be kept, too."""
    versions = {version for version in SCRIPTS if "--" not in version}
    assert versions <= set(RELEASES)


def test_dump_and_restore(cluster):
    """What was granted, and what uses the extension, is in the dump; the extension itself is not, but for its name."""
    pg_config = os.environ.get("PG_CONFIG") or "pg_config"
    bindir = pathlib.Path(subprocess.run([pg_config, "--bindir"], capture_output=True, text=True, check=True).stdout.strip())
    to = ["-h", cluster.host, "-p", "5432", "-U", "postgres"]
    run = {"capture_output": True, "text": True, "check": True}
    with new_database(cluster, "dumped") as session, new_database(cluster, "restored") as restored:
        session.execute("CREATE EXTENSION pg_meminfo")
        session.execute("CREATE VIEW mine AS SELECT pid, rss FROM pg_meminfo")
        session.execute("GRANT EXECUTE ON FUNCTION pg_meminfo_statements_reset TO pg_monitor")
        dump = subprocess.run([bindir / "pg_dump", *to, "dumped"], **run).stdout
        assert "CREATE EXTENSION IF NOT EXISTS pg_meminfo" in dump and "CREATE VIEW public.pg_meminfo" not in dump
        subprocess.run([bindir / "psql", "-X", "-q", "-v", "ON_ERROR_STOP=1", *to, "restored"], input=dump, **run)
        assert restored.execute("SELECT count(*) > 0 FROM mine").fetchone() == (True,)
        assert members(restored) == members(session)
