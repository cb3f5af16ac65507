"""What one training produced. `search.trials.objectives` says which fields can be a study's objectives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Final

# The scores of a task's kinds, each with whether higher is better.
SCORES: Final[Mapping[str, bool]] = {
    "accuracy": True,
    "f1": True,
    "matthews": True,
    "loss": False,
    "perplexity": False,
    "rouge1": True,
    "rouge2": True,
    "rougeL": True,
    "rougeLsum": True,
    "sacrebleu": True,
    "paper_bleu": True,
}
# Those that lie between 0 and 1: people multiply them by 100, and 0.01 of them is a point.
SHARES: Final = frozenset(("accuracy", "f1", "matthews", "rouge1", "rouge2", "rougeL", "rougeLsum"))


@dataclass(frozen=True, kw_only=True)
class Measurements:
    """Scores are shares in [0, 1] on the validation split, or its sample; None: not there for this task, or
    not measured. BLEU is on its usual scale, 0 to 100: `sacrebleu` as sacreBLEU has it by default,
    `paper_bleu` tokenised, without Romanian diacritics, as He et al. (2022) have it.

    `stored_percent` and `trained_percent` are relative to `base_parameters`: the pretrained model
    without task head. `seconds` is the time spent training and validating, over all attempts.
    `tokens_per_second` counts real tokens (padding left out) in training, of a source and its target the
    longer. `peak_memory_mb` is the worker's highest memory during training: of its process on CPU, of the
    allocator on GPU.
    `latency_ms` is the median time of predicting one row.
    """

    accuracy: float | None = None
    f1: float | None = None  # macro average
    matthews: float | None = None
    loss: float | None = None  # mean cross-entropy per label or target token, natural logarithm
    perplexity: float | None = None  # exp(loss)
    rouge1: float | None = None
    rouge2: float | None = None
    rougeL: float | None = None  # noqa: N815 (as everyone writes it)
    rougeLsum: float | None = None  # noqa: N815
    sacrebleu: float | None = None
    paper_bleu: float | None = None
    stored_parameters: int = 0
    trained_parameters: int = 0
    paper_parameters: int = 0
    base_parameters: int = 0
    stored_percent: float = 0.0
    trained_percent: float = 0.0
    epochs: float = 0.0
    steps: int = 0
    seconds: float = 0.0
    tokens_per_second: float | None = None
    peak_memory_mb: float | None = None
    latency_ms: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; what was not measured is left out."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Measurements:
        """Fields of other releases are ignored."""
        names = {field.name for field in fields(cls)}
        return cls(**{name: value for name, value in data.items() if name in names})
