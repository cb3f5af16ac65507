"""MLflow's pages on a local store: one process, no job workers; from other machines only with an account."""

from __future__ import annotations

import importlib.util
import ipaddress
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
import webbrowser
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.error import HTTPError
from urllib.request import urlopen

from search.storage.address import expand_env, without_password
from search.storage.database import is_postgresql, require_database
from search.storage.errors import StoreError, writing
from search.storage.locations import artifact_root, home, require_store, store_uri
from search.tracking.client import answering, open_client, require_undamaged
from search.tracking.reader import studies, summary
from search.tracking.views import FRONT, VIEW, address, run_page

if TYPE_CHECKING:
    from types import FrameType

_SHIPPED: Final = "password1234"  # MLflow's
_SHORTEST: Final = 12


def serve(uri: str | None, port: int, host: str = "127.0.0.1", study: str | None = None, opens: bool = False) -> None:
    """Run `mlflow server` on the store until Ctrl-C, and say where the front of a study is, by default the newest.

    On an address that others reach it has accounts. `opens` has the browser opened there. A store that is a server
    already runs; of it there is only the address. Raises StoreError where there is no store or no such study, where the
    store is damaged, where accounts need a password, where the port is taken, and where the server ends by itself.
    """
    uri = expand_env(store_uri(uri))
    require_store(uri)
    if is_postgresql(uri):
        require_database(uri, "experiments")
    root = artifact_root(uri)
    if root is None:
        at = f"{without_password(uri).rstrip('/')}/{_page(uri, study)}"
        print(at, flush=True)
        if opens:
            webbrowser.open(at)
        return
    require_undamaged(uri)
    accounts = {} if _is_own(host) else _accounts()
    _require_free(host, port)
    at = f"http://{host}:{port}/{_page(uri, study)}"
    print(at, flush=True)
    print(f"{'opens' if opens else 'is there'} in some seconds; Ctrl-C ends it", flush=True)
    command = [
        *(sys.executable, "-m", "mlflow", "server"),
        *("--host", host, "--port", str(port), "--workers", "1"),
        *("--artifacts-destination", str(root)),
        *(("--app-name", "basic-auth") if accounts else ()),
    ]
    # ten processes and 2.4 GB with job execution, two and 0.5 GB without
    quiet = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    store = {"MLFLOW_BACKEND_STORE_URI": uri}  # no argument: everybody on the machine sees those
    if opens:
        threading.Thread(target=_open_when_there, args=(at,), daemon=True).start()
    _run(command, {**os.environ, **quiet, **store, **accounts})


def has_browser() -> bool:
    """Return whether a person sits at this terminal, and has a browser that is a window of its own."""
    windows = sys.platform != "linux" or any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER"))
    return sys.stdout.isatty() and windows


def _page(uri: str, study: str | None) -> str:
    """Return the page of a study's front, below that of MLflow; without a study's name and any study, their list.

    A study without that view, which an earlier version wrote or somebody deleted, has the page of its own run.
    """
    # without the option MLflow 3 opens at its pages for language models
    everything = "#/experiments?workflowType=machine_learning"
    known = [summary(uri, study)] if study else studies(uri)
    if not known:
        return everything
    shown = known[0]
    with answering(uri):
        tags = open_client(uri).get_experiment(shown.experiment_id).tags
    return address(shown.experiment_id, FRONT) if VIEW + FRONT in tags else run_page(shown.experiment_id, shown.run_id)


def _open_when_there(at: str) -> None:
    """Open an address in the browser once its server answers."""
    while True:
        try:
            urlopen(at.partition("#")[0], timeout=5).close()
        except HTTPError:  # it asks for an account
            break
        except OSError:
            time.sleep(0.5)
        else:
            break
    webbrowser.open(at)


def _require_free(host: str, port: int) -> None:
    """Raise StoreError where this process cannot listen at an address."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as a server has it
            probe.bind(address)
    except OSError as error:
        raise StoreError(
            f"nothing can listen at {host}:{port} ({error.strerror or error}); --port and --host name another address"
        ) from None


def _run(command: Sequence[str], environment: Mapping[str, str]) -> None:
    """Run a server until Ctrl-C or SIGTERM, which it does not see: it would answer with tracebacks.

    Raises StoreError where it ends by itself.
    """

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    server = subprocess.Popen(command, env=environment, start_new_session=True)
    try:
        code = server.wait()
    except KeyboardInterrupt:
        return
    finally:
        signal.signal(signal.SIGTERM, before)
        with suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)  # it keeps nothing that is not in its database
        server.wait()
    raise StoreError(f"MLflow's server ended with exit code {code}; what it said is above")


def _is_own(host: str) -> bool:
    """Return whether only this machine reaches an address."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _accounts() -> dict[str, str]:
    """Return variables for a server whose accounts are kept in the home. Raises StoreError for no proper password."""
    password = os.environ.get("MLFLOW_AUTH_ADMIN_PASSWORD", "")
    if len(password) < _SHORTEST or password == _SHIPPED:
        raise StoreError(
            f"on an address that others reach the pages need accounts: set MLFLOW_AUTH_ADMIN_PASSWORD to {_SHORTEST} "
            "characters or more, and not to the password that MLflow once shipped"
        )
    if importlib.util.find_spec("flask_wtf") is None:
        raise StoreError("accounts need MLflow's extra: pip install 'petl-search[cluster]'")
    folder = home() / "accounts"
    key, settings = folder / "key", folder / "auth.ini"
    with writing(folder):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.chmod(0o700)
        if not key.exists():
            key.write_text(secrets.token_hex(32))
        settings.write_text(
            "[mlflow]\n"
            "default_permission = READ\n"
            f"database_uri = {_quoted(folder / 'accounts.db')}\n"
            "admin_username = admin\n"
            "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
        )
    return {"MLFLOW_AUTH_CONFIG_PATH": str(settings), "MLFLOW_FLASK_SERVER_SECRET_KEY": key.read_text()}


def _quoted(file: Path) -> str:
    return f"sqlite:///{file}".replace("%", "%%")
