"""Addresses of stores: what they may be, and that nobody sees a password."""

from __future__ import annotations

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import studies

from search.config.loading import load_config
from search.config.text import ConfigError
from search.storage.address import AddressError, database, expand_env, redacted, restore_password, without_password
from search.storage.errors import StoreError
from search.storage.locations import database_url
from search.tracking import client as tracking

SECRET = "hunter2"


@pytest.mark.parametrize(
    ("address", "kept", "printed"),
    [
        ("postgresql://me:hunter2@host:5432/db", "postgresql://me@host:5432/db", "postgresql://me:…@host:5432/db"),
        ("postgresql://me:a%40hunter2%2F@host/db", "postgresql://me@host/db", "postgresql://me:…@host/db"),
        ("postgresql://me:@host/db", "postgresql://me@host/db", "postgresql://me:…@host/db"),
        ("postgresql://me@host/db", "postgresql://me@host/db", "postgresql://me@host/db"),
        ("postgresql://me:a@hunter2@host/db", "postgresql://me@host/db", "postgresql://me:…@host/db"),
        ("postgresql://me:a/hunter2@host/db", "postgresql://me@host/db", "postgresql://me:…@host/db"),
        ("postgresql://me:a://hunter2@host/db", "postgresql://me@host/db", "postgresql://me:…@host/db"),
        ("postgresql://me:${X}@host/db", "postgresql://me:${X}@host/db", "postgresql://me:${X}@host/db"),
        ("postgresql://me:hunter2${X}@host/db", "postgresql://me@host/db", "postgresql://me:…@host/db"),
        (
            "postgresql://host/db?user=me&password=hunter2&sslmode=require",
            "postgresql://host/db?user=me&sslmode=require",
            "postgresql://host/db?user=me&password=…&sslmode=require",
        ),
        ("postgresql://host/db?sslpassword=hunter2", "postgresql://host/db", "postgresql://host/db?sslpassword=…"),
        ("mysql+pymysql://me:hunter2@host/db", "mysql+pymysql://me@host/db", "mysql+pymysql://me:…@host/db"),
        ("http://me:hunter2@host:5000", "http://host:5000", "http://me:…@host:5000"),
        ("https://hunter2@host/path", "https://host/path", "https://…@host/path"),
        ("http://host:5000/", "http://host:5000/", "http://host:5000/"),
        ("sqlite:////home/a:b@c/store.db", "sqlite:////home/a:b@c/store.db", "sqlite:////home/a:b@c/store.db"),
        ("databricks", "databricks", "databricks"),
    ],
)
def test_what_is_kept_and_printed(address: str, kept: str, printed: str) -> None:
    assert without_password(address) == kept
    assert without_password(kept) == kept
    assert redacted(address) == printed
    assert redacted(f"no store at '{address}': it is away") == f"no store at '{printed}': it is away"
    assert redacted(json.dumps({"uri": address})) == json.dumps({"uri": address}).replace(address, printed)


def test_what_an_exception_says_is_masked() -> None:
    text = "host=db user=me password='hunter 2' at postgresql://me:hunter2@a/b, http://me:hunter2@c: Password=hunter2"
    assert SECRET not in redacted(RuntimeError(text))
    assert "hunter" not in redacted(text)
    assert redacted("batch_tokens=4096, me@host, a: b@c") == "batch_tokens=4096, me@host, a: b@c"


def test_references_are_replaced_and_quoted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORD", "a@b/c d")
    monkeypatch.setenv("WHOLE", "postgresql://me:x%40@host/db")
    monkeypatch.setenv("HOST", "db.example")
    assert expand_env("postgresql://me:${WORD}@${HOST}/db") == "postgresql+psycopg://me:a%40b%2Fc%20d@db.example/db"
    assert expand_env("postgresql://h/db?password=${WORD}") == "postgresql+psycopg://h/db?password=a%40b%2Fc%20d"
    assert expand_env("${WHOLE}") == "postgresql+psycopg://me:x%40@host/db"
    assert expand_env("http://me:${WORD}@host") == "http://me:a%40b%2Fc%20d@host"


