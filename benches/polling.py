"""Measures what it costs other sessions that pg_meminfo is polled every second, in the cluster of scripts/with-cluster.

Run by scripts/bench. As many sessions as there are cores work without a pause, in turns while another polls and while none does.
"""

import concurrent.futures
import os
import statistics
import sys
import threading

import psycopg

SECONDS = 5
IDLE = 200

WORK = """
CREATE FUNCTION work(seconds float8) RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
    stop timestamptz := clock_timestamp() + seconds * interval '1 second';
    done bigint := 0;
BEGIN
    WHILE clock_timestamp() < stop LOOP
        PERFORM count(*) FROM numbers WHERE n < 100;
        done := done + 1;
    END LOOP;
    RETURN done;
END $$
"""


def poll(connection, stop, times):
    """Polls until it is told to stop, and adds what each poll takes of a core."""
    while not stop.wait(1):
        start = cpu_time(connection.info.backend_pid)
        # What a client does with rows is not our cost.
        connection.execute("SELECT count(m) FROM pg_meminfo m")
        times.append(cpu_time(connection.info.backend_pid) - start)


def cpu_time(pid):
    """Seconds that a process has run, by the scheduler's clock, which is finer than that of stat."""
    with open(f"/proc/{pid}/schedstat") as file:
        return int(file.read().split()[0]) / 1e9


def main(rounds):
    connection = psycopg.connect(autocommit=True)
    connection.execute("CREATE EXTENSION IF NOT EXISTS pg_meminfo")
    connection.execute("CREATE TABLE numbers AS SELECT generate_series(1, 10000) AS n")
    connection.execute(WORK)
    idle = [psycopg.connect(autocommit=True) for _ in range(IDLE)]
    workers = [psycopg.connect(autocommit=True) for _ in range(os.cpu_count())]
    times = []
    with concurrent.futures.ThreadPoolExecutor(len(workers)) as pool:

        def work():
            return sum(pool.map(lambda worker: worker.execute("SELECT work(%s)", [SECONDS]).fetchone()[0], workers))

        def work_while_polled():
            stop = threading.Event()
            poller = threading.Thread(target=poll, args=(connection, stop, times))
            poller.start()
            try:
                return work()
            finally:
                stop.set()
                poller.join()

        work()
        ratios = []
        for _ in range(rounds):
            # There and back, for a machine may become slower or faster all the time.
            before, during, again, after = work(), work_while_polled(), work_while_polled(), work()
            ratios.append((during + again) / (before + after))
    least, most = min(ratios), max(ratios)
    print(f"{len(workers)} sessions that work, {IDLE} idle ones, pg_meminfo polled every second for {SECONDS} seconds, {rounds} times:")
    print(f"work done, of that without polling: {statistics.median(ratios):.3f} ({least:.3f} to {most:.3f})")
    print(f"a poll takes {statistics.median(times) * 1000:.1f} ms of a core")
    for session in idle + workers:
        session.close()


main(int(sys.argv[1]))
