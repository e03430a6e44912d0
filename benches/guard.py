"""Tries what the guard is for: sessions eat the memory of a cgroup, in different ways, and the server is to survive.

    guard.py tries megabytes action [way]...

An action is a value of pg_meminfo.guard_action. For each way of eating, prints how many tries ended in a restart of the
server, how statements ended otherwise, and for how long others were held up at most. With ways "4 eaters" and
"100 bystanders", several sessions eat at once, or others work meanwhile.
"""

import collections
import contextlib
import pathlib
import sys
import threading
import time

import psycopg

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / "tests/live"))

from conftest import OOM_ADJUST, limited, protect, start_cluster
from eaters import EATERS, SETTINGS

SEVERAL = "array_agg", "repeat", "jsonb", "sort"


def wait_for(cluster):
    while True:
        with contextlib.suppress(psycopg.OperationalError), cluster.connect():
            return
        time.sleep(0.05)


def eat(cluster, way):
    """How the statement of a session ended."""
    try:
        with cluster.connect("jit=on", *SETTINGS, application_name=way) as session:
            session.execute(EATERS[way])
            return "completed"
    except psycopg.errors.OutOfMemory as error:
        return "refused" if error.diag.message_hint else "out of memory"
    except psycopg.errors.QueryCanceled:
        return "canceled"
    except psycopg.errors.AdminShutdown:
        return "terminated"
    except psycopg.OperationalError:
        return "restart"


class Bystander(threading.Thread):
    """A session whose work goes on, if it can."""

    def __init__(self, cluster):
        super().__init__()
        self.session = cluster.connect()
        self.is_to_end = False
        self.longest = 0
        self.ended = ""

    def run(self):
        try:
            while not self.is_to_end:
                start = time.monotonic()
                self.session.execute("SELECT count(*) FROM generate_series(1, 1000) AS n")
                self.longest = max(self.longest, time.monotonic() - start)
                time.sleep(0.1)
        except psycopg.Error as error:
            self.ended = type(error).__name__

    def finish(self):
        self.is_to_end = True
        self.join()
        self.session.close()


def attempt(cluster, ways, bystanders):
    others = [Bystander(cluster) for _ in range(bystanders)]
    for other in others:
        other.start()
    outcomes = []
    threads = [threading.Thread(target=lambda way=way: outcomes.append(eat(cluster, way))) for way in ways]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for other in others:
        other.finish()
    wait_for(cluster)
    return outcomes, max(other.longest for other in others), sum(bool(other.ended) for other in others)


def main(tries, megabytes, action, ways):
    print(f"{megabytes} MB, guard_action = {action}, {tries} tries each")
    print(f"{'way':<16}{'restarts':>9}{'bystanders ended':>18}{'longest ms':>12}  outcomes", flush=True)
    with limited(megabytes) as (_, within):
        settings = [
            "shared_preload_libraries = 'pg_meminfo'",
            "shared_buffers = 32MB",
            "max_connections = 200",
            "pg_meminfo.min_headroom = '20%'",
            f"pg_meminfo.guard_action = {action}",
        ]
        with start_cluster(*settings, within=within, **OOM_ADJUST) as cluster:
            protect(cluster)
            for way in ways:
                count, bystanders = {"4 eaters": (SEVERAL, 3), "100 bystanders": (SEVERAL[:1], 100)}.get(way, ([way], 3))
                restarts, ended, longest, outcomes = 0, 0, 0, collections.Counter()
                for _ in range(tries):
                    result, held_up, others = attempt(cluster, count, bystanders)
                    restarts += "restart" in result
                    outcomes.update(result)
                    longest = max(longest, held_up)
                    ended += others
                text = ", ".join(f"{name} {number}" for name, number in outcomes.most_common())
                print(f"{way:<16}{restarts:>9}{ended:>18}{longest * 1000:>12.0f}  {text}", flush=True)


main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4:] or [*EATERS, "4 eaters", "100 bystanders"])
