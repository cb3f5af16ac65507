"""What samplers are told of a study, and what they propose: over the whole table."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import optuna
import pytest
import tiny
from transformers import BertConfig

from petl.configuration import Configuration, Training
from petl.design import Design
from petl.measurements import Measurements
from petl.presets import parse
from search.optimizer import samplers
from search.optimizer.observations import MOST_REJECTED, UNFINISHED, Observation, observations
from search.optimizer.samplers import GP_TRIALS, NAMES, SAMPLERS, Proposer
from search.trials.objectives import objectives
from search.trials.record import Proposal, Rejected, State
from search.trials.records import Records
from spaces.space import Point, decode, resolve

BACKBONE = tiny.described(BertConfig(num_hidden_layers=4, hidden_size=32, intermediate_size=64, num_attention_heads=4))


SPACE = resolve("lora", {"sites": ["query", "value"], "sizes": [2, 8, 32]}, Training(epochs=3))
OBJECTIVES = objectives("accuracy", "stored_parameters")
LIMITS = {"stored_parameters": 1_000.0}


def size(configuration: Configuration) -> float:
    return 10.0 * sum(part.size for part in configuration.design.modifications)


def found(seed: int = 0) -> Point:
    generator = np.random.default_rng(seed)
    coordinates = {
        "query.size": int(generator.integers(4)),
        "value.size": int(generator.integers(4)),
        "scale": int(generator.integers(3)),
        "first_layer": int(generator.integers(4)),
        "learning_rate": float(np.exp(generator.uniform(np.log(1e-4), np.log(1e-2)))),
    }
    return decode(SPACE, coordinates, BACKBONE)


def origin(point: Point, *asides: Rejected) -> Proposal:
    return Proposal(
        coordinates=point.coordinates,
        distributions=point.distributions,
        counts={"stored_parameters": size(point.configuration)},
        rejected=asides,
    )


def aside(point: Point, stored: float, twin: int | None = None) -> Rejected:
    return Rejected(
        coordinates=point.coordinates,
        distributions=point.distributions,
        counts={"stored_parameters": stored},
        twin=twin,
    )


def finished(count: int) -> Records:
    """A study of `count` complete trials whose accuracy grows with size and falls off 1e-3."""
    records = Records.in_memory()
    for seed in range(count):
        point = found(seed)
        records.create(point.configuration, point.params, origin(point))
        rate = abs(math.log10(point.configuration.training.learning_rate / 1e-3))
        stored = size(point.configuration)
        accuracy = 0.5 + 0.05 * math.log1p(stored) - 0.1 * rate
        records.close(seed, State.COMPLETE, Measurements(accuracy=accuracy, stored_parameters=int(stored), epochs=3))
    return records


def proposer(name: str, seed: int = 0, **limits: float) -> Proposer:
    return Proposer(
        space=SPACE,
        backbone=BACKBONE,
        objectives=OBJECTIVES,
        count=lambda configuration: {"stored_parameters": size(configuration)},
        sampler=name,
        seed=seed,
        limits=limits,
    )


def test_a_sampler_is_told_what_a_study_is_worth() -> None:
    points = [found(seed) for seed in range(8)]
    records = Records.in_memory()
    records.create(Configuration(Design()), reference="head_only", proposal=Proposal(counts={"stored_parameters": 0.0}))
    for point in points[:5]:
        records.create(point.configuration, point.params, origin(point))
    records.create(Configuration(parse("bitfit")), {}, Proposal(counts={"stored_parameters": 5.0}), name="bitfit")
    asides = (aside(points[5], 5_000.0), aside(points[6], 40.0, twin=1), aside(points[7], 50.0, twin=3))
    records.create(points[7].configuration, {}, origin(points[7], *asides))
    records.close(0, State.COMPLETE, Measurements(accuracy=0.01))  # a reference: tells nothing, not even the worst
    records.close(1, State.COMPLETE, Measurements(accuracy=0.9, stored_parameters=int(size(points[0].configuration))))
    records.rung(2, 1.0, 0.3)
    records.rung(2, 2.0, 0.4, stop=True)
    records.close(2, State.PRUNED)
    records.rung(3, 1.0, 0.95)  # still running
    records.close(4, State.FAIL, failure="diverged")
    records.close(5, State.PRUNED)  # before its first rung: nothing is known of it
    observed = observations(records, Proposal(rejected=[aside(points[6], 2_000.0)]), OBJECTIVES, LIMITS)

    def cost(point: Point) -> float:
        return math.log1p(size(point.configuration) / 1_000)

    assert [row.coordinates for row in observed] == [points[index].coordinates for index in (0, 1, 2, 3, 5, 6, 7, 7, 6)]
    assert [row.values for row in observed] == [
        (0.9, cost(points[0])),
        (0.4, cost(points[1])),  # its last rung
        None,
        (0.4, cost(points[3])),  # failed: the worst score
        (0.4, math.log1p(5.0)),  # outside the limits: the worst score, the cost that it would have
        (0.9, cost(points[0])),  # the twin's answer
        None,  # the twin still runs
        None,
        (0.4, math.log1p(2.0)),
    ]
    above = [row.constraints["stored_parameters"] > 0 for row in observed]
    assert above == [False, False, False, False, True, False, False, False, True]
    assert observed[4].constraints["stored_parameters"] == pytest.approx(math.log(5_001 / 1_001))


def test_only_the_latest_asides_are_told() -> None:
    records = finished(2)
    point = found(2)
    records.create(point.configuration, {}, origin(point, *(aside(point, float(n)) for n in range(70))))
    mine = Proposal(rejected=[aside(point, float(70 + n)) for n in range(70)])
    observed = observations(records, mine, OBJECTIVES, {})
    costs = [row.values[1] for row in observed if row.values][2:]
    assert costs == [math.log1p(n / 1_000) for n in range(140 - MOST_REJECTED, 140)]
    assert len(observed) == 3 + MOST_REJECTED


@pytest.mark.parametrize("name", NAMES)
def test_the_same_records_give_the_same_point_and_others_another(name: str) -> None:
    records, few = finished(12), finished(5)
    first = proposer(name).ask(records, Proposal())
    assert proposer(name).ask(records, Proposal()) == first
    assert proposer(name).ask(finished(12), Proposal()) == first
    # a GP's optimum may be the same from every seed: its first, random points are not
    assert proposer(name, seed=1).ask(few, Proposal()) != proposer(name).ask(few, Proposal()) != first
    nothing_new = Proposal(rejected=[aside(first, 0.0, twin=0)])
    assert proposer(name).ask(records, nothing_new).coordinates != first.coordinates


@pytest.mark.parametrize("name", NAMES)
def test_proposals_are_of_the_space_and_distinct_from_the_first_on(name: str) -> None:
    records = Records.in_memory()
    for number in range(4):
        point = proposer(name).ask(records, Proposal())
        assert decode(SPACE, point.coordinates, BACKBONE) == point
        records.create(point.configuration, point.params, origin(point))
        if number != 1:  # trial 1 goes on running
            records.close(number, State.COMPLETE, Measurements(accuracy=0.5 + number / 10))
    assert len({record.configuration.key for record in records.all() if record.configuration}) == 4


@pytest.mark.parametrize("name", NAMES)
def test_running_stopped_failed_and_refused_trials_are_digested(name: str) -> None:
    records = finished(12)
    for number, (state, failure) in enumerate(
        [(State.PRUNED, None), (State.FAIL, "out of memory"), (State.RUNNING, None)], start=12
    ):
        point = found(number)
        records.create(point.configuration, {}, origin(point, aside(found(50 + number), 1e6)))
        if state is State.PRUNED:
            records.rung(number, 1.0, 0.2, stop=True)
        if state is not State.RUNNING:
            records.close(number, state, failure=failure)
    asked = proposer(name, stored_parameters=1_000.0).ask(records, Proposal(rejected=[aside(found(90), 1e7)]))
    assert asked.coordinates.keys() == found(0).coordinates.keys()


@pytest.mark.parametrize("name", ["tpe", "nsga2", "gp"])
def test_a_limit_is_learned(name: str) -> None:
    """Half of the space lies outside; told so of 40 points, a sampler proposes inside far more often."""
    records = Records.in_memory()
    outside: list[Rejected] = []
    for seed in range(80):
        point = found(seed)
        if size(point.configuration) > 100:
            outside.append(aside(point, size(point.configuration)))
            continue
        number = records.create(point.configuration, {}, origin(point, *outside)).number
        outside = []
        measured = Measurements(
            accuracy=0.5 + size(point.configuration) / 1_000, stored_parameters=int(size(point.configuration))
        )
        records.close(number, State.COMPLETE, measured)
    asked = [proposer(name, seed, stored_parameters=100.0).ask(records, Proposal()) for seed in range(8)]
    inside = sum(size(point.configuration) <= 100 for point in asked)
    share = np.mean([size(found(seed).configuration) <= 100 for seed in range(400)])
    assert inside >= 6
    assert share < 0.5


def test_nsga2_breeds_after_its_first_generation(monkeypatch: pytest.MonkeyPatch) -> None:
    """On trials that are told anew it finds no generation of its own, and would stay random for ever."""
    bred: list[int] = []
    original = optuna.samplers.NSGAIISampler.get_parent_population

    def spy(self: object, study: object, generation: int) -> list[optuna.trial.FrozenTrial]:
        parents = original(self, study, generation)  # type: ignore[arg-type]
        bred.append(len(parents))
        return parents

    monkeypatch.setattr(optuna.samplers.NSGAIISampler, "get_parent_population", spy)
    proposer("nsga2").ask(finished(samplers.POPULATION - 1), Proposal())
    assert set(bred) == {0}
    bred.clear()
    proposer("nsga2").ask(finished(samplers.POPULATION + 1), Proposal())
    assert max(bred) == samplers.POPULATION


def test_auto_is_front_and_with_a_second_cost_gp_up_to_some_hundred_trials() -> None:
    records = finished(15)
    assert proposer("auto").ask(records, Proposal()) == proposer("front").ask(records, Proposal())
    assert proposer("auto").ask(records, Proposal()) != proposer("gp").ask(records, Proposal())
    of_three, gp = (replace(proposer(name), objectives=THREE) for name in ("auto", "gp"))
    assert of_three.ask(records, Proposal()) == gp.ask(records, Proposal())
    assert isinstance(SAMPLERS["auto"](0, GP_TRIALS), optuna.samplers.GPSampler)
    assert isinstance(SAMPLERS["auto"](0, GP_TRIALS + 1), optuna.samplers.TPESampler)


def test_random_draws_are_uniform_and_repeatable() -> None:
    records = finished(3)
    drawn = list(proposer("gp").draw(records, Proposal(), 400))
    assert drawn[:5] == list(proposer("gp").draw(records, Proposal(), 5))
    for value in range(4):  # 100 expected of each, standard deviation 8.7
        assert abs(sum(point.coordinates["query.size"] == value for point in drawn) - 100) < 44


def test_optuna_stays_as_loud_as_it_was(capfd: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder) -> None:
    before = optuna.logging.get_verbosity()
    proposer("gp").ask(finished(11), Proposal())
    assert optuna.logging.get_verbosity() == before
    assert capfd.readouterr() == ("", "")
    assert not [warning for warning in recwarn if "optuna" in warning.filename]


def test_an_unknown_sampler_is_refused() -> None:
    with pytest.raises(ValueError, match="one of random, tpe, nsga2, gp, auto, front; received 'cmaes'"):
        proposer("cmaes")


def test_a_trial_is_told_without_values() -> None:
    assert Observation({}, {}, {}).values is None


THREE = objectives("accuracy", "stored_parameters", "latency_ms")


def finished_by_three(count: int) -> Records:
    """As `finished`, with a latency that has nothing to do with size; two stopped trials and a failed one after it."""
    records = Records.in_memory([each.name for each in THREE])
    for record in finished(count).all():
        assert record.measurements
        records.create(record.configuration, record.params, origin(found(record.number)))
        latency = 2.0 + record.number % 5
        records.close(record.number, State.COMPLETE, replace(record.measurements, latency_ms=latency))
    for number in range(count, count + 3):
        point = found(number)
        records.create(point.configuration, point.params, origin(point))
        if number < count + 2:
            records.rung(number, 1.0, 0.4, stop=True)
        records.close(number, State.PRUNED if number < count + 2 else State.FAIL, failure=None)
    return records


def test_what_is_not_measured_is_told_as_the_usual_or_the_worst() -> None:
    """Latencies are 2, 3, 4, 5, 6, 2: the median is 3.5, the worst 6. Sizes are exact for all."""
    observed = observations(finished_by_three(6), Proposal(), THREE, {})
    assert [row.values[2] for row in observed if row.values] == [2, 3, 4, 5, 6, 2, 3.5, 3.5, 6]
    sizes = [math.log1p(size(found(seed).configuration) / 1_000) for seed in range(9)]
    assert [row.values[1] for row in observed if row.values] == sizes
    assert [row.values[0] for row in observed if row.values][6:8] == [0.4, 0.4]
    refused = observations(finished_by_three(6), Proposal(rejected=[aside(found(20), 5_000.0)]), THREE, LIMITS)[
        -1
    ].values
    assert refused
    assert refused[1:] == (math.log1p(5.0), 6)


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_of_optunas_takes_three_objectives(name: str) -> None:
    asking = replace(proposer(name, stored_parameters=1_000.0), objectives=THREE)
    records = finished_by_three(20)
    point = asking.ask(records, Proposal(rejected=[aside(found(90), 1e7)]))
    assert decode(SPACE, point.coordinates, BACKBONE) == point
    assert asking.ask(records, Proposal(rejected=[aside(found(90), 1e7)])) == point
    assert replace(asking, seed=1).ask(records, Proposal(rejected=[aside(found(90), 1e7)])) != point


@pytest.mark.parametrize("unfinished", UNFINISHED)
def test_unfinished_trials_have_a_value_of_the_score(unfinished: str) -> None:
    """Of the two stopped trials; their costs are what they would be without it."""
    observed = [
        row.values for row in observations(finished_by_three(12), Proposal(), THREE, {}, unfinished) if row.values
    ]
    assert [values[2] for values in observed[12:]] == ([6] if unfinished == "ignored" else [3.5, 3.5, 6])
    assert all(math.isfinite(value) for values in observed for value in values)


@pytest.mark.parametrize("name", ["tpe", "gp"])
def test_a_second_cost_is_searched_for(name: str) -> None:
    """Score and size are the same everywhere and latency falls with the rate: low latencies are proposed."""
    records = Records.in_memory([each.name for each in THREE])
    for seed in range(30):
        point = found(seed)
        records.create(point.configuration, {}, replace(origin(point), counts={"stored_parameters": 100.0}))
        latency = -math.log10(point.configuration.training.learning_rate)  # 2 to 4, the mean is 3
        records.close(seed, State.COMPLETE, Measurements(accuracy=0.5, stored_parameters=100, latency_ms=latency))
    asked = [replace(proposer(name, seed), objectives=THREE).ask(records, Proposal()) for seed in range(8)]
    assert np.mean([-math.log10(point.configuration.training.learning_rate) for point in asked]) < 2.5


def test_the_sampler_front_refuses_a_second_cost() -> None:
    with pytest.raises(ValueError, match="counts one cost; with a second cost take random, tpe, nsga2, gp, auto"):
        replace(proposer("front"), objectives=THREE)
