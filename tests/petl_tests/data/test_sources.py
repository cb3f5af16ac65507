"""Where rows come from: every form of the same rows gives the same; what is missing is named."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from datasets.data_files import DataFilesDict
from tokens import write_lines

from petl.data.rows import read_splits
from petl.data.sources import content, locate_data, sources
from petl.tasks import TASKS, TaskError, resolve

PAIRS = [(f"A sentence, number {index}.", f"O propoziție, numărul „{index}”.") for index in range(6)]
SPLITS = {"train": PAIRS, "validation": PAIRS[:3], "test": PAIRS[3:5]}
SHARED = Path(os.environ.get("PETL_DATA", Path(__file__).parents[4] / "shared" / "data"))

Frame = pd.DataFrame


@pytest.fixture(autouse=True)
def _no_shared_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PETL_DATA", raising=False)


def flat(pairs: list[tuple[str, str]]) -> Frame:
    return pd.DataFrame(pairs, columns=["en", "ro"])


def nested(pairs: list[tuple[str, str]]) -> Frame:
    return pd.DataFrame({"translation": [{"en": en, "ro": ro} for en, ro in pairs], "id": range(len(pairs))})


def csv(frame: Frame, file: Path) -> None:
    frame.to_csv(file.with_suffix(".csv"), index=False)


def tsv(frame: Frame, file: Path) -> None:
    frame.to_csv(file.with_suffix(".tsv"), index=False, sep="\t")


def parquet(frame: Frame, file: Path) -> None:
    frame.to_parquet(file.with_suffix(".parquet"))


def jsonl_gz(frame: Frame, file: Path) -> None:
    lines = "".join(json.dumps(row) + "\n" for row in frame.to_dict("records"))
    file.with_suffix(".jsonl.gz").write_bytes(gzip.compress(lines.encode()))


def json_array(frame: Frame, file: Path) -> None:
    file.with_suffix(".json").write_text(json.dumps(frame.to_dict("records")))


def saved(frame: Frame, file: Path) -> None:
    Dataset.from_pandas(frame).save_to_disk(str(file))


@pytest.mark.parametrize(
    ("form", "write"),
    [
        *((flat, write) for write in (csv, tsv, parquet, jsonl_gz, json_array, saved)),
        *((nested, write) for write in (parquet, jsonl_gz, json_array, saved)),
    ],
)
def test_every_form_gives_the_same_rows(tmp_path: Path, form: Callable[..., Frame], write: Callable[..., None]) -> None:
    folder = tmp_path / "wmt16_en_ro"
    folder.mkdir()
    for split, pairs in SPLITS.items():
        write(form(pairs), folder / split)
    found = read_splits(resolve({"name": "wmt16_en_ro", "data_dir": str(tmp_path)}))
    got = {split: list(zip(frame["source"], frame["target"], strict=True)) for split, frame in found.items()}
    assert got == SPLITS
    paths = {split: str(next(folder.glob(f"{split}*"))) for split in SPLITS}
    again = read_splits(resolve({"name": "wmt16_en_ro", "paths": paths}))
    assert all(again[split].equals(frame) for split, frame in found.items())


def test_one_folder_with_every_split_is_named_once(tmp_path: Path) -> None:
    whole = DatasetDict({split: Dataset.from_pandas(nested(pairs)) for split, pairs in SPLITS.items()})
    whole.save_to_disk(str(tmp_path / "all"))
    for place in ({"paths": str(tmp_path / "all")}, {"data_dir": str(tmp_path / "all")}):
        found = read_splits(resolve({"name": "wmt16_en_ro", **place}))
        assert {split: len(frame) for split, frame in found.items()} == {"train": 6, "validation": 3, "test": 2}
    place = str(tmp_path / "all")
    apart = {"paths": {"train": f"{place}/train", "validation": place}, "splits": {"validation": "test"}}
    assert len(read_splits(resolve({"name": "wmt16_en_ro", **apart}))["validation"]) == 2
    del whole["validation"]
    whole.save_to_disk(str(tmp_path / "two"))
    with pytest.raises(TaskError, match="two has no validation split"):
        sources(resolve({"name": "wmt16_en_ro", "paths": {"train": place, "validation": str(tmp_path / "two")}}))


def test_a_dotted_path_names_a_nested_column(tmp_path: Path) -> None:
    parquet(nested(PAIRS), tmp_path / "train")
    columns = {"source": "translation.en", "target": "translation.ro"}
    settings = {"name": "translation", "data_dir": str(tmp_path), "validation_rows": 1, "test_rows": 1}
    assert set(read_splits(resolve({**settings, "columns": columns}))["train"]["source"]) < {en for en, _ in PAIRS}
    with pytest.raises(TaskError, match=r"has no column translation\.de; it has translation, id"):
        read_splits(resolve({**settings, "columns": {**columns, "target": "translation.de"}}))


def test_places_go_in_order_and_become_fixed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for place, folder in (("shared", "shared/wmt16_en_ro"), ("own", "own"), ("file", "file")):
        (tmp_path / folder).mkdir(parents=True)
        csv(flat([(f"{place} {en}", ro) for en, ro in PAIRS]), tmp_path / folder / "train")
    monkeypatch.setenv("PETL_DATA", str(tmp_path / "shared"))
    monkeypatch.chdir(tmp_path)
    settings: dict[str, Any] = {"name": "wmt16_en_ro", "validation_rows": 1, "test_rows": 1}

    def first() -> str:
        return str(read_splits(resolve(settings))["train"]["source"][0]).split()[0]

    assert first() == "shared"
    assert locate_data(resolve(settings)).data_dir == str(tmp_path / "shared" / "wmt16_en_ro")
    settings["data_dir"] = "own"
    assert first() == "own"
    assert locate_data(resolve(settings)).data_dir == str(tmp_path / "own")
    settings["paths"] = "file/train.csv"
    assert first() == "file"
    located = locate_data(resolve(settings))
    assert located.paths == {"train": str(tmp_path / "file" / "train.csv")}
    monkeypatch.chdir("/")
    assert read_splits(located)["train"]["source"][0].startswith("file")


def test_the_sources_own_name_of_a_split_goes_first(tmp_path: Path) -> None:
    row = "premise,hypothesis,label\n{} a,b,0\n{} c,d,neutral\n"
    for split in ("train", "validation", "validation_matched", "validation_mismatched"):
        write_lines(tmp_path / f"{split}.csv", row.format(split, split))
    found = read_splits(resolve({"name": "mnli", "data_dir": str(tmp_path)}))
    starts = {split: frame["text"][0].split()[0] for split, frame in found.items()}
    assert starts == {"train": "train", "validation": "validation_matched", "test": "validation_mismatched"}
    assert list(found["train"]["label"]) == ["entailment", "neutral"]
    (tmp_path / "validation_matched.csv").unlink()
    assert read_splits(resolve({"name": "mnli", "data_dir": str(tmp_path)}))["validation"]["text"][0] == "validation a"


@pytest.mark.parametrize("write", [csv, jsonl_gz, parquet, saved])
@pytest.mark.parametrize("labels", [[0, 1, 1, 0], ["negative", "positive", "positive", "negative"], "classes"])
def test_labels_are_integers_names_or_classes(tmp_path: Path, write: Callable[..., None], labels: Any) -> None:
    if labels == "classes":
        kinds = Features({"sentence": Value("string"), "label": ClassLabel(names=["negative", "positive"])})
        rows = Dataset.from_dict({"sentence": list("abcd"), "label": [0, 1, 1, 0]}, features=kinds)
        rows.save_to_disk(str(tmp_path / "train"))
        hidden = Dataset.from_dict({"sentence": ["e"], "label": [-1]}, features=kinds)
        hidden.save_to_disk(str(tmp_path / "test"))
        rows.save_to_disk(str(tmp_path / "validation"))
    else:
        for split in ("train", "validation"):
            write(pd.DataFrame({"sentence": list("abcd"), "label": labels}), tmp_path / split)
        write(pd.DataFrame({"sentence": list("efg"), "label": [-1, -1, -1]}), tmp_path / "test")
    found = read_splits(resolve({"name": "sst2", "data_dir": str(tmp_path)}))
    assert set(found) == {"train", "validation"}, "a split whose labels are hidden is left out"
    assert list(found["train"]["label"]) == ["negative", "positive", "positive", "negative"]


def test_rows_with_hidden_labels_are_dropped(tmp_path: Path) -> None:
    for split in ("train", "validation"):
        write_lines(tmp_path / f"{split}.csv", "sentence,label\na,0\nb,-1\nc,1\n")
    assert list(read_splits(resolve({"name": "sst2", "data_dir": str(tmp_path)}))["train"]["text"]) == ["a", "c"]
    write_lines(tmp_path / "validation.csv", "sentence,label\na,-1\n")
    with pytest.raises(TaskError, match="no rows are left for the validation split"):
        read_splits(resolve({"name": "sst2", "data_dir": str(tmp_path)}))


@pytest.mark.parametrize("label", ["2", "neutral", "-2", "0.5"])
def test_an_unknown_label_is_named(tmp_path: Path, label: str) -> None:
    write_lines(tmp_path / "train.csv", f"sentence,label\na,0\nb,{label}\n")
    with pytest.raises(TaskError, match=rf"the train split has the label '{label}'; known are negative, pos"):
        read_splits(resolve({"name": "sst2", "data_dir": str(tmp_path)}))


def test_faults_of_a_folder_are_named(tmp_path: Path) -> None:
    task = resolve({"name": "sst2", "data_dir": str(tmp_path)})
    write_lines(tmp_path / "validation.csv", "sentence,label\na,0\n")
    with pytest.raises(TaskError, match=r"has no train split; it has validation\. In a folder, a split is a file tra"):
        read_splits(task)
    write_lines(tmp_path / "train.csv", "sentence,label\na,0\n")
    write_lines(tmp_path / "train.tsv", "sentence\tlabel\na\t0\n")
    with pytest.raises(TaskError, match=r"both .*train.csv and .*train.tsv hold its train split; keep one"):
        read_splits(task)
    (tmp_path / "train.tsv").unlink()
    write_lines(tmp_path / "train.csv", "text,label\na,0\n")
    with pytest.raises(TaskError, match=r"task sst2: .*train.csv has no column sentence; it has text, label"):
        read_splits(task)
    write_lines(tmp_path / "train.csv", "sentence,label\n")
    with pytest.raises(TaskError, match="no rows are left for the train split"):
        read_splits(task)
    with pytest.raises(TaskError, match=r"there is no folder at .*nowhere, which task.data_dir names"):
        read_splits(resolve({"name": "sst2", "data_dir": str(tmp_path / "nowhere")}))
    with pytest.raises(TaskError, match="no distribution named 'nobody' is installed"):
        read_splits(resolve({"name": "sst2", "paths": "package:nobody/rows.csv"}))
    saved(flat(PAIRS), tmp_path / "broken")
    next((tmp_path / "broken").glob("*.arrow")).write_bytes(b"not really")
    with pytest.raises(TaskError, match="broken cannot be read as a folder that datasets saved"):
        read_splits(resolve({"name": "wmt16_en_ro", "paths": str(tmp_path / "broken")}))


def test_repeated_inputs_go_only_where_a_split_is_cut(tmp_path: Path) -> None:
    rows = "text,label\n" + "a,x\na,x\nb,y\n" + "".join(f"c{index},x\n" for index in range(20))
    write_lines(tmp_path / "cut" / "train.csv", rows)
    for split in ("train", "validation", "test"):
        write_lines(tmp_path / "official" / f"{split}.csv", rows)
    cut, official = (
        read_splits(resolve({"name": "text-classification", "data_dir": str(tmp_path / place)}))
        for place in ("cut", "official")
    )
    assert sum(map(len, cut.values())) == 22
    assert [len(frame) for frame in official.values()] == [23, 23, 23]
    assert list(official["train"]["text"][:3]) == ["a", "a", "b"]


def test_bounded_splits_are_nested_and_in_file_order(tmp_path: Path) -> None:
    lines = [f"{index},{index % 2}\n" for index in range(50)]
    for split in ("train", "validation", "test"):
        write_lines(tmp_path / f"{split}.csv", "".join(["text,label\n", *lines]))

    def rows(**changes: int) -> Mapping[str, list[int]]:
        found = read_splits(resolve({"name": "text-classification", "data_dir": str(tmp_path), **changes}))
        return {split: [int(text) for text in frame["text"]] for split, frame in found.items()}

    small, large = rows(train_rows=10, validation_rows=7), rows(train_rows=20, validation_rows=7)
    assert set(small["train"]) < set(large["train"])
    assert small["validation"] == large["validation"] == sorted(small["validation"])
    assert small["train"] == sorted(small["train"]) != list(range(10))
    assert small["test"] == list(range(50))
    assert rows(train_rows=10, split_seed=1)["train"] != small["train"]


def test_an_unreachable_hub_is_one_error_at_once(tmp_path: Path) -> None:
    code = (
        "from petl.tasks import TaskError, resolve\nfrom petl.data.tokens import locate_data\n"
        "import time; began = time.monotonic()\n"
        "try: locate_data(resolve({'name': 'xsum'}))\n"
        "except TaskError as error: print(error, '| seconds', time.monotonic() - began)\n"
    )
    environment = {
        **os.environ,
        "HF_HOME": str(tmp_path),
        "HF_ENDPOINT": "http://127.0.0.1:9",  # nothing listens on the discard port
        "PYTHONPATH": str(Path(__file__).parents[3]),
    }
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    assert done.stdout.startswith(
        "task xsum: the data set EdinburghNLP/xsum (revision refs/convert/parquet) is not in the cache of datasets, "
        "and http://127.0.0.1:9 cannot be reached"
    ), done.stderr
    assert "set task.data_dir or PETL_DATA to a folder with xsum/train.jsonl" in done.stdout
    assert float(done.stdout.rsplit(maxsplit=1)[1]) < 6
    assert "Traceback" not in done.stderr


COMMIT = "a" * 40


def as_of_the_hub(folder: Path) -> Any:
    """A builder of `datasets` for local files whose cache is as if they came from the hub; not yet prepared."""
    from datasets.packaged_modules.parquet.parquet import Parquet

    files = {split: [str(folder / f"{split}.parquet")] for split in SPLITS}
    for split, pairs in SPLITS.items():
        parquet(nested(pairs), folder / split)
    builder = Parquet(
        cache_dir=str(folder / "cache"),
        dataset_name="wmt___wmt16",
        config_name="ro-en",
        config_id="ro-en",
        data_files=DataFilesDict.from_patterns(files),
        hash=COMMIT,
    )
    builder.dataset_name = "wmt16"  # which its files are named after
    return builder


def test_the_hub_is_read_at_a_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    builder = as_of_the_hub(tmp_path)
    asked: list[Any] = []

    def load(hub: str, config: str | None, revision: str | None) -> Any:
        asked.append((hub, config, revision))
        return builder

    monkeypatch.setattr("petl.data.sources.unreachable", lambda: "")
    monkeypatch.setattr(datasets, "load_dataset_builder", load)
    located = locate_data(TASKS["wmt16_en_ro"])
    assert located.revision == COMMIT
    found = read_splits(located)
    assert {split: len(frame) for split, frame in found.items()} == {"train": 6, "validation": 3, "test": 2}
    assert asked == [("wmt/wmt16", "ro-en", None), ("wmt/wmt16", "ro-en", COMMIT)]
    assert COMMIT in content(located)["hub"]
    assert content(located) != content(resolve({"name": "wmt16_en_ro", "revision": "b" * 40}))


def test_the_cache_of_datasets_is_used_where_the_hub_cannot_be_reached(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    as_of_the_hub(tmp_path).download_and_prepare()
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("petl.data.sources.unreachable", lambda: "it rains")
    began = time.monotonic()
    located = locate_data(TASKS["wmt16_en_ro"])
    assert located.revision == COMMIT
    assert len(read_splits(located)["train"]) == 6
    assert time.monotonic() - began < 6
    with pytest.raises(TaskError, match=r"revision b{40}\) is not in the cache of datasets, and it rains: set"):
        read_splits(resolve({"name": "wmt16_en_ro", "revision": "b" * 40}))


def test_what_the_hub_refuses_is_one_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise FileNotFoundError("there is no such data set\nand a long explanation")

    monkeypatch.setattr("petl.data.sources.unreachable", lambda: "")
    monkeypatch.setattr(datasets, "load_dataset_builder", refuse)
    with pytest.raises(TaskError, match=r"sst2: the hub does not give the data set nyu-mll/glue \(configuration sst2\): there is no such data set$"):  # noqa: E501  # fmt: skip
        locate_data(TASKS["sst2"])


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("sst2", (67_349, 872, 1_821)),
        ("mnli", (9_881, 9_815, 1_000)),
        ("xsum", (2_492, 400, 500)),
        ("wmt16_en_ro", (31_794, 1_997, 1_999)),
    ],
)
def test_rows_of_the_shared_folder(name: str, rows: tuple[int, ...]) -> None:
    if not (SHARED / name).is_dir():
        pytest.skip(f"no folder {name} in {SHARED}; PETL_DATA names another")
    found = read_splits(resolve({"name": name, "data_dir": str(SHARED)}))
    assert tuple(map(len, found.values())) == rows
    assert list(found) == ["train", "validation", "test"]


def test_a_folder_goes_before_the_files_of_a_row() -> None:
    assert resolve({"name": "tweets", "data_dir": "mine"}).paths == {}
    assert resolve({"name": "tweets"}).paths


def test_a_split_that_the_user_names_wrongly_is_said(tmp_path: Path) -> None:
    frame = pd.DataFrame({"text": ["a", "b", "c"], "label": ["x", "y", "x"]})
    for split in ("train", "validation"):
        frame.to_csv(tmp_path / f"{split}.csv", index=False)
    task = {"name": "mine", "data_dir": str(tmp_path), "splits": {"validation": "vlidation"}}
    with pytest.raises(TaskError, match=r"has no vlidation split, which task\.splits names; it has train, validation"):
        read_splits(resolve({**task, "kind": "text-classification"}))
