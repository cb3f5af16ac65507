"""Sections of a study file, one class each: fields, defaults and the rules within a section."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, Self, get_type_hints

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PlainSerializer,
    PositiveInt,
    TypeAdapter,
    ValidationError,
    ValidationInfo,
    create_model,
    field_validator,
    model_validator,
)

from petl import presets
from petl.backbones.locate import is_hub_id
from petl.configuration import EPOCHS, TRAINING_FIELDS, Training, check_offload
from petl.errors import faults
from petl.paper.results import PAPER_TASKS, TABLES
from search.optimizer.observations import DEFAULT_UNFINISHED, UNFINISHED
from search.optimizer.rungs import OPTIONS, Rule, rule
from search.optimizer.samplers import NAMES
from search.storage import address
from search.trials.objectives import COSTS, SCORES

_KEYS: Final = re.compile(  # in the address of a store: a secret may have slashes, and Azure's containers an @ behind
    r"(?i)^(?!abfss?://[^:@/?]+@[^@?]+(\?|$))[^?]*@|[?&]\w*(access_?key|secret|token|credential|password)\w*="
)


STORED: Final = "stored"  # the context of a validation of what a study has on record


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


def _distinct(seeds: tuple[int, ...]) -> tuple[int, ...]:
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"each seed is given once; received {list(seeds)}")
    return seeds


Seeds = Annotated[tuple[NonNegativeInt, ...], AfterValidator(_distinct)]

# What is dumped and printed of an address has no password.
_Address = Annotated[
    str | None,
    PlainSerializer(lambda value: None if value is None else address.without_password(value)),
    Field(repr=False),
]


class BackboneConfig(Section):
    """`model`: a hub id, a folder, or `package:NAME/path`. `precision`: of compute; weights stay fp32."""

    model: str = Field(min_length=1)
    precision: Literal["auto", "fp32", "bf16"] = "auto"

    @field_validator("model")
    @classmethod
    def _anchored(cls, value: str, info: ValidationInfo) -> str:
        # What is stored was anchored when its study began: a folder that has the name of a hub id now is another thing.
        return value if info.context == STORED or is_hub_id(value) else anchored(value)


class ObjectivesConfig(Section):
    """The axes of the front, two or three. The score is by default the first that the task's kind has.

    Rung rules go by the score and one cost: the first that is known before training, else `cost`.
    """

    score: str = "accuracy"
    cost: str = "stored_parameters"
    second_cost: str | None = None

    @field_validator("score", "cost", "second_cost")
    @classmethod
    def _known(cls, value: str | None, info: Any) -> str | None:
        return value if value is None else one_of(SCORES if info.field_name == "score" else COSTS, value)

    @field_validator("second_cost")
    @classmethod
    def _another(cls, value: str | None, info: Any) -> str | None:
        if value is not None and value == info.data.get("cost"):
            raise ValueError(f"second_cost is another one than cost; received {value!r} for both")
        return value

    @property
    def names(self) -> tuple[str, ...]:
        """Score, cost, and the second cost if there is one."""
        return (self.score, self.cost) if self.second_cost is None else (self.score, self.cost, self.second_cost)


class SamplerConfig(Section):
    """`auto` is front; with a second cost gp up to 300 finished trials and tpe beyond. `unfinished`: the
    score that Optuna's samplers learn of a trial that did not train in full: predicted (by the model of `front`), last
    (measured), extrapolated, or ignored.
    """

    name: str = "auto"
    seed: NonNegativeInt = 0
    unfinished: str = DEFAULT_UNFINISHED

    @field_validator("unfinished")
    @classmethod
    def _unfinished(cls, value: str) -> str:
        return one_of(UNFINISHED, value)

    @field_validator("name")
    @classmethod
    def _known(cls, value: str) -> str:
        return one_of(NAMES, value)


class _Scheduler(Section):
    """The rung rule by its name, and its options: `search.optimizer.rungs` has the table of both."""

    name: str = "halving"

    @model_validator(mode="after")
    def _known(self) -> Self:
        self.rule(epochs=1.0, trials=1)
        return self

    def rule(self, epochs: float, trials: int) -> Rule:
        """Return the rule for so many trials of so many epochs."""
        return rule(self.name, epochs, trials, **self.model_dump(exclude={"name"}, exclude_none=True))


if TYPE_CHECKING:

    class SchedulerConfig(_Scheduler):
        """A scheduler with a field for each option of a rule."""
else:
    SchedulerConfig = create_model(
        "SchedulerConfig",
        __base__=_Scheduler,
        **{
            name: ((int if option.whole else float) | None, Field(default=None, description=option.meaning))
            for name, option in OPTIONS.items()
        },
    )


class BudgetConfig(Section):
    """`trials` counts proposed and enqueued designs, not references; a list of designs sets it. A trial trains for
    `epochs`, or for so many `steps` instead.

    The search ends, to be resumed with more, after `hours`; when its trials have held devices, GPUs or else
    CPUs, for `device_hours`; and when at `price_per_device_hour` those come to `money`.
    """

    trials: PositiveInt | None = None
    hours: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    device_hours: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    money: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    price_per_device_hour: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    epochs: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    steps: PositiveInt | None = None

    @model_validator(mode="before")
    @classmethod
    def _default(cls, data: Any) -> Any:
        if isinstance(data, Mapping) and data.get("epochs") is None and data.get("steps") is None:
            return {**data, "epochs": EPOCHS}
        return data

    @model_validator(mode="after")
    def _one(self) -> BudgetConfig:
        if self.epochs is not None and self.steps is not None:
            raise ValueError(
                f"give epochs or steps, and null for the other; received epochs {self.epochs:g}, steps {self.steps}"
            )
        if self.money is not None and self.price_per_device_hour is None:
            raise ValueError(f"money needs a price_per_device_hour; received money {self.money:g} alone")
        return self


class DesignConfig(Section):
    """One row of a list. `training` and `head` go over the study's, `seeds` replace the study's."""

    design: str
    training: dict[str, Any] = {}
    head: dict[str, Any] = {}
    seeds: Seeds = ()

    @field_validator("design")
    @classmethod
    def _parsed(cls, value: str) -> str:
        presets.parse(value)
        return value


class PaperConfig(Section):
    """What `show --against paper` puts beside a list: a table of He et al. (2022), and which of its tasks."""

    table: str
    task: str

    @field_validator("table", mode="before")
    @classmethod
    def _number(cls, value: Any) -> Any:
        return str(value) if isinstance(value, int) else value

    @field_validator("table", "task")
    @classmethod
    def _known(cls, value: str, info: Any) -> str:
        return one_of(TABLES if info.field_name == "table" else PAPER_TASKS, value)


class ResourcesConfig(Section):
    """What each trial is given. Fractions of a GPU let small trials share one.

    `workers_per_trial` processes train a trial together, each with an equal part of its CPUs and GPUs; by
    default a CPU each. Every one of them has `training.accumulation` micro-batches of a step.
    `zero_stage` is DeepSpeed's ZeRO: 0 partitions nothing, 1 moments, 2 gradients too, 3 parameters too.
    `offload`: what lies in the host's memory and not in the GPU's, optimizer (from stage 1) or parameters (stage 3).
    `wait_minutes`: how long a cluster that grows by itself may take for the first node; trials then wait for places.
    """

    concurrent: PositiveInt = 2
    workers_per_trial: PositiveInt = 1
    cpus_per_trial: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    gpus_per_trial: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    zero_stage: int = Field(default=0, ge=0, le=3)
    offload: tuple[str, ...] = ()
    wait_minutes: float = Field(default=0.0, ge=0, allow_inf_nan=False)

    @model_validator(mode="after")
    def _divisible(self) -> ResourcesConfig:
        each = self.gpus_per_trial / self.workers_per_trial
        if each > 1 or (self.workers_per_trial > 1 and each not in (0, 1)):  # nccl joins no two on one GPU
            raise ValueError(
                "a worker trains on one GPU, or on a part of one where it trains alone; received "
                f"gpus_per_trial {self.gpus_per_trial:g} for workers_per_trial {self.workers_per_trial}"
            )
        check_offload(self.zero_stage, self.offload)
        return self

    @property
    def devices(self) -> float:
        """How many a trial holds: GPUs, or CPUs where it has none."""
        return self.gpus_per_trial or self.each["CPU"] * self.workers_per_trial

    @property
    def each(self) -> dict[str, float]:
        """What one worker is given, in Ray's words."""
        workers = self.workers_per_trial
        cpus = workers if self.cpus_per_trial is None else self.cpus_per_trial
        return {"CPU": cpus / workers, "GPU": self.gpus_per_trial / workers}


