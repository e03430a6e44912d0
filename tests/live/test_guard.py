"""The guard: limits of sessions, the brake, and whose statement is ended."""

import contextlib
import os
import pathlib
import re
import signal
import subprocess
import sys
import threading

import psycopg
import pytest
from conftest import (
    OOM_ADJUST,
    PATIENCE,
    PRELOADED,
    insert_in_pieces,
    limited,
    private,
    protect,
    rows,
    start_cluster,
    wait_until,
)
from eaters import EATERS, SETTINGS

MB = 2**20

FAST = "pg_meminfo.sample_interval = 50"
LIMIT = "pg_meminfo.session_memory_limit"
UNLIMITED = None


@pytest.fixture(scope="module")
def preloaded():
    """A cluster in which nothing is limited."""
    with start_cluster(PRELOADED, FAST, "autovacuum = off") as cluster:
        yield cluster


def limit(pid):
    """The soft limit on the data size of a process, in bytes, as the kernel has it. None if there is none."""
    lines = pathlib.Path(f"/proc/{pid}/limits").read_text()
    soft = re.search(r"^Max data size +(\S+)", lines, re.MULTILINE)[1]
    return None if soft == "unlimited" else int(soft)


def pid_of(connection):
    return connection.info.backend_pid


def hold(session, megabytes):
    """Lets a session hold private memory. Custom settings are kept in the heap."""
    for nth in range(megabytes // 5):
        session.execute("SELECT length(set_config(%s, repeat('x', 5242880), false))", [f"my.held{nth}"])


@contextlib.contextmanager
def connect_raw(cluster, **parameters):
    """A session whose results are not all read."""
    session = cluster.connect(**parameters)
    try:
        yield session
    finally:
        session.pgconn.finish()


def guard(connection):
    return rows(connection.execute("SELECT * FROM pg_meminfo_guard"))[0]


def causes(connection):
    return [cause for (cause,) in connection.execute("SELECT cause FROM pg_meminfo_incidents")]


# A session's own limit


@pytest.mark.kernels
@pytest.mark.trials
@pytest.mark.parametrize("name", EATERS)
def test_a_statement_gets_an_error_at_the_limit(preloaded, name):
    with preloaded.connect(*SETTINGS) as session:
        session.execute(f"SET {LIMIT} = '100MB'")
        with pytest.raises(psycopg.errors.OutOfMemory) as raised:
            session.execute(EATERS[name])
        diagnostic = raised.value.diag
        assert diagnostic.message_primary == "out of memory"
        detail = re.fullmatch(
            r"Failed [^.]*\. (?:This session has (\d+) MB of private memory\. )?pg_meminfo.session_memory_limit is 100 MB\.",
            diagnostic.message_detail,
        )
        # PL/pgSQL can have freed it before.
        assert (detail[1] or name == "plpgsql") and int(detail[1] or 0) <= 100
        assert diagnostic.message_hint == "Lower work_mem, process fewer rows at a time, or raise pg_meminfo.session_memory_limit."
        # The session lives on, and what it had is free again.
        assert session.execute("SELECT length(repeat('x', 10000000))").fetchone() == (10**7,)
        assert preloaded.log_has("pg_meminfo.session_memory_limit is 100 MB.")


def test_refusals_are_counted(preloaded):
    with preloaded.connect(*SETTINGS, f"{LIMIT}=64MB") as session:
        before = guard(session)["refusals"]
        with pytest.raises(psycopg.errors.OutOfMemory):
            session.execute(EATERS["blocks"])
        assert guard(session)["refusals"] == before + 1 and guard(session)["session_memory_limit"] == 64 * MB
        pid = pid_of(session)
        wait_until(lambda: session.execute("SELECT count(*) FROM pg_meminfo_incidents WHERE pid = %s", [pid]).fetchone() == (1,))
        [incident] = rows(session.execute("SELECT * FROM pg_meminfo_incidents WHERE pid = %s", [pid]))
        assert incident["cause"] == "refusal" and 0 < incident["private"] <= 64 * MB
        # Not what the session has executed since.
        assert incident["query"] in (EATERS["blocks"], None)
        assert preloaded.log_has(f"process {pid} had ")


def test_a_refusal_is_an_incident_although_the_session_disconnects_at_once():
    with start_cluster(PRELOADED, "pg_meminfo.sample_interval = '2s'", "autovacuum = off") as cluster, cluster.connect() as connection:
        refused = []
        for _ in range(3):
            with cluster.connect(*SETTINGS, f"{LIMIT}=64MB") as session:
                refused.append(pid_of(session))
                with pytest.raises(psycopg.errors.OutOfMemory):
                    session.execute(EATERS["blocks"])
            # Another session takes the slot of the last one before the next sample.
            with cluster.connect(f"{LIMIT}=64MB"):
                wait_until(lambda: len(causes(connection)) == len(refused))
        incidents = connection.execute("SELECT cause, pid FROM pg_meminfo_incidents ORDER BY at").fetchall()
        assert incidents == [("refusal", pid) for pid in refused]


def test_a_failed_allocation_that_is_not_for_the_limit_says_nothing_of_it(preloaded):
    """Another limit of the kernel: on the whole address space."""
    with preloaded.connect(*SETTINGS, f"{LIMIT}=30GB") as session:
        pid = pid_of(session)
        status = pathlib.Path(f"/proc/{pid}/status").read_text()
        size = int(re.search(r"^VmSize:\s+(\d+) kB$", status, re.MULTILINE)[1]) * 1024
        # Its own user may do so.
        owner = preloaded.data.stat()
        command = ["prlimit", f"--pid={pid}", f"--as={size + 100 * MB}"]
        subprocess.run(command, user=owner.st_uid, group=owner.st_gid, extra_groups=[], check=True)
        with pytest.raises(psycopg.errors.OutOfMemory) as raised:
            session.execute(EATERS["blocks"])
        assert raised.value.diag.message_hint is None and "pg_meminfo" not in raised.value.diag.message_detail


def test_an_exception_handler_catches_it(preloaded):
    with preloaded.connect(*SETTINGS, f"{LIMIT}=100MB") as session:
        session.execute(f"""DO $$ BEGIN
            BEGIN EXECUTE {psycopg.sql.quote(EATERS["array_agg"])}; RAISE 'not refused';
            EXCEPTION WHEN out_of_memory THEN RAISE NOTICE 'caught'; END; END $$""")


def test_where_the_limit_comes_from(preloaded):
    with preloaded.connect() as connection:
        assert limit(pid_of(connection)) is UNLIMITED
        connection.execute("CREATE ROLE limited LOGIN")
        connection.execute("CREATE DATABASE limits")
        try:
            connection.execute(f"ALTER ROLE limited SET {LIMIT} = '200MB'")
            connection.execute(f"ALTER DATABASE limits SET {LIMIT} = '300MB'")
            with preloaded.connect(user="limited") as session:
                assert limit(pid_of(session)) == 200 * MB
                # Nobody raises it for himself.
                for statement in f"SET {LIMIT} = -1", f"SET {LIMIT} = '1GB'", f"RESET {LIMIT}":
                    with pytest.raises(psycopg.errors.InsufficientPrivilege):
                        session.execute(statement)
                assert limit(pid_of(session)) == 200 * MB
            with preloaded.connect(dbname="limits") as session:
                assert limit(pid_of(session)) == 300 * MB
                session.execute(f"SET {LIMIT} = -1")
                assert limit(pid_of(session)) is UNLIMITED
                session.execute(f"RESET {LIMIT}")
                assert limit(pid_of(session)) == 300 * MB
                with session.transaction(force_rollback=True):
                    session.execute(f"SET LOCAL {LIMIT} = '100MB'")
                    assert limit(pid_of(session)) == 100 * MB
                assert limit(pid_of(session)) == 300 * MB
        finally:
            connection.execute("DROP DATABASE limits WITH (FORCE)")
            connection.execute("DROP ROLE limited")


def limits_of_others(cluster):
    """The limits of the processes of a cluster that serve no client, and of the postmaster."""
    limits = {limit(cluster.postmaster)}
    with cluster.connect() as connection:
        # Parallel workers may still be exiting.
        query = "SELECT pid FROM pg_stat_activity WHERE backend_type NOT IN ('client backend', 'parallel worker')"
        pids = [pid for (pid,) in connection.execute(query)]
    assert len(pids) >= 4
    for pid in pids:
        # A worker of autovacuum may have exited.
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            limits.add(limit(pid))
    return limits


def test_the_configuration_limits_sessions_and_nobody_else():
    with start_cluster(PRELOADED, FAST, f"{LIMIT} = 150MB") as cluster, cluster.connect() as session:
        assert limit(pid_of(session)) == 150 * MB
        with cluster.running_in_parallel(session) as leader:
            workers = session.execute("SELECT pid FROM pg_stat_activity WHERE leader_pid = %s", [leader]).fetchall()
            # A worker gets its settings after it is in pg_stat_activity.
            wait_until(lambda: {limit(pid) for (pid,) in workers} == {limit(leader)} == {150 * MB})
        sender = cluster.connect(replication="true", dbname="")
        sender_pid = pid_of(sender)
        assert limit(sender_pid) is UNLIMITED
        sender.close()
        wait_until(lambda: not os.path.exists(f"/proc/{sender_pid}"))
        assert limits_of_others(cluster) == {UNLIMITED}


def test_a_reload_changes_it(preloaded):
    with preloaded.connect() as connection, preloaded.connect() as session:
        for value, expected in ("170MB", 170 * MB), ("-1", UNLIMITED):
            connection.execute(f"ALTER SYSTEM SET {LIMIT} = '{value}'")
            connection.execute("SELECT pg_reload_conf()")

            def has_been_told(expected=expected):
                # A session takes note with its next statement.
                session.execute("SELECT 1")
                return limit(pid_of(session)) == expected

            wait_until(has_been_told)
            with preloaded.connect() as new:
                wait_until(lambda new=new, expected=expected: limit(pid_of(new)) == expected)
        assert limits_of_others(preloaded) == {UNLIMITED}


def test_a_parallel_worker_has_the_limit_that_its_leader_has_set(preloaded):
    with preloaded.connect() as connection:
        settings = ["parallel_setup_cost=0", "parallel_tuple_cost=0", "min_parallel_table_scan_size=0", "work_mem=16GB"]
        connection.execute("CREATE TABLE grouped AS SELECT n, repeat('x', 100) || n AS x FROM generate_series(1, 1000000) AS n")
        connection.execute("ANALYZE grouped")
        with preloaded.connect(*settings, "enable_sort=off", "max_parallel_workers_per_gather=2") as session:
            session.execute(f"SET {LIMIT} = '64MB'")
            query = "SELECT count(*) FROM (SELECT x, array_agg(n) FROM grouped GROUP BY x) AS s"
            with pytest.raises(psycopg.errors.OutOfMemory) as raised:
                session.execute(query)
            assert "pg_meminfo.session_memory_limit is 64 MB" in raised.value.diag.message_detail
            session.execute(f"SET {LIMIT} = -1")
            assert session.execute(query).fetchone() == (1000000,)
        connection.execute("DROP TABLE grouped")


# Fills the session up to its limit with what lives longer than a statement.
FILL = """DO $$ DECLARE s int; n int := 0; failures int; BEGIN
    FOREACH s IN ARRAY ARRAY[100000, 20000, 3000, 400, 60] LOOP
        failures := 0;
        LOOP
            n := n + 1;
            EXIT WHEN n > 6000;
            BEGIN PERFORM set_config('fill.v' || n, repeat('x', s), false);
            EXCEPTION WHEN out_of_memory THEN failures := failures + 1; END;
            EXIT WHEN failures > 4;
        END LOOP;
    END LOOP;
END $$"""


ENDS = "COMMIT", "ROLLBACK", "PREPARE TRANSACTION 'prepared'", "SELECT 1 / 0", "disconnect", "disconnect with a temporary table"


@pytest.mark.parametrize("end", ENDS)
def test_a_transaction_ends_well_at_the_limit(end):
    """It needs memory to remove files. Without it, Postgres would have no way out but a PANIC."""
    many = "DO $$ BEGIN FOR n IN 1..3000 LOOP EXECUTE format({!r}, n); END LOOP; END $$"
    settings = ["max_locks_per_transaction = 500", "max_prepared_transactions = 1", "autovacuum = off", "fsync = off"]
    with start_cluster(PRELOADED, FAST, *settings) as cluster, cluster.connect() as bystander:
        session = cluster.connect()
        session.execute("CREATE TABLE emptied (x int)")
        session.execute(f"SET {LIMIT} = '64MB'")
        if end == "disconnect with a temporary table":
            session.execute("CREATE TEMP TABLE many (x int)")
        session.execute("BEGIN")
        session.execute(many.format("CREATE TABLE many%s (x int)"))
        if end in ("COMMIT", "PREPARE TRANSACTION 'prepared'"):
            session.execute(many.format("DROP TABLE many%s"))
        session.execute(FILL)
        if end.startswith("disconnect"):
            session.pgconn.finish()
        else:
            with contextlib.suppress(psycopg.errors.DivisionByZero, psycopg.errors.OutOfMemory):
                session.execute(end)
            if end == "SELECT 1 / 0":
                session.execute("ROLLBACK")
            # The limit is in force again.
            session.execute("SELECT 1")
            assert limit(pid_of(session)) == 64 * MB
            if end.startswith("PREPARE"):
                session.execute("COMMIT PREPARED 'prepared'")
        left = "SELECT count(*) FROM pg_class WHERE relname LIKE 'many%'"
        wait_until(lambda: bystander.execute(left).fetchone() == (0,))
        assert not cluster.log_has("PANIC") and not cluster.log_has("was terminated by signal")


def test_a_transaction_that_goes_on_keeps_its_limit(preloaded):
    with preloaded.connect() as session:
        session.execute(f"SET {LIMIT} = '100MB'")
        for statement in "BEGIN", "SAVEPOINT s", "RELEASE s":
            session.execute(statement)
            assert limit(pid_of(session)) == 100 * MB, statement


def test_an_error_outside_of_a_transaction_keeps_the_limit(preloaded):
    with preloaded.connect() as session:
        session.execute(f"SET {LIMIT} = '64MB'")
        with pytest.raises(psycopg.errors.OutOfMemory):
            session.execute("SELECT length('" + "x" * (200 * MB) + "')")
        assert limit(pid_of(session)) == 64 * MB


def test_a_limit_of_the_server_is_never_raised():
    within = ["sh", "-c", 'ulimit -S -d 1000000; exec "$@"', "sh"]
    with start_cluster(PRELOADED, FAST, "pg_meminfo.min_headroom = 1MB", within=within) as cluster, cluster.connect() as session:
        assert limit(pid_of(session)) == 1000000 * 1024
        for value, expected in ("30GB", 1000000 * 1024), ("100MB", 100 * MB), ("-1", 1000000 * 1024):
            session.execute(f"SET {LIMIT} = '{value}'")
            assert limit(pid_of(session)) == expected


def test_it_needs_no_recorder():
    with start_cluster(PRELOADED, "pg_meminfo.recorder = off", f"{LIMIT} = 100MB") as cluster, cluster.connect(*SETTINGS) as session:
        with pytest.raises(psycopg.errors.OutOfMemory) as raised:
            session.execute(EATERS["repeat"])
        assert "pg_meminfo.session_memory_limit is 100 MB" in raised.value.diag.message_detail
        row = guard(session)
        assert row["recorder_pid"] is None and row["headroom"] is None and row["guard_action"] is None


@pytest.mark.parametrize(
    ("setting", "valid", "invalid"),
    [
        (LIMIT, ["-1", "64MB", "1TB"], ["0", "63MB", "-2"]),
        ("pg_meminfo.min_headroom", ["-1", "0", "10%", "12.5 %", "2GB", "1000"], ["-2", "101%", "-1%", "%", "NaN%", "much", "", "1 2%"]),
        ("pg_meminfo.guard_action", ["log", "brake", "cancel", "terminate"], ["off", "kill"]),
    ],
)
def test_values_of_settings(preloaded, setting, valid, invalid):
    with preloaded.connect() as connection:
        for value in valid:
            connection.execute(f"ALTER SYSTEM SET {setting} = '{value}'")
        for value in invalid:
            with pytest.raises(psycopg.errors.InvalidParameterValue):
                connection.execute(f"ALTER SYSTEM SET {setting} = '{value}'")
        connection.execute(f"ALTER SYSTEM RESET {setting}")


def test_it_needs_the_library_preloaded(connection):
    with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState):
        connection.execute("SELECT * FROM pg_meminfo_guard")


