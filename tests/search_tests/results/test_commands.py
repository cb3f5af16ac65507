"""The reading commands, as a user calls them."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from servers import free_port
from transformers import BartConfig
from typer.testing import CliRunner, Result

from petl.configuration import Configuration
from petl.design import Design, Form, Modification, Site
from petl.measurements import Measurements
from search import cli
from search.results.files import PictureError
from search.results.query import ROW
from search.storage.errors import StoreError
from search.storage.locks import StudyLock
from search.tracking import server as ui
from search.tracking.writer import MlflowTracker
from search.trials.record import State, TrialRecord

INFO = {"objectives": {"score": "accuracy", "cost": "stored_parameters"}, "backbone": {"model": "tiny"}}
COMMANDS = sorted(one.name or one.callback.__name__.replace("_", "-") for one in cli.app.registered_commands)


def record(number: int, accuracy: float, stored: int) -> TrialRecord:
    measured = Measurements(
        accuracy=accuracy,
        stored_parameters=stored,
        stored_percent=stored / 100,
        base_parameters=10_000,
    )
    design = Design((Modification(form=Form.LOW_RANK, site=Site.QUERY, size=number + 1),))
    return TrialRecord(number=number, state=State.COMPLETE, configuration=Configuration(design), measurements=measured)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("home")
    tracker = MlflowTracker.open(f"sqlite:///{folder}/mlflow.db", "demo", folder / "artifacts", INFO)
    for one in (record(0, 0.5, 100), record(1, 0.6, 1_000), record(2, 0.55, 2_000)):
        tracker.publish(one)
    (folder / "adapter").mkdir()
    (folder / "adapter" / "design.json").write_text("{}")
    tracker.artifacts(1, folder / "adapter")
    tracker.close()
    return folder


@pytest.fixture(autouse=True)
def _environment(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PETL_SEARCH_HOME", str(home))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def call(*arguments: str) -> Result:
    return CliRunner().invoke(cli.app, list(arguments), catch_exceptions=False)


def command(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The installed command, in a process of its own."""
    code = "import sys; from search.cli import main; sys.argv[0] = 'petl-search'; main()"
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        check=False,
    )


def test_ls() -> None:
    text = call("ls").stdout
    assert "demo" in text
    assert "3 complete" in text
    assert "accuracy 0.6000" in text


def test_show() -> None:
    assert "lora query 2" in call("show", "demo").stdout
    assert "query.rank" in call("show", "demo", "2").stdout


def test_show_lists_all_trials() -> None:
    lines = call("show", "demo", "--trials").stdout.splitlines()
    assert [line.split()[:2] for line in lines if line.strip()[:1].isdigit()] == [
        ["0", "complete"], ["1", "complete"], ["2", "complete"],
    ]  # fmt: skip
    rows = json.loads(call("show", "demo", "--trials", "--format", "json").stdout)
    assert [(row["trial"], row["state"], row["score"]) for row in rows] == [
        (0, "complete", 0.5), (1, "complete", 0.6), (2, "complete", 0.55),
    ]  # fmt: skip


