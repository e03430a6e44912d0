"""The queries of docs/incidents.md, each on a cluster where the incident was provoked."""

import contextlib
import os
import re
import signal
import subprocess

import psycopg
import pytest
from conftest import PAGE, ROOT, limited, rows, start_cluster, wait_until

MB = 2**20


def queries(heading):
    """The queries below a heading, as they are printed."""
    section = re.search(rf"^## {re.escape(heading)}\n(.*?)(?=^## |\Z)", (ROOT / "docs/incidents.md").read_text(), re.M | re.S)
    return re.findall(r"```sql\n(.*?)```", section[1], re.S)


def ask(connection, heading):
    """The rows of the only query below a heading, as dictionaries."""
    [query] = queries(heading)
    return rows(connection.execute(query))


def size(connection, text):
    return connection.execute("SELECT pg_size_bytes(%s)", [text]).fetchone()[0]


@pytest.fixture(scope="module")
def busy():
    settings = ["shared_preload_libraries = 'pg_meminfo'", "wal_level = logical", "huge_pages = off", "shared_buffers = 128MB", "autovacuum_naptime = 1d"]
    with start_cluster(*settings) as cluster:
        yield cluster


# Holds some 100 MB for as long as its transaction lasts.
LARGE_SORT = "BEGIN; DECLARE c CURSOR FOR SELECT repeat(n::text, 20) AS t FROM generate_series(1, 500000) AS n ORDER BY t"


def prepare_and_deallocate(session):
    """Leaves memory that no context has any more, and that malloc keeps."""
    session.execute("DO $$ BEGIN FOR n IN 1..3000 LOOP EXECUTE format('PREPARE s%s AS SELECT * FROM pg_class WHERE oid = %s', n, n); END LOOP; END $$")
    session.execute("DEALLOCATE ALL")


def test_every_section_is_tried():
    headings = re.findall(r"^## (.*)$", (ROOT / "docs/incidents.md").read_text(), re.M)
    with open(__file__) as file:
        source = file.read()
    assert [heading for heading in headings if f'"{heading}"' not in source] == []


def test_the_readme_repeats_queries_of_the_incidents():
    repeated = re.findall(r"```sql\n(SELECT .*?)```", (ROOT / "README.md").read_text(), re.S)
    headings = "Who was killed, and why?", "Which memory contexts are the largest?", "Which statements need most memory at their peak?"
    assert repeated == [query for heading in headings for query in queries(heading)]


def test_who_holds_memory(busy):
    with busy.connect("work_mem=1GB", application_name="report") as session, busy.connect() as connection:
        session.execute(LARGE_SORT)
        session.execute("FETCH 1 FROM c")
        first, *others = ask(connection, "Who holds memory now?")
        assert (first["pid"], first["session"]) == (session.info.backend_pid, "report")
        assert size(connection, first["private"]) > 50 * MB and size(connection, first["rss"]) > 50 * MB
        assert {"postmaster", "checkpointer"} <= {row["session"] for row in others}
        assert connection.info.backend_pid not in {row["pid"] for row in others}
        by_category = {row["category"]: row for row in ask(connection, "What does a session hold?")}
        assert next(iter(by_category)) == "malloc" and "shared_memory" not in by_category
        assert size(connection, by_category["malloc"]["private"]) > 50 * MB


def test_the_whole_cluster(busy):
    with busy.connect() as connection:
        heading = "How much does the cluster use, and how much is left?"
        [row] = ask(connection, heading)
        assert row["processes"] >= 5
        parts = [size(connection, row[name]) for name in ("private", "shared_memory", "page_tables")]
        # Each is rounded; dynamic shared memory is in the total alone.
        assert size(connection, row["total"]) > sum(parts) - 2 * MB
        assert (row["headroom"] is None) == (row["headroom_source"] is None)


def test_shared_buffers(busy):
    with busy.connect(application_name="filling") as session, busy.connect() as connection:
        busy.fill_shared_buffers(session, "buffered", 60)
        first, *others = ask(connection, "Which sessions use shared buffers?")
        assert first["session"] == "filling" and len(others) == 3
        assert size(connection, first["rss"]) > 50 * MB and size(connection, first["rss"]) >= size(connection, first["pss"])
        session.execute("DROP TABLE buffered")


