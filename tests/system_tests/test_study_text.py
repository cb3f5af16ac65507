"""A study whose task is generated text, through Ray, to its front with predictions."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import sacrebleu
import studies
import texts
from published import published_info
from rich.console import Console

from search import Study, run
from search.config.loading import load_config
from search.config.text import ConfigError
from search.storage.folder import PREDICTIONS, TrialFolder
from search.study.resolve import resolve
from search.trials.record import State


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PETL_SEARCH_HOME", str(folder))
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        yield folder


@pytest.fixture(scope="module")
def study(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Study:
    inputs = tmp_path_factory.mktemp("inputs")
    rows = texts.write_rows(inputs / "rows.jsonl", rows=150)
    content = {
        "study": "text",
        "backbone": {"model": str(texts.write_backbone("bart", inputs)), "precision": "fp32"},
        "task": texts.task(rows, validation_sample=12),
        "space": {"name": "lora", "max_size": 4},
        "objectives": {"score": "loss"},
        "references": {"untuned": {}, "full": {"learning_rate": 1e-2}},
        "enqueue": ["mam:length=2,size=4"],
        "sampler": {"name": "random"},
        "scheduler": {"name": "none"},
        "budget": {"trials": 2, "epochs": 2},
        "training": {"learning_rate": 1e-2, "batch_size": 16, "keep": "loss", "validate_every": 0.5},
    }
    return run(content, console=Console(quiet=True))


def test_all_is_trained_and_the_untuned_model_stands_beside(study: Study) -> None:
    assert [trial.state for trial in (*study.trials, *study.references)] == [State.COMPLETE] * 4
    untuned, full = study.references
    assert (untuned.name, full.name) == ("untuned", "full")
    assert (full.score or 0) < (untuned.score or 0)
    assert untuned.measurements is not None
    assert untuned.measurements.sacrebleu is None  # a search by the loss generates nothing before its end


def test_front_is_scored_on_whole_splits_with_generated_text(study: Study) -> None:
    for trial in (*study.front(), *study.references):
        for scores in (trial.row.validation, trial.row.test):
            assert set(scores) == {"loss", "sacrebleu"}
    assert study.front().best().validation_score != study.front().best().score  # 20 rows, not 12


def test_predictions_are_kept_and_are_what_the_loaded_model_says(study: Study, home: Path) -> None:
    member = study.front().best()
    part = TrialFolder(home / "studies" / "text", member.number).find("test")
    assert part is not None
    rows = [json.loads(line) for line in (part / PREDICTIONS / "test.jsonl").read_text().splitlines()]
    assert len(rows) == 13
    said, expected = ([row[name] for row in rows] for name in ("prediction", "reference"))
    assert sacrebleu.corpus_bleu(said, [expected]).score == pytest.approx(member.row.test["sacrebleu"])
    sources = [text.replace("m", "w") for text in expected]  # the made-up language, word for word
    assert member.load_model().predict(sources) == said


def test_predictions_and_signatures_are_in_mlflow(study: Study) -> None:
    from mlflow import MlflowClient

    member = study.front().best()
    listed = [item.path for item in MlflowClient(study.uri).list_artifacts(member.run_id, PREDICTIONS)]
    assert listed == [f"{PREDICTIONS}/test.jsonl", f"{PREDICTIONS}/validation.jsonl"]
    assert "tok:13a" in published_info(study)["resolved"]["signatures"]["sacrebleu"]


def test_a_backbone_that_cannot_do_the_task_is_refused(home: Path, tmp_path: Path) -> None:
    content = {
        "study": "unfit",
        "backbone": {"model": str(texts.write_backbone("bart", tmp_path))},
        "task": texts.task(texts.write_rows(tmp_path / "rows.jsonl")),
        "objectives": {"score": "loss"},
    }
    encoder = studies.write_backbone(tmp_path / "encoder")
    with pytest.raises(ValueError, match=r"needs a model that generates text; .* is an encoder, a bert"):
        run({**content, "backbone": {"model": str(encoder)}})
    with pytest.raises(ValueError, match=r"task.decoding.max_length is at most 40 .* received 41"):
        run({**content, "task": {**content["task"], "decoding": {"max_length": 41}}})
    with pytest.raises(ValueError, match=r"causal-lm.* needs a decoder"):
        run(
            {**content, "task": {"kind": "causal-lm", "paths": content["task"]["paths"], "columns": {"text": "target"}}}
        )
    with pytest.raises(ConfigError, match="rouge2"):
        run({**content, "objectives": {"score": "rouge2"}})


def test_what_a_study_fixed_is_not_looked_for_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """$PETL_DATA is where it was when the study began, also for a resume that does not have it."""
    texts.write_rows(tmp_path / "data" / "wmt16_en_ro" / "train.jsonl")
    content = {
        "study": "fixed",
        "backbone": {"model": str(texts.write_backbone("bart", tmp_path)), "precision": "fp32"},
        "task": {"name": "wmt16_en_ro", "columns": {"source": "source", "target": "target"}, "max_length": 12},
    }
    content["task"] |= {"max_target_length": 12, "decoding": {"max_length": 12}}
    config = load_config(content)
    monkeypatch.setenv("PETL_DATA", str(tmp_path / "data"))
    began = resolve(config)
    monkeypatch.delenv("PETL_DATA")
    again = resolve(config, located=began.task)
    assert again.digest == began.digest
    assert again.task.data_dir == str(tmp_path / "data" / "wmt16_en_ro")


def test_predictions_are_kept_where_there_is_no_test_split(tmp_path: Path) -> None:
    splits = {
        name: str(texts.write_rows(tmp_path / f"{name}.jsonl", rows=30, seed=seed))
        for seed, name in enumerate(("train", "validation"))
    }
    content = {
        "study": "two",
        "backbone": {"model": str(texts.write_backbone("bart", tmp_path)), "precision": "fp32"},
        "task": texts.task(Path("-"), paths=splits),
    }
    assert resolve(load_config(content)).final == ("validation",)
