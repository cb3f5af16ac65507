"""Attacks, each a real one, and what comes of them."""

from __future__ import annotations

import ast
import base64
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, ClassVar
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import psutil
import pytest
import ray
import studies
from servers import free_port

from petl import backbones
from petl.adapters import storage
from petl.adapters.storage import StorageError
from petl.attach.attachment import attach
from petl.backbones.locate import BackboneError, package_path
from petl.configuration import Configuration
from petl.design import Design, Form, Modification, Site
from petl.measurements import Measurements
from petl.presets import parse
from petl.training import baselines
from petl.training.run import TrainingRun
from search import load_study
from search.config.loading import load_config
from search.config.sections import ResourcesConfig
from search.config.text import ConfigError
from search.storage.address import redacted, without_password
from search.storage.errors import StoreError
from search.storage.folder import TrialFolder
from search.study.places import StudyError
from search.study.run import resume
from search.tracking import client, reader, runs
from search.tracking import server as ui
from search.tracking.note import note
from search.tracking.reader import LeftOutWarning
from search.tracking.writer import MlflowTracker
from search.trials.record import State, TrialRecord
from search.workers.cluster import joined

INFO = {"objectives": {"score": "accuracy", "cost": "stored_parameters"}, "backbone": {"model": "tiny"}}

# --- what listens ---


def listening(process: psutil.Process) -> set[str]:
    """The addresses on which a process and those that it started listen."""
    family = [process, *process.children(recursive=True)]
    return {c.laddr.ip for one in family for c in one.net_connections("inet") if c.status == psutil.CONN_LISTEN}


def asks(head: str, **environment: str) -> str:
    """What the head of a Ray cluster tells a process with these settings: "answered", or an error."""
    question = f"GcsClient(address={head!r}).get_all_node_info(timeout=10)"
    code = f"from ray._raylet import GcsClient; {question}; print('answered')"
    where = {**os.environ, **environment}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=where, check=False)
    return done.stdout.strip() or done.stderr


