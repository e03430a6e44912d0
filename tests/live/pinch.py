"""Refuses memory to sessions of a cluster again and again, by their RLIMIT_DATA. It must run as the server's user.

    pinch.py data_directory

Every few milliseconds, client backends and parallel workers get a limit of what they have and 64 kB, for a tenth of a
second or so. With an ERROR, pg_meminfo gives them their own limit again.
"""

import contextlib
import pathlib
import random
import re
import resource
import sys
import time

SESSION = re.compile(r"postgres: (parallel worker for|(?!walsender).* \[local\])")
SLACK = 64 * 1024
UNLIMITED = resource.RLIM_INFINITY


def limit(pid, size):
    with contextlib.suppress(OSError):
        resource.prlimit(pid, resource.RLIMIT_DATA, (size, UNLIMITED))


def sessions(data):
    postmaster = (data / "postmaster.pid").read_text().split()[0]
    for pid in pathlib.Path(f"/proc/{postmaster}/task/{postmaster}/children").read_text().split():
        with contextlib.suppress(OSError):
            if SESSION.match(pathlib.Path(f"/proc/{pid}/cmdline").read_text()):
                yield int(pid)


def main(data):
    pinched = {}
    while True:
        time.sleep(random.uniform(0.001, 0.005))
        now = time.monotonic()
        for pid in [pid for pid, end in pinched.items() if end <= now]:
            limit(pid, UNLIMITED)
            del pinched[pid]
        for pid in sessions(data):
            if pid not in pinched:
                with contextlib.suppress(OSError, TypeError):
                    status = pathlib.Path(f"/proc/{pid}/status").read_text()
                    limit(pid, int(re.search(r"^VmData:\s+(\d+)", status, re.MULTILINE)[1]) * 1024 + SLACK)
                    pinched[pid] = now + random.uniform(0.03, 0.2)


main(pathlib.Path(sys.argv[1]))
