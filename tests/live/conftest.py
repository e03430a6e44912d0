"""Live clusters for the tests: the shared one, which scripts/with-cluster starts, and those that single tests start."""

import contextlib
import mmap
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time
import uuid

import psycopg
import pytest

ROOT = pathlib.Path(__file__).parents[2]

# pg_meminfo.readers in each session. The tests are the same for any number.
READERS = int(os.environ.get("READERS", "1"))

# Multiplies the time limits of the tests: of wait_until() and of the few tests that have one of their own. A machine in
# software emulation needs 10 or more.
PATIENCE = float(os.environ.get("PATIENCE", "1"))

# The size of a page: 4 kB on x86-64, 4, 16 or 64 kB on AArch64.
PAGE = mmap.PAGESIZE


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config):
    """Puts temporary files where scripts/with-cluster removes them."""
    config.option.basetemp = pathlib.Path(os.environ["PGDATA"]).parent / "pytest"
    # A shell has background jobs ignore SIGQUIT. The clusters that we start would inherit that, and we stop them by it.
    signal.signal(signal.SIGQUIT, signal.SIG_DFL)
    # Turn SIGTERM into an exception, so that each test undoes its changes.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    config.addinivalue_line("markers", "long: needs minutes, so only make check-long runs it")
    # The tests marked with kernels tell something about the kernel. In software emulation they run 5 to 20 times
    # longer, so of several that are alike only one is marked. Others are not marked for these reasons:
    # - test_reading.py, test_memory.py, test_server.py and test_a_cancel_while_a_large_process_is_read depend on the
    #   speed of the machine: they make hundreds of calls, or stop a call while it reads.
    # - test_a_parallel_hash_join_has_its_leader, test_a_sort_is_private_memory_while_it_lasts, test_all_of_it_resident
    #   and test_a_pod_near_its_limit need much memory.
    # - Nearly all of test_fake_kernels.py, and other tests that replace a file or a system call, do not depend on the
    #   kernel.
    config.addinivalue_line("markers", "kernels: also run by make check-kernels, in each kernel")
    config.addinivalue_line("markers", "one_major: depends on no major version of PostgreSQL, so make check-all runs it on one of them")
    config.addinivalue_line("markers", "trials: the guard's trials; in a guest they take long, so only where trials=1")
    config.addinivalue_line("markers", "guest: changes the machine, so only make check-kernels runs it, in a guest")


def each_kernel(*values):
    """A set of parameters whose tests are also run by make check-kernels."""
    return pytest.param(*values, marks=pytest.mark.kernels)


def one_major(*values):
    """A set of parameters whose tests depend on no major version of PostgreSQL."""
    return pytest.param(*values, marks=pytest.mark.one_major)


def wait_until(condition):
    """Waits until a condition is true. Fails after a minute, times PATIENCE."""
    deadline = time.monotonic() + 60 * PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"waited for {60 * PATIENCE:g} s"
        time.sleep(0.001)


def insert_in_pieces(connection, inserts):
    """Inserts into an unlogged table, and writes each piece to disk: the limit of a version 1 cgroup does not make
    writers wait for that, and the cluster has fsync = off."""
    for insert in inserts:
        connection.execute(insert)
        # It sets the hint bits. Otherwise the first statement that reads the table would write it again.
        connection.execute("VACUUM")
        os.sync()


