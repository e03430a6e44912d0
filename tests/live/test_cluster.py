"""pg_meminfo_cluster: the whole cluster in one row."""

import collections
import contextlib
import itertools
import threading
import time

import naive
import pytest
from conftest import PAGE, PATIENCE, ROOT, each_kernel, rows, start_cluster, wait_until
from test_processes import tree

MB = 2**20

# The errors of reading the files of a process that has exited: no such file, no such process, no such line.
GONE = FileNotFoundError, ProcessLookupError, ValueError


def whole(connection):
    [row] = rows(connection.execute("SELECT * FROM pg_meminfo_cluster"))
    return row


def from_smaps(pid):
    """The private memory in the private mappings of a process."""
    with open(f"/proc/{pid}/smaps", "rb") as file:
        mappings = [mapping for mapping in naive.parse(file.read()) if mapping["permissions"].endswith(b"p")]
    keys = "Private_Clean", "Private_Dirty", "Private_Hugetlb"
    return 1024 * sum(naive.number(mapping, key) for mapping in mappings for key in keys)


def from_status(pid, key):
    with open(f"/proc/{pid}/status") as file:
        [line] = [line for line in file if line.startswith(f"{key}:")]
    return 1024 * int(line.split()[1])


def assert_adds_up(row):
    assert row["unreadable"] == 0
    parts = ["private", "shared_memory_resident", "dynamic_shared_memory", "page_tables"]
    assert row["total"] == sum(row[part] for part in parts)


@pytest.mark.parametrize("form", [each_kernel("mmap"), "sysv", each_kernel("huge")])
def test_as_the_files_say(form, request):
    """Private memory is that of smaps, page tables are those of status, summed over all processes while idle."""
    if form == "huge":
        request.getfixturevalue("huge_pages")
        memory = ["shared_memory_type = mmap", "huge_pages = on", "shared_buffers = 64MB"]
    else:
        memory = [f"shared_memory_type = {form}", "huge_pages = off", "shared_buffers = 64MB"]
    quiet = ["autovacuum = off", "bgwriter_lru_maxpages = 0", "checkpoint_timeout = 1d"]
    with start_cluster(*memory, *quiet) as cluster, cluster.connect() as connection, cluster.sessions(3):
        # By then the session has allocated what it needs for the query itself.
        for _ in range(3):
            whole(connection)

        def agrees():
            """At least once: a process, above all our own, may be active at any time."""
            row = whole(connection)
            pids = tree(cluster)
            assert_adds_up(row)
            found = (row["processes"], row["private"], row["page_tables"])
            try:
                expected = (len(pids), sum(map(from_smaps, pids)), sum(from_status(pid, "VmPTE") for pid in pids))
            except GONE:
                return False
            # The difference is the function's own buffers, which it frees at its end.
            return found[0] == expected[0] and abs(found[1] - expected[1]) < 128 * PAGE and abs(found[2] - expected[2]) < 32 * PAGE

        wait_until(agrees)
        row = whole(connection)
        assert row["huge_pages_status"] == ("on" if form == "huge" else "off")
        needed = connection.execute("SHOW shared_memory_size_in_huge_pages").fetchone()[0]
        assert row["huge_pages_needed"] == int(needed)
        assert 0 <= row["page_tables_saved"] < row["page_tables"]
        assert row["shared_memory"] > 64 * MB
        if form == "huge":
            assert row["page_tables_saved"] == 0
            assert row["shared_memory_resident"] == row["shared_memory"]


@pytest.mark.parametrize("form", ["mmap", "sysv"])
def test_what_an_exited_session_has_touched_counts(form):
    """A sum of PSS would not include it."""
    settings = [f"shared_memory_type = {form}", "huge_pages = off", "shared_buffers = 256MB", "autovacuum = off"]
    with start_cluster(*settings) as cluster:
        with cluster.connect() as connection:
            before = whole(connection)
        with cluster.connect() as session:
            cluster.fill_shared_buffers(session, "big", 100)
        with cluster.connect() as connection:
            after = whole(connection)
            pss = "SELECT sum(pss)::bigint FROM pg_meminfo_mappings WHERE category = 'shared_memory'"
            live = connection.execute(pss).fetchone()[0]
        assert after["shared_memory_resident"] - before["shared_memory_resident"] > 90 * MB
        assert after["shared_memory_resident"] - live > 50 * MB
        # It is not in private memory.
        assert after["private"] - before["private"] < 20 * MB
        if form == "sysv":
            with open("/proc/sysvipc/shm") as file:
                names, *table = (line.split() for line in file)
            resident = [int(row[names.index("rss")]) for row in table if int(row[names.index("cpid")]) == cluster.postmaster]
            assert any(0 <= rss - after["shared_memory_resident"] < 2 * MB for rss in resident)


@pytest.mark.one_major
def test_all_of_it_resident():
    """When sessions have touched all of shared buffers."""
    with start_cluster("huge_pages = off", "shared_buffers = 128MB", "autovacuum = off") as cluster, cluster.connect() as connection:
        cluster.fill_shared_buffers(connection, "big", 200)
        row = whole(connection)
        # The rest of the segment, lock tables and the like, is hardly used.
        assert 127 * MB < row["shared_memory_resident"] <= row["shared_memory"] < 165 * MB


