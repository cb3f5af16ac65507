"""A study that trains in seconds: a tiny BERT with its tokenizer, and sentences whose words decide their label."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast

from petl import backbones, tasks
from search.trials.resolved import Resolved, WrittenBytes
from search.workers.assignment import StudyContext

WORDS = {
    "good": ["great", "lovely", "fine", "happy", "bright"],
    "bad": ["awful", "grim", "poor", "sad", "dull"],
    "plain": ["table", "road", "stone", "paper", "glass"],
}
SIGNALS = [word for words in WORDS.values() for word in words]
FILLER = [f"word{index}" for index in range(60)]


def write_backbone(folder: Path, hidden_dropout_prob: float = 0.1) -> Path:
    """A BERT of 2 layers, width 32, saved with its tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *SIGNALS, *FILLER]
    (folder / "vocab.txt").write_text("\n".join(vocabulary))
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    import torch

    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = BertConfig(
            vocab_size=len(vocabulary),
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=64,
            max_position_embeddings=40,
            hidden_dropout_prob=hidden_dropout_prob,
            initializer_range=0.2,
        )
        BertForSequenceClassification(config).save_pretrained(folder)
    return folder


def write_rows(path: Path, rows: int = 240, seed: int = 0) -> Path:
    """A csv with columns text and label."""
    draw = np.random.default_rng(seed)
    labels = draw.choice(list(WORDS), rows)
    texts = []
    for label in labels:
        words = list(draw.choice(FILLER, draw.integers(3, 12))) + list(draw.choice(WORDS[label], 2))
        texts.append(" ".join(draw.permutation(words)))
    pd.DataFrame({"text": texts, "label": labels}).to_csv(path, index=False)
    return path


def study(folder: Path, rows: int = 240, **sections: Any) -> dict[str, Any]:
    """A study file's content, with its backbone and rows written under `folder`."""
    return {
        "study": "tiny",
        "backbone": {"model": str(write_backbone(folder / "backbone")), "precision": "fp32"},
        "task": {
            "name": "words",
            "paths": {"train": str(write_rows(folder / "rows.csv", rows))},
            "validation_rows": 60,
            "test_rows": 60,
            "max_length": 32,
        },
        "space": {"name": "unified", "max_size": 8, "lengths": [0, 1, 2, 4]},
        "constraints": {"stored_percent": 30.0},
        "references": ["majority", "head_only"],
        "sampler": {"name": "random", "seed": 0},
        "budget": {"trials": 4, "epochs": 2},
        "training": {"batch_size": 16},
        **sections,
    }


def context(folder: Path, content: Mapping[str, Any], **options: Any) -> StudyContext:
    """What the workers of a study of this content are given, with all of it under `folder`; fp32."""
    resolved = Resolved(
        backbone=backbones.describe(content["backbone"]["model"]),
        task=tasks.resolve(content["task"]),
        labels=(),
        rows={},
        digest="",
        epochs=None,
        precision="fp32",
        uri=None,
        generates=False,
        final=("test",),
        written=WrittenBytes(0, 0),
    )
    return StudyContext(str(folder), resolved, **options)
