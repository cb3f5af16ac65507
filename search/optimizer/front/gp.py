"""A Gaussian process over designs and epochs, and the improvement of the front that it expects."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve, solve_triangular
from scipy.linalg.lapack import dpotri
from scipy.optimize import minimize
from scipy.special import erfcx, log_ndtr, logsumexp

from search.trials.pareto import Floats

_STEPS: Final = 15  # of that fit
JITTER: Final = 1e-6


class GaussianProcess:
    """A Gaussian process with a Matern-5/2 kernel and a length scale a column (MAP estimate).

    `inputs` n x columns, `values` n, about standardised. Length scales have a log-normal prior around 0.5 x
    sqrt(columns), the variances around 1 and, for noise, around 0.01. `fitted` rows decide on them.
    """

    def __init__(
        self,
        inputs: Floats,
        values: Floats,
        fitted: NDArray[np.intp] | None = None,
        *,
        parameters: Floats | None = None,
        mean: float | None = None,
    ) -> None:
        self._inputs, self._values = inputs, values
        self._mean = float(values.mean()) if mean is None else mean
        chosen = np.arange(len(values)) if fitted is None else fitted
        self.parameters = _fit(inputs[chosen], values[chosen] - self._mean) if parameters is None else parameters
        kernel = _matern(inputs, inputs, self.parameters)
        kernel[np.diag_indices_from(kernel)] += math.exp(self.parameters[-1]) + JITTER
        self._factor = cho_factor(kernel, lower=True, overwrite_a=True, check_finite=False)
        self._weights = cho_solve(self._factor, values - self._mean, check_finite=False)

    def with_fantasies(self, inputs: Floats) -> GaussianProcess:
        """Return the process as if what it expects at these inputs had been observed: less uncertain there."""
        if not len(inputs):
            return self
        values = np.concatenate([self._values, self.predict(inputs)[0]])
        return GaussianProcess(np.vstack([self._inputs, inputs]), values, parameters=self.parameters, mean=self._mean)

    def predict(self, inputs: Floats) -> tuple[Floats, Floats]:
        """Return mean and standard deviation at m x columns, without noise."""
        kernel = _matern(inputs, self._inputs, self.parameters)
        mean = kernel @ self._weights + self._mean
        spread = solve_triangular(self._factor[0], kernel.T, lower=True, overwrite_b=True, check_finite=False)
        variance = math.exp(self.parameters[-2]) - np.einsum("ij,ij->j", spread, spread)
        return mean, np.sqrt(np.maximum(variance, 1e-10))


def _matern(one: Floats, other: Floats, parameters: Floats) -> Floats:
    scales = np.exp(parameters[:-2])
    distance = _distances(one / scales, other / scales)
    kernel = _rise(distance)
    kernel *= np.exp(parameters[-2] - distance)
    return kernel


def _rise(distance: Floats) -> Floats:
    """Return the polynomial of the kernel, 1 + d + d²/3; in place, as most of a proposal's time goes to such arrays."""
    rise = distance / 3
    rise += 1
    rise *= distance
    rise += 1
    return rise


def _distances(one: Floats, other: Floats) -> Floats:
    """Return the distances between all pairs of rows, times the square root of 5, as the kernel wants them."""
    squares = (-10 * one) @ other.T
    squares += 5 * (one**2).sum(axis=1)[:, None]
    squares += 5 * (other**2).sum(axis=1)
    np.maximum(squares, 0.0, out=squares)
    return np.sqrt(squares, out=squares)


