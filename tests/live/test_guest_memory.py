"""Kinds of memory that only exist if the whole machine is set up for them: swap, transparent huge pages, KSM, and the
counters of several processors.

These tests change the machine, so they run only in the virtual machines of scripts/check-kernels.
"""

import contextlib
import os
import pathlib
import re

import naive
import pytest
from conftest import PAGE, in_cgroup, preload, remove_cgroup, start_cluster, wait_until
from test_cluster import whole
from test_private import assert_same, swap
from test_processes import tree

pytestmark = pytest.mark.guest

MB = 2**20
THP = pathlib.Path("/sys/kernel/mm/transparent_hugepage")
KSM = pathlib.Path("/sys/kernel/mm/ksm")

# A cluster whose processes rest, and in which only the sessions of a test touch memory.
QUIET = ["huge_pages = off", "autovacuum = off", "bgwriter_lru_maxpages = 0", "checkpoint_timeout = 1d"]


@contextlib.contextmanager
def setting(path, value):
    """A setting of the kernel, until the end of the block."""
    path = pathlib.Path(path)
    before = path.read_text().strip()
    # A file of choices shows all of them, with the current one in brackets.
    chosen = re.search(r"\[(.+)\]", before)
    path.write_text(value)
    try:
        yield
    finally:
        path.write_text(chosen[1] if chosen else before)


def smaps(pid, name="smaps"):
    return pathlib.Path(f"/proc/{pid}/{name}").read_bytes()


def from_meminfo(key):
    """A figure of the whole machine, in bytes."""
    # Otherwise what each processor has counted in the last second may be missing.
    pathlib.Path("/proc/sys/vm/stat_refresh").read_bytes()
    return 1024 * int(re.search(rf"^{key}: +(\d+) kB$", pathlib.Path("/proc/meminfo").read_text(), re.MULTILINE)[1])


def total(text, key, permissions=b""):
    """The sum of a key over those mappings of a smaps file whose permissions end so, in bytes."""
    mappings = [mapping for mapping in naive.parse(text) if mapping["permissions"].endswith(permissions)]
    return 1024 * sum(naive.number(mapping, key) or 0 for mapping in mappings)


