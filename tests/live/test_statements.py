"""pg_meminfo_statements: what it says of a statement, compared with the session's private memory read from outside."""

import contextlib
import os
import pathlib
import random
import re
import signal
import subprocess
import threading
import time

import psycopg
import pytest
from conftest import in_mounts, private, rows, start_cluster, wait_until
from test_reading import traced
from test_strangers import make_process_of

MB = 2**20

PRELOADED = "shared_preload_libraries = 'pg_meminfo'"
QUIET = "autovacuum = off"

# How much a peak may differ from what the poller has seen. It looks every half millisecond, in which a process can
# touch a megabyte or two, and the first megabyte of growth is not noticed.
TOLERANCE = 4 * MB
SHARE = 0.03


@pytest.fixture(scope="module")
def preloaded():
    """A cluster with the library preloaded, and a table of 120 MB in shared buffers of 256 MB."""
    with start_cluster(PRELOADED, QUIET, "shared_buffers = 256MB", "max_parallel_workers_per_gather = 0") as cluster:
        with cluster.connect() as connection:
            connection.execute("CREATE TABLE numbers AS SELECT n, md5(n::text) AS x FROM generate_series(1, 1000000) AS n")
            connection.execute("VACUUM ANALYZE numbers")
            connection.execute(f"CREATE FUNCTION holds() RETURNS void IMMUTABLE LANGUAGE plpgsql AS $$ {HOLDS} $$")
        yield cluster


@pytest.fixture
def session(preloaded):
    """A session whose statements are looked at."""
    with preloaded.connect("work_mem=1GB", "maintenance_work_mem=1GB") as session:
        session.execute("SELECT count(*) FROM pg_class")
        yield session


@pytest.fixture
def watcher(preloaded):
    """A session that looks at others."""
    with preloaded.connect() as watcher:
        watcher.execute("SELECT pg_meminfo_statements_reset()")
        yield watcher


class Poller:
    """The private memory of a process, read every half millisecond: before, and at the most."""

    def __init__(self, pid):
        self.pid = pid

    def __enter__(self):
        self.before = self.peak = private(self.pid)
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self.poll)
        self.thread.start()
        return self

    def poll(self):
        # Otherwise it may miss a short peak on a busy machine. A priority would count only among the processes of this
        # session, of which the server is none, where the scheduler groups them by sessions.
        with contextlib.suppress(PermissionError):
            os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
        while not self.stop.is_set():
            with contextlib.suppress(OSError):
                self.peak = max(self.peak, private(self.pid))
            time.sleep(0.0005)

    def __exit__(self, *_):
        self.stop.set()
        self.thread.join()

    @property
    def growth(self):
        return self.peak - self.before


def statements(connection, text):
    """The rows about statements whose text begins like this."""
    query = "SELECT * FROM pg_meminfo_statements WHERE starts_with(worst_query, %s) ORDER BY growth DESC"
    return rows(connection.execute(query, [text]))


def assert_is_as_polled(row, poller, is_exact=True):
    allowed = TOLERANCE + SHARE * poller.peak
    assert row["peak_private"] <= poller.peak + allowed
    assert row["growth"] <= poller.growth + allowed
    # The poller cannot have seen more than there was.
    assert row["peak_private_at_most"] >= poller.peak - TOLERANCE
    if is_exact:
        assert row["peak_private"] >= poller.peak - allowed
        assert row["growth"] >= poller.growth - allowed


# What is compared with the poller waits with all that it holds, so that the poller cannot miss it on a busy machine.
# Columns are computed from left to right, and freed together.
HOLDS = "DECLARE a text[]; BEGIN FOR n IN 1..2000 LOOP a[n] := repeat('x', 100000); END LOOP; PERFORM pg_sleep(0.5); END"
ARRAY = "length(array_agg(x)::text), pg_sleep(0.5) FROM numbers"

CASES = {
    "sort": ("SELECT count(*) FROM (SELECT * FROM numbers ORDER BY x OFFSET 0) AS s", 60),
    "hash aggregate": ("SELECT count(*), pg_sleep(0.5) FROM (SELECT x, count(*) FROM numbers GROUP BY x) AS s", 50),
    "array_agg": (f"SELECT {ARRAY}", 200),
    # It is executed when the statement is planned.
    "planning": ("SELECT holds()", 180),
    "COPY": ("COPY (SELECT string_agg(x, ',') FROM numbers) TO PROGRAM 'head -c 1 >/dev/null; sleep 0.5; cat >/dev/null'", 60),
    "CREATE TABLE AS": ("CREATE TEMP TABLE made AS SELECT length(string_agg(x, ',')), pg_sleep(0.5)::text AS slept FROM numbers", 60),
    "PL/pgSQL": (f"DO $$ {HOLDS} $$", 180),
}


@pytest.mark.parametrize("case", CASES)
def test_the_peak_is_that_from_outside(session, watcher, case):
    statement, least = CASES[case]
    with Poller(session.info.backend_pid) as poller:
        session.execute(statement)
    assert poller.growth > least * MB
    [row] = [row for row in statements(watcher, statement) if row["toplevel"]]
    assert_is_as_polled(row, poller)
    assert (row["heavy_calls"], row["errors"], row["worst_pid"]) == (1, 0, session.info.backend_pid)


