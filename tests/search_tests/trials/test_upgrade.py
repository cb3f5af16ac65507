"""Old names: refused where they are written, read where they are stored."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from studies import study

from petl.head import OWN_HEAD
from search import cli
from search.config.loading import load_config, load_stored
from search.config.resuming import as_begun, refusal
from search.config.text import ConfigError
from search.trials.upgrade import VERSION, VersionError, upgraded

OLD: dict[str, Any] = {  # the sections that ba3158e stored with other names, as it wrote them
    "sampler": {"name": "tpe", "seed": 1, "teaching": "raw"},
    "scheduler": {"name": "halving", "eta": 2.0, "first": 0.5, "waves": 1, "least": 3},
    "replicates": {"seeds": 4, "extra": 0.5},
}
NEW = {
    "sampler": {"name": "tpe", "seed": 1, "unfinished": "last"},
    "scheduler": {"name": "halving", "eta": 2.0, "first_rung": 0.5, "waves": 1, "min_full": 3},
    "replicates": {"per_trial": 4, "extra": 0.5},
}


def test_a_configuration_without_a_version_has_the_names_of_ba3158e() -> None:
    assert upgraded({**OLD, "study": "old", "constraints": {"stored_percent": 1.0}}) == {
        **NEW, "study": "old", "constraints": {"stored_percent": 1.0}, "training": {"loss_over": "micro-batch"},
        "head": {"pooling": "model", "start": "random"},
    }  # fmt: skip
    assert OLD["sampler"]["teaching"] == "raw"  # what was given is left alone


@pytest.mark.parametrize(
    ("old", "new"), [("raw", "last"), ("corrected", "extrapolated"), ("pruned", "ignored"), ("model", "predicted")]
)
def test_every_score_of_unfinished_trials_has_its_new_name(old: str, new: str) -> None:
    assert upgraded({"sampler": {"teaching": old}})["sampler"] == {"unfinished": new}


def test_what_is_stored_is_read_back_the_same(tmp_path: Path) -> None:
    config = load_config(study(tmp_path, **NEW))
    assert config.to_dict()["version"] == VERSION == 4
    assert load_stored(config.to_dict()) == config
    dense = {**config.space, "parts": None}
    training = {"batch_size": 16, "loss_over": "micro-batch"}
    before = load_config(study(tmp_path, **NEW, training=training, head=OWN_HEAD.to_dict(), space=dense))
    stored = config.model_dump(mode="json")
    assert load_stored({**stored, **OLD}) == before  # as ba3158e has it
    assert load_stored({**stored, "version": 1}) == before


def test_a_study_keeps_the_default_that_it_began_with(tmp_path: Path) -> None:
    """Also where its file, which never said it, resumes it."""
    file = study(tmp_path, training={"accumulation": 2})
    begun = load_stored({**load_config(file).model_dump(mode="json"), "version": 1})
    assert begun.fixed_training.loss_over == "micro-batch"
    assert load_config(file).fixed_training.loss_over == "step"
    assert refusal(load_config(file), begun)
    assert refusal(as_begun(load_config(file), begun), begun) == ""
    said = load_config(file, ["training.loss_over=step"])
    assert "received another training" in refusal(as_begun(said, begun), begun)


@pytest.mark.parametrize("version", [VERSION + 1, -1, "1", None])
def test_a_later_version_is_refused(version: object) -> None:
    with pytest.raises(VersionError, match=rf"of version {VERSION} and earlier; received one of version {version!r}"):
        upgraded({**NEW, "version": version})


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("sampler.teaching=corrected", "sampler.teaching: is called sampler.unfinished: extrapolated now"),
        ("sampler.teaching=any", "sampler.teaching: is called sampler.unfinished now"),
        ("scheduler.first=0.5", "scheduler.first: is called scheduler.first_rung now; received 0.5"),
        ("scheduler.least=2", "scheduler.least: is called scheduler.min_full now; received 2"),
        ("replicates.seeds=5", "replicates.seeds: is called replicates.per_trial now; received 5"),
    ],
)
def test_an_old_key_is_refused_with_the_new_one(tmp_path: Path, override: str, said: str) -> None:
    content = {**study(tmp_path), "sampler": {"name": "tpe"}, "scheduler": {"name": "halving"}, "replicates": {}}
    with pytest.raises(ConfigError) as caught:
        load_config(content, [override])
    assert said in str(caught.value)
    section, key = override.partition("=")[0].split(".")
    with pytest.raises(ConfigError) as caught:
        load_config({**content, section: {**content[section], key: override.partition("=")[2]}})
    assert said.partition(";")[0] in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "new"),
    [
        (("front", "demo", "--most-false", "5%"), "--fdr"),
        (("front", "demo", "--most-false=5%"), "--fdr"),
        (("replay", "demo.json", "--first", "1"), "--set first_rung="),
        (("replay", "demo.json", "--least", "2"), "--set min_full="),
    ],
)
def test_an_old_option_is_refused_with_the_new_one(
    arguments: tuple[str, ...], new: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["petl-search", *arguments])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 2
    old = arguments[2].partition("=")[0]
    assert capsys.readouterr().err == f"petl-search: the option {old} is called {new} now\n"
