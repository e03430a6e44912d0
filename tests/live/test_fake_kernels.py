"""What other kernels print, read through SQL: fixtures mounted over the /proc files of a live session.

The cluster has a mount namespace of its own, so the machine's /proc does not change.
"""

import contextlib
import re
import subprocess

import naive
import psycopg
import pytest
from conftest import ROOT, in_mounts, start_cluster

pytestmark = pytest.mark.one_major

HEADER = "7f0000000000-7f0000001000 rw-p 00000000 00:00 0 "
KEYS = "Size:                  4 kB\nRss:                   4 kB\nVmFlags: rd wr mr \n"


@contextlib.contextmanager
def faked(name):
    """A session in a cluster of its own, with a file of ours mounted over one of its files in /proc."""
    with start_cluster(within=in_mounts()) as cluster, cluster.connect() as session, cluster.connect() as reader:
        target = f"/proc/{session.info.backend_pid}/{name}"
        fixture = cluster.data / "fake"
        fixture.write_bytes(b"")
        fixture.chmod(0o644)
        subprocess.run(
            ["nsenter", "--target", str(cluster.postmaster), "--mount", "mount", "--bind", fixture, target], check=True
        )
        yield Fake(reader, session.info.backend_pid, fixture, target)


def fixture_of(name):
    """A fixture for all tests of one file: a session with a fake file, whose text each test sets."""

    @pytest.fixture(scope="module")
    def fixture():
        with faked(name) as fake:
            yield fake

    return fixture


fake, fake_rollup, fake_maps, fake_status = map(fixture_of, ["smaps", "smaps_rollup", "maps", "status"])


class Fake:
    """A session with a fake file in /proc."""

    def __init__(self, reader, pid, fixture, target):
        self.reader = reader
        self.pid = pid
        self.fixture = fixture
        self.target = target

    def query(self, text, query):
        """What a query about the session returns for this text."""
        self.fixture.write_bytes(text if isinstance(text, bytes) else text.encode())
        # Some queries are about the whole cluster.
        return self.reader.execute(query, [self.pid] if "%s" in query else None).fetchall()

    def contract(self, text, columns="*"):
        return self.query(text, f"SELECT {columns} FROM get_all_smaps() WHERE pid = %s")

    def smaps(self, text, columns=naive.SMAPS_COLUMNS):
        return self.query(text, f"SELECT {columns} FROM pg_meminfo_smaps(%s)")

    def summary(self, text, columns="*"):
        return self.query(text, f"SELECT {columns} FROM smap_summary WHERE pid = %s")

    def rollup(self, text, columns="*"):
        return self.query(text, f"SELECT {columns} FROM pg_meminfo_rollup(%s)")

    @contextlib.contextmanager
    def refused(self, line):
        """The statement fails because this line does not belong in the file. The session works afterwards."""
        with pytest.raises(psycopg.errors.DataCorrupted) as error:
            yield
        assert error.value.diag.message_primary == f'could not parse file "{self.target}"'
        assert error.value.diag.message_detail.startswith(f"Line {line} is neither a mapping nor")
        assert self.reader.execute("SELECT count(*) > 10 FROM pg_meminfo_smaps(pg_backend_pid())").fetchone() == (True,)


def assert_read(fake, text):
    """All functions return what the naive parser gets. Returns the number of mappings."""
    rows = naive.contract_rows(fake.pid, text)
    assert fake.contract(text) == rows
    assert fake.smaps(text) == naive.smaps_rows(text)
    assert fake.summary(text) == ([naive.summary_row(fake.pid, text)] if rows else [])
    return len(rows)


# Kernels without a fixture print what a later one prints, without these keys. A vendor kernel adds keys, to be ignored.
OTHERS = {
    "linux-3.7": ("linux-3.10", ["VmFlags"]),
    "linux-4.3": ("linux-4.4", ["Shared_Hugetlb", "Private_Hugetlb"]),
    "linux-4.6": ("linux-4.14", ["LazyFree", "ShmemPmdMapped"]),
    "linux-4.8": ("linux-4.14", ["LazyFree"]),
    "linux-5.0": ("linux-5.4", ["FilePmdMapped"]),
    "linux-6.0": ("linux-6.6", ["KSM"]),
    "vendor-4.4": ("linux-4.4", []),
}

