"""The section `head` of a study file: its default, what goes over it, and its faults."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from studies import study

from petl.head import LINEAR_HEAD, OWN_HEAD, Head
from search.config.loading import load_config, load_stored
from search.config.resuming import as_begun, refusal
from search.config.text import ConfigError

ROOT = Path(__file__).parents[3]
WRITTEN = {"kind": "summarization", "paths": {"train": "rows.csv"}, "columns": {"source": "a", "target": "b"}}


def test_classifications_start_from_the_probe_of_the_mean(tmp_path: Path) -> None:
    config = load_config(study(tmp_path))
    assert config.head_of() == Head(pooling="mean", start="probe") == LINEAR_HEAD
    trained = {name: item for name, item in config.reference_configurations().items() if item}
    assert {item.head for item in trained.values()} == {LINEAR_HEAD}
    listed = load_config(study(tmp_path, designs={"lora": "lora", "bitfit": "bitfit"}, budget={"epochs": 1}, space={}))
    assert {item.head for _, item in listed.listed} == {LINEAR_HEAD}


def test_text_that_is_generated_has_no_head(tmp_path: Path) -> None:
    config = load_config(study(tmp_path, task=WRITTEN, objectives={}, references={"full": {}}))
    assert config.head_of() == OWN_HEAD
    assert load_stored({**config.model_dump(mode="json"), "version": 1}).head_of() == OWN_HEAD


def test_a_reference_and_a_row_have_their_own(tmp_path: Path) -> None:
    references = {"head_only": {"learning_rate": 1e-2, "head": {"start": "random"}}, "full": {"learning_rate": 1e-4}}
    config = load_config(study(tmp_path, head={"pooling": "first"}, references=references))
    found = config.reference_configurations()
    assert found["head_only"].head == Head(pooling="first", start="random")
    assert found["full"].head == Head(pooling="first", start="probe")
    assert found["head_only"].training.learning_rate == 1e-2
    assert load_stored(config.to_dict()) == config
    rows = {"a": {"design": "lora", "head": {"pooling": "last"}}, "b": "lora"}
    listed = dict(load_config(study(tmp_path, designs=rows, budget={"epochs": 1}, space={}, references={})).listed)
    assert [listed[name].head.pooling for name in ("a", "b")] == ["last", "mean"]
    own = load_config(study(tmp_path, head={"start": "probe"}, references={"full": {"head": {"pooling": "model"}}}))
    assert own.head_of({"pooling": "model"}) == OWN_HEAD
    assert listed["a"].key != listed["b"].key


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"head": {"pool": "mean"}}, "head: head has pooling and start; received pool"),
        ({"head": {"pooling": "max"}}, "head.pooling is one of model, mean, first, last; received 'max'"),
        ({"head": {"pooling": "model", "start": "probe"}}, "head.start probe is for a linear head"),
        ({"references": {"full": {"head": {"start": "warm"}}}}, "references: full: head.start is one of random, probe"),
        ({"references": {"full": {"head": "mean"}}}, "references: head is a section with pooling and start"),
        (
            {
                "designs": {"a": {"design": "lora", "head": {"pooling": "model", "start": "probe"}}},
                "budget": {"epochs": 1},
            },
            "designs: a: head.start probe is for a linear head",
        ),
        (
            {"task": WRITTEN, "objectives": {}, "references": {"full": {}}, "head": {"pooling": "mean"}},
            "head: head is for classification; summarization has none",
        ),
        (
            {"task": WRITTEN, "objectives": {}, "references": {"full": {"head": {"pooling": "mean"}}}},
            "references: full: head is for classification; summarization has none",
        ),
    ],
)
def test_faults(tmp_path: Path, sections: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(study(tmp_path, **sections))
    assert words in str(caught.value)


def test_the_lists_of_the_paper_have_the_paper_s_head() -> None:
    lists = [load_config(path) for path in sorted((ROOT / "spaces/studies/paper").glob("*.yaml"))]
    assert {config.head_of() for config in lists if config.paper} == {OWN_HEAD}


@pytest.mark.parametrize("version", [0, 1, 2])
def test_a_study_keeps_the_head_that_it_began_with(tmp_path: Path, version: int) -> None:
    """Also where its file, which never said it, resumes it."""
    file = study(tmp_path)
    begun = load_stored({**load_config(file).model_dump(mode="json"), "version": version})
    assert begun.head_of() == OWN_HEAD
    assert refusal(as_begun(load_config(file), begun), begun) == ""
    said = load_config(file, ["head.pooling=mean"])
    assert "received another head" in refusal(as_begun(said, begun), begun)
