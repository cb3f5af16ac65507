"""What the heads of a study start from: fitted once, and the same bits for every worker and every resume."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

from petl.head import PROBE
from search.config.study import StudyConfig
from search.storage.starts import read_start, write_start
from search.study.places import StudyError
from search.trials.records import Records
from search.workers import scoring
from search.workers.assignment import StudyContext


def head_starts(
    config: StudyConfig, records: Records, context: StudyContext, say: Callable[[str], object] = lambda line: None
) -> dict[str, bytes]:
    """Return what heads start from as safetensors, by what they read, and put it on record. `config` has its epochs.

    Raises StudyError where the file is lost or damaged, and a fit here gives other bits.
    """
    configurations = [*config.reference_configurations().values(), *(each for _, each in config.listed)]
    heads = [config.head_of(), *(each.head for each in configurations if each)]
    starts, folder = {}, Path(context.folder)
    for pooling in sorted({head.pooling for head in heads if head.start == PROBE}):
        content, digest = read_start(folder, pooling), records.resolved.starts.get(pooling)
        if content is None or sha256(content).hexdigest() != digest:
            say("fitting the linear probe that heads start from")
            content = scoring.head_start(context, config.resources, pooling)
            fitted = sha256(content).hexdigest()
            if digest not in (None, fitted):
                raise StudyError(
                    f"what the heads of {config.study!r} start from is lost or damaged, and a fit here gives other "
                    f"numbers: put starts/{pooling}.safetensors back into {config.storage.path or folder}, or replace "
                    "the study with --fresh"
                )
            write_start(folder, pooling, content)
            records.resolved = replace(records.resolved, starts={**records.resolved.starts, pooling: fitted})
        starts[pooling] = content
    return starts
