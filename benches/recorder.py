"""Measures what the recorder costs: its processor time with a number of idle sessions.

    recorder.py seconds
"""

import pathlib
import sys
import time

import psycopg

SESSIONS = 10, 200, 1000


def connect():
    return psycopg.connect(autocommit=True)


def measure(connection, seconds):
    """Processor time of the recorder in this many seconds: a share of a processor, and ns a sample."""
    [(pid,)] = connection.execute("SELECT pid FROM pg_stat_activity WHERE backend_type = 'pg_meminfo recorder'")

    def used():
        return int(pathlib.Path(f"/proc/{pid}/schedstat").read_text().split()[0])

    def samples():
        return connection.execute("SELECT count(*) FROM pg_meminfo_history").fetchone()[0]

    before, count, start = used(), samples(), time.monotonic()
    time.sleep(seconds)
    cost, passed = used() - before, time.monotonic() - start
    return cost / passed / 1e9, cost / (samples() - count)


seconds = int(sys.argv[1])
print(f"{'sessions':>8}{'of a processor':>16}{'us a sample':>13}")
sessions = []
for wanted in SESSIONS:
    sessions += [connect() for _ in range(wanted - len(sessions))]
    sessions[0].execute("CREATE EXTENSION IF NOT EXISTS pg_meminfo")
    share, sample = measure(sessions[0], seconds)
    print(f"{wanted:>8}{share:>15.2%}{sample / 1000:>13.0f}", flush=True)
