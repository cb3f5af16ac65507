"""What a study fixes when it begins, so that every later driver and worker means the same by it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from petl.backbones.model import Backbone
from petl.configuration import Configuration
from petl.tasks import Task


@dataclass(frozen=True)
class Enqueued:
    """A design to train before anything is sampled. `coordinates` are its own in the space, where that has it."""

    name: str
    configuration: Configuration
    coordinates: Mapping[str, Any] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON value that `from_dict` reads."""
        return {
            "name": self.name,
            "configuration": self.configuration.to_dict(),
            "coordinates": None if self.coordinates is None else dict(self.coordinates),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Enqueued:
        return cls(data["name"], Configuration.from_dict(data["configuration"]), data["coordinates"])


@dataclass(frozen=True)
class WrittenBytes:
    """Bytes that are the same for every trial: beside an adapter's tensors (`fixed`), and of all predictions."""

    fixed: int
    texts: int


@dataclass(frozen=True, kw_only=True)
class Resolved:
    """The backbone, the data and the sizes of a study, as its first driver found them.

    `task` is located and `backbone` has its revision, so that a resume reads the same files. `labels` are the task's,
    in the order of the head's rows; `rows` counts the texts of each split, and `digest` is the hash of their tokens.
    `epochs` is a trial's budget where the study file gives it in steps, else None. `precision` is "auto" until it has
    been measured. `uri` is the MLflow store without its password, None for the home's own. `generates` says whether the
    score that decides about trials needs generated text. `final` are the splits that finished trials are scored on.
    `starts` are the hashes of what heads start from, by what they read. `signatures` name how each score of text was
    computed. `warm` are designs from earlier studies. `data` is the JSON value of what was understood of the rows,
    empty in a study of version 0.1.0.
    """

    backbone: Backbone
    task: Task
    labels: tuple[str, ...]
    rows: Mapping[str, int]
    digest: str
    epochs: float | None
    precision: str
    uri: str | None
    generates: bool
    final: tuple[str, ...]
    written: WrittenBytes
    signatures: Mapping[str, str] = field(default_factory=dict)
    warm: tuple[Enqueued, ...] = ()
    data: Mapping[str, Any] = field(default_factory=dict)
    starts: Mapping[str, str] = field(default_factory=dict)

    @property
    def fingerprint(self) -> str:
        """The backbone's: a hash of its configuration and weights."""
        return self.backbone.fingerprint

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON value that `from_dict` reads."""
        return {
            "backbone": self.backbone.to_dict(),
            "fingerprint": self.fingerprint,
            "task": self.task.to_stored(),
            "labels": list(self.labels),
            "rows": dict(self.rows),
            "digest": self.digest,
            "epochs": self.epochs,
            "precision": self.precision,
            "uri": self.uri,
            "generates": self.generates,
            "final": list(self.final),
            "written": asdict(self.written),
            "signatures": dict(self.signatures),
            "warm": [item.to_dict() for item in self.warm],
            **({"data": dict(self.data)} if self.data else {}),
            **({"starts": dict(self.starts)} if self.starts else {}),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Resolved:
        fields = {name: value for name, value in data.items() if name != "fingerprint"}
        return cls(
            **{
                **fields,
                "backbone": Backbone.from_dict(data["backbone"]),
                "task": Task.from_stored(data["task"]),
                "labels": tuple(data["labels"]),
                "final": tuple(data["final"]),
                "written": WrittenBytes(**data["written"]),
                "warm": tuple(Enqueued.from_dict(item) for item in data["warm"]),
            }
        )
