"""The text that a model generates for a task's prompts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from petl.backbones.padding import padding
from petl.backbones.quiet import quiet

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from petl.tasks import Task


def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    inputs: Mapping[str, Tensor],
    task: Task,
    start: int | None = None,
    first: int | None = None,
    *,
    synced: bool = False,
) -> list[str]:
    """Return the texts that the model generates for a batch of prompts, by beam search as `task.decoding` says.

    Lengths are of the decoder's tokens for encoder-decoders, its start included, and of new tokens for others.
    `start` and `first` are those of `TaskData`, where the target's language has them. The inputs are on the model's
    device; where several processes share the model's parameters, they generate `synced`, each as often as all.
    """
    decoding, whole = task.decoding, model.config.is_encoder_decoder
    lengths = ("max_length", "min_length") if whole else ("max_new_tokens", "min_new_tokens")
    settings: dict[str, Any] = dict(zip(lengths, (decoding.max_length, decoding.min_length), strict=True))
    optional = {"decoder_start_token_id": start, "forced_bos_token_id": first}
    settings |= {name: token for name, token in optional.items() if token is not None}
    call: Any = model.generate  # torch's stubs take a method of a module for a tensor
    with quiet():
        tokens = call(
            **inputs,
            **settings,
            do_sample=False,
            num_beams=decoding.beams,
            length_penalty=decoding.length_penalty,
            no_repeat_ngram_size=decoding.no_repeat_ngram,
            pad_token_id=padding(tokenizer),
            synced_gpus=synced,
        )
    if not whole:
        tokens = tokens[:, inputs["input_ids"].shape[1] :]
    return [text.strip() for text in tokenizer.batch_decode(tokens, skip_special_tokens=True)]
