"""StudyConfig: what a human writes, checked as a whole before anything starts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Final

from pydantic import (
    ModelWrapValidatorHandler,
    NonNegativeInt,
    PositiveFloat,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails, InitErrorDetails, PydanticCustomError

from petl import presets, tasks
from petl.configuration import EPOCHS, Configuration, Training
from petl.design import DesignError
from petl.tasks import Task
from search.config.rules import REFERENCES, RULES
from search.config.sections import (
    BackboneConfig,
    BudgetConfig,
    DesignConfig,
    ObjectivesConfig,
    PaperConfig,
    ReplicatesConfig,
    ResourcesConfig,
    SamplerConfig,
    SchedulerConfig,
    Section,
    Seeds,
    StorageConfig,
    TrackingConfig,
    anchored,
    one_of,
    typed_training,
)
from search.optimizer.rungs import Rule
from search.storage.locations import STUDY_NAME
from search.trials.objectives import COUNTS
from search.trials.upgrade import KEYS, renamed, versioned
from spaces.space import resolve as resolve_space

BASELINES: Final = ("majority", "probe", "untuned")  # as petl.training.baselines has them, which needs torch
_REFERENCE_TRAINING: Final[Mapping[str, Mapping[str, Any]]] = {"full": {"learning_rate": 5e-5}}
_TRIALS: Final = 24


_SHORT: Final[Mapping[str, tuple[type, Callable[[Any], Any]]]] = {  # what a field may be instead of a section or list
    "sampler": (str, lambda name: {"name": name}),
    "scheduler": (str, lambda name: {"name": name}),
    "replicates": (int, lambda per_trial: {"per_trial": per_trial}),
    "warm_start": (str, lambda study: [study]),
}


# A section that has a fault of its own is as good as any other for the rules that do not read it.
_ANY: Final[Mapping[str, Any]] = {"study": "any", "backbone": {"model": "any/any"}, "task": {}}
_NO_TASK: Final = Task()  # for rules that do not read the task, where it has a fault


class StudyConfig(Section):
    """One study, as in a study file: a search of `space`, or a list, which trains exactly its `designs`.

    `seed` is the training seed of all trials of a search; a list trains each design with each of `seeds`.
    A sampler or scheduler may be its name alone, replicates their number a trial, `warm_start` one study.
    """

    study: str
    backbone: BackboneConfig
    task: dict[str, Any]
    training: dict[str, Any] = {}
    designs: dict[str, DesignConfig] = {}
    seed: NonNegativeInt = 0
    seeds: Seeds = ()
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

    @model_validator(mode="wrap")
    @classmethod
    def _all_faults(cls, data: Any, validate: ModelWrapValidatorHandler[StudyConfig]) -> StudyConfig:
        """Check each section by itself, then what holds between those without a fault; raise all faults as one error.

        The task is resolved here once, for defaults and rules.
        """
        if not isinstance(data, Mapping):
            return validate(data)
        data, found = _without_old_keys({name: long_form(name, value) for name, value in data.items()})
        task = _resolve_task(data.get("task"))
        data = _with_defaults(data, task)
        try:
            config = validate(data)
        except ValidationError as error:
            found += [_again(fault) for fault in error.errors()]
            wrong = {fault["loc"][0] for fault in found}
            config = validate({**_ANY, **{name: value for name, value in data.items() if name not in wrong}})
        wrong = {fault["loc"][0] for fault in found}
        if isinstance(task, ValueError) and "task" not in wrong:
            found.append(_new_fault(("task",), str(task), data["task"]))
        if not isinstance(task, Task):
            wrong.add("task")
        for rule in RULES:
            if not wrong.isdisjoint((rule.section, *rule.reads)):
                continue
            try:
                rule.check(config, task if isinstance(task, Task) else _NO_TASK)
            except ValueError as error:
                found.append(_new_fault((rule.section,), str(error), data.get(rule.section)))
        if found:
            raise ValidationError.from_exception_data("the study", found)
        return config

    @field_validator("study")
    @classmethod
    def _named(cls, value: str) -> str:
        if not STUDY_NAME.fullmatch(value):
            raise ValueError("a study's name is up to 64 letters, digits, '.', '_' and '-', and starts with neither")
        return value

    @field_validator("task")
    @classmethod
    def _with_absolute_paths(cls, value: dict[str, Any]) -> dict[str, Any]:
        paths = value.get("paths")
        if isinstance(paths, str):
            paths = {"train": paths}
        if isinstance(paths, dict):
            absolute = {split: anchored(path) if isinstance(path, str) else path for split, path in paths.items()}
            value = {**value, "paths": absolute}
        if isinstance(value.get("data_dir"), str) and value["data_dir"]:
            value = {**value, "data_dir": anchored(value["data_dir"])}
        return value

    @field_validator("training")
    @classmethod
    def _training(cls, value: dict[str, Any]) -> dict[str, Any]:
        typed = typed_training(value)
        Training(**typed)
        return typed

    @field_validator("designs", mode="before")
    @classmethod
    def _texts(cls, value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        return {name: {"design": design} if isinstance(design, str) else design for name, design in value.items()}

    @field_validator("designs")
    @classmethod
    def _designs(cls, value: dict[str, DesignConfig]) -> dict[str, DesignConfig]:
        checked = {}
        for name, row in value.items():
            try:
                checked[name] = row.model_copy(update={"training": typed_training(row.training)})
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from None
        return checked

    @field_validator("space")
    @classmethod
    def _space(cls, value: dict[str, Any]) -> dict[str, Any]:
        options = dict(value)
        name = options.pop("name", "unified")
        if not isinstance(name, str):
            raise ValueError(f"space.name is a name or package.module:function; received {name!r}")
        resolve_space(name, options, Training())
        return value

    @field_validator("constraints")
    @classmethod
    def _constraints(cls, value: dict[str, float]) -> dict[str, float]:
        for name in value:
            one_of(COUNTS, name)
        return value

    @field_validator("references", mode="before")
    @classmethod
    def _listed(cls, value: Any) -> Any:
        if isinstance(value, Mapping):
            return {name: settings or {} for name, settings in value.items()}  # `full:` with nothing behind it
        return {name: {} for name in value} if isinstance(value, list | tuple) else value

    @field_validator("references")
    @classmethod
    def _references(cls, value: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        for name, training in value.items():
            if name in BASELINES:
                if training:
                    raise ValueError(f"{name} is not trained, so it takes no settings; received {training!r}")
                continue
            try:
                presets.parse(name)
            except DesignError as error:
                names = ", ".join(REFERENCES)
                raise ValueError(f"a reference is one of {names}, or a design; received {name!r}: {error}") from None
        return {name: typed_training(training) for name, training in value.items()}

    @field_validator("enqueue")
    @classmethod
    def _enqueue(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for text in value:
            presets.parse(text)
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


def _resolve_task(settings: Any) -> Task | ValueError | None:
    """Return the task of a section, the fault that it has, or None where it is no section."""
    if not isinstance(settings, Mapping):
        return None
    try:
        return tasks.resolve(settings)
    except ValueError as error:
        return error


def _with_defaults(data: dict[str, Any], task: object) -> dict[str, Any]:
    """Return the sections with those defaults that depend on the task's kind, and on whether it is a list."""
    added: dict[str, Any] = {}
    if data.get("designs"):
        added["scheduler"] = {"name": "none"}
    else:
        added["space"] = {"name": "unified"}
        if isinstance(task, Task):
            added["references"] = [name for name, kinds in REFERENCES.items() if task.kind in kinds]
    if isinstance(task, Task) and isinstance(objectives := data.get("objectives", {}), Mapping):
        data = {**data, "objectives": {"score": task.scores[0], **objectives}}
    return {**added, **data}


def _without_old_keys(data: dict[str, Any]) -> tuple[dict[str, Any], list[InitErrorDetails]]:
    """Return the sections without keys that have other names now, and a fault for each."""
    found = []
    for old in KEYS:
        section, key = old.split(".")
        if isinstance(data.get(section), Mapping) and key in data[section]:
            value = data[section][key]
            found.append(_new_fault((section, key), renamed(old, value), value))
            data[section] = {name: item for name, item in data[section].items() if name != key}
    return data, found


def _new_fault(place: tuple[str, ...], text: str, value: Any) -> InitErrorDetails:
    return InitErrorDetails(type=PydanticCustomError("rule", "{text}", {"text": text}), loc=place, input=value)


def _again(fault: ErrorDetails) -> InitErrorDetails:
    """Return a fault in the form that an error is made from."""
    return InitErrorDetails(type=fault["type"], loc=fault["loc"], input=fault["input"], ctx=fault.get("ctx", {}))


def long_form(name: str, value: Any) -> Any:
    """Return what a field's short form stands for; any other value as it is."""
    kind, written_out = _SHORT.get(name, ((), None))
    return written_out(value) if written_out and isinstance(value, kind) and not isinstance(value, bool) else value
