"""What a study fixes when it begins, and what it refuses or says then."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import studies
import texts
import tiny

from petl.backbones.locate import BackboneError
from petl.tasks import TaskError
from search.config.loading import load_config
from search.config.study import StudyConfig
from search.study.resolve import resolve
from search.study.runner import data_lines
from search.trials.resolved import Resolved

CHINESE = ("委员会星期一开会", "预算被否决了", "他们昨天踢了足球比赛", "雨下了一整天")


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


def summaries(folder: Path, targets: tuple[str, ...], **task: Any) -> StudyConfig:
    rows = folder / "rows.jsonl"
    lines = [{"source": f"w{number}", "target": targets[number % len(targets)]} for number in range(40)]
    rows.write_text("\n".join(json.dumps(line) for line in lines))
    content = {
        "study": "text",
        "backbone": {"model": str(texts.write_backbone("bart", folder)), "precision": "fp32"},
        "task": texts.task(rows, name="news", kind="summarization", max_unknown=1.0, **task),
        "objectives": {"score": "rouge2"},
    }
    return load_config(content)


def test_the_script_of_the_targets_is_fixed_with_the_study(tmp_path: Path) -> None:
    config = summaries(tmp_path, CHINESE)
    resolved = resolve(config)
    assert resolved.task.script == "han"
    assert "tokenizer:any-script" in resolved.signatures["rouge2"]
    again = resolve(config, located=resolved.task.from_dict({**vars(resolved.task), "script": "latin"}))
    assert again.task.script == "latin"  # a resumed study keeps its own
    assert "tokenizer:rouge_score" in again.signatures["rouge2"]


def test_a_script_that_is_named_is_taken(tmp_path: Path) -> None:
    assert resolve(summaries(tmp_path, CHINESE, script="unspaced")).task.script == "unspaced"


@pytest.mark.parametrize(
    ("targets", "task"),
    [(("one", "two", "three"), {}), (CHINESE, {"script": "latin"})],
    ids=["single words have no pairs", "no letter is Latin"],
)
def test_a_score_that_cannot_tell_trials_apart_is_refused(
    tmp_path: Path, targets: tuple[str, ...], task: dict[str, Any]
) -> None:
    with pytest.raises(TaskError, match=r"rouge2 cannot tell trials apart.* have 0 of .*rouge1, rougeL"):
        resolve(summaries(tmp_path, targets, **task))


@pytest.mark.parametrize("score", ["accuracy", "f1", "matthews"])
def test_validation_rows_of_one_label_are_refused(tmp_path: Path, score: str) -> None:
    content = studies.study(tmp_path, objectives={"score": score})
    one = tmp_path / "one.csv"
    pd.DataFrame({"text": ["great road", "fine day"], "label": ["good", "good"]}).to_csv(one, index=False)
    content["task"]["paths"] |= {"validation": str(one)}
    content["task"] |= {"validation_rows": None, "test_rows": None, "max_unknown": 1.0}
    with pytest.raises(TaskError, match=rf"all 2 validation rows have the label 'good'.* a better {score} than"):
        resolve(load_config(content))
    assert resolve(load_config({**content, "objectives": {"score": "loss"}})).generates is False


def test_the_first_token_of_a_decoder_is_refused_before_anything_is_trained(tmp_path: Path) -> None:
    content = studies.study(tmp_path)
    model = Path(content["backbone"]["model"])
    decoder = tiny.model("gpt2", vocab_size=len(json.loads((model / "tokenizer.json").read_text())["model"]["vocab"]))
    (model / "model.safetensors").unlink()
    decoder.save_pretrained(model)
    length = {"task": {**content["task"], "max_length": 16}}
    with pytest.raises(BackboneError, match=r"head.pooling first is for encoders.*take last or mean"):
        resolve(load_config({**content, **length, "head": {"pooling": "first"}}))
    full = {"full": {"head": {"pooling": "first"}}}
    with pytest.raises(BackboneError, match=r"head.pooling first is for encoders"):
        resolve(load_config({**content, **length, "references": full}))
    resolve(load_config({**content, **length, "head": {"pooling": "last"}}))