def test_a_local_ray_is_for_its_own_processes_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of it listens on 127.0.0.1, and who is there without the token is sent away."""
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")

    def where() -> int:
        return os.getpid()

    with joined(ResourcesConfig(cpus_per_trial=1), tmp_path, "local"):
        assert ray.get(ray.remote(num_cpus=0)(where).remote()) != os.getpid()
        assert listening(psutil.Process()) <= {"127.0.0.1", "::ffff:127.0.0.1"}
        token = os.environ["RAY_AUTH_TOKEN"]
        family = psutil.Process().children(recursive=True)
        assert len(token) == 64
        assert not any(token in " ".join(one.cmdline()) for one in family)
        session = Path(ray._private.worker._global_node.get_session_dir_path())
        assert session.parent.parent.stat().st_mode & 0o077 == 0

        head = ray.get_runtime_context().gcs_address
        assert asks(head, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=token) == "answered"
        for stranger in ({"RAY_AUTH_MODE": "disabled"}, {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64}):
            assert "auth" in asks(head, **stranger).lower()
    assert os.environ["RAY_AUTH_MODE"] == "disabled"
    assert "RAY_AUTH_TOKEN" not in os.environ
    assert not session.parent.parent.exists()


# --- what a malicious run may put into MLflow ---


class Study:
    """A study of three good trials in a store that others write too; `plant` adds a run of theirs."""

    def __init__(self, folder: Path) -> None:
        self.home, self.uri = folder, f"sqlite:///{folder}/mlflow.db"
        self.tracker = MlflowTracker.open(self.uri, "demo", folder / "artifacts", INFO)
        for number in range(3):
            self.tracker.publish(good(number))
        self.client = client.open_client(self.uri)

    def plant(self, number: int = 9, **tags: str) -> str:
        kind = {"kind": "trial", "trial": str(number), "study": "demo", "mlflow.parentRunId": self.tracker.run_id}
        run = self.client.create_run(self.tracker.experiment_id, tags={**kind, **tags})
        return str(run.info.run_id)

    def adapter(self, number: int) -> Path:
        run_id = self.tracker.run_of(number) or ""
        folder = self.home / "artifacts" / "demo" / run_id / "artifacts" / "adapter"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "design.json").write_text("{}")
        return folder

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        code = "from search.cli import main; main()"
        where = {**os.environ, "PETL_SEARCH_HOME": str(self.home)}
        return subprocess.run(
            [sys.executable, "-c", code, *arguments],
            capture_output=True,
            text=True,
            env=where,
            timeout=300,
            check=False,
        )


def good(number: int, **changes: Any) -> TrialRecord:
    design = Design((Modification(form=Form.LOW_RANK, site=Site.QUERY, size=number + 1),))
    measured = Measurements(accuracy=0.5 + number / 100, stored_parameters=100 * (number + 1), base_parameters=10_000)
    values = {"state": State.COMPLETE, "configuration": Configuration(design), "measurements": measured, **changes}
    return TrialRecord(number=number, **values)


def says(trial: int = 9, **changes: Any) -> dict[str, Any]:
    """The record of a run, as JSON, with changes."""
    return {**good(trial).to_dict(), **changes}


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    return Study(tmp_path_factory.mktemp("study"))


@pytest.fixture
def alone(study: Study) -> Iterator[Study]:
    """The study without what a test planted, afterwards."""
    before = {run.info.run_id for run in runs.trial_runs(study.client, study.tracker.experiment_id)}
    yield study
    for run in runs.trial_runs(study.client, study.tracker.experiment_id):
        if run.info.run_id not in before:
            study.client.delete_run(run.info.run_id)


MEASURED = {"accuracy": 0.99, "stored_parameters": 1, "base_parameters": 10}
NONSENSE = {
    "no JSON": "{",
    "no object": "[1, 2]",
    "nested": "[" * 4_000,
    "nested objects": '{"a":' * 900,
    "nothing": "{}",
    "a number of words": json.dumps(says(number="nine")),
    "a negative number": json.dumps(says(number=-1)),
    "a long number": '{"number": ' + "9" * 4_400 + "}",
    "another state": json.dumps(says(state="WON")),
    "no design": json.dumps(says(configuration={"design": {"schema": 1, "modifications": 7}, "seed": 0})),
    "a design of another kind": json.dumps(says(configuration=[1])),
    "a score of text": json.dumps(says(measurements={**MEASURED, "accuracy": "<b>"})),
    "a share of 10": json.dumps(says(measurements={**MEASURED, "accuracy": 10.0})),
    "a score of 1e400": json.dumps(says(measurements=MEASURED)).replace("0.99", "1e400"),
    "NaN seconds": json.dumps(says(measurements={**MEASURED, "seconds": float("nan")})),
    "a cost of -1": json.dumps(says(measurements={**MEASURED, "stored_parameters": -1})),
    "seconds without end": json.dumps(says(measurements={**MEASURED, "seconds": float("inf")})),
    "rungs of text": json.dumps(says(rungs=[["x", "y"]])),
    "times of text": json.dumps(says(started="yesterday")),
}


def test_a_run_that_makes_no_sense_is_left_out_by_name_and_the_others_stay(alone: Study) -> None:
    planted = {alone.plant(record=text[:5_000]): what for what, text in NONSENSE.items()}
    planted[alone.plant(record=json.dumps(says()), counts='{"stored_parameters": 1e400}')] = "counts"
    planted[alone.plant(record=json.dumps(says()), final='{"test": {"accuracy": [1]}}')] = "final"
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        loaded = load_study("demo", alone.uri)
    messages = [str(one.message) for one in told if one.category is LeftOutWarning]
    assert [planted[trial.run_id] for trial in loaded.trials if trial.run_id in planted] == []
    assert [trial.number for trial in loaded.trials] == [0, 1, 2]
    assert len(loaded.front()) == 3
    for run_id, what in planted.items():
        assert [run_id in message for message in messages].count(True) == 1, what
    assert max(map(len, messages)) < 500

    done = alone.command("front", "demo", "--format", "json")
    assert done.returncode == 0
    assert [row["trial"] for row in json.loads(done.stdout)] == [0, 1, 2]
    assert done.stderr.count("petl-search: left out of study demo: run ") == len(planted)


def test_a_writer_goes_on_beside_runs_that_make_no_sense(alone: Study) -> None:
    alone.plant(record="{")
    alone.plant(trial="x")
    again = MlflowTracker.open(alone.uri, "demo", alone.home / "artifacts", INFO)
    assert again.run_of(1) == alone.tracker.run_of(1)
    again.publish(good(1))


EVIL = (
    "\x1b]0;owned\x07\x1b[2J\x9b31m[bold red]x[/] \u202egnp $\\frac{ <img src=x onerror=alert(1)> `[a](http://b)|\ud800"
)


def test_names_do_nothing_to_a_terminal_a_picture_or_a_page(alone: Study, tmp_path: Path) -> None:
    record = says(name=EVIL, measurements={**MEASURED, "stored_percent": 1.0})
    alone.plant(record=json.dumps(record), name="x")
    alone.plant(10, kind="reference", record=json.dumps({**record, "number": 10, "reference": EVIL}))
    alone.plant(11, record=json.dumps(says(11, state="FAIL", failure=EVIL, measurements=None)))
    picture = tmp_path / "front.svg"
    for arguments in (
        ("ls",),
        ("show", "demo"),
        ("show", "demo", "9"),
        ("front", "demo", "--plot", str(picture)),
        ("front", "demo", "--format", "csv"),
    ):
        done = alone.command(*arguments)
        assert done.returncode == 0, done.stderr
        assert not set(done.stdout + done.stderr) & set("\x1b\x07\x9b\u202e\ud800"), arguments
        assert "[bold red]" in done.stdout or arguments == ("ls",)
    assert "<img" not in picture.read_text()
    loaded = load_study("demo", alone.uri)
    text = note(loaded.front().to_rows(), loaded.reference_rows(), "1", loaded.objectives)
    (line,) = [line for line in text.splitlines() if line.startswith("| [9]")]
    assert line.count("|") == 8
    assert not {"<", "`"} & set(line)
    assert "](http" not in line


def test_another_studys_nonsense_is_left_out(alone: Study) -> None:
    for name, tags, info in (
        ("a", {"petl_search.study": "../../x"}, INFO),
        ("b", {"petl_search.study": "b"}, {"objectives": {"score": "\x1b[2J", "cost": "x"}}),
        ("c", {"petl_search.study": "c"}, {**INFO, "constraints": {"stored_percent": "all"}}),
        ("d", {"petl_search.study": "demo"}, INFO),
        ("e", {"petl_search.study": "e"}, {**INFO, "constraints": {"foo": 1}}),
        ("f", {"petl_search.study": "f"}, {**INFO, "backbone": {"model": 5}}),
        ("g", {"petl_search.study": "g"}, {**INFO, "budget": [1]}),
        ("h", {"petl_search.study": "h"}, {**INFO, "designs": {"a": {"seeds": 3}}}),
    ):
        experiment = alone.client.create_experiment(name, tags=tags)
        alone.client.create_run(experiment, tags={"kind": "study", "info": json.dumps(info)})
        trial = {"kind": "trial", "trial": "0", "record": json.dumps(says(0))}
        alone.client.create_run(experiment, tags=trial)
    done = alone.command("ls")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("petl-search: left out: run ") == 8
    assert done.stdout.count("demo") == 1
    assert "\x1b" not in done.stderr
    for name in "bcefgh":
        with pytest.raises(StoreError, match="makes no sense"):
            load_study(name, alone.uri)


def plant_file(folder: Path, what: str) -> None:
    """An artifact that no adapter has."""
    file = folder / "model.json"
    if what == "a 10 GB JSON":
        with file.open("wb") as sparse:
            sparse.truncate(10 * 10**9)
    elif what == "a link":
        file.symlink_to("/etc/passwd")
    elif what == "a device":
        (folder / "adapter.safetensors").symlink_to("/dev/zero")
    elif what == "a linked folder":
        (folder / "tokenizer").symlink_to("/etc")
    elif what == "a loop":
        (folder / "tokenizer").symlink_to(folder)
    elif what == "a pipe":
        os.mkfifo(file)
    elif what == "too many":
        for number in range(200):
            (folder / f"{number}.json").touch()
    else:
        (folder / what).write_bytes(b"x")


@pytest.mark.parametrize(
    "what",
    [
        *("a 10 GB JSON", "a link", "a device", "a linked folder", "a loop", "a pipe", "too many", "bomb.zip"),
        *("weights.npz", "pytorch_model.bin", "modeling.py", ".hidden.json", "a\nb.json", "a b.json"),
    ],
)
def test_an_adapter_with_what_none_has_is_not_fetched(study: Study, what: str, tmp_path: Path) -> None:
    folder = study.adapter(2)
    plant_file(folder, what)
    try:
        trial = load_study("demo", study.uri).trial(2)
        began = time.monotonic()
        with pytest.raises(StoreError, match=trial.run_id) as told:
            trial.export(tmp_path / "mine")
        assert time.monotonic() - began < 10
        assert "\n" not in str(told.value)
        assert list(tmp_path.iterdir()) == []
    finally:
        shutil.rmtree(folder)
    study.adapter(2)
    assert sorted(file.name for file in load_study("demo", study.uri).trial(2).export(tmp_path / "it").iterdir()) == [
        "design.json"
    ]


class Liar(BaseHTTPRequestHandler):
    """A server whose artifacts are not what it lists: MLflow's client asks it for one run."""

    files: ClassVar[list[dict[str, Any]]] = []
    content: ClassVar[bytes] = b""

    def do_GET(self) -> None:
        where = f"http://{self.headers['Host']}/api/2.0/mlflow-artifacts/artifacts/1"
        answers = {
            "runs/get": {"run": {"info": {"run_id": "r", "artifact_uri": where, "start_time": 1}, "data": {}}},
            "artifacts/list": {"root_uri": where, "files": self.files},
            "mlflow-artifacts/artifacts?": {"files": self.files},
        }
        found = next((json.dumps(answer).encode() for path, answer in answers.items() if path in self.path), b"{}")
        stored = "artifacts/1/" in self.path
        self.send_response(200)
        self.end_headers()
        self.wfile.write(self.content if stored else found)

    do_POST = do_GET  # noqa: N815

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.mark.parametrize(
    ("path", "size", "content"),
    [
        ("../../../evil.json", 1, b"x"),
        ("/tmp/evil.json", 1, b"x"),
        ("adapter/../../evil.json", 1, b"x"),
        ("design.json", 10, b"x" * 10**7),
        ("design.json", 10, b"x"),
        ("design.json", 10**12, b"x"),
    ],
)
def test_a_server_that_lies(path: str, size: int, content: bytes, tmp_path: Path) -> None:
    Liar.files = [{"path": path, "is_dir": False, "file_size": size}]
    Liar.content = content
    with HTTPServer(("127.0.0.1", 0), Liar) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with pytest.raises(StoreError):
            reader.download(f"http://127.0.0.1:{server.server_port}", "r", tmp_path / "a" / "b" / "mine")
        server.shutdown()
    assert [file for file in tmp_path.rglob("*") if file.is_file()] == []
    assert not Path("/tmp/evil.json").exists()