def from_pagemap(pid, mappings=None):
    """What pagemap says about private mappings, by default all those of a process: resident pages, those of them that
    no other process maps, and pages in swap, in bytes."""
    resident = private = swapped = 0
    with open(f"/proc/{pid}/pagemap", "rb") as file:
        for mapping in mappings or naive.parse(smaps(pid)):
            start, end = (int(mapping[part], 16) // PAGE for part in ("start", "end"))
            if mapping["permissions"].endswith(b"p") and end * PAGE < 2**63:
                file.seek(8 * start)
                # All entries as one number, of which each entry's lowest bit is looked at: a loop would be slow.
                entries = file.read(8 * (end - start))
                number, lowest = int.from_bytes(entries, "little"), int.from_bytes(bytes([1, *bytes(7)]) * (len(entries) // 8), "little")
                resident += (number >> 63 & lowest).bit_count()
                private += (number >> 63 & number >> 56 & lowest).bit_count()
                swapped += (number >> 62 & lowest).bit_count()
    return resident * PAGE, private * PAGE, swapped * PAGE


def by_pagemap(connection, pid):
    """The same as the extension has it."""
    query = "SELECT sum(resident)::bigint, sum(private)::bigint, sum(swap)::bigint FROM pg_meminfo_private(%s)"
    return connection.execute(query, [pid]).fetchone()


def status(pid):
    """The sizes in the status of a process, in bytes."""
    lines = pathlib.Path(f"/proc/{pid}/status").read_text().splitlines()
    return {line.split(":")[0]: 1024 * int(line.split()[1]) for line in lines if line.endswith(" kB")}


def stable(read, other):
    """What two functions return at a time at which the first returns the same before and after the second."""
    results = []

    def is_stable():
        results[:] = read(), other(), read()
        return results[0] == results[2]

    wait_until(is_stable)
    return results[:2]


def counter_bounds():
    """How far the counters of status may be off: for anonymous memory or swap, and for all of resident memory. Before
    Linux 6.2 each thread keeps up to 64 page faults to itself, of which one for a file may map 64 kB. Later, where the
    kernel does not add up all processors' parts, each processor keeps a batch of pages for each of three counters."""
    if tuple(int(number) for number in re.findall(r"\d+", os.uname().release)[:2]) < (6, 2):
        return 64 * PAGE, 64 * PAGE + 64 * max(PAGE, 64 * 1024)
    batches = os.cpu_count() * max(32, 2 * os.cpu_count()) * PAGE
    return batches, 3 * batches


@contextlib.contextmanager
def reclaimable():
    """A cgroup: the prefix of a command that is to run in it, and a function that swaps out what is in it."""
    directory = pathlib.Path("/sys/fs/cgroup/pg_meminfo_swap")
    if not pathlib.Path("/sys/fs/cgroup/cgroup.procs").exists():
        pytest.skip("version 2 of cgroups is not mounted")
    directory.mkdir()

    def reclaim():
        (directory / "memory.high").write_text("0")
        (directory / "memory.high").write_text("max")

    try:
        yield in_cgroup(directory), reclaim
    finally:
        remove_cgroup(directory)


def test_swap(tmp_path):
    """Private and shared memory in swap, in every function that shows it."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(swap(tmp_path))
        within, reclaim = stack.enter_context(reclaimable())
        cluster = stack.enter_context(start_cluster(*QUIET, "shared_buffers = 32MB", within=within))
        connection, session = stack.enter_context(cluster.connect()), stack.enter_context(cluster.connect("work_mem=64MB"))
        cluster.fill_shared_buffers(session, "big", 20)
        session.execute("BEGIN; DECLARE c CURSOR FOR SELECT repeat(n::text, 20) AS t FROM generate_series(1, 100000) AS n ORDER BY t")
        session.execute("FETCH 1 FROM c")
        pid = session.info.backend_pid
        before = whole(connection)["shared_memory_resident"]
        reclaim()

        def query(text):
            return connection.execute(text, [pid] if "%s" in text else []).fetchall()

        def rows(text):
            return lambda: query(text)

        for text, expected in [
            (f"SELECT {naive.SMAPS_COLUMNS} FROM pg_meminfo_smaps(%s)", naive.smaps_rows),
            ("SELECT * FROM get_all_smaps() WHERE pid = %s", lambda file: naive.contract_rows(pid, file)),
            ("SELECT * FROM smap_summary WHERE pid = %s", lambda file: [naive.summary_row(pid, file)]),
            ("SELECT sum(swap)::bigint FROM pg_meminfo_private(%s)", lambda file: [(total(file, "Swap", b"p"),)]),
        ]:
            file, found = stable(lambda: smaps(pid), rows(text))
            assert found == expected(file), text
        rollup, found = stable(lambda: smaps(pid, "smaps_rollup"), rows("SELECT * FROM pg_meminfo_rollup(%s)"))
        assert found == [naive.rollup_row(rollup)]

        file, state = stable(lambda: smaps(pid), lambda: status(pid))
        private, shared = total(file, "Swap", b"p"), total(file, "Swap", b"s")
        assert private > 15 * MB and shared > 15 * MB
        # The whole segment's, and so not divided by the number of processes.
        assert total(file, "SwapPss", b"s") == 0
        # Private memory only.
        assert abs(state["VmSwap"] - private) <= counter_bounds()[0]
        state, found = stable(lambda: status(pid), rows("SELECT swap, private_estimate FROM pg_meminfo WHERE pid = %s"))
        assert found == [(state["VmSwap"], state["RssAnon"] + state["VmSwap"] + state["VmPTE"])]
        everyones, found = stable(lambda: sum(status(process)["VmSwap"] for process in tree(cluster)), rows("SELECT swap FROM pg_meminfo_cluster"))
        assert found == [(everyones,)]

        # What is in swap is not resident, except for pages that the kernel has read back or has not dropped yet.
        file, row = stable(lambda: smaps(pid), lambda: whole(connection))
        [main] = [mapping for mapping in naive.parse(file) if mapping["path"] == b"/dev/zero (deleted)"]
        swapped = 1024 * naive.number(main, "Swap")
        assert swapped > 15 * MB
        assert -32 * PAGE <= row["shared_memory_resident"] + swapped - before <= from_meminfo("SwapCached") + 128 * PAGE
        sizes = "SELECT resident FROM pg_meminfo_segments WHERE kind = 'main'"
        resident, found = stable(rows("SELECT shared_memory_resident FROM pg_meminfo_cluster"), rows(sizes))
        assert resident == found
        assert query("SELECT swap_total, swap_free > swap_total / 10 FROM pg_meminfo_host") == [(from_meminfo("SwapTotal"), True)]
        session.execute("COMMIT")
        assert status(pid)["VmSwap"] < 10 * MB
    assert from_meminfo("SwapTotal") == 0


def differences(pid):
    """The private mappings of which pagemap and smaps do not say the same: bytes by pagemap and by smaps."""
    for mapping in naive.parse(smaps(pid)):
        if mapping["permissions"].endswith(b"p"):
            by_pages = from_pagemap(pid, [mapping])[1]
            by_smaps = 1024 * (naive.number(mapping, "Private_Clean") + naive.number(mapping, "Private_Dirty"))
            if by_pages != by_smaps:
                yield mapping, by_pages, by_smaps


def test_anonymous_memory_in_transparent_huge_pages(cluster, connection):
    """A session's own huge pages are the same by pagemap and by smaps."""
    huge = int((THP / "hpage_pmd_size").read_text())
    with setting(THP / "enabled", "always"), cluster.connect("work_mem=256MB") as session:
        session.execute("BEGIN; DECLARE c CURSOR FOR SELECT repeat(n::text, 20) AS t FROM generate_series(1, 200000) AS n ORDER BY t")
        session.execute("FETCH 1 FROM c")
        pid = session.info.backend_pid
        columns = "SELECT sum(anon_huge_pages)::bigint FROM pg_meminfo_smaps(%s)"
        # The kernel's khugepaged may add some later.
        text, found = stable(lambda: smaps(pid), lambda: connection.execute(columns, [pid]).fetchone())
        in_huge_pages = total(text, "AnonHugePages")
        if in_huge_pages == 0:
            pytest.skip(f"the session has no huge pages, which are of {huge} bytes")
        assert found == (in_huge_pages,)
        private = assert_same(connection, pid)
        assert private["malloc"] > 30 * MB and private["malloc"] > in_huge_pages
        pages, found = stable(lambda: from_pagemap(pid), lambda: by_pagemap(connection, pid))
        assert found == pages


# The postmaster has 16 MB in huge pages, which its children share. Each child then writes into one of them.
INHERITED = """
#define _GNU_SOURCE
#include <pthread.h>
#include <string.h>
#include <sys/mman.h>
static char *inherited;
static long size = 16 << 20;
static void child(void) { inherited[size / 2] = 2; }
__attribute__((constructor)) static void start(void) {
    inherited = mmap(0, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    madvise(inherited, size, MADV_HUGEPAGE);
    memset(inherited, 1, size);
    pthread_atfork(0, 0, child);
}
"""


def test_huge_pages_shared_since_fork(tmp_path):
    """pagemap and smaps may say different things of them, and only of them. The extension says what pagemap says."""
    library = preload(tmp_path, INHERITED)
    with start_cluster(*QUIET, "shared_buffers = 16MB", LD_PRELOAD=library) as cluster, cluster.connect() as connection:
        with cluster.sessions(1) as [session]:
            for pid in session.info.backend_pid, cluster.postmaster:
                pages, found = stable(lambda pid=pid: from_pagemap(pid), lambda pid=pid: by_pagemap(connection, pid))
                assert found == pages
                _, different = stable(lambda pid=pid: smaps(pid), lambda pid=pid: list(differences(pid)))
                for mapping, by_pages, by_smaps in different:
                    print(f"{pid}: {by_pages} bytes by pagemap, {by_smaps} by smaps, in huge pages {mapping['keys']['AnonHugePages']}")
                    assert mapping["path"] == b"" and naive.number(mapping, "Rss") >= 16 * 1024
                    assert abs(by_pages - by_smaps) <= 16 * MB


@pytest.mark.parametrize("form", ["mmap", "sysv"])
def test_shared_memory_in_transparent_huge_pages(form):
    """The segment is not one of explicit huge pages, so huge is false. All that the machine has of it is resident."""

    before = from_meminfo("Shmem")
    # So that dynamic shared memory is not in the machine's figure.
    memory = ["shared_buffers = 32MB", f"shared_memory_type = {form}", "dynamic_shared_memory_type = mmap"]
    with setting(THP / "shmem_enabled", "always"), start_cluster(*QUIET, *memory) as cluster, cluster.connect() as connection:
        cluster.fill_shared_buffers(connection, "big", 20)
        with cluster.connect() as session:
            session.execute("SELECT count(*) FROM big")
            pid = session.info.backend_pid
            query = "SELECT sum(shmem_pmd_mapped)::bigint FROM pg_meminfo_smaps(%s) WHERE category = 'shared_memory'"
            text, found = stable(lambda: smaps(pid), lambda: connection.execute(query, [pid]).fetchone())
            mapped = total(text, "ShmemPmdMapped", b"s")
            if mapped == 0:
                pytest.skip("the segment has no transparent huge pages")
            assert found == (mapped,)
            row = whole(connection)
            main = "SELECT huge, size, resident FROM pg_meminfo_segments WHERE kind = 'main'"
            assert connection.execute(main).fetchall() == [(False, row["shared_memory"], row["shared_memory_resident"])]
            assert row["huge_pages_status"] == "off"
            assert mapped <= row["shared_memory_resident"]
            # The rest is the small System V segment that guards the main one. On Linux 5.10 it has a huge page.
            huge = int((THP / "hpage_pmd_size").read_text())
            assert 0 <= from_meminfo("Shmem") - before - row["shared_memory_resident"] <= huge + 32 * PAGE
            assert row["private"] < 20 * MB


# Each process has 2 MB which are the same in all of them, and which KSM may merge.
MERGEABLE = """
#define _GNU_SOURCE
#include <pthread.h>
#include <sys/mman.h>
#include <unistd.h>
static void child(void) {
    long size = 2 << 20, page = sysconf(_SC_PAGESIZE);
    char *p = mmap(0, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    madvise(p, size, MADV_NOHUGEPAGE);
    for (long at = 0; at < size; at += page) *(long *)(p + at) = at + 1;
    madvise(p, size, MADV_MERGEABLE);
}
__attribute__((constructor)) static void start(void) { pthread_atfork(0, 0, child); }
"""


def test_merged_pages(tmp_path):
    """Pages that KSM has merged are resident, and are not private, by pagemap as by smaps."""
    if not KSM.exists():
        pytest.skip("this kernel has no KSM")
    size = 2 * MB
    with contextlib.ExitStack() as stack:
        cluster = stack.enter_context(start_cluster(*QUIET, "shared_buffers = 16MB", LD_PRELOAD=preload(tmp_path, MERGEABLE)))
        connection = stack.enter_context(cluster.connect())
        [session] = stack.enter_context(cluster.sessions(1))
        pid = session.info.backend_pid
        assert_same(connection, pid)
        resident, private, _ = by_pagemap(connection, pid)
        everyones = whole(connection)["private"]
        processes = len(tree(cluster)) - 1
        stack.enter_context(setting(KSM / "sleep_millisecs", "10"))
        stack.enter_context(setting(KSM / "pages_to_scan", "10000"))
        # 2 separates the pages again.
        stack.callback((KSM / "run").write_text, "0")
        stack.callback((KSM / "run").write_text, "2")
        (KSM / "run").write_text("1")
        wait_until(lambda: int((KSM / "pages_sharing").read_text()) > 0.95 * (processes - 1) * size // PAGE)
        assert_same(connection, pid)
        text, (resident_now, private_now, _) = stable(lambda: smaps(pid), lambda: by_pagemap(connection, pid))
        assert abs(private - private_now - size) < MB // 4
        assert abs(resident - resident_now) < MB // 4
        assert everyones - whole(connection)["private"] > 0.95 * processes * size
        rollup = "SELECT ksm FROM pg_meminfo_rollup(%s)"
        [(ksm,)] = connection.execute(rollup, [pid]).fetchall()
        # Linux 6.6.
        assert ksm == (total(text, "KSM") if b"KSM:" in text else None)
        assert ksm is None or ksm >= size
        # The counters, and so the estimate, include them.
        state, estimate = stable(lambda: status(pid), lambda: connection.execute("SELECT private_estimate FROM pg_meminfo WHERE pid = %s", [pid]).fetchone())
        assert estimate == (state["RssAnon"] + state["VmSwap"] + state["VmPTE"],)
        assert estimate[0] > private_now + size


# On each processor, each process touches pages, or if a file exists, frees pages that it had touched on one.
ON_EACH_PROCESSOR = """
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
static void child(void) {{
    cpu_set_t all, one;
    long part = 24 * sysconf(_SC_PAGESIZE);
    int frees = access("{}", F_OK) == 0;
    sched_getaffinity(0, sizeof all, &all);
    char *p = mmap(0, CPU_SETSIZE * part, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    madvise(p, CPU_SETSIZE * part, MADV_NOHUGEPAGE);
    if (frees) memset(p, 1, CPU_COUNT(&all) * part);
    for (int i = 0, n = 0; i < CPU_SETSIZE; i++) {{
        if (!CPU_ISSET(i, &all)) continue;
        CPU_ZERO(&one);
        CPU_SET(i, &one);
        sched_setaffinity(0, sizeof one, &one);
        if (frees) madvise(p + n * part, part, MADV_DONTNEED); else memset(p + n * part, 1, part);
        n++;
    }}
    sched_setaffinity(0, sizeof all, &all);
}}
__attribute__((constructor)) static void start(void) {{ pthread_atfork(0, 0, child); }}
"""


def test_counters_and_pages(tmp_path):
    """Pages that were touched or freed on each processor: the counters of status may be off, and what is counted by
    pages is exact. GUEST_PROCESSORS=16 makes a virtual machine with many processors."""
    processors = len(os.sched_getaffinity(0))
    frees = tmp_path / "frees"
    library = preload(tmp_path, ON_EACH_PROCESSOR.format(frees))
    with start_cluster(*QUIET, "shared_buffers = 16MB", LD_PRELOAD=library) as cluster, cluster.connect() as connection:
        for action in "touched", "freed":
            if action == "freed":
                frees.touch()
            with cluster.sessions(3) as sessions:
                for session in sessions:
                    pid = session.info.backend_pid
                    assert_same(connection, pid)
                    text, state = stable(lambda pid=pid: smaps(pid), lambda pid=pid: status(pid))
                    anonymous = total(text, "Anonymous")
                    off = {"RssAnon": state["RssAnon"] - anonymous, "VmRSS": state["VmRSS"] - total(text, "Rss")}
                    print(f"{processors} processors, {action}: {anonymous} bytes, counters off by {off}")
                    query = "SELECT rss_anon, rss FROM pg_meminfo WHERE pid = %s"
                    assert connection.execute(query, [pid]).fetchone() == (state["RssAnon"], state["VmRSS"])
                    assert [abs(difference) <= bound for difference, bound in zip(off.values(), counter_bounds())] == [True, True]
