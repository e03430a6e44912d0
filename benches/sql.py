"""Measures the SQL functions in alternation with a bare read of the same files, in the cluster of scripts/with-cluster.

Run by scripts/bench. Appends the times to a file, one JSON object per line; benches/report.py prints tables of them.
"""

import argparse
import contextlib
import json
import os
import pathlib
import re
import statistics
import subprocess
import threading
import time

import psycopg

STATUS = "status,stat,oom_score,oom_score_adj"

# The processes whose files are read: those in pg_stat_activity, or all of the cluster, with the postmaster.
LISTED = "SELECT pid FROM pg_stat_activity"
ALL = "SELECT pid FROM pg_meminfo_processes()"

# Each bare read: the files that it reads once of each process, and the processes.
BARE = {"smaps": LISTED, "smaps_rollup": LISTED, "maps+pagemap": LISTED, "maps+pagemap,status": ALL, "maps": ALL, STATUS: ALL}

# What is measured: its name, the bare read to compare it with, if any, the query, and the number of readers.
FUNCTIONS = [
    ("get_all_smaps()", "smaps", "SELECT count(*) FROM get_all_smaps()", 1),
    ("get_all_smaps(), 2 readers", "smaps", "SELECT count(*) FROM get_all_smaps()", 2),
    ("pg_meminfo_smaps(pid)", "smaps", "SELECT count(*) FROM pg_stat_activity, pg_meminfo_smaps(pid)", 1),
    ("pg_meminfo_mappings", "smaps", "SELECT count(*) FROM pg_meminfo_mappings", 1),
    ("smap_summary", "smaps", "SELECT count(*) FROM smap_summary", 1),
    ("naive", "smaps", "SELECT count(*) FROM naive_smaps()", 1),
    ("pg_meminfo_rollup(pid)", "smaps_rollup", "SELECT count(*) FROM pg_stat_activity, pg_meminfo_rollup(pid)", 1),
    ("pg_meminfo_private(pid)", "maps+pagemap", "SELECT count(*) FROM pg_stat_activity, pg_meminfo_private(pid)", 1),
    ("pg_meminfo_cluster", "maps+pagemap,status", "SELECT * FROM pg_meminfo_cluster", 1),
    ("pg_meminfo_segments", "maps", "SELECT * FROM pg_meminfo_segments", 1),
    ("pg_meminfo_processes()", STATUS, "SELECT count(*) FROM pg_meminfo_processes()", 1),
    ("pg_meminfo", STATUS, "SELECT count(*), sum(private_estimate), max(query) FROM pg_meminfo", 1),
    ("pg_meminfo_host", None, "SELECT * FROM pg_meminfo_host", 1),
    ("pg_meminfo_cgroups", None, "SELECT * FROM pg_meminfo_cgroups", 1),
]


# The functions for which the growth of cost is measured, too.
GROWTH = ["get_all_smaps()", "get_all_smaps(), 2 readers", "pg_meminfo_rollup(pid)", "pg_meminfo_private(pid)", "pg_meminfo_cluster", "pg_meminfo"]

# A short call is repeated for this many seconds, so that one interruption does not decide its time.
REPEAT = 0.1


def connect():
    return psycopg.connect(autocommit=True, options="-c jit=off -c max_parallel_workers_per_gather=0")


