"""The scores that He et al. (ICLR 2022) print, and what they conclude from them.

Numbers are as printed: percent points for accuracy and ROUGE, BLEU from 0 to 100; `xsum` and `en-ro` on
the test split, `mnli` and `sst2` on the development one. The series of Figure 4 are from the authors' code
that draws it. A row has the name of its percentage in `petl.paper.percentages.ROWS`, where that has one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from petl.paper.percentages import ROWS


@dataclass(frozen=True)
class PaperTask:
    """One of the paper's tasks: what is printed, the headline first, and the split that it is measured on."""

    headline: str
    scores: tuple[str, ...]
    split: str


PAPER_TASKS: Final[Mapping[str, PaperTask]] = {
    "xsum": PaperTask("rouge2", ("rouge1", "rouge2", "rougeL"), "test"),
    "en-ro": PaperTask("paper_bleu", ("paper_bleu",), "test"),
    "mnli": PaperTask("accuracy", ("accuracy",), "validation"),
    "sst2": PaperTask("accuracy", ("accuracy",), "validation"),
}


@dataclass(frozen=True)
class Number:
    """A printed score, and the ± behind it where there is one."""

    value: float
    spread: float | None = None


@dataclass(frozen=True)
class Result:
    """A printed row. `scores` maps a task to its scores; `note` where a score is a slip or not their own."""

    tables: tuple[str, ...]
    name: str
    scores: Mapping[str, Mapping[str, Number]]
    note: str = ""


@dataclass(frozen=True)
class Finding:
    """A conclusion: in each pair of rows the first is the better one."""

    tables: tuple[str, ...]
    claim: str
    pairs: Sequence[tuple[str, str]]


def _xsum(scores: str, spreads: str = "") -> dict[str, Number]:
    """ROUGE-1/2/L as the paper writes them: 43.40/20.46/35.51."""
    spread = [float(text) for text in spreads.split("/")] if spreads else [None] * 3
    names = PAPER_TASKS["xsum"].scores
    return {name: Number(float(text), s) for name, text, s in zip(names, scores.split("/"), spread, strict=True)}


def _bleu(score: float, spread: float | None = None) -> dict[str, Number]:
    return {"paper_bleu": Number(score, spread)}


def _both(rouge: str, bleu: float) -> dict[str, dict[str, Number]]:
    return {"xsum": _xsum(rouge), "en-ro": _bleu(bleu)}


def _glue(
    mnli: float, sst2: float, spreads: tuple[float | None, float | None] = (None, None)
) -> dict[str, dict[str, Number]]:
    return {"mnli": {"accuracy": Number(mnli, spreads[0])}, "sst2": {"accuracy": Number(sst2, spreads[1])}}


def _figure(rouge2: float | None, bleu: float | None) -> dict[str, dict[str, Number]]:
    series = {"xsum": rouge2, "en-ro": bleu}
    return {task: {PAPER_TASKS[task].headline: Number(value)} for task, value in series.items() if value is not None}


_COPIED: Final = "copied by the paper from earlier work"
_SIZES: Final = "Table 12 prints another R-2 for this size, and the plotting code questions its own"

