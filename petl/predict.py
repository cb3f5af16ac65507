"""A backbone with its trained adapter, ready to predict."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from petl.attach import Attachment

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Text = str | tuple[str, str]


@dataclass(frozen=True)
class AdaptedModel:
    """Text in, labels out, by a model in evaluation mode.

    `max_length` is in tokens; longer texts are cut, as they were in training.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    labels: tuple[str, ...]
    max_length: int
    attachment: Attachment

    def predict(self, texts: Sequence[Text], batch_size: int = 32) -> list[str]:
        """The most probable label of each text, or pair of texts."""
        return [self.labels[index] for index in self.probabilities(texts, batch_size).argmax(axis=1)]

    def probabilities(self, texts: Sequence[Text], batch_size: int = 32) -> NDArray[np.float32]:
        """Probabilities, shape (texts, labels), in the order of `labels`.

        Raises TypeError for a single string, and for texts and pairs mixed.
        """
        if isinstance(texts, str):
            raise TypeError(f"texts are a list of strings or of pairs; received the one string {texts!r}")
        if len({isinstance(text, str) for text in texts}) > 1:
            raise TypeError("texts are all strings or all pairs; received both")
        result = np.zeros((len(texts), len(self.labels)), dtype=np.float32)
        by_length = sorted(range(len(texts)), key=lambda row: _length(texts[row]))  # so that little is padded
        for start in range(0, len(texts), batch_size):
            rows = by_length[start : start + batch_size]
            result[rows] = self._batch([texts[row] for row in rows])
        return result

    def _batch(self, texts: list[Text]) -> NDArray[np.float32]:
        first = [text if isinstance(text, str) else text[0] for text in texts]
        second = [text[1] for text in texts if not isinstance(text, str)]
        inputs = self.tokenizer(
            first,
            second or None,
            truncation=True,
            max_length=self.max_length,
            padding=True,
            return_tensors="pt",
        ).to(self.model.device)
        with torch.inference_mode():
            scores = self.model(**inputs).logits.float().softmax(-1)
        probabilities: NDArray[np.float32] = scores.cpu().numpy()
        return probabilities


def _length(text: Text) -> int:
    return len(text) if isinstance(text, str) else sum(map(len, text))
