"""Tasks as rows and as settings: what is checked, what is filled in, what survives JSON."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import pytest

from petl.measurements import SCORES
from petl.tasks import KINDS, TASKS, Decoding, Task, TaskError, resolve

FILES = {"train": "rows.csv"}


@pytest.mark.parametrize("name", TASKS)
def test_rows_survive_json(name: str) -> None:
    row = TASKS[name]
    assert resolve({"name": name}) == row
    assert Task.from_dict(json.loads(json.dumps(asdict(row)))) == row


@pytest.mark.parametrize("name", KINDS)
def test_kinds_are_scored_and_can_be_a_name(name: str) -> None:
    assert set(KINDS[name].scores) <= set(SCORES)
    by_name, by_kind = resolve({"name": name, "paths": FILES}), resolve({"kind": name, "paths": "rows.csv"})
    assert by_name == by_kind
    assert by_name.kind == by_name.name == name
    assert dict(by_name.columns) == {column: column for column in KINDS[name].required}
    assert resolve({"name": name, "hub": "someone/something"}).hub == "someone/something"


def test_paper_bleu_is_for_romanian() -> None:
    assert TASKS["wmt16_en_ro"].scores == ("sacrebleu", "paper_bleu", "loss")
    assert resolve({"name": "translation", "paths": FILES, "languages": ["en", "de"]}).scores == ("sacrebleu", "loss")
    assert resolve({"name": "translation", "paths": FILES}).scores == ("sacrebleu", "loss")
    assert TASKS["sst2"].scores[0] == "accuracy"
    assert TASKS["xsum"].scores[0] == "rouge2"


def test_a_setting_changes_a_row_entry_by_entry_where_it_is_nested() -> None:
    task = resolve({"name": "xsum", "decoding": {"beams": 2}, "columns": {"source": "article"}, "train_rows": 5})
    assert task.decoding == Decoding(beams=2, min_length=10, max_length=60, no_repeat_ngram=3)
    assert dict(task.columns) == {"source": "article", "target": "summary"}
    assert (task.train_rows, TASKS["xsum"].train_rows) == (5, None)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"name": "sst3"}, "task sst3: nothing says where its rows are.*one of: sst2, mnli, xsum"),
        ({"name": "summarization"}, "nothing says where its rows are"),
        ({"name": "sst2", "rowz": 3}, "a task has no rowz; it has columns"),
        ({"name": "sst2", "kind": "sorting"}, "task.kind is one of text-classification, .*; received 'sorting'"),
        ({"name": "m", "paths": {"test": "a"}}, "task.paths names at least the train file; received {'test': 'a'}"),
        ({"name": "m", "paths": {"train": "a", "dev": "b"}}, "task.paths has train, validation, test; received dev"),
        ({"name": "sst2", "splits": {"dev": "b"}}, "task.splits has train, validation, test; received dev"),
        ({"name": "xsum", "columns": {"text": "a"}}, "task.columns of summarization has source, target; received text"),
        ({"name": "sst2", "columns": {"sauce": "a"}}, "has text, label, and at will pair; received sauce"),
        ({"name": "sst2", "train_rows": 0}, "task.train_rows is at least 1, or null for all; received 0"),
        ({"name": "sst2", "validation_sample": 0}, "task.validation_sample is at least 1"),
        ({"name": "sst2", "max_length": 3}, "task.max_length is at least 4 tokens; received 3"),
        ({"name": "xsum", "max_target_length": 3}, "task.max_target_length is at least 4"),
        ({"name": "sst2", "max_length": "long"}, "task.max_length: Input should be a valid integer.*received 'long'"),
        ({"name": "sst2", "labels": ["a"]}, "task.labels are two distinct names or more"),
        ({"name": "sst2", "labels": ["a", "a"]}, "task.labels are two distinct names or more"),
        ({"name": "xsum", "labels": ["a", "b"]}, "task.labels is for classification"),
        ({"name": "xsum", "prompt": "summarize"}, "task.prompt holds {source} once; received 'summarize'"),
        ({"name": "sst2", "prompt": "what is {source}"}, "task.prompt is for summarization and translation"),
        ({"name": "sst2", "languages": ["en", "ro"]}, "task.languages is for summarization and translation"),
        ({"name": "wmt16_en_ro", "languages": ["en"]}, "task.languages"),
        ({"name": "xsum", "decoding": {"beams": 0}}, "task.decoding.beams is at least 1; received 0"),
        ({"name": "xsum", "decoding": {"min_length": -1}}, "task.decoding.min_length is at least 0"),
        ({"name": "xsum", "decoding": {"max_length": 9}}, "task.decoding.max_length is at least 1, and at least min_l"),
        ({"name": "xsum", "decoding": {"length_penalty": float("inf")}}, "length_penalty is a finite number"),
        ({"name": "xsum", "decoding": {"no_repeat_ngram": -1}}, "no_repeat_ngram is at least 0"),
        ({"name": "xsum", "decoding": {"beam": 3}}, "task.decoding has no beam; it has beams"),
    ],
)
def test_faults_are_named(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(TaskError, match=says):
        resolve(settings)