def drawn(busy, tmp_path, heading):
    """The stacks that the command below a heading draws, by a program that keeps what it is given."""
    command = re.search(rf"^## {re.escape(heading)}\n.*?```\n(.*?)```", (ROOT / "docs/incidents.md").read_text(), re.M | re.S)[1]
    drawing = tmp_path / "inferno-flamegraph"
    drawing.write_text("#!/bin/sh\nexec cat\n")
    drawing.chmod(0o755)
    picture = tmp_path / "picture.svg"
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "PGHOST": str(busy.host)}
    subprocess.run(re.sub(r">\w+\.svg", f">{picture}", command), shell=True, cwd=ROOT, env=environment, check=True)
    stacks = picture.read_text().splitlines()
    assert [stack for stack in stacks if not re.fullmatch(r".+ [0-9]+", stack)] == []
    return {stack.rpartition(" ")[0]: int(stack.rpartition(" ")[2]) for stack in stacks}


def test_the_picture(busy, tmp_path):
    with busy.connect(application_name="freed") as session:
        prepare_and_deallocate(session)
        stacks = drawn(busy, tmp_path, "Where is all of it, as a picture?")
        own = f"client backend;postgres;freed;{session.info.backend_pid};malloc"
    assert {"postmaster", "checkpointer", "shared memory"} <= {stack.split(";")[0] for stack in stacks}
    assert stacks[f"{own};not in contexts"] > 5 * 1024
    assert stacks[f"{own};TopMemoryContext;CacheMemoryContext"] > 100
    opened = {stack.split(";malloc;")[0] for stack in stacks if ";malloc;" in stack}
    assert len(opened) == 5


def test_the_picture_of_a_session(busy, tmp_path):
    with busy.connect("work_mem=1GB", application_name="report") as session:
        session.execute(LARGE_SORT)
        session.execute("FETCH 1 FROM c")
        stacks = drawn(busy, tmp_path, "Where is one session's memory, as a picture?")
        assert all(f";report;{session.info.backend_pid};" in stack for stack in stacks)
        # The memory that the executor had allocated for the sort.
        assert sum(size for stack, size in stacks.items() if ";ExecutorState;" in stack) > 10 * 1024


def test_the_picture_of_the_past(busy, tmp_path):
    with busy.connect(application_name="a;b") as session, busy.connect() as connection:
        session.execute("DO $$ BEGIN PERFORM set_config('my.held', repeat('x', 80000000), false); END $$")
        # It needed several times as much for a moment.
        [(start,)] = connection.execute("SELECT clock_timestamp()").fetchall()
        seen = "SELECT max(private) FROM pg_meminfo_session_history WHERE pid = %s AND at > %s"
        wait_until(lambda: (connection.execute(seen, [session.info.backend_pid, start]).fetchone()[0] or 0) > 70 * MB)
        stacks = drawn(busy, tmp_path, "Where was it at a moment of the past, as a picture?")
        [(stack, kilobytes)] = [(stack, size) for stack, size in stacks.items() if f";{session.info.backend_pid};" in stack]
        assert stack.startswith("client backend;postgres;a\\u003bb;") and kilobytes > 70 * 1024
        samples = connection.execute("SELECT private / 1024 FROM pg_meminfo_history WHERE at > %s", [start]).fetchall()
        # Each stack is rounded down to kB.
        assert min(abs(sum(stacks.values()) - held) for (held,) in samples) < 64


def test_oom_suspects(busy):
    with busy.connect("work_mem=1GB", application_name="suspect") as session, busy.connect() as connection:
        session.execute(LARGE_SORT)
        session.execute("FETCH 1 FROM c")
        first = ask(connection, "Which process would the OOM killer choose?")[0]
        assert (first["pid"], first["session"]) == (session.info.backend_pid, "suspect")
        assert size(connection, first["charge"]) > 50 * MB
        # On a machine where a test may not lower it, nobody has; so this only reads it.
        [postmaster] = ask(connection, "Is the postmaster protected?")
        with open(f"/proc/{busy.postmaster}/oom_score_adj") as file:
            adj = int(file.read())
        assert postmaster == {"pid": busy.postmaster, "oom_score_adj": adj, "protected": adj <= -900}