# --- models and adapters with code in them ---

MARK = "open({!r}, 'w').close()"


class Bomb:
    """A pickle of it makes a file when it is read."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return (exec, (MARK.format(str(self.mark)),))


def evil_model(folder: Path, mark: Path, **config: Any) -> Path:
    """A BERT with its tokenizer, whose folder also has code, and pickles under all names that libraries know."""
    studies.write_backbone(folder)
    code = MARK.format(str(mark)) + "\nfrom transformers import *\nclass Evil(BertConfig): pass\n"
    for name in ("modeling_evil.py", "configuration_evil.py", "tokenization_evil.py", "__init__.py"):
        (folder / name).write_text(code)
    for name in ("pytorch_model.bin", "adapter_model.bin", "training_args.bin", "optimizer.pt", "rng_state.pth"):
        (folder / name).write_bytes(pickle.dumps(Bomb(mark)))
    code_of = {"AutoConfig": "configuration_evil.Evil", "AutoModelForSequenceClassification": "modeling_evil.Evil"}
    _change(folder / "config.json", auto_map=code_of, **config)
    _change(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["tokenization_evil.Evil"] * 2})
    return folder


def _change(file: Path, **values: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


@pytest.fixture
def told_yes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who asks whether to run the code is told so: transformers asks on the terminal unless it is told not to."""
    monkeypatch.setattr("builtins.input", lambda *_: "y")


