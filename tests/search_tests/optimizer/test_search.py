"""The search by a plain loop over a made-up objective, with restarts at every point."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
from loop import BACKBONE, OPTIONS, TRAINING, count, facts, hand, measured, plan, run, score, train
from optuna.trial import BaseTrial
from scope import sampled

from petl.backbones.model import Backbone
from petl.configuration import Configuration
from petl.design import Design
from petl.measurements import Measurements
from petl.presets import parse
from search.optimizer import search as core
from search.optimizer.budget import Budget
from search.optimizer.rungs import Asha, Dominated, Halving, Never, ParetoAsha, Rule
from search.optimizer.search import Plan, Search, SearchError
from search.optimizer.steps import DONE, WAIT, Decision, Resume, Start
from search.storage.studies import create_study, open_study
from search.trials.record import State
from search.trials.records import Records
from search.trials.resolved import Enqueued
from spaces.dimensions import SpaceError
from spaces.space import SPACES, decode, encode, resolve


def test_budget_counts_sampled_trials_and_not_references() -> None:
    references = {"majority": None, "head_only": Configuration(Design(), TRAINING)}
    done = run(Search(Records.in_memory(), plan(references=references)))
    assert [record.reference for record in done[:3]] == ["majority", "head_only", None]
    assert len(done) == 2 + 8
    assert all(record.state is State.COMPLETE for record in done)
    assert len({record.configuration.key for record in done if record.configuration}) == 9


def test_enqueued_designs_come_before_sampled_ones_and_count() -> None:
    design = parse("lora:rank=4,scale=2")
    configuration = Configuration(design, TRAINING)
    item = Enqueued("lora", configuration, encode("unified", design, 1e-3, BACKBONE, OPTIONS))
    assert item.coordinates
    other = Enqueued("houlsby:size=10", Configuration(parse("houlsby:size=10"), TRAINING))
    done = run(Search(Records.in_memory(), plan(enqueued=[item, other, item])))
    assert [record.name for record in done[:3]] == ["lora", "houlsby:size=10", ""]
    assert done[0].params["low_rank.attention"] == 4  # the size, not its index
    assert done[1].params == {}
    assert len(done) == 8


def test_enqueued_designs_outside_the_limits_are_refused_all_at_once() -> None:
    items = [Enqueued(text, Configuration(parse(text), TRAINING)) for text in ("houlsby:size=64", "mam", "bitfit")]
    with pytest.raises(SearchError, match=r"houlsby:size=64: stored_percent 5.12 > 5\n  mam: stored_percent"):
        Search(Records.in_memory(), plan(enqueued=items, limits={"stored_percent": 5.0}))


def test_coordinates_of_another_configuration_are_refused() -> None:
    coordinates = encode("unified", parse("bitfit"), 1e-3, BACKBONE, OPTIONS)
    item = Enqueued("lora", Configuration(parse("lora:rank=4"), TRAINING), coordinates)
    with pytest.raises(SearchError, match="lora: its coordinates are those of another"):
        Search(Records.in_memory(), plan(enqueued=[item]))


@pytest.mark.parametrize("sampler", ["random", "tpe", "front"])
def test_no_trial_lies_outside_the_limits(sampler: str) -> None:
    limits = {"stored_parameters": 500.0}
    records = Records.in_memory()
    search = Search(records, plan(limits=limits, sampler=sampler, budget=Budget(trials=12)))
    done = run(search)
    assert len(done) == 12
    assert all(count(record.configuration)["stored_parameters"] <= 500 for record in done if record.configuration)
    asides = [aside for record in done for aside in records.proposal(record.number).rejected]
    assert bool(asides) is (sampler != "front")  # which proposes nothing outside
    assert all(aside.counts["stored_parameters"] > 500 for aside in asides if aside.twin is None)


def test_references_are_exempt_from_limits_and_rungs() -> None:
    full = Configuration(parse("lora:rank=512"), TRAINING)
    chosen = plan(references={"full": full}, limits={"stored_percent": 0.5}, rule=Asha(epochs=3, first_rung=1))
    done = run(Search(Records.in_memory(), chosen))
    assert done[0].reference == "full"
    assert done[0].state is State.COMPLETE
    assert done[0].rungs.keys() == {1.0}  # where it validates as a trial does, and trains on whatever it reached
    assert done[0].measurements


def test_a_limit_on_what_training_tells_is_refused() -> None:
    with pytest.raises(SearchError, match="one of stored_parameters, stored_percent; received 'seconds'"):
        Search(Records.in_memory(), plan(limits={"seconds": 10.0}))


def test_a_space_outside_its_limits_says_what_to_change(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(core, "DRAWS", 50)
    space = resolve("unified", {**OPTIONS, "methods": ["ffn", "bias"]}, TRAINING)

    def large(configuration: Configuration) -> Mapping[str, float]:
        return {"stored_percent": 9.0}

    with pytest.raises(SearchError, match=r"no point of the space was within stored_percent <= 5 .* raise the limit"):
        Search(Records.in_memory(), plan(space=space, count=large, limits={"stored_percent": 5.0})).next(1)


@pytest.mark.parametrize("sampler", ["random", "tpe", "nsga2", "gp", "front"])
def test_a_finite_space_ends_when_it_is_exhausted(sampler: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(core, "PROPOSALS", 5)
    monkeypatch.setattr(core, "DRAWS", 100)
    space = resolve("prefix", {"lengths": [2], "learning_rate": [1e-3, 1e-3], "first_layers": [0, 2]}, TRAINING)
    records = Records.in_memory()
    search = Search(records, plan(space=space, sampler=sampler))
    done = run(search)
    # length 0 is one configuration whatever its first layer; length 2 has two
    assert sorted(record.configuration.design.describe() for record in done if record.configuration) == [
        "head only",
        "prefix 2",
        "prefix 2, top 2",
    ]
    assert "exhausted after 3 of 8" in search.note
    assert search.next(1) is DONE


def test_a_twin_that_still_runs_is_not_started_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(core, "DRAWS", 100)
    space = resolve("prefix", {"lengths": [2], "learning_rate": [1e-3, 1e-3], "first_layers": [0]}, TRAINING)
    search = Search(Records.in_memory(), plan(space=space, budget=Budget(trials=8, concurrent=8)))
    first, second = search.next(8), search.next(7)
    assert isinstance(first, Start)
    assert isinstance(second, Start)
    assert search.next(6) is WAIT
    for step in (first, second):
        search.finish(step.record.number, measured(step.record.configuration))
    assert search.next(8) is DONE
    assert len(search.records.all()) == 2


HEAD_ONLY = Configuration(Design(), TRAINING)
LORA = Configuration(parse("lora:rank=4"), TRAINING)
HALVING = Halving(epochs=3, eta=2, first_rung=0.75, trials=8, min_full=1)


def twins(**changes: object) -> Plan:
    """A reference, and two enqueued designs of which the first is the same."""
    enqueued = [Enqueued("mine", LORA), Enqueued("head", HEAD_ONLY)]
    return plan(**{"references": {"lora": LORA, "majority": None}, "enqueued": enqueued, **changes})


@pytest.mark.parametrize("rule", [Never(), HALVING], ids=["none", "halving"])
def test_a_trial_is_given_the_result_of_the_reference_that_is_the_same(rule: Rule) -> None:
    search = Search(Records.in_memory(), twins(rule=rule))
    for _ in range(2):
        step = search.next()
        assert isinstance(step, Start)
        assert step.twin is None
        hand(search, step)
    step = search.next()
    assert step == Start(search.get(2), twin=0)
    assert step.record.name == "mine"
    hand(search, step)
    reference, trial = search.get(0), search.get(2)
    assert (trial.state, trial.rungs, trial.measurements) == (State.COMPLETE, reference.rungs, reference.measurements)
    assert tuple(trial.rungs) == rule.rungs
    assert search.counted == 1
    step = search.next()
    assert isinstance(step, Start)
    assert (step.record.name, step.twin) == ("head", None)


def test_one_that_is_given_its_result_has_been_through_all_rungs() -> None:
    """As one that was promoted at each: the others that a halving trains in full are one fewer."""
    bad = Configuration(parse("houlsby:size=64"), replace(TRAINING, learning_rate=1.0))
    full = []
    for references in ({}, {"bad": bad}):
        chosen = plan(rule=HALVING, enqueued=[Enqueued("bad", bad)], references=references)
        done = [record for record in run(Search(Records.in_memory(), chosen)) if not record.reference]
        assert len(done) == 8
        full.append([record.name for record in done if record.state is State.COMPLETE])
    assert full == [["", ""], ["bad", ""]]


def test_a_trial_waits_for_the_reference_that_is_the_same_while_others_train() -> None:
    records, chosen = Records.in_memory(), twins(budget=Budget(trials=3, concurrent=4))
    search = Search(records, chosen)
    steps = [search.next(free) for free in (4, 3, 2)]
    assert [step.record.number for step in steps if isinstance(step, Start)] == [0, 1, 3]
    assert search.get(2).name == "mine"
    assert search.active == {0, 1, 3}
    again = Search(records, chosen)  # the driver was killed: the twin is handed out no sooner
    assert [step.record.number for step in map(again.next, (4, 3, 2)) if isinstance(step, Resume)] == [0, 1, 3]
    for number in (1, 3):
        again.finish(number, measured(again.configuration(number)))
    last = again.next(3)
    assert isinstance(last, Start)
    assert last.record.number == 4
    again.finish(4, measured(last.record.configuration))
    assert again.next(3) is WAIT
    assert not again.done
    again.finish(0, measured(LORA))
    assert again.next(4) == Resume(again.get(2), twin=0)


@pytest.mark.parametrize("failure", [None, "out of memory"])
def test_one_that_waited_trains_where_its_twin_has_nothing_to_give(failure: str | None) -> None:
    search = Search(Records.in_memory(), twins(budget=Budget(trials=1, concurrent=4)))
    assert [step.record.number for step in map(search.next, (4, 3)) if isinstance(step, Start)] == [0, 1]
    assert search.next(2) is WAIT
    search.finish(0, measured(LORA, epochs=1.0), failure)
    assert search.get(0).state is not State.COMPLETE
    assert search.next(4) == Resume(search.get(2))


def test_a_reference_that_came_later_is_given_the_result_of_the_trial() -> None:
    records = Records.in_memory()
    run(Search(records, plan(enqueued=[Enqueued("mine", LORA)], budget=Budget(trials=1))))
    search = Search(records, twins(budget=Budget(trials=1)))
    assert search.next() == Start(search.get(1), twin=0)
    assert search.get(1).reference == "lora"


def test_a_reference_that_came_later_waits_for_the_trial_while_it_trains() -> None:
    records, rule = Records.in_memory(), Halving(epochs=3, first_rung=1.0, trials=1, min_full=1)
    begun = Search(records, plan(rule=rule, enqueued=[Enqueued("mine", LORA)], budget=Budget(trials=1, concurrent=2)))
    assert isinstance(begun.next(), Start)
    assert begun.report(0, 1.0, 0.5) is Decision.CONTINUE
    search = Search(records, twins(rule=rule, budget=Budget(trials=1, concurrent=2)))
    assert [type(step) for step in (search.next(2), search.next(1))] == [Resume, Start]
    assert search.active == {0, 2}
    search.finish(2, measured(None))
    assert search.next() is WAIT
    search.finish(0, measured(LORA))
    assert search.next() == Resume(search.get(1), twin=0)


def test_another_seed_is_another_training() -> None:
    other = replace(LORA, seed=1)
    done = []
    search = Search(Records.in_memory(), twins(enqueued=[Enqueued("mine", other)], budget=Budget(trials=1)))
    while isinstance(step := search.next(), Start):
        done.append(step.twin)
        hand(search, step)
    assert done == [None, None, None]


def test_concurrency_is_capped_and_counts_running_trials() -> None:
    search = Search(Records.in_memory(), plan(budget=Budget(trials=3, concurrent=2)))
    first, second = search.next(5), search.next(4)
    assert isinstance(first, Start)
    assert isinstance(second, Start)
    assert search.active == {0, 1}
    assert search.next(3) is WAIT
    assert search.next(0) is WAIT
    train(search, first.record)
    third = search.next(4)
    assert isinstance(third, Start)
    assert search.next(3) is WAIT
    for step in (second, third):
        train(search, step.record)
    assert search.next(5) is DONE


def test_what_devices_were_held_for_outlives_a_driver_that_is_killed() -> None:
    """But for its last minute; nothing but the clock has to happen for that."""
    now, records = [0.0], Records.in_memory()
    chosen = plan(budget=Budget(trials=3, concurrent=2, devices=4.0))
    search = Search(records, chosen, clock=lambda: now[0])
    assert isinstance(search.next(2), Start)
    assert isinstance(search.next(1), Start)
    for now[0] in range(0, 3_700, 10):
        assert search.next(1) is WAIT
    killed = Search(records, chosen, clock=lambda: now[0])
    assert 2 * 4 * 3_600 <= killed.meter.device_hours * 3600 <= search.meter.device_hours * 3600


def test_money_is_what_devices_cost() -> None:
    """Two devices at 3 an hour each: 6 an hour, so 2 are spent after 20 minutes."""
    now = [0.0]
    chosen = plan(budget=Budget(trials=3, devices=2.0, device_hours=1.0, money=2.0, price=3.0))
    search = Search(Records.in_memory(), chosen, clock=lambda: now[0])
    assert isinstance(search.next(1), Start)
    now[0] = 1_199.0
    assert search.meter.spent() == ""
    now[0] = 1_201.0
    assert search.meter.spent() == "2 of money"
    now[0] = 1_801.0
    assert search.meter.spent() == "1 device-hours"


def test_trials_that_an_earlier_driver_had_stopped_are_told_of() -> None:
    records = Records.in_memory()
    chosen = plan(rule=Asha(epochs=3, eta=2), budget=Budget(trials=3, concurrent=3))
    search = Search(records, chosen)
    for reached in (0.9, 0.1):
        step = search.next(1)
        assert isinstance(step, Start)
        search.report(step.record.number, 1.0, reached)
    assert records.stopped_at(1) is not None
    again = Search(records, chosen)
    assert [(record.number, record.state) for record in again.take_closed()] == [(1, State.PRUNED)]
    assert again.take_closed() == []


@pytest.mark.parametrize(
    ("limit", "more", "said"),
    [
        ({"hours": 1.0}, {"hours": 2.0}, "1 hours"),
        ({"device_hours": 8.0, "devices": 4.0}, {"device_hours": 16.0, "devices": 4.0}, "8 device-hours"),
    ],
)
def test_a_limit_is_hard_and_more_of_it_goes_on(limit: dict[str, float], more: dict[str, float], said: str) -> None:
    """Two trials at once on four devices each: eight device-hours are an hour."""
    now = [0.0]
    records = Records.in_memory()

    def searched(given: dict[str, float]) -> Search:
        chosen = plan(budget=Budget(trials=3, concurrent=2, **given), rule=Asha(epochs=3))  # type: ignore[arg-type]
        return Search(records, chosen, clock=lambda: now[0])

    search = searched(limit)
    assert isinstance(search.next(2), Start)
    assert isinstance(search.next(1), Start)
    now[0] = 3599.0
    assert search.report(0, 1.0, 0.5) is Decision.CONTINUE
    assert search.meter.spent() == ""
    now[0] = 3600.0
    assert search.meter.spent() == said
    assert search.next(1) is WAIT
    assert search.report(0, 2.0, 0.5) is Decision.PAUSE
    assert search.report(1, 3.0, 0.6) is Decision.CONTINUE  # it is at its end, and only has to say what it measured
    search.finish(1, measured(records.get(1).configuration))
    assert search.next(1) is DONE
    assert search.waiting == 1
    assert search.meter.device_hours == pytest.approx(2.0 * limit.get("devices", 1))

    assert searched(limit).next(1) is DONE
    again = searched(more)
    assert isinstance(again.next(1), Resume)
    train(again, records.get(0))
    assert [record.state for record in run(again)] == [State.COMPLETE] * 3


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_score_that_is_not_finite_fails_as_diverged(bad: float) -> None:
    search = Search(Records.in_memory(), plan(rule=Asha(epochs=3)))
    at_rung, at_end = search.next(1), search.next(1)
    assert isinstance(at_rung, Start)
    assert search.report(0, 1.0, bad) is Decision.STOP
    assert search.finish(0, stopped=True).failure == "diverged"
    at_end = search.next(1)
    assert isinstance(at_end, Start)
    closed = search.finish(1, measured(at_end.record.configuration, accuracy=bad))
    assert (closed.state, closed.failure) == (State.FAIL, "diverged")
    assert len(run(search)) == 8


def test_a_baseline_needs_no_cost() -> None:
    """It trains nothing whose latency could be measured; a design without a measured cost fails."""
    records = Records.in_memory(("accuracy", "latency_ms"))
    references = {"majority": None, "head_only": Configuration(Design(), TRAINING)}
    search = Search(records, plan(references=references, budget=Budget(trials=0, concurrent=2)))
    for state in (State.COMPLETE, State.FAIL):
        step = search.next(1)
        assert isinstance(step, Start)
        epochs = step.record.configuration.training.epochs if step.record.configuration else 0
        assert search.finish(step.record.number, Measurements(accuracy=0.5, epochs=epochs)).state is state


def test_failures_keep_their_reason_and_count() -> None:
    search = Search(Records.in_memory(), plan())
    step = search.next(1)
    assert isinstance(step, Start)
    assert search.finish(0, failure="out of memory").failure == "out of memory"
    assert search.finish(0, measured(step.record.configuration)).state is State.FAIL  # the first end stays
    step = search.next(1)
    assert isinstance(step, Start)
    assert search.finish(1, Measurements(loss=0.4, epochs=3)).failure == "accuracy was not measured"
    assert len(run(search)) == 8


def test_a_trial_short_of_its_epochs_is_not_complete() -> None:
    search = Search(Records.in_memory(), plan())
    step = search.next(1)
    assert isinstance(step, Start)
    assert search.finish(0, measured(step.record.configuration, epochs=2.9)).state is State.PRUNED
    step = search.next(1)
    assert isinstance(step, Start)
    assert search.finish(1, measured(step.record.configuration, epochs=3 - 1e-9)).state is State.COMPLETE


def test_asha_stops_what_is_not_among_the_best_third() -> None:
    search = Search(Records.in_memory(), plan(rule=Asha(epochs=3, eta=3), budget=Budget(trials=6, concurrent=6)))
    for _ in range(6):
        assert isinstance(search.next(6), Start)
    scores = [0.5, 0.4, 0.6, 0.55, 0.7, 0.65]
    decisions = [search.report(number, 1.0, value) for number, value in enumerate(scores)]
    # floor(n / 3), at least 1, may go on: the best of 1 to 5, then the best two of 6
    continues = [True, False, True, False, True, True]
    assert [decision is Decision.CONTINUE for decision in decisions] == continues
    # the same reports again are answered as they were, though more scores are there now
    assert [search.report(number, 1.0, 0.0) for number in range(6)] == decisions
    assert [record.rungs for record in search.records.all()] == [{1.0: value} for value in scores]


def test_halving_lets_trials_wait_promotes_the_best_and_closes_the_rest() -> None:
    """Four trials, two beyond epoch 1, in two waves."""
    rule = Halving(epochs=2, eta=2, first_rung=1, trials=4, min_full=1)
    search = Search(Records.in_memory(), plan(rule=rule, budget=Budget(trials=4)))
    for number, reached in enumerate((0.5, 0.6)):
        step = search.next(1)
        assert isinstance(step, Start)
        assert search.report(number, 1.0, reached) is (Decision.PAUSE if number == 0 else Decision.CONTINUE)
    assert search.records.get(0).state is State.PAUSED
    assert search.active == {1}
    search.finish(1, measured(step.record.configuration, accuracy=0.9))
    for number, reached in ((2, 0.4), (3, 0.3)):
        assert isinstance(search.next(1), Start)
        assert search.report(number, 1.0, reached) is Decision.PAUSE
        assert search.report(number, 1.0, reached) is Decision.PAUSE  # told again
    promoted = search.next(1)
    assert isinstance(promoted, Resume)
    assert promoted.record.state is State.RUNNING
    assert search.report(promoted.record.number, 1.0, 0.0) is Decision.CONTINUE  # what it had reported
    assert search.next(1) is WAIT
    assert search.take_closed() == []  # it may fail, and then another one goes on
    search.finish(promoted.record.number, measured(promoted.record.configuration))
    closed = {record.number: record.state for record in search.take_closed()}
    assert closed == dict.fromkeys({0, 2, 3} - {promoted.record.number}, State.PRUNED)
    assert search.take_closed() == []
    assert search.next(1) is DONE


def test_what_waits_when_the_hours_are_over_goes_on_when_there_are_more() -> None:
    now = [0.0]
    records = Records.in_memory()
    rule = Halving(epochs=3, eta=2, first_rung=1, trials=4, waves=1, min_full=1)
    chosen = plan(rule=rule, budget=Budget(trials=4, hours=1.0))
    search = Search(records, chosen, clock=lambda: now[0])
    for number in range(2):
        assert isinstance(search.next(1), Start)
        assert search.report(number, 1.0, 0.5) is Decision.PAUSE
    now[0] = 3600.0
    assert search.next(1) is DONE
    assert search.waiting == 2
    done = run(Search(records, replace(chosen, budget=Budget(trials=4, hours=2.0)), clock=lambda: now[0]))
    assert [record.state for record in done].count(State.COMPLETE) == 1
    assert [record.state for record in done].count(State.PRUNED) == 3


def test_where_there_is_no_room_the_worst_that_wait_are_given_up() -> None:
    room = [""]
    rule = Halving(epochs=3, eta=3, first_rung=1, trials=6, waves=1, min_full=1)
    search = Search(Records.in_memory(), plan(rule=rule, budget=Budget(trials=6)), lacking=lambda *asked: room[0])
    for number, reached in enumerate((0.5, 0.1, 0.6)):
        assert isinstance(search.next(1), Start)
        assert search.report(number, 1.0, reached) is Decision.PAUSE
    room[0] = "no room"
    given_up = []
    while search.next(1) is WAIT:
        given_up += [record.number for record in search.take_closed()]
    assert search.note == "no room"
    assert len(given_up) == 2
    assert set(given_up) < {0, 1, 2}
    room[0] = ""


def test_where_a_new_one_has_no_room_those_that_wait_go_on() -> None:
    """What goes on has its state on the disk already; nothing is given up that may be trained to its end."""
    rule = Halving(epochs=3, eta=3, first_rung=1, trials=12, waves=1, min_full=4)
    records = Records.in_memory()

    def lacking(configuration: Configuration | None, active: Collection[int], number: int | None) -> str:
        return "no room" if number is None and len(records.all()) >= 5 else ""

    search = Search(records, plan(rule=rule, budget=Budget(trials=12)), lacking=lacking)
    while (step := search.next(1)) is not DONE:
        if isinstance(step, Start | Resume):
            train(search, step.record)
    assert [record.state for record in records.all()].count(State.COMPLETE) == 4
    assert search.note == "no room"


@pytest.mark.parametrize("last", [False, True], ids=["first rung", "last level"])
def test_one_that_fails_after_its_promotion_makes_way_for_another(last: bool) -> None:
    """Eight of 24 are trained in full, also where the first seven that go on, or are nearly through, do fail."""
    epochs = 9.0 if last else 3.0
    rule = Halving(epochs=epochs, eta=3, first_rung=1, trials=24)
    assert rule.quotas == ((24, 8, 8) if last else (24, 8))
    space = resolve("unified", OPTIONS, replace(TRAINING, epochs=epochs))
    search = Search(Records.in_memory(), plan(space=space, rule=rule, budget=Budget(trials=24, concurrent=3)))
    failed = 0
    while search.next(1) is not DONE:
        while isinstance(search.next(1), Start | Resume):
            pass
        number = min(search.active)
        configuration = search.records.get(number).configuration
        assert configuration
        left = [rung for rung in rule.rungs if rung not in search.records.get(number).rungs]
        if all(search.report(number, rung, score(configuration, rung)) is Decision.CONTINUE for rung in left):
            failed += 1
            if failed <= 7:
                search.finish(number, failure="out of memory")
            else:
                search.finish(number, measured(configuration, epochs=epochs))
    states = [record.state for record in search.records.all()]
    assert states.count(State.COMPLETE) == 8
    assert states.count(State.FAIL) == 7
    assert states.count(State.PRUNED) == 9


def test_one_that_its_patience_ended_is_finished_though_the_hours_are_over() -> None:
    now = [0.0]
    search = Search(
        Records.in_memory(), plan(rule=Halving(epochs=3, trials=8), budget=Budget(trials=8, hours=1.0)), lambda: now[0]
    )
    step = search.next(1)
    assert isinstance(step, Start)
    now[0] = 3600.0
    assert search.report(0, 1.0, 0.5, over=True) is Decision.CONTINUE
    assert search.finish(0, measured(step.record.configuration)).state is State.COMPLETE


def test_a_rung_is_recognised_by_its_value() -> None:
    search = Search(Records.in_memory(), plan(rule=Asha(epochs=1, eta=3, first_rung=1 / 9)))
    assert isinstance(search.next(1), Start)
    first, second = search.rungs(0)
    search.report(0, first + 1e-12, 0.5)
    search.report(0, second - 1e-9, 0.5)
    assert tuple(search.records.get(0).rungs) == (first, second)


class KilledError(Exception):
    pass


def interrupted(records: Callable[[], Records], chosen: Plan, every: int) -> tuple[Records, int]:
    """Run with the search dropped and made anew after every `every` calls; the number of resumes."""
    resumes, handed = 0, []
    while True:
        calls = 0

        def after() -> None:
            nonlocal calls
            calls += 1
            if calls >= every:
                raise KilledError

        search = Search(records(), chosen)
        try:
            while isinstance(step := search.next(1), Start | Resume):
                if isinstance(step, Resume):
                    resumes += 1  # not a place to be killed: with every=1 nothing would ever train
                else:
                    handed.append(step.record.number)
                    after()
                hand(search, step, after)
            assert step is DONE
        except KilledError:
            continue
        assert handed == [record.number for record in search.records.all()]  # each started once
        return search.records, resumes


RULES = (
    Asha(epochs=3, eta=2, first_rung=0.75),
    ParetoAsha(epochs=3, eta=2, first_rung=0.75),
    Dominated(epochs=3, eta=2, first_rung=0.75),
    Halving(epochs=3, eta=2, first_rung=0.75, trials=14, min_full=2),
)


RESTARTS = sampled(
    "restarts by rule, sampler and calls between them",
    list(product(RULES, ["random", "tpe", "front"], [1, 2, 3, 5])),
    # after each call with all, more seldom with the defaults
    lambda case: case[2] == 1 and case[1] == ("front" if isinstance(case[0], Halving) else "random"),
)


@pytest.mark.parametrize(
    ("rule", "sampler", "every"),
    RESTARTS,
    ids=[f"{type(rule).__name__}-{sampler}-{every}" for rule, sampler, every in RESTARTS],
)
def test_restarts_lose_nothing_and_repeat_nothing(rule: Rule, sampler: str, every: int) -> None:
    """One worker, so that no order of arrival differs: the interrupted study equals the other exactly."""
    chosen = plan(
        sampler=sampler,
        rule=rule,
        limits={"stored_parameters": 2_000.0},
        references={"majority": None, "head_only": HEAD_ONLY, "lora": LORA},
        enqueued=[Enqueued("lora", LORA)],  # which is given the reference's result
        budget=Budget(trials=14),
    )
    whole = Records.in_memory()
    run(Search(whole, chosen))
    states = [record.state for record in whole.all()]
    assert State.PRUNED in states or isinstance(rule, Dominated)  # by half of what `front` proposes none may be
    assert State.COMPLETE in states
    cut = Records.in_memory()
    records, resumes = interrupted(lambda: cut, chosen, every)
    assert facts(records) == facts(whole)
    assert resumes > 0 or every > 3


def test_restarts_from_sqlite_equal_an_uninterrupted_study(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/store.db"
    create_study(url, "cut", ("accuracy", "stored_parameters"))
    chosen = plan(sampler="gp", rule=Asha(epochs=3), budget=Budget(trials=12))
    whole = Records.in_memory()
    run(Search(whole, chosen))
    records, _ = interrupted(lambda: open_study(url, "cut"), chosen, 4)
    assert facts(records) == facts(whole)


def test_running_trials_come_back_once_each() -> None:
    records = Records.in_memory()
    chosen = plan(budget=Budget(trials=5, concurrent=3), rule=Asha(epochs=3))
    search = Search(records, chosen)
    for free in (3, 2, 1):
        assert isinstance(search.next(free), Start)
    search.report(0, 1.0, 0.9)
    search.report(1, 1.0, 0.1)  # told to stop, and killed before it ended
    again = Search(records, chosen)
    assert records.get(1).state is State.PRUNED
    steps = [again.next(3), again.next(2)]
    assert [(type(step), step.record.number) for step in steps if isinstance(step, Resume)] == [
        (Resume, 0),
        (Resume, 2),
    ]
    assert steps[0].record.rungs == {1.0: 0.9}  # type: ignore[union-attr]
    assert isinstance(again.next(1), Start)
    assert again.next(0) is WAIT
    assert len(records.all()) == 4


def test_a_bad_budget_is_refused() -> None:
    with pytest.raises(ValueError, match="concurrent is at least 1; received 0"):
        Budget(trials=3, concurrent=0)
    with pytest.raises(ValueError, match="hours is at least 0; received nan"):
        Budget(trials=3, hours=math.nan)


def test_a_space_of_the_users_own_works(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that branches: its dimensions appear and vanish, and the stock samplers must cope."""
    from petl.design import Form, Modification, Site

    def branching(trial: object, backbone: Backbone, *, most: int) -> Configuration:
        if trial.suggest_categorical("form", ["bias", "prefix"]) == "bias":  # type: ignore[attr-defined]
            part = Modification(form=Form.BIAS, site=Site.MODEL)
        else:
            length = trial.suggest_int("length", 1, most)  # type: ignore[attr-defined]
            part = Modification(form=Form.PREFIX, site=Site.HEADS, composition="gate", size=length)
        return Configuration(Design((part,)), TRAINING)

    monkeypatch.setattr(core, "branching", branching, raising=False)
    for sampler, trials in (("gp", 8), ("tpe", 8), ("nsga2", 8), ("front", 14)):  # which has a model after ten
        space, budget = resolve("search.optimizer.search:branching", {"most": 400}), Budget(trials=trials)
        chosen = plan(space=space, sampler=sampler, rule=Never(), budget=budget)
        assert len(run(Search(Records.in_memory(), chosen))) == trials


