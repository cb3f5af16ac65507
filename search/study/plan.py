"""Turn a study file, and what was resolved for it, into what the search works through."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from petl import presets
from petl.backbones.count import count
from petl.backbones.model import Backbone
from petl.configuration import Configuration
from petl.design import Design
from search.config.study import StudyConfig
from search.optimizer.budget import Budget, Meter
from search.optimizer.observations import DEFAULT_UNFINISHED
from search.optimizer.replication import Replication
from search.optimizer.search import Plan, Search
from search.results.query import load_study
from search.storage.quota import GB, estimate, require_fit
from search.study.fit import require_positions
from search.study.places import StudyError
from search.study.warm_start import prior
from search.trials.limits import over
from search.trials.records import Records
from search.trials.resolved import Enqueued, Resolved
from search.workers import cluster
from spaces.space import Space, encode
from spaces.space import resolve as resolve_space


def replication(
    config: StudyConfig,
    records: Records,
    plan: Plan,
    meter: Meter | None = None,
    lacking: Callable[[Configuration | None, Sequence[int]], str] = lambda configuration, running: "",
) -> Replication:
    return Replication(
        records,
        plan.budget,
        meter or Meter(plan.budget, records),
        seeds=config.replicates.per_trial,
        extra=config.replicates.extra,
        rungs=plan.rule.rungs,
        seed=config.sampler.seed,
        lacking=lacking,
    )


def is_finished(config: StudyConfig, records: Records) -> bool:
    """Return whether nothing is left to train: no trial, no reference, no replicate."""
    trials = records.all()
    return (
        not any(record.state.open for record in trials)
        and sum(record.reference is None for record in trials) >= config.trials
        and set(config.references) <= {record.reference for record in trials}
        and replication(config, records, search_plan(config, records.resolved)).done
    )


def rehearse(config: StudyConfig, resolved: Resolved) -> None:
    """Return a search that proposes one point and is thrown away.

    Raises SpaceError and SearchError for limits that leave nothing, and for enqueued designs outside them; DesignError
    for a reference or an enqueued design that the backbone cannot have.
    """
    plan, names = search_plan(config, resolved), config.objectives.names
    for configuration in (*plan.references.values(), *(item.configuration for item in plan.enqueued)):
        if configuration is not None:
            plan.count(configuration)
    Search(Records.in_memory(names), plan)
    if config.designs:
        return
    bare = replace(plan, references={}, enqueued=(), sampler="random", unfinished=DEFAULT_UNFINISHED)
    Search(Records.in_memory(names), bare).next(free_workers=1)


def disk_limit(config: StudyConfig) -> int | None:
    """Return the most bytes that the study may take; None for no limit."""
    return None if config.storage.max_gb is None else int(config.storage.max_gb * GB)


def require_room(config: StudyConfig, resolved: Resolved) -> None:
    """Raises DiskError where the references and one trial cannot be within storage.max_gb."""
    if (limit := disk_limit(config)) is None:
        return
    known = [configuration for _, configuration in config.listed] or [
        Configuration(Design(), config.fixed_training, head=config.head_of())
    ]
    smallest = min(known, key=lambda configuration: estimate(configuration, resolved).peak)
    require_fit(limit, config.reference_configurations(), smallest, resolved)


def search_plan(config: StudyConfig, resolved: Resolved) -> Plan:
    backbone, labels = resolved.backbone, len(resolved.labels)
    space, enqueued = (_listed if config.designs else _searched)(config, backbone)
    enqueued += resolved.warm

    def counts(configuration: Configuration) -> dict[str, float]:
        require_positions(configuration.design, resolved.task, backbone)
        return count(configuration.design, backbone, labels, configuration.head.pooling).values()

    return Plan(
        space=space,
        backbone=backbone,
        count=counts,
        budget=Budget(
            trials=config.trials,
            hours=config.budget.hours or math.inf,
            device_hours=config.budget.device_hours or math.inf,
            money=config.budget.money or math.inf,
            price=config.budget.price_per_device_hour or 0.0,
            devices=config.resources.devices,
            concurrent=cluster.room(config.resources),
        ),
        rule=config.rule,
        limits=config.constraints,
        sampler=config.sampler.name,
        seed=config.sampler.seed,
        unfinished=config.sampler.unfinished,
        references=config.reference_configurations(),
        enqueued=enqueued,
    )


def _searched(config: StudyConfig, backbone: Backbone) -> tuple[Space, list[Enqueued]]:
    """Return the space, and the designs to try before it is sampled."""
    options, training, head = dict(config.space), config.fixed_training, config.head_of()
    name = options.pop("name", "unified")
    bound = resolve_space(name, options, training, config.seed)

    def space(trial: Any, backbone: Backbone, /) -> Configuration:
        configuration = bound(trial, backbone)
        trained = replace(configuration.training, epochs=training.epochs)
        return replace(configuration, training=trained, head=head)

    def enqueued(text: str) -> Enqueued:
        design = presets.parse(text).canonical(backbone.layout)
        coordinates = encode(name, design, training.learning_rate, backbone, options)
        return Enqueued(text, Configuration(design, training, config.seed, head), coordinates)

    return space, [enqueued(text) for text in config.enqueue]


def warm_start(config: StudyConfig, resolved: Resolved) -> tuple[Enqueued, ...]:
    """Return what earlier studies give this one to begin with. Raises StoreError where one is not there."""
    if not config.warm_start:
        return ()
    plan = search_plan(config, resolved)
    found = prior(
        [load_study(name, config.tracking.uri) for name in config.warm_start],
        space=config.space,
        backbone=plan.backbone,
        base=Configuration(Design(), config.fixed_training, config.seed, config.head_of()),
        trials=config.trials,
        allowed=lambda configuration: over(plan.count(configuration), plan.limits) <= 0,
    )
    if not found:
        raise StudyError(
            f"warm_start: nothing on the fronts of {', '.join(config.warm_start)} is in this study's space and within "
            "its constraints; leave it out, or widen the space"
        )
    return found


def _listed(config: StudyConfig, backbone: Backbone) -> tuple[Space, list[Enqueued]]:
    """Return nothing to sample, and all of a list. Raises StudyError where two of its rows train the same."""

    def space(trial: Any, backbone: Backbone, /) -> Configuration:
        raise StudyError("a list of designs has no space")

    enqueued = [
        Enqueued(name, replace(configuration, design=configuration.design.canonical(backbone.layout)))
        for name, configuration in config.listed
    ]
    first: dict[str, str] = {}
    for item in enqueued:
        if (other := first.setdefault(item.configuration.key, item.name)) != item.name:
            raise StudyError(
                f"each row of a list is a training of its own; received {other!r} and {item.name!r}, the same "
                f"on {config.backbone.model}: {item.configuration.design.describe()}"
            )
    return space, enqueued
