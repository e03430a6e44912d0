"""Processes that the kernel does not let the server read."""

import pytest
from conftest import preload, start_cluster

NOT_DUMPABLE = """
#include <sys/prctl.h>
__attribute__((constructor)) static void hide(void) { prctl(PR_SET_DUMPABLE, 0); }
"""


@pytest.fixture(scope="module")
def hidden(tmp_path_factory):
    """A cluster in which no process may read another."""
    with start_cluster(LD_PRELOAD=preload(tmp_path_factory.mktemp("hidden"), NOT_DUMPABLE)) as cluster:
        yield cluster


def run(connection, query):
    """A query's rows, and the notices that came with them."""
    notices = []

    def note(diagnostic):
        notices.append((diagnostic.severity, diagnostic.sqlstate, diagnostic.message_primary, diagnostic.message_hint))

    connection.add_notice_handler(note)
    try:
        return connection.execute(query).fetchall(), notices
    finally:
        connection.remove_notice_handler(note)


def assert_warns(notices, message):
    """There is one WARNING, with that message, and a HINT."""
    [(severity, sqlstate, primary, hint)] = notices
    assert (severity, sqlstate, primary) == ("WARNING", "01000", message)
    assert "dumpable" in hint


def test_all_processes_are_counted_in_one_warning(hidden):
    with hidden.connect() as connection:
        own = [(connection.info.backend_pid,)]
        others = connection.execute("SELECT count(*) - 1 FROM pg_stat_activity").fetchone()[0]
        rows, notices = run(connection, "SELECT DISTINCT pid FROM get_all_smaps()")
        assert rows == own
        assert_warns(notices, f"could not read the memory of {others} processes: permission denied")


def test_one_warning_a_statement_for_functions_of_a_pid(hidden):
    with hidden.connect() as connection:
        first = "SELECT pid FROM pg_stat_activity WHERE backend_type = 'checkpointer'"
        [(pid,)] = connection.execute(first).fetchall()
        message = f"could not read the memory of process {pid}: permission denied"
        for _ in range(2):
            rows, notices = run(connection, f"SELECT * FROM pg_meminfo_smaps({pid})")
            assert rows == []
            assert_warns(notices, message)
        rows, notices = run(connection, "SELECT pid FROM smap_summary")
        assert rows == [(connection.info.backend_pid,)]
        assert len(notices) == 1


def test_own_process_is_readable(hidden):
    with hidden.connect() as connection:
        rows, notices = run(connection, "SELECT * FROM pg_meminfo_smaps(pg_backend_pid())")
        assert len(rows) > 10
        assert notices == []