class Cluster:
    """A running cluster with the extension in its database postgres."""

    def __init__(self, host, data):
        self.host = host
        self.data = pathlib.Path(data)
        with self.connect() as connection:
            if connection.execute("SELECT NOT pg_is_in_recovery()").fetchone()[0]:
                connection.execute("CREATE EXTENSION IF NOT EXISTS pg_meminfo")

    def connect(self, *settings, **parameters):
        """A new session, in autocommit mode."""
        settings = ["jit=off", f"pg_meminfo.readers={READERS}", *settings]
        options = " ".join(f"-c {setting}" for setting in settings)
        defaults = {"host": self.host, "port": 5432, "user": "postgres", "dbname": "postgres", "autocommit": True, "options": options}
        return psycopg.connect(**(defaults | parameters))

    @contextlib.contextmanager
    def sessions(self, count):
        """This many idle sessions, until the end of the block."""
        with contextlib.ExitStack() as stack:
            yield [stack.enter_context(self.connect()) for _ in range(count)]

    def fill_shared_buffers(self, connection, table, megabytes):
        """Creates a table of this size, all of it in shared buffers if they are larger."""
        # CREATE TABLE AS would use only the few buffers of a ring.
        connection.execute(f"CREATE TABLE {table} (n int, x text)")
        rows = megabytes * 1000
        connection.execute(f"INSERT INTO {table} SELECT n, repeat('x', 950) FROM generate_series(1, {rows}) AS n")

    @contextlib.contextmanager
    def running(self, query, *settings):
        """The pid of a session that runs a query until the end of the block."""
        session = self.connect(*settings)
        try:
            session.pgconn.send_query(query.encode())
            yield session.info.backend_pid
        finally:
            session.cancel()
            session.pgconn.finish()

    @contextlib.contextmanager
    def running_in_parallel(self, connection):
        """The pid of the leader of a parallel query with two workers, which runs until the end of the block."""
        connection.execute(
            "CREATE FUNCTION slow() RETURNS int LANGUAGE plpgsql PARALLEL SAFE AS 'BEGIN PERFORM pg_sleep(1000); RETURN 1; END'"
        )
        connection.execute("CREATE TABLE many AS SELECT generate_series(1, 1000) AS n")
        settings = ["parallel_setup_cost=0", "parallel_tuple_cost=0", "min_parallel_table_scan_size=0", "max_parallel_workers_per_gather=2"]
        with self.running("SELECT count(slow()) FROM many", *settings) as pid:
            workers = "SELECT count(*) FROM pg_stat_activity WHERE leader_pid = %s AND backend_type = 'parallel worker'"
            wait_until(lambda: connection.execute(workers, [pid]).fetchone() == (2,))
            yield pid

    @property
    def postmaster(self):
        """The pid of the postmaster."""
        return int((self.data / "postmaster.pid").read_text().split()[0])

    def log_has(self, text):
        """Whether the server log contains this text."""
        return text in (self.data.parent / "log").read_text()

    @property
    def programs(self):
        """The directory of the server's programs."""
        return next(self.data.parent.glob("installation/**/bin/postgres")).parent

    @property
    def as_owner(self):
        """The prefix of a command that is to run as the server's user."""
        owner = self.data.stat()
        if owner.st_uid == os.geteuid():
            return []
        return ["setpriv", f"--reuid={owner.st_uid}", f"--regid={owner.st_gid}", "--clear-groups"]

    def limit(self, pid, resource, soft):
        """Sets a soft resource limit of one of the server's processes, and returns the old one."""
        prlimit = [*self.as_owner, "prlimit", f"--pid={pid}"]
        show = [*prlimit, f"--{resource}", "--output=SOFT", "--noheadings"]
        old = subprocess.run(show, check=True, capture_output=True, text=True).stdout.strip()
        subprocess.run([*prlimit, f"--{resource}={soft}:"], check=True)
        return old

    def start_server(self, data, log, *options, within=()):
        """Starts a server on a data directory, and returns its process. Its output is added to the log."""
        server = [*within, *self.as_owner, self.programs / "postgres", "-D", data, *options]
        environment = {name: value for name, value in os.environ.items() if name != "RUST_BACKTRACE"}
        with open(log, "a") as output:
            return subprocess.Popen(server, stdout=output, stderr=output, cwd=self.data.parent, env=environment)

    @contextlib.contextmanager
    def start_another(self, name, make_data, within=()):
        """Another cluster of the same installation, until the end of the block.

        make_data is the command that creates its data directory, within is a command that runs the server.
        """
        data = self.data.parent / name
        run = {"check": True, "stdout": subprocess.DEVNULL, "cwd": self.data.parent}
        subprocess.run([*self.as_owner, *[str(word).format(data=data) for word in make_data]], **run)
        socket = self.data.parent / f"{name}_socket"
        subprocess.run([*self.as_owner, "mkdir", "-m", "700", socket], **run)
        options = ["-c", f"unix_socket_directories={socket}", "-c", "listen_addresses=", "-c", "fsync=off"]
        process = self.start_server(data, self.data.parent / f"{name}.log", *options, within=within)
        try:
            ready = [self.programs / "pg_isready", "-q", "-h", socket, "-p", "5432"]
            wait_until(lambda: subprocess.run(ready, check=False).returncode == 0)
            yield Cluster(socket, data)
        finally:
            process.send_signal(signal.SIGQUIT)
            process.wait()