def test_who_may_read_it(preloaded):
    with preloaded.connect() as connection, connection.transaction(force_rollback=True):
        connection.execute("CREATE ROLE nobody")
        connection.execute("SET ROLE nobody")
        with pytest.raises(psycopg.errors.InsufficientPrivilege), connection.transaction():
            connection.execute("SELECT * FROM pg_meminfo_guard")


# The brake, and orders. All of this is in a cgroup, where only what a test does is counted.


@contextlib.contextmanager
def guarded(*settings, megabytes=500, headroom="20%"):
    """A cluster within a cgroup, and a function that lets another program in it hold memory until the block ends."""
    settings = [PRELOADED, FAST, "shared_buffers = 16MB", "autovacuum = off", f"pg_meminfo.min_headroom = '{headroom}'", *settings]
    with contextlib.ExitStack() as stack:
        _, within = stack.enter_context(limited(megabytes))
        cluster = stack.enter_context(start_cluster(*settings, within=within, **OOM_ADJUST))
        protect(cluster)

        def eat_elsewhere(megabytes):
            script = "import sys; held = bytearray(int(sys.argv[1])); held[::4096] = b'x' * len(held[::4096]); print(flush=True); sys.stdin.read()"
            command = [*within, sys.executable, "-c", script, str(megabytes * MB)]
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            stack.callback(process.wait)
            stack.callback(process.stdin.close)
            assert process.stdout.readline()
            return process

        with cluster.connect() as connection:
            wait_until(lambda: guard(connection)["headroom"] is not None)
        yield cluster, eat_elsewhere


