"""Studies sent to a Ray cluster as jobs: a real head on ports of its own, driven through the command line."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import studies
import yaml
from ray.job_submission import JobDetails, JobStatus, JobType

from search.config.text import ConfigError
from search.jobs.client import Cluster, ClusterAwayError, JobError, Submission, outcome, pack
from search.jobs.entrypoint import arrive
from search.storage.studies import create_study

ROOT = Path(__file__).parents[2]
SPACE = """
from dataclasses import replace
from helper import RANKS
from petl.configuration import Configuration
from petl.presets import lora

def space(trial, backbone, training):
    return Configuration(lora(rank=trial.suggest_categorical("rank", RANKS)), training)
"""


def free_ports(count: int) -> list[int]:
    """Different ones: each is taken until all are known."""
    with ExitStack() as stack:
        taken = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in taken:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in taken]


class Head:
    """A cluster of one node, whose processes are children of one of ours."""

    def __init__(self, folder: Path, **environment: str) -> None:
        pytest.importorskip("opencensus", reason="Ray Jobs need the extra petl-search[cluster]")
        self.folder, (self.port, self.dashboard, *self.others) = folder, free_ports(5)
        self.home = folder / "home"
        self.url = f"http://127.0.0.1:{self.dashboard}"
        self.environment = {
            **{key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "MLFLOW_"))},
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "PETL_SEARCH_HOME": str(self.home),
            "RAY_USAGE_STATS_ENABLED": "0",
            **environment,
        }
        self.start()

    def start(self) -> None:
        agent, metrics, client = self.others
        ports = [f"--dashboard-agent-listen-port={agent}", f"--metrics-export-port={metrics}"]
        # Ray's sockets have paths of at most 107 characters, shorter than pytest's folders leave
        self.temporary = Path(tempfile.mkdtemp(prefix="petl-", dir="/tmp"))
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block"]
        where = [f"--port={self.port}", f"--dashboard-port={self.dashboard}", f"--temp-dir={self.temporary}"]
        local = ["--node-ip-address=127.0.0.1", "--dashboard-host=127.0.0.1", "--include-dashboard=true"]
        none = ["--min-worker-port=0", "--max-worker-port=0", f"--ray-client-server-port={client}"]  # 0: any
        small = [*none, "--num-cpus=2", "--object-store-memory=200000000"]
        self.process = subprocess.Popen(
            [*command, *where, *local, *ports, *small],
            env=self.environment,
            cwd=self.folder,
            stdout=(self.folder / "head.log").open("ab"),
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        wait_for(self.answers, 120)

    def answers(self) -> bool:
        assert self.process.poll() is None, (self.folder / "head.log").read_text()[-2000:]
        done = self.command("status", "nothing")
        return "knows no job" in done.stderr

    def command(self, *arguments: str, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
        process = self.begin(*arguments, cwd=cwd, **environment)
        out, err = process.communicate(timeout=240)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def begin(self, *arguments: str, cwd: Path | None = None, **environment: str) -> subprocess.Popen[str]:
        """The client, which has a home of its own."""
        mine = {**self.environment, "PETL_SEARCH_HOME": str(self.folder / "elsewhere"), **environment}
        return subprocess.Popen(
            [sys.executable, "-m", "search.cli", *arguments, "--address", self.url],
            env=mine,
            cwd=cwd or self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def kill(self) -> None:
        """SIGKILL to everything of it."""
        family = psutil.Process(self.process.pid).children(recursive=True)
        for process in [psutil.Process(self.process.pid), *family, *self.strays()]:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self.process.wait()
        shutil.rmtree(self.temporary, ignore_errors=True)

    def strays(self) -> list[psutil.Process]:
        """Processes whose parent is gone already: the session's folder is in their command line or environment."""
        found = []
        for process in psutil.process_iter():
            try:
                if str(self.temporary) in " ".join(process.cmdline()):
                    found.append(process)
            except psutil.Error:
                continue
        return found


def wait_for(reached: Callable[[], Any], seconds: float) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := reached()):
        assert time.monotonic() < deadline, "it took too long"
        time.sleep(0.5)
    return found


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    running = Head(tmp_path_factory.mktemp("head"))
    yield running
    running.kill()


