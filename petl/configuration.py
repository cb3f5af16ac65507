"""What one trial trains: a design, its training hyperparameters, and a seed."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Final

from petl.design import Design

SCHEDULES: Final = ("linear", "cosine", "constant")


@dataclass(frozen=True, kw_only=True)
class Training:
    """Hyperparameters of one training run.

    `epochs` may be a fraction. A step is one update of the weights, on `batch_size` x
    `accumulation` rows. `warmup` is the share of all steps over which the learning rate rises from
    0. `clip` bounds the gradient's norm, 0 leaves it alone. `dropout` replaces the backbone's own
    rates; None keeps them.

    Raises ValueError, naming the rule and the value.
    """

    learning_rate: float = 1e-3
    epochs: float = 3.0
    batch_size: int = 32
    accumulation: int = 1
    schedule: str = "linear"
    warmup: float = 0.06
    weight_decay: float = 0.01
    clip: float = 1.0
    dropout: float | None = None

    def __post_init__(self) -> None:
        for name, holds, rule in (
            ("learning_rate", self.learning_rate > 0, "is positive"),
            ("epochs", self.epochs > 0, "is positive"),
            ("batch_size", self.batch_size >= 1, "is at least 1"),
            ("accumulation", self.accumulation >= 1, "is at least 1"),
            ("schedule", self.schedule in SCHEDULES, f"is one of {', '.join(SCHEDULES)}"),
            ("warmup", 0 <= self.warmup < 1, "lies in [0, 1)"),
            ("weight_decay", self.weight_decay >= 0, "is at least 0"),
            ("clip", self.clip >= 0, "is at least 0"),
            ("dropout", self.dropout is None or 0 <= self.dropout < 1, "lies in [0, 1), or is null"),
        ):
            value = getattr(self, name)
            if not holds or (isinstance(value, float) and not math.isfinite(value)):
                raise ValueError(f"{name} {rule}; received {value!r}")


TRAINING_FIELDS: Final = tuple(field.name for field in fields(Training))


@dataclass(frozen=True)
class Configuration:
    """A design point: everything that differs between the trials of one study."""

    design: Design
    training: Training = Training()
    seed: int = 0

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; `from_dict` reads it back."""
        return {"design": self.design.to_dict(), "training": asdict(self.training), "seed": self.seed}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Configuration:
        """The inverse of `to_dict`."""
        return cls(Design.from_dict(data["design"]), Training(**data["training"]), int(data["seed"]))

    @property
    def key(self) -> str:
        """A stable short hash: two configurations with one key train to the same result."""
        text = json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:12]
