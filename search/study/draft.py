"""Draft a study file: look at a model and a file of rows, and say beside each choice why it is one."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from petl import backbones, tasks
from petl.errors import UserError
from search.storage.locations import is_study_name
from search.study.fit import is_small, load

if TYPE_CHECKING:
    import pandas as pd

    from petl.backbones.model import Backbone
    from petl.data.tokens import TaskData

# What columns are often called, by what they are to a task; earlier ones are the likelier.
_NAMES: Final[Mapping[str, tuple[str, ...]]] = {
    "label": ("label", "labels", "class", "category", "sentiment", "stars", "rating", "gold_label", "intent", "topic"),
    "pair": ("sentence2", "hypothesis", "pair", "text2", "question2", "text_pair", "passage"),
    "text": ("text", "sentence", "sentence1", "premise", "review", "content", "tweet", "comment", "question1", "text1"),
    "source": ("source", "document", "article", "dialogue", "prompt", "instruction", "question", "input", "query"),
    "target": ("target", "summary", "highlights", "completion", "response", "answer", "output", "abstract", "title"),
}
_MOST_LABELS: Final = 100
_COVERED: Final = 0.99  # of the rows, whose text stays whole
_SAME: Final = 0.1  # of the rows: so few different values are no texts
_READ: Final = 2_000  # rows whose tokens are counted
_ORDINARY: Final = "lora:rank=8"
_EPOCHS: Final = 3
_PERCENT: Final = 5.0  # of the model's parameters; more where an ordinary design has more, of a tiny model
_FEWEST: Final = 12  # trials
_MOST: Final = 100
_SHARE: Final = 0.5  # of a full training that a trial takes on average: most end at a rung
_BESIDE: Final = 3.0  # seconds of a trial beside its training
_ROUND: Final = 8  # tokens


class DraftError(UserError):
    """A file of which nobody can tell what its columns are, or a study file that is there already."""


@dataclass(frozen=True)
class Draft:
    """A study file in the making: `task` is what was understood, and the rest is what is said beside it."""

    study: str
    model: str
    task: tasks.Task
    file: str
    facts: tuple[str, ...]  # of the rows
    cut: float  # share of the rows whose text is cut
    percent: float  # of the model's parameters, that a design may store
    trials: int
    epochs: int
    hours: float
    budget: str  # why so many trials

    def to_yaml(self) -> str:
        """Return the file's text."""
        kind, task = tasks.KINDS[self.task.kind], self.task
        columns = ", ".join(f"{name}: {_quoted(column)}" for name, column in task.columns.items())
        answers = f"# {kind.scores[0]} decides; also possible: {', '.join(kind.scores[1:])}"
        lengths = f"# tokens; {self.cut:.1%} of the rows are longer and cut"
        references = "[majority, probe, head_only, full]" if kind.labelled else "[untuned, full]"
        rows = "".join(f"#   {fact}\n" for fact in self.facts)
        few = f"so that the budget is enough for {_FEWEST} trials"
        limit = f"  train_rows: {task.train_rows}  # {few}\n" if task.train_rows else ""
        written = (
            f"  max_target_length: {task.max_target_length}\n  decoding: {{max_length: {task.decoding.max_length}}}\n"
        )
        target = written if kind.generates else ""
        return (
            f"# Drafted from {Path(self.file).name}. Every field: search/config/README.md\n"
            f"{rows}"
            f"study: {_quoted(self.study)}\n"
            f"backbone: {{model: {_quoted(self.model)}}}\n"
            "task:\n"
            f"  kind: {task.kind}  {answers}\n"
            f"  paths: {{train: {_quoted(self.file)}}}  # validation and test rows are held out from it\n"
            f"  columns: {{{columns}}}\n"
            f"  max_length: {task.max_length}  {lengths}\n"
            f"{target}{limit}"
            f"references: {references}  # beside the front: what a design has to beat\n"
            f"constraints: {{stored_percent: {self.percent:g}}}  # no design stores more of the model's parameters\n"
            f'enqueue: ["{_ORDINARY}"]  # tried first; `petl-search count MODEL DESIGN` reads more designs\n'
            f"budget: {{trials: {self.trials}, epochs: {self.epochs}, hours: {self.hours:g}}}  # {self.budget}\n"
        )


