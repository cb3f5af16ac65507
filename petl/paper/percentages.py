"""The parameter percentages that He et al. (ICLR 2022) print, recomputed: `python -m petl.paper`.

Their numerator is `count`'s `paper`: matrices only, prefixes as their keys and values. Which denominator
a printed percentage fits is found out here; a row that fits none is a slip of the paper.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from petl.backbones.count import PAPER_BASE, count
from petl.backbones.model import Backbone, describe
from petl.paper.results import PERCENTAGES, PrintedPercentage
from petl.presets import parse


@dataclass(frozen=True)
class CheckedPercentage:
    """A printed percentage with its number of parameters, in percent of each denominator that it may have."""

    printed: PrintedPercentage
    parameters: int
    percents: Mapping[str, float]

    @property
    def fits(self) -> tuple[str, ...]:
        """Return the denominators under which the percentage is printed as it is."""
        decimals = len(self.printed.printed.partition(".")[2])
        return tuple(
            name for name, percent in self.percents.items() if f"{percent:.{decimals}f}" == self.printed.printed
        )


def check(printed: PrintedPercentage) -> CheckedPercentage:
    """Count the row's design on a backbone of that size, from its configuration alone."""
    counts = count(parse(printed.design), from_config(printed.backbone))
    denominators = {"base": counts.base, "409.6M": next(iter(PAPER_BASE.values()))}
    if printed.backbone == "roberta-base":
        del denominators["409.6M"]
    percents = {name: 100 * counts.paper / size for name, size in denominators.items()}
    return CheckedPercentage(printed, counts.paper, percents)


@cache
def from_config(name: str) -> Backbone:
    """Describe one of the paper's backbones by its size alone: bart-large, mbart-large or roberta-base."""
    from transformers import BartConfig, MBartConfig, RobertaConfig

    configs: Mapping[str, Callable[[], Any]] = {
        "bart-large": BartConfig,
        "mbart-large": lambda: MBartConfig(vocab_size=250027, scale_embedding=True),
        "roberta-base": lambda: RobertaConfig(vocab_size=50265, max_position_embeddings=514, type_vocab_size=1),
    }
    with TemporaryDirectory() as folder:
        configs[name]().save_pretrained(folder)
        return describe(str(Path(folder) / "config.json"))


def table() -> str:
    """Return all rows as text."""
    lines: list[tuple[str, ...]] = [("table", "row", "on", "parameters", "% of base", "% of 409.6M", "printed", "fits")]
    for checked in map(check, PERCENTAGES):
        row, percents = checked.printed, checked.percents
        fits = " and ".join(checked.fits) or "nothing: a slip"
        lines.append(
            (
                ", ".join(row.tables),
                row.method,
                row.backbone,
                f"{checked.parameters:,}",
                *(f"{percents[name]:.3f}" if name in percents else "" for name in ("base", "409.6M")),
                row.printed,
                f"{fits} ({row.note})" if row.note else fits,
            )
        )
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )
