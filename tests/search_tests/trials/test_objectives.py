"""The table of objectives: every row is a measurement, with a direction and a reference."""

from __future__ import annotations

import math

import pytest
import tiny
from transformers import BertConfig

from petl.backbones.count import count
from petl.measurements import Measurements
from petl.presets import parse
from search.trials.objectives import COSTS, COUNTS, SCORES, objectives, reference_point, ruling, values


@pytest.mark.parametrize("name", [*SCORES, *COSTS])
def test_every_objective_is_a_measurement(name: str) -> None:
    objective = {**SCORES, **COSTS}[name]
    assert objective.name == name
    assert objective.value(Measurements(**{name: 3})) == 3.0
    reference = reference_point((SCORES["accuracy"], objective), base_parameters=1_000)[1]
    assert math.isfinite(reference)


def test_directions() -> None:
    minimised = [name for name, objective in SCORES.items() if objective.direction == "minimize"]
    assert minimised == ["loss", "perplexity"]
    assert {objective.direction for objective in COSTS.values()} == {"minimize"}


def test_what_is_known_before_training() -> None:
    known = [name for name, objective in {**SCORES, **COSTS}.items() if objective.counted]
    assert known == ["stored_parameters", "trained_parameters", "paper_parameters"]


def test_the_worst_is_by_direction() -> None:
    assert SCORES["accuracy"].worst([0.5, 0.2, 0.9]) == 0.2
    assert SCORES["loss"].worst([0.5, 0.2, 0.9]) == 0.9
    assert SCORES["accuracy"].worst([]) == 0.0


def test_a_sampler_sees_counts_by_their_logarithm_above_the_knee() -> None:
    stored, accuracy = COSTS["stored_parameters"], SCORES["accuracy"]
    assert accuracy.seen(0.5) == 0.5
    assert stored.seen(0.0) == 0.0
    assert stored.seen(10.0) == pytest.approx(0.01, rel=0.01)  # linear far below 1,000
    assert stored.seen(1e9) - stored.seen(1e8) == pytest.approx(math.log(10), rel=1e-4)


def test_an_absent_score_is_none() -> None:
    assert SCORES["f1"].value(Measurements(accuracy=0.5)) is None


def test_reference_point_of_counts_is_the_pretrained_model() -> None:
    assert reference_point(objectives("f1", "stored_parameters"), 22_713_216) == (0.0, 22_713_216.0)


def test_unknown_names_are_refused_with_the_list() -> None:
    with pytest.raises(ValueError, match=r"score is one of accuracy, f1, matthews, loss, .* received 'acc'"):
        objectives("acc", "seconds")
    with pytest.raises(ValueError, match=r"cost is one of stored_parameters, .* received 'accuracy'"):
        objectives("accuracy", "accuracy")
    with pytest.raises(ValueError, match=r"second_cost is one of stored_parameters, .* received 'bytes'"):
        objectives("accuracy", "seconds", "bytes")
    with pytest.raises(ValueError, match=r"another one than cost; received 'seconds' for both"):
        objectives("accuracy", "seconds", "seconds")


def test_three_objectives_are_score_cost_and_second_cost() -> None:
    three = objectives("loss", "seconds", "latency_ms")
    assert [each.name for each in three] == ["loss", "seconds", "latency_ms"]
    assert reference_point(three, 1_000) == (10.0, 86_400.0, 1_000.0)


@pytest.mark.parametrize(
    ("costs", "rules"),
    [
        (("stored_parameters",), "stored_parameters"),
        (("latency_ms",), "latency_ms"),
        (("stored_parameters", "latency_ms"), "stored_parameters"),
        (("latency_ms", "stored_parameters"), "stored_parameters"),
        (("seconds", "latency_ms"), "seconds"),
        (("trained_parameters", "stored_parameters"), "trained_parameters"),
    ],
)
def test_the_first_cost_that_is_known_rules(costs: tuple[str, ...], rules: str) -> None:
    assert ruling(objectives("accuracy", *costs)).name == rules


def test_less_of_a_loss_is_better() -> None:
    accuracy, perplexity = SCORES["accuracy"], SCORES["perplexity"]
    assert (accuracy.loss(0.9), accuracy.of_loss(-0.9)) == (-0.9, 0.9)
    assert (perplexity.loss(12.0), perplexity.of_loss(12.0)) == (12.0, 12.0)
    assert accuracy.higher_is_better
    assert not perplexity.higher_is_better


def test_what_was_not_measured_has_no_value() -> None:
    accuracy, latency = values(objectives("accuracy", "latency_ms"), Measurements(accuracy=0.5))
    assert accuracy == 0.5
    assert math.isnan(latency)
    assert all(map(math.isnan, values(objectives("accuracy", "latency_ms"), None)))


def test_what_is_counted_before_training_is_what_may_have_a_limit() -> None:
    counted = count(
        parse("lora:rank=2"), tiny.described(BertConfig(num_hidden_layers=1, hidden_size=32, num_attention_heads=4))
    )
    assert set(COUNTS) == set(counted.values())
    assert counted.values()["stored_percent"] == pytest.approx(100 * counted.stored / counted.base)
    assert set(COUNTS) - set(COSTS) == {"stored_percent", "trained_percent"}


def test_every_cost_has_a_title_for_its_axis() -> None:
    assert all(cost.title for cost in COSTS.values())
