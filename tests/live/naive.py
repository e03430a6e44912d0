"""An independent parser of smaps: slow, obvious, and without any code of the extension.

It gives what each SQL function must return for the text of a file.
"""

import re

HEADER = re.compile(
    rb"(?P<start>[0-9a-f]+)-(?P<end>[0-9a-f]+) (?P<permissions>\S{4}) (?P<offset>[0-9a-f]+) "
    rb"(?P<major>[0-9a-f]+):(?P<minor>[0-9a-f]+) (?P<inode>[0-9]+)(?: +(?P<path>.*))?",
    re.DOTALL,
)

# The kernel's key for each column of get_all_smaps(), from mem_size on.
CONTRACT_KEYS = [
    "Size", "KernelPageSize", "MMUPageSize", "Rss", "Pss", "Pss_Dirty", "Shared_Clean", "Shared_Dirty",
    "Private_Clean", "Private_Dirty", "Referenced", "Anonymous", "KSM", "LazyFree", "AnonHugePages",
    "ShmemPmdMapped", "FilePmdMapped", "Shared_Hugetlb", "Private_Hugetlb", "Swap", "SwapPss", "Locked",
    "THPeligible",
]  # fmt: skip

# The same for pg_meminfo_rollup().
ROLLUP_KEYS = [
    "Rss", "Pss", "Pss_Dirty", "Pss_Anon", "Pss_File", "Pss_Shmem", *CONTRACT_KEYS[6:-1],
]  # fmt: skip

# The columns of pg_meminfo_smaps() that the kernel prints: all except category.
SMAPS_COLUMNS = """
    start_address, end_address, permissions, byte_offset, device, inode, name, size, kernel_page_size, mmu_page_size, rss, pss,
    pss_dirty, shared_clean, shared_dirty, private_clean, private_dirty, referenced, anonymous, ksm, lazy_free,
    anon_huge_pages, shmem_pmd_mapped, file_pmd_mapped, shared_hugetlb, private_hugetlb, swap, swap_pss, locked, thp_eligible,
    protection_key, vm_flags
"""


def parse(text):
    """A dictionary for each mapping: the fields of its header, and "keys"."""
    mappings = []
    for line in text.split(b"\n")[:-1]:
        if header := HEADER.fullmatch(line):
            mapping = header.groupdict()
            mapping["path"] = mapping["path"] or b""
            mapping["keys"] = {}
            mappings.append(mapping)
        else:
            key, value = line.split(b":", 1)
            mappings[-1]["keys"][key.decode()] = value.decode().strip()
    return mappings


def number(mapping, key):
    """The number of a key without its unit, None if the key is missing."""
    value = mapping["keys"].get(key)
    return None if value is None else int(value.removesuffix(" kB"))


def contract_rows(pid, text):
    """What get_all_smaps() returns for a process."""

    def int4(value):
        return value if value < 2**31 else None

    rows = []
    for mapping in parse(text):
        row = [pid] + [mapping[part].decode() for part in ("start", "end", "permissions", "offset", "major", "minor")]
        row += [int4(int(mapping["inode"])), mapping["path"].decode()]
        row += [int4(number(mapping, key) or 0) for key in CONTRACT_KEYS]
        row += [mapping["keys"].get("VmFlags", "")]
        rows.append(tuple(row))
    return rows


def smaps_rows(text):
    """What pg_meminfo_smaps() returns for a process, in SMAPS_COLUMNS."""

    def int8(value):
        return value if value is not None and value < 2**63 else None

    rows = []
    for mapping in parse(text):
        row = [mapping[part].decode() for part in ("start", "end", "permissions")]
        row += [int8(int(mapping["offset"], 16)), (mapping["major"] + b":" + mapping["minor"]).decode()]
        row += [int8(int(mapping["inode"])), mapping["path"].decode() or None]
        for key in CONTRACT_KEYS[:-1]:
            kilobytes = number(mapping, key)
            row.append(None if kilobytes is None else int8(kilobytes * 1024))
        eligible = number(mapping, "THPeligible")
        row += [None if eligible is None else eligible != 0, number(mapping, "ProtectionKey")]
        row += [mapping["keys"].get("VmFlags")]
        rows.append(tuple(row))
    return rows


def rollup_row(text):
    """What pg_meminfo_rollup() returns for a process."""
    [record] = parse(text)
    row = []
    for key in ROLLUP_KEYS:
        kilobytes = number(record, key)
        row.append(None if kilobytes is None else kilobytes * 1024)
    return tuple(row)


def summary_row(pid, text):
    """What smap_summary returns for a process."""
    mappings = parse(text)
    row = [pid]
    for key in CONTRACT_KEYS:
        values = [number(mapping, key) or 0 for mapping in mappings]
        row.append(max(values) if key.endswith("PageSize") else sum(values))
    return tuple(row)