class TrackingConfig(Section):
    """`uri` of the MLflow store; None is sqlite under ./petl-search or $PETL_SEARCH_HOME.

    A run waits at its end for so many seconds of `patience` for a store that is away. `also` names functions that open
    trackers of your own, package.module:function, which are written to as MLflow is: see search.tracking.tracker.
    """

    uri: _Address = None
    patience: NonNegativeFloat = 180.0
    also: tuple[str, ...] = ()

    @field_validator("uri")
    @classmethod
    def _checked(cls, value: str | None) -> str | None:
        if value is not None:
            address.expand_env(value)
        return _anchored_sqlite(value)


class StorageConfig(Section):
    """`database` of the trials' records: sqlite:///FILE or postgresql://USER:PASSWORD@HOST/DATABASE. `${NAME}` in it
    is of the environment. None is $PETL_SEARCH_DATABASE, else sqlite under ./petl-search or $PETL_SEARCH_HOME.

    `path` is where the trials are kept, training states and adapters: s3://BUCKET/PREFIX, gs://BUCKET/PREFIX or a
    folder, which all nodes reach. None is the study's folder, which all nodes share then.

    `max_gb` limits the study's folder and artifacts together, in 10^9 bytes: adapters of dominated trials make way
    for new trials, and where that is not enough, the search ends early.
    """

    database: _Address = None
    path: _Address = None
    max_gb: float | None = Field(default=None, gt=0, allow_inf_nan=False)

    @field_validator("database")
    @classmethod
    def _checked(cls, value: str | None) -> str | None:
        if value is not None:
            address.database(value)
        return _anchored_sqlite(value)

    @field_validator("path")
    @classmethod
    def _public(cls, value: str | None) -> str | None:
        if value is None or "://" not in value:
            return None if value is None else anchored(value)
        if _KEYS.search(value):
            raise ValueError(
                "the keys of a store are the environment's (AWS_ACCESS_KEY_ID, AWS_PROFILE, "
                f"GOOGLE_APPLICATION_CREDENTIALS ...), never its address's; received {value.partition('://')[0]}://…"
            )
        return value


