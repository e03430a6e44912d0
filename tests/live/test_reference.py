"""docs/reference.md, compared with what is installed: functions, views, columns and settings."""

import re

import pytest
from conftest import ROOT, rows, start_cluster

REFERENCE = ROOT / "docs/reference.md"
COLUMNS = ["column", "type", "unit", "meaning"]
SETTINGS = ["setting", "type", "default", "range", "context", "meaning"]

# Every function and view of the extension is public, so each has a table, unless it returns nothing.
FUNCTIONS = """
    SELECT p.oid, format('%s(%s)', proname, arguments) AS object
    FROM pg_proc p JOIN pg_depend d ON d.classid = 'pg_proc'::regclass AND d.objid = p.oid,
        LATERAL (
            SELECT string_agg(name || ' ' || format_type(type, NULL), ', ' ORDER BY number) AS arguments
            FROM unnest(proargnames, proargmodes, proallargtypes) WITH ORDINALITY AS a (name, mode, type, number)
            WHERE mode = 'i'
        ) a
    WHERE d.deptype = 'e' AND d.refobjid = (SELECT oid FROM pg_extension WHERE extname = 'pg_meminfo')
        AND prorettype <> 'void'::regtype
"""
FUNCTION_COLUMNS = """
    SELECT name, format_type(type, NULL) AS type, replace(obj_description(oid, 'pg_proc'), E'\n  ', ' ') AS description
    FROM pg_proc, unnest(proargnames, proargmodes, proallargtypes) WITH ORDINALITY AS a (name, mode, type, number)
    WHERE oid = %s AND mode <> 'i'
    ORDER BY number
"""
VIEWS = """
    SELECT c.oid, relname AS object
    FROM pg_class c JOIN pg_depend d ON d.classid = 'pg_class'::regclass AND d.objid = c.oid
    WHERE d.deptype = 'e' AND d.refobjid = (SELECT oid FROM pg_extension WHERE extname = 'pg_meminfo')
"""
VIEW_COLUMNS = """
    SELECT attname AS name, format_type(atttypid, atttypmod) AS type, col_description(attrelid, attnum) AS description
    FROM pg_attribute
    WHERE attrelid = %s AND attnum > 0 AND NOT attisdropped
    ORDER BY attnum
"""


def documented(header):
    """The rows of the tables that have this header, by what the heading above them names."""
    tables = {}
    subjects, table = [], None
    for line in REFERENCE.read_text().splitlines():
        if line.startswith("#"):
            subjects = re.findall("`([^`]+)`", line) or [line.lstrip("# ")]
        if not line.startswith("|"):
            table = None
            continue
        cells = [cell.strip().replace("`", "") for cell in line.strip("|").split("|")]
        if cells == header:
            table = []
            for subject in subjects:
                assert subject not in tables, f"two tables for {subject}"
                tables[subject] = table
        elif table is not None and set(line) != set("|-"):
            table.append(cells)
    return tables


def installed(connection):
    """The same of all functions and views, from the catalog and the comments."""
    tables = {}
    for function in rows(connection.execute(FUNCTIONS)):
        table = tables[function["object"]] = []
        for column in rows(connection.execute(FUNCTION_COLUMNS, [function["oid"]])):
            line = re.search(rf"^{column['name']} \((.+?)\): (.+)$", column["description"], re.MULTILINE)
            table.append([column["name"], column["type"], *line.groups()])
    for view in rows(connection.execute(VIEWS)):
        columns = rows(connection.execute(VIEW_COLUMNS, [view["oid"]]))
        tables[view["object"]] = [[c["name"], c["type"], *c["description"].split(": ", 1)] for c in columns]
    return tables


def test_every_function_and_view_has_a_table(connection):
    assert sorted(documented(COLUMNS)) == sorted(installed(connection))


def test_columns_are_as_installed(connection):
    """Their order, names and types, and what their comments say."""
    tables = documented(COLUMNS)
    for name, table in installed(connection).items():
        assert len(table) > 1
        assert tables.get(name) == table, name


def test_settings_are_as_installed():
    query = """
        SELECT name, vartype, boot_val, concat_ws(' to ', min_val, max_val), context
        FROM pg_settings WHERE name LIKE 'pg\\_meminfo.%'
        ORDER BY name
    """
    # Some exist only if the library is preloaded.
    with start_cluster("shared_preload_libraries = 'pg_meminfo'") as cluster, cluster.connect() as connection:
        settings = [list(setting) for setting in connection.execute(query)]
    assert len(settings) > 1
    # Their meaning is in other words than pg_settings has it.
    assert sorted(setting[:5] for setting in documented(SETTINGS)["Settings"]) == settings


@pytest.fixture
def database(cluster, connection):
    """A session in a database of its own."""
    connection.execute("CREATE DATABASE comments TEMPLATE template0")
    try:
        with cluster.connect(dbname="comments") as session:
            yield session
    finally:
        connection.execute("DROP DATABASE comments WITH (FORCE)")


def test_comments_do_not_depend_on_schema_and_settings(connection, database):
    """The script copies comments from functions to views, and uses nothing of the schema that it creates them in."""
    schema = """ "it's \\ ""a$schema" """
    database.execute(f"CREATE SCHEMA {schema}")
    # Better matches for what the script calls than those of pg_catalog.
    for arguments in "text, name, text", "text, text, text", "text, regclass, text", "text, regclass, name, text":
        database.execute(f"CREATE FUNCTION {schema}.format({arguments}) RETURNS text LANGUAGE sql AS 'SELECT (1 / 0)::text'")
    database.execute(f"CREATE FUNCTION {schema}.never(name, text) RETURNS boolean LANGUAGE sql AS 'SELECT 1 / 0 = 1'")
    database.execute(f"CREATE OPERATOR {schema}.= (LEFTARG = name, RIGHTARG = text, FUNCTION = {schema}.never)")
    database.execute("LOAD 'plpgsql'")
    settings = ["quote_all_identifiers = on", "plpgsql.variable_conflict = use_variable", "plpgsql.extra_errors = 'all'"]
    if database.info.server_version < 190000:
        # Later it is always on.
        settings.append("standard_conforming_strings = off")
    for setting in settings:
        database.execute(f"SET {setting}")
    path = database.execute("SHOW search_path").fetchone()
    with database.transaction():
        database.execute(f"CREATE EXTENSION pg_meminfo SCHEMA {schema}")
        assert database.execute("SHOW search_path").fetchone() == path
    database.execute("RESET ALL")
    assert installed(database) == installed(connection)
    descriptions = "SELECT object, obj_description(v.oid, 'pg_class') FROM (" + VIEWS + ") AS v ORDER BY object"
    assert database.execute(descriptions).fetchall() == connection.execute(descriptions).fetchall()
