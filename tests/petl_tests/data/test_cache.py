"""Tokenised data is made once, is never stale, and survives whatever happens to its writers and its files."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from tokens import of_bytes, of_languages, of_words, write_lines

from petl.data import cache
from petl.data.cache import Tables, cache_folder, fetch, key_of
from petl.data.tokens import TaskData, load_data
from petl.tasks import TaskError, resolve

ROOT = Path(__file__).parents[3]


def write(folder: Path, word: str = "one") -> Path:
    for split in ("train", "validation"):
        lines = [{"source": f"{word} two {index}", "target": "three"} for index in range(20)]
        write_lines(folder / f"{split}.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write(tmp_path / "data")


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Grows by one whenever data is read and tokenised."""
    from petl.data import tokens as data

    calls: list[str] = []
    original: Callable[..., Tables] = data._tables

    def counted(*arguments: Any) -> Tables:
        calls.append("made")
        return original(*arguments)

    monkeypatch.setattr(data, "_tables", counted)
    return calls


def load(folder: Path, kept: Path, tokenizer: Any = None, decoder_only: bool = False, **changes: Any) -> TaskData:
    task = resolve({"name": "summarization", "data_dir": str(folder), **changes})
    return load_data(task, tokenizer or of_words(), cache=kept, decoder_only=decoder_only)


def equal(one: TaskData, other: TaskData) -> bool:
    return (
        (one.task, one.labels, one.digest) == (other.task, other.labels, other.digest)
        and list(one.splits) == list(other.splits)
        and all(one.sources(split) == other.sources(split) for split in one.splits)
        and all(one.references(split) == other.references(split) for split in one.splits)
        and all(np.array_equal(one.splits[split].lengths, other.splits[split].lengths) for split in one.splits)
        and all(np.array_equal(one.splits[split].targets, other.splits[split].targets) for split in one.splits)
        and torch.equal(one.batch("train", range(20))[0]["input_ids"], other.batch("train", range(20))[0]["input_ids"])
        and torch.equal(one.batch("train", range(20))[1], other.batch("train", range(20))[1])
    )


def entries(kept: Path) -> list[Path]:
    return [path for path in (kept / "data").iterdir() if path.is_dir()]


def test_a_second_load_reads_what_the_first_made(folder: Path, tmp_path: Path, made: list[str]) -> None:
    first, second = load(folder, tmp_path / "kept"), load(folder, tmp_path / "kept")
    assert made == ["made"]
    assert equal(first, second)
    assert second.splits["train"].rows.cache_files, "memory-mapped"
    assert [path.suffix for path in (tmp_path / "kept" / "data").iterdir() if path.is_file()] == [".lock"]


@pytest.mark.parametrize(
    "change",
    [
        {"max_length": 6},
        {"max_target_length": 6},
        {"prompt": "one {source}"},
        {"split_seed": 1},
        {"train_rows": 7},
        {"validation_rows": 7},
        {"columns": {"source": "target", "target": "source"}},
        {"languages": ("en", "ro")},
        {"tokenizer": of_words(("one", "two"))},
        {"tokenizer": of_bytes()},
        {"tokenizer": of_bytes(), "decoder_only": True},
    ],
)
def test_each_change_of_a_setting_is_another_entry(folder: Path, tmp_path: Path, change: dict[str, Any]) -> None:
    load(folder, tmp_path / "kept")
    load(folder, tmp_path / "kept", **change)
    assert len(entries(tmp_path / "kept")) == 2


def test_labels_and_languages_of_the_tokenizer_are_in_the_key(tmp_path: Path) -> None:
    for split in ("train", "validation"):
        write_lines(tmp_path / "rows" / f"{split}.csv", "text,label\none,0\ntwo,1\n")
    settings = {"name": "text-classification", "data_dir": str(tmp_path / "rows")}
    by_order = [
        load_data(resolve({**settings, "labels": labels}), of_words(), cache=tmp_path / "kept")
        for labels in (["a", "b"], ["b", "a"])
    ]
    assert [data.labels for data in by_order] == [("a", "b"), ("b", "a")]
    write(tmp_path / "pairs")
    for languages in (("en", "ro"), ("ro", "en")):
        data = load(tmp_path / "pairs", tmp_path / "kept", of_languages(), languages=languages)
        code = data.tokenizer.convert_tokens_to_ids("ro_RO" if languages[1] == "ro" else "en_XX")
        assert data.batch("train", [0])[1][0, -1] == code == data.start
    assert len(entries(tmp_path / "kept")) == 4


@pytest.mark.parametrize(
    "change", [{"validation_sample": 5}, {"decoding": {"beams": 2}}, {"name": "other", "kind": "summarization"}]
)
def test_what_changes_no_token_is_no_other_entry(
    folder: Path, tmp_path: Path, made: list[str], change: dict[str, Any]
) -> None:
    load(folder, tmp_path / "kept")
    load(folder, tmp_path / "kept", **change)
    assert made == ["made"]


def test_a_used_tokenizer_and_another_place_are_no_other_entry(tmp_path: Path, made: list[str]) -> None:
    tokenizer = of_words()
    load(write(tmp_path / "here"), tmp_path / "kept", tokenizer)
    tokenizer("one", truncation=True, max_length=5, padding="max_length")
    load(write(tmp_path / "there"), tmp_path / "kept", tokenizer)
    assert made == ["made"]


