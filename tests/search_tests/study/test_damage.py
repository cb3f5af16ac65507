"""Stores that were damaged, lost or moved: what is said of them, what leaves them, and what a resume puts back."""

from __future__ import annotations

import re
import shutil
import signal
import sqlite3
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from scope import sampled
from store import QUIET, STUDY, write_store

from search import cli
from search.results.query import load_study
from search.storage.errors import StoreError
from search.study.run import resume
from search.tracking.moved import follow_home
from search.tracking.reader import UncheckedWarning

LIMIT = 600  # seconds, within which every command ends: a resume of this study would wait an hour for MLflow


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The home of a finished study; each test has a copy."""
    home = tmp_path_factory.mktemp("whole") / "home"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PETL_SEARCH_HOME", str(home))
        write_store(home, home.parent / "inputs")
    return home


@pytest.fixture
def home(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    def overdue(*_: object) -> None:
        raise AssertionError(f"no answer within {LIMIT} s")

    copy = shutil.copytree(whole, tmp_path / "home", symlinks=True)
    follow_home(copy / "mlflow.db")
    monkeypatch.setenv("PETL_SEARCH_HOME", str(copy))
    before = signal.signal(signal.SIGALRM, overdue)
    signal.alarm(LIMIT)
    yield copy
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def command(*words: str) -> int:
    """The exit code of a command, run in this process as its entry point runs it; any other exception is raised."""
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        patch.setattr(sys, "argv", ["petl-search", *words])
        try:
            cli.main()
        except SystemExit as end:
            return int(end.code or 0)
    return 0


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def adapter_of(home: Path, number: int) -> Path:
    """The trial's own copy of its adapter."""
    return home / f"studies/{STUDY}/trials/{number:04d}/result/adapter"


def published(home: Path, number: int) -> Path:
    """The folder of the trial's artifacts in MLflow's store."""
    return home / f"artifacts/{STUDY}" / load_study(STUDY).trial(number).run_id / "artifacts"


def trained() -> list[int]:
    return [trial.number for trial in load_study(STUDY).trials]


# --- damages of one file -------------------------------------------------------------------------


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def be_a_folder(path: Path) -> None:
    remove(path)
    path.mkdir()


def change_a_digit(path: Path) -> None:
    text = path.read_text()
    at = next(index for index, letter in enumerate(text) if letter.isdecimal())
    path.write_text(f"{text[:at]}{(int(text[at]) + 1) % 10}{text[at + 1 :]}")


DAMAGES: list[tuple[str, Callable[[Path], None]]] = [
    ("adapter.safetensors", flip),
    ("adapter.safetensors", cut),
    ("adapter.safetensors", remove),
    ("adapter.safetensors", be_a_folder),
    ("head.safetensors", flip),
    ("head.safetensors", remove),
    ("design.json", change_a_digit),
    ("model.json", cut),
    ("tokenizer/tokenizer.json", cut),
    ("tokenizer/tokenizer_config.json", remove),
    ("tokenizer", remove),
]