PRELOADED = "shared_preload_libraries = 'pg_meminfo'"


def base_backup(cluster, *options):
    """The command that copies a running cluster, for start_another()."""
    backup = [cluster.programs / "pg_basebackup", "-h", cluster.host, "-p", "5432", "-U", "postgres", "-D", "{data}"]
    return [*backup, "--checkpoint=fast", *options]


@contextlib.contextmanager
def start_cluster(*settings, within=(), **environment):
    """A cluster of the test's own, until the end of the block. within is a command that runs the command after it."""
    options = [word for setting in settings for word in ("-c", setting)]
    hold = ["sh", "-c", 'echo "$PGHOST"; echo "$PGDATA"; exec sleep infinity']
    command = [*within, ROOT / "scripts/with-cluster", *options, *hold]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | environment)
    try:
        host, data = (process.stdout.readline().rstrip() for _ in range(2))
        assert host, "the cluster did not start"
        yield Cluster(host, data)
    finally:
        process.terminate()
        process.wait()
        process.stdout.close()


def private(pid):
    """Resident private memory of a process, in bytes."""
    _, resident, shared, *_ = pathlib.Path(f"/proc/{pid}/statm").read_text().split()
    return (int(resident) - int(shared)) * PAGE


# Lets a child of a protected postmaster be killed.
OOM_ADJUST = {"PG_OOM_ADJUST_FILE": "/proc/self/oom_score_adj"}


def protect(cluster):
    """Keeps the OOM killer from taking the postmaster, as packages do. Its environment must have OOM_ADJUST."""
    with contextlib.suppress(PermissionError):
        pathlib.Path(f"/proc/{cluster.postmaster}/oom_score_adj").write_text("-1000")


def in_mounts(*commands):
    """The prefix of a command that is to run in its own mount namespace. Skips the test where that is not permitted."""
    script = " && ".join([*commands, 'exec "$@"'])
    within = ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh"]
    attempt = subprocess.run([*within, "true"], stderr=subprocess.PIPE, text=True, check=False)
    if attempt.returncode != 0:
        pytest.skip(f"mount namespaces are not permitted here: {attempt.stderr.strip()}")
    return within


def rows(cursor):
    """The rows of a cursor as dictionaries."""
    names = [column.name for column in cursor.description]
    return [dict(zip(names, row)) for row in cursor.fetchall()]


def memory_cgroup(pid):
    """The memory cgroup of a process: version and directory. Skips the test if it is not mounted at the usual place."""
    lines = [line.split(":", 2) for line in pathlib.Path(f"/proc/{pid}/cgroup").read_text().splitlines()]
    for _, controllers, path in lines:
        if "memory" in controllers.split(","):
            return 1, pathlib.Path("/sys/fs/cgroup/memory" + path)
    paths = [path for number, _, path in lines if number == "0"]
    for mount_point in "/sys/fs/cgroup/unified", "/sys/fs/cgroup":
        if paths and os.path.exists(f"{mount_point}/cgroup.procs"):
            return 2, pathlib.Path(mount_point + paths[0])
    pytest.skip("no cgroups are mounted at the usual place")


