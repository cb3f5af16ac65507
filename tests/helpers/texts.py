"""Text to generate: sentences in a made-up language, each with its translation, and a tokenizer of whole words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import tiny
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

WORDS = [f"w{index}" for index in range(40)]
MEANINGS = [f"m{index}" for index in range(40)]


def tokenizer() -> PreTrainedTokenizerFast:
    """Words are tokens, between <s> (0) and </s> (2); 1 pads."""
    vocabulary = ["<s>", "<pad>", "</s>", "<unk>", *WORDS, *MEANINGS]
    core = Tokenizer(models.WordLevel({word: index for index, word in enumerate(vocabulary)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    core.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )


def write_backbone(family: str, path: Path) -> Path:
    """A tiny model of the family that generates, beside its tokenizer."""
    folder = tiny.folder(family, path, generates=True)
    tokenizer().save_pretrained(folder)
    return folder


def write_rows(path: Path, rows: int = 120, seed: int = 0) -> Path:
    """jsonl with columns source and target: each word's meaning, in the same order."""
    draw = np.random.default_rng(seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        for _ in range(rows):
            words = draw.integers(0, len(WORDS), draw.integers(2, 8))
            row = {"source": " ".join(WORDS[i] for i in words), "target": " ".join(MEANINGS[i] for i in words)}
            file.write(json.dumps(row) + "\n")
    return path


def task(rows: Path, **changes: Any) -> dict[str, Any]:
    """A study's task section over what `write_rows` wrote."""
    return {
        "name": "translation",
        "paths": {"train": str(rows)},
        "validation_rows": 20,
        "test_rows": 13,
        "max_length": 12,
        "max_target_length": 12,
        "decoding": {"beams": 2, "max_length": 12},
        **changes,
    }