class Limit:
    """The program of limit.c, which reads the files and does nothing with them. It runs as the server's user."""

    def __init__(self, program):
        owner = pathlib.Path(os.environ["PGDATA"]).stat()
        switch = []
        if owner.st_uid != os.geteuid():
            switch = ["setpriv", f"--reuid={owner.st_uid}", f"--regid={owner.st_gid}", "--clear-groups"]
        self.process = subprocess.Popen([*switch, program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)

    def read(self, files, pids, threads=1):
        self.process.stdin.write(f"{threads} {files} {' '.join(map(str, pids))}\n")
        seconds, size = self.process.stdout.readline().split()
        assert int(size) > 0, "nothing could be read"
        return float(seconds)


def timed(connection, query):
    start = time.perf_counter()
    connection.execute(query).fetchall()
    return time.perf_counter() - start


def typical(call):
    """The median of the times that a call returns, in as many calls as there is time for."""
    start, times = time.perf_counter(), []
    while not times or time.perf_counter() < start + REPEAT:
        times.append(call())
    return statistics.median(times)


def resident_shared(pid):
    with open(f"/proc/{pid}/status") as status:
        return int(re.search(r"RssShmem:\s+(\d+) kB", status.read())[1]) * 1024


def touch(sessions, size):
    """Makes each session touch this many bytes of shared buffers."""
    with connect() as connection:
        connection.execute("CREATE UNLOGGED TABLE touched (page text)")
        connection.execute("ALTER TABLE touched ALTER page SET STORAGE PLAIN")
        connection.execute("INSERT INTO touched SELECT repeat('x', 7000) FROM generate_series(1, %s)", [size // 8192])
        connection.execute("CREATE EXTENSION pg_prewarm")
        connection.execute("SELECT pg_prewarm('touched')")
    for session in sessions:
        # The table is in shared buffers already. Otherwise the scan would reuse the few pages of its ring buffer.
        session.execute("SELECT count(*) FROM touched")
        resident = resident_shared(session.info.backend_pid)
        assert resident > 0.95 * size, f"{resident} bytes resident of {size}"


def cancel_latency(canceller, connection, query, whole):
    """Seconds from a cancel in the middle of a query to its error. None if the query ended before the cancel."""
    moments = []

    def cancel():
        moments.append(time.perf_counter())
        canceller.execute("SELECT pg_cancel_backend(%s)", [connection.info.backend_pid])

    timer = threading.Timer(whole / 2, cancel)
    timer.start()
    latency = None
    try:
        connection.execute(query)
    except psycopg.errors.QueryCanceled:
        latency = time.perf_counter() - moments[0]
    timer.cancel()
    timer.join()
    # A cancel that came too late ends this statement instead.
    with contextlib.suppress(psycopg.errors.QueryCanceled):
        connection.execute("SELECT 1")
    return latency


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--tools", type=pathlib.Path, required=True, help="the directory of limit and naive.so")
    parser.add_argument("--output", type=pathlib.Path, required=True)
    parser.add_argument("--name", required=True, help="the name of this measurement")
    parser.add_argument("--sessions", type=int, nargs="+", required=True)
    parser.add_argument("--touch", type=int, default=0, help="bytes of shared buffers that each session touches")
    parser.add_argument("--rounds", type=int, required=True)
    parser.add_argument("--growth", action="store_true", help="measure only the functions in GROWTH")
    options = parser.parse_args()

    limit = Limit(options.tools / "limit")
    with contextlib.ExitStack() as stack, options.output.open("a") as output:
        connection, canceller = stack.enter_context(connect()), stack.enter_context(connect())
        connection.execute("CREATE EXTENSION pg_meminfo")
        columns = "pid int, a text, b text, c text, d text, e text, f text, i int, p text, " + ", ".join(
            f"k{n} int" for n in range(23)
        )
        connection.execute(
            f"CREATE FUNCTION naive_smaps() RETURNS TABLE ({columns}, v text) LANGUAGE C AS '{options.tools}/naive.so', 'naive_smaps'"
        )
        settings = {
            name: connection.execute("SELECT current_setting(%s)", [name]).fetchone()[0]
            for name in ["server_version", "shared_buffers", "work_mem"]
        }
        sessions = []
        for count in options.sessions:
            sessions += [stack.enter_context(connect()) for _ in range(count - len(sessions))]
            if options.touch:
                touch(sessions, options.touch)

            def pids(query):
                return [pid for (pid,) in connection.execute(query)]

            def read(files, threads=1):
                return lambda: limit.read(files, pids(BARE[files]), threads)

            def run(query, readers):
                def call():
                    connection.execute(f"SET pg_meminfo.readers = {readers}")
                    return timed(connection, query)

                return call

            functions = [function for function in FUNCTIONS if not options.growth or function[0] in GROWTH]
            measured, limits = {}, {}
            # A bare read comes just before the functions that are compared with it, as the machine's speed may change.
            for name, files, query, readers in functions:
                if files:
                    bare = f"bare read of {files}"
                    measured.setdefault(bare, read(files))
                    parallel = f"{bare}, {readers} threads"
                    if readers > 1:
                        measured[parallel] = read(files, readers)
                    limits |= {bare: bare, parallel: bare, name: bare}
                measured[name] = run(query, readers)
            times = {name: [] for name in measured}
            for number in range(options.rounds + 1):
                for name, call in measured.items():
                    seconds = typical(call)
                    # The first round warms up.
                    if number:
                        times[name].append(seconds)
            whole = min(times["get_all_smaps()"])
            latencies = [cancel_latency(canceller, connection, FUNCTIONS[0][2], whole) for _ in range(options.rounds)]
            result = {
                "name": options.name,
                "sessions": count,
                "processes": len(pids(ALL)),
                "touched": options.touch,
                "settings": settings,
                "limits": limits,
                "times": times,
                "cancel": [latency for latency in latencies if latency is not None],
            }
            output.write(json.dumps(result) + "\n")


main()
