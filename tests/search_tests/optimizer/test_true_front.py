"""What replicates tell: against formulas for normal means, brute force, and searches whose true means are known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from petl.measurements import MINIMIZE
from search.optimizer.true_front import Membership, _fronts, between_seeds, freedom_between_seeds, membership, next_run
from search.trials import pareto
from search.trials.record import discovered


def flags(*rows: str) -> np.ndarray:
    return np.array([[letter == "x" for letter in row] for row in rows])


@pytest.mark.parametrize(
    "costs",
    [
        np.arange(12.0)[:, None],
        np.array([3, 1, 1, 2, 3, 3, 2, 1, 5, 4, 4, 1.0])[:, None],
        np.array([[3, 1, 1, 2, 3, 3, 2, 1, 5, 4, 4, 1], [1, 2, 1, 2, 1, 1, 1, 1, 3, 2, 1, 1.0]]).T,
    ],
    ids=["own", "ties", "two costs"],
)
def test_the_front_of_every_sample_is_the_one_of_the_sort(costs: np.ndarray) -> None:
    samples = np.random.default_rng(0).normal(size=(50, 12))
    directions = [MINIMIZE] * (1 + costs.shape[1])
    expected = [pareto.non_dominated(np.column_stack([row, costs]), directions) for row in samples]
    assert (_fronts(samples, costs) == np.array(expected)).all()


def test_what_can_be_named_with_one_in_twenty_false() -> None:
    # probabilities 1, 0.5, 0.9, 0.95: expected shares of false ones 0, 0.025, 0.05, 0.1625 in descending order
    rows = [
        "xx"[: 1 + (index < 10)].ljust(2, ".") + ("x" if index < 18 else ".") + ("x" if index < 19 else ".")
        for index in range(20)
    ]
    posterior = Membership(np.zeros((20, 4)), flags(*rows), np.ones(4))
    assert posterior.probability.tolist() == [1.0, 0.5, 0.9, 0.95]
    assert discovered(posterior.probability, 0.051).tolist() == [True, False, True, True]
    assert discovered(posterior.probability, 0.03).tolist() == [True, False, False, True]
    assert discovered(posterior.probability, 0.2).all()


def test_the_spread_between_seeds() -> None:
    assert between_seeds([[1.0], [2.0]]) is None
    # variances 2 and 2: pooled 2, and so is everyone's
    assert between_seeds([[0.0, 2.0], [5.0, 7.0], [1.0]]) == pytest.approx([math.sqrt(2)] * 3)
    # 3 degrees of freedom are the pooled variance's: (3 x 5 + 8) / 4, (3 x 5 + 2) / 4, and the pooled one itself
    assert between_seeds([[0.0, 4.0], [5.0, 7.0], [1.0]]) == pytest.approx([math.sqrt(v) for v in (23 / 4, 17 / 4, 5)])


def test_one_unstable_design_says_little_of_the_others() -> None:
    losses = [[0.0, 0.002], [1.0, 1.002], [2.0, 2.002], [3.0, 3.002], [4.0, 14.0]]
    noise = between_seeds(losses)
    assert noise is not None
    assert noise[0] < 0.01 < 1 < noise[4]


def test_how_much_alike_trials_are_is_found_from_their_seeds() -> None:
    """Drawn from the model itself: inverse chi-square variances of 3 degrees of freedom, and all the same."""
    random = np.random.default_rng(0)
    unlike = [random.normal(scale=math.sqrt(3 / random.chisquare(3)), size=3).tolist() for _ in range(400)]
    same = [random.normal(size=3).tolist() for _ in range(400)]
    assert 2 < freedom_between_seeds(unlike) < 5
    assert freedom_between_seeds(same) > 30
    assert freedom_between_seeds([[0.1], [0.2]]) == pytest.approx(3.0, abs=0.1)  # nothing is known
    assert freedom_between_seeds([[1000 * loss for loss in own] for own in unlike]) == freedom_between_seeds(unlike)


def test_scores_that_do_not_depend_on_the_seed_are_believed() -> None:
    posterior = membership([[0.3, 0.3], [0.2, 0.2], [0.25], [0.1]], [1, 2, 3, 4])
    assert posterior is not None
    assert posterior.probability.tolist() == [1.0, 1.0, 0.0, 1.0]
    assert posterior.corrected == pytest.approx([0.3, 0.2, 0.25, 0.1], abs=1e-6)


def test_the_best_of_many_is_corrected_as_for_normal_means() -> None:
    """Means N(0, 1) seen with noise of variance 1: those of the best lie at half of what was seen.

    Of what is too good, most is taken away without knowing that they are normal.
    """
    seen, corrected, true = [], [], []
    for seed in range(20):
        random = np.random.default_rng(seed)
        means = random.normal(size=300)
        losses = [[float(value)] for value in means + random.normal(size=300)]
        for index in random.choice(300, 60, replace=False):
            losses[index].append(float(means[index] + random.normal()))
        posterior = membership(losses, [1.0] * 300)
        assert posterior is not None
        best = min((index for index in range(300) if len(losses[index]) == 1), key=lambda index: losses[index][0])
        seen.append(losses[best][0])
        corrected.append(posterior.corrected[best])
        true.append(means[best])
    assert np.mean(seen) < -2.5
    assert np.mean(true) == pytest.approx(np.mean(seen) / 2, abs=0.4)
    assert np.mean(corrected) == pytest.approx(np.mean(seen) / 2, abs=0.4 * abs(np.mean(seen) / 2))


@pytest.mark.full("many searches")
def test_what_is_believed_of_many_searches_is_so() -> None:
    """No more is claimed than is so, few that are named are not on the true front, and their scores are fair."""
    expected, members, false, named, bias, raw = 0.0, 0, 0, 0, list[float](), list[float]()
    for seed in range(15):
        random = np.random.default_rng(seed)
        costs = np.sort(random.uniform(size=100))
        means = -np.sqrt(costs) + random.exponential(0.5, size=100)
        losses = [[float(random.normal(mean, 0.05))] for mean in means]
        alone = np.array([own[0] for own in losses])
        true = pareto.non_dominated(np.column_stack([means, costs]), (MINIMIZE, MINIMIZE))
        lucky = pareto.non_dominated(np.column_stack([alone, costs]), (MINIMIZE, MINIMIZE))
        raw.extend((means - alone)[lucky])
        posterior = None
        for _ in range(20):
            trial = next_run(losses, costs, posterior, most=5)
            if trial is None:
                break
            losses[trial].append(float(random.normal(means[trial], 0.05)))
            posterior = membership(losses, costs)
        assert posterior is not None
        sure = discovered(posterior.probability)
        expected, members = expected + posterior.probability.sum(), members + int(true.sum())
        named, false = named + int(sure.sum()), false + int((sure & ~true).sum())
        bias.extend((means - posterior.corrected)[sure])
    assert members / 2 < expected < 1.05 * members
    assert named > members / 2
    assert false / named < 0.08
    assert np.mean(raw) > 0.0125  # a quarter of the noise: what is to be mended
    assert abs(np.mean(bias)) < 2 / 3 * np.mean(raw)


# --- what to train next ---------------------------------------------------------------------------

COSTS = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]
LOSSES = [
    [0.9],
    [0.8],
    [0.5],
    [0.49],
    [0.3],
    [0.28],
    [0.31],
]  # leads: none, 0.1, 0.3, 0.01, 0.19, 0.02; the last is none


def test_those_that_lead_by_the_least_come_first() -> None:
    losses, order = [list(own) for own in LOSSES], list[int]()
    for _ in range(4):
        trial = next_run(losses, COSTS, None, most=5)
        assert trial is not None
        order.append(trial)
        losses[trial].append(losses[trial][0])
    assert order == [3, 5, 1, 4]


def test_those_that_run_are_as_good_as_there() -> None:
    running = list[int]()
    while (trial := next_run(LOSSES, COSTS, None, running, most=5)) is not None:
        running.append(trial)
    assert running == [3, 5, 1, 4]  # and then it is to be waited for


def test_where_the_first_ones_fail_others_tell_how_much_seeds_matter() -> None:
    failed = list[int]()
    while len(failed) < 10 and (trial := next_run(LOSSES, COSTS, None, (), failed, most=5)) is not None:
        failed.append(trial)
    assert failed == [3, 5, 1, 4, 2, 0]  # all of the front, each once


def test_what_is_contested_is_trained_and_what_is_clear_is_not() -> None:
    losses = [[0.9, 0.91], [0.8, 0.79], [0.5, 0.51, 0.5], [0.497, 0.507], [0.3, 0.31]]
    posterior = membership(losses, COSTS[:5])
    assert posterior is not None
    assert posterior.probability[[0, 1, 2, 4]] == pytest.approx(1.0, abs=0.01)
    assert 0.2 < posterior.probability[3] < 0.8
    assert next_run(losses, COSTS[:5], posterior, most=5) == 3
    # with three more of it under way, the one that it is compared with is what is known the least
    assert next_run(losses, COSTS[:5], posterior, [3, 3, 3], most=5) == 2


def test_what_is_likely_on_the_front_has_a_second_seed_however_clear_it_is() -> None:
    losses = [[0.9, 0.91], [0.8, 0.79], [0.366, 0.376], [0.7, 0.71], [0.35], [0.3, 0.31]]
    posterior = membership(losses, COSTS[:6])
    assert posterior is not None
    assert 0.95 < posterior.probability[4] < 1
    assert next_run(losses, COSTS[:6], posterior, most=5) == 4
    assert next_run(losses, COSTS[:6], posterior, [4], most=5) is None
    assert next_run(losses, COSTS[:6], posterior, [], [4] * 4, most=5) == 4
    assert next_run(losses, COSTS[:6], posterior, [], [4] * 5, most=5) is None  # it fails always


def test_no_seeds_are_spent_where_nothing_is_open() -> None:
    losses = [[0.9, 0.91], [0.8, 0.79], [0.5, 0.51], [0.7, 0.71], [0.3, 0.31]]
    assert next_run(losses, COSTS[:5], membership(losses, COSTS[:5]), most=5) is None
    contested = [[0.9, 0.91], [0.8, 0.79], [0.5, 0.51], [0.5, 0.51], [0.3, 0.31]]
    posterior = membership(contested, COSTS[:5])
    assert next_run(contested, COSTS[:5], posterior, most=5) in (2, 3)
    assert next_run(contested, COSTS[:5], posterior, most=1) is None  # as many fresh seeds as each may have


def test_the_same_again() -> None:
    losses = [[0.9, 0.91], [0.8, 0.79], [0.5, 0.51], [0.49]]
    one, other = membership(losses, COSTS[:4], seed=3), membership(losses, COSTS[:4], seed=3)
    assert one is not None
    assert other is not None
    assert (one.samples == other.samples).all()