def in_cgroup(directory, *command):
    """The prefix of a command that is to run in a cgroup."""
    return ["sh", "-c", 'echo $$ >"$0/cgroup.procs" && exec "$@"', directory, *command]


def remove_cgroup(directory):
    """Removes a cgroup and those below it. Waits for killed processes, which may not have exited yet."""

    def is_removed():
        for each, _, _ in os.walk(directory, topdown=False):
            with contextlib.suppress(OSError):
                os.rmdir(each)
        return not directory.exists()

    wait_until(is_removed)


@contextlib.contextmanager
def limited(megabytes):
    """A child of our own cgroup with a memory limit and without swap: its directory, and the prefix of a command that
    is to run in it. Skips the test where none can be created."""
    version, parent = memory_cgroup("self")
    # In version 2, a cgroup with processes can pass no controllers on. One beside it can have them.
    if version == 2 and "memory" not in (parent / "cgroup.subtree_control").read_text().split():
        parent = parent.parent
    directory = parent / f"pg_meminfo_{uuid.uuid4().hex}"
    size = str(megabytes * 2**20)
    limits = {1: {"memory.limit_in_bytes": size, "memory.memsw.limit_in_bytes": size}, 2: {"memory.max": size, "memory.swap.max": "0"}}
    try:
        directory.mkdir()
    except OSError as error:
        pytest.skip(f"cannot create a cgroup here: {error}")
    try:
        for name, limit in limits[version].items():
            try:
                (directory / name).write_text(limit)
            except OSError as error:
                pytest.skip(f"cannot limit the memory of a cgroup here: {error}")
        yield directory, in_cgroup(directory)
    finally:
        remove_cgroup(directory)


def with_notices(connection, query, parameters=None):
    """The rows of a query, and the notices that came with them."""
    notices = []

    def note(diagnostic):
        notices.append((diagnostic.severity, diagnostic.sqlstate, diagnostic.message_primary, diagnostic.message_hint))

    connection.add_notice_handler(note)
    try:
        return connection.execute(query, parameters).fetchall(), notices
    finally:
        connection.remove_notice_handler(note)


def preload(directory, source, name="preloaded.so"):
    """Compiles a library for LD_PRELOAD, which every process of a cluster then loads."""
    # cc is missing where Debian's packages were unpacked without their scripts.
    compiler = shutil.which("cc") or shutil.which("gcc")
    if not compiler:
        pytest.skip("there is no C compiler here")
    library = os.fsencode(directory) + b"/" + os.fsencode(name)
    subprocess.run([compiler, "-x", "c", "-shared", "-fPIC", "-o", library, "-"], input=source.encode(), check=True)
    # The server may run as another user.
    for readable in directory, directory.parent:
        readable.chmod(0o755)
    return os.fsdecode(library)


@pytest.fixture(scope="session")
def cluster():
    """The shared cluster."""
    return Cluster(os.environ["PGHOST"], os.environ["PGDATA"])


@pytest.fixture
def connection(cluster):
    """A session in the shared cluster."""
    with cluster.connect() as connection:
        yield connection


@pytest.fixture
def huge_pages():
    """400 MB more of huge pages during a test: 200 of 2 MB, 13 of 32 MB or one of 512 MB. Skipped if there are none."""
    size = re.search(r"^Hugepagesize: +(\d+) kB$", pathlib.Path("/proc/meminfo").read_text(), re.MULTILINE)
    if not size:
        pytest.skip("this kernel has no huge pages")
    more = -(-400 * 1024 // int(size[1]))
    setting = pathlib.Path("/proc/sys/vm/nr_hugepages")
    before = setting.read_text()
    try:
        try:
            setting.write_text(str(int(before) + more))
        except OSError as error:
            pytest.skip(f"huge pages are not available here: {error}")
        # The kernel allocates as many as it finds contiguous memory for.
        if int(setting.read_text()) < int(before) + more:
            pytest.skip("not enough huge pages are available here")
        yield
    finally:
        with contextlib.suppress(OSError):
            setting.write_text(before)
