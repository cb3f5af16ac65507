"""Peers that do not install beside us, each as it comes: asked and told by a process of an environment of their own.

Syne Tune's MOASHA (of the stop type) and NePS's PriMO (without priors, which nobody has of a new task)::

    python -m venv peers && peers/bin/pip install syne-tune neural-pipeline-search
    python tests/benchmarks/lcbench.py --peers peers/bin/python --methods synchronous halving+front moasha primo

This file is both ends, so it imports nothing but the standard library. A line of JSON goes each way:
`begin` names a peer and its problem; `ask` gives a trial, its point, the epoch that it has reached and the one to go
to, or null where there is nothing to do until something ends; `tell` has two objectives in [0, 1], the less the better,
and gives the epoch to go on to, null where there is none.
"""

from __future__ import annotations

import heapq
import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, Protocol


class Piece(NamedTuple):
    """Training that a peer asks for: of this trial, from one epoch to another."""

    trial: int
    point: dict[str, float]
    reached: int
    epoch: int


@dataclass
class Found:
    """What a search came to: the points trained in full, how many were begun, and the milliseconds of each."""

    complete: list[dict[str, float]] = field(default_factory=list)
    begun: int = 0
    ms: float = 0.0


class Peers:
    """A process of this Python, for one search after the other."""

    def __init__(self, python: str) -> None:
        try:
            self._process = subprocess.Popen(
                [python, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
            )
        except OSError as error:
            sys.exit(f"the peers need a Python of their own; {error}")

    def search(
        self,
        name: str,
        problem: Mapping[str, Any],
        values: Callable[[Mapping[str, float], int], tuple[float, float]],
        workers: int,
        budget: float,
    ) -> Found:
        """One search on a simulated clock on which an epoch takes a second, with the limit of `simulation.replay`.

        `problem` is what a peer is made of but its name: space, seed, epochs, first, eta. `values` are a point's
        objectives after so many epochs.
        """
        self._say("begin", name, problem)
        found, seconds, spent, over = Found(), 0.0, 0.0, False
        under_way: list[tuple[float, int, Piece]] = []
        order = itertools.count()

        def begin(piece: Piece) -> None:
            nonlocal spent, over
            over = over or spent + piece.epoch - piece.reached > budget + 1e-9
            if not over:
                spent += piece.epoch - piece.reached
                heapq.heappush(under_way, (seconds + piece.epoch - piece.reached, next(order), piece))

        while True:
            while not over and len(under_way) < workers:
                began = time.perf_counter()
                asked = self._say("ask")
                found.ms += 1000 * (time.perf_counter() - began)
                if asked is None and under_way:
                    break
                found.begun += 1
                begin(Piece(*asked))
            if not under_way:
                found.ms /= found.begun
                return found
            seconds, _, piece = heapq.heappop(under_way)
            if piece.epoch == problem["epochs"]:
                found.complete.append(piece.point)
            more = self._say("tell", piece.trial, piece.epoch, values(piece.point, piece.epoch))
            if more is not None:
                begin(piece._replace(reached=piece.epoch, epoch=more))

    def _say(self, *message: Any) -> Any:
        """Exits where the process does not answer: it has said why on stderr."""
        assert self._process.stdin
        assert self._process.stdout
        try:
            self._process.stdin.write(json.dumps(message) + "\n")
            answer = self._process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            sys.exit(f"{self._process.args[0]} cannot run the peers: see above; {__file__} says what to install")  # type: ignore[index]
        return json.loads(answer)


class Peer(Protocol):
    """The other end: a library's search."""

    def ask(self) -> Piece | None:
        """What to train now."""

    def tell(self, trial: int, epoch: int, values: tuple[float, float]) -> int | None:
        """The epoch to go on to at once."""


class Moasha:
    """Syne Tune's, of the stop type."""

    def __init__(self, space: list[dict[str, Any]], seed: int, epochs: int, first: int, eta: int) -> None:
        import numpy
        from syne_tune import config_space
        from syne_tune.optimizer.schedulers.multiobjective.moasha import MOASHA

        kinds = {
            ("uniform_int", False): config_space.randint,
            ("uniform_int", True): config_space.lograndint,
            ("uniform_float", False): config_space.uniform,
            ("uniform_float", True): config_space.loguniform,
        }
        numpy.random.seed(seed)  # it samples from the global one
        self._scheduler = MOASHA(
            {each["name"]: kinds[each["type"], each["log"]](each["lower"], each["upper"]) for each in space},
            ["error", "size"],
            time_attr="epoch",
            max_t=epochs,
            grace_period=first,
            reduction_factor=eta,
            random_seed=seed,
        )
        self._trials: list[Any] = []
        self._epochs = [first]
        while self._epochs[-1] < epochs:
            self._epochs.append(min(self._epochs[-1] * eta, epochs))

    def ask(self) -> Piece:
        """A new trial, to the first rung."""
        from datetime import datetime

        from syne_tune.backend.trial_status import Trial

        trial = Trial(len(self._trials), self._scheduler.suggest().config, datetime.now())
        self._trials.append(trial)
        self._scheduler.on_trial_add(trial)
        return Piece(trial.trial_id, trial.config, 0, self._epochs[0])

    def tell(self, trial: int, epoch: int, values: tuple[float, float]) -> int | None:
        """To the next rung, unless it is stopped."""
        result = {"epoch": epoch, "error": values[0], "size": values[1]}
        if epoch == self._epochs[-1]:
            self._scheduler.on_trial_complete(self._trials[trial], result)
        elif self._scheduler.on_trial_result(self._trials[trial], result) == "CONTINUE":
            return self._epochs[self._epochs.index(epoch) + 1]
        else:
            self._scheduler.on_trial_remove(self._trials[trial])
        return None


class Primo:
    """NePS's: its rungs are its own, from `first` to `epochs`."""

    def __init__(self, space: list[dict[str, Any]], seed: int, epochs: int, first: int, eta: int) -> None:
        import random

        import neps
        import numpy
        import torch
        from neps.space import HPOFloat, HPOInteger, SearchSpace

        torch.set_num_threads(1)
        random.seed(seed)
        numpy.random.seed(seed)
        torch.manual_seed(seed)
        parameters: dict[str, Any] = {
            each["name"]: (HPOInteger if each["type"] == "uniform_int" else HPOFloat)(
                each["lower"], each["upper"], log=each["log"]
            )
            for each in space
        }
        parameters["epoch"] = HPOInteger(first, epochs, is_fidelity=True)
        self._search = neps.AskAndTell(neps.algorithms.primo(SearchSpace(parameters), eta=eta, prior_centers={}))
        self._trials: list[Any] = []

    def ask(self) -> Piece | None:
        """A new trial, a promoted one as a piece of its own, or one of its Bayesian phase."""
        known = dict(self._search.trials)
        try:
            trial = self._search.ask()
        except ValueError:  # it cannot choose from a rung of eta trials of which none has ended
            return None
        if taken := known.get(trial.id):  # its Bayesian phase gives those that run at once the same number
            self._search.trials[trial.id] = taken
            trial.metadata.id = str(1 + max(int(name.split("_")[0]) for name in known))
            self._search.trials[trial.id] = trial
        self._trials.append(trial)
        before = known.get(trial.metadata.previous_trial_id or "")
        point = dict(trial.config)
        return Piece(len(self._trials) - 1, point, before.config["epoch"] if before else 0, point.pop("epoch"))

    def tell(self, trial: int, epoch: int, values: tuple[float, float]) -> int | None:
        """Nothing: it asks again for what it promotes."""
        self._search.tell(self._trials[trial], {"objective_to_minimize": [*values]})
        return None


PEERS: Final[Mapping[str, Callable[..., Peer]]] = {"moasha": Moasha, "primo": Primo}


def serve() -> None:
    """The process: what the libraries print goes to stderr."""
    import logging

    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    logging.disable(logging.WARNING)
    peer: Peer | None = None
    for line in sys.stdin:
        answer: Any = None
        match json.loads(line):
            case ["begin", name, problem]:
                peer = PEERS[name](**problem)
            case ["ask"] if peer:
                answer = peer.ask()
            case ["tell", trial, epoch, values] if peer:
                answer = peer.tell(trial, epoch, tuple(values))
        answers.write(json.dumps(answer, default=lambda number: number.item()) + "\n")


if __name__ == "__main__":
    serve()
