"""The sampler `front` against other libraries, sampling, and brute force."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import mpmath
import numpy as np
import pytest
from loop import BACKBONE, OPTIONS, TRAINING, count, measured, plan, score, searched
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from scipy.optimize import approx_fprime
from scope import sampled
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, Matern

from petl.configuration import Configuration
from petl.presets import parse
from search.optimizer.budget import Budget
from search.optimizer.front import gp, sampler
from search.optimizer.front import surrogate as surrogates
from search.optimizer.front.covering import toward
from search.optimizer.front.encoding import Encoding
from search.optimizer.front.gp import GaussianProcess, log_ehvi, log_improvement
from search.optimizer.front.sampler import Counted, propose
from search.optimizer.front.surrogate import fit
from search.optimizer.rungs import Halving
from search.optimizer.search import Search
from search.optimizer.steps import Decision, Resume, Start
from search.trials.pareto import hypervolume, non_dominated
from search.trials.record import State
from search.trials.records import Records
from search.trials.resolved import Enqueued
from spaces.absent import absent
from spaces.space import decode, resolve

DISTRIBUTIONS = {
    "rate": FloatDistribution(1e-4, 1e-1, log=True),
    "share": FloatDistribution(-1.0, 3.0),
    "half": FloatDistribution(0.0, 2.0, step=0.5),
    "units": IntDistribution(16, 512, log=True),
    "layers": IntDistribution(1, 5),
    "even": IntDistribution(2, 10, step=2),
    "only": IntDistribution(3, 3),
    "form": CategoricalDistribution(("a", None, 3)),
}


def test_what_is_drawn_is_of_the_space_and_stays_where_it_is() -> None:
    encoding, random = Encoding(DISTRIBUTIONS), np.random.default_rng(0)
    drawn = encoding.draw(random, 300)
    near = encoding.near(random, drawn[:5], 300)
    for rows in (drawn, near):
        points = [encoding.point(row) for row in rows]
        for point in points:
            for name, distribution in DISTRIBUTIONS.items():
                assert distribution._contains(distribution.to_internal_repr(point[name]))
        assert encoding.rows(points) == pytest.approx(rows, abs=1e-9)
    for name, distribution in DISTRIBUTIONS.items():
        seen = {encoding.point(row)[name] for row in drawn}
        if isinstance(distribution, CategoricalDistribution):
            assert seen == {"a", None, 3}
        if name in ("layers", "even", "half"):
            assert len(seen) == 5
    # beside a row: something moves, but most of it stays
    moved = (near[:, None] != drawn[None, :5]).sum(axis=2).min(axis=1)
    assert 1 <= np.median(moved) <= 3


def test_categories_lie_equally_far_apart_and_what_is_absent_lies_in_the_middle() -> None:
    encoding = Encoding(DISTRIBUTIONS)
    point = encoding.point(encoding.draw(np.random.default_rng(0), 1)[0])
    features = encoding.features(encoding.rows([{**point, "form": form} for form in ("a", None, 3)]))
    apart = [np.linalg.norm(features[one] - features[other]) for one, other in ((0, 1), (0, 2), (1, 2))]
    assert apart == pytest.approx([1, 1, 1])
    [row] = encoding.rows([{}])
    assert row.tolist() == [0.5, 0.0, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5]


@pytest.fixture(scope="module")
def sample() -> tuple[Any, Any]:
    random = np.random.default_rng(3)
    inputs = random.uniform(size=(40, 3))
    return inputs, np.sin(4 * inputs[:, 0]) + inputs[:, 1] + 0.1 * random.normal(size=40)


def test_predictions_are_those_of_scikit_learn(sample: tuple[Any, Any]) -> None:
    inputs, values = sample
    surrogate = GaussianProcess(inputs, values)
    *scales, variance, noise = np.exp(surrogate.parameters)
    kernel = ConstantKernel(variance, "fixed") * Matern(scales, "fixed", nu=2.5)
    peer = GaussianProcessRegressor(kernel, alpha=noise + 1e-6, optimizer=None).fit(inputs, values - values.mean())
    at = np.random.default_rng(4).uniform(size=(50, 3))
    mean, deviation = surrogate.predict(at)
    expected, spread = peer.predict(at, return_std=True)
    assert mean == pytest.approx(expected + values.mean(), abs=1e-8)
    assert deviation == pytest.approx(spread, abs=1e-6)
    # it learned which column matters, and how much is noise
    assert scales[0] < scales[2]
    assert 0.003 < noise < 0.04


def test_the_fit_follows_the_gradient_downhill(sample: tuple[Any, Any]) -> None:
    inputs, values = sample
    loss = gp._loss(inputs, values - values.mean())
    start = gp._prior(3)[0] + np.array([0.1, -0.2, 0.3, 0.2, -0.4])
    assert loss(start)[1] == pytest.approx(approx_fprime(start, lambda at: loss(at)[0], 1e-6), abs=1e-3)
    assert loss(GaussianProcess(inputs, values).parameters)[0] < loss(gp._prior(3)[0])[0] - 1


def test_what_is_believed_to_come_makes_it_certain_not_different(sample: tuple[Any, Any]) -> None:
    inputs, values = sample
    surrogate, at = GaussianProcess(inputs, values), np.array([[1.5, 1.5, 1.5], [0.5, 0.5, 0.5]])
    later = surrogate.with_fantasies(at[:1])
    (mean, deviation), (before, wide) = later.predict(at), surrogate.predict(at)
    assert mean == pytest.approx(before, abs=1e-6)
    assert deviation[0] < 0.5 * wide[0]


@pytest.mark.parametrize("u", [-1e5, -1e4, -1001.0, -999.0, -100.0, -38.0, -9.0, -2.0, -1.0, -0.5, 0.0, 3.0, 30.0])
def test_log_improvement_is_exact_where_the_plain_one_underflows(u: float) -> None:
    with mpmath.workdps(50):
        at = mpmath.mpf(u)
        density = mpmath.exp(-at * at / 2) / mpmath.sqrt(2 * mpmath.pi)
        below = mpmath.erfc(-at / mpmath.sqrt(2)) / 2
        # far below zero: the asymptotic series, since 50 digits cancel too
        exact = mpmath.log(density + at * below) if u > -1e3 else mpmath.log(density / at**2 * (1 - 3 / at**2))
        expected = float(exact + mpmath.log(0.5))
    found = log_improvement(np.array([1.0]), np.array([0.5]), np.array([1.0 + 0.5 * u]))
    assert found[0] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("cost", [-1.0, 0.4, 1.0, 2.5, 3.9])
def test_expected_gain_is_that_of_sampling(cost: float) -> None:
    known = np.array([[0.2, 2.0], [0.8, 1.0], [0.9, 1.5], [2.0, 0.2], [-0.5, 9.0]])  # two of them do not count
    reference, mean, deviation = (1.0, 4.0), 0.3, 0.4
    draws = np.random.default_rng(0).normal(mean, deviation, 4_000)
    inside = known[:2]
    before = hypervolume(inside, reference, ("minimize", "minimize"))
    gains = [
        hypervolume([*inside, (draw, cost)], reference, ("minimize", "minimize")) - before for draw in draws.tolist()
    ]
    found = log_ehvi(np.array([mean]), np.array([deviation]), np.array([cost]), known, reference)
    error = 4 * np.std(gains) / math.sqrt(len(gains))
    assert math.exp(found[0]) == pytest.approx(np.mean(gains), abs=error)


def test_beyond_the_reference_nothing_is_gained() -> None:
    nothing = log_ehvi(np.array([0.0]), np.array([1.0]), np.array([5.0]), np.empty((0, 2)), (1.0, 4.0))
    assert nothing[0] == -math.inf


# --- on a study ----------------------------------------------------------------------------------


def test_the_model_foresees_what_waiting_trials_come_to() -> None:
    """From 12 trials in full and 24 that wait at the first rung: their order, and about their values."""
    rule = Halving(epochs=3, eta=3, first_rung=1, trials=36, waves=1)
    records = searched(36, rule=rule)
    surrogate = fit(records, records.proposal(0).distributions)
    assert surrogate is not None
    waiting = [index for index, record in enumerate(surrogate.known.records) if record.state is State.PRUNED]
    truth = [-score(surrogate.known.records[index].configuration, 3) for index in waiting]  # type: ignore[arg-type]
    assert len(waiting) == 24
    assert np.corrcoef(surrogate.mean[waiting], truth)[0, 1] > 0.95


def test_it_finds_more_than_chance() -> None:
    """The same number of trials in full; the volume that the front adds, on three seeds."""

    def volume(sampler: str, seed: int) -> float:
        done = [record.measurements for record in searched(30, sampler=sampler, seed=seed).all()]
        values = [(each.accuracy, math.log1p(each.stored_parameters)) for each in done if each]
        return hypervolume(values, (0.3, math.log1p(1e5)), ("maximize", "minimize"))

    ours, chance = ([volume(sampler, seed) for seed in range(3)] for sampler in ("front", "random"))
    assert np.mean(ours) > np.mean(chance) * 1.01
    assert min(np.subtract(ours, chance)) > 0


def test_workers_do_not_pile_up_on_one_idea() -> None:
    records = searched(20, sampler="front")
    search = Search(records, plan(sampler="front", budget=Budget(trials=24, concurrent=4)))
    steps = [search.next(4) for _ in range(4)]
    assert all(isinstance(step, Start) for step in steps)
    rows = Encoding(records.proposal(0).distributions).rows(
        [records.proposal(step.record.number).coordinates for step in steps if isinstance(step, Start)]
    )
    apart = [np.linalg.norm(rows[one] - rows[other]) for one in range(4) for other in range(one)]
    assert min(apart) > 0.05


def test_nothing_that_is_not_to_be_proposed_is() -> None:
    records, random = searched(12, limits={"stored_parameters": 800.0}), np.random.default_rng(0)
    surrogate = fit(records, records.proposal(0).distributions)
    assert surrogate is not None
    assert propose(surrogate, random, lambda point: Counted(1.0, 1.0, True)) is None
    space = resolve("unified", OPTIONS, TRAINING)

    def small(point: Any) -> Counted:
        stored = count(decode(space, point, BACKBONE).configuration)["stored_parameters"]
        return Counted(math.log1p(stored / 1e3), stored - 800, True)

    for _ in range(5):
        assert small(propose(surrogate, random, small) or {}).allowed

    def other_than(there: Any) -> Any:
        return propose(surrogate, np.random.default_rng(0), lambda point: Counted(1.0, -1.0, point != there))

    assert other_than(other_than(None)) not in (None, other_than(None))


def costs(records: Records) -> list[float]:
    """Of the trials, as a sampler sees them."""
    return [math.log1p(records.proposal(record.number).counts["stored_parameters"] / 1e3) for record in records.all()]


def test_the_first_points_cover_the_cost() -> None:
    """They are at 0, 1/2, 1/4, 3/4 ... of it, as far as there are such points; random ones are hardly ever cheap."""
    for seed in range(3):
        found = costs(searched(surrogates.FIRST, sampler="front", seed=seed))
        dearest = max(costs(searched(30, seed=seed)))
        wanted = [dearest * share for share in (0, 1 / 2, 1 / 4, 3 / 4, 1 / 8, 5 / 8, 3 / 8, 7 / 8, 1 / 16, 9 / 16)]
        assert np.abs(np.subtract(found, wanted)).max() < 0.15 * dearest
        assert found[0] == 0.0
        cheap = [
            sum(cost < 0.2 * dearest for cost in each) for each in (found, costs(searched(surrogates.FIRST, seed=seed)))
        ]
        assert cheap[0] == 3 > cheap[1] + 1


def test_within_a_limit_the_first_points_cover_what_it_leaves() -> None:
    """Each fifth of what may be spent has one. Most points cost more, and what costs nothing is often the nearest."""
    for seed in range(3):
        found = costs(searched(surrogates.FIRST, sampler="front", seed=seed, limits={"stored_percent": 0.3}))
        assert {math.ceil(5 * cost / math.log1p(0.3)) for cost in found} == {0, 1, 2, 3, 4, 5}
        assert found.count(0.0) <= 2


def test_a_point_is_moved_no_more_than_its_cost_takes() -> None:
    encoding = Encoding(DISTRIBUTIONS)

    def cost(point: Any) -> float:
        return math.nan if point["layers"] == 3 else point["units"] * (2.0 if point["form"] == "a" else 1.0)

    starts = [point for point in map(encoding.point, encoding.draw(np.random.default_rng(0), 20)) if cost(point) > 0]
    for seed, start in enumerate(starts):
        moved = toward(16.0, start, encoding, np.random.default_rng(seed), cost)
        assert cost(moved) == 16.0
        free = set(DISTRIBUTIONS) - {"units", "form", "layers"}
        assert {name: moved[name] for name in free} == pytest.approx({name: start[name] for name in free})


def test_more_is_looked_for_beyond_the_dearest_trial() -> None:
    """Where better ones may be, and only as far as they are of interest; what costs as much as it is."""
    records = searched(12, limits={"stored_parameters": 800.0})
    space, there = resolve("unified", OPTIONS, TRAINING), max(costs(records))

    def free(point: Any) -> Counted:
        stored = count(decode(space, point, BACKBONE).configuration)["stored_parameters"]
        return Counted(math.log1p(stored / 1e3), -1.0, True)

    for dearest, beyond in ((-math.inf, False), (2 * there, True)):
        surrogate = fit(records, surrogates.dimensions(records), dearest=dearest)
        assert surrogate is not None
        found = [free(propose(surrogate, np.random.default_rng(seed), free) or {}).cost for seed in range(5)]
        assert (max(found) > 1.1 * there) is beyond
        [gain] = log_ehvi(np.zeros(1), np.ones(1), np.array([there]), np.empty((0, 2)), surrogate.reference)
        assert gain > -math.inf


@pytest.mark.parametrize(
    "limits",
    sampled(
        "limits that are learned",
        [{"stored_parameters": 600.0}, {"stored_percent": 0.6}],
        lambda limits: "stored_percent" in limits,
    ),
)
def test_a_limit_is_learned(limits: dict[str, float], monkeypatch: pytest.MonkeyPatch) -> None:
    """Within a limit that most points break, proposals are the model's: few come to nothing."""
    proposed: list[Any] = []

    def spy(*given: Any) -> Any:
        proposed.append(propose(*given))
        return proposed[-1]

    monkeypatch.setattr(sampler, "propose", spy)
    for seed in range(2):
        records = searched(60, sampler="front", seed=seed, limits=limits)
        assert 0.8 * math.log1p(0.6) < max(costs(records)) <= math.log1p(0.6)
    assert len(proposed) >= 2 * (60 - surrogates.FIRST)
    assert sum(each is None for each in proposed) <= 0.02 * len(proposed)


