"""Points that a space does not have, spaces that fail, and numbers of NumPy's."""

from __future__ import annotations

import re
import warnings
from dataclasses import replace
from typing import Any

import numpy as np
import optuna
import pytest
from loop import TRAINING, count, facts, plan, run, train

from petl.configuration import Configuration
from petl.design import Design, DesignError
from petl.presets import lora, parse
from search.optimizer.budget import Budget
from search.optimizer.search import Search, SearchError
from search.trials.record import State
from search.trials.records import Records
from search.trials.resolved import Enqueued
from spaces.dimensions import BrokenSpaceError, SpaceError


def refusing(error: type[Exception]) -> Any:
    def space(trial: Any, backbone: Any) -> Configuration:
        rank, times = trial.suggest_int("rank", 1, 16), trial.suggest_int("times", 1, 16)
        if rank * times > 60:
            raise error(f"rank {rank} times {times} is too much")
        return Configuration(parse(f"lora:rank={rank}"), replace(TRAINING, learning_rate=1e-4 * times))

    return space


@pytest.mark.parametrize(
    ("error", "sampler"),
    [(optuna.TrialPruned, "random"), (DesignError, "tpe"), (SpaceError, "front"), (optuna.TrialPruned, "front")],
)
def test_a_point_that_the_space_does_not_have_is_told_and_passed_over(error: type[Exception], sampler: str) -> None:
    records = Records.in_memory()
    changes = {"space": refusing(error), "sampler": sampler, "limits": {"stored_percent": 50.0}, "count": counted}
    trials = run(Search(records, plan(budget=Budget(trials=12), **changes)))
    assert len(trials) == 12
    assert all(state is State.COMPLETE for state in (trial.state for trial in trials))
    rejected = [each for trial in trials for each in records.proposal(trial.number).rejected]
    refused = [each for each in rejected if each.coordinates["rank"] * each.coordinates["times"] > 60]
    assert refused or sampler == "front"  # which looks before it proposes
    again = Records.in_memory()
    for _ in range(12):  # a driver a trial
        search = Search(again, plan(budget=Budget(trials=12), **changes))
        train(search, search.next().record)  # type: ignore[union-attr]
    assert facts(again) == facts(records)


def counted(configuration: Configuration) -> dict[str, float]:
    return dict(count(configuration))


def test_a_space_without_any_point_says_so() -> None:
    def space(trial: Any, backbone: Any) -> Configuration:
        raise optuna.TrialPruned(f"{trial.suggest_int('rank', 1, 4)} is too much")

    for sampler in ("random", "front"):
        with pytest.raises(SpaceError, match=r"none of .* points at random; the last: .*is too much"):
            Search(Records.in_memory(), plan(space=space, sampler=sampler)).next()


def dynamic(trial: Any, backbone: Any) -> Configuration:
    choices = ["attention", "ffn"] if trial.suggest_int("a", 0, 1) else ["both", "ffn"]
    rank, where = trial.suggest_int("rank", 1, 16), trial.suggest_categorical("where", choices)
    return Configuration(parse(f"lora:rank={rank},where={where}"))


def missing(trial: Any, backbone: Any) -> Configuration:
    return {0: Configuration(Design())}[trial.suggest_int("rank", 1, 16)]


def nothing(trial: Any, backbone: Any) -> Any:
    trial.suggest_int("rank", 1, 16)


def numpy_choices(trial: Any, backbone: Any) -> Configuration:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trial.suggest_categorical("rank", list(np.array([1, 2])))
    return Configuration(parse("lora:rank=2"))


@pytest.mark.parametrize("sampler", ["random", "tpe", "front"])
@pytest.mark.parametrize(
    ("space", "why"),
    [
        (dynamic, "where.*elsewhere|ValueError"),
        (missing, "KeyError"),
        (nothing, "NoneType"),
        (numpy_choices, "not JSON serializable"),
    ],
)
def test_a_broken_space_ends_the_study_and_names_the_point(space: Any, why: str, sampler: str) -> None:
    with pytest.raises(BrokenSpaceError, match=why) as refusal:
        run(Search(Records.in_memory(), plan(space=space, sampler=sampler, budget=Budget(trials=30))))
    assert re.search(r"at \{'(a|rank)': ", str(refusal.value))


def test_numbers_of_numpy_are_numbers() -> None:
    def space(trial: Any, backbone: Any) -> Configuration:
        rank = np.array([1, 2, 4, 8])[trial.suggest_int("i", 0, 3)]
        rate = np.float64(trial.suggest_float("rate", 1e-4, 1e-3))
        trial.set_user_attr("rank", rank)
        return Configuration(lora(rank=rank), replace(TRAINING, learning_rate=rate, batch_size=np.int64(16)))

    trials = run(Search(Records.in_memory(), plan(space=space)))
    assert len(trials) == 8
    assert {type(trial.params["rank"]) for trial in trials} == {int}
    for trial in trials:
        assert trial.configuration is not None
        same = Configuration(
            parse(f"lora:rank={trial.params['rank']}"),
            replace(TRAINING, learning_rate=float(trial.params["rate"]), batch_size=16),
        )
        assert trial.configuration.key == same.key


@pytest.mark.parametrize("sampler", ["random", "front"])
def test_a_point_that_trains_nothing_is_outside_the_space(sampler: str) -> None:
    """As the head of a model that generates text: `head only` changes nothing there."""

    def trains(configuration: Configuration) -> dict[str, float]:
        counts = dict(count(configuration))
        return {**counts, "trained_parameters": counts["stored_parameters"]}

    records = Records.in_memory()
    search = Search(records, plan(count=trains, sampler=sampler, budget=Budget(trials=10)))
    assert all(trial.configuration and trial.configuration.design.modifications for trial in run(search))
    assert search.counted == 10
    for item in (Enqueued("head_only", Configuration(Design(), TRAINING)),):
        with pytest.raises(SearchError, match=r"head_only: it trains nothing of"):
            Search(Records.in_memory(), plan(count=trains, enqueued=(item,)))


def test_many_choices_are_not_all_looked_at_for_one_proposal() -> None:
    calls = 0

    def space(trial: Any, backbone: Any) -> Configuration:
        nonlocal calls
        calls += 1
        number = int(trial.suggest_categorical("recipe", [str(number) for number in range(500)]))
        training = replace(TRAINING, learning_rate=1e-4 * (1 + number))
        return Configuration(parse(f"lora:rank={1 + number % 16}"), training)

    search = Search(Records.in_memory(), plan(space=space, sampler="front"))
    search.next()
    assert calls < 300
