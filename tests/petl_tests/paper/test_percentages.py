"""The percentages that the paper prints, against the accounting of its appendix (Tables 9 to 11)."""

from __future__ import annotations

import subprocess
import sys

import pytest

from petl.paper import percentages as paper
from petl.paper.percentages import check
from petl.paper.results import PERCENTAGES, PrintedPercentage

# Parameters by the paper's own formulas: 2 l d a prefix, 2 r d an adapter, 4 r d LoRA on an attention,
# 10 r d LoRA on an FFN; BART and mBART have 36 attentions and 24 FFNs of d = 1024, RoBERTa 12 and 12 of 768.
D, ATTENTIONS, FFNS = 1024, 36, 24
EXPECTED = {
    "prefix:length=200": 2 * 200 * D * ATTENTIONS,
    "sequential:size=200,where=attention": 2 * 200 * D * ATTENTIONS,
    "parallel:size=200,where=attention": 2 * 200 * D * ATTENTIONS,
    "multihead_parallel:size=200": 2 * 200 * D * ATTENTIONS,
    "sequential:size=512,where=attention": 2 * 512 * D * ATTENTIONS,
    "sequential:size=512": 2 * 512 * D * FFNS,
    "sequential:size=1024": 2 * 1024 * D * FFNS,
    "prefix:length=512": 2 * 512 * D * ATTENTIONS,
    "parallel:size=512,where=attention": 2 * 512 * D * ATTENTIONS,
    "lora:rank=200": 4 * 200 * D * ATTENTIONS,
    "sequential:size=200": 2 * 200 * D * FFNS,
    "parallel:size=200": 2 * 200 * D * FFNS,
    "parallel:size=512": 2 * 512 * D * FFNS,
    "scaled_parallel:size=512,scale=4": 2 * 512 * D * FFNS,
    "scaled_parallel:size=512,scale=1,trained=true": 2 * 512 * D * FFNS,
    "parallel:size=1024": 2 * 1024 * D * FFNS,
    "lora:rank=102,where=ffn,scale=4": 10 * 102 * D * FFNS,
    "lora:rank=102,where=ffn,scale=1": 10 * 102 * D * FFNS,
    "pfeiffer:size=600": 2 * 600 * D * FFNS,
    "parallel:size=30,where=attention + parallel:size=512": 2 * D * (30 * ATTENTIONS + 512 * FFNS),
    "mam:length=30,size=512": 2 * D * (30 * ATTENTIONS + 512 * FFNS),
    "prefix_lora:length=30,rank=102": 2 * 30 * D * ATTENTIONS + 10 * 102 * D * FFNS,
    "prefix:length=30": 2 * 30 * D * ATTENTIONS,
    "prefix:length=30,gated=false": 2 * 30 * D * ATTENTIONS,
    "parallel:size=30,where=attention": 2 * 30 * D * ATTENTIONS,
    "multihead_parallel:size=30": 2 * 30 * D * ATTENTIONS,
    "parallel:size=30": 2 * 30 * D * FFNS,
    "prompt:length=300": 300 * D,
    "prompt:length=200": 200 * D,
    "mam:length=16,size=16": 2 * 768 * (16 * 12 + 16 * 12),
    "lora:rank=16": 4 * 16 * 768 * 12,
    "prefix:length=32": 2 * 32 * 768 * 12,
    "sequential:size=32": 2 * 32 * 768 * 12,
}
# Biases of the linears and norms of each layer, then of the embeddings' norms and mBART's last ones.
ENCODER_LAYER, DECODER_LAYER = 4 + 5 + 2, 2 * 4 + 5 + 3  # in widths: attentions, fc1 and fc2, norms
BIASES = {
    "bart-large": (12 * ENCODER_LAYER + 12 * DECODER_LAYER + 2) * D,
    "mbart-large": (12 * ENCODER_LAYER + 12 * DECODER_LAYER + 4) * D,
    "roberta-base": (12 * ENCODER_LAYER + 1) * 768,
}
SLIPS = {
    (("6",), "LoRA (ffn), r = 102"),
    *((("4",), row.method) for row in PERCENTAGES if row.tables == ("4",) and row.method.endswith("= 30")),
}


@pytest.mark.parametrize("row", PERCENTAGES, ids=lambda row: f"{'-'.join(row.tables)}-{row.design}")
def test_row(row: PrintedPercentage) -> None:
    checked = check(row)
    assert checked.parameters == (BIASES[row.backbone] if row.design == "bitfit" else EXPECTED[row.design])
    assert bool(checked.fits) != ((row.tables, row.method) in SLIPS)
    assert bool(row.note) or checked.fits


def test_no_other_denominator_fits_all() -> None:
    """409.6 M fits every row of BART and mBART that is no slip; neither model's own size does."""
    fits = [check(row).fits for row in PERCENTAGES if row.backbone != "roberta-base"]
    assert all("409.6M" in names for names in fits if names)
    assert not all("base" in names for names in fits if names)


def test_the_table_shows_every_row() -> None:
    lines = paper.table().splitlines()
    assert len(lines) == 1 + len(PERCENTAGES)
    assert sum("a slip" in line for line in lines) == len(SLIPS)


def test_the_command_prints_the_table() -> None:
    command = [sys.executable, "-m", "petl.paper"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == paper.table() + "\n"
