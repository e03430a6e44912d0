"""Measures what it costs to measure statements: a small prepared SELECT in servers with and without pg_meminfo.

    statements.py rounds path-of-the-program-select
"""

import contextlib
import os
import pathlib
import re
import statistics
import subprocess
import sys
import tempfile

import psycopg

ROOT = pathlib.Path(__file__).parents[1]

# The same server twice shows how large the noise is.
OFF = "pg_meminfo.statements = off", "pg_meminfo.recorder = off"
SERVERS = {
    "nothing preloaded": ("",),
    "the same again": ("",),
    "pg_meminfo, all off": ("pg_meminfo", *OFF),
    "pg_meminfo": ("pg_meminfo",),
    "pg_stat_statements": ("pg_stat_statements",),
    "both": ("pg_stat_statements,pg_meminfo",),
}
STATEMENTS = 1000
SETS = 7


@contextlib.contextmanager
def server(libraries, *others, **environment):
    """A cluster of its own with these libraries preloaded and pgbench's tables. Yields its socket directory."""
    preloaded = f"shared_preload_libraries = '{libraries}'"
    settings = ["autovacuum = off", "shared_buffers = 256MB", "track_activities = on", preloaded, *others]
    options = [word for setting in settings for word in ("-c", setting)]
    hold = ["sh", "-c", "pgbench -i -q >&2 && echo $PGHOST && exec sleep infinity"]
    command = [ROOT / "scripts/with-cluster", *options, *hold]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=os.environ | environment)
    try:
        yield process.stdout.readline().rstrip()
    finally:
        process.terminate()
        process.wait()


def measure_set(program, rounds):
    """Processor time and wall-clock time of a statement in each of the servers, which are new."""
    with contextlib.ExitStack() as stack:
        hosts = [stack.enter_context(server(*settings)) for settings in SERVERS.values()]
        output = subprocess.run([program, str(rounds), *hosts], check=True, stdout=subprocess.PIPE, text=True).stdout
    for line in output.splitlines():
        cpu, _, _, wall = map(float, line.split())
        yield cpu, wall


def measure_time(program, rounds):
    # Where a server's memory happens to be makes more difference than what is to be measured.
    sets = [list(measure_set(program, rounds)) for _ in range(SETS)]
    print(f"\nns a statement: medians of {SETS} sets of new servers, and the range of the differences in each set\n")
    print(f"{'':<22}{'processor':>10}{'over none':>11}{'':>16}{'wall clock':>12}{'over none':>11}{'':>18}")
    for at, name in enumerate(SERVERS):
        cpu, wall = (statistics.median(figures[at][kind] for figures in sets) for kind in (0, 1))
        more_cpu = [figures[at][0] - figures[0][0] for figures in sets]
        more_wall = [figures[at][1] / figures[0][1] - 1 for figures in sets]
        cpu_range = f"{min(more_cpu):+.0f} to {max(more_cpu):+.0f}"
        wall_range = f"{min(more_wall):+.1%} to {max(more_wall):+.1%}"
        more_cpu, more_wall = statistics.median(more_cpu), statistics.median(more_wall)
        print(f"{name:<22}{cpu:>10.0f}{more_cpu:>+11.0f}{cpu_range:>16}{wall:>12.0f}{more_wall:>+11.1%}{wall_range:>18}", flush=True)


def instructions(directory, host, count):
    """The instructions of a session that executes this many statements, counted by valgrind."""
    with psycopg.connect(host=host, port=5432, user="postgres", dbname="postgres", autocommit=True, prepare_threshold=0) as session:
        pid = session.info.backend_pid
        for _ in range(count):
            session.execute("SELECT abalance FROM pgbench_accounts WHERE aid = %s", [1])
    path = pathlib.Path(directory) / str(pid)
    while True:
        with contextlib.suppress(FileNotFoundError):
            if found := re.search(r"^(?:totals|summary): (\d+)", path.read_text(), re.MULTILINE):
                return int(found[1])


def measure_instructions():
    print("\ninstructions a statement (callgrind)\n")
    base = None
    for name, settings in SERVERS.items():
        with tempfile.TemporaryDirectory() as directory:
            os.chmod(directory, 0o777)
            within = f"valgrind --quiet --tool=callgrind --callgrind-out-file={directory}/%p"
            with server(*settings, SERVER_WITHIN=within) as host:
                each = (instructions(directory, host, 2 * STATEMENTS) - instructions(directory, host, STATEMENTS)) / STATEMENTS
        base = base or each
        print(f"{name:<22}{each:>10.0f}{each - base:>+10.0f}", flush=True)


measure_time(sys.argv[2], 60 * int(sys.argv[1]))
measure_instructions()
