"""The text that a model generates for a task's prompts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from petl.backbones.locate import fetch, locate
from petl.backbones.padding import padding
from petl.backbones.quiet import quiet
from petl.untrusted import read_json

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from petl.tasks import Task


_FILE: Final = "generation_config.json"
# Facts of a checkpoint, which no task decides: the tokens that begin, end and pad its text.
_TOKENS: Final = (
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "decoder_start_token_id",
    "forced_bos_token_id",
    "forced_eos_token_id",
)
# What `task.decoding` says, and what means nothing without sampling.
_DECODED: Final = ("num_beams", "do_sample", "length_penalty", "no_repeat_ngram_size")
_LENGTHS: Final = ("max_length", "min_length", "max_new_tokens", "min_new_tokens")
_UNSEEN: Final = (  # in the text
    *("use_cache", "cache_implementation", "transformers_version", "output_attentions", "output_hidden_states"),
    *("output_scores", "output_logits", "return_dict_in_generate", "_from_model_config"),
)
_SAMPLING: Final = ("temperature", "top_k", "top_p", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff")


@contextmanager
def decoding_alone(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, task: Task) -> Iterator[None]:
    """Switch the checkpoint's own generation settings off within the context, if the task's decoding says so.

    Text then also ends at the tokenizer's end, with which the targets of a training end.
    """
    if task.decoding.checkpoint:
        yield
        return
    from transformers import GenerationConfig

    make: Any = GenerationConfig  # it is not annotated
    own: Any = model
    before = own.generation_config
    facts = {name: getattr(before, name, None) for name in _TOKENS}
    ends = facts["eos_token_id"] if isinstance(facts["eos_token_id"], list) else [facts["eos_token_id"]]
    ends = list(dict.fromkeys(token for token in (*ends, tokenizer.eos_token_id) if token is not None))
    own.generation_config = make(**{**facts, "eos_token_id": ends or None})
    try:
        yield
    finally:
        own.generation_config = before


def checkpoint_settings(model: str, *, revision: str = "") -> dict[str, Any]:
    """Return the generation settings of a checkpoint that `task.decoding` does not name, where they differ from none.

    Raises BackboneError where the model is not there.
    """
    from transformers import GenerationConfig

    folder, _ = fetch(model if revision else locate(model), revision, weights=False)
    try:
        written: dict[str, Any] = read_json(folder / _FILE)
    except (OSError, ValueError):
        return {}
    make: Any = GenerationConfig
    known, left_out = vars(make()), {*_TOKENS, *_DECODED, *_LENGTHS, *_SAMPLING, *_UNSEEN}
    return {name: value for name, value in written.items() if name in known and name not in left_out and _acts(value)}


def _acts(value: Any) -> bool:
    """Return whether a setting is another than none: a penalty of 1 or 0, say, is none."""
    return value is True or (value is not False and value not in (None, 0, 1, []))


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
    with quiet(), decoding_alone(model, tokenizer, task):
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