def answer(session):
    """The next result of what was sent to a session."""

    def has_come():
        session.pgconn.consume_input()
        return not session.pgconn.is_busy()

    wait_until(has_come)
    return session.pgconn.get_result()


def use_up(connection, eat_elsewhere, left):
    """Lets another program hold all but so many MB."""
    # What is only in the page cache counts as left, and can be taken at once only if it is on disk.
    os.sync()
    [(headroom,)] = connection.execute("SELECT headroom FROM pg_meminfo_host")
    return eat_elsewhere(headroom // MB - left)


@pytest.mark.kernels
@pytest.mark.trials
@pytest.mark.parametrize("action", ["brake", "cancel"])
def test_whoever_eats_gets_an_error_and_the_server_survives(action):
    with guarded(f"pg_meminfo.guard_action = {action}") as (cluster, _), cluster.connect() as bystander:
        postmaster_start = bystander.execute("SELECT pg_postmaster_start_time()").fetchone()
        hold(bystander, 10)
        for name in EATERS:
            with cluster.connect(*SETTINGS, application_name=name) as session:
                with pytest.raises((psycopg.errors.OutOfMemory, psycopg.errors.QueryCanceled)) as raised:
                    session.execute(EATERS[name])
                diagnostic = raised.value.diag
                assert diagnostic.message_hint == "Lower work_mem, or process fewer rows at a time. See pg_meminfo_guard.", name
                if name != "plpgsql":
                    assert re.search(r"This session (has|held) \d+ MB of private memory", diagnostic.message_detail), name
                assert re.search(r"\d+ MB of 500 MB", diagnostic.message_detail), name
                assert session.execute("SELECT 1").fetchone() == (1,)
        assert bystander.execute("SELECT length(current_setting('my.held1'))").fetchone() == (5 * MB,)
        assert bystander.execute("SELECT pg_postmaster_start_time()").fetchone() == postmaster_start
        # With cancel, all of them may have been canceled before they were refused more.
        ends = {"refusal"} if action == "brake" else {"refusal", "cancel"}
        wait_until(lambda: not ends.isdisjoint(causes(bystander)))
        assert not {"oom kill", "kill", "crash"} & set(causes(bystander))


def test_parallel_workers_are_held_back():
    settings = ["parallel_setup_cost=0", "parallel_tuple_cost=0", "min_parallel_table_scan_size=0", "parallel_leader_participation=off"]
    with guarded("pg_meminfo.guard_action = brake") as (cluster, _), cluster.connect() as connection:
        connection.execute("CREATE TABLE many AS SELECT generate_series(1, 1000) AS n")
        # So slowly that a sample sees both grow, and divides what is left between them.
        connection.execute("""CREATE FUNCTION eats() RETURNS int LANGUAGE plpgsql PARALLEL SAFE AS $$ DECLARE held text[]; BEGIN
            FOR n IN 1..30000 LOOP held[n] := repeat('x', 1000000); PERFORM pg_sleep(0.01); END LOOP; RETURN 1; END $$""")
        with cluster.connect(*settings, "max_parallel_workers_per_gather=2") as session:
            with pytest.raises(psycopg.errors.OutOfMemory) as raised:
                session.execute("SELECT count(eats()) FROM many")
            assert "parallel worker" in raised.value.diag.context
            assert raised.value.diag.message_hint == "Lower work_mem, or process fewer rows at a time. See pg_meminfo_guard."
        assert connection.execute("SELECT 1").fetchone() == (1,)


@pytest.mark.one_major
def test_page_cache_is_no_shortage():
    """It fills whatever a cgroup has, and the kernel takes it back when memory is needed."""
    with guarded("pg_meminfo.guard_action = cancel") as (cluster, _), cluster.connect() as connection:
        connection.execute("CREATE UNLOGGED TABLE large (t text)")
        insert_in_pieces(connection, ["INSERT INTO large SELECT repeat('x', 1000) FROM generate_series(1, 25000)"] * 18)
        # What has been read again is active.
        for _ in range(3):
            connection.execute("SELECT count(*) FROM large")
        # That of pg_meminfo_host leaves out what is active.
        [(headroom, at)] = connection.execute("SELECT headroom, now() FROM pg_meminfo_host").fetchall()
        wait_until(lambda: connection.execute("SELECT count(*) > 3 FROM pg_meminfo_history WHERE at > %s", [at]).fetchone() == (True,))
        assert guard(connection)["headroom"] > headroom + 80 * MB and not guard(connection)["is_short"]
        # Whoever takes all of it is refused more in time, although the kernel has to take the cache back first.
        for name in EATERS:
            with cluster.connect(*SETTINGS) as session, pytest.raises((psycopg.errors.OutOfMemory, psycopg.errors.QueryCanceled)):
                session.execute(EATERS[name])
        assert connection.execute("SELECT count(*) FROM large").fetchone() == (450000,)


def test_several_that_eat_at_once():
    # So much that a sample sees them all grow before it is used up. An array_agg would come to its own limit of 1 GB.
    with guarded(megabytes=1000) as (cluster, _), cluster.connect() as bystander:
        outcomes = []
        # A session that comes when the others have eaten has the floor of the limits, which is more than is left.
        all_there = threading.Barrier(4, timeout=60 * PATIENCE)

        def eat(name):
            try:
                with cluster.connect(*SETTINGS) as session:
                    all_there.wait()
                    session.execute(EATERS[name])
            except psycopg.Error as error:
                outcomes.append(error.sqlstate)

        threads = [threading.Thread(target=eat, args=[name]) for name in ("hashagg", "sort", "jsonb", "repeat")]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        # None was cut off by a restart.
        assert len(outcomes) == 4 and set(outcomes) <= {"53200", "57014"}
        assert bystander.execute("SELECT 1").fetchone() == (1,)


def test_a_session_is_canceled_when_others_take_the_memory():
    """RLIMIT_DATA does not help against what is not private memory of sessions."""
    with guarded() as (cluster, eat_elsewhere), cluster.connect() as connection:
        with connect_raw(cluster, application_name="small") as small, connect_raw(cluster, application_name="large") as large:
            hold(small, 20)
            hold(large, 150)
            for session in small, large:
                session.pgconn.send_query(b"SELECT pg_sleep(1000)")
            sleeping = "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND wait_event = 'PgSleep'"
            wait_until(lambda: connection.execute(sleeping).fetchone() == (2,))
            assert private(pid_of(large)) > 140 * MB
            use_up(connection, eat_elsewhere, 30)
            result = answer(large)
            texts = [result.error_field(field).decode() for field in (b"CMDH"[nth] for nth in range(4))]
            code, message, detail, hint = texts
            assert (code, message) == ("57014", "canceling statement because the server is running out of memory")
            assert re.fullmatch(r"This session held 1\d\d MB of private memory when \d+ MB of 500 MB was left\.", detail)
            assert hint == "Lower work_mem, or process fewer rows at a time. See pg_meminfo_guard."
            # The other one goes on.
            small.pgconn.consume_input()
            assert small.pgconn.is_busy()
            row = guard(connection)
            assert row["is_short"] and row["cancels"] == 1 and row["acted_on"] == pid_of(large) and row["terminations"] == 0
            wait_until(lambda: "cancel" in causes(connection))
            incident = rows(connection.execute("SELECT * FROM pg_meminfo_incidents WHERE cause = 'cancel'"))[0]
            assert (incident["pid"], incident["application_name"]) == (pid_of(large), "large")
            assert incident["private"] > 140 * MB and incident["query"] == "SELECT pg_sleep(1000)"
            assert cluster.log_has(f"canceling the statement of process {pid_of(large)}, which holds 1")
            assert cluster.log_has("memory is running out: ")
            small.cancel()
            for session in small, large:
                while session.pgconn.get_result():
                    pass
            # A cancel by somebody else keeps its text.
            small.pgconn.send_query(b"SELECT pg_sleep(1000)")
            active = "SELECT state = 'active' FROM pg_stat_activity WHERE pid = %s"
            wait_until(lambda: connection.execute(active, [pid_of(small)]).fetchone()[0])
            small.cancel()
            assert answer(small).error_field(ord("M")) == b"canceling statement due to user request"


def test_nobody_is_ended_if_the_shortage_is_not_ours():
    with guarded("pg_meminfo.guard_action = terminate") as (cluster, eat_elsewhere), cluster.connect() as connection:
        with cluster.connect() as session:
            hold(session, 20)
            use_up(connection, eat_elsewhere, 30)
            wait_until(lambda: cluster.log_has("memory is running out, but no session that may be canceled holds a tenth of it"))
            assert guard(connection)["is_short"]
            assert session.execute("SELECT 1").fetchone() == (1,)
            row = guard(connection)
            assert (row["cancels"], row["terminations"]) == (0, 0)


def test_an_exempt_role_is_left_alone():
    with guarded("pg_meminfo.guard_action = terminate", megabytes=800) as (cluster, eat_elsewhere), cluster.connect() as connection:
        connection.execute("CREATE ROLE exempt LOGIN SUPERUSER")
        connection.execute("ALTER ROLE exempt SET pg_meminfo.guard_exempt = on")
        with cluster.connect(user="exempt") as exempt, cluster.connect() as other:
            hold(exempt, 150)
            # So little that memory stays short when it has gone. A second shortage would be the last that was acted on.
            hold(other, 90)
            wait_until(lambda: limit(pid_of(other)) is not UNLIMITED)
            assert limit(pid_of(exempt)) is UNLIMITED
            pid = pid_of(other)
            use_up(connection, eat_elsewhere, 50)
            # An idle session that holds enough is terminated, for want of a statement.
            wait_until(lambda: guard(connection)["terminations"] == 1)
            with pytest.raises(psycopg.OperationalError, match="terminating connection because the server is running out of memory"):
                other.execute("SELECT 1")
            assert exempt.execute("SELECT 1").fetchone() == (1,)
            assert guard(connection)["acted_on"] == pid
            wait_until(lambda: "terminate" in causes(connection))


def test_one_that_does_not_obey_is_terminated():
    with guarded("pg_meminfo.guard_action = terminate") as (cluster, eat_elsewhere), cluster.connect() as connection:
        with connect_raw(cluster) as session:
            hold(session, 150)
            block = "DO $$ BEGIN LOOP BEGIN PERFORM pg_sleep(1000); EXCEPTION WHEN query_canceled THEN END; END LOOP; END $$"
            session.pgconn.send_query(block.encode())
            sleeping = "SELECT wait_event = 'PgSleep' FROM pg_stat_activity WHERE pid = %s"
            wait_until(lambda: connection.execute(sleeping, [pid_of(session)]).fetchone()[0])
            use_up(connection, eat_elsewhere, 30)
            message = answer(session).error_field(ord("M"))
            assert message == b"terminating connection because the server is running out of memory"
            row = guard(connection)
            # The block has caught the cancel.
            assert (row["cancels"], row["terminations"]) == (0, 1)
            wait_until(lambda: {"cancel", "terminate"} <= set(causes(connection)))


def test_the_brake_limits_sessions_and_nobody_else():
    with guarded("pg_meminfo.guard_action = brake") as (cluster, eat_elsewhere), cluster.connect() as connection:
        with cluster.connect() as session:
            pid = pid_of(session)
            wait_until(lambda: limit(pid) is not UNLIMITED)
            wide = limit(pid)
            wait_until(lambda: guard(connection)["limited"] >= 2)
            row = guard(connection)
            assert not row["is_short"] and row["guard_action"] == "brake"
            assert abs(row["min_headroom"] - 100 * MB) < MB and row["memory_limit"] == 500 * MB
            # Its own limit, if that is lower.
            session.execute(f"SET {LIMIT} = '70MB'")
            assert limit(pid) == 70 * MB
            session.execute(f"SET {LIMIT} = -1")
            wait_until(lambda: limit(pid) > 100 * MB)
            hold(session, 80)
            eater = use_up(connection, eat_elsewhere, 90)
            wait_until(lambda: guard(connection)["is_short"])
            wait_until(lambda: limit(pid) < wide)
            assert limit(pid) >= 64 * MB
            # What it has can still be used, and a little more.
            assert session.execute("SELECT count(*) FROM pg_class").fetchone()[0] > 0
            # One that starts now is limited from the start.
            with cluster.connect() as new:
                assert limit(pid_of(new)) is not UNLIMITED
            assert limits_of_others(cluster) == {UNLIMITED}
            wait_until(lambda: "brake" in causes(connection))
            eater.stdin.close()
            eater.wait()
            wait_until(lambda: not guard(connection)["is_short"])
            wait_until(lambda: limit(pid) > 200 * MB)


def test_limits_end_with_the_recorder():
    with guarded("pg_meminfo.guard_action = brake") as (cluster, _), cluster.connect() as connection, cluster.connect() as session:
        pid = pid_of(session)
        wait_until(lambda: limit(pid) is not UNLIMITED)
        recorder = guard(connection)["recorder_pid"]
        # Until the postmaster goes on, there is no other.
        os.kill(cluster.postmaster, signal.SIGSTOP)
        try:
            connection.execute("SELECT pg_terminate_backend(%s)", [recorder])
            wait_until(lambda: limit(pid) is UNLIMITED)
            wait_until(lambda: guard(connection)["recorder_pid"] is None)
        finally:
            os.kill(cluster.postmaster, signal.SIGCONT)
        wait_until(lambda: guard(connection)["recorder_pid"] not in (None, recorder))
        wait_until(lambda: limit(pid) is not UNLIMITED)


def test_a_percentage_is_of_the_limit_and_a_reload_is_obeyed(preloaded):
    with preloaded.connect() as connection, preloaded.connect() as session:
        pid = pid_of(session)

        def change(setting, value):
            connection.execute(f"ALTER SYSTEM SET pg_meminfo.{setting} = '{value}'")
            connection.execute("SELECT pg_reload_conf()")

        change("min_headroom", "5%")
        wait_until(lambda: limit(pid) is not UNLIMITED)
        row = guard(connection)
        assert abs(row["min_headroom"] - row["memory_limit"] * 0.05) < MB and row["guard_action"] == "cancel"
        change("guard_action", "log")
        wait_until(lambda: limit(pid) is UNLIMITED)
        change("guard_action", "brake")
        wait_until(lambda: limit(pid) is not UNLIMITED)
        change("min_headroom", "-1")
        wait_until(lambda: limit(pid) is UNLIMITED)
        wait_until(lambda: guard(connection)["guard_action"] is None)
        # More than there is: memory is always short. Only the log says so.
        change("guard_action", "log")
        change("min_headroom", "1TB")
        wait_until(lambda: guard(connection)["is_short"])
        assert limit(pid) is UNLIMITED
        wait_until(lambda: "min headroom" in causes(connection))
        for setting in "min_headroom", "guard_action":
            connection.execute(f"ALTER SYSTEM RESET pg_meminfo.{setting}")
        connection.execute("SELECT pg_reload_conf()")
        wait_until(lambda: guard(connection)["is_short"] is None)