def page_tables(cluster):
    """The page tables of all processes, read while none of them exits."""
    sizes = []

    def are_all_there():
        with contextlib.suppress(GONE):
            sizes[:] = [from_status(pid, "VmPTE") for pid in tree(cluster)]
            return True

    wait_until(are_all_there)
    return sum(sizes)


@pytest.mark.one_major
@pytest.mark.kernels
def test_page_tables_saved(huge_pages):
    """The figure is not more than huge pages really save, and with pages of 4 kB at least 0.4 of it: after sessions
    have touched a few scattered pages, and after they have touched all. The bound may be a few tables too high for each
    process. Larger pages need few tables, so there it may be nearly all of them."""
    memory = ["shared_buffers = 192MB", "autovacuum = off", "jit = off"]
    scattered = "SELECT count(x) FROM big WHERE n % 2000 = 0"

    @contextlib.contextmanager
    def busy(form):
        with start_cluster(*memory, f"huge_pages = {form}") as cluster, cluster.connect() as connection:
            cluster.fill_shared_buffers(connection, "big", 120)
            connection.execute("CREATE INDEX ON big ((n % 2000))")
            with cluster.sessions(10) as sessions:
                for session in sessions:
                    session.execute("SET enable_seqscan = off")
                    session.execute(scattered)
                yield cluster, connection, sessions

    measured = {}
    for form in "off", "on":
        with busy(form) as (cluster, connection, sessions):
            few = whole(connection)["page_tables_saved"], page_tables(cluster)
            for session in sessions:
                session.execute("SELECT count(x) FROM big")
            measured[form] = few, (whole(connection)["page_tables_saved"], page_tables(cluster))
    for (saved, without), (none, with_huge_pages) in zip(measured["off"], measured["on"]):
        less = without - with_huge_pages
        assert none == 0
        assert (0.4 * less if PAGE == 4096 else -1) < saved <= less, measured


def test_a_parallel_query_has_dynamic_shared_memory():
    with start_cluster() as cluster, cluster.connect() as connection:
        before = whole(connection)
        with cluster.running_in_parallel(connection):
            row = whole(connection)
            assert_adds_up(row)
            assert row["dynamic_shared_memory"] > before["dynamic_shared_memory"]


@pytest.mark.kernels
def test_while_sessions_come_and_go(cluster, connection):
    """A process that exits meanwhile does not make the sum unknown."""
    stop = threading.Event()

    def churn():
        while not stop.is_set():
            cluster.connect().close()

    threads = [threading.Thread(target=churn) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        counts = set()
        start = time.monotonic()
        # On a slow machine, the others may be there each time.
        more = itertools.cycle([0, 1])
        while time.monotonic() < start + 5 or (len(counts) < 2 and time.monotonic() < start + 60 * PATIENCE):
            with cluster.sessions(next(more)):
                row = whole(connection)
            assert_adds_up(row)
            counts.add(row["processes"])
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert len(counts) > 1, "no session came or went"


def test_stacks_for_a_flame_graph(cluster, connection):
    """There is a frame for each level, whatever characters a name has, and all stacks add up to the cluster's total."""
    lines = (ROOT / "docs/flamegraph.sql").read_text().splitlines()
    # Of the whole cluster, as psql does it without a variable.
    query = "\n".join(line for line in lines if not line.lstrip().startswith("\\")).replace(":'pid'", "''")
    # No newline: PostgreSQL 19 does not accept it in a name.
    name = "semi;colon tab\t quote\" back\\slash del\x7f é"
    connection.execute(f'CREATE DATABASE "{name.replace(chr(34), chr(34) * 2)}"')
    try:
        with cluster.connect(dbname=name, application_name="with blanks; 7") as session:
            [(stacks, total)] = connection.execute(
                f"SELECT array_agg(stack), (SELECT total + swap FROM pg_meminfo_cluster) FROM ({query.strip().rstrip(';')}) AS q"
            ).fetchall()
            pid = session.info.backend_pid
    finally:
        connection.execute(f'DROP DATABASE "{name.replace(chr(34), chr(34) * 2)}" WITH (FORCE)')
    assert all(character.isprintable() for stack in stacks for character in stack)
    parsed = [(stack.rpartition(" ")[0].split(";"), int(stack.rpartition(" ")[2])) for stack in stacks]
    own = collections.Counter()
    for frames, kilobytes in parsed:
        if frames[0] == "client backend" and frames[3] == str(pid):
            own[frames[4]] += kilobytes
    assert own["malloc"] > 500 and own["page tables"] > 50
    [frames] = {tuple(frames[:4]) for frames, _ in parsed if str(pid) in frames}
    escaped = r"semi\u003bcolon tab\t quote\" back\\slash del\u007f é"
    assert frames == ("client backend", escaped, r"with blanks\u003b 7", str(pid))
    assert any(frames[:2] == ["shared memory", "main"] for frames, _ in parsed)
    # The memory of the query itself differs between the two.
    assert abs(1024 * sum(kilobytes for _, kilobytes in parsed) - total) < 5 * MB
