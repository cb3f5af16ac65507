"""Where a task's rows come from: `paths`, a folder, or the hub, in this order; and how each is read."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

import pandas as pd

from petl.backbones.locate import unreachable
from petl.data.files import FORMATS, format_of, path_of, read_table
from petl.hashing import sha256
from petl.tasks import DATA, SPLITS, TASKS, Task, TaskError

if TYPE_CHECKING:
    from datasets import Dataset


_COMMIT: Final = re.compile(r"[0-9a-f]{40}")
_SAVED: Final = "state.json"  # what marks a Dataset's folder, and the other one a DatasetDict's
_SAVED_SPLITS: Final = "dataset_dict.json"


class Source(Protocol):
    """One split of a task, as it lies somewhere."""

    def read(self) -> pd.DataFrame:
        """Return its rows, unchanged. Raises TaskError where they cannot be read."""


@dataclass(frozen=True)
class File:
    """A csv, tsv, json, jsonl or parquet file, or one of these with .gz."""

    path: Path
    lenient: bool = False

    def read(self) -> pd.DataFrame:
        return read_table(str(self.path), lenient=self.lenient)

    def content(self) -> str:
        """Return a hash of the bytes, with the ending, which says how they are read."""
        return f"{_sha256(self.path)} {format_of(self.path)}"

    def __str__(self) -> str:
        return str(self.path)


@dataclass(frozen=True)
class Folder:
    """A Dataset that `datasets` saved."""

    path: Path

    def read(self) -> pd.DataFrame:
        """Return all columns; names instead of numbers where the data set has them."""
        from datasets import load_from_disk

        try:
            return _frame(load_from_disk(str(self.path)))
        except Exception as error:  # pyarrow's, json's and datasets' own: all mean that it is damaged
            raise TaskError(f"{self.path} cannot be read as a folder that datasets saved: {error}") from error

    def content(self) -> str:
        digest = hashlib.sha256()
        for file in sorted(file for file in self.path.iterdir() if file.is_file()):
            digest.update(f"{file.name} {_sha256(file)}\n".encode())
        return digest.hexdigest()

    def __str__(self) -> str:
        return str(self.path)


@dataclass(frozen=True)
class HubSplit:
    """A split of a data set on the hub, by way of the cache of `datasets`."""

    task: Task
    builder: Any
    split: str

    def read(self) -> pd.DataFrame:
        """Return all columns, downloaded where the cache does not have them."""
        with _hub_faults(self.task):
            self.builder.download_and_prepare()
            return _frame(self.builder.as_dataset(split=self.split))

    def __str__(self) -> str:
        return f"the split {self.split} of {_hub_name(self.task)}"


def locate_data(task: Task) -> Task:
    """Return the task with its place fixed, so that other processes, anywhere on this machine, read the same.

    Paths and `data_dir` become absolute, a folder under $PETL_DATA becomes the `data_dir`, and a data
    set on the hub gets its commit as `revision`. Raises TaskError where there is nothing to read.
    """
    if task.paths:
        return replace(task, paths={split: _absolute(path) for split, path in task.paths.items()})
    if task.data_dir:
        return replace(task, data_dir=_absolute(task.data_dir))
    shared = os.environ.get(DATA)
    if shared and (folder := Path(shared).expanduser().resolve() / task.name).is_dir():
        return replace(task, data_dir=str(folder))
    if _COMMIT.fullmatch(task.revision):
        return task
    with _hub_faults(task):
        builder = _builder(task)
    return replace(task, revision=builder.hash or task.revision)


def sources(task: Task) -> dict[str, Source]:
    """Return where each split of a located task is. Raises TaskError where the train split is not there."""
    if task.paths:
        return _from_paths(task)
    if task.data_dir:
        return _from_folder(task, Path(task.data_dir))
    with _hub_faults(task):
        builder = _builder(task)
        if not builder.info.splits:  # not every data set says them before it is downloaded
            builder.download_and_prepare()
    return _named(task, {name: HubSplit(task, builder, name) for name in builder.info.splits}, _hub_name(task))


def content(task: Task) -> dict[str, str]:
    """Return what a located task's rows are read from, by the bytes or the hub's commit, never by times."""
    if not (task.paths or task.data_dir):
        named = " ".join(task.splits.get(split, split) for split in SPLITS)
        return {"hub": f"{task.hub} {task.hub_config} {task.revision} {named}"}
    return {split: source.content() for split, source in sources(task).items() if isinstance(source, File | Folder)}


def require_apart(task: Task) -> None:
    """Raise TaskError where a located task decides, or tests, by the very rows that it trains on."""
    read_from = content(task)
    for split in ("validation", "test"):
        if read_from.get(split, "") == read_from.get("train"):
            raise TaskError(
                f"task {task.name}: the {split} split has the very content of the train split, "
                f"{sources(task)['train']}, so that its scores would say how well rows are remembered; leave it out: "
                "a validation split is then cut from the train split"
            )


def _from_paths(task: Task) -> dict[str, Source]:
    splits: dict[str, Source] = {}
    for split, path in task.paths.items():
        place = path_of(path)
        if (place / _SAVED_SPLITS).is_file():
            inside = _named(task, _saved(place), str(place))
            if split == "train":  # one folder with all splits needs to be named once
                splits = {**inside, **splits}
            if split not in inside:
                raise TaskError(f"task {task.name}: {place} has no {task.splits.get(split, split)} split")
            splits[split] = inside[split]
        else:
            splits[split] = Folder(place) if place.is_dir() else File(place, task.reading == "lenient")
    return {split: splits[split] for split in SPLITS if split in splits}


def _from_folder(task: Task, root: Path) -> dict[str, Source]:
    folder = root / task.name if (root / task.name).is_dir() else root
    if not folder.is_dir():
        raise TaskError(f"task {task.name}: there is no folder at {folder}, which task.data_dir names")
    if (folder / _SAVED).is_file():
        return {"train": Folder(folder)}
    splits: dict[str, Source] = _saved(folder)
    for file in sorted(folder.iterdir()):
        stem, _, ending = file.name.partition(".")
        if file.is_file() and ending.removesuffix(".gz") in FORMATS:
            if stem in splits:
                raise TaskError(f"task {task.name}: both {splits[stem]} and {file} hold its {stem} split; keep one")
            splits[stem] = File(file, task.reading == "lenient")
    return _named(task, splits, str(folder))


def _named(task: Task, listed: Mapping[str, Source], source: str) -> dict[str, Source]:
    """Return what the source calls its splits, by our names.

    Where a row of `TASKS` gives the names, ours do as well, so that one's own files may have them.
    """
    splits = {}
    shipped = task.name in TASKS and task.splits == TASKS[task.name].splits
    for split in SPLITS:
        name = task.splits.get(split, split)
        if shipped and name not in listed:
            name = split
        if name in listed:
            splits[split] = listed[name]
        elif split in task.splits and not shipped and split != "train":
            raise TaskError(
                f"task {task.name}: {source} has no {name} split, which task.splits names; it has "
                f"{', '.join(sorted(listed)) or 'none'}"
            )
    if "train" not in splits:
        name = task.splits.get("train", "train")
        raise TaskError(
            f"task {task.name}: {source} has no {name} split; it has {', '.join(sorted(listed)) or 'none'}. "
            f"In a folder, a split is a file {name}.csv, .tsv, .json, .jsonl or .parquet (.gz allowed)"
        )
    return splits


def _saved(folder: Path) -> dict[str, Source]:
    """Return the Datasets that lie in a folder, by name."""
    return {child.name: Folder(child) for child in sorted(folder.iterdir()) if (child / _SAVED).is_file()}


def _frame(rows: Dataset) -> pd.DataFrame:
    """Return a Dataset's rows; class numbers as their names, and none where the number is -1 (hidden)."""
    from datasets import ClassLabel

    frame: pd.DataFrame = rows.to_pandas()
    for column, feature in rows.features.items():
        if isinstance(feature, ClassLabel):
            names = dict(enumerate(feature.names))
            frame[column] = frame[column].map(names).astype(object)
    return frame


