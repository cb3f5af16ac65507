"""Configurations: what is stored is read as it was meant, and keys stay what they were."""

from __future__ import annotations

from typing import Any

import pytest

from petl.configuration import Configuration, Training
from petl.presets import parse

# As the configuration of lora:rank=2, seed 3, had them before training.loss_over, with 1 and with 4 micro-batches.
ALONE, SEVERAL = "1bd64906513b", "c05f29830ce4"


def configuration(**training: Any) -> Configuration:
    return Configuration(parse("lora:rank=2"), Training(**training), 3)


def stored_before(accumulation: int) -> dict[str, Any]:
    data = configuration(accumulation=accumulation).to_dict()
    del data["training"]["loss_over"]
    return data


@pytest.mark.parametrize(("accumulation", "key"), [(1, ALONE), (4, SEVERAL)])
def test_what_was_stored_before_a_field_keeps_what_it_did_and_its_key(accumulation: int, key: str) -> None:
    read = Configuration.from_dict(stored_before(accumulation))
    assert read.training == Training(accumulation=accumulation, loss_over="micro-batch")
    assert read.key == key


def test_a_key_changes_where_a_field_changes_what_is_trained() -> None:
    assert configuration().key == configuration(loss_over="micro-batch").key == ALONE
    keys = {configuration(accumulation=4, loss_over=over).key for over in ("step", "micro-batch")}
    assert len(keys) == 2
    assert SEVERAL in keys


def test_what_is_stored_is_read_back() -> None:
    for over in ("step", "micro-batch"):
        what = configuration(accumulation=2, loss_over=over)
        assert Configuration.from_dict(what.to_dict()) == what


def test_a_loss_over_anything_else_is_refused() -> None:
    with pytest.raises(ValueError, match="loss_over is step or micro-batch; received 'epoch'"):
        Training(loss_over="epoch")
