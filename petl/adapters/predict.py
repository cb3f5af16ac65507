"""A backbone with its trained adapter, ready to predict."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from petl.attach.attachment import Attachment
from petl.backbones.generation import generate
from petl.data.encoding import encode_sources
from petl.data.languages import language_tokens
from petl.tasks import Task

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


Text = str | tuple[str, str]


@dataclass(frozen=True)
class AdaptedModel:
    """Text in; labels out, or the text generated, by a model in evaluation mode.

    `labels` is empty where the task's text is generated. Texts are cut as they were in training, to
    `task.max_length` tokens, and generated as `task.decoding` says.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    task: Task
    labels: tuple[str, ...]
    attachment: Attachment

    def predict(self, texts: Sequence[Text], batch_size: int = 32) -> list[str]:
        """Return the most probable label of each text, or pair of texts; or the text generated from each.

        Raises TypeError as `probabilities` does.
        """
        if self.labels:
            return [self.labels[index] for index in self.probabilities(texts, batch_size).argmax(axis=1)]
        _check(texts)
        written = [""] * len(texts)
        language = language_tokens(self.task, self.tokenizer)
        for rows in _by_length(texts, batch_size):
            inputs = self._inputs([texts[row] for row in rows])
            for row, text in zip(rows, generate(self.model, self.tokenizer, inputs, self.task, *language), strict=True):
                written[row] = text
        return written

    def probabilities(self, texts: Sequence[Text], batch_size: int = 32) -> NDArray[np.float32]:
        """Return the probabilities, shape (texts, labels), in the order of `labels`.

        Raises TypeError for a single string, and for texts and pairs mixed; ValueError for a model that has no
        labels.
        """
        if not self.labels:
            raise ValueError(f"a model for {self.task.kind} has no labels: predict gives the text it generates")
        _check(texts)
        result = np.zeros((len(texts), len(self.labels)), dtype=np.float32)
        for rows in _by_length(texts, batch_size):
            inputs = self._inputs([texts[row] for row in rows])
            with torch.inference_mode():
                result[rows] = self.model(**inputs).logits.float().softmax(-1).cpu().numpy()
        return result

    def _inputs(self, texts: Sequence[Text]) -> dict[str, torch.Tensor]:
        decoder_only = not self.labels and not self.model.config.is_encoder_decoder
        inputs = encode_sources(texts, self.task, self.tokenizer, decoder_only=decoder_only)
        return {name: value.to(self.model.device) for name, value in inputs.items()}


def _check(texts: Sequence[Text]) -> None:
    if isinstance(texts, str):
        raise TypeError(f"texts are a list of strings or of pairs; received the one string {texts!r}")
    if len({isinstance(text, str) for text in texts}) > 1:
        raise TypeError("texts are all strings or all pairs; received both")


def _by_length(texts: Sequence[Text], batch_size: int) -> Iterator[list[int]]:
    """Yield rows in batches of like lengths, so that little is padded."""
    rows = sorted(range(len(texts)), key=lambda row: _length(texts[row]))
    for start in range(0, len(rows), batch_size):
        yield rows[start : start + batch_size]


def _length(text: Text) -> int:
    return len(text) if isinstance(text, str) else sum(map(len, text))