# The first kernel that prints a column, if not all do, and the name of the column in get_all_smaps().
SINCE = {
    "vm_flags": (3, 8, "vm_flags"),
    "swap_pss": (4, 3, "swap_pss"),
    "shared_hugetlb": (4, 4, "shared_huge_tlb"),
    "private_hugetlb": (4, 4, "private_huge_tlb"),
    "protection_key": (4, 6, None),
    "shmem_pmd_mapped": (4, 8, "shmem_pmd_mapped"),
    "lazy_free": (4, 12, "lazy_free"),
    "thp_eligible": (5, 0, "thp_eligible"),
    "file_pmd_mapped": (5, 4, "file_pmd_mapped"),
    "pss_dirty": (6, 0, "pss_dirty"),
    "ksm": (6, 6, "ksm"),
}


def smaps_of(kernel):
    """What a kernel prints in smaps."""
    fixture, later = OTHERS.get(kernel, (kernel, []))
    lines = (ROOT / f"tests/fixtures/{fixture}.smaps").read_text().splitlines(keepends=True)
    text = "".join(line for line in lines if line.split(":")[0] not in later)
    if kernel.startswith("vendor"):
        # Android prints the name on a line after the header.
        text = text.replace("\nSize: ", "\nName:           [anon:a name]\nSize: ")
        text = text.replace("VmFlags", "ptes@4kB:          8888 kB\nrss:    9999 kB\nVmFlags")
    return text.encode()


KERNELS = sorted([*OTHERS, *(path.stem for path in (ROOT / "tests/fixtures").glob("*.smaps"))])


@pytest.mark.parametrize("kernel", KERNELS)
def test_what_a_kernel_does_not_print(fake, kernel):
    """It is 0 or the empty string in get_all_smaps(), NULL in pg_meminfo_smaps(), never the value of another column."""
    text = smaps_of(kernel)
    assert assert_read(fake, text) == 6
    version = tuple(int(number) for number in kernel.split("-")[1].split("."))
    for column, (*since, in_contract) in SINCE.items():
        # Only some processors have protection keys.
        is_printed = version >= tuple(since) and (column != "protection_key" or b"ProtectionKey" in text)
        assert (set(fake.smaps(text, column)) == {(None,)}) == (not is_printed), column
        if in_contract == "vm_flags":
            assert (set(fake.contract(text, column)) == {("",)}) == (not is_printed)
        elif in_contract:
            assert (set(fake.contract(text, in_contract)) == {(0,)}) == (not is_printed), column
            assert (fake.summary(text, in_contract) == [(0,)]) == (not is_printed), column


@pytest.mark.parametrize(("major", "minor"), [("103", "05"), ("00", "1a3"), ("fff", "fffff")])
def test_devices_wider_than_two_digits(fake, major, minor):
    text = f"00400000-00401000 r--p 00000000 {major}:{minor} 12   /bin/a\n{KEYS}"
    assert fake.contract(text, "dev_major, dev_minor") == [(major, minor)]
    assert fake.smaps(text, "device") == [(f"{major}:{minor}",)]


@pytest.mark.parametrize(
    ("inode", "int4", "int8"),
    [
        (2**31 - 1, 2**31 - 1, 2**31 - 1),
        (2**31, None, 2**31),
        (8594129217, None, 8594129217),
        (2**63 - 1, None, 2**63 - 1),
        (2**63, None, None),
        (2**64 - 1, None, None),
        (2**64, None, None),
    ],
)
def test_inodes_of_64_bits(fake, inode, int4, int8):
    text = f"00400000-00401000 r--p 00000000 fe:00 {inode}   /bin/a\n{KEYS}"
    assert fake.contract(text, "inode, sys_path") == [(int4, "/bin/a")]
    assert fake.smaps(text, "inode, name") == [(int8, "/bin/a")]


@pytest.mark.parametrize(
    ("kilobytes", "int4", "int8"),
    [
        (2**31 - 1, 2**31 - 1, (2**31 - 1) * 1024),
        (2 * 2**30, None, 2 * 2**40),
        (16 * 2**30, None, 16 * 2**40),
        (2**53 - 1, None, 2**63 - 1024),
        (2**53, None, None),
        (2**64 - 1, None, None),
        (2**64, None, None),
    ],
)
def test_sizes_of_64_bits(fake, kilobytes, int4, int8):
    text = f"{HEADER}\nSize: {kilobytes} kB\nRss: 4 kB\n"
    assert fake.contract(text, "mem_size, rss") == [(int4, 4)]
    assert fake.smaps(text, "size, rss") == [(int8, 4096)]
    if int8 is not None:
        twice = text + text
        if 2 * int8 < 2**63:
            assert fake.summary(twice, "mem_size, rss") == [(2 * kilobytes, 8)]