@pytest.mark.parametrize(
    "address",
    [
        "postgresql://me:a@hunter2@host/db",
        "postgresql://me:a/hunter2@host/db",
        "postgresql://me:hunter2?@host/db",
        "postgresql://me:hunter2 a@host/db",
        "postgresql://me:a:hunter2@host/db",
        "postgresql://me:hunter2@host:port/db",
        "postgresql+psycopg2://me:hunter2@host/db",
        "postgres://me:hunter2@host/db",
        "mysql://me:hunter2@host/db",
        "http://me:hunter2@host",
        "sqlite://",
        "sqlite:///:memory:",
        "/a/path",
        "",
    ],
)
def test_what_is_no_database(address: str) -> None:
    with pytest.raises(AddressError, match="received") as raised:
        database(address)
    assert SECRET not in str(raised.value)


def test_a_password_comes_back_from_where_it_is() -> None:
    kept = "postgresql://me@host/db"
    assert restore_password(kept, None, "postgresql://me:x@other/db", "postgresql://me:x@host/db").endswith(
        ":x@host/db"
    )
    assert restore_password(kept, "postgresql://you:x@host/db") == kept


def test_where_the_records_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PETL_SEARCH_HOME", str(tmp_path))
    monkeypatch.delenv("PETL_SEARCH_DATABASE", raising=False)
    assert database_url() == f"sqlite:///{tmp_path}/optuna.db"
    monkeypatch.setenv("PETL_SEARCH_DATABASE", "postgresql://me@host/a")
    assert database_url() == "postgresql+psycopg://me@host/a"
    assert database_url("sqlite:////x/y.db") == "sqlite:////x/y.db"


def test_a_study_file_keeps_its_passwords_to_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    stores = {
        "storage": {"database": "postgresql://me:hunter2@host/records"},
        "tracking": {"uri": "http://me:hunter2@host:5000"},
    }
    config = load_config(studies.study(tmp_path, **stores))
    assert config.storage.database == "postgresql://me:hunter2@host/records"
    for said in (repr(config), str(config), config.model_dump_json(), str(config.model_dump())):
        assert SECRET not in said
    assert config.model_dump()["storage"]["database"] == "postgresql://me@host/records"
    assert load_config(config.model_dump(mode="json")).model_dump() == config.model_dump()
    relative = load_config(studies.study(tmp_path, storage={"database": "sqlite:///a.db"}))
    assert relative.storage.database == f"sqlite:///{tmp_path}/a.db"


@pytest.mark.parametrize(
    "override",
    [
        "storage.database=mysql://me:hunter2@host/db",
        "storage=postgresql://me:hunter2@host/db",
        "tracking=http://me:hunter2@host",
        "tracking.uri=http://me:a@hunter2@host",
        "trakcing.uri=http://me:hunter2@host",
        "study=http://me:hunter2@host",
        "backbone=[http://me:hunter2@host]",
        "storage.database.x=postgresql://me:hunter2@host/db",
        "tracking.uri=[http://me:hunter2@host",
        "http://me:hunter2@host",
    ],
)
def test_faults_of_a_study_file_tell_no_password(tmp_path: Path, override: str) -> None:
    content = studies.study(tmp_path, storage={"database": "postgresql://me:hunter2@host/db"})
    with pytest.raises(ConfigError) as raised:
        load_config(content, [override])
    assert SECRET not in str(raised.value)


def test_a_servers_password_goes_into_the_header_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow prints the address that it is given; user and password are given to it in another way."""
    seen = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append((self.path, self.headers["Authorization"]))
            self.send_response(401 if "closed" in self.path else 200)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(b"{}")

        do_POST = do_GET  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    for name in ("USERNAME", "PASSWORD"):
        monkeypatch.setenv(f"MLFLOW_TRACKING_{name}", "")  # restored at the end
    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        host = f"127.0.0.1:{server.server_port}"
        client = tracking.open_client(f"http://me:hunter2%40@{host}")
        assert client.tracking_uri == f"http://{host}"
        with pytest.raises(StoreError, match="no store answers") as raised:
            tracking.open_client(f"http://me:hunter2@{host}/closed")
        server.shutdown()
    assert SECRET not in str(raised.value)
    assert raised.value.__cause__ is None
    header = "Basic " + base64.b64encode(b"me:hunter2@").decode()
    assert seen[0][1] == header
    assert not any(SECRET in path for path, _ in seen)