def test_a_hash_aggregate_that_spills(session, watcher):
    """Its peak is what work_mem lets it have."""
    session.execute("SET work_mem = '16MB'")
    session.execute("SET hash_mem_multiplier = 2")
    statement = "SELECT count(*) FROM (SELECT x, count(*) FROM numbers GROUP BY x) AS spills"
    with Poller(session.info.backend_pid) as poller:
        session.execute(statement)
    [row] = statements(watcher, statement)
    assert_is_as_polled(row, poller)
    assert 16 * MB < row["growth"] < 100 * MB


def test_an_index_is_built(session, watcher):
    session.execute("SET max_parallel_maintenance_workers = 0")
    with Poller(session.info.backend_pid) as poller:
        session.execute("CREATE INDEX built ON numbers (x)")
    session.execute("DROP INDEX built")
    [row] = statements(watcher, "CREATE INDEX built")
    assert poller.growth > 50 * MB
    assert_is_as_polled(row, poller)


@pytest.mark.parametrize("huge", [False, True])
def test_buffers_that_are_touched_for_the_first_time(huge, request):
    """They leave a range, in which the truth is. With huge pages nothing does."""
    settings = [PRELOADED, QUIET, "shared_buffers = 300MB", "max_parallel_workers_per_gather = 0", "jit = off"]
    if huge:
        request.getfixturevalue("huge_pages")
        settings.append("huge_pages = on")
    with start_cluster(*settings) as cluster, cluster.connect() as connection:
        cluster.fill_shared_buffers(connection, "cold", 200)
        with cluster.connect("work_mem=1GB") as session:
            session.execute("SELECT 1")
            statement = "SELECT count(*) FROM (SELECT * FROM cold ORDER BY x, n OFFSET 0) AS s"
            with Poller(session.info.backend_pid) as poller:
                session.execute(statement)
            [row] = statements(connection, statement)
            assert poller.growth > 100 * MB
            assert_is_as_polled(row, poller)
            width = row["peak_private_at_most"] - row["peak_private"]
            # Those of 200 MB that are touched between two looks.
            assert width < (TOLERANCE if huge else 150 * MB)


def test_planning_many_partitions(session, watcher):
    session.execute("CREATE TABLE parted (n int, x text) PARTITION BY RANGE (n)")
    session.execute(
        """DO $$ BEGIN FOR n IN 1..1000 LOOP
            EXECUTE format('CREATE TABLE parted_%s PARTITION OF parted FOR VALUES FROM (%s) TO (%s)', n, n, n + 1);
        END LOOP; END $$"""
    )
    # A session whose caches are filled. What planning needs is then its own.
    # It ends with as much as it has ever had.
    statement = "SELECT count(*), pg_sleep(0.5) FROM parted AS a JOIN parted AS b USING (n)"
    with Poller(session.info.backend_pid) as poller:
        session.execute(statement)
    session.execute("DROP TABLE parted CASCADE")
    [row] = statements(watcher, statement)
    assert poller.growth > 10 * MB
    assert_is_as_polled(row, poller)
    assert 4 * MB < row["growth_planning"] <= row["growth"]


PARALLEL_JOIN = [
    "work_mem=400MB",
    "max_parallel_workers_per_gather=2",
    "parallel_setup_cost=0",
    "parallel_tuple_cost=0",
    "min_parallel_table_scan_size=0",
    "enable_mergejoin=off",
]
A_HASH_IN_EACH_WORKER = ["parallel_leader_participation=off", "enable_parallel_hash=off"]


def test_a_parallel_hash_join_is_no_private_memory(preloaded, watcher):
    """Its hash table is in shared memory, which is gone when the statement ends."""
    with preloaded.connect(*PARALLEL_JOIN) as session:
        statement = "SELECT count(*) FROM numbers AS a JOIN numbers AS b USING (x)"
        plan = "\n".join(row[0] for row in session.execute("EXPLAIN " + statement))
        assert "Parallel Hash Join" in plan
        with Poller(session.info.backend_pid) as poller:
            session.execute(statement)
        # Little enough that there may be no row.
        for row in statements(watcher, statement):
            assert row["growth"] < poller.growth + TOLERANCE


def test_workers_count_for_their_leader(preloaded, watcher):
    with preloaded.connect(*PARALLEL_JOIN, *A_HASH_IN_EACH_WORKER) as session:
        # Each worker has a hash table of all rows.
        statement = "SELECT count(*) FROM numbers AS a JOIN numbers AS b USING (x)"

        def is_shared_out():
            """A worker that comes late finds nothing to do."""
            watcher.execute("SELECT pg_meminfo_statements_reset()")
            session.execute(statement)
            [row] = statements(watcher, statement)
            assert row["heavy_calls"] == 1 and row["workers_peak"] > 40 * MB
            in_balance = row["workers_peak"] / 3 < row["worker_peak_max"] < row["workers_peak"] * 2 / 3
            return row["workers_peak"] > 80 * MB and in_balance

        wait_until(is_shared_out)


