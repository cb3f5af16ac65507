"""What a study fixes when it begins, and what it refuses then."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import studies
import texts

from petl.tasks import TaskError
from search.config.loading import load_config
from search.config.study import StudyConfig
from search.study.resolve import resolve

CHINESE = ("委员会星期一开会", "预算被否决了", "他们昨天踢了足球比赛", "雨下了一整天")


def summaries(folder: Path, targets: tuple[str, ...], **task: Any) -> StudyConfig:
    rows = folder / "rows.jsonl"
    lines = [{"source": f"w{number}", "target": targets[number % len(targets)]} for number in range(40)]
    rows.write_text("\n".join(json.dumps(line) for line in lines))
    content = {
        "study": "text",
        "backbone": {"model": str(texts.write_backbone("bart", folder)), "precision": "fp32"},
        "task": texts.task(rows, name="news", kind="summarization", **task),
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
    content["task"] |= {"validation_rows": None, "test_rows": None}
    with pytest.raises(TaskError, match=rf"all 2 validation rows have the label 'good'.* a better {score} than"):
        resolve(load_config(content))
    assert resolve(load_config({**content, "objectives": {"score": "loss"}})).generates is False
