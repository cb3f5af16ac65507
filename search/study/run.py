"""Run and resume: a study from its file to the published front.

Truth is the Optuna study and the trials' folders. MLflow is brought in line with it whenever a driver starts, so
that it does not matter when an earlier one died.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from search.config.loading import load_config, load_stored
from search.config.resuming import as_begun, refusal
from search.config.study import StudyConfig
from search.results.console import console as terminal
from search.results.console import say as print_line
from search.results.files import require_places
from search.results.query import Study
from search.storage.address import redacted
from search.storage.listing import has_committed_parts
from search.storage.locations import StudyHome, database_url, home
from search.storage.remote import RemoteStore, set_store
from search.storage.studies import create_study, open_study, study_begun, study_names
from search.study.final_scores import unscored
from search.study.inputs import require_inputs
from search.study.leftovers import delete, require_new
from search.study.places import StudyError, driving, home_of, how_to_resume, store_of
from search.study.plan import is_finished, rehearse, require_room, warm_start
from search.study.resolve import resolve, settled
from search.study.runner import Runner, published, with_precision
from search.tracking.client import require_undamaged
from search.tracking.schema import INFO, split_text
from search.trials.records import Records
from search.workers import cluster


def run(
    source: str | Path | Mapping[str, Any] | StudyConfig,
    *,
    overrides: Sequence[str] = (),
    fresh: bool = False,
    or_resume: bool = False,
    address: str | None = None,
    console: Console | None = None,
) -> Study:
    """Run a study file (or the same as a mapping, or loaded already) to its end, and return the study read back.

    A study of that name is refused unless `fresh` removes it or `or_resume` resumes it. `address`
    is that of the Ray cluster, as `cluster.joined` takes it.

    Example::

        front = run("spaces/studies/demo.yaml", overrides=["budget.trials=6"]).front()

    Raises ConfigError with every fault of the file, MissingInputError, StudyError, BackboneError, TaskError,
    StoreError where MLflow does not answer at the beginning, UndeliveredStudy where it does not at the end, and
    InterruptedStudy for Ctrl-C.
    """
    if fresh and or_resume:
        raise StudyError("--fresh and --or-resume contradict each other; give one")
    config = source if isinstance(source, StudyConfig) else load_config(source, overrides)
    console = console or terminal()
    say = partial(print_line, console)
    cluster.require_answer(address)
    require_inputs(config)
    places = home_of(config)
    with driving(places, console) as guard:
        require_places(places.folder)
        begun = not fresh and study_begun(places.database, config.study)
        if begun and or_resume:
            return _resume(config, open_study(places.database, config.study, guard), address, console)
        if begun:
            raise StudyError(
                f"there is a study {config.study!r} already; resume it by `{how_to_resume(places)}`, or replace it by "
                "--fresh, which deletes its trials and adapters"
            )
        resolved = resolve(config, say=say)
        known = settled(config, resolved)
        if config.warm_start:
            say(f"reading the fronts of {', '.join(config.warm_start)}")
            resolved = replace(resolved, warm=warm_start(known, resolved))
        say("trying a first proposal")
        rehearse(known, resolved)
        require_room(known, resolved)
        split_text(INFO, json.dumps(published(known, resolved)))  # which may be longer than MLflow can be given
        if config.storage.path:
            RemoteStore(config.storage.path, config.study).require()
        if not fresh:
            require_new(places)
        # whatever is wrong was said before anything is made or deleted
        with cluster.joined(config.resources, places.shared_folder, address, say):
            resolved = with_precision(known, resolved, say)
            say(f"opening the store {redacted(places.uri)}")
            delete(places)  # also what a driver left that died in the next lines
            records = create_study(places.database, config.study, config.objectives.names, guard)
            records.config = config.to_dict()
            records.resolved = resolved  # from here on the study exists
            return Runner(known, records, console).run()


def resume(
    name: str, *, overrides: Sequence[str] = (), address: str | None = None, console: Console | None = None
) -> Study:
    """Resume a study where it stopped, for whatever reason; a finished one is read back.

    `address` is as in `run`. `overrides` may change what `search.config.resuming` says. The study is
    looked up in $PETL_SEARCH_DATABASE, else in the home. Raises StudyError where there is no such
    study, or where its backbone or data are not what they were; UndeliveredStudy as `run` does.

    What an earlier run had for an MLflow that was away is delivered first.
    """
    database = database_url()
    if any(override.startswith("storage.database") for override in overrides):
        raise StudyError("a resume finds its study by $PETL_SEARCH_DATABASE; received --set storage.database")
    if not study_begun(database, name):
        names = study_names(database)
        where = redacted(database) if os.environ.get("PETL_SEARCH_DATABASE") else home()
        if has_committed_parts(folder := StudyHome(name).folder):
            raise StudyError(
                f"{folder} has trials of a study {name!r}, but {where} has no record of how it began: it was kept in "
                "another database ($PETL_SEARCH_DATABASE), or its own was lost or damaged. Put a copy of that back; "
                "what MLflow has of the study is read by `petl-search front`, `show` and `export` as before"
            )
        raise StudyError(
            f"there is no study {name!r} in {where}; there are: {', '.join(names) or 'none'}. A study in another "
            "database is found by $PETL_SEARCH_DATABASE"
        )
    console = console or terminal()
    cluster.require_answer(address)
    with driving(StudyHome(name), console) as guard:
        require_places(StudyHome(name).folder)
        records = open_study(database, name, guard)
        return _resume(load_stored(records.config, overrides), records, address, console)


def _resume(config: StudyConfig, records: Records, address: str | None, console: Console) -> Study:
    """Resume with what may change taken from `config`. Raises StudyError where more than that differs."""
    stored = load_stored(records.config)
    config = as_begun(config, stored)
    if reason := refusal(config, stored):
        raise StudyError(reason)
    places, started, say = home_of(config), records.resolved, partial(print_line, console)
    # The same place and the same commits: where $PETL_DATA or the hub point today is not asked.
    resolved = resolve(config, started.backbone.revision, started.task, say)
    for what, thing in (("fingerprint", "backbone"), ("digest", "data")):
        before, now = getattr(started, what), getattr(resolved, what)
        if now != before:
            raise StudyError(
                f"the {thing} of study {config.study!r} changed since it began ({what} {before}, now {now}); "
                "restore it, or replace the study with --fresh"
            )
    known = settled(config, started)
    if config.storage.path:
        RemoteStore(config.storage.path, config.study).require()
    set_store(places.folder, config.storage.path)
    require_undamaged(store_of(config, records))
    ray: AbstractContextManager[None] = nullcontext()
    if not is_finished(known, records) or unscored(known, records, places.folder):
        require_room(known, started)
        ray = cluster.joined(config.resources, places.shared_folder, address, say)
    with ray:
        if started.precision == "auto":
            records.resolved = started = with_precision(known, started, say)
        # A configuration that no cluster takes must not be on record: every later resume would begin with it.
        records.config = config.to_dict()
        if config.tracking.uri != stored.tracking.uri:
            records.resolved = replace(records.resolved, uri=resolved.uri)
        return Runner(known, records, console).run()