def test_workers_of_a_statement_that_times_out(preloaded, watcher):
    with preloaded.connect(*PARALLEL_JOIN, *A_HASH_IN_EACH_WORKER) as session:
        session.execute("SET statement_timeout = '10s'")
        # The hash tables are complete, and the join is endless.
        statement = "SELECT count(*) FROM numbers AS a JOIN numbers AS b USING (x), generate_series(1, 100000)"
        with pytest.raises(psycopg.errors.QueryCanceled):
            session.execute(statement)
        [row] = statements(watcher, statement)
        assert row["workers_peak"] > 60 * MB and row["errors"] == 1


def test_workers_that_build_an_index(preloaded, watcher):
    """No hook is called in them but that of the planner, for the function."""
    settings = ["maintenance_work_mem=600MB", "max_parallel_maintenance_workers=2", "min_parallel_table_scan_size=0"]
    with preloaded.connect(*settings, "synchronize_seqscans=off") as session:
        # Who gets the first row leaves most others to those that start later. That is the leader, unless it is late.
        session.execute("""CREATE FUNCTION waits(n int) RETURNS int IMMUTABLE PARALLEL SAFE LANGUAGE plpgsql
            AS 'BEGIN IF n = 1 THEN PERFORM pg_sleep(2); END IF; RETURN n; END'""")
        session.execute("CREATE INDEX parallel_built ON numbers (x, waits(n))")
        session.execute("DROP INDEX parallel_built")
        session.execute("DROP FUNCTION waits")
        [row] = statements(watcher, "CREATE INDEX parallel_built")
        assert row["workers_peak"] > 30 * MB and row["worker_peak_max"] <= row["workers_peak"]


def test_a_cursor_is_charged_for_what_is_fetched(session, watcher):
    session.autocommit = False
    fetch = "FETCH ALL FROM c"
    session.execute("DECLARE c CURSOR FOR SELECT count(*) FROM (SELECT * FROM numbers ORDER BY x OFFSET 0) AS s")
    with Poller(session.info.backend_pid) as poller:
        session.execute(fetch)
    session.commit()
    [row] = statements(watcher, fetch)
    assert poller.growth > 60 * MB
    assert_is_as_polled(row, poller)


def test_a_cursor_with_hold_runs_at_the_commit(session, watcher):
    session.autocommit = False
    # Memory of the aggregate is kept while the next query waits.
    session.execute("DECLARE held CURSOR WITH HOLD FOR SELECT string_agg(x, ',') FROM numbers UNION ALL SELECT pg_sleep(0.5)::text")
    with Poller(session.info.backend_pid) as poller:
        session.commit()
    found = rows(watcher.execute("SELECT * FROM pg_meminfo_statements WHERE growth > 30000000"))
    # The text alone has 33 MB.
    assert poller.growth > 30 * MB and found
    assert_is_as_polled(max(found, key=lambda row: row["growth"]), poller)


def test_a_failed_statement(session, watcher):
    statement = "SELECT length(array_agg(x)::text) / (count(*) - 1000000 + length(pg_sleep(0.5)::text)) FROM numbers"
    with Poller(session.info.backend_pid) as poller, pytest.raises(psycopg.errors.DivisionByZero):
        session.execute(statement)
    [row] = statements(watcher, statement)
    assert_is_as_polled(row, poller)
    assert (row["heavy_calls"], row["errors"]) == (1, 1)


def holding(size, seconds):
    """A statement that holds a block of so many bytes for so long. malloc keeps none of 32 MB or more for later."""
    return f"SELECT octet_length(repeat(repeat('x', 1000), {size // 1000} + n)), pg_sleep({seconds}) FROM generate_series(0, 0) AS n"


def test_a_timeout(session, watcher):
    session.execute("SET statement_timeout = '4s'")
    statement = holding(100000000, 1000)
    with pytest.raises(psycopg.errors.QueryCanceled):
        session.execute(statement)
    [row] = statements(watcher, statement)
    assert row["errors"] == 1 and row["growth"] > 90 * MB


def test_a_terminated_session(preloaded, watcher):
    # Grows by hundreds of megabytes a second.
    statement = "SELECT array_agg(n) FROM (SELECT generate_series(1, 3000000000) AS n) AS s"
    with preloaded.running(statement) as pid:
        wait_until(lambda: private(pid) > 200 * MB)
        watcher.execute("SELECT pg_terminate_backend(%s)", [pid])
        wait_until(lambda: not os.path.exists(f"/proc/{pid}"))
    [row] = statements(watcher, statement)
    assert row["errors"] == 1 and row["growth"] > 150 * MB and row["worst_pid"] == pid


def test_nested_statements_count_for_the_outer_ones_too(session, watcher):
    session.execute("CREATE FUNCTION heavy() RETURNS int LANGUAGE plpgsql AS 'BEGIN RETURN length(array_agg(x)::text) FROM numbers; END'")
    session.execute("SELECT heavy()")
    session.execute("DROP FUNCTION heavy()")
    found = rows(watcher.execute("SELECT toplevel, growth, worst_query FROM pg_meminfo_statements WHERE growth > 100000000"))
    assert sorted(row["toplevel"] for row in found) == [False, True]
    inner, outer = sorted(found, key=lambda row: row["toplevel"])
    # What the session held when the outer one started was not read but estimated: a rise by less than 1 MB counts.
    assert outer["growth"] > inner["growth"] - MB
    assert outer["worst_query"] == "SELECT heavy()"
    assert "FROM numbers" in inner["worst_query"]


