"""How texts are written, and what scores of text take for their words.

rouge_score keeps the letters a to z and drops all others, and sacreBLEU's default takes a Chinese sentence for one
word, so that both would be about constant on text that is not Latin.

| script | texts | ROUGE counts | sacreBLEU |
|---|---|---|---|
| latin | of Latin letters | rouge_score's own words | 13a |
| spaced | of words between spaces: Cyrillic, Greek, Arabic, Devanagari, Hangul ... | words of any letters | 13a |
| han | of Chinese characters | words of any letters, Chinese characters one by one | zh |
| unspaced | of characters without spaces: Japanese, Thai, Khmer ... | the same, these characters one by one | char |
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from typing import Any, Final

import regex

BLEU_TOKENIZERS: Final = {"latin": "13a", "spaced": "13a", "han": "zh", "unspaced": "char"}
_FEW: Final = 0.05  # of the letters: names and formulas in another script
_HAN: Final = r"\p{Han}"
_UNSPACED: Final = r"\p{Hiragana}\p{Katakana}ー\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
_NOT_LATIN: Final = regex.compile(r"(?V1)[\p{L}--\p{Latin}]")
_ALONE: Final = regex.compile(rf"[{_HAN}{_UNSPACED}]")
_NOT_CHINESE: Final = regex.compile(rf"[{_UNSPACED}]")
_WORD: Final = regex.compile(
    rf"(?V1)[{_HAN}{_UNSPACED}&&[\p{{L}}\p{{N}}]]\p{{M}}*|[[\p{{L}}\p{{M}}\p{{N}}]--[{_HAN}{_UNSPACED}]]+"
)


def script_of(texts: Iterable[str]) -> str:
    """Return the script that most of these texts are in; a few letters of another one do not count."""
    text = "".join(texts)
    letters = sum(map(str.isalpha, text))
    if len(_NOT_LATIN.findall(text)) <= _FEW * letters:
        return "latin"
    alone = len(_ALONE.findall(text))
    if alone <= _FEW * letters:
        return "spaced"
    return "unspaced" if len(_NOT_CHINESE.findall(text)) > _FEW * alone else "han"


class AnyWords:
    """Words of any script, with their marks; characters that are written without spaces are one token each.

    Words of the letters a to z and of digits are rouge_score's, Porter's stems.
    """

    def __init__(self, latin: Any) -> None:
        self._latin = latin

    def tokenize(self, text: str) -> list[str]:
        """Return the words of a text in its order."""
        words = _WORD.findall(unicodedata.normalize("NFKC", text).casefold())
        return [token for word in words for token in (self._latin.tokenize(word) if word.isascii() else (word,))]


def rouge_tokenizer(script: str) -> Any:
    """Return what finds the words that ROUGE counts, a tokenizer in the sense of rouge_score."""
    from rouge_score.tokenizers import DefaultTokenizer

    # The same as use_stemmer=True of a scorer, which also logs through absl and so leaves a handler on the root logger.
    latin = DefaultTokenizer(use_stemmer=True)
    return latin if script == "latin" else AnyWords(latin)