def write(folder: Path, **sections: Any) -> Path:
    """A study file beside the space, model and rows that it names."""
    folder.mkdir(parents=True, exist_ok=True)
    for module in ("my_space", "helper"):  # of an earlier test's folder
        sys.modules.pop(module, None)
    (folder / "my_space.py").write_text(SPACE)
    (folder / "helper.py").write_text("RANKS = [1, 2, 3, 4, 5, 6, 7, 8]\n")
    content = studies.study(folder, **{"space": {"name": "my_space:space"}, "references": ["majority"], **sections})
    content["backbone"]["model"] = "backbone"  # relative, as people write them
    content["task"]["paths"] = "rows.csv"
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.mark.full("two minutes")
def test_a_study_stopped_in_the_middle_and_resumed(head: Head, tmp_path: Path) -> None:
    path = write(
        tmp_path, rows=480, budget={"trials": 5, "epochs": 12}, scheduler={"name": "none"}, resources={"concurrent": 1}
    )
    sent = head.command("submit", str(path), cwd=tmp_path)
    assert sent.returncode == 0, sent.stderr
    assert "job petl-tiny-1." in sent.stdout
    again = head.command("submit", str(path), cwd=tmp_path)
    assert again.returncode == 2
    assert "study 'tiny' is" in again.stderr
    assert "petl-tiny-1" in again.stderr

    complete = re.compile(r"trial \d+ .* complete: accuracy")
    wait_for(lambda: complete.search(head.command("logs", "tiny").stdout), 120)
    now = head.command("status", "tiny").stdout
    assert now.startswith("study tiny is running for 0:0")
    assert "trial" in now
    stopped = head.command("stop", "tiny")
    assert stopped.returncode == 0, stopped.stderr
    assert "was stopped; nothing that was finished is lost" in stopped.stdout
    said = head.command("logs", "tiny").stdout
    assert "interrupted; nothing that was finished is lost" in said  # it was not killed
    done = set((head.home / "studies/tiny/trials").glob("*/result/manifest.json"))
    assert 0 < len(done) < 6
    kept = {file: file.stat().st_mtime_ns for file in done}
    assert "was stopped" in head.command("stop", "tiny").stderr

    ended = head.command("resume", "tiny", "--follow")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "study tiny is finished" in ended.stdout
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x1b]", said + ended.stdout)
    assert len(ended.stdout.splitlines()) < 6 * 12 + 40  # one for each epoch of a trial, and what stands around them
    assert {file: file.stat().st_mtime_ns for file in done} == kept
    assert len(list((head.home / "studies/tiny/trials").glob("*/result/manifest.json"))) == 6
    assert "study tiny is finished after" in head.command("status", "tiny").stdout
    kept_config = yaml.safe_load((head.home / "submitted/tiny/study.yaml").read_text())
    assert kept_config["backbone"]["model"].startswith(str(head.home / "inputs"))  # no folder of a session


@pytest.mark.full("a search")
def test_a_study_of_another_script(head: Head, tmp_path: Path) -> None:
    name = "отзывы-评论-مراجعات"
    path = write(tmp_path, study=name, budget={"trials": 2, "epochs": 1}, scheduler={"name": "none"})
    sent = head.command("submit", str(path), "--follow", cwd=tmp_path)
    assert sent.returncode == 0, sent.stdout + sent.stderr
    assert f"study {name} is finished" in sent.stdout
    assert f"study {name} is finished" in head.command("status", name).stdout
    assert "complete: accuracy" in head.command("logs", name).stdout
    assert len(list((head.home / "studies" / name / "trials").glob("*/result/manifest.json"))) == 3
    ended = head.command("resume", name, "--set", "budget.trials=3", "--follow")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert len(list((head.home / "studies" / name / "trials").glob("*/result/manifest.json"))) == 4


def test_wrong_inputs(head: Head, tmp_path: Path) -> None:
    path = write(tmp_path)
    content = yaml.safe_load(path.read_text())
    unknown = head.command("status", "nobody")
    assert unknown.returncode == 2
    assert "knows no job of study 'nobody'" in unknown.stderr
    assert "petl-search resume nobody" in unknown.stderr
    assert "cannot be read" in head.command("submit", "nowhere.yaml").stderr
    path.write_text(yaml.safe_dump({**content, "sampler": {"name": "x"}, "seed": -1}))
    assert "2 fault(s)" in head.command("submit", str(path), cwd=tmp_path).stderr
    path.write_text(yaml.safe_dump(content))
    refused = head.command("submit", str(path), "--env", "DB_PASSWORD=hunter2", cwd=tmp_path)
    assert "received DB_PASSWORD" in refused.stderr
    assert "hunter2" not in refused.stderr + refused.stdout
    lost = head.command("submit", str(path), "--python", "/no/python", "--follow", cwd=tmp_path)
    assert lost.returncode == 127
    assert "name one by --python" in lost.stderr