def test_a_pod_near_its_limit():
    with limited(300) as (directory, within):
        with start_cluster("shared_buffers = 16MB", "huge_pages = off", within=within) as cluster, cluster.connect() as connection:

            def own():
                # The first, unless the machine has set a limit around us.
                [row] = [row for row in ask(connection, "Is the pod near its limit?") if row["level"] == 0]
                return row

            before = own()
            assert (before["path"].endswith(directory.name), before["oom_kills"]) == (True, 0)
            assert size(connection, before["memory_limit"]) == 300 * MB
            with cluster.connect() as session:
                kept = 0
                while size(connection, own()["headroom"]) > 60 * MB:
                    kept += 1
                    assert kept < 40, "the headroom does not shrink"
                    session.execute(f"SELECT set_config('kept.n{kept}', repeat('x', 10000000), false)")
                assert kept > 3
                headrooms = [size(connection, row["headroom"] or "1 PB") for row in ask(connection, "Is the pod near its limit?")]
                assert headrooms == sorted(headrooms)


def test_a_session_that_grows(busy):
    before, after = queries("Which session grows?")
    with busy.connect("work_mem=1GB", application_name="growing") as session, busy.connect() as connection:
        connection.execute(before)
        session.execute(LARGE_SORT)
        session.execute("FETCH 1 FROM c")
        first = rows(connection.execute(after))[0]
        assert (first["pid"], first["session"]) == (session.info.backend_pid, "growing")
        assert size(connection, first["grown"]) > 50 * MB


def test_idle_connections(busy):
    with busy.connect() as connection, busy.sessions(20) as sessions:
        busy.fill_shared_buffers(connection, "pages", 60)

        def idle():
            by_state = {row["state"]: row for row in ask(connection, "What do idle connections cost?")}
            assert by_state["active"]["sessions"] == 1
            return by_state["idle"]["sessions"], size(connection, by_state["idle"]["page_tables"])

        # Sessions of earlier tests may still be exiting.
        wait_until(lambda: idle()[0] == 20)
        before = idle()
        for session in sessions:
            session.execute("SELECT count(*) FROM pages")
        after = idle()
        assert before[0] == after[0] == 20
        # With pages of 4 kB, 60 MB of shared buffers are 120 kB of page tables for each, less what it had for some of
        # them. With larger pages it may have had all of them.
        assert after[1] - before[1] > (20 * 60 * 1024 if PAGE == 4096 else -1)


def test_jit(busy):
    compiling = ["jit=on", "jit_above_cost=0", "jit_optimize_above_cost=0", "max_parallel_workers_per_gather=0"]
    with busy.connect(*compiling) as session, busy.connect() as connection:
        if not session.execute("SELECT pg_jit_available()").fetchone()[0]:
            pytest.skip("this server cannot compile")
        session.execute("BEGIN; DECLARE c CURSOR FOR SELECT sum(n) OVER (ORDER BY n + 1) FROM generate_series(1, 100) AS n; FETCH 1 FROM c")
        found = {row["pid"]: row for row in ask(connection, "Is JIT using the memory?")}
        assert found.keys() == {session.info.backend_pid}
        assert size(connection, found[session.info.backend_pid]["malloc"]) > MB


def test_the_largest_contexts(busy):
    """Those of a session in a tight loop."""
    hoard = "DO $$ DECLARE a int[] := array_fill(1, ARRAY[20000000]); n int := 0; BEGIN LOOP n := 1 - n; END LOOP; END $$"
    with busy.connect() as connection, busy.running(hoard) as pid:

        def is_found():
            # The array is a constant of the function's plan, too.
            found = {(row["pid"], row["name"]): row["size"] for row in ask(connection, "Which memory contexts are the largest?")}
            return size(connection, found.get((pid, "expanded array"), "0")) > 70 * MB

        wait_until(is_found)


