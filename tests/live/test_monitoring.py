"""docs/monitoring.md and its files, with Debian's exporters and Prometheus, and with postgres_fdw."""

import contextlib
import json
import os
import pathlib
import pwd
import re
import shutil
import socket
import subprocess
import urllib.parse
import urllib.request

import psycopg
import pytest
from conftest import PATIENCE, ROOT, start_cluster, wait_until

DOCS = ROOT / "docs/monitoring"
TEXT = (ROOT / "docs/monitoring.md").read_text()


def program(name):
    """The path of a program from Debian's packages, which scripts/setup has unpacked."""
    if "EXPORTERS" not in os.environ:
        pytest.skip("Debian's exporters and Prometheus are not available here")
    return pathlib.Path(os.environ["EXPORTERS"]) / "usr/bin" / name


def queries(heading):
    """The SQL examples under a heading."""
    section = re.search(rf"^## {re.escape(heading)}\n(.*?)(?=^## |\Z)", TEXT, re.M | re.S)
    return re.findall(r"```sql\n(.*?)```", section[1], re.S)


def documented():
    """The names of the series in the table."""
    table = re.search(r"^## Series\n(.*?)(?=^## )", TEXT, re.M | re.S)[1]
    return set(re.findall(r"`(pg_meminfo\w+)`", table))


def free_ports(count):
    """This many different ports on which nothing listens at this moment."""
    with contextlib.ExitStack() as stack:
        listeners = [stack.enter_context(socket.socket()) for _ in range(count)]
        for listener in listeners:
            listener.bind(("127.0.0.1", 0))
        return [listener.getsockname()[1] for listener in listeners]


def get(port, path="/metrics", **parameters):
    url = f"http://127.0.0.1:{port}{path}?{urllib.parse.urlencode(parameters)}"
    with urllib.request.urlopen(url, timeout=30 * PATIENCE) as response:
        return response.read().decode()