def test_a_space_may_warn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Optuna warns where a step does not divide a range, and the user's own code of what it likes."""

    def stepped(trial: BaseTrial, backbone: Backbone) -> Configuration:
        size = trial.suggest_int("size", 1, 64, step=8)
        rate = trial.suggest_float("rate", 1e-4, 1e-2, log=True)
        warnings.warn("an old function", DeprecationWarning, stacklevel=1)
        return Configuration(parse(f"lora:rank={size}"), replace(TRAINING, learning_rate=rate))

    monkeypatch.setattr(core, "stepped", stepped, raising=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        search = Search(
            Records.in_memory(),
            plan(space=resolve("search.optimizer.search:stepped"), sampler="front", budget=Budget(trials=14)),
        )
        assert len(run(search)) == 14
        with pytest.raises(SpaceError, match="65"):
            decode(search.plan.space, {"size": 65, "rate": 1e-3}, BACKBONE)


def test_every_space_of_ours_runs() -> None:
    for name in SPACES:
        assert len(run(Search(Records.in_memory(), plan(space=resolve(name, {}, TRAINING))))) == 8


def test_without_room_nothing_starts_and_nothing_is_on_record() -> None:
    """A trial that finds no room waits for those that run; where none runs, the search is over for now."""
    asked: list[tuple[str | None, frozenset[int], int | None]] = []
    room = 2

    def lacking(configuration: Configuration | None, active: Collection[int], number: int | None) -> str:
        asked.append((configuration.key if configuration else None, frozenset(active), number))
        return "" if len(active) < room else "no room"

    records = Records.in_memory()
    search = Search(records, plan(budget=Budget(trials=4, concurrent=3)), lacking=lacking)
    first, second = search.next(1), search.next(1)
    assert isinstance(first, Start)
    assert isinstance(second, Start)
    assert search.next(1) is WAIT
    assert search.next(1) is WAIT
    assert len({key for key, active, _ in asked if len(active) == 2}) == 1  # the same one waits
    assert len(records.all()) == 2
    train(search, first.record)
    third = search.next(1)
    assert isinstance(third, Start)
    assert third.record.configuration
    assert third.record.configuration.key == asked[-1][0]
    train(search, second.record)

    again = Search(records, plan(budget=Budget(trials=4)), lacking=lacking)  # the third one was running
    room = 0
    assert again.next(1) is DONE
    assert asked[-1][1:] == (frozenset(), third.record.number)
    assert again.done
    assert again.note == "no room"
    assert records.get(third.record.number).state is State.RUNNING
    room = 1
    assert len(run(Search(records, plan(budget=Budget(trials=4)), lacking=lacking))) == 4


THREE = ("accuracy", "latency_ms", "stored_parameters")


def test_a_second_cost_must_be_measured_too() -> None:
    search = Search(Records.in_memory(THREE), plan(references={"majority": None}))
    for changes, state, failure in (
        ({}, State.COMPLETE, None),  # the baseline costs nothing
        ({"latency_ms": 2.0}, State.COMPLETE, None),
        ({}, State.FAIL, "latency_ms was not measured"),
        ({"latency_ms": math.inf}, State.FAIL, "diverged"),
        ({"latency_ms": 2.0, "stored_parameters": math.nan}, State.FAIL, "diverged"),
    ):
        step = search.next(1)
        assert isinstance(step, Start)
        done = search.finish(step.record.number, measured(step.record.configuration, **changes))
        assert (done.state, done.failure) == (state, failure)


@pytest.mark.parametrize("name", ["latency_ms", "seconds"])
def test_rules_go_by_the_cost_that_is_known(name: str) -> None:
    """Of two trials at a rung the better one dominates another only where it is also smaller."""

    def decided(*objectives: str) -> list[Decision]:
        chosen = plan(rule=Dominated(3, eta=3, first_rung=1), enqueued=items, budget=Budget(trials=2, concurrent=2))
        search = Search(Records.in_memory(objectives), chosen)
        found = []
        for accuracy in (0.6, 0.5):
            step = search.next(1)
            assert isinstance(step, Start)
            found.append(search.report(step.record.number, 1.0, accuracy))
        return found

    large, small = (Enqueued(text, Configuration(parse(text), TRAINING)) for text in ("houlsby:size=64", "lora:rank=2"))
    items = [large, small]
    assert decided("accuracy", name) == [Decision.CONTINUE, Decision.STOP]
    both = [Decision.CONTINUE, Decision.CONTINUE]
    assert decided("accuracy", "stored_parameters", name) == both
    assert decided("accuracy", name, "stored_parameters") == both


@pytest.mark.parametrize("sampler", ["random", "tpe", "nsga2", "gp"])
def test_a_search_with_a_second_cost_goes_on_after_every_restart(sampler: str) -> None:
    def trained(records: Records, every: bool) -> Records:
        chosen = plan(sampler=sampler, budget=Budget(trials=12), rule=Asha(3, eta=3, first_rung=1))
        search = Search(records, chosen)
        while isinstance(step := search.next(1), Start | Resume):
            record, configuration = step.record, step.record.configuration
            assert configuration
            if search.report(record.number, 1.0, score(configuration, 1.0)) is Decision.STOP:
                search.finish(record.number, stopped=True)
            else:
                search.finish(record.number, measured(configuration, latency_ms=1.0 + record.number % 3))
            search = Search(records, chosen) if every else search
        return records

    whole = trained(Records.in_memory(THREE), every=False)
    assert {record.state for record in whole.all()} == {State.COMPLETE, State.PRUNED}
    assert facts(trained(Records.in_memory(THREE), every=True)) == facts(whole)
