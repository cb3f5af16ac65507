"""StudyConfig: what a human writes, checked as a whole before anything starts."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, Literal

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    TypeAdapter,
    ValidationError,
    field_validator,
    model_validator,
)

from petl import presets, tasks
from petl.configuration import TRAINING_FIELDS, Configuration, Training
from search.halving import Rule, rule
from search.objectives import COSTS, SCORES
from search.samplers import SAMPLERS
from spaces.space import resolve as resolve_space

REFERENCES: Final = ("majority", "probe", "head_only", "full")
LIMITS: Final = ("stored_parameters", "stored_percent", "trained_parameters", "trained_percent", "paper_parameters")
BASELINES: Final = ("majority", "probe")  # as petl.baselines has them, which needs torch
_REFERENCE_TRAINING: Final[Mapping[str, Mapping[str, Any]]] = {"full": {"learning_rate": 5e-5}}
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")  # safe as a folder and in a URL


class _Loader(yaml.SafeLoader):
    """YAML 1.2's numbers: 1e-3 is one, which PyYAML takes for a word."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+"), list("-+0123456789")
)


class ConfigError(ValueError):
    """A study file with faults: all of them, one a line."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class BackboneConfig(_Section):
    """`model`: a hub id, a folder, or `package:NAME/path`. `precision`: of compute; weights stay fp32."""

    model: str = Field(min_length=1)
    precision: Literal["auto", "fp32", "bf16"] = "auto"

    @field_validator("model")
    @classmethod
    def _anchored(cls, value: str) -> str:
        return _anchored(value) if Path(value).expanduser().exists() else value


class ObjectivesConfig(_Section):
    """The two axes of the front."""

    score: str = "accuracy"
    cost: str = "stored_parameters"

    @field_validator("score", "cost")
    @classmethod
    def _known(cls, value: str, info: Any) -> str:
        return _one_of(SCORES if info.field_name == "score" else COSTS, value)


class SamplerConfig(_Section):
    """`auto` is gp up to 300 finished trials and tpe beyond."""

    name: str = "auto"
    seed: NonNegativeInt = 0

    @field_validator("name")
    @classmethod
    def _known(cls, value: str) -> str:
        return _one_of(SAMPLERS, value)


class SchedulerConfig(_Section):
    """The rung rule. asha: one in `eta` goes on, decided first at `first` epochs."""

    name: str = "asha"
    eta: float | None = None
    first: float | None = None

    @model_validator(mode="after")
    def _known(self) -> SchedulerConfig:
        self.rule(epochs=1.0)
        return self

    def rule(self, epochs: float) -> Rule:
        """The rule for trials of so many epochs."""
        return rule(self.name, epochs, **self.model_dump(exclude={"name"}, exclude_none=True))


class BudgetConfig(_Section):
    """`trials` counts proposed and enqueued designs, not references. After `hours` no trial starts."""

    trials: PositiveInt = 24
    hours: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    epochs: float = Field(default=3.0, gt=0, allow_inf_nan=False)


class ResourcesConfig(_Section):
    """What each trial is given. Fractions of a GPU let small trials share one.

    `zero_stage` is DeepSpeed's ZeRO: 0 partitions nothing, 1 moments, 2 gradients too, 3 parameters too.
    """

    concurrent: PositiveInt = 2
    cpus_per_trial: PositiveFloat = 1.0
    gpus_per_trial: float = Field(default=0.0, ge=0)
    workers_per_trial: PositiveInt = 1
    zero_stage: int = Field(default=0, ge=0, le=3)

    @model_validator(mode="after")
    def _supported(self) -> ResourcesConfig:
        if self.workers_per_trial > 1:
            raise ValueError(
                "this release trains a trial in one process (several workers a trial are not there yet); "
                f"received workers_per_trial {self.workers_per_trial}"
            )
        return self


class TrackingConfig(_Section):
    """`uri` of the MLflow store; None is sqlite under ./petl-search or $PETL_SEARCH_HOME."""

    uri: str | None = None

    @field_validator("uri")
    @classmethod
    def _anchored(cls, value: str | None) -> str | None:
        scheme, found, path = (value or "").partition("sqlite:///")
        return f"sqlite:///{_anchored(path)}" if found and not scheme and path else value


class StudyConfig(_Section):
    """One study, as in a study file. `seed` is the training seed of all its trials."""

    study: str
    backbone: BackboneConfig
    task: dict[str, Any]
    space: dict[str, Any] = {"name": "unified"}
    objectives: ObjectivesConfig = ObjectivesConfig()
    constraints: dict[str, PositiveFloat] = {}
    references: dict[str, dict[str, Any]] = {name: {} for name in REFERENCES}
    enqueue: tuple[str, ...] = ()
    training: dict[str, Any] = {}
    seed: NonNegativeInt = 0
    sampler: SamplerConfig = SamplerConfig()
    scheduler: SchedulerConfig = SchedulerConfig()
    budget: BudgetConfig = BudgetConfig()
    resources: ResourcesConfig = ResourcesConfig()
    tracking: TrackingConfig = TrackingConfig()

    @field_validator("study")
    @classmethod
    def _named(cls, value: str) -> str:
        if not _NAME.fullmatch(value):
            raise ValueError("a study's name is up to 64 letters, digits, '.', '_' and '-', and starts with neither")
        return value

    @field_validator("task")
    @classmethod
    def _task(cls, value: dict[str, Any]) -> dict[str, Any]:
        paths = value.get("paths")
        if isinstance(paths, str):
            paths = {"train": paths}
        if isinstance(paths, dict):
            value = {**value, "paths": {split: _anchored(str(path)) for split, path in paths.items()}}
        tasks.resolve(value)
        return value

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
            _one_of(LIMITS, name)
        return value

    @field_validator("references", mode="before")
    @classmethod
    def _listed(cls, value: Any) -> Any:
        return {name: {} for name in value} if isinstance(value, list | tuple) else value

    @field_validator("references")
    @classmethod
    def _references(cls, value: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        for name, training in value.items():
            _one_of(REFERENCES, name)
            if training and name in BASELINES:
                raise ValueError(f"{name} is not trained, so it takes no settings; received {training!r}")
        return {name: _checked_training(training) for name, training in value.items()}

    @field_validator("enqueue")
    @classmethod
    def _enqueue(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for text in value:
            presets.parse(text)
        return value

    @field_validator("training")
    @classmethod
    def _training(cls, value: dict[str, Any]) -> dict[str, Any]:
        return _checked_training(value)

    @property
    def fixed_training(self) -> Training:
        """The training settings that every trial starts from."""
        return Training(**self.training, epochs=self.budget.epochs)

    def reference_configurations(self) -> dict[str, Configuration | None]:
        """The references by name; None for those that train nothing of the network."""
        configurations: dict[str, Configuration | None] = {}
        for name, settings in self.references.items():
            if name in BASELINES:
                configurations[name] = None
                continue
            training = Training(**{**self.training, **_REFERENCE_TRAINING.get(name, {}), **settings})
            training = replace(training, epochs=self.budget.epochs)
            configurations[name] = Configuration(presets.parse(name), training, self.seed)
        return configurations


def load_config(source: str | Path | Mapping[str, Any], overrides: Sequence[str] = ()) -> StudyConfig:
    """A study file (YAML), or the same as a mapping, with `key.key=value` overrides.

    Raises ConfigError with every fault: where, the rule, and the value received.
    """
    if isinstance(source, Mapping):
        data: Any = _deep_copy(source)
    else:
        try:
            data = yaml.load(Path(source).read_text(), _Loader)  # a safe loader
        except OSError as error:
            raise ConfigError(f"the study file {source} cannot be read: {error.strerror}") from None
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ConfigError(f"{source} is no YAML file: {error}") from None
    if not isinstance(data, dict):
        raise ConfigError(f"a study file is a mapping of sections such as study and backbone; received {data!r}")
    for override in overrides:
        _override(data, override)
    try:
        return StudyConfig.model_validate(data)
    except ValidationError as error:
        where = "the study" if isinstance(source, Mapping) else str(source)
        faults = [f"  {_fault(fault)}" for fault in error.errors()]
        raise ConfigError(f"{where} has {len(faults)} fault(s):\n" + "\n".join(faults)) from None


def _override(data: dict[str, Any], override: str) -> None:
    path, equals, text = override.partition("=")
    *sections, key = path.split(".")
    if not equals or not all((*sections, key)):
        raise ConfigError(f"--set takes key=value, such as budget.trials=48; received {override!r}")
    for section in sections:
        data = data.setdefault(section, {})
        if not isinstance(data, dict):
            raise ConfigError(f"--set {override}: {section} is a value, not a section")
    try:
        data[key] = yaml.load(text, _Loader)
    except yaml.YAMLError:
        raise ConfigError(f"--set {override}: {text!r} is no YAML value") from None


def _fault(fault: Any) -> str:
    where = "".join(f"{part}." for part in fault["loc"]).rstrip(".")
    rule = fault["msg"].removeprefix("Value error, ")
    if fault["type"] == "missing":
        rule = "is required; received nothing"
    elif fault["type"] == "extra_forbidden":
        rule = "no such key"
    # our own rules quote what they received where it is not the whole section
    received = "" if "received" in rule else f"; received {fault['input']!r}"
    return f"{where}: {rule}{received}" if where else f"{rule}{received}"


def _anchored(path: str) -> str:
    """An absolute path: workers run in other folders, and a resume may too. `package:` names stay."""
    return path if path.startswith("package:") else str(Path(path).expanduser().absolute())


def _checked_training(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings with their types. Raises ValueError."""
    if "epochs" in settings:
        raise ValueError(f"epochs are set under budget.epochs; received epochs: {settings['epochs']!r}")
    unknown = set(settings) - set(TRAINING_FIELDS)
    if unknown:
        raise ValueError(f"training has no {', '.join(sorted(unknown))}; it has {', '.join(TRAINING_FIELDS)}")
    try:
        training = TypeAdapter(Training).validate_python(dict(settings))
    except ValidationError as error:
        raise ValueError("; ".join(map(_fault, error.errors()))) from None
    return {name: getattr(training, name) for name in settings}


def _one_of(names: Sequence[str] | Mapping[str, Any], value: str) -> str:
    if value not in names:
        raise ValueError(f"one of {', '.join(names)}; received {value!r}")
    return value


def _deep_copy(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _deep_copy(item) for key, item in value.items()}
    return list(value) if isinstance(value, tuple) else value
