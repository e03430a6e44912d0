"""pg_meminfo_contexts(pid) compared with what the process itself says, also of busy, large and hidden processes."""

import collections
import contextlib
import itertools
import os
import pathlib
import re
import threading
import time

import psycopg
import pytest
from conftest import PATIENCE, preload, start_cluster, wait_until, with_notices
from test_denied import NOT_DUMPABLE

CONTEXTS = "SELECT name, ident, level, type, total_bytes FROM pg_meminfo_contexts(%s)"

# The contexts of the statement that prints them, which are gone or have shrunk when the session is idle.
OF_THE_STATEMENT = {
    "MessageContext",
    "PortalContext",
    "ExecutorState",
    "ExprContext",
    "printtup",
    "Table function arguments",
    "pg_get_backend_memory_contexts",
    "tuplestore tuples",
}

# A header that pg_backend_memory_contexts counts twice for a Generation context, and leaves out for a Bump context.
# That of a Generation context has become smaller.
VIEW_DIFFERS = {"Generation": [152, 128], "Bump": [-112]}


def contexts(connection, session):
    return connection.execute(CONTEXTS, [session.info.backend_pid]).fetchall()


def own_contexts(session):
    """What the session says of itself, with levels from 1 in all versions."""
    first_level = 0 if session.info.server_version < 180000 else 1
    query = f"SELECT name, ident, level + 1 - {first_level}, total_bytes FROM pg_backend_memory_contexts"
    return session.execute(query).fetchall()


@pytest.mark.kernels
def test_an_idle_session_is_as_it_says(cluster, connection):
    """Each context with its name, identifier, level and size, in a session with plans and open cursors."""
    with cluster.connect() as session:
        session.autocommit = False
        session.execute("CREATE TABLE of_contexts AS SELECT n, repeat('x', 100) AS x FROM generate_series(1, 20000) AS n")
        for number in range(20):
            session.execute(f"PREPARE p{number} AS SELECT {number}, n FROM of_contexts WHERE n = $1")
        session.execute("EXECUTE p1 (1)")
        for name, query in {
            "sorted": "SELECT * FROM of_contexts ORDER BY x, n",
            "hashed": "SELECT n % 100, count(*) FROM of_contexts GROUP BY 1",
            "joined": "SELECT * FROM of_contexts a JOIN of_contexts b USING (n)",
        }.items():
            session.execute(f"DECLARE {name} CURSOR FOR {query}")
            session.execute(f"FETCH 3 FROM {name}")
        # The first time fills caches.
        own_contexts(session)
        printed = collections.Counter(own_contexts(session))
        rows = contexts(connection, session)
        # Which other type there is depends on the version: a sort has its tuples in a Generation or in a Bump context.
        assert len(rows) > 150 and len({row[3] for row in rows}) > 1
        seen = collections.Counter()
        for name, ident, level, kind, total in rows:
            sizes = [total + difference for difference in VIEW_DIFFERS.get(kind, [0])]
            seen[min(((name, ident, level, size) for size in sizes), key=lambda row: row not in printed)] += 1
        gone, new = printed - seen, seen - printed
        assert {name for name, _, _, _ in gone} <= OF_THE_STATEMENT, gone
        assert {name for name, _, _, _ in new} <= OF_THE_STATEMENT, new
        assert sum(new.values()) <= 3 and sum(gone.values()) <= 10
        session.rollback()


def test_slab_contexts_of_logical_decoding():
    """The only ones that a session can be made to have. They live while a slot is read."""
    with start_cluster("wal_level = logical") as cluster, cluster.connect() as connection:
        connection.execute("CREATE TABLE changes (n int)")
        connection.execute("CREATE PUBLICATION p FOR TABLE changes")
        connection.execute("SELECT pg_create_logical_replication_slot('s', 'pgoutput')")
        connection.execute("INSERT INTO changes SELECT generate_series(1, 200000)")
        changes = "SELECT pg_logical_slot_peek_binary_changes('s', NULL, NULL, 'proto_version', '1', 'publication_names', 'p')"
        query = f"DO $$ BEGIN LOOP PERFORM count(*) FROM ({changes}) AS c; END LOOP; END $$"
        with cluster.running(query) as pid:
            slabs = set()

            def are_seen():
                slabs.update(name for name, _, _, kind, _ in connection.execute(CONTEXTS, [pid]) if kind == "Slab")
                return slabs >= {"Change", "TXN"}

            wait_until(are_seen)


