"""What a study is refused for, and told of, before anything is trained: its data as they were understood."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import studies

from petl.tasks import TaskError
from search.config.loading import load_config
from search.study.resolve import resolve
from search.study.runner import data_lines
from search.trials.resolved import Resolved


def of(folder: Path, **task: Any) -> dict[str, Any]:
    content = studies.study(folder)
    return {**content, "task": {**content["task"], **task}}


def test_the_headline_shows_rows_as_they_were_understood(tmp_path: Path) -> None:
    content = of(tmp_path)
    file = tmp_path / "rows.csv"
    rows = [line.split(",") for line in file.read_text().splitlines()[1:]]
    with file.open("a") as lines:
        lines.writelines(f"word{i} word{i},\n" for i in range(60))
    resolved = resolve(load_config(content))
    again = Resolved.from_dict(json.loads(json.dumps(resolved.to_dict())))
    assert again == resolved
    shown = data_lines(again)
    assert shown[0].startswith("  train: 120 rows of 300 read; dropped: 60 without label; 3 classes: ")
    assert [line.partition(" rows")[0] for line in shown[1:3]] == ["  validation: 60", "  test: 60"]
    assert shown[3].startswith("  first train row: text '")
    assert any(f"text {text!r}, label {label!r}" in shown[3] for text, label in rows)
    assert "  warning: train: 60 of 300 rows are not used" in shown
    assert data_lines(replace(resolved, data={})) == []


def test_a_validation_file_that_is_the_train_file_is_refused(tmp_path: Path) -> None:
    content = of(tmp_path)
    train = content["task"]["paths"]["train"]
    copy = tmp_path / "copy.csv"
    copy.write_bytes(Path(train).read_bytes())
    for split in ("validation", "test"):
        paths = {"train": train, split: str(copy)}
        with pytest.raises(TaskError, match=rf"the {split} split has the very content of the train split"):
            resolve(load_config(of(tmp_path, paths=paths)))
    started = resolve(load_config(content)).task
    stored = replace(started, paths={"train": train, "validation": str(copy)})
    assert resolve(load_config(content), located=stored).rows["validation"] == 60  # a study that has begun goes on


def test_words_that_the_tokenizer_does_not_know_are_refused(tmp_path: Path) -> None:
    content = of(tmp_path)
    file = Path(content["task"]["paths"]["train"])
    rows = [line.rsplit(",", 1) for line in file.read_text().splitlines()[1:]]
    file.write_text("text,label\n" + "".join(f"{text} xyz qrs,{label}\n" for text, label in rows))
    with pytest.raises(TaskError, match=r"1\d\.\d% of the tokens of the train split are unknown .* is 5\.0%"):
        resolve(load_config(content))
    content["task"]["max_unknown"] = 0.5
    resolved = resolve(load_config(content))
    assert "% of the tokens are unknown" in data_lines(resolved)[0]
