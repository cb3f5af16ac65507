"""The task head of a classifier: what it reads, and how it starts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

MODEL: Final = "model"
POOLINGS: Final = (MODEL, "mean", "first", "last")
RANDOM, PROBE = "random", "probe"
STARTS: Final = (RANDOM, PROBE)
_READS: Final = {
    MODEL: "the model's own",
    "mean": "linear on the mean token",
    "first": "linear on the first token",
    "last": "linear on the last token",
}
_BEGINS: Final = {RANDOM: "drawn at random", PROBE: "starting from a linear probe"}


@dataclass(frozen=True, kw_only=True)
class Head:
    """What stands between the last layer of a backbone and the logits of a classifier.

    `pooling` "model" is the head that transformers gives the architecture. Any other is one linear layer on the last
    layer's output: its "mean" over a text's tokens, its "first" token or its "last" one, where neither padding nor
    the rows of a prompt count. The first token of a decoder has seen nothing of the text.

    `start` "random" draws the matrices by the seed of the training. "probe" starts from a linear probe on the frozen
    backbone, so that training begins at the probe's score (LP-FT, Kumar et al., ICLR 2022); it needs a linear head.

    Raises ValueError, naming the rule and the value.
    """

    pooling: str = MODEL
    start: str = RANDOM

    def __post_init__(self) -> None:
        for name, choices in (("pooling", POOLINGS), ("start", STARTS)):
            if getattr(self, name) not in choices:
                raise ValueError(f"head.{name} is one of {', '.join(choices)}; received {getattr(self, name)!r}")
        if self.start == PROBE and self.pooling == MODEL:
            raise ValueError(
                f"head.start probe is for a linear head, head.pooling {', '.join(POOLINGS[1:])}; received pooling model"
            )

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON value that `from_dict` reads."""
        return asdict(self)

    def changed(self, settings: Mapping[str, Any]) -> Head:
        """Return the head with settings of a study file over it; the model's own is drawn unless they say otherwise.

        Raises ValueError also for a setting that a head does not have.
        """
        if unknown := set(settings) - {"pooling", "start"}:
            raise ValueError(f"head has pooling and start; received {', '.join(sorted(map(str, unknown)))}")
        drawn = {"start": RANDOM} if settings.get("pooling") == MODEL else {}
        return Head(**{**self.to_dict(), **drawn, **settings})

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Head:
        """Read what `to_dict` writes; nothing stands for the model's own head, drawn, which was the only one once."""
        return cls(**data)

    def describe(self) -> str:
        """Return the head in words, "" for the model's own, drawn at random."""
        return "" if self == OWN_HEAD else f"{_READS[self.pooling]}, {_BEGINS[self.start]}"


OWN_HEAD: Final = Head()
LINEAR_HEAD: Final = Head(pooling="mean", start=PROBE)  # a classification's, unless its study says otherwise