def _fit(inputs: Floats, values: Floats) -> Floats:
    """Return the logarithms of length scales, variance and noise, by `_STEPS` of L-BFGS from the prior's means."""
    centre, width = _prior(inputs.shape[1])
    bounds = [(middle - 4 * each, middle + 4 * each) for middle, each in zip(centre, width, strict=True)]
    loss = _loss(inputs, values)
    found = minimize(loss, centre, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": _STEPS})
    return np.asarray(found.x)


def _prior(columns: int) -> tuple[Floats, Floats]:
    """Return means and standard deviations of the parameters."""
    centre = np.array([math.log(0.5 * math.sqrt(columns))] * columns + [0.0, math.log(0.01)])
    return centre, np.array([1.5] * columns + [1.0, 1.5])


def _loss(inputs: Floats, values: Floats) -> Callable[[Floats], tuple[float, Floats]]:
    """Return the negative log posterior density of the parameters, up to a constant, with its gradient."""
    count, columns = inputs.shape
    centre, width = _prior(columns)

    def loss(parameters: Floats) -> tuple[float, Floats]:
        scaled = inputs / np.exp(parameters[:-2])
        distance = _distances(scaled, scaled)
        decay = np.exp(parameters[-2] - distance)
        kernel = decay * _rise(distance)
        noise = math.exp(parameters[-1])
        factor = cho_factor(kernel + (noise + JITTER) * np.eye(count), lower=True, check_finite=False)
        weights = cho_solve(factor, values, check_finite=False)
        triangle = np.tril(dpotri(factor[0], lower=1)[0])  # of the inverse: cheaper than to solve for it
        inverse = triangle + np.tril(triangle, -1).T
        inner = inverse - np.outer(weights, weights)  # of the gradient's trace
        pull = inner * decay * (1 + distance) * (5 / 3)
        # the sum of pull x (difference in a column)² over all pairs, without an array of pairs and columns
        by_scale = 2 * ((scaled**2).T @ pull.sum(axis=1) - (scaled * (pull @ scaled)).sum(axis=0))
        gradient = 0.5 * np.array([*by_scale, (inner * kernel).sum(), noise * np.trace(inner)])
        fit = 0.5 * values @ weights + np.log(np.diag(factor[0])).sum()
        prior = (parameters - centre) / width
        return float(fit + 0.5 * prior @ prior), gradient + prior / width

    return loss


def log_improvement(mean: Floats, deviation: Floats, best: Floats) -> Floats:
    """Return the logarithm of the expected improvement below `best`, also where it underflows; shapes broadcast."""
    u = (best - mean) / deviation
    log_density = -0.5 * u**2 - 0.5 * math.log(2 * math.pi)
    near = np.maximum(u, -1.0)
    direct = np.log(np.exp(-0.5 * near**2) / math.sqrt(2 * math.pi) + near * np.exp(log_ndtr(near)))
    far = np.minimum(u, -1.0)
    # 1 - |u| x Mills' ratio, which is about 1/u² where it cancels
    rest = 1 + far * math.sqrt(math.pi / 2) * erfcx(-far / math.sqrt(2))
    tail = log_density + np.where(far > -1e3, np.log(np.maximum(rest, 1e-300)), -2 * np.log(-far))
    found: Floats = np.where(u > -1.0, direct, tail) + np.log(deviation)
    return found


def log_ehvi(mean: Floats, deviation: Floats, cost: Floats, front: Floats, reference: tuple[float, float]) -> Floats:
    """Return the logarithm of the expected hypervolume improvement of n candidates with exactly known costs.

    `front` is k x 2, (loss, cost); only its non-dominated points within the reference (loss, cost) count.
    """
    inside = front[(front < reference).all(axis=1)]
    order = inside[np.argsort(inside[:, 1], kind="stable")]
    best = np.minimum.accumulate(np.array([reference[0], *order[:, 0]]))  # on the stretch right of each point
    edges = np.array([-np.inf, *order[:, 1], reference[1]])
    length = np.clip(edges[None, 1:] - np.maximum(edges[None, :-1], cost[:, None]), 0.0, None)
    with np.errstate(divide="ignore"):
        terms = np.log(length) + log_improvement(mean[:, None], deviation[:, None], best[None])
    return np.asarray(logsumexp(terms, axis=1))