def test_a_study_that_was_killed_is_not_said_to_be_running(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its driver cannot say any more that it ends; the system has dropped its lock."""
    monkeypatch.setenv("PETL_SEARCH_HOME", str(tmp_path))

    def status() -> list[str]:
        return [row["status"] for row in json.loads(call("ls", "--format", "json").stdout)]

    MlflowTracker.open(f"sqlite:///{tmp_path}/mlflow.db", "demo", tmp_path / "artifacts", INFO)
    assert status() == ["running"]  # by a driver whose folder is elsewhere
    lock = StudyLock(tmp_path / "studies" / "demo")
    lock.drive()
    (tmp_path / "studies" / "demo" / "trials").mkdir()
    assert status() == ["running"]
    lock.release()
    assert status() == ["killed"]
    assert "demo  killed" in call("show", "demo").stdout


def test_a_study_file_that_is_not_there_is_said_before_anything_is_imported() -> None:
    code = (
        "import sys\n"
        "from search.cli import main\n"
        "sys.argv = ['petl-search', sys.argv[1], 'missing.yaml']\n"
        "try:\n"
        "    main()\n"
        "finally:\n"
        "    print(sorted({'ray', 'torch', 'mlflow', 'optuna', 'scipy'} & {*sys.modules}))\n"
    )
    for word in ("run", "submit"):
        done = subprocess.run([sys.executable, "-c", code, word], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout) == (2, "[]\n")
        assert done.stderr == "petl-search: the study file missing.yaml cannot be read: No such file or directory\n"


def test_ls_as_json() -> None:
    (row,) = json.loads(call("ls", "--format", "json").stdout)
    assert row == {
        "study": "demo", "status": "finished", "trials": {"complete": 3},
        "metric": "accuracy", "best": 0.6, "model": "tiny", "task": None,
    }  # fmt: skip


def test_show_as_json() -> None:
    shown = json.loads(call("show", "demo", "--format", "json").stdout)
    assert (shown["study"], shown["best"], shown["info"]["backbone"]) == ("demo", 0.6, {"model": "tiny"})
    assert [row["trial"] for row in shown["front"]] == [0, 1]
    assert shown["references"] == []


def test_show_a_trial_as_json() -> None:
    shown = json.loads(call("show", "demo", "2", "--format", "json").stdout)
    expected = {"trial": 2, "score": 0.55, "state": "complete", "failure": None, "rungs": []}
    assert {name: shown[name] for name in expected} == expected
    assert shown["measurements"]["stored_parameters"] == 2_000
    (part,) = shown["configuration"]["design"]["modifications"]
    assert (part["form"], part["size"]) == ("low_rank", 3)


@pytest.mark.parametrize(("bound", "trials"), [((), [0, 1]), (("--max-parameters", "1%"), [0])])
def test_front_as_json(bound: tuple[str, ...], trials: list[int]) -> None:
    rows = json.loads(call("front", "demo", "--format", "json", *bound).stdout)
    assert [row["trial"] for row in rows] == trials
    assert all(tuple(row) == (*ROW, "dominated_by") for row in rows)


def test_front_as_csv_and_table() -> None:
    lines = call("front", "demo", "--format", "csv").stdout.splitlines()
    assert lines[0] == ",".join((*ROW, "dominated_by"))
    assert [line.split(",")[0] for line in lines[1:]] == ["0", "1"]
    assert "1,000" in call("front", "demo").stdout


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("a.foo", "ends in .png, .pdf, .svg; received"),
        ("plot", "ends in .png, .pdf, .svg; received"),
        ("folder.png", "cannot be written to"),
        ("file/a.png", "cannot be written to"),
    ],
)
def test_a_picture_that_cannot_be_written_is_one_line(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(PictureError, match=message):
        call("front", "demo", "--plot", str(tmp_path / name))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder.png"]


def test_a_port_is_one_that_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    result = call("ui", "--port", "99999")
    assert result.exit_code == 2
    assert "65535" in result.output


def test_the_plot_leaves_stdout_alone(tmp_path: Path) -> None:
    result = call("front", "demo", "--format", "json", "--plot", str(tmp_path / "f.png"))
    assert len(json.loads(result.stdout)) == 2
    assert str(tmp_path / "f.png") in result.stderr
    assert (tmp_path / "f.png").read_bytes()[:4] == b"\x89PNG"


def test_export(tmp_path: Path) -> None:
    result = call("export", "demo", "1", str(tmp_path / "out"))
    assert (tmp_path / "out" / "design.json").read_text() == "{}"
    assert "load_model" in result.stdout


def test_export_for_peft(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def convert(folder: Path, destination: Path) -> Path:
        shutil.copytree(folder, destination)
        return destination

    monkeypatch.setattr("petl.adapters.peft.convert", convert)
    result = call("export", "demo", "1", str(tmp_path / "out"), "--format", "peft")
    assert (tmp_path / "out" / "design.json").read_text() == "{}"
    assert "PeftModel.from_pretrained(base_model, " in result.stdout
    assert "base_model is tiny, " in result.stdout
    with pytest.raises(StoreError, match="new or empty folder"):
        call("export", "demo", "1", str(tmp_path / "out"), "--format", "peft")


@pytest.fixture
def roberta(tmp_path: Path) -> str:
    """A folder with a configuration and no weights."""
    (tmp_path / "config.json").write_text(
        json.dumps(
            {
                "model_type": "roberta",
                "architectures": ["RobertaForMaskedLM"],
                "hidden_size": 32,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "intermediate_size": 64,
                "vocab_size": 100,
                "max_position_embeddings": 40,
                "type_vocab_size": 1,
            }
        )
    )
    return str(tmp_path)


def test_count(roberta: str) -> None:
    data = json.loads(call("count", roberta, "lora:rank=4", "--format", "json", "--labels", "3").stdout)
    assert data["stored"] == 2 * 2 * (32 * 4 + 4 * 32)  # layers x (query, value) x (A, B)
    assert data["trained"] == data["stored"] + data["head"]
    assert data["head"] == 32 * 32 + 32 + 3 * 32 + 3
    assert data["stored_percent"] == pytest.approx(100 * data["stored"] / data["base"])
    table = call("count", roberta, "lora:rank=4").stdout
    assert f"{data['stored']:,}" in table
    assert "the head not counted: give --labels" in table


def test_count_says_its_denominators(tmp_path: Path) -> None:
    """MAM 30/512 on BART-large: 27,377,664 matrix entries (Table 6: 6.7 %); its biases beside them."""
    BartConfig().save_pretrained(tmp_path)
    config = str(tmp_path / "config.json")
    data = json.loads(call("count", config, "mam:length=30,size=512", "--format", "json").stdout)
    assert {"base", "trained", "stored", "paper", "paper_base", "per_modification"} <= set(data)
    assert (data["base"], data["paper_base"], data["paper"]) == (406_291_456, 409_600_000, 27_377_664)
    assert data["stored"] == data["trained"] == 27_377_664 + 24 * (512 + 1024)
    for kind, of in (("stored", "base"), ("trained", "base"), ("paper", "paper_base")):
        assert data[f"{kind}_percent"] == pytest.approx(100 * data[kind] / data[of])
    assert {part["modification"]["form"]: part["paper"] for part in data["per_modification"]} == {
        "prefix": 2 * 30 * 1024 * 36,
        "bottleneck": 2 * 512 * 1024 * 24,
    }
    table = call("count", config, "mam:length=30,size=512").stdout
    assert "409,600,000" in table
    assert "406,291,456" in table


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("show", "dmeo"), "no study 'dmeo'"),
        (("show", "demo", "77"), "no trial 77"),
        (("front", "demo", "--max-parameters", "lots"), "received 'lots'"),
        (("export", "demo", "0", "somewhere-new"), "no adapter"),
        (("count", "no/such/folder/here", "lora"), "no/such/folder/here"),
        (("front", "demo", "--uri", "sqlite:////nowhere/x.db"), "no store at /nowhere/x.db"),
        (("ui", "--uri", "sqlite:////nowhere/x.db"), "no store at /nowhere/x.db"),
        (("ui", "dmeo"), "no study 'dmeo'"),
        (("ui", "--uri", "http://localhost:1"), "no store answers at http://localhost:1"),
    ],
)
def test_a_mistake_of_the_user_is_one_line(
    arguments: tuple[str, ...], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setattr(sys, "argv", ["petl-search", *arguments])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("petl-search: ")
    assert error.count("\n") == 1


def test_a_fault_of_ours_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ValueError("ours")

    monkeypatch.setattr(ui, "serve", fail)
    monkeypatch.setattr(sys, "argv", ["petl-search", "ui"])
    with pytest.raises(ValueError, match="ours"):
        cli.main()


def test_ui_serves_this_machine_only(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(ui, "_run", lambda *arguments: seen.append(arguments))
    call("ui", "--port", "5077")
    ((line, environment),) = seen
    options = dict(zip(line[4::2], line[5::2], strict=True))
    assert options == {
        "--host": "127.0.0.1",
        "--port": "5077",
        "--workers": "1",
        "--artifacts-destination": str(home / "artifacts"),
    }
    assert environment["MLFLOW_BACKEND_STORE_URI"] == f"sqlite:///{home}/mlflow.db"
    assert environment["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] == "false"


def test_ui_says_where_the_front_is(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PETL_SEARCH_HOME", str(tmp_path))
    monkeypatch.setattr(ui, "_run", lambda *_: None)
    shutil.copy(home / "mlflow.db", tmp_path)
    later = MlflowTracker.open(f"sqlite:///{tmp_path}/mlflow.db", "later", tmp_path / "artifacts", INFO)
    port = str(free_port())

    def page(*arguments: str) -> str:
        said = call("ui", "--port", port, *arguments).stdout.splitlines()
        assert said[1] == "is there in some seconds; Ctrl-C ends it"  # nothing is opened without a terminal
        return said[0].removeprefix(f"http://127.0.0.1:{port}/")

    front = "#/experiments/{}/runs?viewStateShareKey=front&workflowType=machine_learning"
    assert page("demo") == front.format(1)
    assert page("later") == page() == front.format(later.experiment_id)
    later._client.delete_experiment_tag(later.experiment_id, "mlflow.sharedViewState.front")
    assert page() == f"#/experiments/{later.experiment_id}/runs/{later.run_id}?workflowType=machine_learning"


def test_ui_says_that_a_port_is_taken() -> None:
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        port = str(busy.getsockname()[1])
        done = command("ui", "--port", port)
    assert (done.returncode, done.stdout) == (2, "")
    assert f"nothing can listen at 127.0.0.1:{port} (Address already in use)" in done.stderr
    assert done.stderr.count("\n") == 1


def test_ctrl_c_ends_the_pages_without_a_word(tmp_path: Path) -> None:
    """A program that would answer it as MLflow does, and waits long enough to be interrupted."""
    server = tmp_path / "server.py"
    server.write_text("import pathlib, time\npathlib.Path('began').touch()\ntime.sleep(60)\n")
    code = "import os, sys\nfrom search.tracking.server import _run\n_run([sys.executable, 'server.py'], os.environ)\n"
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=tmp_path, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    while not (tmp_path / "began").exists():
        assert process.poll() is None
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=30)
    assert (process.returncode, said) == (0, "")


def test_pages_that_end_by_themselves_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="ended with exit code 3"):
        ui._run([sys.executable, "-c", "raise SystemExit(3)"], dict(os.environ))


def test_ui_needs_a_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PETL_SEARCH_HOME", str(tmp_path))
    with pytest.raises(StoreError, match="no store"):
        ui.serve(None, 5000)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_helps_with_an_example(name: str) -> None:
    assert len(COMMANDS) == 17
    assert f"Example: petl-search {name}" in " ".join(call(name, "--help").stdout.split())


def test_front_loads_no_torch_and_help_loads_nothing() -> None:
    code = (
        "import sys\n"
        "from search import cli\n"
        "for arguments in (['--help'], ['front', 'demo', '--format', 'json']):\n"
        "    sys.argv = ['petl-search', *arguments]\n"
        "    try:\n"
        "        cli.main()\n"
        "    except SystemExit as stop:\n"
        "        assert stop.code == 0\n"
        "    print([name for name in ('mlflow', 'torch', 'ray', 'transformers', 'matplotlib') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = [line for line in done.stdout.splitlines() if line.startswith("[") and line != "["]
    assert loaded == ["[]", "['mlflow']"]


def test_the_command_ends_with_2_on_a_mistake() -> None:
    done = command("show", "dmeo")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("petl-search: no study 'dmeo'")


def test_show_against_the_paper(home: Path) -> None:
    info = {
        **INFO,
        "designs": {"LoRA (attn), r = 16": {"design": "lora:rank=16", "training": {}, "seeds": []}},
        "paper": {"table": "2", "task": "sst2"},
    }
    tracker = MlflowTracker.open(f"sqlite:///{home}/mlflow.db", "rows", home / "artifacts", info)
    tracker.publish(replace(record(0, 0.93, 100), name="LoRA (attn), r = 16"))
    tracker.facts(0, {"final": {"validation": {"accuracy": 0.93}}})
    tracker.close()
    text = call("show", "rows", "--against", "paper").stdout
    assert all(number in text for number in ("93.00", "94.2 ±0.2"))
    (row,) = json.loads(call("show", "rows", "--against", "paper", "--format", "json").stdout)
    assert (row["row"], row["seeds"], row["printed_percent"]) == ("LoRA (attn), r = 16", 1, "0.5")
    with pytest.raises(StoreError, match="is a search"):
        call("show", "demo", "--against", "paper")