def test_the_largest_prepared_statement(busy):
    with busy.connect(application_name="orders") as session, busy.connect() as connection:
        session.execute("PREPARE small AS SELECT 1")
        session.execute("PREPARE large AS " + " UNION ALL ".join(["SELECT * FROM pg_stat_all_tables"] * 50))
        first, *_ = [row for row in ask(connection, "Which prepared statements are the largest?") if row["session"] == "orders"]
        assert (first["pid"], first["statement"][:16]) == (session.info.backend_pid, "PREPARE large AS")
        assert size(connection, first["size"]) > MB


def test_the_relation_cache(busy):
    with busy.connect(application_name="partitions") as session, busy.connect() as connection:
        connection.execute("CREATE TABLE parts (k int PRIMARY KEY) PARTITION BY LIST (k)")
        connection.execute(
            "DO $$ BEGIN FOR n IN 1..500 LOOP EXECUTE format('CREATE TABLE part%s PARTITION OF parts FOR VALUES IN (%s)', n, n); END LOOP; END $$"
        )
        try:
            session.execute("SELECT count(*) FROM parts")
            # Another session has created them, and so has all of them in its cache, too.
            found = {row["session"]: row for row in ask(connection, "Is the relation cache large?")}
            assert found["partitions"]["number_of_indexes"] > 500
            assert size(connection, found["partitions"]["caches"]) > 2 * MB
        finally:
            connection.execute("DROP TABLE parts")


def test_the_statement_with_the_largest_peak(busy):
    """It has ended, and a snapshot shows nothing of it."""
    with busy.connect() as session, busy.connect() as connection:
        connection.execute("SELECT pg_meminfo_statements_reset()")
        session.execute("SELECT length(array_agg(repeat('peak', 1000))::text) FROM generate_series(1, 50000)")
        session.execute("SELECT length(repeat('smaller', 10000000))")
        first, second, *_ = ask(connection, "Which statements need most memory at their peak?")
        assert first["statement"].startswith("SELECT length(array_agg") and second["statement"].startswith("SELECT length(repeat")
        assert size(connection, first["growth"]) > 200 * MB > size(connection, first["kept"])
        assert first["calls"] == 1
        largest = ask(connection, "Is work_mem right?")[0]
        assert largest["statement"] == first["statement"] and largest["times_work_mem"] > 50


def test_what_is_left_behind(busy):
    with busy.connect(application_name="pool") as session, busy.connect() as connection:
        connection.execute("SELECT pg_meminfo_statements_reset()")
        session.execute("SELECT length(repeat('gone', 20000000))")
        session.execute("DO $$ BEGIN FOR n IN 1..3000 LOOP EXECUTE format('PREPARE left%s AS SELECT %s', n, n); END LOOP; END $$")
        session.execute("SELECT 1")
        first, *_ = ask(connection, "What leaves memory behind in a pooled session?")
        assert first["statement"].startswith("DO $$ BEGIN FOR n IN 1..3000")
        # A prepared statement has two memory contexts, of 1 kB at least each.
        assert size(connection, first["kept"]) > 3000 * 2 * 1024


def test_freed_memory_that_malloc_keeps(busy):
    with busy.connect(application_name="pool") as session, busy.connect() as connection:
        prepare_and_deallocate(session)
        first, *_ = ask(connection, "Has a session freed memory that malloc keeps?")
        assert (first["pid"], first["session"]) == (session.info.backend_pid, "pool")
        assert size(connection, first["in_contexts"]) < 10 * MB < size(connection, first["not_in_contexts"])


def test_a_parallel_query(busy):
    with busy.connect() as connection, busy.running_in_parallel(connection) as leader:
        [row] = ask(connection, "What does a parallel query hold?")
        assert (row["leader"], row["processes"]) == (leader, 3)
        assert size(connection, row["private"]) > MB and size(connection, row["shared"]) > 0


