"""The YAML of study files: values by YAML 1.2's core schema, and faults with their place."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from studies import study

from search.config.loading import load_config
from search.config.text import ConfigError, parse


@pytest.mark.parametrize(
    ("text", "value"),  # of the core schema, https://yaml.org/spec/1.2.2/#103-core-schema
    [
        ("5e10ab34cd", "5e10ab34cd"),
        ("7e1f00", "7e1f00"),
        ("3e5-base", "3e5-base"),
        ("12e5f", "12e5f"),
        ("[no, yes, on, off, y, n]", ["no", "yes", "on", "off", "y", "n"]),
        ("[en, no]", ["en", "no"]),
        ("[true, False, null, ~]", [True, False, None, None]),
        ("[1e-3, 1.5E-2, 5e-05, .5, -3, +4]", [0.001, 0.015, 0.00005, 0.5, -3, 4]),
        ("[0o17, 0x1F, 010]", [15, 31, 10]),
        ("12:30:45", "12:30:45"),
        ("2026-11-30", "2026-11-30"),
        (".inf", math.inf),
        ("", None),
    ],
)
def test_values(text: str, value: Any) -> None:
    assert parse(text, "text") == value


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("study: a\nseed: 1\nstudy: b\n", r"line 3, column 1: each key is given once; received \"study\" again"),
        ("sampler: tpe\nsampler: {name: gp}", r"line 2, column 1: each key is given once; received \"sampler\" again"),
        ("budget: {epochs: 1, epochs: 2}", r"line 1, column 21: each key is given once; received \"epochs\" again"),
        ("study: [a\n", r"line 2, column 1: expected ',' or '\]'.* while parsing a flow sequence \(line 1, column 8\)"),
        ("study: a: b", "line 1, column 9: mapping values are not allowed here"),
        ("study:\n\t- a", r"line 2, column 1: found character '\\t'"),
        ("a: 1\nb: !!python/object/apply:os.getcwd []", "line 2, column 4: could not determine a constructor"),
        ("a: *b", "line 1, column 4: found undefined alias 'b'"),
        ("--- 1\n--- 2", "line 2, column 1: but found another document"),
        ("a\0b", "character 2: special characters are not allowed"),
        ("[" * 5_000, "it is nested too deep"),
    ],
)
def test_faults_have_line_and_column(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=f"^study.yaml is no YAML.*: {said}") as caught:
        parse(text, "study.yaml")
    assert "\n" not in str(caught.value)


def test_a_text_that_is_not_utf_8(tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_bytes(b"study: \xff\n")
    with pytest.raises(ConfigError, match=r"study.yaml is no YAML: byte 8 is not UTF-8"):
        load_config(tmp_path / "study.yaml")


def test_a_revision_that_looks_like_a_number(tmp_path: Path) -> None:
    content = study(tmp_path)
    task = {**content["task"], "revision": "5e10ab34cd"}
    assert load_config({**content, "task": task}, ["task.revision=7e1f00"]).task["revision"] == "7e1f00"
    text = "study: a\nbackbone: {model: 3e5-base}\ntask: {name: sst2, revision: 5e10ab34cd, labels: [no, yes]}\n"
    (tmp_path / "study.yaml").write_text(text)
    config = load_config(tmp_path / "study.yaml")
    assert (config.backbone.model, config.task["revision"]) == ("3e5-base", "5e10ab34cd")
    assert config.task["labels"] == ["no", "yes"]
    text = "study: a\nbackbone: {model: a/b}\ntask: {name: wmt16_en_ro, languages: [en, no]}\n"
    (tmp_path / "study.yaml").write_text(text)
    assert load_config(tmp_path / "study.yaml").task["languages"] == ["en", "no"]


@pytest.mark.parametrize("name", ["2024", "007", "1e3", "1_000", "2026-11-30", "yes", "true"])
def test_the_name_of_a_study_is_text(tmp_path: Path, name: str) -> None:
    for key in ("study", "warm_start"):
        others = "backbone: {model: a/b}\ntask: {name: sst2}\n" + ("study: a\n" if key == "warm_start" else "")
        (tmp_path / "study.yaml").write_text(f"{key}: {name}\n{others}")
        overridden = load_config(study(tmp_path), [f"{key}={name}"])
        for config in (load_config(tmp_path / "study.yaml"), overridden):
            assert getattr(config, key) == (name if key == "study" else (name,))


@pytest.mark.parametrize("text", ["study:", "study: ~", "study: [a]"])
def test_a_study_without_a_name_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "study.yaml").write_text(f"{text}\nbackbone: {{model: a/b}}\ntask: {{name: sst2}}\n")
    with pytest.raises(ConfigError, match="study: "):
        load_config(tmp_path / "study.yaml")


def test_an_override_into_a_short_form(tmp_path: Path) -> None:
    content = {**study(tmp_path), "sampler": "tpe", "scheduler": "halving", "replicates": 3}
    config = load_config(content, ["sampler.seed=3", "scheduler.eta=2", "replicates.extra=0.5"])
    assert (config.sampler.name, config.sampler.seed) == ("tpe", 3)
    assert (config.scheduler.name, config.scheduler.eta) == ("halving", 2)
    assert (config.replicates.per_trial, config.replicates.extra) == (3, 0.5)
    assert content["sampler"] == "tpe"
    with pytest.raises(ConfigError, match=r"--set study\.name=x: study is a value, not a section"):
        load_config(content, ["study.name=x"])


def test_an_override_of_a_section_that_is_empty(tmp_path: Path) -> None:
    content = {**study(tmp_path), "sampler": None}
    assert load_config(content, ["sampler.name=tpe"]).sampler.name == "tpe"


def test_an_override_that_is_no_yaml(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^--set seeds=\[1 is no YAML: line 1, column 3: expected ',' or '\]'"):
        load_config(study(tmp_path), ["seeds=[1"])