def test_a_busy_session_that_answers_nobody(cluster, connection):
    """One in a tight loop is read, too."""
    loop = "DO $$ DECLARE a int[] := array_fill(1, ARRAY[5000000]); n int := 0; BEGIN LOOP n := 1 - n; END LOOP; END $$"
    with cluster.running(loop) as pid:
        largest = "SELECT max(total_bytes) FROM pg_meminfo_contexts(%s)"
        wait_until(lambda: (connection.execute(largest, [pid]).fetchone()[0] or 0) > 20_000_000)


WORKLOADS = {
    "statements": "DO $$ BEGIN LOOP PERFORM count(*) FROM pg_class WHERE relname = 'x'; END LOOP; END $$",
    "subtransactions": """DO $$ DECLARE n int := 0; BEGIN LOOP n := n + 1;
        BEGIN EXECUTE format('SELECT %s', n); EXCEPTION WHEN division_by_zero THEN END; END LOOP; END $$""",
}

# One row about all contexts of a process. A context that is just being created is in the tree before its size is set.
CHECKS = """
    SELECT count(*), count(*) FILTER (WHERE parent_id IS NULL), bool_and(parent_id < id), bool_and(total_bytes = 0 OR total_bytes >= 200),
        max(tree_bytes) = sum(total_bytes), array_agg(DISTINCT name),
        array_agg(ident) FILTER (WHERE ident IS NOT NULL AND name IN ('CachedPlanSource', 'CachedPlan'))
    FROM pg_meminfo_contexts(%s)
"""
# A name is a constant of the server, and of the hash tables.
IS_NAME = re.compile(r"[A-Za-z][A-Za-z0-9 _/().:,'-]*")
# A statement, or an expression of PL/pgSQL.
IS_STATEMENT = re.compile(r"[A-Za-z0-9][ -~\n]*")

LOOKS = 300
# Less than one in a thousand on an idle machine, and this one may be busy.
MOST_GIVEN_UP = 30


def look_at_busy_session(connection, pid):
    """Looks at all contexts of a process many times, and checks each result. Returns how often it gave up."""
    wait_until(lambda: connection.execute(CHECKS, [pid]).fetchone()[0] > 50)
    given_up = 0
    for _ in range(LOOKS):
        [(count, tops, parents_first, sizes, sums, names, idents)], notices = with_notices(connection, CHECKS, [pid])
        if count == 0:
            [(severity, _, message, _)] = notices
            assert severity == "WARNING" and "they changed during each of" in message
            given_up += 1
            continue
        assert notices == []
        assert (tops, parents_first, sizes, sums) == (1, True, True, True)
        assert [name for name in names if not IS_NAME.fullmatch(name)] == []
        assert [ident for ident in idents or [] if not IS_STATEMENT.fullmatch(ident)] == []
    return given_up


@pytest.mark.parametrize("workload", WORKLOADS)
def test_no_row_of_a_busy_session_is_false(cluster, connection, workload):
    """Whatever the moment, it is one tree, each of whose contexts can be in it."""
    with cluster.running(WORKLOADS[workload]) as pid:
        given_up = look_at_busy_session(connection, pid)
    assert given_up <= MOST_GIVEN_UP


def test_a_client_that_prepares_and_deallocates(cluster, connection):
    """One that keeps 300 prepared statements, each for a while."""
    stop = threading.Event()

    def prepare(client):
        for number in itertools.count():
            if stop.is_set():
                return
            client.execute(f"PREPARE q{number} AS SELECT {number} AS prepared")
            client.execute(f"EXECUTE q{number}")
            if number >= 300:
                client.execute(f"DEALLOCATE q{number - 300}")

    with cluster.connect(prepare_threshold=None) as client:
        pid = client.info.backend_pid
        thread = threading.Thread(target=prepare, args=[client])
        thread.start()
        try:
            given_up = look_at_busy_session(connection, pid)
        finally:
            stop.set()
            thread.join()
    assert given_up <= MOST_GIVEN_UP