def test_more_than_work_mem(busy):
    """By four hash aggregates in one plan."""
    aggregates = " UNION ALL ".join(
        f"(SELECT {n} AS a, count(*) FROM generate_series(1, 200000) AS g GROUP BY g % 100000 + {n} OFFSET 0)" for n in range(2)
    )
    with busy.connect() as connection:
        query = f"SELECT count(x.a), count(y.a), (SELECT pg_sleep(1000)) FROM (SELECT DISTINCT g % 90000 AS a FROM generate_series(1, 100000) AS g) AS x JOIN (SELECT DISTINCT g % 90000 AS a FROM generate_series(1, 100000) AS g) AS y USING (a), ({aggregates} LIMIT 1) AS z"
        with busy.running(query, "hash_mem_multiplier=16", "enable_sort=off", "max_parallel_workers_per_gather=0") as pid:
            asleep = "SELECT count(*) FROM pg_stat_activity WHERE pid = %s AND wait_event = 'PgSleep'"
            wait_until(lambda: connection.execute(asleep, [pid]).fetchone() == (1,))
            [row] = ask(connection, "Which sessions hold more than work_mem?")
            assert row["pid"] == pid and row["times"] > 2 and row["work_mem"] == "4MB"


def test_autovacuum_workers():
    settings = ["autovacuum_naptime = 1s", "autovacuum_vacuum_cost_delay = 100ms", "autovacuum_vacuum_cost_limit = 1"]
    with start_cluster(*settings) as cluster, cluster.connect() as connection:
        connection.execute("CREATE TABLE dead AS SELECT n, repeat('x', 500) AS x FROM generate_series(1, 20000) AS n")
        connection.execute("ALTER TABLE dead SET (autovacuum_vacuum_threshold = 1)")
        connection.execute("DELETE FROM dead WHERE n % 2 = 0")
        wait_until(lambda: any(row["table"] == "dead" for row in ask(connection, "What do autovacuum workers hold?")))
        [row] = [row for row in ask(connection, "What do autovacuum workers hold?") if row["table"] == "dead"]
        assert size(connection, row["private"]) > MB


def test_decoding_and_a_worker_that_leaks(busy):
    """A subscription within the cluster: its walsender decodes, and its worker fires a trigger that keeps memory."""
    with busy.connect() as connection:
        connection.execute("CREATE DATABASE subscriber")
        connection.execute("CREATE TABLE t (n int)")
        connection.execute("CREATE PUBLICATION p FOR TABLE t")
        connection.execute("SELECT pg_create_logical_replication_slot('s', 'pgoutput')")
        with busy.connect(dbname="subscriber") as there:
            there.execute("CREATE TABLE t (n int)")
            there.execute(
                "CREATE FUNCTION keep() RETURNS trigger LANGUAGE plpgsql AS "
                "$$ BEGIN PERFORM set_config('kept.n' || NEW.n, repeat('x', 1000000), false); RETURN NEW; END $$"
            )
            there.execute("CREATE TRIGGER keep BEFORE INSERT ON t FOR EACH ROW EXECUTE FUNCTION keep()")
            there.execute("ALTER TABLE t ENABLE ALWAYS TRIGGER keep")
            there.execute(
                f"CREATE SUBSCRIPTION s CONNECTION 'host={busy.host} port=5432 user=postgres dbname=postgres' "
                "PUBLICATION p WITH (create_slot = false, copy_data = false)"
            )
            try:
                wait_until(lambda: ask(connection, "What do logical walsenders hold?"))
                [row] = ask(connection, "What do logical walsenders hold?")
                assert (row["slot_name"], row["plugin"]) == ("s", "pgoutput")
                assert size(connection, row["private"]) > MB
                with busy.connect() as writer:
                    writer.execute("BEGIN; INSERT INTO t SELECT generate_series(1, 200000)")
                    wait_until(lambda: size(connection, ask(connection, "What do logical walsenders hold?")[0]["private"]) > 20 * MB)
                    writer.execute("ROLLBACK")
                connection.execute("INSERT INTO t SELECT generate_series(1, 60)")
                wait_until(lambda: there.execute("SELECT count(*) FROM t").fetchone() == (60,))
                first = ask(connection, "Which background worker leaks?")[0]
                assert first["backend_type"].startswith("logical replication")
                assert size(connection, first["private"]) > 50 * MB
            finally:
                there.execute("ALTER SUBSCRIPTION s DISABLE")
                there.execute("ALTER SUBSCRIPTION s SET (slot_name = NONE)")
                there.execute("DROP SUBSCRIPTION s")


