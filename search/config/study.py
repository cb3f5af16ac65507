"""StudyConfig: what a human writes, checked as a whole before anything starts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from pydantic import (
    NonNegativeInt,
    PositiveFloat,
    TypeAdapter,
    ValidationError,
    field_validator,
    model_validator,
)

from petl import presets, tasks
from petl.configuration import EPOCHS, LAST, TRAINING_FIELDS, Configuration, Training
from petl.design import DesignError
from petl.errors import faults
from petl.paper.results import TABLES, results
from petl.tasks import Task
from search.config.sections import (
    STORED,
    BackboneConfig,
    BudgetConfig,
    DesignConfig,
    ObjectivesConfig,
    PaperConfig,
    ReplicatesConfig,
    ResourcesConfig,
    SamplerConfig,
    SchedulerConfig,
    StorageConfig,
    TrackingConfig,
    _anchored,
    _distinct,
    _one_of,
    _Section,
)
from search.config.text import ConfigError, parse
from search.optimizer.rungs import Rule
from search.optimizer.samplers import require_fit
from search.storage import address
from search.storage.locations import STUDY_NAME
from search.trials.objectives import COUNTS
from search.trials.upgrade import renamed, upgraded, versioned
from spaces.space import resolve as resolve_space

CLASSIFICATION: Final = tuple(name for name, kind in tasks.KINDS.items() if kind.labelled)
REFERENCES: Final[Mapping[str, tuple[str, ...]]] = {  # with the kinds of tasks that they are for; by default all these
    "majority": CLASSIFICATION,
    "probe": CLASSIFICATION,
    "head_only": CLASSIFICATION,
    "untuned": tuple(kind for kind in tasks.KINDS if kind not in CLASSIFICATION),
    "full": tuple(tasks.KINDS),
}
BASELINES: Final = ("majority", "probe", "untuned")  # as petl.training.baselines has them, which needs torch
_REFERENCE_TRAINING: Final[Mapping[str, Mapping[str, Any]]] = {"full": {"learning_rate": 5e-5}}
_STEP: Final = ("batch_size", "batch_tokens", "accumulation")  # what a step of training consists of
_TRIALS: Final = 24


_SHORT: Final[Mapping[str, tuple[type, Callable[[Any], Any]]]] = {  # what a field may be instead of a section or list
    "sampler": (str, lambda name: {"name": name}),
    "scheduler": (str, lambda name: {"name": name}),
    "replicates": (int, lambda per_trial: {"per_trial": per_trial}),
    "warm_start": (str, lambda study: [study]),
}


def _long_form(name: str, value: Any) -> Any:
    """Return what a field's short form stands for; any other value as it is."""
    kind, written_out = _SHORT[name]
    return written_out(value) if isinstance(value, kind) and not isinstance(value, bool) else value