def test_many_contexts(cluster, connection):
    """Prepared statements, each of which has two contexts and a text."""
    with cluster.connect() as session:
        session.execute("DO $$ BEGIN FOR n IN 1..10000 LOOP EXECUTE format('PREPARE s%s AS SELECT %s AS largest', n, n); END LOOP; END $$")
        rows = contexts(connection, session)
        sources = [ident for name, ident, _, _, _ in rows if name == "CachedPlanSource"]
        numbers = {int(match[1]) for ident in sources if (match := re.fullmatch(r"PREPARE s(\d+) AS SELECT \1 AS largest", ident))}
        assert numbers == set(range(1, 10001))
        session.execute("DEALLOCATE ALL")
        assert len(contexts(connection, session)) < 1000


def test_a_deep_tree(cluster, connection):
    """A path has at most 1,000 levels. Each nested block of PL/pgSQL that catches errors has contexts of its own."""
    depth = 1100
    connection.execute(
        """CREATE FUNCTION deep(n int) RETURNS void LANGUAGE plpgsql AS $$ BEGIN IF n = 0 THEN PERFORM pg_sleep(1000);
        ELSE BEGIN PERFORM deep(n - 1); EXCEPTION WHEN division_by_zero THEN END; END IF; END $$"""
    )
    try:
        with cluster.running(f"SELECT deep({depth})", "max_stack_depth=6MB") as pid:
            query = """SELECT max(level), bool_and((path IS NULL) = (level > 1000)), count(*) FILTER (WHERE path IS NULL) > 0
                FROM pg_meminfo_contexts(%s)"""
            wait_until(lambda: (connection.execute(query, [pid]).fetchone()[0] or 0) > depth)
            assert connection.execute(query, [pid]).fetchone()[1:] == (True, True)
    finally:
        connection.execute("DROP FUNCTION deep")


# Texts in another database's encoding.


def database(cluster, encoding):
    name = f"contexts_{encoding.lower()}"
    with cluster.connect() as connection:
        connection.execute(f"CREATE DATABASE {name} ENCODING '{encoding}' TEMPLATE template0 LOCALE 'C'")
    return name


@pytest.mark.parametrize(("encoding", "shown"), [("UTF8", "SELECT 'é'"), ("LATIN1", r"SELECT '\xe9'"), ("SQL_ASCII", "SELECT 'é'")])
def test_identifiers_in_another_encoding(cluster, connection, encoding, shown):
    name = database(cluster, encoding)
    try:
        with cluster.connect(dbname=name, client_encoding="UTF8") as session:
            if encoding == "SQL_ASCII":
                session.execute("SET client_encoding = SQL_ASCII")
            session.execute("PREPARE accented AS SELECT 'é'".encode())
            connection.execute("SET client_encoding = UTF8")
            idents = [ident for name, ident, *_ in contexts(connection, session) if name == "CachedPlanSource"]
            assert f"PREPARE accented AS {shown}" in idents
    finally:
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


def test_a_long_identifier_is_cut_between_characters(cluster, connection):
    with cluster.connect() as session:
        for spaces in range(4):
            text = f"PREPARE long{spaces} AS SELECT '{' ' * spaces}{'é' * 1000}'"
            session.execute(text)
            [ident] = [ident for _, ident, *_ in contexts(connection, session) if ident and ident.startswith(f"PREPARE long{spaces} ")]
            assert text.startswith(ident)
            assert 1022 <= len(ident.encode()) <= 1023


# Denied.

# What seccomp filters of containers do.
NO_READV = """
#include <errno.h>
#include <sys/types.h>
ssize_t process_vm_readv(int pid, void *l, unsigned long ln, void *r, unsigned long rn, unsigned long flags) {{
    errno = {};
    return -1;
}}
"""


def test_a_process_that_is_not_dumpable(tmp_path):
    with start_cluster(LD_PRELOAD=preload(tmp_path, NOT_DUMPABLE)) as cluster, cluster.connect() as connection:
        pid = cluster.postmaster
        rows, [(severity, sqlstate, message, hint)] = with_notices(connection, CONTEXTS, [pid])
        assert rows == []
        assert (severity, sqlstate) == ("WARNING", "01000")
        assert message == f"could not read the memory contexts of process {pid}: permission denied"
        assert hint.startswith("The process is not dumpable.")