class ReplicatesConfig(Section):
    """When a search is over, trials that are contested, on the front or off it, train again with up to
    `per_trial` fresh seeds each; all together for at most `extra` of the epochs that the search took. 0: none do.
    """

    per_trial: NonNegativeInt = 0
    extra: float = Field(default=0.2, gt=0, allow_inf_nan=False)


def anchored(path: str) -> str:
    """Return an absolute path: workers run in other folders, and a resume may too. `package:` names stay."""
    return path if path.startswith("package:") else str(Path(path).expanduser().absolute())


def _anchored_sqlite(uri: str | None) -> str | None:
    scheme, found, path = (uri or "").partition("sqlite:///")
    return f"sqlite:///{anchored(path)}" if found and not scheme and path else uri


def one_of(names: Sequence[str] | Mapping[str, Any], value: str) -> str:
    if value not in names:
        raise ValueError(f"one of {', '.join(names)}; received {value!r}")
    return value


def typed_training(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings of training with their types. Raises ValueError for unknown ones and for values of another type.

    What they mean together is a rule of the study, whose settings stand for those that are missing.
    """
    if "epochs" in settings:
        raise ValueError(f"epochs are set under budget.epochs; received epochs: {settings['epochs']!r}")
    unknown = set(settings) - set(TRAINING_FIELDS)
    if unknown:
        raise ValueError(f"training has no {', '.join(sorted(unknown))}; it has {', '.join(TRAINING_FIELDS)}")
    typed, found = {}, []
    for name, value in settings.items():
        try:
            typed[name] = _SETTINGS[name].validate_python(value)
        except ValidationError as error:
            found += faults(error, name)
    if found:
        raise ValueError("; ".join(found))
    return typed


_SETTINGS: Final = {name: TypeAdapter(hint) for name, hint in get_type_hints(Training).items()}