RESULTS: Final[Sequence[Result]] = (
    Result(("2",), "full fine-tuning", _glue(87.6, 94.6, (0.4, 0.4))),
    Result(("2",), "BitFit", _glue(84.7, 93.7), _COPIED),
    Result(("2",), "prefix, l = 32", _glue(86.3, 94.0, (0.4, 0.1))),
    Result(("2",), "LoRA (attn), r = 16", _glue(87.2, 94.2, (0.4, 0.2))),
    Result(("2",), "adapter (ffn), r = 32", _glue(87.2, 94.2, (0.2, 0.1))),
    Result(("2",), "MAM, l = 16, r = 16", _glue(87.4, 94.2, (0.3, 0.3))),
    Result(("3", "12"), "prefix, l = 200", _both("43.40/20.46/35.51", 35.6)),
    Result(("12",), "prefix, l = 512", _both("43.29/20.40/35.37", 35.1)),
    Result(("12",), "LoRA (attn), r = 200", _both("43.09/20.29/35.37", 36.2)),
    Result(("12",), "LoRA (ffn), r = 102", _both("44.59/21.31/36.25", 36.5)),
    Result(("3", "12"), "sequential adapter (attn), r = 200", _both("42.01/19.30/34.40", 35.3)),
    Result(("12",), "sequential adapter (attn), r = 512", _both("41.05/18.87/33.71", 34.7)),
    Result(("3", "12"), "sequential adapter (ffn), r = 200", _both("43.21/19.98/35.08", 35.6)),
    Result(("12",), "sequential adapter (ffn), r = 512", _both("43.72/20.75/35.64", 36.3)),
    Result(("12",), "sequential adapter (ffn), r = 1024", _both("43.95/21.00/35.90", 36.7)),
    Result(("3", "12"), "parallel adapter (attn), r = 200", _both("43.58/20.31/35.34", 35.6)),
    Result(("12",), "parallel adapter (attn), r = 512", _both("43.99/20.83/35.77", 36.2)),
    Result(("3", "12"), "parallel adapter (ffn), r = 200", _both("43.93/20.66/35.63", 36.4)),
    Result(("12",), "parallel adapter (ffn), r = 512", _both("44.35/20.98/35.98", 37.1)),
    Result(("12",), "parallel adapter (ffn), r = 1024", _both("44.53/21.24/36.23", 37.3)),
    Result(("4",), "parallel adapter (attn), r = 200", {"en-ro": _bleu(35.6)}),
    Result(("4",), "prefix, l = 200", {"en-ro": _bleu(35.6)}),
    Result(("4",), "multi-head parallel adapter, r = 200", {"en-ro": _bleu(35.8)}),
    Result(("4",), "prefix, l = 30", {"en-ro": _bleu(35.2)}),
    Result(("4",), "prefix without gate, l = 30", {"en-ro": _bleu(34.9)}),
    Result(("4",), "parallel adapter (ffn), r = 30", {"en-ro": _bleu(33.0)}),
    Result(("4",), "parallel adapter (attn), r = 30", {"en-ro": _bleu(33.7)}),
    Result(("4",), "multi-head parallel adapter, r = 30", {"en-ro": _bleu(35.3)}),
    Result(("5",), "LoRA (ffn), r = 102, s = 4", {"xsum": _xsum("44.59/21.31/36.25")}),
    Result(("5",), "LoRA (ffn), r = 102, s = 1", {"xsum": _xsum("44.17/20.83/35.74")}),
    Result(("5",), "parallel adapter (ffn), r = 512", {"xsum": _xsum("44.35/20.98/35.98")}),
    Result(("5",), "scaled parallel adapter, r = 512, s = 4", {"xsum": _xsum("44.85/21.54/36.58")}),
    Result(("5",), "scaled parallel adapter, r = 512, trained s", {"xsum": _xsum("44.56/21.31/36.29")}),
    Result(("6",), "full fine-tuning", _both("44.81/21.94/36.83", 37.3)),
    Result(("6",), "BitFit (XSum)", {"xsum": _xsum("40.64/17.32/32.19")}),
    Result(("6",), "BitFit (en-ro)", {"en-ro": _bleu(26.4)}),
    Result(("6",), "prompt, l = 300 (XSum)", {"xsum": _xsum("38.91/15.98/30.83")}),
    Result(("6",), "prompt, l = 200 (en-ro)", {"en-ro": _bleu(21.0)}),
    Result(("6",), "prefix, l = 200", _both("43.40/20.46/35.51", 35.6)),
    Result(
        ("6",),
        "Pfeiffer adapter, r = 600",
        {"xsum": _xsum("44.03/20.89/35.89", "0.13/0.10/0.08"), "en-ro": _bleu(36.9, 0.1)},
    ),
    Result(
        ("6",),
        "LoRA (ffn), r = 102",
        {"xsum": _xsum("44.53/21.29/36.28", "0.14/0.07/0.10"), "en-ro": _bleu(36.8, 0.3)},
    ),
    Result(
        ("6",),
        "parallel adapter (ffn), r = 1024",
        {"xsum": _xsum("44.71/21.41/36.41", "0.16/0.17/0.16"), "en-ro": _bleu(37.2, 0.1)},
    ),
    Result(
        ("6",),
        "parallel adapters, attn 30 and ffn 512",
        {"xsum": _xsum("44.29/21.06/36.12", "0.31/0.19/0.18"), "en-ro": _bleu(37.2, 0.1)},
    ),
    Result(
        ("6",),
        "prefix 30 + LoRA (ffn) 102",
        {"xsum": _xsum("44.84/21.71/36.77", "0.07/0.05/0.03"), "en-ro": _bleu(37.0, 0.1)},
    ),
    Result(
        ("6",),
        "MAM, l = 30, r = 512",
        {"xsum": _xsum("45.06/21.90/36.87", "0.08/0.01/0.04"), "en-ro": _bleu(37.5, 0.1)},
    ),
    Result(("figure 4",), "prefix, l = 1", _figure(18.14, 30.2)),
    Result(("figure 4",), "prefix, l = 30", _figure(20.01, 35.2)),
    Result(("figure 4",), "prefix, l = 200", _figure(20.46, 35.6)),
    Result(("figure 4",), "prefix, l = 512", _figure(20.40, 35.1)),
    Result(("figure 4",), "LoRA (attn), r = 1", _figure(17.4, 25.5)),
    Result(("figure 4",), "LoRA (attn), r = 30", _figure(19.59, 34.2)),
    Result(("figure 4",), "LoRA (attn), r = 200", _figure(20.29, 36.2)),
    Result(("figure 4",), "LoRA (attn), r = 400", _figure(20.5, 36.6)),
    Result(("figure 4",), "sequential adapter (ffn), r = 1", _figure(None, 24.3)),
    Result(("figure 4",), "sequential adapter (ffn), r = 30", _figure(18.81, 33.0)),
    Result(("figure 4",), "sequential adapter (ffn), r = 200", _figure(20.4, None), _SIZES),
    Result(("figure 4",), "sequential adapter (ffn), r = 200", _figure(None, 35.6)),
    Result(("figure 4",), "sequential adapter (ffn), r = 512", _figure(20.58, None), _SIZES),
    Result(("figure 4",), "sequential adapter (ffn), r = 512", _figure(None, 36.3)),
    Result(("figure 4",), "sequential adapter (ffn), r = 1024", _figure(20.98, None), _SIZES),
    Result(("figure 4",), "sequential adapter (ffn), r = 1024", _figure(None, 36.7)),
    Result(("figure 4",), "prompt, l = 1", _figure(5.33, 6.0)),
    Result(("figure 4",), "prompt, l = 30", _figure(14.0, 16.7)),
    Result(("figure 4",), "prompt, l = 200", _figure(15.49, 21.0)),
    Result(("figure 4",), "prompt, l = 300", _figure(15.98, None)),
)
TABLES: Final[tuple[str, ...]] = tuple(dict.fromkeys(table for result in RESULTS for table in result.tables))