# --- without a cluster ---


def test_no_cluster_is_said_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    began, url = time.monotonic(), f"http://127.0.0.1:{free_ports(1)[0]}"
    with pytest.raises(ClusterAwayError, match=f"no Ray cluster answers at {url} .*refused"):
        Cluster(url)
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", url)
    with pytest.raises(ClusterAwayError, match=url):
        Cluster()
    assert time.monotonic() - began < 10
    with pytest.raises(JobError, match=r"of its dashboard.*received auto"):
        Cluster("auto")


def test_what_is_sent_is_what_the_study_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path)
    (tmp_path / "private.txt").write_text("not of the study")
    (tmp_path / "backbone/.gitignore").write_text("*.safetensors")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    sent = pack(path)
    assert [item.path.name for item in sent.inputs] == ["backbone", "rows.csv"]
    assert set(sent.modules) == {"my_space.py", "helper.py"}
    archive = tmp_path / "sent.zip"
    sent.write(archive)
    names = zipfile.ZipFile(archive).namelist()
    assert any(name.endswith("backbone/model.safetensors") for name in names)
    assert not any("private" in name for name in names)
    assert [item.path.name for item in pack(path, mounted=[tmp_path / "backbone"]).inputs] == ["rows.csv"]
    same = pack(path, overrides=["budget.trials=9"])
    assert [item.digest for item in same.inputs] == [item.digest for item in sent.inputs]


def test_every_fault_is_found_before_anything_is_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match=r"2 fault\(s\)"):
        pack(path, overrides=["seed=-1", "sampler.name=x"])
    secret = "postgresql://petl:hunter2@db/records"
    with pytest.raises(JobError) as error:
        pack(path, overrides=["task.paths=gone.csv", f"storage.database={secret}", "tracking.uri=sqlite:///here.db"])
    assert len(str(error.value).splitlines()) == 4
    for part in ("gone.csv", "no password travels", "a file of this machine"):
        assert part in str(error.value)
    assert "hunter2" not in str(error.value)
    assert "ELSEWHERE" not in os.environ
    kept = pack(path, overrides=["storage.database=postgresql://petl:${ELSEWHERE}@db/records"]).config
    assert kept is not None
    assert kept["storage"]["database"] == "postgresql://petl:${ELSEWHERE}@db/records"


