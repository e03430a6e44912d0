"""Live clusters for the tests: the one that scripts/with-cluster runs pytest in, and others of a test's own."""

import contextlib
import os
import pathlib
import signal
import subprocess
import sys
import time
import uuid

import psycopg
import pytest

ROOT = pathlib.Path(__file__).parents[2]

# With how many threads the sessions read: the same tests hold for any number.
READERS = int(os.environ.get("READERS", "1"))


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config):
    """Temporary files go where scripts/with-cluster removes them."""
    config.option.basetemp = pathlib.Path(os.environ["PGDATA"]).parent / "pytest"
    # What a shell starts in the background ignores it, and so would what we start and mean to end by it.
    signal.signal(signal.SIGQUIT, signal.SIG_DFL)
    # Being terminated is an exception like any other, so that what a test has changed is changed back.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    config.addinivalue_line("markers", "long: takes minutes, and is left to make check-long")


def wait_until(condition):
    """Waits for a condition that is sure to come, if nothing is broken."""
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "waited for a minute"
        time.sleep(0.001)


class Cluster:
    """A running cluster that has the extension in its database postgres."""

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
        """So many idle sessions."""
        with contextlib.ExitStack() as stack:
            yield [stack.enter_context(self.connect()) for _ in range(count)]

    def fill_shared_buffers(self, connection, table, megabytes):
        """Makes a table of that size, all of which is in shared buffers, as they are larger. CREATE TABLE AS would use few."""
        connection.execute(f"CREATE TABLE {table} (n int, x text)")
        rows = megabytes * 1000
        connection.execute(f"INSERT INTO {table} SELECT n, repeat('x', 950) FROM generate_series(1, {rows}) AS n")

    @contextlib.contextmanager
    def running(self, query, *settings):
        """The pid of a session in which a query runs, until the end of the block."""
        session = self.connect(*settings)
        try:
            session.pgconn.send_query(query.encode())
            yield session.info.backend_pid
        finally:
            session.cancel()
            session.pgconn.finish()

    @contextlib.contextmanager
    def running_in_parallel(self, connection):
        """The pid of a session that waits for its parallel workers, until the end of the block."""
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
        """The postmaster's pid."""
        return int((self.data / "postmaster.pid").read_text().split()[0])

    def log_has(self, text):
        """Whether the server has logged that."""
        return text in (self.data.parent / "log").read_text()

    @property
    def programs(self):
        """Where the server's programs are."""
        return next(self.data.parent.glob("installation/**/bin/postgres")).parent

    @property
    def as_owner(self):
        """What runs a command as the server's user."""
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

    @contextlib.contextmanager
    def start_another(self, name, make_data, within=()):
        """A cluster from the same installation, in which the extension may be already."""
        data = self.data.parent / name
        run = {"check": True, "stdout": subprocess.DEVNULL, "cwd": self.data.parent}
        subprocess.run([*self.as_owner, *[str(word).format(data=data) for word in make_data]], **run)
        socket = self.data.parent / f"{name}_socket"
        subprocess.run([*self.as_owner, "mkdir", "-m", "700", socket], **run)
        options = ["-c", f"unix_socket_directories={socket}", "-c", "listen_addresses=", "-c", "fsync=off"]
        server = [*within, *self.as_owner, self.programs / "postgres", "-D", data, *options]
        environment = {name: value for name, value in os.environ.items() if name != "RUST_BACKTRACE"}
        with open(self.data.parent / f"{name}.log", "w") as log:
            process = subprocess.Popen(server, stdout=log, stderr=log, cwd=self.data.parent, env=environment)
        try:
            ready = [self.programs / "pg_isready", "-q", "-h", socket, "-p", "5432"]
            wait_until(lambda: subprocess.run(ready, check=False).returncode == 0)
            yield Cluster(socket, data)
        finally:
            process.send_signal(signal.SIGQUIT)
            process.wait()


@contextlib.contextmanager
def start_cluster(*settings, within=(), **environment):
    """A throw-away cluster of the test's own; within is a command that runs the one behind it."""
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


