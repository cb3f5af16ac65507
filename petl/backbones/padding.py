"""What a batch is padded with: the one home of this fact."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def padding(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the token that a tokenizer's batches are padded with: its padding, else its end, as gpt2's, else 0.

    Batches, generated text, and the head of a decoder, which reads around padding, ask here.
    """
    token = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    return int(token or 0)