def draft(
    model: str,
    file: str,
    kind: str | None = None,
    columns: Mapping[str, str] | None = None,
    hours: float = 1.0,
    measure: bool = True,
    say: Callable[[str], object] = lambda text: None,
) -> Draft:
    """Return the draft of a study of a model on the rows of a file.

    `kind` and `columns`, by the kind's own names, are found by looking where they are not given. `hours` is what the
    study may take here; an ordinary design is timed for it unless `measure` is false. `say` is given a line before each
    step that takes seconds. Raises DraftError where the columns cannot be told, and what reading and tokenising raise.
    """
    from petl.backbones.count import count
    from petl.data.files import read_table
    from petl.data.tokens import load_data
    from petl.presets import parse

    say(f"reading the model {model} and its tokenizer")
    backbone = backbones.describe(model)
    tokenizer = backbones.load_tokenizer(model, revision=backbone.revision)
    say(f"reading {file}")
    frame = read_table(file)
    if not len(frame):
        raise DraftError(f"{file} has no rows")
    known = dict(columns or {})
    kind = kind or _kind(frame, backbone, known)
    if kind not in tasks.KINDS:
        raise DraftError(f"a kind is one of {', '.join(tasks.KINDS)}; received {kind!r}")
    task = tasks.Task(
        name=_name(file), kind=kind, columns=_columns(frame, kind, known), paths={"train": str(Path(file).absolute())}
    )
    lengths = _lengths(task, frame, tokenizer)
    room = backbone.max_tokens or math.inf
    if "target" in lengths:
        target = _longest(lengths["target"], room)
        task = replace(task, max_target_length=target, decoding=tasks.Decoding(max_length=target))
        room -= target if backbone.architecture == "decoder" else 0  # which has both in one line
    task = replace(task, max_length=_longest(lengths["source"], room))
    cut = sum(length > task.max_length for length in lengths["source"]) / len(lengths["source"])
    say(f"reading the rows as {kind}")
    data = load_data(task, tokenizer, decoder_only=backbone.architecture == "decoder")
    data.report.require_known(task)
    facts = [line.strip() for line in data.report.lines(task.columns)]
    if unused := [column for column in _texts(frame) if column not in task.columns.values()]:
        facts.append(f"not read: {', '.join(map(repr, unused))}; --column ROLE=NAME gives a column another role")
        say(facts[-1])
    trials, rows, reason = 24, None, "a guess: nothing was timed"
    if measure and not is_small(backbone):
        reason = "a guess: the model is too large to be timed in seconds"
    elif measure:
        say(f"timing {_ORDINARY}")
        trials, rows, reason = _affordable(_seconds(backbone, data), len(data.splits["train"]), hours)
    task = replace(task, train_rows=rows)
    ordinary = count(parse(_ORDINARY), backbone).stored_percent
    percent = _PERCENT if ordinary <= _PERCENT else math.ceil(2 * ordinary)
    return Draft(task.name, model, task, file, tuple(facts), cut, percent, trials, _EPOCHS, hours, reason)


def place_of(file: str, out: Path | None, force: bool) -> Path:
    """Return where the study file goes: `out`, else here, after the rows. Raises DraftError where one is there."""
    path = out or Path(f"{_name(file)}.yaml")
    if path.exists() and not (force and path.is_file()):
        raise DraftError(f"{path} is there already; --out names another file, and --force replaces one")
    return path


def write(draft: Draft, path: Path) -> None:
    """Write a draft as a study file, once it is known to be one that begins.

    Raises DraftError where it cannot be written, and what `load_config` and `resolve` raise.
    """
    from search.config.loading import load_config
    from search.config.text import parse
    from search.study.resolve import resolve

    text = draft.to_yaml()
    resolve(load_config(parse(text, str(path))))
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise DraftError(f"the study file cannot be written to {path}: {error.strerror or error}") from None


def _name(file: str) -> str:
    """Return a study's name after a file's."""
    name = Path(file).name.partition(".")[0].lower().replace(" ", "-")
    return name if is_study_name(name) else "study"


def _kind(frame: pd.DataFrame, backbone: Backbone, known: Mapping[str, str]) -> str:
    """Return the kind of task that the columns are of, on this architecture."""
    has = {role: known.get(role) or _named(frame, role) for role in _NAMES}
    generates = backbone.architecture != "encoder"
    if generates and has["source"] and has["target"]:
        return "summarization"  # of any source and target
    if has["label"] or _labels(frame):
        return "text-pair-classification" if has["text"] and has["pair"] else "text-classification"
    if backbone.architecture == "decoder" and len(_texts(frame)) == 1:
        return "causal-lm"
    raise DraftError(
        f"nobody can tell what to learn from the columns {_listed(frame)}: name the kind by --kind "
        f"({', '.join(tasks.KINDS)}) and the columns by --column, such as --column text=review --column label=stars"
    )


