"""Tiny models, one configuration a family or variant: every contract test runs over this table.

What is crossed with it is sampled: see scope.
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    BartConfig,
    BertConfig,
    DistilBertConfig,
    GPT2Config,
    LlamaConfig,
    MBartConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
    RobertaConfig,
    T5Config,
)

from petl.backbones.model import Backbone, describe

_SIZES: dict[str, Any] = {
    "vocab_size": 99,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 40,
}
# An encoder deeper than its decoder, which `layers` must get right.
_BART: dict[str, Any] = {
    "vocab_size": 99,
    "d_model": 32,
    "encoder_layers": 3,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "max_position_embeddings": 40,
    "forced_eos_token_id": 2,
}
_T5: dict[str, Any] = {
    "vocab_size": 99,
    "d_model": 32,
    "d_kv": 6,  # heads that are not as wide together as the model
    "d_ff": 64,
    "num_layers": 3,
    "num_decoder_layers": 2,
    "num_heads": 4,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 20,
    "decoder_start_token_id": 1,
    "pad_token_id": 1,
    "eos_token_id": 2,
}
_GROUPED: dict[str, Any] = {**_SIZES, "num_key_value_heads": 2, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}

CONFIGS: dict[str, Any] = {
    "bert": lambda: BertConfig(**_SIZES),
    "roberta": lambda: RobertaConfig(**_SIZES, type_vocab_size=1, pad_token_id=1, bos_token_id=0, eos_token_id=2),
    "distilbert": lambda: DistilBertConfig(
        vocab_size=99, dim=32, n_layers=3, n_heads=4, hidden_dim=64, max_position_embeddings=40
    ),
    "bart": lambda: BartConfig(**_BART),
    "mbart": lambda: MBartConfig(**_BART, scale_embedding=True),
    "t5": lambda: T5Config(**_T5),
    "t5-gated": lambda: T5Config(**_T5, feed_forward_proj="gated-gelu", tie_word_embeddings=False),
    "gpt2": lambda: GPT2Config(
        vocab_size=99, n_embd=32, n_layer=3, n_head=4, n_positions=40, pad_token_id=1, bos_token_id=0, eos_token_id=2
    ),
    "llama": lambda: LlamaConfig(**_GROUPED),
    "qwen2": lambda: Qwen2Config(**_GROUPED),
    "qwen3": lambda: Qwen3Config(**_GROUPED, head_dim=8),
}
FAMILIES = tuple(CONFIGS)
# One of each kind: post-norm encoder, pre-norm encoder-decoder, fused linears, rotary positions with a gated FFN.
KINDS = ("bert", "mbart", "gpt2", "llama")
GENERATING = ("bart", "mbart", "t5", "t5-gated", "gpt2", "llama", "qwen2", "qwen3")
ENCODER_DECODERS = ("bart", "mbart", "t5", "t5-gated")
BIASED = ("bert", "roberta", "distilbert", "bart", "mbart", "gpt2", "qwen2")
LABELS = ("negative", "neutral", "positive")
TOKENS = 9


def model(family: str, seed: int = 0, *, generates: bool = False, **changes: Any) -> PreTrainedModel:
    """A tiny model in evaluation mode whose weights, biases and norms are all random.

    It classifies into three labels, or has its language-model head.
    """
    config = CONFIGS[family]()
    config.num_labels = len(LABELS)
    for name, value in changes.items():
        setattr(config, name, value)
    generator = torch.Generator().manual_seed(seed)
    kind = AutoModelForSequenceClassification
    if generates:
        kind = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    built = kind.from_config(config)
    with torch.no_grad():
        for name, parameter in built.named_parameters():
            norm = parameter.ndim == 1 and name.endswith("weight")
            parameter.normal_(1.0 if norm else 0.0, 0.2, generator=generator)
    return built.eval()


def folder(family: str, path: Path, seed: int = 0, *, generates: bool = False) -> Path:
    """The tiny model's weights under `path`, as `save_pretrained` writes them."""
    where = path / f"{family}-{seed}-{generates}"
    model(family, seed, generates=generates).save_pretrained(where)
    return where


def backbone(family: str, path: Path) -> Backbone:
    """The tiny model described from its configuration alone."""
    CONFIGS[family]().save_pretrained(path / family)
    return describe(str(path / family / "config.json"))


def described(config: Any) -> Backbone:
    """A backbone of this configuration, of whatever size."""
    with TemporaryDirectory() as folder:
        config.save_pretrained(folder)
        return describe(str(Path(folder) / "config.json"))


def batch(left: bool = False) -> dict[str, torch.Tensor]:
    """Three padded rows of nine tokens, each with one end token (2) at its end."""
    generator = torch.Generator().manual_seed(7)
    lengths = torch.tensor([TOKENS, 6, 4])
    place = torch.arange(TOKENS)[None]
    mask = (place >= TOKENS - lengths[:, None] if left else place < lengths[:, None]).long()
    last = place == (torch.full_like(lengths, TOKENS) if left else lengths)[:, None] - 1
    ids = torch.randint(5, 99, (3, TOKENS), generator=generator)
    return {"input_ids": torch.where(last, 2, torch.where(mask.bool(), ids, 1)), "attention_mask": mask}
