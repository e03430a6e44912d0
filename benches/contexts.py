"""Measures pg_meminfo_contexts(pid) in the cluster of scripts/with-cluster: what it costs, how many passes it takes if
the process is busy, and how much work a process gets done while it is read.

    contexts.py rounds
"""

import contextlib
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time

import psycopg
from polling import cpu_time

# How many contexts an idle session has at least. A prepared statement adds two.
CONTEXTS = [0, 2_000, 50_000]

# How often busy sessions are looked at, and how long a look may take before the next one begins.
LOOKS = 1000
INTERVAL = 0.01

SCHEMA = """
CREATE TABLE numbers AS SELECT generate_series(1, 10000) AS n;
CREATE TABLE partitioned (n int) PARTITION BY RANGE (n);
DO $$ BEGIN
    FOR n IN 1..1000 LOOP
        EXECUTE format('CREATE TABLE partition_%s PARTITION OF partitioned FOR VALUES FROM (%s) TO (%s)', n, n, n + 1);
    END LOOP;
END $$;
CREATE FUNCTION work_of_statements(rounds int) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    FOR i IN 1..rounds LOOP
        PERFORM count(*) FROM pg_class WHERE relname = 'x';
    END LOOP;
END $$;
CREATE FUNCTION work_of_a_loop(rounds int) RETURNS int LANGUAGE plpgsql AS $$
DECLARE n int := 0;
BEGIN
    FOR i IN 1..rounds LOOP
        n := 1 - n;
    END LOOP;
    RETURN n;
END $$;
"""

# Scripts of pgbench, one client each.
BUSY = {
    "one small SELECT": "SELECT abalance FROM pgbench_accounts WHERE aid = 1;",
    "TPC-B": None,
    "dynamic SQL and subtransactions": r"""\set n random(1, 1000000)
DO $$ DECLARE n int := 0; BEGIN FOR n IN 1..20 LOOP
    BEGIN EXECUTE format('SELECT %s', n); EXCEPTION WHEN division_by_zero THEN END; END LOOP; END $$;""",
    "PREPARE, EXECUTE, DEALLOCATE": """PREPARE q AS SELECT count(*) FROM numbers WHERE n < $1;
EXECUTE q (10);
DEALLOCATE q;""",
    "1,000 partitions": r"""\set n random(1, 1000)
SELECT count(*) FROM partitioned WHERE n <= :n;""",
}

# The work of a target, and for how many rounds one block of it goes on.
WORK = {
    "a PL/pgSQL loop without statements": ("SELECT work_of_a_loop(%s)", 4_000_000),
    "a PL/pgSQL loop of small statements": ("SELECT work_of_statements(%s)", 25_000),
}


class Looks:
    """Looks of one session at another, with the passes that each took."""

    PASSES = re.compile(r"in ([0-9]+) passes|each of ([0-9]+) attempts")

    def __init__(self, connection, pid):
        self.connection, self.pid = connection, pid
        self.times, self.passes, self.given_up = [], [], 0
        connection.execute("SET client_min_messages = debug1")
        connection.add_notice_handler(self.take_notice)

    def take_notice(self, notice):
        if found := self.PASSES.search(notice.message_primary):
            self.passes.append(int(found[1] or found[2]))
            self.given_up += bool(found[2])

    def look(self):
        start = time.perf_counter()
        self.connection.execute("SELECT count(c) FROM pg_meminfo_contexts(%s) c", [self.pid])
        self.times.append(time.perf_counter() - start)

    def close(self):
        self.connection.remove_notice_handler(self.take_notice)


def print_line(name, cells):
    print(f"{name:<38}" + "".join(f"{cell:>12}" for cell in cells), flush=True)


def of_sorted(values, share):
    return sorted(values)[min(int(len(values) * share), len(values) - 1)]


def measure_cost(connection, rounds):
    print("\none call for an idle session\n")
    print_line("contexts", ["median ms", "least", "most", "us/context"])
    for count in CONTEXTS:
        with psycopg.connect(autocommit=True) as session:
            pid = session.info.backend_pid
            if count:
                prepare = "EXECUTE format('PREPARE p%s AS SELECT %s', n, n)"
                session.execute(f"DO $$ BEGIN FOR n IN 1..{count // 2} LOOP {prepare}; END LOOP; END $$")
            contexts = connection.execute("SELECT count(*) FROM pg_meminfo_contexts(%s)", [pid]).fetchone()[0]
            looks = Looks(connection, pid)
            for _ in range(10 * rounds):
                looks.look()
            looks.close()
            median, least, most = statistics.median(looks.times), min(looks.times), max(looks.times)
            each = (median - 0.0001) / contexts
            print_line(f"{contexts:,}", [f"{median * 1e3:.2f}", f"{least * 1e3:.2f}", f"{most * 1e3:.2f}", f"{each * 1e6:.2f}"])