_ADAPTERS: Final = (
    "the paper's text puts parallel over sequential adapters (ffn) at 1.7 ROUGE-2; by its table it is 0.68"
)
REMARKS: Final[Mapping[str, str]] = {  # on all numbers of a table
    "2": "the paper's accuracies are medians of 5 runs",
    "3": _ADAPTERS,
    "4": "the paper's text puts multi-head adapters 1.6 or more over all others; its table, 0.1 over the prefix",
    "5": "the paper's third score is ROUGE-LSum by the table's header, ROUGE-L by its equal rows of Table 12",
    "6": "the paper's scores with ± are means of 3 runs, the others single runs",
    "12": _ADAPTERS,
}
EN_RO: Final = "the paper's percentages of mBART are of BART-large's 409.6 M parameters, not of its own 610.9 M"

FINDINGS: Final[Sequence[Finding]] = (
    Finding(
        ("3", "12"),
        "parallel over sequential",
        tuple(
            (f"parallel adapter {where}", f"sequential adapter {where}")
            for where in ("(attn), r = 200", "(attn), r = 512", "(ffn), r = 200", "(ffn), r = 512", "(ffn), r = 1024")
        ),
    ),
    Finding(
        ("3", "12"),
        "FFN over attention at a high budget",
        (
            ("parallel adapter (ffn), r = 200", "parallel adapter (attn), r = 200"),
            ("parallel adapter (ffn), r = 512", "parallel adapter (attn), r = 512"),
            ("LoRA (ffn), r = 102", "LoRA (attn), r = 200"),
        ),
    ),
    Finding(
        ("4",),
        "heads over other places at a low budget",
        tuple(
            (heads, other)
            for heads in ("multi-head parallel adapter, r = 30", "prefix, l = 30", "prefix without gate, l = 30")
            for other in ("parallel adapter (attn), r = 30", "parallel adapter (ffn), r = 30")
        ),
    ),
    Finding(("4",), "the gate helps a prefix", (("prefix, l = 30", "prefix without gate, l = 30"),)),
    Finding(
        ("5",),
        "scaling over plain adding",
        (
            ("scaled parallel adapter, r = 512, s = 4", "parallel adapter (ffn), r = 512"),
            ("LoRA (ffn), r = 102, s = 4", "LoRA (ffn), r = 102, s = 1"),
        ),
    ),
    Finding(
        ("5",),
        "a tuned constant s over a trained one",
        (("scaled parallel adapter, r = 512, s = 4", "scaled parallel adapter, r = 512, trained s"),),
    ),
    Finding(
        ("6",),
        "MAM over the other efficient methods",
        tuple(
            ("MAM, l = 30, r = 512", other)
            for other in (
                "prefix, l = 200",
                "Pfeiffer adapter, r = 600",
                "LoRA (ffn), r = 102",
                "parallel adapter (ffn), r = 1024",
                "parallel adapters, attn 30 and ffn 512",
                "prefix 30 + LoRA (ffn) 102",
            )
        ),
    ),
    Finding(
        ("2",),
        "MAM over the other efficient methods",
        tuple(
            ("MAM, l = 16, r = 16", other)
            for other in ("prefix, l = 32", "LoRA (attn), r = 16", "adapter (ffn), r = 32", "BitFit")
        ),
    ),
    Finding(("figure 4",), "a prefix stops gaining from length", (("prefix, l = 200", "prefix, l = 512"),)),
    Finding(
        ("figure 4",),
        "LoRA and adapters go on gaining",
        (
            ("LoRA (attn), r = 400", "LoRA (attn), r = 200"),
            ("sequential adapter (ffn), r = 1024", "sequential adapter (ffn), r = 200"),
        ),
    ),
)


def results(table: str, task: str) -> dict[str, Result]:
    """The rows of a table that have scores on a task, by name."""
    return {result.name: result for result in RESULTS if table in result.tables and task in result.scores}


def percent(table: str, name: str) -> tuple[str, str]:
    """The percentage of parameters that a table prints for a row, and what is wrong with it; "" for nothing."""
    if name.startswith("full fine-tuning"):
        return "100", ""
    found = (row for row in ROWS if row.method == name and table in row.tables.split(", "))
    return next(((row.printed, row.note) for row in found), ("", ""))