def test_a_statement_after_a_heavy_one_is_not_blamed(session, watcher):
    """The mark is lowered before the memory is freed, and again afterwards."""
    session.execute("SELECT length(array_agg(x)::text) FROM numbers")
    for _ in range(20):
        session.execute("SELECT pg_sleep(0.005)")
    assert statements(watcher, "SELECT pg_sleep") == []
    # A smaller peak is not hidden by the larger one.
    smaller = holding(50000000, 0.5)
    with Poller(session.info.backend_pid) as poller:
        session.execute(smaller)
    [row] = statements(watcher, smaller)
    assert poller.growth > 40 * MB
    assert_is_as_polled(row, poller)


@pytest.mark.one_major
def test_of_thousands_of_small_statements_none_is_blamed(session, watcher):
    # Caches grow when a statement is executed for the first time.
    small = [f"SELECT {number} AS small, count(*) FROM pg_class WHERE oid < {number}" for number in range(20)]
    for statement in small:
        session.execute(statement)
    watcher.execute("SELECT pg_meminfo_statements_reset()")
    chosen = random.Random(1)
    # Executed anew each time, so that it is not computed when it is planned. It is so long that malloc returns it at
    # once.
    large = "SELECT length(repeat('heavy', 10000000 + n)) FROM generate_series(0, 0) AS n"
    heavy = 0
    for number in range(6000):
        session.execute(chosen.choice(small))
        if number % 200 == 0:
            session.execute(large)
            heavy += 1
    found = rows(watcher.execute("SELECT heavy_calls, worst_query FROM pg_meminfo_statements WHERE NOT worst_query LIKE 'SELECT pg_meminfo%'"))
    assert found == [{"heavy_calls": heavy, "worst_query": large}]


def test_thousands_of_failing_nested_statements(session, watcher):
    """They leave nothing behind that would make a later statement look nested."""
    session.execute(
        """DO $$ BEGIN FOR n IN 1..10000 LOOP
            BEGIN EXECUTE format('SELECT %s / 0', n); EXCEPTION WHEN division_by_zero THEN END;
        END LOOP; END $$"""
    )
    for _ in range(200):
        with pytest.raises(psycopg.errors.DivisionByZero):
            session.execute("SELECT 1 / (n - 1) FROM generate_series(1, 1) AS n")
    statement = "SELECT length(array_agg(x)::text) FROM numbers"
    session.execute(statement)
    [row] = statements(watcher, statement)
    assert row["toplevel"]


def assert_next_is_toplevel(session, watcher):
    """Nothing that has failed is thought to be running still."""
    session.execute("SELECT length(repeat('after', 10000000))")
    assert [row["toplevel"] for row in statements(watcher, "SELECT length(repeat('after'")] == [True]


def test_a_cursor_that_fails_in_a_subtransaction(session, watcher):
    """Its execution never ends by itself, and its text goes with CLOSE."""
    session.execute("BEGIN")
    session.execute("DECLARE failing CURSOR FOR SELECT 1 / (n - 3) FROM generate_series(1, 10) AS n /* " + "x" * 500000 + " */")
    session.execute("FETCH failing")
    session.execute("SAVEPOINT s")
    with pytest.raises(psycopg.errors.DivisionByZero):
        session.execute("FETCH ALL FROM failing")
    session.execute("ROLLBACK TO s")
    session.execute("CLOSE failing")
    assert_next_is_toplevel(session, watcher)
    with pytest.raises(psycopg.errors.DivisionByZero):
        session.execute("SELECT length(array_agg(x)::text) / 0 FROM numbers")
    session.execute("ROLLBACK")
    found = rows(watcher.execute("SELECT * FROM pg_meminfo_statements WHERE worst_query ~ 'xxx'"))
    assert found == []


def test_an_error_in_a_failed_transaction(session, watcher):
    """Nobody is told of it."""
    session.execute("BEGIN")
    for statement, error in ("SELECT 1 / 0", psycopg.errors.DivisionByZero), ("ROLLBACK TO nosuch", psycopg.errors.InvalidSavepointSpecification):
        with pytest.raises(error):
            session.execute(statement)
    session.execute("ROLLBACK")
    assert_next_is_toplevel(session, watcher)


def test_a_portal_that_is_still_open(session, watcher):
    """An unnamed portal is dropped only when the next statement is planned, which is not to blame for it."""
    heavy = "SELECT length(array_agg(x)::text) FROM numbers WHERE n > $1"
    session.execute("BEGIN")
    session.pgconn.exec_params(heavy.encode(), [b"0"])
    session.pgconn.exec_(b"SELECT count(*), 'simple' FROM pg_class")
    session.execute("COMMIT")
    [row] = statements(watcher, heavy)
    assert row["growth"] > 100 * MB
    assert statements(watcher, "SELECT count(*), 'simple'") == []


