"""Paths that are not valid in the database's encoding."""

import pytest
from conftest import preload, start_cluster

# An é in Latin-1, one in UTF-8, and a byte that is valid in neither UTF-8 nor EUC_JP.
NAME = b"caf\xe9-\xc3\xa9-\xff.so"


@pytest.fixture(scope="module")
def named(tmp_path_factory):
    """A cluster whose processes have mapped a library with this name."""
    library = preload(tmp_path_factory.mktemp("encoding"), "int nothing;", NAME)
    with start_cluster(LD_PRELOAD=library) as cluster:
        yield cluster


@pytest.mark.parametrize(
    ("encoding", "shown"),
    [
        ("UTF8", rb"caf\xe9-" + b"\xc3\xa9" + rb"-\xff.so"),
        # Every byte is a character.
        ("LATIN1", NAME),
        ("SQL_ASCII", NAME),
        # The bytes of the é in UTF-8 are a valid character here, too. Each of the other two starts an incomplete one.
        ("EUC_JP", rb"caf\xe9-" + b"\xc3\xa9" + rb"-\xff.so"),
    ],
)
def test_bytes_that_are_no_character_are_escaped(named, encoding, shown):
    with named.connect() as connection:
        connection.execute(f"CREATE DATABASE d_{encoding} ENCODING '{encoding}' TEMPLATE template0 LOCALE 'C'")
    with named.connect(dbname=f"d_{encoding.lower()}") as connection:
        connection.execute("CREATE EXTENSION pg_meminfo")
        # textsend() returns the stored bytes, as the client's encoding is that of the database.
        connection.execute(f"SET client_encoding = '{encoding}'")
        for query in [
            "SELECT DISTINCT textsend(sys_path) FROM get_all_smaps() WHERE sys_path ~ '/caf[^/]*$'",
            "SELECT DISTINCT textsend(name) FROM pg_meminfo_smaps(pg_backend_pid()) WHERE name ~ '/caf[^/]*$'",
        ]:
            [(path,)] = connection.execute(query).fetchall()
            assert path.rsplit(b"/", 1)[-1] == shown