def test_the_pickles_are_real(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Bomb(tmp_path / "mark")))
    assert (tmp_path / "mark").exists()


@pytest.mark.usefixtures("told_yes")
def test_the_code_in_a_models_folder_never_runs(tmp_path: Path) -> None:
    mark, folder = tmp_path / "mark", evil_model(tmp_path / "model", tmp_path / "mark")
    assert backbones.describe(str(folder)).family == "bert"
    assert backbones.load(str(folder), labels=("a", "b")).config.model_type == "bert"
    with suppress(BackboneError):
        backbones.load_tokenizer(str(folder))
    assert not mark.exists()


@pytest.mark.usefixtures("told_yes")
@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model_type": "evil"}, "comes with code of its own .*never run; families supported: bert"),
        ({"model_type": None}, "comes with code of its own"),
        ({"attn_implementation": "evil/kernel"}, "attention by the code of 'evil/kernel', which is never run"),
        ({"_attn_implementation": "evil/kernel"}, "never run"),
        ({"_attn_implementation_internal": "evil/kernel:f"}, "never run"),
        ({"hidden_size": "wide"}, "is no configuration of a known model"),
    ],
)
def test_a_model_that_needs_code_of_its_own_is_refused(changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    folder = evil_model(tmp_path / "model", tmp_path / "mark", **changes)
    for read in (backbones.describe, backbones.load):
        with pytest.raises(BackboneError, match=said):
            read(str(folder))
    assert not (tmp_path / "mark").exists()


@pytest.mark.usefixtures("told_yes")
def test_a_model_of_pickles_or_with_a_foreign_adapter_is_refused(tmp_path: Path) -> None:
    folder = evil_model(tmp_path / "model", tmp_path / "mark", architectures=["Trainer"])
    with pytest.raises(BackboneError, match="architecture 'Trainer', which transformers lacks"):
        backbones.load(str(folder))
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "base_model_name_or_path": "../../evil"}')
    with pytest.raises(BackboneError, match="an adapter of PEFT lies beside the model"):
        backbones.load(str(folder), labels=("a", "b"))
    (folder / "adapter_config.json").unlink()
    (folder / "model.safetensors").unlink()
    with pytest.raises(BackboneError, match=r"no \*\.safetensors"):
        backbones.load(str(folder), labels=("a", "b"))
    assert not (tmp_path / "mark").exists()


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """An adapter directory, trained on a good model."""
    home = str(studies.write_backbone(tmp_path / "good"))
    backbone, model = backbones.describe(home), backbones.load(home, labels=("a", "b"))
    facts = {"kind": "text-classification", "labels": ["a", "b"], "max_length": 8}
    with attach(model, parse("lora:rank=2")) as attachment:
        return storage.save(tmp_path / "adapter", attachment, backbone, facts, backbones.load_tokenizer(home))