def _builder(task: Task) -> Any:
    """Return the builder of `datasets`; from its cache alone where the hub cannot be reached."""
    import datasets

    why = unreachable()
    datasets.disable_progress_bars()
    offline, verbosity = datasets.config.HF_HUB_OFFLINE, datasets.logging.get_verbosity()
    datasets.config.HF_HUB_OFFLINE = bool(why)  # else its client would retry
    datasets.logging.set_verbosity_error()
    try:
        builder = datasets.load_dataset_builder(task.hub, task.hub_config or None, revision=task.revision or None)
        if why and _COMMIT.fullmatch(task.revision) and builder.hash != task.revision:
            raise FileNotFoundError(f"the cache of datasets has another commit, {builder.hash}")
        return builder
    except Exception as error:
        if not why:
            raise
        raise TaskError(
            f"task {task.name}: {_hub_name(task)} is not in the cache of datasets, and {why}: set task.data_dir or "
            f"{DATA} to a folder with {task.name}/{task.splits.get('train', 'train')}.jsonl "
            "(or .csv, .tsv, .json, .parquet, each also .gz) and its other splits"
        ) from error
    finally:
        datasets.config.HF_HUB_OFFLINE = offline
        datasets.logging.set_verbosity(verbosity)


@contextmanager
def _hub_faults(task: Task) -> Iterator[None]:
    """Raise one TaskError for whatever the hub's clients raise within the context."""
    try:
        yield
    except TaskError:
        raise
    except Exception as error:  # httpx's, the hub's, datasets' and pyarrow's have no common class
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise TaskError(f"task {task.name}: the hub does not give {_hub_name(task)}: {reason}") from error


def _hub_name(task: Task) -> str:
    parts = (
        f"configuration {task.hub_config}" * bool(task.hub_config),
        f"revision {task.revision}" * bool(task.revision),
    )
    detail = ", ".join(filter(None, parts))
    return f"the data set {task.hub}" + (f" ({detail})" if detail else "")


def _absolute(path: str) -> str:
    return path if path.startswith("package:") else str(Path(path).expanduser().absolute())


def _sha256(path: Path) -> str:
    try:
        return sha256(path)
    except FileNotFoundError:
        raise TaskError(f"no file at {path}") from None
    except OSError as error:
        raise TaskError(f"{path} cannot be read: {error}") from error