@pytest.mark.parametrize("error", ["EPERM", "ENOSYS"])
def test_without_process_vm_readv(tmp_path, error):
    """/proc/PID/mem serves as well."""
    with start_cluster(LD_PRELOAD=preload(tmp_path, NO_READV.format(error))) as cluster, cluster.connect() as connection:
        with cluster.connect() as session:
            rows = contexts(connection, session)
            assert {"TopMemoryContext", "CacheMemoryContext", "TopPortalContext"} <= {row[0] for row in rows}
            printed = {(name, ident) for name, ident, _, _ in own_contexts(session)}
            assert len({(name, ident) for name, ident, *_ in rows} - printed) < 5


@pytest.mark.kernels
def test_preloaded_and_not(cluster, connection):
    """The setting exists if the library is preloaded, and cannot be changed in a session. Every process is readable."""
    with pytest.raises(psycopg.errors.UndefinedObject):
        connection.execute("SHOW pg_meminfo.set_ptracer")
    for value in "on", "off":
        with start_cluster("shared_preload_libraries = 'pg_meminfo'", f"pg_meminfo.set_ptracer = {value}") as preloaded:
            with preloaded.connect() as session:
                assert session.execute("SHOW pg_meminfo.set_ptracer").fetchone() == (value,)
                with pytest.raises(psycopg.errors.CantChangeRuntimeParam):
                    session.execute("SET pg_meminfo.set_ptracer = off")
                assert session.execute("SELECT count(*) FROM pg_meminfo_contexts(pg_backend_pid())").fetchone()[0] > 50


# Interrupts and repetition.


def test_it_can_be_canceled(cluster, connection):
    """While a process is read that is almost never found at rest: it prepares and deallocates without a pause."""
    prepare = """DO $$ DECLARE n int := 0; BEGIN LOOP n := n + 1; EXECUTE format('PREPARE q%s AS SELECT %s AS prepared', n, n);
        EXECUTE format('EXECUTE q%s', n); IF n > 300 THEN EXECUTE format('DEALLOCATE q%s', n - 300); END IF; END LOOP; END $$"""
    with cluster.running(prepare) as pid, cluster.connect("statement_timeout=500") as impatient:
        query = f"DO $$ BEGIN LOOP PERFORM count(*) FROM pg_meminfo_contexts({pid}); END LOOP; END $$"
        start = time.monotonic()
        with pytest.raises(psycopg.errors.QueryCanceled):
            impatient.execute(query)
        assert time.monotonic() - start < 30 * PATIENCE


def test_the_reader_may_run_everywhere_afterwards(cluster):
    """It is bound to the processor of a busy process only while it reads, also if it is canceled."""
    if "Seccomp:\t0\n" not in pathlib.Path("/proc/self/status").read_text():
        pytest.skip("with a seccomp filter it is not bound")
    with cluster.running(WORKLOADS["statements"]) as pid, cluster.connect() as reader:
        reader_pid = reader.info.backend_pid
        allowed = os.sched_getaffinity(reader_pid)
        stop, seen = threading.Event(), set()

        def watch():
            while not stop.is_set():
                seen.add(frozenset(os.sched_getaffinity(reader_pid)))

        def look():
            with contextlib.suppress(psycopg.errors.QueryCanceled):
                reader.execute(CONTEXTS, [pid])
            assert os.sched_getaffinity(reader_pid) == allowed
            return any(len(processors) == 1 for processors in list(seen))

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            for timeout in "0", "2ms":
                reader.execute(f"SET statement_timeout = '{timeout}'")
                seen.clear()
                wait_until(look)
        finally:
            stop.set()
            watcher.join()


def test_a_process_that_exits_meanwhile(cluster, connection):
    """Its rows are whole, or there are none."""
    for _ in range(30):
        with contextlib.closing(cluster.connect()) as session:
            pid = session.info.backend_pid
        rows, notices = with_notices(connection, CONTEXTS, [pid])
        assert notices == []
        assert not rows or {"TopMemoryContext"} <= {row[0] for row in rows}


@pytest.mark.long
def test_ten_thousand_calls_leave_nothing(cluster, connection):
    with cluster.connect() as session:
        calls = f"DO $$ BEGIN FOR n IN 1..%s LOOP PERFORM count(*) FROM pg_meminfo_contexts({session.info.backend_pid}); END LOOP; END $$"
        private = "SELECT sum(private) FROM pg_meminfo_private(pg_backend_pid())"
        connection.execute(calls % 100)
        before = connection.execute(private).fetchone()[0]
        connection.execute(calls % 10000)
        assert connection.execute(private).fetchone()[0] - before < 1_000_000
