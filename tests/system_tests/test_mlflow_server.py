"""infra/mlflow/server.sh: no start without accounts, and what the started server lets whom do."""

from __future__ import annotations

import base64
import importlib.util
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

import psutil
import pytest
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

SCRIPT = Path(__file__).parents[2] / "infra" / "mlflow" / "server.sh"
PASSWORD = "correct horse battery staple"


def environment(**given: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "PYTEST_"))}
    return {**kept, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", **given}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"MLFLOW_AUTH_ADMIN_PASSWORD": PASSWORD}, "MLFLOW_BACKEND_STORE_URI"),
        ({"MLFLOW_BACKEND_STORE_URI": "sqlite:///x.db"}, "does not start without accounts"),
        ({"MLFLOW_BACKEND_STORE_URI": "sqlite:///x.db", "MLFLOW_AUTH_ADMIN_PASSWORD": ""}, "without accounts"),
        ({"MLFLOW_BACKEND_STORE_URI": "sqlite:///x.db", "MLFLOW_AUTH_ADMIN_PASSWORD": "short"}, "12 characters"),
        ({"MLFLOW_BACKEND_STORE_URI": "sqlite:///x.db", "MLFLOW_AUTH_ADMIN_PASSWORD": "password1234"}, "once shipped"),
    ],
    ids=["database", "password", "empty", "short", "shipped"],
)
def test_refusals(given: dict[str, str], said: str, tmp_path: Path) -> None:
    for host in ("127.0.0.1", "0.0.0.0"):
        done = subprocess.run(
            [SCRIPT, "data"], env=environment(MLFLOW_HOST=host, **given), cwd=tmp_path, capture_output=True, text=True
        )
        assert done.returncode == 2
        assert said in done.stderr
        assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, psutil.Process]]:
    if not importlib.util.find_spec("flask_wtf"):
        pytest.skip("MLflow's extra for accounts is not installed: pip install 'mlflow[auth]'")
    folder = tmp_path_factory.mktemp("mlflow")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    given = {"MLFLOW_PORT": str(port), "MLFLOW_WORKERS": "1", "MLFLOW_AUTH_ADMIN_PASSWORD": PASSWORD}
    given["MLFLOW_BACKEND_STORE_URI"] = f"sqlite:///{folder / 'mlflow.db'}"
    log = folder / "log"
    with log.open("wb") as out:
        process = subprocess.Popen([SCRIPT, folder / "data"], env=environment(**given), stdout=out, stderr=out)
    try:
        url, deadline = f"http://127.0.0.1:{port}", time.monotonic() + 180
        while status(f"{url}/health") != 200:
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.5)
        yield url, psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait(30)


def status(url: str, account: str = "") -> int:
    request = Request(url)
    if account:
        request.add_header("Authorization", "Basic " + base64.b64encode(account.encode()).decode())
    try:
        with urlopen(request, timeout=30) as answer:
            return int(answer.status)
    except HTTPError as error:
        return error.code
    except URLError:
        return 0


def test_every_request_needs_an_account(server: tuple[str, psutil.Process]) -> None:
    url, _ = server
    for path in ("/", "/api/2.0/mlflow/experiments/search?max_results=1", "/api/2.0/mlflow-artifacts/artifacts"):
        assert status(url + path) == 401
        assert status(url + path, "admin:password1234") == 401
        assert status(url + path, f"admin:{PASSWORD}") == 200


def test_it_listens_on_this_machine_only_and_its_files_are_its_own(server: tuple[str, psutil.Process]) -> None:
    _, process = server
    family = [process, *process.children(recursive=True)]
    listening = {c.laddr for one in family for c in one.net_connections("inet") if c.status == psutil.CONN_LISTEN}
    assert {address.ip for address in listening} == {"127.0.0.1"}
    assert PASSWORD not in json.dumps([one.cmdline() for one in family])
    data = Path(process.environ()["MLFLOW_AUTH_CONFIG_PATH"]).parent
    for file in (data, *data.iterdir()):
        assert file.stat().st_mode & 0o077 == 0, file


def test_who_has_an_account_reads_all_and_writes_his_own(
    server: tuple[str, psutil.Process], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from mlflow.server import get_app_client

    def be(name: str, password: str) -> None:
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", name)
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", password)

    url, _ = server
    client = MlflowClient(url)
    be("admin", PASSWORD)
    for name in ("ada", "bob"):
        get_app_client("basic-auth", url).create_user(name, f"{name}'s password")
    be("ada", "ada's password")
    run = client.create_run(client.create_experiment("hers"))
    (tmp_path / "adapter.txt").write_text("weights")
    client.log_metric(run.info.run_id, "score", 0.5)
    client.log_artifact(run.info.run_id, str(tmp_path / "adapter.txt"))
    be("bob", "bob's password")
    assert client.get_run(run.info.run_id).data.metrics == {"score": 0.5}
    assert Path(client.download_artifacts(run.info.run_id, "adapter.txt", str(tmp_path))).read_text() == "weights"
    with pytest.raises(MlflowException, match="ermission denied"):
        client.log_metric(run.info.run_id, "score", 1.0)