def test_offsets_of_64_bits(fake):
    for offset, number in [("0000000000001000", 4096), ("7fffffffffffffff", 2**63 - 1), ("ffffffffffffffff", None)]:
        text = f"00400000-00401000 r--p {offset} fe:00 12   /bin/a\n{KEYS}"
        assert fake.contract(text, "byte_offset") == [(offset,)]
        assert fake.smaps(text, "byte_offset") == [(number,)]


@pytest.mark.parametrize(
    "path",
    [
        "/tmp/two  blanks",
        "/tmp/a\ttab",
        "/tmp/trailing ",
        "/tmp/gone (deleted)",
        r"/tmp/new\012line",
        "/tmp/Rss: 12 kB",
        "/" + "p" * 4095,
        "/" + r"\012" * 4095,
        "[anon: glibc: malloc arena]",
        "anon_inode:[io_uring]",
        "/memfd:foo bar (deleted)",
        "/tmp/Ünïcödé",
    ],
    ids=lambda path: path[:20],
)
def test_paths_are_kept_whole(fake, path):
    text = f"{HEADER}     {path}\n{KEYS}"
    assert fake.contract(text, "sys_path, rss") == [(path, 4)]
    assert fake.smaps(text, "name, rss") == [(path, 4096)]


@pytest.mark.parametrize(
    ("line", "contract", "new"),
    [
        ("", "", None),
        ("VmFlags:\n", "", ""),
        ("VmFlags: \n", "", ""),
        ("VmFlags: rd ?? long \n", "rd ?? long", "rd ?? long"),
        ("VmFlags: " + "mm " * 40 + "\n", " ".join(["mm"] * 40), " ".join(["mm"] * 40)),
    ],
)
def test_flags_of_the_first_mapping(fake, line, contract, new):
    text = f"{HEADER}\nRss: 4 kB\n{line}{HEADER}\n{KEYS}"
    assert fake.contract(text, "rss, vm_flags") == [(4, contract), (4, "rd wr mr")]
    assert fake.smaps(text, "rss, vm_flags") == [(4096, new), (4096, "rd wr mr")]


def test_unknown_keys_at_every_position(fake):
    original = (ROOT / "tests/fixtures/linux-6.1.smaps").read_bytes()
    lines = original.splitlines(keepends=True)[:48]
    expected = naive.contract_rows(fake.pid, b"".join(lines))
    for unknown in [b"Nonlinear: 7 kB\n", b"dead: 7 kB\n", b"rss: 7 kB\n", b"Name:   [heap]\n", b"Rss_Shadow: 7 kB\n"]:
        for at in range(1, len(lines) + 1):
            assert fake.contract(b"".join(lines[:at]) + unknown + b"".join(lines[at:])) == expected


@pytest.mark.parametrize("line", ["Rss:", "Rss: ", "Rss: kB", "Rss: 4", "Rss: 4 MB", "Rss: -4 kB", "Rss: four kB"])
def test_a_value_that_is_no_number_of_kilobytes_is_null(fake, line):
    text = f"{HEADER}\nSize: 8 kB\n{line}\nPss: 2 kB\n"
    assert fake.contract(text, "mem_size, rss, pss") == [(8, None, 2)]
    assert fake.smaps(text, "size, rss, pss") == [(8192, None, 2048)]


def test_a_file_cut_at_every_byte(fake):
    """Cut between two lines, it is a valid file with fewer keys, as of older kernels. Cut elsewhere, it is an error."""
    text = (ROOT / "tests/fixtures/linux-3.10.smaps").read_bytes()
    text = b"".join(text.splitlines(keepends=True)[:32])
    for at in range(len(text) + 1):
        part = text[:at]
        if part == b"" or part.endswith(b"\n"):
            assert_read(fake, part)
        else:
            with fake.refused(part.count(b"\n") + 1):
                fake.contract(part)


def test_an_empty_file(fake):
    assert assert_read(fake, b"") == 0


GARBAGE = [b"\x00", b"\x7fELF\x02\x01\x01" + bytes(range(256)), b"\n", b"no colon here\n", b"Rss: 4 kB\n"]


@pytest.mark.parametrize("garbage", GARBAGE)
def test_garbage_is_refused(fake, garbage):
    for function in fake.contract, fake.smaps, fake.summary:
        with fake.refused(1):
            function(garbage)
        with fake.refused(5):
            function(f"{HEADER}\n{KEYS}".encode() + garbage.replace(b"Rss", b"R s"))


def test_a_message_in_the_contract_is_of_the_process_that_has_it(fake):
    """get_all_smaps() fails as a whole. A query about other processes through smap_summary does not."""
    with fake.refused(1):
        fake.query(b"garbage\n", "SELECT * FROM get_all_smaps() WHERE pid <> %s")
    assert fake.query(b"garbage\n", "SELECT count(*) > 3 FROM smap_summary WHERE pid <> %s") == [(True,)]


