"""The sections of a study file together, each checked by itself."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from typing import Any

from pydantic import NonNegativeInt, PositiveFloat, field_validator

from petl import presets
from petl.configuration import EPOCHS, Training
from petl.design import DesignError
from petl.head import LINEAR_HEAD
from search.config.references import BASELINES, REFERENCES, training_of
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
from search.storage.locations import is_study_name
from search.trials.objectives import COUNTS
from spaces.space import resolve as resolve_space


class StudyFields(Section):
    """The fields of a study file, of which none knows another one. What holds between them is search.config.rules."""

    study: str
    backbone: BackboneConfig
    task: dict[str, Any]
    training: dict[str, Any] = {}
    head: dict[str, Any] = {}
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

    @field_validator("study")
    @classmethod
    def _named(cls, value: str) -> str:
        name = unicodedata.normalize("NFC", value)
        if not is_study_name(name):
            raise ValueError(
                "a study's name is letters and digits of any script, '.', '_' and '-', begins with a letter or digit, "
                "does not end in '.', and has at most 200 bytes"
            )
        return name

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

    @field_validator("head")
    @classmethod
    def _head(cls, value: dict[str, Any]) -> dict[str, Any]:
        LINEAR_HEAD.changed(value)
        return value

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
        return {name: _typed(settings) for name, settings in value.items()}

    @field_validator("enqueue")
    @classmethod
    def _enqueue(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        wrong = []
        for text in value:
            try:
                presets.parse(text)
            except DesignError as error:
                wrong.append(f"{text!r}: {error}")
        if wrong:
            raise ValueError("; ".join(wrong))
        return value


def _typed(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a reference: those of training with their types, and its `head` if it has one."""
    head = settings.get("head", {})
    if not isinstance(head, Mapping):
        raise ValueError(f"head is a section with pooling and start; received {head!r}")
    return typed_training(training_of(settings)) | ({"head": dict(head)} if head else {})