def test_what_the_guard_has_done():
    with start_cluster("shared_preload_libraries = 'pg_meminfo'", "pg_meminfo.sample_interval = 100") as cluster:
        with cluster.connect(application_name="export") as session:
            session.execute("SET pg_meminfo.session_memory_limit = '64MB'")
            query = "SELECT array_agg(repeat('x', 1000000)) FROM generate_series(1, 1000)"
            seen = "SELECT count(*) > 0 FROM pg_meminfo_session_history WHERE pid = pg_backend_pid()"
            wait_until(lambda: session.execute(seen).fetchone()[0])
            with pytest.raises(psycopg.errors.OutOfMemory):
                session.execute(query)
            wait_until(lambda: session.execute("SELECT count(*) FROM pg_meminfo_incidents").fetchone() == (1,))
            [incident] = ask(session, "What has the guard done?")
            assert (incident["cause"], incident["pid"]) == ("refusal", session.info.backend_pid)
            assert incident["application_name"] == "export" and 0 < size(session, incident["held"]) <= 64 * MB


def test_after_the_fact():
    """What is asked when the server has restarted."""
    with start_cluster("shared_preload_libraries = 'pg_meminfo'", "pg_meminfo.sample_interval = 100") as cluster:
        with cluster.connect(application_name="export") as session, cluster.connect() as connection:
            pid = session.info.backend_pid
            held = "SELECT max(private) FROM pg_meminfo_session_history WHERE pid = %s"
            # The history must have seen it small.
            wait_until(lambda: connection.execute(held, [pid]).fetchone() != (None,))
            query = "DO $$ BEGIN PERFORM set_config('my.held', repeat('x', 80000000), false), pg_sleep(1000); END $$"
            session.pgconn.send_query(query.encode())
            # More than what is asserted below, where sizes are rounded.
            wait_until(lambda: (connection.execute(held, [pid]).fetchone()[0] or 0) > 75 * MB)
            os.kill(pid, signal.SIGKILL)
            wait_until(lambda: not os.path.exists(f"/proc/{connection.info.backend_pid}"))
            session.pgconn.finish()
        # The recorder reports after the restart, before which a session may still be let in.
        def is_reported():
            with contextlib.suppress(psycopg.OperationalError), cluster.connect() as connection:
                return connection.execute("SELECT count(*) FROM pg_meminfo_incidents").fetchone() == (1,)

        wait_until(is_reported)
        with cluster.connect() as connection:
            [incident] = ask(connection, "Who was killed, and why?")
            assert (incident["cause"], incident["pid"], incident["application_name"]) == ("kill", pid, "export")
            assert incident["query"] == query[:50] and size(connection, incident["held"]) > 70 * MB
            assert 0 < incident["ran_for"].total_seconds() < 600
            grown = ask(connection, "What grew in the ten minutes before?")[0]
            assert (grown["pid"], grown["session"]) == (pid, "export")
            assert size(connection, grown["least"]) < 20 * MB < 70 * MB < size(connection, grown["most"])
            first = ask(connection, "Which application's memory has doubled since yesterday?")[0]
            assert first["application"] == "export" and first["before"] is None
            assert size(connection, first["since"]) > 70 * MB
            tightest, *_ = ask(connection, "When was it last this tight?")
            # Both are rounded, to whole GB from 10 GB on.
            assert size(connection, tightest["headroom"]) <= size(connection, tightest["memory_limit"])
            assert connection.execute("SELECT bool_and(headroom < memory_limit) FROM pg_meminfo_history").fetchone() == (True,)