# The kernels from 4.14 on, and the columns of pg_meminfo_rollup() that are NULL there.
ROLLUPS = {
    "linux-4.14": {"pss_dirty", "pss_anon", "pss_file", "pss_shmem", "ksm", "file_pmd_mapped"},
    "linux-5.0": {"pss_dirty", "pss_anon", "pss_file", "pss_shmem", "ksm", "file_pmd_mapped"},
    "linux-5.4": {"pss_dirty", "ksm"},
    "linux-6.0": {"ksm"},
    "linux-6.1": {"ksm"},
    "linux-6.6": set(),
}


def rollup_of(kernel):
    """What a kernel prints in smaps_rollup, with the numbers of the first mapping in its smaps."""
    lines = smaps_of(kernel).decode().splitlines(keepends=True)
    keys = [line.split(":")[0] for line in lines]
    record = "00400000-7ffd3a803000 ---p 00000000 00:00 0                              [rollup]\n"
    for key, line in zip(keys[1:keys.index("VmFlags")], lines[1:]):
        if key not in ("Size", "KernelPageSize", "MMUPageSize", "THPeligible", "ProtectionKey"):
            record += line
        # The last key before these three.
        if key == ("Pss_Dirty" if "Pss_Dirty" in keys else "Pss") and "pss_anon" not in ROLLUPS[kernel]:
            record += "Pss_Anon:            501 kB\nPss_File:            502 kB\nPss_Shmem:           503 kB\n"
    return record


@pytest.mark.parametrize("kernel", ROLLUPS)
def test_rollups(fake_rollup, kernel):
    text = rollup_of(kernel)
    assert fake_rollup.rollup(text) == [naive.rollup_row(text.encode())]
    [values] = fake_rollup.rollup(text)
    names = [column.name for column in fake_rollup.reader.execute("SELECT * FROM pg_meminfo_rollup(0)").description]
    assert {name for name, value in zip(names, values) if value is None} == ROLLUPS[kernel]
    # No number is in two columns.
    present = [value for value in values if value is not None]
    assert len(set(present)) == len(present) and 0 not in present


def test_a_rollup_of_zeros(fake_rollup):
    """As Linux 6.1-rc1 prints it: what the kernel prints is 0, what it does not print is NULL."""
    text = re.sub(r" +\d+ kB", "        0 kB", rollup_of("linux-6.1"))
    assert fake_rollup.rollup(text) == [tuple(None if value is None else 0 for value in naive.rollup_row(text.encode()))]
    assert fake_rollup.rollup(text, "rss, pss_anon, locked, ksm") == [(0, 0, 0, None)]


def test_a_rollup_of_large_numbers(fake_rollup):
    header = rollup_of("linux-6.6").splitlines()[0]
    for kilobytes, int8 in [(2 * 2**30, 2 * 2**40), (2**53 - 1, 2**63 - 1024), (2**53, None), (2**64, None)]:
        text = f"{header}\nRss: {kilobytes} kB\nPss: 4 kB\nSwap: 4\n"
        assert fake_rollup.rollup(text, "rss, pss, swap") == [(int8, 4096, None)]


def test_an_empty_rollup(fake_rollup):
    """An empty file gives no row. A header without keys gives a row of NULLs."""
    assert fake_rollup.rollup("") == []
    header = rollup_of("linux-6.6").splitlines(keepends=True)[0]
    assert fake_rollup.rollup(header) == [(None,) * 22]


def test_a_rollup_cut_at_every_byte(fake_rollup):
    text = rollup_of("linux-4.14").encode()
    for at in range(1, len(text) + 1):
        part = text[:at]
        if part.endswith(b"\n"):
            assert fake_rollup.rollup(part) == [naive.rollup_row(part)]
        else:
            with fake_rollup.refused(part.count(b"\n") + 1):
                fake_rollup.rollup(part)


@pytest.mark.parametrize("garbage", GARBAGE)
def test_a_rollup_of_garbage_is_refused(fake_rollup, garbage):
    with fake_rollup.refused(1):
        fake_rollup.rollup(garbage)
    text = rollup_of("linux-6.6").encode()
    with fake_rollup.refused(text.count(b"\n") + 1):
        fake_rollup.rollup(text + garbage.replace(b"Rss", b"R s"))