def test_deep_nesting(session, watcher):
    """More than can be followed."""
    session.execute(
        f"""CREATE FUNCTION nested(n int) RETURNS int LANGUAGE plpgsql AS $$ DECLARE r int; BEGIN
            IF n = 0 THEN PERFORM {ARRAY};
            ELSE EXECUTE format('SELECT nested(%s)', n - 1) INTO r; END IF; RETURN r; END $$"""
    )
    session.execute("SET max_stack_depth = '6MB'")
    with Poller(session.info.backend_pid) as poller:
        session.execute("SELECT nested(150)")
    [row] = statements(watcher, "SELECT nested(150)")
    assert_is_as_polled(row, poller)
    session.execute("DROP FUNCTION nested")


def test_procedures_that_end_transactions(session, watcher):
    session.execute(
        f"""CREATE PROCEDURE ends() LANGUAGE plpgsql AS $$ BEGIN
            PERFORM 1; COMMIT; PERFORM {ARRAY}; ROLLBACK; PERFORM 2; COMMIT; END $$"""
    )
    with Poller(session.info.backend_pid) as poller:
        session.execute("CALL ends()")
    [row] = statements(watcher, "CALL ends()")
    assert_is_as_polled(row, poller)
    assert (row["heavy_calls"], row["errors"], row["toplevel"]) == (1, 0, True)
    session.execute("DROP PROCEDURE ends")
    session.execute("SELECT length(repeat('after', 10000000))")
    assert [row["toplevel"] for row in statements(watcher, "SELECT length(repeat('after'")] == [True]


def test_what_is_kept(session, watcher):
    """Prepared statements remain. What it keeps is known when the next statement starts."""
    statement = "DO $$ BEGIN FOR n IN 1..3000 LOOP EXECUTE format('PREPARE kept%s AS SELECT %s', n, n); END LOOP; END $$"
    before = private(session.info.backend_pid)
    session.execute(statement)
    kept = private(session.info.backend_pid) - before
    session.execute("SELECT 1")
    [row] = statements(watcher, "DO $$ BEGIN FOR n IN 1..3000")
    assert kept > 2 * TOLERANCE
    assert abs(row["kept"] - kept) < TOLERANCE


def test_peak_rss_is_that_of_the_whole_life(session, watcher):
    """Although the kernel's own figure begins anew."""
    pid = session.info.backend_pid
    session.execute("SELECT length(array_agg(x)::text) FROM numbers")
    highest = int(re.search(r"VmHWM:\s+(\d+)", pathlib.Path(f"/proc/{pid}/status").read_text())[1]) * 1024
    for _ in range(3):
        session.execute("SELECT pg_sleep(0.01)")
    now = int(re.search(r"VmHWM:\s+(\d+)", pathlib.Path(f"/proc/{pid}/status").read_text())[1]) * 1024
    assert now < highest - 50 * MB
    assert watcher.execute("SELECT peak_rss FROM pg_meminfo WHERE pid = %s", [pid]).fetchone()[0] >= highest


def test_peak_rss_is_not_that_of_an_earlier_process_with_the_same_pid(preloaded, watcher):
    with preloaded.connect("work_mem=1GB") as session:
        pid = session.info.backend_pid
        for statement in "SELECT length(array_agg(x)::text) FROM numbers", "SELECT 1":
            session.execute(statement)
        peak_rss = "SELECT peak_rss FROM pg_meminfo WHERE pid = %s"
        highest = watcher.execute(peak_rss, [pid]).fetchone()[0]
    wait_until(lambda: not pathlib.Path(f"/proc/{pid}").exists())

    # The next sessions get the number of the one that has gone. They execute nothing.
    with preloaded.sessions(3), contextlib.ExitStack() as stack:
        make_process_of(pid, lambda: stack.enter_context(preloaded.connect()).info.backend_pid)
        assert watcher.execute(peak_rss, [pid]).fetchone()[0] < highest - 50 * MB


@pytest.mark.one_major
def test_descriptors(session):
    """At most two."""

    def count(connection):
        links = [os.readlink(link) for link in pathlib.Path(f"/proc/{connection.info.backend_pid}/fd").iterdir()]
        return sum(re.search(r"/(statm|clear_refs)$", link) is not None for link in links)

    assert count(session) in (0, 2)
    for _ in range(5):
        session.execute("SELECT length(array_agg(x)::text) FROM numbers")
        assert count(session) == 2


def test_a_statement_that_does_not_grow_opens_nothing(session, tmp_path):
    session.execute("PREPARE small AS SELECT 1")
    for _ in range(10):
        session.execute("EXECUTE small")

    def calls():
        """What a hundred statements ask of the kernel."""
        with traced(session.info.backend_pid, tmp_path, "?open", "mmap", "brk", "pwrite64", "sendto", "write") as lines:
            for _ in range(100):
                session.execute("EXECUTE small")
        found = {line.split("(")[0] for line in lines}
        assert "sendto" in found
        return found

    # One that had to wait a millisecond for a processor is looked at, and so is the one with which, with the pages of
    # the program that they all touch, the mark has risen by 1 MB.
    assert any(not calls() & {"open", "openat", "mmap", "brk", "pwrite64", "write"} for _ in range(20))