def test_a_file_of_the_same_size_and_time_is_another_entry(folder: Path, tmp_path: Path) -> None:
    first = load(folder, tmp_path / "kept")
    before = (folder / "train.jsonl").stat()
    write(folder, "two")
    os.utime(folder / "train.jsonl", ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (folder / "train.jsonl").stat().st_size == before.st_size
    second = load(folder, tmp_path / "kept")
    assert second.sources("train")[0] == "two two 0"
    assert second.digest != first.digest


def test_a_file_that_changes_while_it_is_read_is_not_kept(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from petl.data import tokens as data

    original = data._tables

    def meanwhile(*arguments: Any) -> Tables:
        write(folder, "two")
        return original(*arguments)

    monkeypatch.setattr(data, "_tables", meanwhile)
    with pytest.raises(TaskError, match="its files changed while they were read"):
        load(folder, tmp_path / "kept")
    assert entries(tmp_path / "kept") == []


def test_other_libraries_are_another_entry(
    folder: Path, tmp_path: Path, made: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    load(folder, tmp_path / "kept")
    monkeypatch.setattr("petl.data.tokens.version", lambda name: f"next {name}")
    load(folder, tmp_path / "kept")
    assert len(made) == 2


def truncate(entry: Path) -> None:
    file = next(entry.rglob("*.arrow"))
    file.write_bytes(file.read_bytes()[:-100])


def flip(entry: Path) -> None:
    file = next(entry.rglob("*.arrow"))
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(bytes(content))


def remove(entry: Path) -> None:
    next(entry.rglob("*.arrow")).unlink()


def empty(entry: Path) -> None:
    (entry / "entry.json").write_text("")


def nonsense(entry: Path) -> None:
    (entry / "entry.json").write_text("[]")


@pytest.mark.parametrize("damage", [truncate, flip, remove, empty, nonsense])
def test_a_damaged_entry_is_made_anew(
    folder: Path, tmp_path: Path, made: list[str], damage: Callable[[Path], None]
) -> None:
    first = load(folder, tmp_path / "kept")
    whole = (first.sources("train"), first.batch("train", range(20))[0]["input_ids"])
    (entry,) = entries(tmp_path / "kept")
    damage(entry)
    second = load(folder, tmp_path / "kept")
    assert len(made) == 2
    assert second.sources("train") == whole[0]
    assert torch.equal(second.batch("train", range(20))[0]["input_ids"], whole[1])
    assert equal(second, load(folder, tmp_path / "kept"))
    assert len(made) == 2


def test_a_folder_that_cannot_be_written_is_a_warning(folder: Path, tmp_path: Path, made: list[str]) -> None:
    write_lines(tmp_path / "kept", "a file stands where the folder would be")
    with pytest.warns(UserWarning, match="data is not cached, since .*kept/data cannot be used") as seen:
        first = load(folder, tmp_path / "kept")
    assert len(seen) == 1
    assert equal(first, load(folder, tmp_path / "other"))
    assert len(made) == 2


def test_a_disk_that_fills_up_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(Dataset, "save_to_disk", full)
    with pytest.warns(UserWarning, match="No space left on device"):
        tables = fetch(key_of({}), lambda: Tables({"train": Dataset.from_dict({"a": [1]})}, {}), tmp_path)
    assert list(tables.splits["train"]["a"]) == [1]
    assert entries(tmp_path) == []


def test_the_folder_is_where_the_environment_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PETL_CACHE", str(tmp_path / "own"))
    assert cache_folder() == tmp_path / "own"
    monkeypatch.delenv("PETL_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "petl-search"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "petl-search"


PROCESS = """
import sys, time, uuid
from pathlib import Path
sys.path[:0] = ["tests/helpers", "tests/petl_tests/data"]
from test_cache import load
from tokens import of_words
from petl.data import tokens as data
folder, kept, marks, naps = Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), float(sys.argv[4])
original = data._tables
def slow(*arguments):
    (marks / uuid.uuid4().hex).touch()
    time.sleep(naps)
    return original(*arguments)
data._tables = slow
print("ready", flush=True)
sys.stdin.readline()
loaded = load(folder, kept)
print(loaded.digest, int(loaded.batch("train", range(20))[0]["input_ids"].sum()))
"""


def start(folder: Path, kept: Path, marks: Path, naps: float) -> subprocess.Popen[str]:
    """A process that has imported everything and waits for a line."""
    marks.mkdir(exist_ok=True)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-c", PROCESS, str(folder), str(kept), str(marks), str(naps)],
        env=environment,
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def test_processes_that_start_at_once_do_the_work_once(folder: Path, tmp_path: Path) -> None:
    processes = [start(folder, tmp_path / "kept", tmp_path / "marks", 0.5) for _ in range(4)]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    said = {process.communicate(timeout=120)[0] for process in processes}
    assert [process.returncode for process in processes] == [0] * 4
    assert len(said) == 1
    assert len(list((tmp_path / "marks").iterdir())) == 1


def test_a_killed_writer_leaves_nothing_in_the_way(folder: Path, tmp_path: Path, made: list[str]) -> None:
    process = start(folder, tmp_path / "kept", tmp_path / "marks", 600)
    assert process.stdin is not None
    process.stdin.write("go\n")
    process.stdin.flush()
    until = time.monotonic() + 60
    while not list((tmp_path / "marks").iterdir()) and time.monotonic() < until:
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    (lock,) = (tmp_path / "kept" / "data").glob("*.lock")
    half = tmp_path / "kept" / "data" / f".{lock.stem}-half"  # as it would be, had it died while writing
    write_lines(half / "train" / "state.json", "{")
    with warnings.catch_warnings(action="error"):
        first = load(folder, tmp_path / "kept")
    assert made == ["made"]
    assert equal(first, load(folder, tmp_path / "kept"))
    assert not half.exists()
    assert cache._read(tmp_path / "kept" / "data" / lock.stem) is not None