@contextlib.contextmanager
def running(log, *command, **environment):
    with open(log, "w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env=os.environ | environment)
    try:
        yield
    finally:
        process.terminate()
        process.wait()


def let_in(cluster, connection):
    """Lets the role connect through the local socket as documented, with our own user in place of the exporter's."""
    [access] = re.findall(r"^local .*$", TEXT, re.M)
    [users] = re.findall(r"^(monitor +prometheus +monitor\n.*\n)", TEXT, re.M)
    rules = cluster.data / "pg_hba.conf"
    rules.write_text(f"{access}\nlocal all monitor reject\n{rules.read_text()}")
    with open(cluster.data / "pg_ident.conf", "a") as file:
        file.write(users.replace("prometheus", pwd.getpwuid(os.geteuid()).pw_name))
    connection.execute("SELECT pg_reload_conf()")


@pytest.fixture(scope="module")
def monitored(tmp_path_factory):
    """A cluster with the two exporters and Prometheus, which use our files: the cluster, and the ports of
    postgres_exporter and Prometheus."""
    directory = tmp_path_factory.mktemp("monitored")
    shutil.copy(DOCS / "alerts.yml", directory)
    with contextlib.ExitStack() as stack:
        # Memory is always short, and the guard only says so.
        short = ["pg_meminfo.log_min_headroom = 1TB", "pg_meminfo.min_headroom = 1TB", "pg_meminfo.guard_action = log"]
        settings = ["shared_preload_libraries = 'pg_meminfo'", "autovacuum = off", *short]
        cluster = stack.enter_context(start_cluster(*settings))
        *exporters, own = free_ports(3)
        ports = dict(zip(("9187", "9237"), exporters))
        # On a busy machine a scrape may last more than a second. By default it is aborted after the interval.
        config = "global: {scrape_interval: 3s, scrape_timeout: 3s, evaluation_interval: 1s}\n" + (DOCS / "prometheus.yml").read_text()
        for printed, port in ports.items():
            config = config.replace(f"localhost:{printed}", f"127.0.0.1:{port}")
        (directory / "prometheus.yml").write_text(config)
        with cluster.connect() as connection:
            [role] = queries("A role")
            connection.execute(role)
            let_in(cluster, connection)
            connection.execute("SELECT length(repeat('heavy', 10000000))")
            connection.execute("SET pg_meminfo.session_memory_limit = '64MB'")
            for _ in range(2):
                with pytest.raises(psycopg.errors.OutOfMemory):
                    connection.execute("SELECT length(repeat('heavy', 50000000))")
            # The recorder has taken a sample.
            incident = "SELECT count(*) FROM pg_meminfo_incidents WHERE cause = 'min headroom'"
            wait_until(lambda: connection.execute(incident).fetchone() != (0,))
        # As in Debian's files, except for the directory of the socket.
        source = re.search(r"^DATA_SOURCE_NAME='(.*)'$", TEXT, re.M)[1].replace("/var/run/postgresql", str(cluster.host))
        option = re.search(r"^ARGS='(--extend.query-path)=", TEXT, re.M)[1]
        arguments = [f"{option}={DOCS}/postgres_exporter.yml", f"--web.listen-address=127.0.0.1:{ports['9187']}"]
        command = [program("prometheus-postgres-exporter"), *arguments]
        stack.enter_context(running(directory / "postgres_exporter.log", *command, DATA_SOURCE_NAME=source))
        jobs = (DOCS / "sql_exporter.yml").read_text().replace("/var/run/postgresql", str(cluster.host)).replace("15s", "1s")
        (directory / "sql_exporter.yml").write_text(jobs)
        arguments = ["-config.file", directory / "sql_exporter.yml", "-web.listen-address", f"127.0.0.1:{ports['9237']}"]
        stack.enter_context(running(directory / "sql_exporter.log", program("prometheus-sql-exporter"), *arguments))
        arguments = [f"--config.file={directory}/prometheus.yml", f"--storage.tsdb.path={directory}/data", f"--web.listen-address=127.0.0.1:{own}"]
        stack.enter_context(running(directory / "prometheus.log", program("prometheus"), *arguments))

        def has_scraped():
            with contextlib.suppress(OSError):
                jobs = {labels["job"] for labels in series(own, 'pg_meminfo_host_limit_bytes')}
                return jobs == {"postgres_exporter", "sql_exporter"}

        wait_until(has_scraped)
        yield cluster, ports["9187"], own


def evaluate(port, expression):
    """The value of an expression in Prometheus."""
    answer = json.loads(get(port, "/api/v1/query", query=expression))
    assert answer["status"] == "success", expression
    return answer["data"]["result"]


def series(port, expression):
    return [result["metric"] for result in evaluate(port, expression)]


def test_the_exporter_carries_our_series(monitored):
    cluster, port, _ = monitored
    text = get(port)
    assert re.search(r"^pg_exporter_user_queries_load_error\{.*\} 0$", text, re.M)
    kinds = dict(re.findall(r"^# TYPE (pg_meminfo\w+) (\w+)$", text, re.M))
    assert set(kinds) == documented()
    assert {name for name, kind in kinds.items() if kind == "counter"} == {name for name in kinds if name.endswith("_total")}
    assert set(kinds.values()) == {"counter", "gauge"}
    labels = {label for line in re.findall(r"^pg_meminfo\w+\{(.*)\}", text, re.M) for label in re.findall(r'(\w+)="', line)}
    assert labels == {"action", "backend_type", "cause", "datname", "level", "queryid", "server"}
    postmaster = re.search(r'^pg_meminfo_processes\{backend_type="postmaster",datname="".*\} (\S+)$', text, re.M)
    assert postmaster[1] == "1"
    with cluster.connect() as connection:
        query = "SELECT rss_anon + swap + page_tables FROM pg_meminfo WHERE backend_type = 'postmaster'"
        private = re.search(r'^pg_meminfo_private_bytes\{backend_type="postmaster".*\} (\S+)$', text, re.M)
        assert abs(float(private[1]) - connection.execute(query).fetchone()[0]) < 2**20
    guard = dict(re.findall(r'^pg_meminfo_guard_(?:actions_total\{action=")?(\w+)["{].* (\d+)$', text, re.M))
    actions = {"shortage": "1", "refusal": "2", "cancel": "0", "termination": "0"}
    assert guard == {"is_short": "1", "limited": "0", **actions}


def test_both_exporters_give_the_same_series(monitored):
    *_, port = monitored

    def names_and_labels(job):
        found = series(port, f'{{__name__=~"pg_meminfo.+", job="{job}"}}')
        own = {"instance", "job", "server", "host", "database"}
        return {(labels["__name__"], frozenset(labels.items() - {(name, labels.get(name)) for name in (*own, "__name__")})) for labels in found}

    def by_name(job):
        return {name for name, _ in names_and_labels(job)}

    # There is a series even for a figure that the kernel does not print.
    wait_until(lambda: by_name("postgres_exporter") == by_name("sql_exporter") == documented())

    def lasting(job):
        passing = {("backend_type", name) for name in ("client backend", "starting", "autovacuum worker")}
        return {found for found in names_and_labels(job) if not passing & found[1]}

    # The exporters do not query at the same time, and a process may start or exit in between.
    wait_until(lambda: lasting("postgres_exporter") == lasting("sql_exporter"))


def test_the_dashboard_shows_something(monitored):
    *_, port = monitored
    dashboard = json.loads((DOCS / "dashboard.json").read_text())
    expressions = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    expressions += [annotation["expr"] for annotation in dashboard["annotations"]["list"]]
    assert len(expressions) > 10
    instances = set()
    processes = 'pg_meminfo_processes{job="postgres_exporter"}'
    wait_until(lambda: instances.update(labels["instance"] for labels in series(port, processes)) or instances)
    [instance] = instances
    for expression in expressions:
        assert set(re.findall(r"pg_meminfo\w+", expression)) <= documented(), expression

        def has_some():
            return evaluate(port, expression.replace("$instance", instance))

        # A machine may have no cgroups, none with a limit, or none with pressure figures.
        if "cgroup" in expression:
            has_some()
        else:
            wait_until(has_some)


def test_prometheus_takes_the_rules(monitored):
    *_, port = monitored

    def rules():
        [group] = json.loads(get(port, "/api/v1/rules"))["data"]["groups"]
        return group["rules"]

    wait_until(lambda: {rule["health"] for rule in rules()} == {"ok"})
    assert len(rules()) == 9
    for rule in rules():
        assert set(re.findall(r"pg_meminfo\w+", rule["query"])) <= documented()
    # Without the same labels on both sides, a comparison would have no result.
    for condition in "pg_meminfo_host_headroom_bytes <= pg_meminfo_host_limit_bytes", "sum without (backend_type, datname) (pg_meminfo_page_tables_bytes) < pg_meminfo_host_limit_bytes":
        wait_until(lambda: len(evaluate(port, condition)) == 2)


def test_an_alert_fires_while_only_the_exporters_are_up(monitored):
    cluster, *_, port = monitored

    def silent():
        alerts = json.loads(get(port, "/api/v1/alerts"))["data"]["alerts"]
        missing = [alert["labels"] for alert in alerts if alert["labels"]["alertname"] == "PgMeminfoMissing"]
        # The same alert, with another set of labels, is for a machine whose headroom is unknown.
        return {labels["job"] for labels in missing if labels.keys() == {"alertname", "instance", "job", "severity"}}

    wait_until(lambda: silent() == set())
    with cluster.connect() as connection:
        connection.execute("DROP EXTENSION pg_meminfo")
        try:
            wait_until(lambda: silent() == {"postgres_exporter", "sql_exporter"})
        finally:
            connection.execute("CREATE EXTENSION pg_meminfo")
    wait_until(lambda: silent() == set())


@pytest.mark.one_major
def test_the_alerts_come_when_they_should(tmp_path):
    for file in DOCS / "alerts.yml", ROOT / "tests/monitoring/alerts_test.yml":
        shutil.copy(file, tmp_path)
    for command in ["check", "rules", "alerts.yml"], ["test", "rules", "alerts_test.yml"]:
        result = subprocess.run([program("promtool"), *command], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert result.returncode == 0 and "SUCCESS" in result.stdout, result.stdout + result.stderr


@contextlib.contextmanager
def start_remote(cluster, port):
    """Another cluster, and whether connections to it use TLS. It also listens on TCP, where pg_hba.conf admits only the
    monitoring role with a password, as documented. TLS is used if the server and the machine support it."""
    secure = bool(shutil.which("openssl"))
    with cluster.connect() as connection:
        secure = secure and connection.execute("SHOW ssl_library").fetchone() != ("",)
    [access] = re.findall(r"`(hostssl [^`]+)`", TEXT)
    access = access.replace("ADDRESS", "127.0.0.1/32")
    commands = [f"{cluster.programs}/initdb -D {{data}} -U postgres -A trust -E UTF8 --no-locale --no-sync"]
    options = f"-c listen_addresses=127.0.0.1 -c port={port}"
    if secure:
        commands.append("openssl req -x509 -newkey rsa:2048 -nodes -subj /CN=localhost -keyout {data}/server.key -out {data}/server.crt")
        commands.append("chmod 600 {data}/server.key")
        options += " -c ssl=on"
    else:
        access = access.replace("hostssl", "host")
    commands.append(f"printf '%s\\n' 'local all all trust' '{access}' >{{data}}/pg_hba.conf")
    # The name of its socket contains this port. The tests connect with the default port.
    script = f'ln -s .s.PGSQL.{port} remote_socket/.s.PGSQL.5432 && exec "$@" {options}'
    with cluster.start_another("remote", ["sh", "-c", " && ".join(commands)], within=["sh", "-c", script, "sh"]) as remote:
        yield remote, secure


def test_many_servers_through_postgres_fdw():
    """As documented, except for the addresses of the servers, one of which is a socket."""
    with contextlib.ExitStack() as stack:
        # As a client, the server looks for certificates in its home directory. If that is root's, it fails.
        alpha = stack.enter_context(start_cluster(SERVER_WITHIN="env HOME=/nonexistent"))
        [port] = free_ports(1)
        beta, secure = stack.enter_context(start_remote(alpha, port))
        connection, there = (stack.enter_context(one.connect()) for one in (alpha, beta))
        for one in connection, there:
            [role] = queries("A role")
            one.execute(role)
        *setup, query = queries("Many servers in one place")
        [password] = set(re.findall(r"password '(\w+)'", "".join(setup)))
        there.execute(f"ALTER ROLE monitor PASSWORD '{password}'")
        with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
            psycopg.connect(host="127.0.0.1", port=port, dbname="postgres", user="monitor", password="wrong")
        places = {"host 'alpha.example'": f"host '{alpha.host}'", "host 'beta.example'": f"host '127.0.0.1', port '{port}'"}
        try:
            for text in setup:
                for printed, place in places.items():
                    text = text.replace(printed, place)
                connection.execute(text)
        except psycopg.errors.FeatureNotSupported as error:
            pytest.skip(f"this server has no postgres_fdw: {error.diag.message_primary}")
        rows = connection.execute(query).fetchall()
        assert sorted(row[0] for row in rows) == ["alpha", "beta"]
        assert all(row[3] >= 5 for row in rows)
        encrypted = "SELECT s.ssl FROM pg_stat_ssl s JOIN pg_stat_activity a USING (pid) WHERE a.usename = 'monitor' AND a.application_name = 'postgres_fdw'"
        assert there.execute(encrypted).fetchall() == [(secure,)]
        postmasters = "SELECT pid FROM alpha.pg_meminfo WHERE backend_type = 'postmaster' UNION ALL SELECT pid FROM beta.pg_meminfo WHERE backend_type = 'postmaster'"
        assert connection.execute(postmasters).fetchall() == [(alpha.postmaster,), (beta.postmaster,)]
        types = "SELECT client_addr IS NULL, query_id IS NULL, private_estimate > 0 FROM beta.pg_meminfo WHERE pid = %s"
        assert connection.execute(types, [there.info.backend_pid]).fetchall() == [(True, True, True)]