# --- adapters ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "damage"), DAMAGES, ids=lambda value: getattr(value, "__name__", value))
def test_a_damaged_adapter_does_not_leave(
    home: Path, name: str, damage: Callable[[Path], None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    number = trained()[0]
    damage(published(home, number) / "adapter" / name)
    for form in ("petl", "peft"):
        assert command("export", STUDY, str(number), str(tmp_path / "out"), "--format", form) == 2
        said = capsys.readouterr().err
        assert f"adapter/{name}" in said
        assert str(adapter_of(home, number).relative_to(home)) in said
        assert f"petl-search resume {STUDY}" in said
        assert not (tmp_path / "out").exists()
    with pytest.raises(StoreError, match=f"adapter/{name}"):
        load_study(STUDY).trial(number).load_model()


def test_a_resume_puts_back_what_is_damaged_or_missing(home: Path, tmp_path: Path) -> None:
    first, second = trained()
    for name, damage in DAMAGES[3:9:2]:
        damage(published(home, first) / "adapter" / name)
    flip(published(home, second) / "adapter/adapter.safetensors")
    be_a_file(published(home, second) / "adapter/tokenizer")
    flip(published(home, first) / "predictions/test.jsonl")
    resume(STUDY, console=QUIET)
    for number in (first, second):
        out = load_study(STUDY).trial(number).export(tmp_path / str(number))
        assert content(out) == content(adapter_of(home, number))
    predictions = home / f"studies/{STUDY}/trials/{first:04d}/test/predictions"
    assert content(published(home, first) / "predictions") == content(predictions)


def test_a_file_that_is_not_the_trials_stays_behind(home: Path, tmp_path: Path) -> None:
    number = trained()[0]
    (published(home, number) / "adapter/tokenizer/added_tokens.json").write_text('{"x": 0}')
    out = load_study(STUDY).trial(number).export(tmp_path / "out")
    assert content(out) == content(adapter_of(home, number))


def test_an_adapter_from_before_there_were_hashes_leaves_with_one_warning(home: Path, tmp_path: Path) -> None:
    number = trained()[0]
    with closing(sqlite3.connect(home / "mlflow.db")) as database, database:
        assert database.execute("DELETE FROM tags WHERE key LIKE '%.sha256%'").rowcount >= 2
    with pytest.warns(UncheckedWarning, match=f"petl-search resume {STUDY}") as said:
        out = load_study(STUDY).trial(number).export(tmp_path / "out")
    assert len([each for each in said if each.category is UncheckedWarning]) == 1
    assert content(out) == content(adapter_of(home, number))
    resume(STUDY, console=QUIET)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UncheckedWarning)
        load_study(STUDY).trial(number).export(tmp_path / "again")


# --- a home that moved, and a lost MLflow --------------------------------------------------------


def test_a_moved_home_keeps_its_adapters(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    number, moved = trained()[0], tmp_path / "moved to: a & b"
    expected = content(adapter_of(home, number))
    home.rename(moved)
    monkeypatch.setenv("PETL_SEARCH_HOME", str(moved))
    assert content(load_study(STUDY).trial(number).export(tmp_path / "out")) == expected
    remove(published(moved, number) / "adapter")
    resume(STUDY, console=QUIET)
    assert content(published(moved, number) / "adapter") == expected
    assert not home.exists()


def test_a_copied_home_reads_and_writes_its_own_artifacts(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    number = trained()[0]
    copy = shutil.copytree(home, tmp_path / "copy")
    before = content(home)
    monkeypatch.setenv("PETL_SEARCH_HOME", str(copy))
    flip(published(copy, number) / "adapter/adapter.safetensors")
    with pytest.raises(StoreError, match=r"adapter/adapter\.safetensors .* is damaged"):
        load_study(STUDY).trial(number).export(tmp_path / "out")
    assert content(home) == before


def all_of(home: Path) -> dict[str, Any]:
    """What MLflow has of the study, without the names of its runs and when they were made."""
    client = MlflowClient(f"sqlite:///{home / 'mlflow.db'}")
    experiment = client.get_experiment_by_name(STUDY)
    assert experiment
    found = {}
    for run in client.search_runs([experiment.experiment_id]):
        tags = {name: value for name, value in run.data.tags.items() if not name.startswith("mlflow.")}
        metrics = {
            name: [(point.step, point.value) for point in client.get_metric_history(run.info.run_id, name)]
            for name in run.data.metrics
        }
        files = content(home / "artifacts" / STUDY / run.info.run_id) if "trial" in tags else {}
        tags.pop("spent", None)
        tags.pop("disk", None)
        found[tags.get("trial", "")] = (run.info.run_name, run.info.status, run.data.params, metrics, tags, files)
    return found


def test_the_records_rebuild_a_lost_mlflow(whole: Path, home: Path) -> None:
    expected = all_of(whole)  # MLflow keeps connections to a file that is gone
    (home / "mlflow.db").unlink()
    remove(home / "artifacts")
    resume(STUDY, console=QUIET)
    assert all_of(home) == expected


# --- every file of a store -----------------------------------------------------------------------


def empty(path: Path) -> None:
    path.write_bytes(b"")


def be_a_picture(path: Path) -> None:
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 32)


def be_a_file(path: Path) -> None:
    if path.exists():
        remove(path)
    path.write_text("not a folder")


def point_nowhere(path: Path) -> None:
    remove(path)
    path.symlink_to(path.parent / "gone" / "too")


def flip_header(path: Path) -> None:
    path.write_bytes(b"\x00" + path.read_bytes()[1:])


def flip_pages(path: Path) -> None:
    """The kind of every page of a database but the first, which the header is on."""
    data = bytearray(path.read_bytes())
    data[4096::4096] = bytes(kind ^ 0xFF for kind in data[4096::4096])
    path.write_bytes(data)


def by_sql(statement: str) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        with closing(sqlite3.connect(path)) as database, database:
            assert database.execute(statement).rowcount != 0

    change.__name__ = statement
    return change


def with_lines(*lines: str) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        path.write_text("".join(f"{line}\n" for line in lines))

    write.__name__ = lines[0][:40]
    return write


FOLDER = f"studies/{STUDY}"
UNREADABLE = (flip_header, flip_pages, cut, be_a_picture, be_a_folder)
RECORDS = [
    *UNREADABLE,
    by_sql("UPDATE alembic_version SET version_num = 'v99'"),
    by_sql("DROP TABLE study_user_attributes"),
    by_sql("DROP TABLE trials"),
    by_sql("UPDATE study_user_attributes SET value_json = substr(value_json, 1, 20) WHERE key = 'config'"),
    by_sql("UPDATE study_user_attributes SET value_json = '5' WHERE key = 'config'"),
    by_sql("DELETE FROM study_user_attributes WHERE key = 'objectives'"),
    by_sql("UPDATE study_user_attributes SET value_json = '[]' WHERE key = 'resolved'"),
    by_sql("UPDATE study_user_attributes SET value_json = '{}' WHERE key = 'resolved'"),
    by_sql("UPDATE trial_user_attributes SET value_json = '{' WHERE key = 'configuration'"),
    by_sql("UPDATE trial_user_attributes SET value_json = '7' WHERE key = 'outcome'"),
    by_sql("DELETE FROM trial_user_attributes WHERE key = 'counts'"),
]
LOST = [  # records of which nothing says what the study was
    remove,
    empty,
    by_sql("DELETE FROM study_user_attributes WHERE key = 'resolved'"),
    by_sql("DELETE FROM studies"),
]
CHANGED = [  # values that are as good as any, but not those that were committed
    by_sql("UPDATE trial_values SET value = value + 0.125"),
    by_sql("UPDATE trials SET state = 'FAIL' WHERE number = 1"),
    by_sql("UPDATE trial_user_attributes SET value_json = replace(value_json, '\"loss\": ', '\"loss\": 1')"),
]
PUBLISHED = [
    *UNREADABLE,
    by_sql("UPDATE alembic_version SET version_num = 'ffffffffffff'"),
    by_sql("DROP TABLE runs"),
]
DAMAGED = r"the records.* in sqlite:///.*/optuna\.db are damaged, or of another .*Put a copy of the database back"
GONE = rf"{FOLDER} has trials .* no record of how it began: .* its own was lost or damaged\. Put a copy of that back"
REFUSED = [  # by a resume: the file, its damage, and what is said
    *(("optuna.db", damage, DAMAGED) for damage in RECORDS),
    *(("optuna.db", damage, GONE) for damage in LOST),
    *(("optuna.db", damage, r"trial \d.*was changed.* [Pp]ut a copy of the database back") for damage in CHANGED),
    *(("mlflow.db", damage, r"/mlflow\.db is damaged, or of .* move the file away, and") for damage in PUBLISHED),
    (f"{FOLDER}/driver.lock", be_a_folder, r"/driver\.lock"),
    (f"{FOLDER}/driver.lock", point_nowhere, r"/driver\.lock"),
    (f"{FOLDER}/workers.lock", be_a_folder, r"/workers\.lock"),
    (f"{FOLDER}/journal", be_a_file, "/journal"),
    (f"{FOLDER}/journal/0000000999.jsonl", Path.mkdir, r"/0000000999\.jsonl"),
    *(
        (f"{FOLDER}/front.{kind}", be_a_folder, rf"/front\.{kind} when the search ends, which is no file: move it away")
        for kind in ("json", "csv", "png")
    ),
    (f"{FOLDER}/report.html", be_a_folder, r"/report\.html when the search ends, which is no file: move it away"),
    (FOLDER, be_a_file, FOLDER),
]
LINE = '{"number": 999, "at": 1700000000.0, "tell": "close", "what": {"status": "FAILED"}}'
MENDED = [  # by a resume
    ("mlflow.db", remove),
    ("mlflow.db", empty),
    ("artifacts", remove),
    (f"{FOLDER}/driver.lock", be_a_picture),
    (f"{FOLDER}/journal", remove),
    (f"{FOLDER}/journal/delivered", be_a_picture),
    (f"{FOLDER}/journal/delivered", remove),
    (f"{FOLDER}/journal/0000000999.jsonl", be_a_picture),
    (f"{FOLDER}/journal/0000000999.jsonl", with_lines(LINE.replace("999", '"x"'))),
    (f"{FOLDER}/journal/0000000999.jsonl", with_lines(LINE.replace("1700000000.0", "null"))),
    (f"{FOLDER}/journal/0000000999.jsonl", with_lines(LINE.replace('"close"', "[]"))),
    (f"{FOLDER}/journal/0000000999.jsonl", with_lines(LINE.replace("close", "of a later version"))),
    (f"{FOLDER}/journal/0000000999.jsonl", with_lines(LINE.replace("status", "later"))),
    (f"{FOLDER}/front.csv", remove),
    (f"{FOLDER}/front.json", be_a_picture),
    (f"{FOLDER}/report.html", remove),
]
QUICK = {
    flip_pages,
    be_a_folder,
    point_nowhere,
    Path.mkdir,
    *RECORDS[7:9],
    RECORDS[10],
    *RECORDS[12:15:2],
    *LOST[2:3],
    *CHANGED[:1],
    *CHANGED[2:],
}


def named(value: object) -> str:
    return getattr(value, "__name__", str(value))


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """What a command says that ends with one message."""
    assert command(*words) == 2
    said = capsys.readouterr().err.strip()
    assert said.startswith("petl-search: ")
    assert "Traceback" not in said
    assert len(said.splitlines()) == 1
    return said


def untouched(home: Path) -> dict[str, bytes | list[str]]:
    """What the files of a store hold, but those of locks, which say who held them last."""
    return {name: held(home / name) for name in content(home) if not name.endswith(".lock")}


def held(path: Path) -> bytes | list[str]:
    if path.suffix == ".db":
        with closing(sqlite3.connect(path)) as database, suppress(sqlite3.Error):
            return list(database.iterdump())
    return path.read_bytes()


@pytest.mark.parametrize(
    ("name", "damage", "said"),
    sampled("damages that are refused", REFUSED, lambda case: case[1] in QUICK),
    ids=lambda value: "" if value in (DAMAGED, GONE) else named(value)[:60],
)
def test_damage_is_told_and_nothing_changed(
    home: Path, name: str, damage: Callable[[Path], None], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    damage(home / name)
    before = untouched(home)
    assert re.search(said, refused(capsys, "resume", STUDY))
    assert untouched(home) == before
    if name == "mlflow.db":
        for words in (
            ["ls"],
            ["ui"],
            ["front", STUDY],
            ["show", STUDY],
            ["export", STUDY, "1", str(home.parent / "out")],
        ):
            assert re.search(said, refused(capsys, *words))
        assert untouched(home) == before
    elif name != FOLDER:
        assert command("front", STUDY) == 0


@pytest.mark.parametrize(
    ("name", "damage"), sampled("damages that a resume mends", MENDED, lambda case: case[1] is empty), ids=named
)
def test_damage_is_mended(whole: Path, home: Path, name: str, damage: Callable[[Path], None]) -> None:
    damage(home / name)
    assert command("resume", STUDY) == 0
    assert all_of(home) == all_of(whole)
    assert {path.name for path in (home / FOLDER / "journal").iterdir()} == {"delivered"}


def test_a_damaged_result_is_told_and_its_published_copy_stays(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    number = trained()[0]
    expected = content(adapter_of(home, number))
    flip(adapter_of(home, number) / "adapter.safetensors")
    assert command("resume", STUDY) == 0
    assert f"trials/{number:04d}/result is missing or damaged" in capsys.readouterr().out.replace("\n", " ")
    assert content(load_study(STUDY).trial(number).export(tmp_path / "out")) == expected


def test_records_that_are_not_what_a_trial_committed_are_refused(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    by_sql("UPDATE trial_user_attributes SET value_json = replace(value_json, '\"seconds\": ', '\"seconds\": 1')")(
        home / "optuna.db"
    )
    before = untouched(home)
    said = refused(capsys, "resume", STUDY)
    assert "report.json" in said
    assert "seconds 1" in said
    assert untouched(home) == before


@pytest.mark.parametrize("words", [("ls",), ("front", STUDY), ("resume", STUDY), ("export-table", STUDY, "table.json")])
def test_a_home_of_garbage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("mlflow.db", "optuna.db", "studies", "artifacts"):
        be_a_picture(tmp_path / name)
    monkeypatch.setenv("PETL_SEARCH_HOME", str(tmp_path))
    before = content(tmp_path)
    assert ".db" in refused(capsys, *words)
    assert content(tmp_path) == before