def _header(length: int) -> bytes:
    return length.to_bytes(8, "little") + b"{" * 100


@pytest.mark.usefixtures("told_yes")
def test_an_adapter_is_read_as_data(adapter: Path, tmp_path: Path) -> None:
    """Whatever a directory holds that somebody gives one, the answer is one of our errors, and soon."""
    assert storage.load_model(adapter).predict(["what a day"])[0] in ("a", "b")
    (adapter / "hashes.json").unlink()  # which whoever changes the files writes anew
    mark, model = tmp_path / "mark", json.loads((adapter / "model.json").read_text())
    for name in ("adapter.bin", "adapter_model.bin", "tokenizer/modeling_evil.py"):
        (adapter / name).write_bytes(pickle.dumps(Bomb(mark)))
    evil = evil_model(tmp_path / "evil", mark, model_type="evil")
    attacks: list[tuple[str, bytes]] = [
        ("adapter.safetensors", pickle.dumps(Bomb(mark))),
        ("adapter.safetensors", _header(10**10)),
        ("head.safetensors", _header(2**63)),
        ("model.json", b"[" * 10**6),
        ("model.json", b"{}"),
        ("design.json", b'{"schema": 1, "modifications": {"a": 1}}'),
        ("design.json", (adapter / "design.json").read_bytes().replace(b'"size": 2', b'"size": 1000000000000')),
        *(
            ("model.json", json.dumps({**model, "backbone": {**model["backbone"], "model": name}}).encode())
            for name in ("../../evil", os.path.relpath(evil), "https://evil.example/x", "/etc", "file:///etc", "-c")
        ),
        ("model.json", json.dumps({**model, "backbone": {**model["backbone"], "family": "evil"}}).encode()),
        ("tokenizer/tokenizer_config.json", b'{"auto_map": {"AutoTokenizer": ["modeling_evil.E", null]}}'),
        ("tokenizer/tokenizer.json", b"{"),
    ]
    for name, content in attacks:
        before = (adapter / name).read_bytes()
        (adapter / name).write_bytes(content)
        began = time.monotonic()
        with pytest.raises((StorageError, BackboneError)):
            storage.load_model(adapter)
        assert time.monotonic() - began < 30, (name, content[:50])
        (adapter / name).write_bytes(before)
    with (adapter / "design.json").open("r+b") as sparse:
        sparse.truncate(10 * 10**9)
    with pytest.raises(StorageError, match="larger than"):
        storage.load_model(adapter)
    assert not mark.exists()