@contextlib.contextmanager
def pgbench(script):
    """One client that works without a pause. Yields the pid of its session."""
    with tempfile.NamedTemporaryFile("w", suffix=".sql") as file:
        file.write(script or "")
        file.flush()
        what = ["-f", file.name] if script else ["-b", "tpcb-like"]
        command = ["pgbench", "-n", "-c", "1", "-T", "1000", *what]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            yield wait_for_session("pgbench")
        finally:
            process.terminate()
            process.wait()


@contextlib.contextmanager
def client_with_prepared_statements():
    """A client that always keeps 300 prepared statements, and replaces the oldest one by a new one."""
    stop = threading.Event()
    session = psycopg.connect(autocommit=True)

    def work():
        number = 0
        while not stop.is_set():
            session.execute(f"PREPARE q{number} AS SELECT {number}, count(*) FROM numbers WHERE n < $1")
            session.execute(f"EXECUTE q{number} (10)")
            if number >= 300:
                session.execute(f"DEALLOCATE q{number - 300}")
            number += 1

    thread = threading.Thread(target=work)
    thread.start()
    time.sleep(1)
    try:
        yield session.info.backend_pid
    finally:
        stop.set()
        thread.join()
        session.close()


def wait_for_session(name):
    with psycopg.connect(autocommit=True) as connection:
        while True:
            query = "SELECT pid FROM pg_stat_activity WHERE application_name = %s AND backend_type = 'client backend'"
            if row := connection.execute(query, [name]).fetchone():
                time.sleep(0.5)
                return row[0]
            time.sleep(0.05)


def measure_passes(connection):
    print(f"\nbusy sessions, {LOOKS} looks at each\n")
    print_line("", ["on CPU", "median ms", "90 %", "most", "passes", "90 %", "most", "given up"])
    sessions = {name: pgbench(script) for name, script in BUSY.items()}
    sessions["a client that keeps 300 statements"] = client_with_prepared_statements()
    for name, session in sessions.items():
        with session as pid:
            looks = Looks(connection, pid)
            start, cpu_before = time.perf_counter(), cpu_time(pid)
            while len(looks.times) < LOOKS:
                looks.look()
                time.sleep(max(0, INTERVAL - looks.times[-1]))
            share = (cpu_time(pid) - cpu_before) / (time.perf_counter() - start)
            looks.close()
        milliseconds = [f"{of_sorted(looks.times, at) * 1e3:.1f}" for at in [0.5, 0.9, 1]]
        passes = [of_sorted(looks.passes, at) for at in [0.5, 0.9, 1]]
        print_line(name, [f"{share:.0%}", *milliseconds, *passes, looks.given_up])


def measure_work(connection, rounds):
    print("\nwork done per processor time while it is read, as a ratio to that without\n")
    print_line("", ["median", "least", "most", "reads/s"])
    for name, (query, count) in WORK.items():
        with psycopg.connect(autocommit=True) as session:
            pid = session.info.backend_pid

            def work():
                before = cpu_time(pid)
                session.execute(query, [count])
                return cpu_time(pid) - before

            def work_while_read():
                stop = threading.Event()

                def read():
                    while not stop.is_set():
                        looks.look()
                        stop.wait(max(0, INTERVAL - looks.times[-1]))

                looks, start = Looks(connection, pid), time.perf_counter()
                thread = threading.Thread(target=read)
                thread.start()
                cpu = work()
                stop.set()
                thread.join()
                looks.close()
                rates.append(len(looks.times) / (time.perf_counter() - start))
                return cpu

            work()
            ratios, rates = [], []
            for _ in range(3 * rounds):
                # In this order, so that a steady change of the machine's speed cancels out.
                before, during, again, after = work(), work_while_read(), work_while_read(), work()
                ratios.append((before + after) / (during + again))
            cells = [f"{ratio:.3f}" for ratio in [statistics.median(ratios), min(ratios), max(ratios)]]
            print_line(name, [*cells, f"{statistics.median(rates):.0f}"])


def main(rounds):
    connection = psycopg.connect(autocommit=True)
    connection.execute("CREATE EXTENSION IF NOT EXISTS pg_meminfo")
    connection.execute(SCHEMA)
    subprocess.run(["pgbench", "-i", "-q"], check=True, stderr=subprocess.DEVNULL)
    measure_cost(connection, rounds)
    measure_passes(connection)
    measure_work(connection, rounds)


main(int(sys.argv[1]))
