"""StudyConfig: what a human writes, checked as a whole before anything starts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Final

from pydantic import (
    ModelWrapValidatorHandler,
    ValidationError,
    model_validator,
)
from pydantic_core import ErrorDetails, InitErrorDetails, PydanticCustomError

from petl import presets, tasks
from petl.configuration import Configuration, Training
from petl.head import LINEAR_HEAD, OWN_HEAD, Head
from petl.tasks import Task
from search.config.fields import StudyFields
from search.config.references import BASELINES, REFERENCES, training_of
from search.config.rules import RULES
from search.optimizer.rungs import Rule
from search.trials.upgrade import KEYS, renamed, versioned

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


class StudyConfig(StudyFields):
    """One study, as in a study file: a search of `space`, or a list, which trains exactly its `designs`.

    `seed` is the training seed of all trials of a search; a list trains each design with each of `seeds`.
    A sampler or scheduler may be its name alone, replicates their number a trial, `warm_start` one study.
    """

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
            (
                name,
                Configuration(
                    presets.parse(row.design), self._trained(row.training), seeds[name][index], self.head_of(row.head)
                ),
            )
            for index in rounds
            for name, row in self.designs.items()
            if index < len(seeds[name])
        )

    @property
    def fixed_training(self) -> Training:
        """The training settings that every trial starts from; a step's micro-batches are those of all workers."""
        return self._trained({})

    def head_of(self, settings: Mapping[str, Any] = {}) -> Head:
        """Return the head of a design, with the `settings` of its reference or row over the study's."""
        default = LINEAR_HEAD if tasks.resolve(self.task).labelled else OWN_HEAD
        return default.changed(self.head).changed(settings)

    def reference_configurations(self) -> dict[str, Configuration | None]:
        """Return the references by name; None for those that train nothing of the network."""
        return {
            name: None
            if name in BASELINES
            else Configuration(
                presets.parse(name),
                self._trained({**_REFERENCE_TRAINING.get(name, {}), **training_of(settings)}),
                self.seed,
                self.head_of(settings.get("head", {})),
            )
            for name, settings in self.references.items()
        }

    def with_epochs(self, epochs: float) -> StudyConfig:
        """Return the same with its budget in epochs, once it is known how many its steps are."""
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