def test_limits_hold_for_first_points_where_the_cost_is_measured() -> None:
    """Nothing is put aside for being outside: what is limited is covered instead."""
    records = Records.in_memory(("accuracy", "seconds"))
    search = Search(
        records, plan(sampler="front", limits={"stored_percent": 0.3}, budget=Budget(trials=surrogates.FIRST))
    )
    for number in range(surrogates.FIRST):
        step = search.next(1)
        assert isinstance(step, Start)
        search.finish(number, measured(step.record.configuration, seconds=1.0 + number))
        assert records.proposal(number).counts["stored_percent"] <= 0.3
        assert not records.proposal(number).rejected


def test_a_limit_is_learned_where_the_cost_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """That a point is outside is not in its cost then: what is like those outside comes last."""
    proposed: list[Any] = []

    def spy(*given: Any) -> Any:
        proposed.append(propose(*given))
        return proposed[-1]

    monkeypatch.setattr(sampler, "propose", spy)
    records = Records.in_memory(("accuracy", "seconds"))
    search = Search(records, plan(sampler="front", limits={"stored_percent": 0.05}, budget=Budget(trials=40)))
    for number in range(40):
        step = search.next(1)
        assert isinstance(step, Start)
        search.finish(number, measured(step.record.configuration, seconds=1.0 + score(step.record.configuration, 3)))
    assert len(proposed) >= 40 - surrogates.FIRST
    assert None not in proposed


