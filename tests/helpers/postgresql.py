"""A PostgreSQL of the tests' own: a cluster in a folder, with password authentication, that can be restarted.

Where Debian's `postgresql` is not installed, tests that take the fixture `postgresql` are skipped.
"""

from __future__ import annotations

import itertools
import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import quote

import pytest

PASSWORD = "s3cr3t @/:%{x}?#"  # whatever an address has to quote
QUOTED = quote(PASSWORD, safe="")


@dataclass
class PostgreSQL:
    """A running server on `host`. Its users are `postgres` and `petl`, both with PASSWORD."""

    programs: Path
    folder: Path
    port: int
    host: str = "127.0.0.1"
    numbers: Iterator[int] = field(default_factory=itertools.count)

    def start(self) -> None:
        """Returns when it takes connections."""
        options = f"-p {self.port} -k {self.folder} -c listen_addresses={self.host} -c fsync=off -c max_connections=200"
        self._run("pg_ctl", "start", "-w", "-D", f"{self.folder}/data", "-l", f"{self.folder}/log", "-o", options)

    def stop(self, mode: str = "immediate") -> None:
        """`immediate` is a crash: every connection ends, and nothing is said to anybody."""
        self._run("pg_ctl", "stop", "-w", "-D", f"{self.folder}/data", "-m", mode)

    def restart(self, mode: str = "immediate") -> None:
        """A crash, and a new start."""
        self.stop(mode)
        self.start()

    def sql_works(self) -> bool:
        """Whether it is up."""
        try:
            self.sql("SELECT 1")
        except subprocess.CalledProcessError:
            return False
        return True

    def url(self, database: str, password: str | None = QUOTED) -> str:
        """The address of a database."""
        user = "petl" if password is None else f"petl:{password}"
        return f"postgresql://{user}@{self.host}:{self.port}/{database}"

    def database(self) -> str:
        """A new, empty database; its name."""
        name = f"test{next(self.numbers)}"
        self.sql(f"CREATE DATABASE {name} OWNER petl")
        return name

    def sql(self, statement: str, database: str = "postgres") -> str:
        """What psql answers to the statement of the superuser: lines, with | between the columns."""
        command = ("psql", "-h", str(self.folder), "-p", str(self.port), "-U", "postgres", "-d", database)
        return self._run(*command, "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-c", statement)

    def dump(self, database: str) -> str:
        """Everything that is in a database, as SQL."""
        return self._run("pg_dump", "-h", str(self.folder), "-p", str(self.port), "-U", "postgres", database)

    def _run(self, program: str, *arguments: str) -> str:
        """As the user postgres where this is root's process: the server refuses to be root's."""
        other = {"user": "postgres", "group": "postgres", "extra_groups": []} if os.getuid() == 0 else {}
        environment = {**os.environ, "PGPASSWORD": PASSWORD}
        done = subprocess.run(
            [str(self.programs / program), *arguments],
            env=environment,
            cwd=self.folder,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # a server started here would keep a pipe open
            stdin=subprocess.DEVNULL,
            check=True,
            **other,
        )
        return done.stdout.strip()


def _programs() -> Path | None:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    on_path = shutil.which("initdb")
    return found[-1].parent if found else Path(on_path).parent if on_path else None


def missing() -> str:
    """Why there can be no PostgreSQL here; empty where there can."""
    if _programs() is None:
        return "no PostgreSQL on this machine (Debian: apt-get install postgresql)"
    return "" if find_spec("psycopg") else "the package psycopg is not installed: pip install 'petl-search[postgresql]'"


@contextmanager
def running(host: str = "127.0.0.1", clients: str = "127.0.0.1/32") -> Iterator[PostgreSQL]:
    """A server of its own on `host`, which lets the addresses `clients` in."""
    programs = _programs()
    assert programs
    folder = Path(tempfile.mkdtemp(prefix="petl-pg-"))  # not pytest's, which are closed to other users
    with socket.socket() as free:
        free.bind((host, 0))
        server = PostgreSQL(programs, folder, free.getsockname()[1], host)
    (folder / "password").write_text(PASSWORD)
    if os.getuid() == 0:
        shutil.chown(folder, "postgres", "postgres")
    initialise = ("-A", "scram-sha-256", "-U", "postgres", "--pwfile", f"{folder}/password")
    server._run("initdb", "-D", f"{folder}/data", *initialise, "-E", "UTF8", "--locale=C", "--no-sync")
    with (folder / "data" / "pg_hba.conf").open("a") as rules:
        rules.write(f"host all all {clients} scram-sha-256\n")
    server.start()
    try:
        server.sql(f"CREATE ROLE petl LOGIN PASSWORD '{PASSWORD}'")
        yield server
    finally:
        server.stop()
        shutil.rmtree(folder)


@pytest.fixture(scope="session")
def postgresql() -> Iterator[PostgreSQL]:
    """A server for the session."""
    if why := missing():
        pytest.skip(why)
    with running() as server:
        yield server
