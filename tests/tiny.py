"""Tiny models, one configuration a family: every contract test runs over this table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification, BertConfig, PreTrainedModel, RobertaConfig

from petl.backbones import Backbone, describe

_SIZES: dict[str, Any] = {
    "vocab_size": 99,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 40,
    "num_labels": 3,
}

CONFIGS: dict[str, Any] = {
    "bert": lambda: BertConfig(**_SIZES),
    "roberta": lambda: RobertaConfig(**_SIZES, type_vocab_size=1, pad_token_id=1, bos_token_id=0, eos_token_id=2),
}
FAMILIES = tuple(CONFIGS)
LABELS = ("negative", "neutral", "positive")


def model(family: str, seed: int = 0, **changes: Any) -> PreTrainedModel:
    """A tiny model in evaluation mode whose weights, biases and norms are all random."""
    config = CONFIGS[family]()
    for name, value in changes.items():
        setattr(config, name, value)
    generator = torch.Generator().manual_seed(seed)
    built = AutoModelForSequenceClassification.from_config(config)
    with torch.no_grad():
        for name, parameter in built.named_parameters():
            parameter.normal_(1.0 if "LayerNorm.weight" in name else 0.0, 0.2, generator=generator)
    return built.eval()


def folder(family: str, path: Path, seed: int = 0) -> Path:
    """The tiny model's weights under `path`, as `save_pretrained` writes them."""
    where = path / f"{family}-{seed}"
    model(family, seed).save_pretrained(where)
    return where


def backbone(family: str, path: Path) -> Backbone:
    """The tiny model described from its configuration alone."""
    CONFIGS[family]().save_pretrained(path / family)
    return describe(str(path / family / "config.json"))


def batch() -> dict[str, torch.Tensor]:
    """Three padded rows of nine tokens."""
    generator = torch.Generator().manual_seed(7)
    lengths = torch.tensor([9, 6, 4])
    mask = (torch.arange(9)[None] < lengths[:, None]).long()
    ids = torch.randint(5, 99, (3, 9), generator=generator)
    return {"input_ids": torch.where(mask.bool(), ids, 1), "attention_mask": mask}