def _columns(frame: pd.DataFrame, kind: str, known: Mapping[str, str]) -> dict[str, str]:
    """Return the source's names of the kind's columns. Raises DraftError where one cannot be told."""
    found = dict(known)
    for role in tasks.KINDS[kind].required:
        if role in found:
            continue
        free = [column for column in frame.columns if column not in found.values()]
        candidates = [_named(frame[free], role)] if _named(frame[free], role) else _candidates(frame[free], role)
        if len(candidates) != 1:
            which = f"any of {', '.join(map(repr, candidates))}" if candidates else "none of them"
            raise DraftError(
                f"the {role} of a {kind} is one of the columns {_listed(frame)}, and it may be {which}: name it by "
                f"--column {role}=NAME"
            )
        found[role] = candidates[0]
    if unknown := sorted(set(found.values()) - {*frame.columns}):
        raise DraftError(f"the file has the columns {_listed(frame)}; received {', '.join(unknown)}")
    return found


def _named(frame: pd.DataFrame, role: str) -> str:
    """Return the column that is called as such columns are, "" for none; texts are of many kinds, labels of few."""
    called = {str(column).lower(): str(column) for column in reversed(list(frame.columns))}
    found = [called[name] for name in _NAMES[role] if name in called]
    return next((column for column in found if _varies(frame, column) != (role == "label")), "")


def _varies(frame: pd.DataFrame, column: str) -> bool:
    """Return whether many of a column's values occur once or a few times."""
    return bool(frame[column].astype(str).nunique() > _SAME * len(frame))


def _candidates(frame: pd.DataFrame, role: str) -> list[str]:
    return _labels(frame) if role == "label" else _texts(frame)


def _labels(frame: pd.DataFrame) -> list[str]:
    """Return the columns of few different values."""
    most = min(_MOST_LABELS, max(2, len(frame) // 5))
    return [str(column) for column in frame.columns if 2 <= frame[column].astype(str).nunique() <= most]


def _texts(frame: pd.DataFrame) -> list[str]:
    """Return the columns of text in which most rows say something of their own."""
    found = []
    for column in frame.columns:
        values = frame[column].dropna()
        texts = values[values.map(lambda value: isinstance(value, str))]
        if len(texts) > 0.5 * len(frame) and texts.nunique() > 0.5 * len(texts) and texts.str.len().mean() > 12:
            found.append(str(column))
    return found


def _lengths(task: tasks.Task, frame: pd.DataFrame, tokenizer: Any) -> dict[str, list[int]]:
    """Return tokens, special ones included, of what a model reads, and of the target where it writes one."""
    sample = frame.sample(min(_READ, len(frame)), random_state=0)

    def counted(*roles: str) -> list[int]:
        columns = [sample[task.columns[role]].astype(object).fillna("").astype(str).tolist() for role in roles]
        return [len(ids) for ids in tokenizer(*columns)["input_ids"]]

    inputs = [role for role in tasks.KINDS[task.kind].inputs if role in task.columns]
    return {"source": counted(*inputs)} | ({"target": counted("target")} if "target" in task.columns else {})


def _longest(lengths: Sequence[int], room: float) -> int:
    """Return a bound that leaves most texts whole, within the model's positions."""
    wanted = sorted(lengths)[math.ceil(_COVERED * len(lengths)) - 1]
    return int(min(_ROUND * math.ceil(wanted / _ROUND), room))


def _seconds(backbone: Backbone, data: TaskData) -> float:
    """Return what a row takes with an ordinary design."""
    from petl.presets import parse
    from petl.training.rehearsal import seconds_per_row

    return seconds_per_row(load(backbone, data), data, parse(_ORDINARY))


def _affordable(seconds: float, rows: int, hours: float) -> tuple[int, int | None, str]:
    """Return how many trials the hours are enough for, of how many rows where all are too many, and why."""
    each = _SHARE * _EPOCHS * rows * seconds
    trials = min(_MOST, int(3600 * hours / (each + _BESIDE)))
    timed = f"{1000 * seconds:.2g} ms a row with {_ORDINARY} here, one trial at a time, references not counted"
    if trials >= _FEWEST:
        return trials, None, f"about {trials * (each + _BESIDE) / 3600:.2g} h: {timed}"
    fewer = max(1, int(rows * (3600 * hours / _FEWEST - _BESIDE) / each))
    return _FEWEST, fewer, f"{timed}; all {rows:,} rows would take {_FEWEST * (each + _BESIDE) / 3600:.2g} h"


def _listed(frame: pd.DataFrame) -> str:
    return ", ".join(map(repr, map(str, frame.columns)))


def _quoted(text: str) -> str:
    """Return text as YAML has it, in quotes where it could be taken for something else."""
    import json

    plain = text.replace("/", "").replace("-", "").replace("_", "").replace(".", "")
    return text if plain.isascii() and plain.isalpha() and text[0].isalpha() else json.dumps(text, ensure_ascii=False)
