"""Tokens of users' values: the characters of a special token in one are text, those in a prompt are the token."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from petl.tasks import Task, TaskError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


_SPARE: Final = ("eos_token_id", "bos_token_id", "pad_token_id")  # what a text without tokens is, the first there is


@dataclass(frozen=True)
class ValueTokenizer:
    """Tokenise values, within a prompt or alone; `parse` takes special tokens in them for what they are.

    A vocabulary may have the characters of a special token as a piece (those of sentencepiece do), and a prompt may
    have special tokens of its own. Then a blank behind the first character keeps those of a value from being one.
    """

    tokenizer: PreTrainedTokenizerBase
    parse: bool = False

    @classmethod
    def of(cls, task: Task, tokenizer: PreTrainedTokenizerBase) -> ValueTokenizer:
        return cls(tokenizer, parse=task.special_tokens == "parse")

    def __call__(
        self,
        values: Sequence[str],
        pair: Sequence[str] | None = None,
        *,
        prompt: tuple[str, str] = ("", ""),
        answers: bool = False,
        **options: Any,
    ) -> dict[str, list[list[int]]]:
        """Return the tokenizer's columns; `answers` are tokenised as such, which some tokenizers do otherwise."""
        name = "text_target" if answers else "text"

        def encode(first: Sequence[str], second: Sequence[str] | None, **how: Any) -> dict[str, list[list[int]]]:
            texts = {name: [prompt[0] + value + prompt[1] for value in first]}
            if second:
                texts["text_pair"] = list(second)
            return dict(self.tokenizer(**texts, **options, **how))

        if self.parse:
            return encode(values, pair)
        if any(map(self._marks.search, prompt)):
            return encode([self._parted(value) for value in values], pair)
        columns = encode(values, pair, split_special_tokens=True, return_special_tokens_mask=True)
        for row in self._matched(columns["input_ids"], columns["special_tokens_mask"]):
            first, second = ([self._parted(part[row])] if part else None for part in (values, pair))
            again = encode(first or [], second, split_special_tokens=True)
            for column in again:
                columns[column][row] = again[column][0]
        del columns["special_tokens_mask"]
        return columns

    def inputs(self, *values: Any, **options: Any) -> dict[str, list[list[int]]]:
        """Return the tokenizer's columns that models take; a text without tokens has one. Arguments are a call's."""
        encoded = self(*values, **options)
        columns = {"input_ids": self.filled(encoded["input_ids"])}
        if "token_type_ids" in encoded:
            columns["token_type_ids"] = [row or [0] for row in encoded["token_type_ids"]]
        return columns

    def filled(self, rows: list[list[int]]) -> list[list[int]]:
        """Return rows of tokens; one without any, of an empty text, is the end token, else the first or padding."""
        if all(rows):
            return rows
        spare = next((token for name in _SPARE if (token := getattr(self.tokenizer, name, None)) is not None), None)
        if spare is None:
            raise TaskError("the tokenizer gives an empty text no tokens, and has none that could stand for it")
        return [row or [spare] for row in rows]

    @cached_property
    def special(self) -> frozenset[int]:
        """Return the special tokens, without the one for what is unknown."""
        kept = {getattr(self.tokenizer, f"{name}_token_id", None) for name in ("bos", "eos", "pad", "cls", "sep")}
        added = {number for number, token in self.tokenizer.added_tokens_decoder.items() if token.special}
        return frozenset((added | set(self.tokenizer.all_special_ids)) - ({self.tokenizer.unk_token_id} - kept))

    @cached_property
    def unknown(self) -> int | None:
        """Return the token that stands for what is unknown alone, None where there is none."""
        token: int | None = self.tokenizer.unk_token_id
        return None if token in self.special else token

    @cached_property
    def _marks(self) -> re.Pattern[str]:
        added = {str(token) for token in self.tokenizer.added_tokens_decoder.values() if token.special}
        marks = sorted(filter(None, added | set(self.tokenizer.all_special_tokens)), key=len, reverse=True)
        return re.compile("|".join(map(re.escape, marks)) or r"(?!)")

    def _parted(self, value: str) -> str:
        """Return a value whose special tokens are none any more; also those that are written in other code points."""
        if not self._marks.search(value) and self._marks.search(plain := unicodedata.normalize("NFKC", value)):
            value = plain
        return self._marks.sub(lambda mark: f"{mark[0][0]} {mark[0][1:]}", value)

    def _matched(self, tokens: Sequence[Sequence[int]], added: Sequence[Sequence[int]]) -> list[int]:
        """Return the rows in which a special token stands that the tokenizer did not add."""
        lengths = [len(row) for row in tokens]
        flat, own = (np.fromiter((item for row in rows for item in row), np.int64) for rows in (tokens, added))
        found = np.isin(flat, list(self.special)) & (own == 0)
        return sorted(set(np.repeat(np.arange(len(lengths)), lengths)[found].tolist()))


def unknown_share(tokens: np.ndarray, values: ValueTokenizer) -> float:
    """Return the share of unknown tokens, special ones aside; 0 for a tokenizer that knows every text."""
    if values.unknown is None:
        return 0.0
    text = tokens[~np.isin(tokens, list(values.special))]
    return float((text == values.unknown).mean()) if len(text) else 0.0
