"""The parameters of a design as a table: what `petl-search count` prints. It needs neither a study nor its store."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.table import Table

from petl.design import Design
from search.results.console import add, new_table
from search.trials.formats import count_text, percent_text

if TYPE_CHECKING:
    from petl.backbones.count import Counts


def counts_table(counts: Counts, design: str, labels: int) -> Table:
    """Return the counts of a design, with what each of them means, and the shares of its parts."""
    table = new_table(design)
    table.add_column("count", no_wrap=True)
    table.add_column("parameters", justify="right", no_wrap=True)
    table.add_column("%", justify="right", no_wrap=True)
    table.add_column("of", justify="right", no_wrap=True)
    table.add_column("meaning", overflow="fold")
    head = f"with a head for {labels} labels" if labels else "the head not counted: give --labels"
    printed = "" if counts.paper_base == counts.base else "; the denominator of its printed percentages"
    for kind, percent, of, meaning in (
        ("stored", counts.stored_percent, counts.base, "the adapter's file"),
        ("trained", counts.trained_percent, counts.base, f"has a gradient in training, {head}"),
        ("paper", counts.paper_percent, counts.paper_base, f"matrices only, as He et al. (2022) count{printed}"),
        ("base", None, None, "the pretrained model without task head"),
    ):
        number = count_text(getattr(counts, kind))
        add(table, kind, number, percent_text(percent), count_text(of), meaning)
    if len(counts.parts) > 1:
        table.add_section()
        for part in counts.parts:
            stored = percent_text(100 * part.stored / counts.base)
            described = Design((part.modification,)).describe()
            trained = "" if part.trained == part.stored else f", of which trained as {count_text(part.trained)}"
            add(table, "  of stored", count_text(part.stored), stored, "", f"{described}{trained}")
    return table
