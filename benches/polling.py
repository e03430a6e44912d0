"""Measures what polling pg_meminfo every second costs other sessions, in the cluster of scripts/with-cluster.

Run by scripts/bench. One session per core works without a pause, in turn with polling by another session and
without it.
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
    """Polls once a second until the event, and appends the processor time of each poll."""
    while not stop.wait(1):
        start = cpu_time(connection.info.backend_pid)
        # Only the count goes to the client: the cost of sending rows is not ours.
        connection.execute("SELECT count(m) FROM pg_meminfo m")
        times.append(cpu_time(connection.info.backend_pid) - start)


def cpu_time(pid):
    """Processor time of a process in seconds, from the scheduler's statistics, which are finer than those in stat."""
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
            # In this order, so that a steady change of the machine's speed cancels out.
            before, during, again, after = work(), work_while_polled(), work_while_polled(), work()
            ratios.append((during + again) / (before + after))
    least, most = min(ratios), max(ratios)
    print(f"{len(workers)} busy sessions, {IDLE} idle ones, pg_meminfo polled every second for {SECONDS} seconds, {rounds} rounds:")
    print(f"work done with polling, as a ratio to that without: {statistics.median(ratios):.3f} ({least:.3f} to {most:.3f})")
    print(f"processor time of a poll: {statistics.median(times) * 1000:.1f} ms")
    for session in idle + workers:
        session.close()


if __name__ == "__main__":
    main(int(sys.argv[1]))