def test_off_for_a_role(preloaded, watcher):
    watcher.execute("CREATE ROLE unmeasured LOGIN SUPERUSER")
    watcher.execute("ALTER ROLE unmeasured SET pg_meminfo.statements = off")
    statement = "SELECT length(array_agg(x)::text) FROM numbers WHERE n > 1"
    with preloaded.connect(user="unmeasured") as session:
        session.execute(statement)
        assert statements(watcher, statement) == []
        session.execute("SET pg_meminfo.statements = on")
        session.execute(statement)
        assert len(statements(watcher, statement)) == 1
    watcher.execute("DROP ROLE unmeasured")
    watcher.execute("CREATE ROLE ordinary LOGIN")
    with preloaded.connect(user="ordinary") as session, pytest.raises(psycopg.errors.InsufficientPrivilege):
        session.execute("SET pg_meminfo.statements = off")
    watcher.execute("DROP ROLE ordinary")


def test_off_for_the_server():
    """No query ids are computed, until they are needed."""
    with start_cluster(PRELOADED, QUIET, "pg_meminfo.statements = off") as cluster, cluster.connect() as connection:
        own_id = "SELECT query_id FROM pg_stat_activity WHERE pid = pg_backend_pid()"
        heavy = "SELECT length(array_agg(n)::text) FROM generate_series(1, 1000000) AS n"
        assert connection.execute(own_id).fetchone() == (None,)
        connection.execute(heavy)
        prepared = "SELECT length(array_agg(n)::text) AS prepared FROM generate_series(1, 1000000::bigint) AS n"
        connection.execute(prepared, prepare=True)
        connection.execute("SET pg_meminfo.statements = on")
        # Also statements that were prepared before have ids now.
        connection.execute(prepared, prepare=True)
        assert [row["queryid"] is None for row in statements(connection, prepared)] == [False]
        assert connection.execute(own_id).fetchone() != (None,)
        assert statements(connection, heavy) == []
        connection.execute(heavy)
        [row] = statements(connection, heavy)
        assert row["queryid"] is not None and row["heavy_calls"] == 1
        connection.execute("SET pg_meminfo.statements = off")
        connection.execute(heavy)
        assert [row["heavy_calls"] for row in statements(connection, heavy)] == [1]

        with cluster.connect() as other:
            assert other.execute(own_id).fetchone() == (None,)
            connection.execute("ALTER SYSTEM SET pg_meminfo.statements = on")
            connection.execute("SELECT pg_reload_conf()")
            wait_until(lambda: other.execute("SHOW pg_meminfo.statements").fetchone() == ("on",))
            other.execute(heavy)
            assert [row["heavy_calls"] for row in statements(connection, heavy)] == [2]
            assert other.execute(own_id).fetchone() != (None,)


def test_privileges(preloaded, watcher):
    watcher.execute("CREATE ROLE ordinary LOGIN")
    watcher.execute("CREATE ROLE monitor LOGIN IN ROLE pg_read_all_stats")
    with preloaded.connect(user="ordinary") as session:
        for query in "SELECT * FROM pg_meminfo_statements", "SELECT * FROM pg_meminfo_statements_info()", "SELECT pg_meminfo_statements_reset()":
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                session.execute(query)
    with preloaded.connect(user="monitor") as session:
        session.execute("SELECT * FROM pg_meminfo_statements")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            session.execute("SELECT pg_meminfo_statements_reset()")
    watcher.execute("GRANT EXECUTE ON FUNCTION pg_meminfo_statements_reset TO ordinary")
    with preloaded.connect(user="ordinary") as session:
        session.execute("SELECT pg_meminfo_statements_reset()")
    watcher.execute("DROP OWNED BY ordinary")
    watcher.execute("DROP ROLE ordinary, monitor")


def test_reset_of_one_statement(session, watcher):
    first, second = "SELECT length(repeat('a', 20000000))", "SELECT length(repeat('b', 20000000)), 2"
    session.execute(first)
    session.execute(second)
    [row] = statements(watcher, first)
    watcher.execute("SELECT pg_meminfo_statements_reset(queryid => %s)", [row["queryid"]])
    assert statements(watcher, first) == [] and len(statements(watcher, second)) == 1
    watcher.execute("SELECT pg_meminfo_statements_reset(userid => 1)")
    assert len(statements(watcher, second)) == 1
    watcher.execute("SELECT pg_meminfo_statements_reset()")
    assert statements(watcher, second) == []