def test_whom_the_model_names_is_promoted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here the newest, which the scores alone would not."""
    monkeypatch.setattr(surrogates.Surrogate, "most_promising", lambda self, waiting, taken, first: max(waiting))
    rule = Halving(epochs=3, eta=3, first_rung=1, trials=12, waves=1, min_full=0)
    records = searched(12, sampler="front", rule=rule)
    assert [record.number for record in records.all() if record.state is State.COMPLETE] == [8, 9, 10, 11]


def test_the_front_in_full_is_what_the_model_stands_on_first() -> None:
    """However long ago it was trained."""
    records = searched(60, sampler="front")
    values = [
        (record.measurements.accuracy, cost)
        for record, cost in zip(records.all(), costs(records), strict=True)
        if record.measurements
    ]
    members = np.flatnonzero(non_dominated(values, ("maximize", "minimize")))
    told = surrogates._telling(surrogates._known(records, None))
    assert min(members) < 30
    assert {each.trial for each in told[: len(members)]} == set(members.tolist())
    assert [each.trial for each in told[len(members) :]] == sorted(set(range(60)) - set(members.tolist()), reverse=True)


def test_validations_between_the_rungs_do_not_crowd_out_trials() -> None:
    """81 trials of 27 epochs, validated at each: the model stands on what it would of their rungs alone."""
    rule = Halving(epochs=27, eta=3, first_rung=1, trials=81, waves=1)
    space = resolve("unified", OPTIONS, replace(TRAINING, epochs=27))

    def known(every: bool) -> list[Any]:
        records = Records.in_memory()
        search = Search(records, plan(space=space, rule=rule, budget=Budget(trials=81)))
        while isinstance(step := search.next(1), Start | Resume):
            number, configuration = step.record.number, step.record.configuration
            assert configuration
            epochs = range(1, 27) if every else map(int, rule.rungs)
            left = [epoch for epoch in epochs if epoch not in records.get(number).rungs]
            decisions = (search.report(number, epoch, score(configuration, epoch)) for epoch in left)
            if all(decision is Decision.CONTINUE for decision in decisions):
                search.finish(number, measured(configuration, accuracy=score(configuration, 27), epochs=27))
        return surrogates._telling(surrogates._known(records, rungs=rule.rungs))

    assert {each.trial for each in known(every=True)} == set(range(81))
    assert known(every=True) == known(every=False)


def test_the_last_score_between_rungs_counts() -> None:
    """Of a trial that runs, or that a budget stopped."""
    records = searched(1)
    records.create(records.get(0).configuration, proposal=records.proposal(0))
    for epoch in (1.0, 2.0, 2.5):
        records.rung(1, epoch, 0.5)
    shares = [each.share for each in surrogates._known(records, rungs=(1.0,)).scores if each.trial == 1]
    assert shares == pytest.approx([1 / 3, 2.5 / 3])


@pytest.mark.parametrize("sampler", ["front", "tpe"])
def test_a_search_learns_from_the_rungs_of_its_rule(sampler: str, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Any] = []

    def spy(records: Records, news: Any = None, rungs: Any = None) -> Any:
        given.append(rungs)
        return known(records, news, rungs)

    known = surrogates._known
    monkeypatch.setattr(surrogates, "_known", spy)
    searched(12, sampler=sampler, rule=Halving(epochs=3, eta=3, first_rung=1, trials=12))
    assert given
    assert all(rungs == (1.0,) for rungs in given)


@pytest.mark.parametrize(
    "limits", sampled("limits on measured costs", [{}, {"stored_percent": 0.05}], lambda limits: not limits)
)
def test_costs_that_are_measured_are_modelled_in_any_unit(limits: dict[str, float]) -> None:
    """Milliseconds or hours: what is proposed is the same."""

    def proposals(unit: float) -> list[Any]:
        records = Records.in_memory(("accuracy", "latency_ms"))
        search = Search(records, plan(sampler="front", limits=limits, budget=Budget(trials=20)))
        for number in range(16):
            step = search.next(1)
            assert isinstance(step, Start)
            configuration = step.record.configuration
            assert configuration
            latency = unit * (1 + math.log1p(count(configuration)["stored_parameters"]))
            search.finish(number, measured(configuration, latency_ms=latency))
        return [records.proposal(number).coordinates for number in range(surrogates.FIRST, 16)]

    assert proposals(1.0) == proposals(2048.0)


def test_scores_that_differ_by_rounding_are_equal() -> None:
    """24 trials of the same curve, and four that end higher."""
    losses = np.array([-0.44 + 4e-17 * (number % 3) for number in range(24)] + [-0.54] * 4)
    losses[1::3] = np.nextafter(losses[1::3], 0)
    middle, spread = surrogates._location(losses)
    assert middle == pytest.approx(-0.44)
    assert spread == pytest.approx(losses.std())
    assert surrogates._location(np.zeros(5)) == (0.0, 1.0)


def test_a_design_from_outside_the_space_does_not_keep_the_model_from_promoting() -> None:
    other = Enqueued("houlsby:size=10", Configuration(parse("houlsby:size=10"), TRAINING))
    rule = Halving(epochs=3, eta=3, first_rung=1, trials=36, waves=1)
    records = searched(36, rule=rule, enqueued=[other])
    surrogate = fit(records, surrogates.dimensions(records))
    assert surrogate is not None
    chosen = surrogate.most_promising([4, 5, 6], [7], 5)
    assert chosen == surrogate.most_promising([4, 5, 6], [0, 7], 4) == surrogate.most_promising([0, 4, 5, 6], [7], 5)
    assert surrogate.most_promising([0, 4, 5, 6], [7], 0) == 0  # whose turn it is by the scores


def test_coordinates_that_all_mean_absent_are_one_to_the_model() -> None:
    """Rows are those of the space in which each size has one coordinate; only draws know of the many."""
    dense, sparse = (resolve("unified", {**OPTIONS, "parts": parts}, TRAINING) for parts in (None, 1))
    records = searched(12, space=sparse)
    proposals = [records.proposal(record.number) for record in records.all()]
    sizes = absent(sparse, BACKBONE)
    assert absent(dense, BACKBONE) == {}
    assert len(sizes) == 8
    many = Encoding(proposals[0].distributions, sizes)
    one = Encoding(searched(1, space=dense).proposal(0).distributions)
    columns = [list(many.distributions).index(name) for name in sizes]
    for proposal in proposals:
        canonical = {name: max(0, proposal.coordinates[name] - last) for name, last in sizes.items()}
        row = many.rows([proposal.coordinates])[0]
        assert row[columns] == pytest.approx(one.rows([{**proposal.coordinates, **canonical}])[0][columns])
        designs = (
            decode(sparse, point, BACKBONE).configuration.design for point in (many.point(row), proposal.coordinates)
        )
        assert len(set(designs)) == 1
    drawn = many.draw(np.random.default_rng(0), 2_000)
    assert np.mean(drawn[:, columns] > 0) == pytest.approx(1 / len(sizes), abs=0.03)


def test_a_usual_proposal_gains_more_than_the_best_of_many_draws() -> None:
    records = searched(20)
    surrogate = fit(records, records.proposal(0).distributions)
    assert surrogate is not None
    space = resolve("unified", OPTIONS, TRAINING)
    seen = np.column_stack([surrogate.mean, surrogate.known.costs])

    def cost(point: Any) -> float:
        return math.log1p(count(decode(space, point, BACKBONE).configuration)["stored_parameters"] / 1e3)

    def gain(rows: Any) -> Any:
        costs = np.array([cost(surrogate.encoding.point(row)) for row in rows])
        return log_ehvi(*surrogate.predict(rows), costs, seen, surrogate.reference)

    drawn = gain(surrogate.encoding.draw(np.random.default_rng(1), 4_000)).max()
    proposed = [
        propose(surrogate, np.random.default_rng(seed), lambda point: Counted(cost(point), -1.0, True)) or {}
        for seed in range(5)
    ]
    assert np.median(gain(surrogate.encoding.rows(proposed))) > drawn


def test_a_few_trials_are_not_a_model() -> None:
    records = searched(surrogates.FIRST - 1)
    assert fit(records, records.proposal(0).distributions) is None
