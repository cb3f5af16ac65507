"""Special tokens in users' values are text, and an empty text is a token. Expected ids are the vocabularies' own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken
from tokens import of_bytes, of_languages, of_words

from petl.data.encoding import encode_sources
from petl.data.tokens import load_data
from petl.data.values import ValueTokenizer
from petl.tasks import Task, resolve

TOKENIZERS = {"words": of_words, "bytes": of_bytes, "languages": of_languages}
MARKS = {"words": "</s>", "bytes": "<|end|>", "languages": "</s>"}


def classification(tmp_path: Path, texts: list[str], pairs: list[str] | None = None, **changes: Any) -> Task:
    rows = [{"text": text, "label": i % 2} for i, text in enumerate(texts)]
    if pairs:
        rows = [{**row, "pair": pair} for row, pair in zip(rows, pairs, strict=True)]
        changes = {**changes, "columns": {"pair": "pair"}}
    for split in ("train", "validation"):
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return resolve({"name": "text-classification", "data_dir": str(tmp_path), **changes})


def generation(tmp_path: Path, sources: list[str], targets: list[str], **changes: Any) -> Task:
    rows = [{"source": source, "target": target} for source, target in zip(sources, targets, strict=True)]
    for split in ("train", "validation"):
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return resolve({"name": "summarization", "data_dir": str(tmp_path), **changes})


@pytest.mark.parametrize("name", TOKENIZERS)
def test_special_tokens_in_a_text_are_text(tmp_path: Path, name: str) -> None:
    tokenizer, mark = TOKENIZERS[name](), MARKS[name]
    texts = ["a b", f"a {mark} b", mark, f"a{mark}", "two"]
    task = classification(tmp_path, texts)
    rows = load_data(task, tokenizer).splits["train"].rows["input_ids"]
    end, plain = tokenizer.eos_token_id, rows[0].count(tokenizer.eos_token_id)
    assert plain == (0 if name == "bytes" else 1)
    assert [row.count(end) for row in rows] == [plain] * 5
    assert all(len(row) > len(other) for row, other in zip(rows[1:4], (rows[0], [0], [0]), strict=True))
    assert encode_sources([texts[1]], task, tokenizer)["input_ids"][0].tolist() == rows[1]
    parsed = resolve({"name": "text-classification", "data_dir": str(tmp_path), "special_tokens": "parse"})
    rows = load_data(parsed, tokenizer).splits["train"].rows["input_ids"]
    assert rows == [tokenizer(text)["input_ids"] for text in texts]
    assert [row.count(end) for row in rows] == [plain, plain + 1, plain + 1, plain + 1, plain]
    assert encode_sources([texts[1]], parsed, tokenizer)["input_ids"][0].tolist() == rows[1]


def test_the_text_of_a_special_token_is_its_characters(tmp_path: Path) -> None:
    tokenizer = of_bytes()
    letters = tokenizer.convert_tokens_to_ids([*"x<|end|>y"])
    rows = load_data(classification(tmp_path, ["x<|end|>y", "z"]), tokenizer).splits["train"].rows["input_ids"]
    assert rows[0] == letters


@pytest.mark.parametrize("how", ["text", "parse"])
def test_added_tokens_that_are_not_special_are_words(tmp_path: Path, how: str) -> None:
    """As Qwen3 has <think>, which a model writes and a decoded text keeps, beside its <|im_end|>."""
    tokenizer = of_bytes()
    thinks, ends = AddedToken("<think>", normalized=False), AddedToken("<|im_end|>", normalized=False, special=True)
    tokenizer.add_tokens([thinks, ends])
    task = generation(tmp_path, ["a <think> b", "a"], ["<think>b<|im_end|>", "b"], special_tokens=how)
    rows = load_data(task, tokenizer).splits["train"].rows
    think, end = tokenizer.convert_tokens_to_ids(["<think>", "<|im_end|>"])
    assert [rows["input_ids"][0].count(think), rows["labels"][0].count(think)] == [1, 1]
    assert rows["labels"][0].count(end) == (how == "parse")
    kept = tokenizer.decode(rows["labels"][0], skip_special_tokens=True)
    assert kept == ("<think>b" if how == "parse" else "<think>b<|im_end|>")


@pytest.mark.parametrize("text", ["a </s> b", "a ＜/s＞ b", "ro_RO", "<mask> a"])
def test_a_vocabulary_that_has_special_tokens_as_pieces_matches_none(tmp_path: Path, text: str) -> None:
    tokenizer = of_languages()
    task = classification(tmp_path, [text, "z" * 40], max_length=12)
    rows = load_data(task, tokenizer).splits["train"].rows["input_ids"]
    special = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
    assert [token in special for token in rows[0]] == [False] * (len(rows[0]) - 2) + [True] * 2
    assert rows[0][-2:] == rows[1][-2:]
    assert max(map(len, rows)) == 12


def test_special_tokens_in_a_pair_are_text(tmp_path: Path) -> None:
    tokenizer = of_words()
    rows = load_data(classification(tmp_path, ["one", "two"], ["</s> one", "two"]), tokenizer).splits["train"].rows
    assert [row.count(tokenizer.eos_token_id) for row in rows["input_ids"]] == [2, 2]


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_prompt_keeps_its_special_tokens(tmp_path: Path, name: str) -> None:
    tokenizer, mark = TOKENIZERS[name](), MARKS[name]
    prompt = f"{mark}a:{{source}} {mark}b:"
    task = generation(tmp_path, ["one", f"one {mark}", "a"], ["two", f"{mark} two", "b"], prompt=prompt, max_length=60)
    decoder = name == "bytes"
    data = load_data(task, tokenizer, decoder_only=decoder)
    inputs = data.prompts("train", [0, 1, 2])["input_ids"].tolist()
    padding = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    counts = [row.count(tokenizer.eos_token_id) for row in inputs]
    if padding == tokenizer.eos_token_id:  # pads to the longest: what is left are the marks
        widest = max(range(3), key=lambda row: len([token for token in inputs[row] if token != padding]))
        assert counts[widest] == 2
    else:
        assert counts == [3, 3, 3]  # the prompt's two, and the end
    again = encode_sources([f"one {mark}"], task, tokenizer, decoder_only=decoder)["input_ids"][0].tolist()
    assert again.count(tokenizer.eos_token_id) == (2 if decoder else 3)
    if not decoder:
        assert [row.count(tokenizer.eos_token_id) for row in data.splits["train"].rows["labels"]] == [1, 1, 1]
        assert (
            inputs[0][: len(tokenizer(f"{mark}a:one {mark}b:")["input_ids"])]
            == (tokenizer(f"{mark}a:one {mark}b:")["input_ids"])
        )


def test_languages_stay_special(tmp_path: Path) -> None:
    tokenizer = of_languages()
    rows = [{"source": "a ro_RO", "target": "b en_XX"}] * 2
    for split in ("train", "validation"):
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = resolve({"name": "translation", "data_dir": str(tmp_path), "languages": ["en", "ro"]})
    found = load_data(task, tokenizer).splits["train"].rows
    codes = [tokenizer.convert_tokens_to_ids(code) for code in ("en_XX", "ro_RO")]
    assert [[row.count(code) for code in codes] for row in found["input_ids"]] == [[1, 0]] * 2
    assert [[row.count(code) for code in codes] for row in found["labels"]] == [[0, 1]] * 2


def test_texts_without_special_tokens_have_the_tokens_they_had(tmp_path: Path) -> None:
    texts = ["one two", "a < b > c/s", "three", "[x]"]
    for make in TOKENIZERS.values():
        tokenizer = make()
        rows = load_data(classification(tmp_path, texts), tokenizer).splits["train"].rows["input_ids"]
        assert rows == [make()(text)["input_ids"] for text in texts]


def test_the_cache_knows_both_readings(tmp_path: Path) -> None:
    texts = ["a </s> b", "b"]
    for _ in range(2):
        counts = [
            load_data(classification(tmp_path, texts, special_tokens=how), of_words(), cache=tmp_path / "cache")
            .splits["train"].rows["input_ids"][0].count(2)
            for how in ("text", "parse")
        ]  # fmt: skip
        assert counts == [1, 2]


def test_an_empty_text_is_the_end_token_of_a_decoder(tmp_path: Path) -> None:
    tokenizer = of_bytes()
    task = classification(tmp_path, ["", "b", "", ""])
    data = load_data(task, tokenizer, decoder_only=True)
    inputs, _ = data.batch("train", [0, 2, 3])
    assert inputs["input_ids"].tolist() == [[256]] * 3
    assert inputs["attention_mask"].tolist() == [[1]] * 3
    assert data.splits["train"].lengths.tolist() == [1, 1, 1, 1]
    alone = encode_sources([""], task, tokenizer)
    assert (alone["input_ids"].tolist(), alone["attention_mask"].tolist()) == ([[256]], [[1]])


def test_an_empty_source_and_an_empty_target_have_a_token(tmp_path: Path) -> None:
    words = of_words()
    task = generation(tmp_path, ["", "one"], ["two", ""])
    data = load_data(task, words, decoder_only=True)  # whose pre-tokenizer gives the prompt's line end no token
    assert all(given >= 1 for given in data.splits["train"].rows["given"])
    assert encode_sources([""], task, words, decoder_only=True)["input_ids"].shape[1] >= 1
    marks = load_data(task, of_bytes(), decoder_only=False).splits["train"].rows
    assert marks["input_ids"][0] == [256]
    assert marks["labels"][1] == [256]


def test_a_tokenizer_without_any_mark_says_that_an_empty_text_has_no_token() -> None:
    tokenizer = of_bytes()
    tokenizer.eos_token = None
    with pytest.raises(ValueError, match="an empty text no tokens"):
        ValueTokenizer(tokenizer).filled([[1], []])