def test_a_study_keeps_the_code_that_it_was_begun_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second study of its name, refused or not, and a resume, which finds the records where the first had them."""
    address = f"sqlite:///{tmp_path}/head/records.db"
    path = write(tmp_path, storage={"database": address})
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PETL_SEARCH_HOME", str(tmp_path / "head"))
    monkeypatch.setenv("PETL_SEARCH_DATABASE", "")  # so that what `arrive` sets does not outlive the test
    monkeypatch.delenv("PETL_SEARCH_DATABASE")
    place = tmp_path / "head/submitted/tiny"
    first = pack(path, mounted=[tmp_path / "head"])

    def arrived(sent: Submission) -> list[str]:
        with tempfile.TemporaryDirectory() as folder:
            sent.write(Path(folder) / "sent.zip")
            zipfile.ZipFile(f"{folder}/sent.zip").extractall(folder)
            return arrive(Path(folder))

    assert arrived(first)[0] == "run"
    (tmp_path / "helper.py").write_text("RANKS = [1]\n")
    arrived(first)  # nothing was begun yet: what is sent now counts
    assert (place / "helper.py").read_text() == "RANKS = [1]\n"
    create_study(address, "tiny", ("accuracy", "stored_parameters")).set_info("resolved", {})
    (tmp_path / "helper.py").write_text("RANKS = [2]\n")
    for flags in ((), ("--or-resume",)):
        arrived(replace(first, arguments=flags))
        assert (place / "helper.py").read_text() == "RANKS = [1]\n"
    monkeypatch.delenv("PETL_SEARCH_DATABASE", raising=False)
    assert arrived(Submission("tiny", arguments=("resume", "tiny"))) == ["resume", "tiny"]
    assert os.environ["PETL_SEARCH_DATABASE"] == address
    assert Path.cwd() == place
    arrived(replace(first, arguments=("--fresh",)))
    assert (place / "helper.py").read_text() == "RANKS = [2]\n"


def test_what_is_too_large_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path)
    (tmp_path / "backbone/more.bin").write_bytes(os.urandom(101 * 2**20))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(JobError, match=r"takes 100 MiB .*backbone \(101 MiB\).*--mounted"):
        pack(path).write(tmp_path / "sent.zip")


@pytest.mark.parametrize("variable", ["MLFLOW_TRACKING_PASSWORD", "HF_TOKEN", "AWS_SECRET_ACCESS_KEY"])
def test_no_password_travels(variable: str) -> None:
    with pytest.raises(JobError, match=f"received {variable}$|received {variable}\\. Set"):
        Submission("tiny", env={variable: "hunter2"})
    with pytest.raises(JobError, match="received PETL_SEARCH_DATABASE"):
        Submission("tiny", env={"PETL_SEARCH_DATABASE": "postgresql://petl:hunter2@db/records"})
    Submission("tiny", env={"PETL_SEARCH_DATABASE": "postgresql://petl:${PETL_PASSWORD}@db/records"})


def test_a_job_that_is_still_ending_is_not_said_to_have_failed() -> None:
    job = JobDetails(type=JobType.SUBMISSION, submission_id="petl-tiny-3", status=JobStatus.RUNNING, entrypoint="")
    said, code = outcome("tiny", job, "http://head:8265")
    assert "is still ending, as job petl-tiny-3" in said
    assert code == 1


@pytest.mark.full("a job of minutes where others run")
def test_ctrl_c_leaves_the_job_running(head: Head, tmp_path: Path) -> None:
    path = write(tmp_path, study="left", budget={"trials": 2, "epochs": 1})
    follower = head.begin("submit", str(path), "--follow", cwd=tmp_path)
    wait_for(lambda: "left is" in head.command("status", "left").stdout, 60)
    follower.send_signal(signal.SIGINT)
    _, err = follower.communicate(timeout=30)
    assert follower.returncode == 130
    assert "job petl-left-1 continues" in err
    wait_for(lambda: "is finished" in head.command("status", "left").stdout, 200)


# --- long ---

long = pytest.mark.full("two minutes")


@long
def test_the_head_is_killed_and_comes_back(tmp_path: Path) -> None:
    path = write(
        tmp_path, rows=480, budget={"trials": 6, "epochs": 3}, resources={"concurrent": 1}, scheduler={"name": "none"}
    )
    running = Head(tmp_path)
    try:
        follower = running.begin("submit", str(path), "--follow", cwd=tmp_path)
        trials = running.home / "studies/tiny/trials"
        wait_for(lambda: len(list(trials.glob("*/result/manifest.json"))) >= 2, 180)
        kept = {file: file.stat().st_mtime_ns for file in trials.glob("*/result/manifest.json")}
        running.kill()
        time.sleep(5)
        running.start()
        out, err = follower.communicate(timeout=300)
        print(out, err)
        assert follower.returncode == 0, out + err
        assert "no Ray cluster answers" in out
        assert "the cluster is back without job petl-tiny-1; the study is resumed" in out
        assert {file: file.stat().st_mtime_ns for file in kept} == kept
        assert len(list(trials.glob("*/result/manifest.json"))) == 7
    finally:
        running.kill()


@long
def test_a_cluster_that_asks_for_a_token(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("0123456789abcdef0123456789abcdef")
    token.chmod(0o600)
    running = Head(tmp_path, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN_PATH=str(token))
    try:
        path = write(tmp_path, budget={"trials": 1, "epochs": 1})
        refused = running.command("status", "tiny", RAY_AUTH_MODE="disabled")
        assert refused.returncode == 2
        assert "asks for its token" in refused.stderr
        ended = running.command("submit", str(path), "--follow", cwd=tmp_path)
        assert ended.returncode == 0, ended.stdout + ended.stderr
    finally:
        running.kill()
