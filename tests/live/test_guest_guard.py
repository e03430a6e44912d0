"""The guard where the limit is the memory of the machine. Only the virtual machines of scripts/check-kernels have none
to lose."""

import psycopg
import pytest
from conftest import OOM_ADJUST, PRELOADED, protect, rows, start_cluster, wait_until
from eaters import EATERS, SETTINGS

pytestmark = [pytest.mark.guest, pytest.mark.trials]


@pytest.mark.parametrize("action", ["brake", "cancel"])
def test_the_machine_does_not_run_out_of_memory(action):
    settings = [PRELOADED, "shared_buffers = 16MB", "pg_meminfo.min_headroom = '20%'", f"pg_meminfo.guard_action = {action}"]
    with start_cluster(*settings, **OOM_ADJUST) as cluster, cluster.connect() as bystander:
        protect(cluster)
        guard = "SELECT headroom, memory_limit FROM pg_meminfo_guard"
        wait_until(lambda: bystander.execute(guard).fetchone()[0] is not None)
        [host] = rows(bystander.execute("SELECT * FROM pg_meminfo_host"))
        assert host["headroom_source"] == "host"
        assert bystander.execute(guard).fetchone()[1] == host["memory_total"]
        for name in "repeat", "blocks", "plpgsql":
            with cluster.connect(*SETTINGS) as session:
                with pytest.raises((psycopg.errors.OutOfMemory, psycopg.errors.QueryCanceled)) as raised:
                    session.execute(EATERS[name])
                assert raised.value.diag.message_hint == "Lower work_mem, or process fewer rows at a time. See pg_meminfo_guard.", name
        assert bystander.execute("SELECT oom_kills FROM pg_meminfo_host").fetchone()[0] == host["oom_kills"]
