"""Measures what it costs to measure statements: a small prepared SELECT in servers with and without pg_meminfo preloaded.

    statements.py rounds path-of-the-program-select
"""

import contextlib
import os
import pathlib
import re
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


def measure_time(program, rounds):
    print("\nns a statement; the quartiles are of processor time\n")
    print(f"{'':<22}{'processor':>10}{'quartiles':>20}{'over none':>11}{'wall clock':>12}{'over none':>11}")
    with contextlib.ExitStack() as stack:
        hosts = [stack.enter_context(server(*settings)) for settings in SERVERS.values()]
        output = subprocess.run([program, str(rounds), *hosts], check=True, stdout=subprocess.PIPE, text=True).stdout
    figures = [[float(word) for word in line.split()] for line in output.splitlines()]
    base_cpu, _, _, base_wall = figures[0]
    for name, (cpu, low, high, wall) in zip(SERVERS, figures):
        print(f"{name:<22}{cpu:>10.0f}{f'{low:.0f} to {high:.0f}':>20}{cpu - base_cpu:>+11.0f}{wall:>12.0f}{wall / base_wall - 1:>+11.1%}")


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


measure_time(sys.argv[2], 100 * int(sys.argv[1]))
measure_instructions()
