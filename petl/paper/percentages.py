"""The parameter percentages that He et al. (ICLR 2022) print, recomputed: `python -m petl.paper.percentages`.

Their numerator is `count`'s `paper`: matrices only, prefixes as their keys and values. Which denominator
a printed percentage fits is found out here; a row that fits none is a slip of the paper.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from petl.backbones.count import PAPER_BASE, count
from petl.backbones.model import Backbone, describe
from petl.presets import parse


@dataclass(frozen=True)
class Row:
    """One printed percentage. `printed` is the text, whose decimals say how it was rounded; `note` where it errs."""

    tables: str
    method: str
    backbone: str
    design: str
    printed: str
    note: str = ""


_THIRTY: Final = "0.1 at l or r = 30 is wrong under any denominator"
ROWS: Final[Sequence[Row]] = (
    Row("3, 4, 6, 12", "prefix, l = 200", "bart-large", "prefix:length=200", "3.6"),
    Row("3, 12", "sequential adapter (attn), r = 200", "bart-large", "sequential:size=200,where=attention", "3.6"),
    Row("3, 4, 12", "parallel adapter (attn), r = 200", "bart-large", "parallel:size=200,where=attention", "3.6"),
    Row("4", "multi-head parallel adapter, r = 200", "mbart-large", "multihead_parallel:size=200", "3.6"),
    Row("12", "sequential adapter (attn), r = 512", "bart-large", "sequential:size=512,where=attention", "9.2"),
    Row("12", "prefix, l = 512", "bart-large", "prefix:length=512", "9.2"),
    Row("12", "parallel adapter (attn), r = 512", "bart-large", "parallel:size=512,where=attention", "9.2"),
    Row("12", "LoRA (attn), r = 200", "bart-large", "lora:rank=200", "7.2"),
    Row("3, 12", "sequential adapter (ffn), r = 200", "bart-large", "sequential:size=200", "2.4"),
    Row("12", "sequential adapter (ffn), r = 512", "bart-large", "sequential:size=512", "6.1"),
    Row("12", "sequential adapter (ffn), r = 1024", "bart-large", "sequential:size=1024", "12.3"),
    Row("3, 12", "parallel adapter (ffn), r = 200", "bart-large", "parallel:size=200", "2.4"),
    Row("5, 12", "parallel adapter (ffn), r = 512", "bart-large", "parallel:size=512", "6.1"),
    Row("5", "scaled parallel adapter, r = 512, s = 4", "bart-large", "scaled_parallel:size=512,scale=4", "6.1"),
    Row(
        "5",
        "scaled parallel adapter, r = 512, trained s",
        "bart-large",
        "scaled_parallel:size=512,scale=1,trained=true",
        "6.1",
    ),
    Row("6, 12", "parallel adapter (ffn), r = 1024", "bart-large", "parallel:size=1024", "12.3"),
    Row("12", "LoRA (ffn), r = 102", "bart-large", "lora:rank=102,where=ffn,scale=4", "6.1"),
    Row("5", "LoRA (ffn), r = 102, s = 4", "bart-large", "lora:rank=102,where=ffn,scale=4", "6.1"),
    Row("5", "LoRA (ffn), r = 102, s = 1", "bart-large", "lora:rank=102,where=ffn,scale=1", "6.1"),
    Row("6", "LoRA (ffn), r = 102", "bart-large", "lora:rank=102,where=ffn,scale=4", "7.2", "7.2 would be r = 120"),
    Row("6", "Pfeiffer adapter, r = 600", "bart-large", "pfeiffer:size=600", "7.2"),
    Row(
        "6",
        "parallel adapters, attn 30 and ffn 512",
        "bart-large",
        "parallel:size=30,where=attention + parallel:size=512",
        "6.7",
    ),
    Row("6", "MAM, l = 30, r = 512", "bart-large", "mam:length=30,size=512", "6.7"),
    Row("6", "prefix 30 + LoRA (ffn) 102", "bart-large", "prefix_lora:length=30,rank=102", "6.7"),
    Row("4", "prefix, l = 30", "mbart-large", "prefix:length=30", "0.1", _THIRTY),
    Row("4", "prefix without gate, l = 30", "mbart-large", "prefix:length=30,gated=false", "0.1", _THIRTY),
    Row("4", "parallel adapter (attn), r = 30", "mbart-large", "parallel:size=30,where=attention", "0.1", _THIRTY),
    Row("4", "multi-head parallel adapter, r = 30", "mbart-large", "multihead_parallel:size=30", "0.1", _THIRTY),
    Row("4", "parallel adapter (ffn), r = 30", "mbart-large", "parallel:size=30", "0.1", _THIRTY),
    Row("6", "prompt, l = 300 (XSum)", "bart-large", "prompt:length=300", "0.1"),
    Row("6", "prompt, l = 200 (en-ro)", "mbart-large", "prompt:length=200", "0.1", "0.034 of its own"),
    Row("6", "BitFit (XSum)", "bart-large", "bitfit", "0.1"),
    Row("6", "BitFit (en-ro)", "mbart-large", "bitfit", "0.1"),
    Row("2", "MAM, l = 16, r = 16", "roberta-base", "mam:length=16,size=16", "0.5"),
    Row("2", "LoRA (attn), r = 16", "roberta-base", "lora:rank=16", "0.5"),
    Row("2", "prefix, l = 32", "roberta-base", "prefix:length=32", "0.5"),
    Row("2", "adapter (ffn), r = 32", "roberta-base", "sequential:size=32", "0.5"),
    Row("2", "BitFit", "roberta-base", "bitfit", "0.1"),
)


@dataclass(frozen=True)
class Checked:
    """A row with its number of parameters, and the denominators that the printed percentage fits."""

    row: Row
    parameters: int
    percents: Mapping[str, float]

    @property
    def fits(self) -> tuple[str, ...]:
        """Those under which the percentage is printed as it is."""
        decimals = len(self.row.printed.partition(".")[2])
        return tuple(name for name, percent in self.percents.items() if f"{percent:.{decimals}f}" == self.row.printed)


def check(row: Row) -> Checked:
    """Count the row's design on a backbone of that size, from its configuration alone."""
    backbone = from_config(row.backbone)
    counts = count(parse(row.design), backbone)
    denominators = {"base": counts.base, "409.6M": next(iter(PAPER_BASE.values()))}
    if row.backbone == "roberta-base":
        del denominators["409.6M"]
    return Checked(row, counts.paper, {name: 100 * counts.paper / size for name, size in denominators.items()})


@cache
def from_config(name: str) -> Backbone:
    """One of the paper's backbones, by its size alone: bart-large, mbart-large or roberta-base."""
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
    """All rows as text."""
    lines: list[tuple[str, ...]] = [("table", "row", "on", "parameters", "% of base", "% of 409.6M", "printed", "fits")]
    for checked in map(check, ROWS):
        row, percents = checked.row, checked.percents
        fits = " and ".join(checked.fits) or "nothing: a slip"
        lines.append(
            (
                row.tables,
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


if __name__ == "__main__":
    print(table())