@pytest.mark.parametrize("order", ["pg_meminfo,pg_stat_statements,auto_explain", "auto_explain,pg_stat_statements,pg_meminfo"])
def test_beside_other_libraries(order):
    """Whoever comes first. Each statement has the same key as in pg_stat_statements."""
    libraries = subprocess.run([os.environ["PG_CONFIG"], "--pkglibdir"], check=True, capture_output=True, text=True).stdout.strip()
    if not pathlib.Path(libraries, "pg_stat_statements.so").exists():
        pytest.skip("pg_stat_statements is not installed")
    settings = [f"shared_preload_libraries = '{order}'", QUIET, "pg_stat_statements.track = all", "auto_explain.log_min_duration = 0"]
    with start_cluster(*settings, "auto_explain.log_analyze = on", "auto_explain.log_nested_statements = on") as cluster:
        with cluster.connect() as connection:
            connection.execute("CREATE EXTENSION pg_stat_statements")
            connection.execute("CREATE FUNCTION inner_heavy() RETURNS int LANGUAGE sql AS $$ SELECT length(array_agg(n)::text) FROM generate_series(1, 1000000) n $$")
            connection.execute("SELECT inner_heavy()")
            connection.execute("CREATE TABLE made AS SELECT length(string_agg(repeat('x', 10), ',')) FROM generate_series(1, 3000000)")
            connection.execute("PREPARE prepared AS SELECT length(repeat('x', 50000000))")
            connection.execute("EXECUTE prepared")
            with pytest.raises(psycopg.errors.DivisionByZero):
                connection.execute("SELECT 1 / (length(repeat('y', 50000000)) - 50000000)")
            missing = connection.execute(
                """SELECT m.worst_query FROM pg_meminfo_statements m LEFT JOIN pg_stat_statements s USING (userid, dbid, queryid, toplevel)
                WHERE s.queryid IS NULL AND m.errors = 0 AND m.growth > 10000000"""
            ).fetchall()
            assert missing == []
            found = {row["worst_query"]: row for row in rows(connection.execute("SELECT * FROM pg_meminfo_statements WHERE growth > 10000000"))}
            assert found["SELECT inner_heavy()"]["toplevel"]
            assert "PREPARE prepared AS SELECT length(repeat('x', 50000000))" in found
            assert any(text and text.startswith("CREATE TABLE made") and row["toplevel"] for text, row in found.items())
            [failed] = [row for row in found.values() if row["errors"]]
            assert failed["worst_query"].startswith("SELECT 1 / (length")
            calls = "SELECT calls FROM pg_stat_statements WHERE query LIKE 'SELECT inner_heavy()%'"
            assert connection.execute(calls).fetchone() == (1,)


class Server:
    """The server of a cluster of start_cluster(), which can be stopped and started again."""

    def __init__(self, cluster):
        self.cluster, self.process = cluster, None
        self.log = cluster.data.parent / "log.restarted"

    def stop(self):
        pid = self.cluster.postmaster
        os.kill(pid, signal.SIGINT)
        if self.process:
            self.process.wait()
        wait_until(lambda: not (self.cluster.data / "postmaster.pid").exists())

    def start(self):
        self.process = self.cluster.start_server(self.cluster.data, self.log)

        def is_ready():
            with contextlib.suppress(psycopg.OperationalError), self.cluster.connect():
                return True

        wait_until(is_ready)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process:
            self.process.send_signal(signal.SIGQUIT)
            self.process.wait()


SAVED = "pg_stat/pg_meminfo.statements"


def test_restarts():
    """A clean one keeps the list. A crash empties it. A damaged file does not keep the server from starting."""
    heavy = "SELECT length(repeat('kept', 20000000))"
    with start_cluster(PRELOADED, QUIET) as cluster, Server(cluster) as server:
        with cluster.connect() as connection:
            connection.execute(heavy)
            before = rows(connection.execute("SELECT * FROM pg_meminfo_statements ORDER BY queryid"))
            since = connection.execute("SELECT stats_reset FROM pg_meminfo_statements_info()").fetchone()
        server.stop()
        server.start()
        with cluster.connect() as connection:
            after = rows(connection.execute("SELECT * FROM pg_meminfo_statements ORDER BY queryid"))
            assert [row for row in after if row["worst_query"] == heavy] == [row for row in before if row["worst_query"] == heavy]
            assert connection.execute("SELECT stats_reset FROM pg_meminfo_statements_info()").fetchone() == since
            assert not (cluster.data / SAVED).exists()

        # Someone kills a process: all memory is initialized anew.
        with cluster.running("SELECT pg_sleep(1000)") as pid:
            os.kill(pid, signal.SIGKILL)

            def is_empty():
                try:
                    with cluster.connect() as connection:
                        return statements(connection, heavy) == []
                except psycopg.OperationalError:
                    return False

            wait_until(is_empty)
        with cluster.connect() as connection:
            connection.execute(heavy)
            assert len(statements(connection, heavy)) == 1

        for damage in "flip", "truncate", "foreign":
            server.stop()
            content = (cluster.data / SAVED).read_bytes()
            changed = {"flip": content[:100] + bytes([content[100] ^ 1]) + content[101:], "truncate": content[:-10], "foreign": b"something else"}
            (cluster.data / SAVED).write_bytes(changed[damage])
            server.start()
            with cluster.connect() as connection:
                assert statements(connection, heavy) == []
                assert (cluster.data / (SAVED + ".old")).read_bytes() == changed[damage]
                assert not (cluster.data / SAVED).exists()
                connection.execute(heavy)
        assert 'could not use file "pg_stat/pg_meminfo.statements"' in server.log.read_text()


