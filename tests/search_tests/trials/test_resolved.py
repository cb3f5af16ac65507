"""What a study fixes: the JSON on record is read into types, and written again as it was."""

from __future__ import annotations

import json
from typing import Any

import pytest

from petl.configuration import Configuration, Training
from petl.presets import parse
from petl.tasks import Decoding
from search.trials.records import Records
from search.trials.resolved import Resolved

# As a driver of ba3158e put it on record.
STORED: dict[str, Any] = {
    "backbone": {
        "model": "package:tiny/model", "family": "bert", "revision": "", "fingerprint": "0123456789abcdef", "depth": 2,
        "width": 8, "ffn_width": 16, "heads": 2,
        "shapes": {"embeddings.word_embeddings.weight": [40, 8]}, "head": {"classifier.weight": [0, 8]}, "padding": 0,
    },
    "fingerprint": "0123456789abcdef",
    "task": {
        "name": "tweets", "kind": "text-classification", "hub": "", "hub_config": "", "revision": "", "splits": {},
        "paths": {"train": "/data/train.csv"}, "data_dir": None, "columns": {"text": "text", "label": "sentiment"},
        "labels": ["bad", "good"], "minimum": {"confidence": 0.6}, "train_rows": 100, "validation_rows": 20,
        "test_rows": 20, "validation_sample": None, "split_seed": 0, "max_length": 128, "max_target_length": 128,
        "prompt": "{source}", "languages": None,
        "decoding": {
            "beams": 4, "min_length": 0, "max_length": 60, "length_penalty": 1.0, "no_repeat_ngram": 0,
            "checkpoint": False,
        },
    },
    "labels": ["bad", "good"],
    "rows": {"train": 100, "validation": 20, "test": 20},
    "digest": "feedface",
    "epochs": None,
    "precision": "bf16",
    "uri": None,
    "generates": False,
    "final": ["test"],
    "written": {"fixed": 900_000, "texts": 4_000},
    "signatures": {},
    "warm": [
        {
            "name": "LoRA (from other 3)",
            "configuration": Configuration(parse("lora:rank=4"), Training(epochs=1.0)).to_dict(),
            "coordinates": {"ffn.size": 2},
        }
    ],
}  # fmt: skip


@pytest.fixture
def stored() -> dict[str, Any]:
    data: dict[str, Any] = json.loads(json.dumps(STORED))
    return data


def test_it_is_written_again_as_it_was(stored: dict[str, Any]) -> None:
    resolved = Resolved.from_dict(stored)
    for unused in ("width", "ffn_width", "heads"):  # which nobody read
        del stored["backbone"][unused]
    stored["task"]["script"] = None  # a label is in none
    assert json.loads(json.dumps(resolved.to_dict())) == stored
    assert Resolved.from_dict(resolved.to_dict()) == resolved


def test_text_is_scored_as_it_was_when_tasks_had_no_script(stored: dict[str, Any]) -> None:
    task = {**stored["task"], "kind": "summarization", "columns": {}, "labels": None}
    older = Resolved.from_dict({**stored, "task": task})
    assert older.task.script == "latin"
    for script in (None, "han"):
        assert Resolved.from_dict({**stored, "task": {**task, "script": script}}).task.script == script


def test_its_parts_have_types(stored: dict[str, Any]) -> None:
    resolved = Resolved.from_dict(stored)
    assert resolved.backbone.shapes["embeddings.word_embeddings.weight"] == (40, 8)
    assert resolved.task.labels == resolved.labels == ("bad", "good")
    assert resolved.task.decoding == Decoding()
    assert resolved.written.fixed == 900_000
    assert resolved.warm[0].configuration.training.epochs == 1.0
    assert resolved.fingerprint == "0123456789abcdef"


def test_a_study_begun_before_task_decoding_checkpoint_keeps_the_checkpoints_settings(stored: dict[str, Any]) -> None:
    del stored["task"]["decoding"]["checkpoint"]
    assert Resolved.from_dict(stored).task.decoding == Decoding()  # nothing is generated
    stored["task"] |= {"kind": "summarization", "columns": {}, "labels": None}
    assert Resolved.from_dict(stored).task.decoding == Decoding(checkpoint=True)
    stored["task"]["decoding"]["checkpoint"] = False
    assert Resolved.from_dict(stored).task.decoding == Decoding()


def test_records_keep_it(stored: dict[str, Any]) -> None:
    records, resolved = Records.in_memory(), Resolved.from_dict(stored)
    records.resolved = resolved
    records.config = {"study": "demo", "seeds": (1, 2)}
    assert records.resolved is resolved
    again = Records(records._storage, records._study_id)
    assert again.resolved == resolved
    assert again.config == {"study": "demo", "seeds": [1, 2]}
