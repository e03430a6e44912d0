"""Compares the processor time of two builds of the library, in the cluster of scripts/with-cluster:

    scripts/with-cluster -c 'max_connections = 200' /usr/bin/python3 benches/alternate.py old.so new.so

The C functions of the extension are created twice, once for each library. In each round, two new sessions, one for each
library, call in turns. Give the same library twice to see how much of a difference is noise.
"""

import argparse
import contextlib
import pathlib
import shutil
import statistics
import tempfile
import time

import psycopg

SCHEMAS = ["a", "b"]


def connect(*settings):
    return psycopg.connect(autocommit=True, options=" ".join(f"-c {setting}" for setting in ["jit=off", *settings]))


def processor_time(pid):
    """Seconds that all threads of a process have run: its clock, as clock_getcpuclockid(3) makes it of the pid."""
    return time.clock_gettime((~pid << 3) | 2)


def create_functions(schema, library):
    """Creates the extension's C functions once more, in this schema and from this library."""
    # In a session of its own: to create a C function loads its library, and no session can load two builds.
    with connect() as connection:
        connection.execute(f"CREATE SCHEMA {schema}")
        query = "SELECT pg_get_functiondef(oid) FROM pg_proc WHERE probin = '$libdir/pg_meminfo'"
        for (definition,) in connection.execute(query).fetchall():
            definition = definition.replace("FUNCTION public.", f"FUNCTION {schema}.", 1)
            connection.execute(definition.replace("$libdir/pg_meminfo", str(library), 1))


def compare(query, calls, readers):
    """The processor seconds of a call with each library, in new sessions that call in turns."""
    with contextlib.ExitStack() as stack:
        settings = [f"pg_meminfo.readers={readers}"]
        sessions = [stack.enter_context(connect(f"search_path={schema},public", *settings)) for schema in SCHEMAS]
        times = [[] for _ in sessions]
        for number in range(calls + 1):
            order = [0, 1] if number % 2 else [1, 0]
            for at in order:
                pid = sessions[at].info.backend_pid
                start = processor_time(pid)
                sessions[at].execute(query).fetchall()
                # The first call loads the library.
                if number:
                    times[at].append(processor_time(pid) - start)
        return [statistics.median(each) for each in times]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("libraries", type=pathlib.Path, nargs=2, help="two builds of pg_meminfo.so")
    parser.add_argument("--query", default="SELECT count(*) FROM get_all_smaps()", help="calls the functions without a schema")
    parser.add_argument("--sessions", type=int, default=100, help="idle sessions, whose files are read")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--calls", type=int, default=10, help="calls of each library in a round")
    parser.add_argument("--readers", type=int, default=1, help="pg_meminfo.readers")
    options = parser.parse_args()

    with contextlib.ExitStack() as stack:
        # The server's user must be able to read the libraries.
        directory = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
        directory.chmod(0o755)
        with connect() as connection:
            connection.execute("CREATE EXTENSION IF NOT EXISTS pg_meminfo")
        for schema, library in zip(SCHEMAS, options.libraries):
            copy = pathlib.Path(shutil.copy(library, directory / f"{schema}.so"))
            copy.chmod(0o755)
            create_functions(schema, copy)
        for _ in range(options.sessions):
            stack.enter_context(connect())
        rounds = [compare(options.query, options.calls, options.readers) for _ in range(options.rounds)]
    print(f"{options.query}: {options.sessions} idle sessions, {options.rounds} rounds of {options.calls} calls")
    for library, times in zip(options.libraries, zip(*rounds)):
        milliseconds = [1000 * seconds for seconds in times]
        print(f"{statistics.median(milliseconds):.2f} ms of processor time a call ({min(milliseconds):.2f} to {max(milliseconds):.2f}): {library}")
    ratios = [second / first for first, second in rounds]
    print(f"second / first: {statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})")


main()