@pytest.mark.one_major
def test_a_full_list():
    """Those that have grown least go."""
    with start_cluster(PRELOADED, QUIET, "pg_meminfo.max_statements = 100") as cluster, cluster.connect() as connection:
        connection.execute("SELECT pg_meminfo_statements_reset()")
        connection.execute("SELECT length(repeat('largest', 10000000))")
        for number in range(130):
            columns = ", ".join(str(each) for each in range(number + 1))
            # In a new session, because malloc keeps some megabytes.
            with cluster.connect() as session:
                session.execute(f"SELECT length(repeat('small', 1000000)), {columns}")
        entries, dealloc = connection.execute("SELECT entries, dealloc FROM pg_meminfo_statements_info()").fetchone()
        assert 90 < entries <= 100 and dealloc >= 5
        assert len(statements(connection, "SELECT length(repeat('largest'")) == 1


@pytest.mark.one_major
def test_without_clear_refs():
    """New maxima of a session are seen, and what lasts until the end of a statement."""
    within = in_mounts("mount -o bind,remount,ro /proc")
    with start_cluster(PRELOADED, QUIET, within=within) as cluster, cluster.connect() as connection:
        assert connection.execute("SELECT method FROM pg_meminfo_statements_info()").fetchone() == ("lifetime",)
        assert cluster.log_has("peaks of statements are seen only if they are the highest of their sessions so far")
        for size in 20, 100:
            statement = f"SELECT length(array_agg(n)::text) AS of_{size}, pg_sleep(0.5) FROM generate_series(1, {size}00000) AS n"
            with Poller(connection.info.backend_pid) as poller:
                connection.execute(statement)
            [row] = statements(connection, statement)
            assert_is_as_polled(row, poller)


def test_a_killed_worker_leaves_nothing_behind():
    """A crash restart: nothing is stuck, nothing is counted for a stranger."""
    with start_cluster(PRELOADED, QUIET, "restart_after_crash = on") as cluster:
        with cluster.connect() as connection, cluster.running_in_parallel(connection) as leader:
            worker = connection.execute("SELECT pid FROM pg_stat_activity WHERE leader_pid = %s AND pid <> %s LIMIT 1", [leader, leader]).fetchone()[0]
            os.kill(worker, signal.SIGKILL)

        def is_back():
            try:
                with cluster.connect() as connection:
                    return connection.execute("SELECT count(*) FROM pg_meminfo_statements WHERE workers_peak > 0").fetchone() == (0,)
            except psycopg.OperationalError:
                return False

        wait_until(is_back)


def test_workers_of_a_terminated_leader(preloaded, watcher):
    with preloaded.connect() as connection:
        connection.execute("DROP TABLE IF EXISTS many")
        with preloaded.running_in_parallel(connection) as leader:
            watcher.execute("SELECT pg_terminate_backend(%s)", [leader])
            wait_until(lambda: watcher.execute("SELECT count(*) FROM pg_stat_activity WHERE leader_pid = %s", [leader]).fetchone() == (0,))
        connection.execute("DROP TABLE many")
        connection.execute("DROP FUNCTION slow")
    assert rows(watcher.execute("SELECT * FROM pg_meminfo_statements WHERE workers_peak > 10000000")) == []


def test_autovacuum():
    """It executes no statement. The text is that of pg_stat_activity."""
    settings = ["autovacuum_naptime = 1s", "default_statistics_target = 300"]
    with start_cluster(PRELOADED, *settings) as cluster, cluster.connect() as connection:
        # ANALYZE keeps 90,000 of these rows.
        connection.execute("CREATE TABLE analyzed AS SELECT n, md5(n::text) || md5(n::text) AS x FROM generate_series(1, 100000) AS n")
        analyze = "starts_with(worst_query, 'autovacuum: ') AND worst_query LIKE '%ANALYZE public.analyzed'"
        # It ends two transactions, the first before it analyzes.
        found = f"SELECT * FROM pg_meminfo_statements WHERE {analyze} AND growth > {5 * MB}"
        wait_until(lambda: rows(connection.execute(found)))
        [row] = rows(connection.execute(found))
        assert row["queryid"] is None


def test_not_preloaded(connection):
    for query in "SELECT * FROM pg_meminfo_statements", "SELECT * FROM pg_meminfo_statements_info()", "SELECT pg_meminfo_statements_reset()":
        with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState, match="must be loaded via"):
            connection.execute(query)


def test_a_cursor_that_a_function_leaves_open(session, watcher):
    """What is executed after it is not part of it."""
    session.execute(
        "CREATE FUNCTION opens() RETURNS refcursor LANGUAGE plpgsql AS $$ DECLARE c refcursor; BEGIN OPEN c FOR SELECT * FROM numbers; RETURN c; END $$"
    )
    try:
        session.execute("BEGIN")
        session.execute("SELECT opens()")
        session.execute("SELECT length(repeat('after the cursor', 2000000))")
        session.execute("COMMIT")
    finally:
        session.execute("ROLLBACK")
        session.execute("DROP FUNCTION opens()")
    [row] = statements(watcher, "SELECT length(repeat('after the cursor'")
    assert row["toplevel"] and row["growth"] > 20 * MB
    assert statements(watcher, "SELECT opens()") == []
