"""Rules between the sections of a study file. Each says what it reads, so that all faults are found in one go."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from petl.configuration import LAST, Training
from petl.head import LINEAR_HEAD, OWN_HEAD
from petl.paper.results import TABLES, results
from petl.tasks import Task
from search.config.fields import StudyFields
from search.config.references import REFERENCES, training_of
from search.optimizer.samplers import require_fit

_STEP: Final = ("batch_size", "batch_tokens", "accumulation")  # what a step of training consists of
Check: TypeAlias = Callable[[StudyFields, Task], None]


@dataclass(frozen=True)
class Rule:
    """A rule about `section`. `check` raises ValueError; it is left out where one of the sections that it `reads`, or
    its own, has a fault of its own.
    """

    section: str
    reads: tuple[str, ...]
    check: Check


def _trained_alone(config: StudyFields, task: Task) -> None:
    for name, row in config.designs.items():
        _require_training(name, {**config.training, **row.training})


def _references_trained(config: StudyFields, task: Task) -> None:
    for name, settings in config.references.items():
        if settings:
            _require_training(name, {**config.training, **training_of(settings)})


def _require_training(name: str, settings: Mapping[str, Any]) -> None:
    try:
        Training(**settings)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def _head(config: StudyFields, task: Task) -> None:
    if not task.labelled:
        _require_no_head("", config.head, task)


def _designs_head(config: StudyFields, task: Task) -> None:
    for name, row in config.designs.items():
        _require_head(name, config, row.head, task)


def _references_head(config: StudyFields, task: Task) -> None:
    for name, settings in config.references.items():
        _require_head(name, config, settings.get("head", {}), task)


def _require_head(name: str, config: StudyFields, settings: Mapping[str, Any], task: Task) -> None:
    if not task.labelled:
        return _require_no_head(f"{name}: ", settings, task)
    try:
        LINEAR_HEAD.changed(config.head).changed(settings)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def _require_no_head(name: str, settings: Mapping[str, Any], task: Task) -> None:
    if OWN_HEAD.changed(settings) != OWN_HEAD:
        raise ValueError(f"{name}head is for classification; {task.kind} has none, received {dict(settings)!r}")


def _keep(config: StudyFields, task: Task) -> None:
    _require_score("", config.training, task)


def _designs_keep(config: StudyFields, task: Task) -> None:
    for name, row in config.designs.items():
        _require_score(f"{name}: ", row.training, task)


def _references_keep(config: StudyFields, task: Task) -> None:
    for settings in config.references.values():
        _require_score("", settings, task)


def _require_score(name: str, settings: Mapping[str, Any], task: Task) -> None:
    keep = settings.get("keep", LAST)
    if keep not in (LAST, *task.scores):
        raise ValueError(
            f"{name}keep is {LAST}, or a score of {task.kind}: {', '.join(task.scores)}; received {keep!r}"
        )


def _seeds(config: StudyFields, task: Task) -> None:
    if config.seeds and not config.designs:
        raise ValueError(f"only a list of designs is trained with several seeds; received {list(config.seeds)}")


def _paper(config: StudyFields, task: Task) -> None:
    if (paper := config.paper) is None:
        return
    if not config.designs:
        raise ValueError(f"only a list of designs has rows to compare with a table; received table {paper.table}")
    rows = results(paper.table, paper.task)
    if not rows:
        with_task = [table for table in TABLES if results(table, paper.task)]
        raise ValueError(f"{paper.task} is in the tables {', '.join(with_task)}; received table {paper.table}")
    if strange := [name for name in config.designs if name not in rows]:
        raise ValueError(
            f"the rows of table {paper.table} on {paper.task} are {'; '.join(rows)}; received {'; '.join(strange)}"
        )


def _space(config: StudyFields, task: Task) -> None:
    if config.designs and config.space:
        raise ValueError(f"a study has a space or designs, not both; received {config.space!r}")


def _score(config: StudyFields, task: Task) -> None:
    if config.objectives.score not in task.scores:
        scores = ", ".join(task.scores)
        raise ValueError(f"the scores of {task.kind} are {scores}; received score: {config.objectives.score!r}")


def _references(config: StudyFields, task: Task) -> None:
    for name in config.references:
        if task.kind not in REFERENCES.get(name, (task.kind,)):
            fitting = ", ".join(other for other, kinds in REFERENCES.items() if task.kind in kinds)
            raise ValueError(f"references for {task.kind} are {fitting} and designs; received {name!r}")


def _enqueue(config: StudyFields, task: Task) -> None:
    if config.enqueue and config.designs:
        raise ValueError(f"a list trains its designs in their order, so nothing is enqueued; received {config.enqueue}")


def _warm_start(config: StudyFields, task: Task) -> None:
    if config.warm_start and config.designs:
        raise ValueError(f"a list trains its designs alone, so nothing starts it; received {config.warm_start}")


def _another_study(config: StudyFields, task: Task) -> None:
    if config.study in config.warm_start:
        raise ValueError(f"a study is started by others than itself; received {config.warm_start}")


def _trials(config: StudyFields, task: Task) -> None:
    if config.designs and config.budget.trials is not None:
        trials = config.budget.trials
        raise ValueError(f"the designs and their seeds say how many trials there are; received trials: {trials}")


def _steps(config: StudyFields, task: Task) -> None:
    _require_same_step(config, {name: row.training for name, row in config.designs.items()})


def _reference_steps(config: StudyFields, task: Task) -> None:
    _require_same_step(config, config.references)


def _require_same_step(config: StudyFields, own: Mapping[str, Mapping[str, Any]]) -> None:
    """Raise ValueError where a design's step is another than the study's: as many steps would be other epochs."""
    if config.budget.steps is None:
        return
    for name, settings in own.items():
        for field in _STEP:
            common = config.training.get(field, getattr(Training(), field))
            if settings.get(field, common) != common:
                raise ValueError(
                    f"with budget.steps every design has the study's {', '.join(_STEP)}; "
                    f"received {field}: {settings[field]} for {name}"
                )


def _sampler(config: StudyFields, task: Task) -> None:
    require_fit(config.sampler.name, len(config.objectives.names), config.sampler.unfinished)


def _scheduler(config: StudyFields, task: Task) -> None:
    if config.designs and config.scheduler.name != "none":
        name = config.scheduler.name
        raise ValueError(f"every design of a list is trained to its end: the scheduler is none; received {name!r}")


def _replicates(config: StudyFields, task: Task) -> None:
    if config.designs and config.replicates.per_trial:
        number = config.replicates.per_trial
        raise ValueError(f"a list names its seeds itself, by seeds; received replicates.per_trial {number}")


RULES: Final = (
    Rule("training", ("task",), _keep),
    Rule("head", ("task",), _head),
    Rule("designs", ("head", "task"), _designs_head),
    Rule("references", ("head", "task"), _references_head),
    Rule("designs", ("training",), _trained_alone),
    Rule("designs", ("task",), _designs_keep),
    Rule("seeds", ("designs",), _seeds),
    Rule("paper", ("designs",), _paper),
    Rule("space", ("designs",), _space),
    Rule("objectives", ("task",), _score),
    Rule("references", ("task",), _references),
    Rule("references", ("training",), _references_trained),
    Rule("references", ("task",), _references_keep),
    Rule("references", ("training", "budget"), _reference_steps),
    Rule("enqueue", ("designs",), _enqueue),
    Rule("warm_start", ("designs",), _warm_start),
    Rule("warm_start", ("study",), _another_study),
    Rule("budget", ("designs",), _trials),
    Rule("budget", ("designs", "training"), _steps),
    Rule("sampler", ("objectives",), _sampler),
    Rule("scheduler", ("designs",), _scheduler),
    Rule("replicates", ("designs",), _replicates),
)