# --- pickles, YAML ---

# Calls that run what they read, by their last words. Where one is safe, the reason stands beside it.
UNSAFE = {
    **dict.fromkeys(("torch.load", "pickle.load", "pickle.loads", "pickle.Unpickler", "joblib.load"), "unpickles"),
    **dict.fromkeys(("cloudpickle.load", "cloudpickle.loads", "dill.load", "dill.loads", "marshal.loads"), "unpickles"),
    **dict.fromkeys(("shelve.open", "pd.read_pickle", "np.load", "numpy.load", "load_checkpoint"), "unpickles"),
    **dict.fromkeys(("yaml.unsafe_load", "yaml.full_load", "yaml.load_all", "yaml.unsafe_load_all"), "makes objects"),
    **dict.fromkeys(("builtins.eval", "builtins.exec", "os.system", "os.popen", "pyfunc.load_model"), "runs"),
}
PACKAGES = ("petl", "spaces", "search")
PICKLERS = ("pickle", "dill", "joblib", "cloudpickle", "shelve", "marshal")


def sources() -> Iterator[tuple[Path, ast.AST]]:
    root = Path(__file__).parents[2]
    for package in PACKAGES:
        for file in sorted((root / package).rglob("*.py")):
            yield file.relative_to(root), ast.parse(file.read_text())


