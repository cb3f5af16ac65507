"""What one training produced, and what each number is to a search: a field and its Quantity are one row."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Final, Literal, TypeAlias

Direction: TypeAlias = Literal["minimize", "maximize"]
MINIMIZE: Final[Direction] = "minimize"
MAXIMIZE: Final[Direction] = "maximize"


@dataclass(frozen=True, kw_only=True)
class Quantity:
    """What a search makes of a measurement.

    `role` says what it can be: the score of a study, its cost, or only what has a limit, such as a percentage of what
    is a cost already. `title` names it on an axis, with its unit. `counted` ones are exact before training, by
    `petl.backbones.count.Counts.values`; only these can have limits. `reference` is the worst value of interest, which
    a failed trial is given while nothing better is known; None stands for the size of the pretrained model. `knee`:
    where a quantity is spread over orders of magnitude, and differences below the knee hardly matter, a sampler is
    shown log(1 + value / knee), which is linear below it and logarithmic above.
    """

    role: Literal["score", "cost", "limit"]
    direction: Direction = MINIMIZE
    title: str = ""
    counted: bool = False
    reference: float | None = 0.0
    knee: float | None = None


def _row(default: float | None = None, **quantity: Any) -> Any:
    """Return a field of Measurements that a study can name."""
    return field(default=default, metadata={"quantity": Quantity(**quantity)})


def _score(direction: Direction = MAXIMIZE, worst: float = 0.0) -> Any:
    return _row(role="score", direction=direction, reference=worst)


def _parameters(title: str) -> Any:
    # Without a knee the step from none to the smallest design would weigh as much as from there to the largest, and a
    # search by hypervolume would spend its trials on the learning rate of the head alone.
    return _row(0, role="cost", title=title, counted=True, reference=None, knee=1_000.0)


_GUESS: Final = 10.0  # cross-entropy of a uniform guess among 22,026 labels or tokens


@dataclass(frozen=True, kw_only=True)
class Measurements:
    """Scores are shares in [0, 1] on the validation split, or its sample; None: not there for this task, or
    not measured. BLEU is on its usual scale, 0 to 100: `sacrebleu` as sacreBLEU has it by default,
    `paper_bleu` tokenised, without Romanian diacritics, as He et al. (2022) have it.

    `head_parameters` are those of a task head that is trained, which belong to no adapter.
    `stored_percent` and `trained_percent` are relative to `base_parameters`: the pretrained model
    without task head. `seconds` is the time spent training and validating, over all attempts.
    `tokens_per_second` counts real tokens (padding left out) in training, of a source and its target the
    longer. `peak_memory_mb` is the worker's highest memory during training: of its process on CPU, of the
    allocator on GPU.
    `latency_ms` is the median time of predicting one row.
    """

    accuracy: float | None = _score()
    f1: float | None = _score()  # macro average
    matthews: float | None = _score()
    loss: float | None = _score(MINIMIZE, _GUESS)  # mean cross-entropy per label or target token, natural logarithm
    perplexity: float | None = _score(MINIMIZE, math.exp(_GUESS))  # exp(loss)
    rouge1: float | None = _score()
    rouge2: float | None = _score()
    rougeL: float | None = _score()  # noqa: N815 (as everyone writes it)
    rougeLsum: float | None = _score()  # noqa: N815
    sacrebleu: float | None = _score()
    paper_bleu: float | None = _score()
    stored_parameters: int = _parameters("stored parameters")
    trained_parameters: int = _parameters("trained parameters")
    paper_parameters: int = _parameters("parameters as the paper counts them")
    head_parameters: int | None = None
    base_parameters: int = 0
    stored_percent: float = _row(0.0, role="limit", counted=True)
    trained_percent: float = _row(0.0, role="limit", counted=True)
    epochs: float = 0.0
    steps: int = 0
    seconds: float = _row(0.0, role="cost", title="training time (s)", reference=86_400.0, knee=1.0)
    tokens_per_second: float | None = None
    peak_memory_mb: float | None = _row(role="cost", title="peak memory (MB)", reference=81_920.0)
    latency_ms: float | None = _row(role="cost", title="latency of one row (ms)", reference=1_000.0)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values, without what was not measured."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Measurements:
        """Read what `to_dict` writes; fields of other releases are ignored."""
        names = {field.name for field in fields(cls)}
        return cls(**{name: value for name, value in data.items() if name in names})


QUANTITIES: Final[Mapping[str, Quantity]] = {
    row.name: row.metadata["quantity"] for row in fields(Measurements) if "quantity" in row.metadata
}
# The scores of a task's kinds, each with whether higher is better.
SCORES: Final[Mapping[str, bool]] = {
    name: quantity.direction == MAXIMIZE for name, quantity in QUANTITIES.items() if quantity.role == "score"
}
# Those that lie between 0 and 1: people multiply them by 100, and 0.01 of them is a point.
SHARES: Final = frozenset(("accuracy", "f1", "matthews", "rouge1", "rouge2", "rougeL", "rougeLsum"))
