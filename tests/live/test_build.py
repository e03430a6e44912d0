"""The versions that the build and the packages state, and what the build says about other servers."""

import json
import pathlib
import re
import shutil
import subprocess

import pytest
from conftest import ROOT, start_cluster

VERSION = re.search(r"^default_version = '(.*)'$", (ROOT / "pg_meminfo.control").read_text(), re.MULTILINE)[1]


def test_loaded_module_has_a_name_and_a_version(connection):
    if connection.info.server_version < 180000:
        pytest.skip("pg_get_loaded_modules() came with PostgreSQL 18")
    connection.execute("LOAD 'pg_meminfo'")
    query = "SELECT version FROM pg_get_loaded_modules() WHERE module_name = 'pg_meminfo' AND file_name ~ '^pg_meminfo'"
    assert connection.execute(query).fetchall() == [(VERSION,)]


def test_installed_version(connection):
    query = "SELECT extversion FROM pg_extension WHERE extname = 'pg_meminfo'"
    assert connection.execute(query).fetchall() == [(VERSION,)]


def test_pgxn_has_the_same_version():
    meta = json.loads((ROOT / "META.json").read_text())
    [provided] = meta["provides"].values()
    assert meta["version"] == provided["version"] == f"{VERSION}.0"
    # CREATE EXTENSION starts with the script that is no upgrade.
    [base] = [path.name for path in ROOT.glob("pg_meminfo--*.sql") if path.stem.count("--") == 1]
    assert provided["file"] == base
    assert any(path.stem.endswith(f"--{VERSION}") for path in ROOT.glob("pg_meminfo--*.sql"))


def test_debian_has_the_same_version():
    newest = (ROOT / "debian/changelog").read_text().splitlines()[0]
    assert newest.startswith(f"pg-meminfo ({VERSION}.0-")


def test_debian_packages_the_supported_majors():
    """debian/control is what pg_buildext makes of debian/control.in."""
    [supported] = re.findall(r"^SUPPORTED_MAJORS = (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    packaged = re.findall(r"^[0-9]+$", (ROOT / "debian/pgversions").read_text(), re.MULTILINE)
    assert packaged == supported.split()
    source, package = (ROOT / "debian/control.in").read_text().strip().split("\n\n")
    packages = [package.replace("PGVERSION", major) for major in packaged]
    assert (ROOT / "debian/control").read_text() == "\n\n".join([source, *packages]) + "\n"


def test_it_works_in_a_directory_of_its_own():
    """As an image with nothing but the extension is mounted: Containerfile.extension."""
    with start_cluster() as cluster:
        with cluster.connect() as connection:
            if connection.info.server_version < 180000:
                pytest.skip("extension_control_path came with PostgreSQL 18")
        volume = cluster.data.parent / "extensions/pg_meminfo"
        subprocess.run([ROOT / "scripts/stage-extension", volume], check=True)
        assert {path.name for path in volume.iterdir()} == {"lib", "share"}
        assert {path.suffix for path in volume.glob("**/*") if path.is_file()} == {".so", ".control", ".sql"}
        for path in (cluster.data.parent / "installation").glob("**/pg_meminfo*.*"):
            path.unlink()
        settings = [
            f"extension_control_path = '$system:{volume}/share'",
            f"dynamic_library_path = '$libdir:{volume}/lib'",
            "shared_preload_libraries = 'pg_meminfo'",
        ]
        backup = f"{cluster.programs}/pg_basebackup -h {cluster.host} -p 5432 -U postgres -D {{data}} --checkpoint=fast"
        configure = 'printf "%s\\n" "$@" >>{data}/postgresql.auto.conf'
        make_data = ["sh", "-c", f"{backup} && {configure}", "sh", *settings]
        with cluster.start_another("elsewhere", make_data) as other, other.connect() as connection:
            # The one in the copied database still works, and so does a new one.
            assert connection.execute("SELECT count(*) FROM pg_meminfo_guard").fetchone() == (1,)
            connection.execute("DROP EXTENSION pg_meminfo")
            connection.execute("CREATE EXTENSION pg_meminfo")
            assert connection.execute("SELECT count(*) FROM pg_meminfo").fetchone()[0] > 3
            assert f"{volume}/lib/pg_meminfo.so" in open(f"/proc/{connection.info.backend_pid}/maps").read()


@pytest.mark.parametrize(("major", "version"), [("14", "14.23"), ("9.6", "9.6.24"), ("20", "20devel")])
def test_unsupported_major_is_refused_in_a_sentence(tmp_path, major, version):
    pgxs = tmp_path / "pgxs.mk"
    pgxs.write_text(f"all:\nVERSION = {version}\nMAJORVERSION = {major}\n")
    pg_config = tmp_path / "pg_config"
    pg_config.write_text(f"#!/bin/sh\necho {pgxs}\n")
    pg_config.chmod(0o755)
    result = make(pg_config)
    assert result.returncode == 2
    assert f'pg_meminfo supports PostgreSQL 15 16 17 18 19, and "{pg_config}" belongs to PostgreSQL {version}' in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_no_pg_config_is_said_in_a_sentence(tmp_path):
    result = make(tmp_path / "missing")
    assert result.returncode == 2
    assert "no PGXS found" in result.stderr


@pytest.mark.one_major
def test_a_container_build_gets_every_file_it_needs(tmp_path):
    """The files that .dockerignore lets through build. Only the part without Postgres is built, without headers."""
    ignored, *let_through = (ROOT / ".dockerignore").read_text().split()
    assert ignored == "*"
    for pattern in let_through:
        for path in ROOT.glob(pattern.removeprefix("!")):
            copy = shutil.copytree if path.is_dir() else shutil.copy
            copy(path, tmp_path / path.name)
    check = ["cargo", "check", "--quiet", "--locked", "--ignore-rust-version", "--lib", "--target-dir", tmp_path / "target"]
    result = subprocess.run(check, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    made_from = {path.name for path in tmp_path.iterdir()}
    assert {"Makefile", "pg_meminfo.control", *(path.name for path in ROOT.glob("pg_meminfo--*.sql"))} <= made_from


def make(pg_config: pathlib.Path):
    return subprocess.run(["make", "-C", ROOT, "-n", f"PG_CONFIG={pg_config}"], capture_output=True, text=True)
