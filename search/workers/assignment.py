"""What a worker is given: the context of its study, and one training after another."""

from __future__ import annotations

import json
import math
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from petl.configuration import Configuration
from search.storage.locks import run_token
from search.storage.remote import StoreAwayError, set_store
from search.trials.record import Replicate, TrialRecord
from search.trials.report import Run
from search.trials.resolved import Resolved


@dataclass(frozen=True)
class StudyContext:
    """What is the same for all trials of a study.

    `resolved` is what the study fixed when it began, with a precision that has been measured. `seed`, the study's,
    draws the untrained head. `zero_stage` and `offload` change where tensors lie while a trial trains, not what it
    comes to. `store` is where trials are kept, None in `folder`. `run` is the token of the driver's
    run, by which a node recognises the shared folder. `starts` are the tensors that heads start from, as safetensors,
    by what the heads read.
    """

    folder: str
    resolved: Resolved
    seed: int = 0
    zero_stage: int = 0
    offload: tuple[str, ...] = ()
    store: str | None = None
    run: str = ""
    starts: Mapping[str, bytes] = field(default_factory=dict)

    @property
    def home(self) -> Path:
        """The study's folder on this node, ready to be used.

        Raises StoreAwayError on a node that does not have the folder which all share.
        """
        folder = Path(self.folder)
        if self.store is None and (not self.run or run_token(folder) != self.run):
            raise StoreAwayError(
                f"node {socket.gethostname()} does not see the study's folder {folder}, which all nodes share: mount "
                "it there at the same path, or take the node out of the cluster"
            )
        set_store(folder, self.store)
        return folder


@dataclass(frozen=True)
class Assignment:
    """One run to train. `milestones`: epochs at which it validates and reports, ascending.

    `assigned` is when the driver handed it out, in seconds since the epoch. `seed` is that of a replicate: a complete
    trial, trained once more with a configuration of this seed, of which only the measurements are kept. `twin` is the
    trial whose result it is given, where one of the same configuration was trained in full.
    """

    number: int
    configuration: Configuration | None
    reference: str | None
    milestones: tuple[float, ...]
    assigned: float
    seed: int | None = None
    twin: int | None = None

    @classmethod
    def of(
        cls, run: Run, configuration: Configuration | None, rungs: Sequence[float], twin: int | None = None
    ) -> Assignment:
        """Return the assignment of a run that is handed out now."""
        training = configuration.training if configuration else None
        return cls(
            run.number,
            configuration,
            run.reference if isinstance(run, TrialRecord) else None,
            milestones(rungs, training.epochs, training.validate_every) if training else (),
            time.time(),
            run.seed if isinstance(run, Replicate) else None,
            twin,
        )

    def to_json(self) -> str:
        """Return the assignment as text, since Ray would interpret the keys of a mapping."""
        configuration = self.configuration.to_dict() if self.configuration else None
        return json.dumps({**vars(self), "configuration": configuration})

    @classmethod
    def from_json(cls, text: str) -> Assignment:
        data = json.loads(text)
        configuration = Configuration.from_dict(data["configuration"]) if data["configuration"] else None
        return cls(**{**data, "configuration": configuration, "milestones": tuple(data["milestones"])})


def milestones(rungs: Sequence[float], epochs: float, every: float = 1.0) -> tuple[float, ...]:
    """Return the epochs at which a trial validates: its rungs, every `every` epochs, and the end."""
    regular = (every * number for number in range(1, math.ceil(epochs / every - 1e-6)))
    apart = [epoch for epoch in regular if not any(math.isclose(epoch, rung, rel_tol=1e-6) for rung in rungs)]
    return tuple(sorted({*rungs, *apart, epochs}))
