"""Tokenizers of a few lines, one of each sort: with marks at both ends, of a decoder, with language codes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import MBartTokenizer, PreTrainedTokenizerFast

LETTERS = [chr(code) for code in range(33, 127)]


def of_words(words: Sequence[str] = ("one", "two", "three")) -> Any:
    """As an encoder-decoder's: <s> text </s>, in words and single characters."""
    names = ["<pad>", "<s>", "</s>", "<unk>", *dict.fromkeys((*words, *LETTERS))]
    tokenizer = Tokenizer(models.WordLevel({name: index for index, name in enumerate(names)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> $B </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def of_bytes(padding_side: str = "right") -> Any:
    """As GPT-2's: a token a byte, no marks, no padding token, an end of text."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {name: index for index, name in enumerate([*alphabet, "<|end|>"])}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>", padding_side=padding_side)


def of_languages() -> Any:
    """mBART's own class over single characters."""
    marks = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    codes = [("en_XX", 0.0), ("ro_RO", 0.0), ("<mask>", 0.0)]
    return MBartTokenizer(vocab=[*marks, *((letter, -3.0) for letter in LETTERS), *codes])


def write_lines(path: Path, text: str) -> Path:
    """A file with its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def of_some_words() -> PreTrainedTokenizerFast:
    words = ["[CLS]", "[PAD]", "[SEP]", "[UNK]", "a", "good", "day", "what", "very", "bad", "night", "it", "was"]
    core = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=[("[CLS]", 0), ("[SEP]", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]", unk_token="[UNK]"
    )
