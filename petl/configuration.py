"""What one trial trains: a design, a head, its training hyperparameters, and a seed."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from typing import Any, Final

from petl.design import Design, plain
from petl.head import OWN_HEAD, Head
from petl.measurements import SCORES

SCHEDULES: Final = ("linear", "cosine", "constant")
LAST: Final = "last"
EPOCHS: Final = 3.0  # of a training whose length nobody gives
STEP, MICRO_BATCH = "step", "micro-batch"  # what a loss is the mean over
BEFORE: Final[Mapping[str, Any]] = {  # fields that Training was given later: what earlier trainings did
    "loss_over": MICRO_BATCH,
}
OFFLOAD: Final[Mapping[str, tuple[int, ...]]] = {  # what DeepSpeed can keep off the GPU, and at which ZeRO stages
    "optimizer": (1, 2, 3),
    "parameters": (3,),
}


def check_offload(zero: int, offload: Collection[str]) -> None:
    """Raise ValueError where a ZeRO stage cannot offload that."""
    for what in offload:
        if zero not in OFFLOAD.get(what, ()):
            able = "; ".join(f"{name}, at ZeRO stage {', '.join(map(str, stages))}" for name, stages in OFFLOAD.items())
            raise ValueError(f"what can be offloaded is {able}; received {what!r} at stage {zero}")


@dataclass(frozen=True, kw_only=True)
class Training:
    """Hyperparameters of one training run.

    `epochs` may be a fraction. A step is one update of the weights, on `accumulation` micro-batches of
    `batch_size` rows, over all workers; with `batch_tokens` a micro-batch has as many rows as fit into
    so many tokens instead, a row counting as the longer of its source and target, padded (fairseq's
    batches).
    `loss_over` is what a loss is the mean over: all labels or target tokens of a "step", however they are dealt out to
    micro-batches and workers (transformers since 4.46), or of each "micro-batch", whose means then weigh the same.
    `warmup` is the share of all steps over which the learning rate rises from 0. `beta2` and `epsilon`
    are AdamW's. `clip` bounds the gradient's norm, 0 leaves it alone. `label_smoothing` is the share of
    a token's target that is spread over the vocabulary; losses on the validation split are without.
    `dropout` replaces the backbone's own rates; None keeps them.

    A run validates every `validate_every` epochs. `keep` says what it ends with: its "last" weights, or
    those of the validation that was best by the score named, such as rouge2 or loss. `patience` ends it
    after so many validations in a row without a better one; 0 trains to the end.

    Raises ValueError, naming the rule and the value.
    """

    learning_rate: float = 1e-3
    epochs: float = EPOCHS
    batch_size: int = 32
    batch_tokens: int = 0
    accumulation: int = 1
    loss_over: str = STEP
    schedule: str = "linear"
    warmup: float = 0.06
    weight_decay: float = 0.01
    beta2: float = 0.999
    epsilon: float = 1e-8
    clip: float = 1.0
    label_smoothing: float = 0.0
    dropout: float | None = None
    validate_every: float = 1.0
    keep: str = LAST
    patience: int = 0

    def __post_init__(self) -> None:
        for name in TRAINING_FIELDS:
            object.__setattr__(self, name, plain(getattr(self, name)))
        for name, holds, rule in (
            ("learning_rate", self.learning_rate > 0, "is positive"),
            ("epochs", self.epochs > 0, "is positive"),
            ("batch_size", self.batch_size >= 1, "is at least 1"),
            ("batch_tokens", self.batch_tokens >= 0, "is at least 0"),
            ("accumulation", self.accumulation >= 1, "is at least 1"),
            ("loss_over", self.loss_over in (STEP, MICRO_BATCH), f"is {STEP} or {MICRO_BATCH}"),
            ("schedule", self.schedule in SCHEDULES, f"is one of {', '.join(SCHEDULES)}"),
            ("warmup", 0 <= self.warmup < 1, "lies in [0, 1)"),
            ("weight_decay", self.weight_decay >= 0, "is at least 0"),
            ("beta2", 0 <= self.beta2 < 1, "lies in [0, 1)"),
            ("epsilon", self.epsilon > 0, "is positive"),
            ("clip", self.clip >= 0, "is at least 0"),
            ("label_smoothing", 0 <= self.label_smoothing < 1, "lies in [0, 1)"),
            ("dropout", self.dropout is None or 0 <= self.dropout < 1, "lies in [0, 1), or is null"),
            ("validate_every", self.validate_every > 0, "is positive"),
            ("keep", self.keep in (LAST, *SCORES), f"is {LAST}, or one of {', '.join(SCORES)}"),
            (
                "patience",
                self.patience >= 0 and (self.patience == 0 or self.keep != LAST),
                "is 0, or counts validations that are no better by the score that `keep` names",
            ),
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
    head: Head = OWN_HEAD

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values, which `from_dict` reads."""
        return {
            "design": self.design.to_dict(),
            "training": asdict(self.training),
            "seed": self.seed,
            "head": self.head.to_dict(),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Configuration:
        """Read what `to_dict` writes, and what it wrote before a training had all of its fields."""
        training = Training(**{**BEFORE, **data["training"]})
        head = Head.from_dict(data.get("head", {}))
        return cls(Design.from_dict(data["design"]), training, int(data["seed"]), head)

    @cached_property
    def key(self) -> str:
        """Return a stable short hash: two configurations with one key train to the same result.

        Fields that came later do not enter it where they say what was done before, or nothing.
        """
        values = self.to_dict()
        if self.training.accumulation == 1:
            values["training"]["loss_over"] = MICRO_BATCH  # which is the step
        later = [name for name, before in BEFORE.items() if values["training"][name] == before]
        values["training"] = {name: value for name, value in values["training"].items() if name not in later}
        if self.head == OWN_HEAD:
            del values["head"]
        text = json.dumps(values, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:12]