class StudyConfig(_Section):
    """One study, as in a study file: a search of `space`, or a list, which trains exactly its `designs`.

    `seed` is the training seed of all trials of a search; a list trains each design with each of `seeds`.
    A sampler or scheduler may be its name alone, replicates their number a trial, `warm_start` one study.
    """

    # in this order: a field's rules look at the fields before it, so that every fault is found in one go
    study: str
    backbone: BackboneConfig
    task: dict[str, Any]
    training: dict[str, Any] = {}
    designs: dict[str, DesignConfig] = {}
    seed: NonNegativeInt = 0
    seeds: tuple[NonNegativeInt, ...] = ()
    paper: PaperConfig | None = None
    space: dict[str, Any] = {}
    objectives: ObjectivesConfig = ObjectivesConfig()
    constraints: dict[str, PositiveFloat] = {}
    budget: BudgetConfig = BudgetConfig(epochs=EPOCHS)
    references: dict[str, dict[str, Any]] = {}
    enqueue: tuple[str, ...] = ()
    warm_start: tuple[str, ...] = ()
    sampler: SamplerConfig = SamplerConfig()
    scheduler: SchedulerConfig = SchedulerConfig()
    replicates: ReplicatesConfig = ReplicatesConfig()
    resources: ResourcesConfig = ResourcesConfig()
    storage: StorageConfig = StorageConfig()
    tracking: TrackingConfig = TrackingConfig()

    @model_validator(mode="before")
    @classmethod
    def _defaults(cls, data: Any) -> Any:
        """Those that depend on the task's kind, and on whether it is a list."""
        if not isinstance(data, Mapping):
            return data
        try:
            task = tasks.resolve(data["task"])
        except (KeyError, TypeError, ValueError):  # a fault that the field tells of
            task = None
        data, listed = dict(data), bool(data.get("designs"))
        for name in _SHORT.keys() & data.keys():
            data[name] = _long_form(name, data[name])
        if task is not None and isinstance(data.get("objectives", {}), Mapping):
            data["objectives"] = {"score": task.scores[0], **data.get("objectives", {})}
        if listed:
            data.setdefault("scheduler", {"name": "none"})
        else:
            data.setdefault("space", {"name": "unified"})
            if task is not None:
                data.setdefault("references", [name for name, kinds in REFERENCES.items() if task.kind in kinds])
        return data

    @field_validator("study")
    @classmethod
    def _named(cls, value: str) -> str:
        if not STUDY_NAME.fullmatch(value):
            raise ValueError("a study's name is up to 64 letters, digits, '.', '_' and '-', and starts with neither")
        return value

    @field_validator("task")
    @classmethod
    def _task(cls, value: dict[str, Any]) -> dict[str, Any]:
        paths = value.get("paths")
        if isinstance(paths, str):
            paths = {"train": paths}
        if isinstance(paths, dict):
            value = {
                **value,
                "paths": {k: _anchored(path) if isinstance(path, str) else path for k, path in paths.items()},
            }
        if isinstance(value.get("data_dir"), str) and value["data_dir"]:
            value = {**value, "data_dir": _anchored(value["data_dir"])}
        tasks.resolve(value)
        return value

    @field_validator("training")
    @classmethod
    def _training(cls, value: dict[str, Any], info: Any) -> dict[str, Any]:
        return _kept(_checked_training(value), _task(info))

    @field_validator("designs", mode="before")
    @classmethod
    def _texts(cls, value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        return {name: {"design": design} if isinstance(design, str) else design for name, design in value.items()}

    @field_validator("designs")
    @classmethod
    def _designs(cls, value: dict[str, DesignConfig], info: Any) -> dict[str, DesignConfig]:
        study = info.data.get("training", {})
        checked = {}
        for name, row in value.items():
            try:
                training = _kept(_checked_training(row.training, study), _task(info))
                checked[name] = row.model_copy(update={"training": training})
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from None
        return checked

    @field_validator("seeds")
    @classmethod
    def _seeds(cls, value: tuple[int, ...], info: Any) -> tuple[int, ...]:
        if value and not info.data.get("designs", True):
            raise ValueError(f"only a list of designs is trained with several seeds; received {list(value)}")
        return _distinct(value)

    @field_validator("paper")
    @classmethod
    def _paper(cls, value: PaperConfig | None, info: Any) -> PaperConfig | None:
        designs = info.data.get("designs")
        if value is None or designs is None:
            return value
        if not designs:
            raise ValueError(f"only a list of designs has rows to compare with a table; received table {value.table}")
        rows = results(value.table, value.task)
        if not rows:
            with_task = [table for table in TABLES if results(table, value.task)]
            raise ValueError(f"{value.task} is in the tables {', '.join(with_task)}; received table {value.table}")
        if strange := [name for name in designs if name not in rows]:
            raise ValueError(
                f"the rows of table {value.table} on {value.task} are {'; '.join(rows)}; received {'; '.join(strange)}"
            )
        return value

    @field_validator("space")
    @classmethod
    def _space(cls, value: dict[str, Any], info: Any) -> dict[str, Any]:
        if info.data.get("designs"):
            if value:
                raise ValueError(f"a study has a space or designs, not both; received {value!r}")
            return value
        options = dict(value)
        name = options.pop("name", "unified")
        if not isinstance(name, str):
            raise ValueError(f"space.name is a name or package.module:function; received {name!r}")
        resolve_space(name, options, Training())
        return value

    @field_validator("objectives")
    @classmethod
    def _measured(cls, value: ObjectivesConfig, info: Any) -> ObjectivesConfig:
        task = _task(info)
        if task is not None and value.score not in task.scores:
            raise ValueError(f"the scores of {task.kind} are {', '.join(task.scores)}; received score: {value.score!r}")
        return value

    @field_validator("constraints")
    @classmethod
    def _constraints(cls, value: dict[str, float]) -> dict[str, float]:
        for name in value:
            _one_of(COUNTS, name)
        return value

    @field_validator("references", mode="before")
    @classmethod
    def _listed(cls, value: Any) -> Any:
        if isinstance(value, Mapping):
            return {name: settings or {} for name, settings in value.items()}  # `full:` with nothing behind it
        return {name: {} for name in value} if isinstance(value, list | tuple) else value

    @field_validator("references")
    @classmethod
    def _references(cls, value: dict[str, dict[str, Any]], info: Any) -> dict[str, dict[str, Any]]:
        task, study = _task(info), info.data.get("training", {})
        for name, training in value.items():
            if task is not None and name in REFERENCES and task.kind not in REFERENCES[name]:
                fitting = [other for other, kinds in REFERENCES.items() if task.kind in kinds]
                raise ValueError(f"references for {task.kind} are {', '.join(fitting)} and designs; received {name!r}")
            if name in BASELINES:
                if training:
                    raise ValueError(f"{name} is not trained, so it takes no settings; received {training!r}")
                continue
            try:
                presets.parse(name)
            except DesignError as error:
                names = ", ".join(REFERENCES)
                raise ValueError(f"a reference is one of {names}, or a design; received {name!r}: {error}") from None
        if info.data.get("budget", BudgetConfig()).steps is not None:
            _same_step(value, study)
        checked = {name: _checked_training(training, study) if training else {} for name, training in value.items()}
        return {name: _kept(training, task) for name, training in checked.items()}

    @field_validator("enqueue")
    @classmethod
    def _enqueue(cls, value: tuple[str, ...], info: Any) -> tuple[str, ...]:
        if value and info.data.get("designs"):
            raise ValueError(f"a list trains its designs in their order, so nothing is enqueued; received {value!r}")
        for text in value:
            presets.parse(text)
        return value

    @field_validator("warm_start")
    @classmethod
    def _earlier(cls, value: tuple[str, ...], info: Any) -> tuple[str, ...]:
        if value and info.data.get("designs"):
            raise ValueError(f"a list trains its designs alone, so nothing starts it; received {value!r}")
        if info.data.get("study") in value:
            raise ValueError(f"a study is started by others than itself; received {value!r}")
        return value

    @field_validator("budget")
    @classmethod
    def _budget(cls, value: BudgetConfig, info: Any) -> BudgetConfig:
        designs = info.data.get("designs", {})
        if designs and value.trials is not None:
            raise ValueError(
                f"the designs and their seeds say how many trials there are; received trials: {value.trials}"
            )
        if value.steps is not None:
            own = {name: row.training for name, row in designs.items()}
            _same_step(own, info.data.get("training", {}))
        return value

    @field_validator("sampler")
    @classmethod
    def _sampler(cls, value: SamplerConfig, info: Any) -> SamplerConfig:
        if objectives := info.data.get("objectives"):
            require_fit(value.name, len(objectives.names), value.unfinished)
        return value

    @field_validator("scheduler")
    @classmethod
    def _scheduler(cls, value: SchedulerConfig, info: Any) -> SchedulerConfig:
        if info.data.get("designs") and value.name != "none":
            raise ValueError(
                f"every design of a list is trained to its end: the scheduler is none; received {value.name!r}"
            )
        return value

    @field_validator("replicates")
    @classmethod
    def _replicates(cls, value: ReplicatesConfig, info: Any) -> ReplicatesConfig:
        if info.data.get("designs") and value.per_trial:
            raise ValueError(
                f"a list names its seeds itself, by seeds; received replicates.per_trial {value.per_trial}"
            )
        return value

    @property
    def trials(self) -> int:
        """How many designs are proposed and enqueued, or listed; references are not counted."""
        return sum(map(len, self.design_seeds.values())) if self.designs else self.budget.trials or _TRIALS

    @property
    def rule(self) -> Rule:
        """The rung rule."""
        return self.scheduler.rule(self.fixed_training.epochs, self.trials).suited(self.sampler.name)

    @property
    def design_seeds(self) -> dict[str, tuple[int, ...]]:
        """The seeds of each row of a list."""
        return {name: row.seeds or self.seeds or (self.seed,) for name, row in self.designs.items()}

    @property
    def listed(self) -> tuple[tuple[str, Configuration], ...]:
        """What a list trains, in its order: all rows with their first seeds, then with their second ones."""
        seeds = self.design_seeds
        rounds = range(max(map(len, seeds.values()), default=0))
        return tuple(
            (name, Configuration(presets.parse(row.design), self._trained(row.training), seeds[name][index]))
            for index in rounds
            for name, row in self.designs.items()
            if index < len(seeds[name])
        )

    @property
    def fixed_training(self) -> Training:
        """The training settings that every trial starts from; a step's micro-batches are those of all workers."""
        return self._trained({})

    def reference_configurations(self) -> dict[str, Configuration | None]:
        """The references by name; None for those that train nothing of the network."""
        return {
            name: None
            if name in BASELINES
            else Configuration(
                presets.parse(name), self._trained({**_REFERENCE_TRAINING.get(name, {}), **settings}), self.seed
            )
            for name, settings in self.references.items()
        }

    def with_epochs(self, epochs: float) -> StudyConfig:
        """The same with its budget in epochs, once it is known how many its steps are."""
        return self.model_copy(update={"budget": self.budget.model_copy(update={"epochs": epochs})})

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON value that `load_stored` reads, without passwords."""
        return versioned(self.model_dump(mode="json"))

    def _trained(self, settings: Mapping[str, Any]) -> Training:
        if self.budget.epochs is None:
            raise ValueError("how many epochs budget.steps are is known with the data: see with_epochs")
        training = Training(**{**self.training, **settings}, epochs=self.budget.epochs)
        return replace(training, accumulation=training.accumulation * self.resources.workers_per_trial)


def load_config(source: str | Path | Mapping[str, Any], overrides: Sequence[str] = ()) -> StudyConfig:
    """Return the study of a file (YAML), or of the same as a mapping, with `key.key=value` overrides.

    Raises ConfigError with every fault: where, the rule, and the value received.
    """
    if isinstance(source, Mapping):
        return _validated(source, overrides, "the study")
    try:
        text = Path(source).read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"the study file {source} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{source} is no YAML: byte {error.start + 1} is not UTF-8") from None
    return _validated(parse(text, str(source)), overrides, str(source))


def load_stored(stored: Mapping[str, Any], overrides: Sequence[str] = ()) -> StudyConfig:
    """Return the configuration that `StudyConfig.to_dict` gave, of this version or an earlier one.

    Raises VersionError for a later one, and ConfigError as `load_config` does.
    """
    return _validated(upgraded(stored), overrides, "the study", STORED)


def _validated(data: Any, overrides: Sequence[str], name: str, context: str | None = None) -> StudyConfig:
    if not isinstance(data, Mapping):
        received = address.redacted(repr(data))
        raise ConfigError(f"a study file is a mapping of sections such as study and backbone; received {received}")
    data = _deep_copy(data)
    for override in overrides:
        _override(data, override)
    try:
        return StudyConfig.model_validate(data, context=context)
    except ValidationError as error:
        found = faults(error, redact=address.redacted, renamed=renamed)
        raise ConfigError("\n  ".join([f"{name} has {len(found)} fault(s):", *found])) from None


def _override(data: dict[str, Any], override: str) -> None:
    """Set a key of the data. A section that has its short form gets the long one first."""
    path, equals, text = override.partition("=")
    *sections, key = path.split(".")
    if not equals or not all((*sections, key)):
        raise ConfigError(f"--set takes key=value, such as budget.trials=48; received {address.redacted(override)!r}")
    top = data
    for section in sections:
        value = data.get(section)
        if data is top and section in _SHORT:
            value = _long_form(section, value)
        if value is None:
            value = {}
        if not isinstance(value, dict):
            raise ConfigError(f"--set {address.redacted(override)}: {section} is a value, not a section")
        data[section] = data = value
    data[key] = parse(text, f"--set {override}")


def _checked_training(settings: Mapping[str, Any], study: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The settings with their types; together with the study's they keep the rules. Raises ValueError."""
    if "epochs" in settings:
        raise ValueError(f"epochs are set under budget.epochs; received epochs: {settings['epochs']!r}")
    unknown = set(settings) - set(TRAINING_FIELDS)
    if unknown:
        raise ValueError(f"training has no {', '.join(sorted(unknown))}; it has {', '.join(TRAINING_FIELDS)}")
    try:
        training = TypeAdapter(Training).validate_python({**(study or {}), **settings})
    except ValidationError as error:
        raise ValueError("; ".join(faults(error))) from None
    return {name: getattr(training, name) for name in settings}


def _kept(settings: dict[str, Any], task: Task | None) -> dict[str, Any]:
    """The settings, after `keep` was found among the task's scores. Raises ValueError."""
    keep = settings.get("keep", LAST)
    if task is not None and keep not in (LAST, *task.scores):
        raise ValueError(f"keep is {LAST}, or a score of {task.kind}: {', '.join(task.scores)}; received {keep!r}")
    return settings


def _same_step(own: Mapping[str, Mapping[str, Any]], study: Mapping[str, Any]) -> None:
    """Raises ValueError where a design's step is another than the study's: as many steps were other epochs."""
    for name, settings in own.items():
        for field in _STEP:
            common = study.get(field, getattr(Training(), field))
            if settings.get(field, common) != common:
                raise ValueError(
                    f"with budget.steps every design has the study's {', '.join(_STEP)}; "
                    f"received {field}: {settings[field]} for {name}"
                )


def _task(info: Any) -> Task | None:
    """The task as far as validation has come; None where it is at fault."""
    return tasks.resolve(info.data["task"]) if "task" in info.data else None


def _deep_copy(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _deep_copy(item) for key, item in value.items()}
    return list(value) if isinstance(value, tuple) else value