def in_mounts(*commands):
    """What to run a cluster within, so that it has mounts of its own. Skips the test where that is not permitted."""
    script = " && ".join([*commands, 'exec "$@"'])
    within = ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh"]
    attempt = subprocess.run([*within, "true"], stderr=subprocess.PIPE, text=True, check=False)
    if attempt.returncode != 0:
        pytest.skip(f"mount namespaces are not permitted here: {attempt.stderr.strip()}")
    return within


def rows(cursor):
    """A cursor's rows, as dictionaries."""
    names = [column.name for column in cursor.description]
    return [dict(zip(names, row)) for row in cursor.fetchall()]


def memory_cgroup(pid):
    """Where a process's memory is accounted, if that is mounted at the usual place: version and directory."""
    lines = [line.split(":", 2) for line in pathlib.Path(f"/proc/{pid}/cgroup").read_text().splitlines()]
    for _, controllers, path in lines:
        if "memory" in controllers.split(","):
            return 1, pathlib.Path("/sys/fs/cgroup/memory" + path)
    paths = [path for number, _, path in lines if number == "0"]
    for mount_point in "/sys/fs/cgroup/unified", "/sys/fs/cgroup":
        if paths and os.path.exists(f"{mount_point}/cgroup.procs"):
            return 2, pathlib.Path(mount_point + paths[0])
    pytest.skip("no cgroups are mounted at the usual place")


@contextlib.contextmanager
def limited(megabytes):
    """A cgroup with a limit and without swap, below our own: its directory, and what runs a command in it. Skips the test where none
    can be made."""
    version, parent = memory_cgroup("self")
    directory = parent / f"pg_meminfo_{uuid.uuid4().hex}"
    size = str(megabytes * 2**20)
    limits = {1: {"memory.limit_in_bytes": size, "memory.memsw.limit_in_bytes": size}, 2: {"memory.max": size, "memory.swap.max": "0"}}
    try:
        directory.mkdir()
    except OSError as error:
        pytest.skip(f"no cgroup can be made here: {error}")
    try:
        for name, limit in limits[version].items():
            try:
                (directory / name).write_text(limit)
            except OSError as error:
                pytest.skip(f"the memory of a cgroup cannot be limited here: {error}")
        yield directory, ["sh", "-c", f'echo $$ >{directory}/cgroup.procs && exec "$@"', "sh"]
    finally:
        # Those that were killed may not be gone yet.
        def is_removed():
            with contextlib.suppress(OSError):
                directory.rmdir()
            return not directory.exists()

        wait_until(is_removed)


def with_notices(connection, query, parameters=None):
    """A query's rows, and the notices that came with them."""
    notices = []

    def note(diagnostic):
        notices.append((diagnostic.severity, diagnostic.sqlstate, diagnostic.message_primary, diagnostic.message_hint))

    connection.add_notice_handler(note)
    try:
        return connection.execute(query, parameters).fetchall(), notices
    finally:
        connection.remove_notice_handler(note)


def preload(directory, source, name="preloaded.so"):
    """A library for LD_PRELOAD, which thus becomes part of every process of a cluster."""
    library = os.fsencode(directory) + b"/" + os.fsencode(name)
    subprocess.run(["cc", "-x", "c", "-shared", "-fPIC", "-o", library, "-"], input=source.encode(), check=True)
    # The server's user need not be ours.
    for readable in directory, directory.parent:
        readable.chmod(0o755)
    return os.fsdecode(library)


@pytest.fixture(scope="session")
def cluster():
    """The cluster that all tests share."""
    return Cluster(os.environ["PGHOST"], os.environ["PGDATA"])


@pytest.fixture
def connection(cluster):
    """A session in the shared cluster."""
    with cluster.connect() as connection:
        yield connection


@pytest.fixture
def huge_pages():
    """A few hugetlb pages of 2 MB for the time of a test, where they can be had."""
    setting = pathlib.Path("/proc/sys/vm/nr_hugepages")
    before = setting.read_text()
    try:
        try:
            setting.write_text(str(int(before) + 200))
        except OSError as error:
            pytest.skip(f"huge pages cannot be had here: {error}")
        # The kernel gives as many as it finds room for.
        if int(setting.read_text()) < int(before) + 200:
            pytest.skip("not enough huge pages can be had here")
        yield
    finally:
        with contextlib.suppress(OSError):
            setting.write_text(before)
