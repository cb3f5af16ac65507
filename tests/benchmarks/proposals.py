"""What a proposal takes after so many trials, by sampler: the unified space on a model of BERT-base's size, counted.

The trials are random points that halving has stopped, made wait or carried on; their scores are made up, and nothing
is trained. One thread, with OMP_NUM_THREADS=1. Median, and the slowest, of some proposals after the same trials.
With a --limit on stored parameters, how many of the proposals lie within it.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))
import tiny
from transformers import BertConfig

from petl.backbones.count import count
from petl.configuration import Configuration, Training
from petl.measurements import Measurements
from search.optimizer.budget import Budget
from search.optimizer.rungs import rule
from search.optimizer.samplers import NAMES, Proposer
from search.optimizer.search import Plan, Search
from search.optimizer.simulation.replay import Clock, replay
from search.trials.objectives import objectives
from search.trials.record import Proposal, TrialRecord
from search.trials.records import Records
from spaces.space import resolve

EPOCHS: Final = 9.0


class Trainings:
    """Made-up ones: better with size, with diminishing returns, with a learning rate near 1e-3, and with epochs."""

    def __init__(self, limit: float) -> None:
        self.limit = limit
        self.limits = {"stored_parameters": limit} if limit < math.inf else {}
        self.backbone = tiny.described(BertConfig())
        self.space = resolve("unified", {}, Training(epochs=EPOCHS))

    def count(self, configuration: Configuration) -> dict[str, float]:
        """As a study counts."""
        return {"stored_parameters": count(configuration.design, self.backbone, 2).stored}

    def score(self, record: TrialRecord, epoch: float) -> float:
        """What the search is told."""
        assert record.configuration
        size = math.log1p(self.count(record.configuration)["stored_parameters"]) / 18
        rate = abs(math.log10(record.configuration.training.learning_rate / 1e-3))
        return (0.5 + 0.4 * size - 0.1 * rate) * (1 - 0.3 * math.exp(-epoch))

    def measured(self, record: TrialRecord) -> Measurements:
        """At the end."""
        assert record.configuration
        stored = int(self.count(record.configuration)["stored_parameters"])
        return Measurements(accuracy=self.score(record, EPOCHS), stored_parameters=stored, epochs=EPOCHS)

    def searched(self, trials: int) -> Records:
        """So many random trials, by halving."""
        records, clock = Records.in_memory(), Clock()
        plan = Plan(
            space=self.space,
            backbone=self.backbone,
            count=self.count,
            budget=Budget(trials=trials),
            rule=rule("halving", EPOCHS, trials, eta=3, first_rung=1),
            limits=self.limits,
            sampler="random",
        )
        replay(Search(records, plan, clock), self, clock=clock)
        return records


def measure(trainings: Trainings, records: Records, sampler: str, proposals: int) -> dict[str, Any]:
    """The milliseconds of some proposals, each of a sampler that has seen none of the trials before."""
    found, within = [], 0
    for seed in range(proposals + 1):
        proposer = Proposer(
            space=trainings.space,
            backbone=trainings.backbone,
            objectives=objectives("accuracy", "stored_parameters"),
            count=trainings.count,
            limits=trainings.limits,
            sampler=sampler,
            seed=seed,
        )
        proposer.ask(Records.in_memory(), Proposal())  # what a search does once
        began = time.perf_counter()
        proposed = proposer.ask(records, Proposal())
        found.append(1000 * (time.perf_counter() - began))
        within += trainings.count(proposed.configuration)["stored_parameters"] <= trainings.limit
    found = found[1:]  # the first one imports, and fills caches
    trials = len(records.all())
    return {
        "sampler": sampler,
        "trials": trials,
        "ms": round(median(found), 1),
        "most": round(max(found), 1),
        "within": round(within / (proposals + 1), 3),
    }


def main() -> None:
    """The command."""
    arguments = argparse.ArgumentParser(
        description=__doc__,
        epilog="example: python tests/benchmarks/proposals.py --trials 300 --samplers front gp",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    arguments.add_argument("--trials", type=int, nargs="+", default=[60, 300], help="default 60 300")
    arguments.add_argument(
        "--samplers",
        nargs="+",
        default=["front", "gp", "tpe", "nsga2"],
        choices=NAMES,
        metavar="SAMPLER",
        help=f"{', '.join(NAMES)}; default front gp tpe nsga2",
    )
    arguments.add_argument("--limit", type=float, default=math.inf, help="on stored parameters; default none")
    arguments.add_argument("--proposals", type=int, default=15, help="of each; default 15")
    arguments.add_argument("--format", choices=("text", "json"), default="text", help="json: only a list of rows")
    given = arguments.parse_args()
    if min(given.proposals, *given.trials) < 1:
        arguments.error(f"trials and proposals are at least 1; received {given.trials} and {given.proposals}")
    trainings, rows = Trainings(given.limit), []
    for trials in given.trials:
        records = trainings.searched(trials)
        for sampler in given.samplers:
            row = measure(trainings, records, sampler, given.proposals)
            rows.append(row)
            if given.format == "text":
                line = f"{sampler:8}{row['trials']:7,} trials {row['ms']:8.1f} ms a proposal, at most {row['most']:.1f}"
                print(line + (f", {row['within']:.0%} within" if given.limit < math.inf else ""), flush=True)
    if given.format == "json":
        print(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