# None of these belongs in maps: lines of smaps, a line without its newline, an incomplete line, addresses of more than
# 64 bits.
NO_MAPS = [
    *GARBAGE,
    KEYS.encode(),
    HEADER.encode(),
    b"7f0000000000-7f0000001000 rw-p 00000000 00:00\n",
    b"10000000000000000-10000000000001000 rw-p 00000000 00:00 0 \n",
]


@pytest.mark.parametrize("garbage", NO_MAPS)
@pytest.mark.parametrize("function", ["pg_meminfo_private(%s)", "pg_meminfo_segments", "pg_meminfo_cluster"])
def test_maps_of_garbage_are_refused(fake_maps, function, garbage):
    """Leaving out a mapping would make a sum too small."""
    query = f"SELECT * FROM {function}"
    for text in garbage, f"{HEADER}\n".encode() + garbage:
        with pytest.raises(psycopg.errors.DataCorrupted) as error:
            fake_maps.query(text, query)
        assert error.value.diag.sqlstate == "XX001"
        assert error.value.diag.message_primary == f'could not parse file "{fake_maps.target}"'
        assert error.value.diag.message_detail == "A line is not in the form that proc(5) describes."
    # With valid maps, each function returns rows in the same session.
    assert fake_maps.query(f"{HEADER}\n", query)
    assert fake_maps.query(f"{HEADER}\n", "SELECT category, mappings, virtual_size FROM pg_meminfo_private(%s)") == [("malloc", 1, 4096)]


@pytest.mark.parametrize(
    "range",
    ["7f0000002000-7f0000001000", "7f0000001000-7f0000001000", "ffffffffffffffff-0", "7f0000001001-7f0000001002"],
)
def test_maps_that_make_no_sense(fake_maps, range):
    """No kernel prints such lines. They do not affect the other mappings."""
    before, after = HEADER, HEADER.replace("7f0000000", "7f0000001").replace("-7f0000001", "-7f0000002", 1)
    text = f"{before}\n{range} rw-p 00000000 00:00 0 \n{after}\n{before}\n"
    query = "SELECT sum(mappings)::int FROM pg_meminfo_private(%s)"
    assert fake_maps.query(text, query) == [(4,)]
    assert len(fake_maps.query(text, "SELECT * FROM pg_meminfo_cluster")) == 1
    fake_maps.query(text, "SELECT * FROM pg_meminfo_segments")


# The status of a session, as Linux 3.10 prints it.
STATUS = """\
Name:	postgres
State:	S (sleeping)
Tgid:	4242
Ngid:	0
Pid:	4242
PPid:	4200
TracerPid:	0
Uid:	26	26	26	26
Gid:	26	26	26	26
FDSize:	64
Groups:	26 
VmPeak:	  234052 kB
VmSize:	  234000 kB
VmLck:	       1 kB
VmPin:	       2 kB
VmHWM:	    5804 kB
VmRSS:	    5800 kB
VmData:	     952 kB
VmStk:	     132 kB
VmExe:	    5720 kB
VmLib:	   17676 kB
VmPTE:	     180 kB
VmSwap:	     140 kB
Threads:	1
SigQ:	0/7259
Cpus_allowed:	ffff
voluntary_ctxt_switches:	14
nonvoluntary_ctxt_switches:	2
"""


@pytest.mark.kernels
def test_the_status_of_linux_3_10(fake_status):
    """It does not print anonymous memory separately, so private_estimate is NULL. The OOM killer's measure is known."""
    columns = "virtual_size, rss, peak_rss, locked, swap, page_tables, threads, rss_anon, rss_file, rss_shmem, hugetlb"
    sizes = [1024 * kilobytes for kilobytes in (234000, 5800, 5804, 1, 140, 180)]
    expected = (*sizes, 1, None, None, None, None)
    assert fake_status.query(STATUS, f"SELECT {columns} FROM pg_meminfo_processes() WHERE pid = %s") == [expected]
    query = f"SELECT {columns}, private_estimate, oom_charge, oom_score >= 0, backend_type FROM pg_meminfo WHERE pid = %s"
    assert fake_status.query(STATUS, query) == [(*expected, None, 1024 * (5800 + 140 + 180), True, "client backend")]
    # Linux 4.4 prints huge pages as well, and still no anonymous memory.
    text = STATUS.replace("Threads", "HugetlbPages:	    2048 kB\nThreads")
    assert fake_status.query(text, "SELECT hugetlb, rss_anon, private_estimate FROM pg_meminfo WHERE pid = %s") == [(2048 * 1024, None, None)]
    query = "SELECT unreadable, private > 0, page_tables > 0, swap >= 140 * 1024, page_tables_saved >= 0 FROM pg_meminfo_cluster"
    assert fake_status.query(STATUS, query) == [(0, True, True, True, True)]
