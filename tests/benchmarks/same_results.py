"""Train a fixed list of designs on three tiny families, and write what each came to; compare with what another did.

    python tests/benchmarks/same_results.py --out before.json
    python tests/benchmarks/same_results.py --against before.json

A change that should change no result leaves every number as it is, bit for bit: losses, validation scores, counts, and
the tensors that were trained, as a hash. Times and memory are left out. Both runs are to be on one machine, whose
matrix library they share; there is one thread. It takes about a minute.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

os.environ["OMP_NUM_THREADS"] = "1"
sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))

import designs
import studies
import texts
import tiny

from petl.backbones.count import count
from petl.backbones.loading import load, load_tokenizer
from petl.backbones.model import describe
from petl.configuration import Configuration, Training
from petl.data.tokens import TaskData, load_data
from petl.design import Design
from petl.presets import parse
from petl.tasks import resolve
from petl.training.processes import prepare_process
from petl.training.run import TrainingRun

# An encoder that classifies, an encoder-decoder and a decoder that translate.
FAMILIES: Final = ("bert", "bart", "llama")
TRAINING: Final = Training(learning_rate=1e-2, epochs=1.5, batch_size=16, accumulation=1)
RANDOM: Final = 4  # mixtures of parts on random layers


def listed(family: str) -> Iterator[tuple[str, Design]]:
    """Yield every named design on the encoder, one of each form on the others, and random mixtures."""
    biases, labelled = family in tiny.BIASED, family == FAMILIES[0]
    impossible = {*(() if biases else ("bitfit",)), *(() if labelled else ("head_only",))}
    for text in designs.NAMED if labelled else designs.OF_FORMS:
        if text not in impossible:
            yield text, parse(text)
    for seed in range(RANDOM):
        yield f"random {seed}", designs.random_design(seed, biases=biases, rotary=not biases, gate=not biases)


def prepared(family: str, folder: Path) -> tuple[Path, TaskData, Any]:
    """Return the folder of a tiny backbone, the rows of its task, and the model."""
    if family == FAMILIES[0]:
        backbone = studies.write_backbone(folder / "backbone")
        tiny.model(family).save_pretrained(backbone)  # over the one of two layers, beside its tokenizer
        rows = studies.write_rows(folder / "rows.csv", rows=150)
        task = {"name": "words", "paths": str(rows), "validation_rows": 30, "test_rows": 20}
    else:
        backbone = texts.write_backbone(family, folder)
        task = texts.task(texts.write_rows(folder / "rows.jsonl"))
    decoder_only = describe(str(backbone)).architecture == "decoder"
    data = load_data(resolve(task), load_tokenizer(str(backbone)), decoder_only=decoder_only)
    model = load(str(backbone), labels=data.labels or None, generates=not data.labels, seed=3)
    return backbone, data, model


def trained(design: Design, backbone: Path, data: TaskData, model: Any) -> dict[str, Any]:
    """Train a design, and return all that came of it but times and memory."""
    run = TrainingRun(model, data, Configuration(design, TRAINING, seed=3), generates=not data.labels)
    run.advance(1.0)
    run.advance(TRAINING.epochs)
    run.finish()
    digests = sorted(hashlib.sha256(tensor.numpy().tobytes()).hexdigest() for tensor in run.state()[0].values())
    result = {
        "losses": [point.loss for point in run.position.points],
        "scores": [dict(sorted(validation.scores.items())) for validation in run.position.validations],
        "counts": asdict(count(design, describe(str(backbone)), len(data.labels))),
        "tensors": hashlib.sha256("".join(digests).encode()).hexdigest(),
    }
    run.close()
    return result


def everything() -> dict[str, dict[str, Any]]:
    """Return what every design came to, by its family and name."""
    prepare_process()
    results: dict[str, dict[str, Any]] = {}
    for family in FAMILIES:
        with tempfile.TemporaryDirectory() as folder:
            os.environ["PETL_CACHE"] = folder
            backbone, data, model = prepared(family, Path(folder))
            for name, design in listed(family):
                results[f"{family} {name}"] = trained(design, backbone, data, model)
                print(f"{family} {name}: {results[f'{family} {name}']['scores'][-1]}", file=sys.stderr, flush=True)
    return results


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--out", type=Path, help="a file for the results, as JSON")
    arguments.add_argument("--against", type=Path, help="a file that --out wrote; exits with 1 where anything differs")
    given = arguments.parse_args()
    results = json.loads(json.dumps(everything()))
    if given.out:
        given.out.write_text(json.dumps(results, indent=1))
    if given.against:
        before = json.loads(given.against.read_text())
        differing = [name for name in {**before, **results} if before.get(name) != results.get(name)]
        for name in differing:
            print(f"{name}: {before.get(name)} before, {results.get(name)} now")
        print(f"{len(results) - len(differing)} of {len(results)} trainings came to the same")
        sys.exit(bool(differing))


if __name__ == "__main__":
    main()