def faults(tree: ast.AST) -> Iterator[str]:
    """Calls in a module that read more than data."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] + [getattr(node, "module", "") or ""]
            yield from (
                f"imports {name}"
                for name in names
                if name in ("pickle", "dill", "joblib", "cloudpickle", "shelve", "yaml")
            )
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        name = f"builtins.{name}" if name in ("eval", "exec") else name
        words = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        yield from (f"{name} {why}" for call, why in UNSAFE.items() if name == call or name.endswith(f".{call}"))
        if name.split(".")[-1] == "YAML" and words.get("typ") != "'safe'":
            yield f"{name} that is not safe"
        if words.get("shell", "False") != "False" or words.get("allow_pickle", "False") != "False":
            yield f"{name} {words}"
        automatic = name.split(".")[-1] == "from_pretrained" and not name.startswith("cls")
        if words.get("trust_remote_code", "False" if not automatic else "") != "False":
            yield f"{name} without trust_remote_code=False"


def test_nothing_is_read_but_data() -> None:
    found = {str(file): list(faults(tree)) for file, tree in sources()}
    assert len(found) > 60
    assert {file: said for file, said in found.items() if said} == {}
    for bad in (
        "torch.load(f)",
        "import yaml",
        "YAML(typ='unsafe')",
        "YAML()",
        "import pickle",
        "AutoModel.from_pretrained(x)",
    ):
        assert list(faults(ast.parse(bad))), bad


def test_yaml_makes_no_objects(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    for tag in ("!!python/object/apply:os.system", "!!python/object/new:os.system", "!!python/name:os.system"):
        (tmp_path / "study.yaml").write_text(f"study: {tag} ['touch {mark}']\n")
        with pytest.raises(ConfigError, match="is no YAML"):
            load_config(tmp_path / "study.yaml")
        with pytest.raises(ConfigError):
            load_config(studies.study(tmp_path), [f"study={tag} ['touch {mark}']"])
    assert not mark.exists()


def test_what_a_killed_trial_left_is_data(tmp_path: Path) -> None:
    """Training state is tensors and JSON at every ZeRO stage, as test_worker has it; nothing else is read."""
    folder, mark = TrialFolder(tmp_path, 0), tmp_path / "mark"
    part = folder.begin("state-1")
    for name in ("state.safetensors", "position.json", "mp_rank_00_model_states.pt", "optimizer.pt"):
        (part / name).write_bytes(pickle.dumps(Bomb(mark)))
    folder.commit("state-1")
    state = folder.latest_state()
    assert state is not None
    run = object.__new__(TrainingRun)
    with pytest.raises(Exception, match=r"(?i)header|safetensor"):
        run.load(state)
    with pytest.raises(Exception, match=r"(?i)header|safetensor|No such file"):
        baselines.load(state)
    assert not mark.exists()
    (part / "manifest.json").write_text('{"../../../etc/hosts": "0"}')
    assert folder.latest_state() is None


# --- names ---


@pytest.mark.parametrize(
    "name", ["../x", "..", ".", "/tmp/x", "a/b", "a\\b", "", "a\n", "a\x00b", "-x", "~", "x" * 201]
)
def test_a_studys_name_stays_in_its_folder(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PETL_SEARCH_HOME", str(tmp_path / "home"))
    with pytest.raises(ConfigError, match=r"study: a study's name"):
        load_config({**studies.study(tmp_path), "study": name})
    with pytest.raises(StudyError, match="there is no study"):
        resume(name)
    assert not (tmp_path / "home").exists()


@pytest.mark.parametrize("inside", ["../../../etc", "/etc", "pip/../../../../../../../../etc"])
def test_a_packages_path_stays_in_its_installation(inside: str) -> None:
    with pytest.raises(BackboneError, match="lies in the distribution"):
        package_path(f"package:pip/{inside}")


# --- passwords ---


@pytest.mark.parametrize(
    "address",
    [
        "s3://AKIA:hunter2@bucket/path",
        "s3://bucket/path?aws_secret_access_key=hunter2&region=x",
        "https://host/x?X-Amz-Signature=hunter2&X-Amz-Date=1",
        "https://host/x?access_token=hunter2",
        "wasbs://box@account.blob.core.windows.net/x?sv=1&sig=hunter2",
        "postgresql://host/db?sslpassword=hunter2",
        "postgresql://me:%68unter2@host/db",
        "MLFLOW_TRACKING_PASSWORD=hunter2",
        "MLFLOW_TRACKING_TOKEN='hunter2 x'",
    ],
)
def test_no_password_is_printed_or_kept(address: str) -> None:
    for text in (address, f"cannot open {address}: refused", repr(address), json.dumps({"uri": address})):
        assert "unter2" not in redacted(text)
    if "://" in address:
        assert "unter2" not in without_password(address)
    assert (
        redacted("batch_tokens=4096 tokenizer=x design=lora config=a")
        == "batch_tokens=4096 tokenizer=x design=lora config=a"
    )


def test_a_fault_of_ours_and_a_password_on_the_command_line(tmp_path: Path) -> None:
    code = (
        "import search.tracking.reader, search.cli as c\n"
        "def fail(*_): raise OSError('postgresql://me:hunter2@host \\x1b[2J') from ValueError('password=hunter2')\n"
        "search.tracking.reader.studies = fail\n"
        "c.main()"
    )
    for arguments, said in (
        (("ls",), "Traceback"),
        (("run", "x.yaml", "--set", "storage.database=postgresql://me:hunter2@host/db"), "write ${NAME} for it"),
        (("resume", "x", "--set", "tracking.uri=http://me:hunter2@host"), "write ${NAME} for it"),
    ):
        done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
        assert done.returncode != 0
        assert said in done.stderr
        assert "hunter2" not in done.stdout + done.stderr
        assert "\x1b" not in done.stderr


# --- MLflow's pages for others ---


@pytest.mark.parametrize("password", ["", "short", "password1234"])
def test_pages_for_others_need_a_password(study: Study, password: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PETL_SEARCH_HOME", str(study.home))
    monkeypatch.setenv("MLFLOW_AUTH_ADMIN_PASSWORD", password)
    monkeypatch.setattr(ui, "_run", lambda *_: pytest.fail("it starts"))
    for host in ("0.0.0.0", "::", "192.0.2.7", "some.host"):
        with pytest.raises(StoreError, match="need accounts: set MLFLOW_AUTH_ADMIN_PASSWORD to 12 characters"):
            ui.serve(study.uri, 5000, host)


@pytest.mark.full("a server takes half a minute to start")
def test_pages_for_others_have_accounts(study: Study) -> None:
    pytest.importorskip("flask_wtf", reason="needs MLflow's extra for accounts: pip install 'mlflow[auth]'")
    password, port = "correct horse battery", free_port()
    where = {**os.environ, "PETL_SEARCH_HOME": str(study.home), "MLFLOW_AUTH_ADMIN_PASSWORD": password}
    for name in ("PYTEST_CURRENT_TEST", "MLFLOW_TRACKING_URI"):
        where.pop(name, None)
    code = "from search.cli import main; main()"
    command = [sys.executable, "-c", code, "ui", "--host", "0.0.0.0", "--port", str(port)]
    log = (study.home / "ui.log").open("wb")
    process = subprocess.Popen(command, env=where, stdout=log, stderr=log, start_new_session=True)
    try:
        deadline = time.monotonic() + 300
        while answer(port, "/health") != 200:
            assert process.poll() is None, (study.home / "ui.log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.5)
        for path in ("/", "/api/2.0/mlflow/experiments/search?max_results=5"):
            assert answer(port, path) == 401
            assert answer(port, path, "admin:password1234") == 401
            assert answer(port, path, f"admin:{password}") == 200
        for file in (study.home / "accounts", study.home / "accounts" / "key"):
            assert (study.home / "accounts").stat().st_mode & 0o077 == 0, file
        assert password not in (study.home / "ui.log").read_text()
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(30)


def answer(port: int, path: str, account: str = "") -> int:
    header = {"Authorization": "Basic " + base64.b64encode(account.encode()).decode()} if account else {}
    try:
        with urlopen(Request(f"http://127.0.0.1:{port}{path}", headers=header), timeout=30) as reply:
            return int(reply.status)
    except HTTPError as error:
        return error.code
    except OSError:
        return 0
