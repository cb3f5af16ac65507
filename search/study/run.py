"""run and resume: a study from its file to the published front.

Truth is the Optuna study and the trials' folders. MLflow is brought in line with it whenever a
driver starts, so that it does not matter when an earlier one died.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final

from rich.console import Console

from petl import tasks
from search.config.study import StudyConfig, load_config
from search.optimizer.budget import KEPT_EVERY
from search.optimizer.rungs import Halving
from search.optimizer.search import Search
from search.results import tables
from search.results.console import console as terminal
from search.results.live import Display
from search.results.query import Study, load_study
from search.storage.address import masked
from search.storage.folder import TrialFolder
from search.storage.locations import FullDiskError, StoreError, artifact_root, database_url, home, is_full
from search.storage.quota import Held, Room
from search.storage.remote import Mirror, keep_at
from search.storage.studies import create_study, open_study, study_begun, study_names
from search.study.places import (
    _JOURNAL,
    StudyError,
    UndeliveredStudy,
    _database,
    _delete,
    _driving,
    _folder,
    _require_new,
    _resuming,
    _shared,
    _terminated_as_interrupted,
    _uri,
)
from search.study.plan import _limit, _plan, _rehearse, _replicating, _require_room, _warm
from search.study.resolve import _resolve, _settled
from search.tracking.outbox import Delivery, Journal, patiently
from search.tracking.publisher import Publisher
from search.tracking.writer import Tracker
from search.trials.naming import cost_text
from search.trials.pareto import front as non_dominated
from search.trials.record import State, TrialRecord, named
from search.trials.records import SECONDS, Records, believed
from search.workers import cluster
from search.workers.training import Workload
from search.workers.tune import Bridge, RaceBridge, run_trials

_SHOWN: Final = ("labels", "rows", "precision", "digest", "fingerprint", "signatures")  # of what is resolved, in MLflow
_BRIEFLY: Final = 10.0  # seconds for MLflow to hear of it that a run ends before its time
_CHANGEABLE: Final = ("budget", "replicates", "resources")  # sections that a resume may set anew, but for:
_MEANING: Final = (("budget", "epochs"), ("budget", "steps"), ("resources", "workers_per_trial"))
_PLACES: Final = ("storage",)  # sections that say where a study is found, not what it is


def run(
    source: str | Path | Mapping[str, Any],
    *,
    overrides: Sequence[str] = (),
    fresh: bool = False,
    or_resume: bool = False,
    address: str | None = None,
    console: Console | None = None,
) -> Study:
    """Runs a study file (or the same as a mapping) to its end, and returns the study read back.

    A study of that name is refused unless `fresh` removes it or `or_resume` goes on with it. `address`
    is that of the Ray cluster, as `cluster.joined` has it.

    Example::

        front = run("spaces/studies/demo.yaml", overrides=["budget.trials=6"]).front()

    Raises ConfigError with every fault of the file, StudyError, BackboneError, TaskError, StoreError where
    MLflow does not answer at the beginning, UndeliveredStudy where it does not at the end, and
    InterruptedStudy for Ctrl-C.
    """
    if fresh and or_resume:
        raise StudyError("--fresh and --or-resume contradict each other; give one")
    config, console = load_config(source, overrides), console or terminal()
    database = _database(config)
    with _driving(config.study, database, console) as guard:
        there = study_begun(database, config.study)
        if there and or_resume:
            return _go_on(config, open_study(database, config.study, guard), address, console)
        if there and not fresh:
            raise StudyError(
                f"there is a study {config.study!r} already; go on with it by `{_resuming(config.study, database)}`, "
                "or start it anew with --fresh, which deletes its trials and adapters"
            )
        resolved = _resolve(config)
        settled = _settled(config, resolved)
        resolved["warm"] = _warm(settled, resolved)
        _rehearse(settled, resolved)
        _require_room(settled, resolved)
        # whatever is wrong is said before anything is made or deleted
        if config.storage.path:
            Mirror(config.storage.path, config.study).require()
        if not fresh:
            _require_new(config, database)
        with cluster.joined(config.resources, _shared(config), address, console.print):
            _delete(config, database)  # also what a driver left that died in the next lines
            records = create_study(database, config.study, config.objectives.names, guard)
            records.set_info("config", config.model_dump(mode="json"))
            records.set_info("resolved", resolved)  # from here on the study exists
            return _drive(settled, records, console)


def resume(
    name: str, *, overrides: Sequence[str] = (), address: str | None = None, console: Console | None = None
) -> Study:
    """Goes on with a study where it stopped, for whatever reason; a finished one is read back.

    `address` is as in `run`. `overrides` may change the sections budget, replicates and resources. The study is
    looked for in $PETL_SEARCH_DATABASE, else in the home. Raises StudyError where there is no such
    study, or where its backbone or data are not what they were; UndeliveredStudy as `run` does.

    What an earlier run had for an MLflow that was away is delivered first.
    """
    database = database_url()
    if any(override.startswith("storage.database") for override in overrides):
        raise StudyError("a resume finds its study by $PETL_SEARCH_DATABASE; received --set storage.database")
    if not study_begun(database, name):
        there = ", ".join(study_names(database))
        where = masked(database) if os.environ.get("PETL_SEARCH_DATABASE") else home()
        raise StudyError(
            f"there is no study {name!r} in {where}; there are: {there or 'none'}. A study in another database is "
            "found by $PETL_SEARCH_DATABASE"
        )
    console = console or terminal()
    with _driving(name, database, console) as guard:
        records = open_study(database, name, guard)
        return _go_on(load_config(records.info("config"), overrides), records, address, console)


def _go_on(config: StudyConfig, records: Records, address: str | None, console: Console) -> Study:
    """Resumes with what may change taken from `config`. Raises StudyError where more than that differs."""
    name = config.study
    before = load_config(records.info("config")).model_dump(mode="json")  # with the defaults of newer sections
    now = config.model_dump(mode="json")
    changed = [section for section in now if now[section] != before[section] and section not in _PLACES]
    if set(changed) - set(_CHANGEABLE):
        raise StudyError(
            f"a resume may change {', '.join(_CHANGEABLE)}; received another {', '.join(changed)}. "
            "Start another study for that, or this one anew with --fresh"
        )
    if now["storage"]["path"] != before["storage"]["path"]:
        raise StudyError(
            f"the trials of {name!r} are kept at {before['storage']['path'] or _folder(name)}, where a resume finds "
            f"them; received storage.path {now['storage']['path']}"
        )
    for section, key in _MEANING:
        if now[section][key] != before[section][key]:
            raise StudyError(
                f"{section}.{key} decides what a score means, so it stays; start another study for other {key}"
            )
    started = records.info("resolved")
    # The same place and the same commits: where $PETL_DATA or the hub point today is not asked.
    resolved = _resolve(config, started["backbone"]["revision"], tasks.Task.from_dict(started["task"]))
    for what, thing in (("fingerprint", "backbone"), ("digest", "data")):
        if resolved[what] != started[what]:
            raise StudyError(
                f"the {thing} of study {name!r} changed since it began ({what} {started[what]}, now {resolved[what]}); "
                "restore it, or start anew with --fresh"
            )
    started = {"written": resolved["written"], **started}  # studies of earlier releases did not know it
    settled = _settled(config, started)
    if config.storage.path:
        Mirror(config.storage.path, name).require()
    keep_at(_folder(name), config.storage.path)
    if work := _unfinished(settled, records):
        _require_room(settled, started)
    records.set_info("config", now)
    records.set_info("resolved", started)
    with cluster.joined(config.resources, _shared(config), address, console.print) if work else nullcontext():
        return _drive(settled, records, console)


def _drive(config: StudyConfig, records: Records, console: Console) -> Study:
    """Everything after the study is on record: trials, test scores, the published front.

    Raises StoreError where a study that begins finds no MLflow, UndeliveredStudy where it is away at the end.
    """
    folder, uri = _folder(config.study), _uri(config, records)
    keep_at(folder, config.storage.path)
    workload = _workload(config, records)
    resolved = records.info("resolved")
    info = {**config.model_dump(mode="json"), "resolved": {key: resolved[key] for key in _SHOWN}}
    connect = partial(Tracker.open, uri, config.study, artifact_root(uri), info)
    tracker = None if records.all() else connect()  # a study that goes on does so without MLflow, if need be
    display = _display(config, records, console)
    records.persist.announce(display.say)
    journal = Journal(folder / _JOURNAL, display.say)
    with Delivery(journal, connect, folder, display.say, tracker) as delivery:
        root, limit = artifact_root(uri), _limit(config)
        artifacts = root / config.study if root else None
        publisher = Publisher(
            delivery.tell, records, folder, lambda: Held(folder, artifacts, records.all()).used, limit
        )
        room = Room(
            limit,
            folder,
            artifacts,
            records,
            shown=lambda: _shown(config, records),
            withdraw=publisher.withdrawn,
            settled=delivery.drain,
            patience=config.tracking.patience,
        )
        delivery.tell(("begin", {}))
        try:
            with _terminated_as_interrupted():  # here, since Ray sets a handler of its own when it is joined
                _search(config, records, workload, publisher, display, room)
            _delivered(config, delivery)
            if delivery.left_out:  # somebody deleted a run, say: what can be there is made to be
                publisher.everything()
                publisher.tested(_shown(config, records))
                _delivered(config, delivery)
            study = _read(config, uri)
            files = [file.name for file in tables.write_front(study, folder)]
            front = {"rows": study.front().to_rows(), "references": study.reference_rows(), "files": files}
            delivery.tell(("front", front))
            _delivered(config, delivery)
            publisher.weighed()
            delivery.tell(("close", {"status": "FINISHED"}))
            _delivered(config, delivery)
        except UndeliveredStudy:
            raise
        except BaseException as error:
            delivery.tell(("close", {"status": "FAILED" if isinstance(error, Exception) else "KILLED"}))
            if not delivery.drain(patience=0.0, limit=_BRIEFLY):
                display.say(f"{delivery.waiting} for MLflow wait on disk; a resume delivers them")
            raise
        finally:
            records.disconnect()
    return _read(config, uri)


def _delivered(config: StudyConfig, delivery: Delivery) -> None:
    """Returns when MLflow has everything. Raises UndeliveredStudy where it stays away."""
    if not delivery.drain(config.tracking.patience):
        raise UndeliveredStudy(
            f"the trials of {config.study} are done and kept, but MLflow does not answer ({delivery.trouble}). "
            f"{delivery.waiting} for it wait in {delivery.journal.folder}: "
            f"`{_resuming(config.study, _database(config))}` delivers them when it is back, and trains nothing again"
        )


def _read(config: StudyConfig, uri: str) -> Study:
    """The study as MLflow has it. Raises UndeliveredStudy where it stays away."""
    try:
        return patiently(lambda: load_study(config.study, uri), config.tracking.patience)
    except StoreError as error:
        raise UndeliveredStudy(
            f"the trials of {config.study} are done and kept, but what MLflow has of them cannot be read ({error}); "
            f"`{_resuming(config.study, _database(config))}` ends the study when it is back"
        ) from error


def _display(config: StudyConfig, records: Records, console: Console) -> Display:
    return Display(
        config.study,
        config.trials,
        cluster.room(config.resources),
        config.objectives.names,
        records.all,
        lambda: _front(records),
        console,
        lambda number, seed=None: TrialFolder(_folder(config.study), number, seed).told(),
        config.rule.total if isinstance(config.rule, Halving) else None,
    )


def _search(
    config: StudyConfig, records: Records, workload: Workload, publisher: Publisher, display: Display, room: Room
) -> None:
    """The trials, and the test scores of those that are shown. Raises KeyboardInterrupt where Tune was stopped."""
    resolved, score = records.info("resolved"), config.objectives.score
    publisher.everything()
    display.say(_headline(config, resolved, display.at_once))
    with _stopwatch(records, publisher) as clock:
        search = Search(records, _plan(config, resolved), clock, room.lacking)
        for record in search.take_closed():  # no worker will tell of them
            publisher.ended(record)
        if not search.done:
            try:
                with display.showing():
                    run_trials(Bridge(search, (publisher, display), score), workload, config.resources)
            finally:
                search.meter.keep()
        if not search.done:
            raise KeyboardInterrupt
        if search.note:
            display.say(search.note)
        elif search.meter.spent and (search.counted < config.trials or search.waiting):
            left = f", {search.waiting} of which are not finished" if search.waiting else ""
            display.say(
                f"the budget of {search.meter.spent} is spent after {search.counted} trials{left}; "
                "a resume with more goes on"
            )
        publisher.believed(_replicating(config, records, search.plan, search.meter).conclude())
        if config.replicates.seeds and search.meter.spent:
            display.say(f"no more replicates: the budget of {search.meter.spent} is spent; a resume with more goes on")
        elif config.replicates.seeds:
            _race(config, search, workload, publisher, display, room)
        if config.budget.device_hours or config.budget.money:
            price = config.budget.price_per_device_hour
            cost = f", {cost_text(price * search.meter.device_hours)} of money" if price else ""
            display.say(f"trials have held devices for {cost_text(search.meter.device_hours)} hours{cost}")
    if untested := _untested(config, records):
        splits = " and ".join(resolved["final"])
        display.say(f"scoring {len(untested)} trials on the {splits} split{'s' if len(resolved['final']) > 1 else ''}")
        with display.scoring([record.number for record in untested]) as done:

            def heard(number: int, reason: str) -> None:
                done(number)
                if reason and is_full(OSError(reason)):
                    raise FullDiskError(f"scoring trial {number}: {reason}")
                if reason:
                    display.say(f"trial {number} could not be scored: {reason}")

            trials = [(record.number, record.reference) for record in untested]
            cluster.test_scores(workload, config.resources, trials, heard)
    publisher.tested(_shown(config, records))


def _race(
    config: StudyConfig, search: Search, workload: Workload, publisher: Publisher, display: Display, room: Room
) -> None:
    """The replicates. Raises KeyboardInterrupt where Tune was stopped."""
    records = search.records
    race = _replicating(config, records, search.plan, search.meter, room.lacking)
    if not race.done:
        display.say(
            f"replicates: up to {config.replicates.seeds} fresh seeds for trials that are contested, "
            f"{race.left:.3g} epochs together at most"
        )
        try:
            with display.replicating(lambda: race.runs):
                run_trials(RaceBridge(race, (publisher, display)), workload, config.resources)
        finally:
            race.meter.keep()
    if not race.done:
        raise KeyboardInterrupt
    beliefs = race.conclude()
    publisher.believed(beliefs)
    if race.note:
        display.say(race.note)
    elif search.meter.spent:
        display.say(f"the budget of {search.meter.spent} is spent; a resume with more goes on with the replicates")
    elif not beliefs:
        display.say(
            f"no trial has a second seed: nothing is contested, all failed, or one training is more than "
            f"replicates.extra {config.replicates.extra:g} of the search's epochs; "
            f"`{_resuming(config.study, _database(config))} --set replicates.extra=1` allows more"
        )


@contextmanager
def _stopwatch(records: Records, publisher: Publisher) -> Iterator[Callable[[], float]]:
    """The seconds that the study has been searching, over all its drivers.

    What a killed driver spent in its last minute is not known, and not counted.
    """
    before, began = float(records.info(SECONDS, 0.0)), time.monotonic()

    kept = began

    def clock() -> float:
        nonlocal kept
        now = time.monotonic()
        if now - kept >= KEPT_EVERY:
            kept = now
            records.set_info(SECONDS, before + now - began)
        return before + now - began

    try:
        yield clock
    finally:
        records.set_info(SECONDS, clock())
        publisher.spent()


def _unfinished(config: StudyConfig, records: Records) -> bool:
    """Whether there may be work for Ray."""
    everything = records.all()
    return (
        any(record.state.open for record in everything)
        or sum(record.reference is None for record in everything) < config.trials
        or not set(config.references) <= {record.reference for record in everything}
        or bool(_untested(config, records))
        or not _replicating(config, records, _plan(config, records.info("resolved"))).done
    )


def _shown(config: StudyConfig, records: Records) -> list[TrialRecord]:
    """Those that see the test split: of a search the front, with what replicates put on it, and the references beside
    it, of a list all.
    """
    complete = [record for record in records.all() if record.state is State.COMPLETE]
    if config.designs:
        return complete
    front = _front(records)
    also = named(believed(records)) - {record.number for record in front}
    return [*front, *(record for record in complete if record.reference or record.number in also)]


def _untested(config: StudyConfig, records: Records) -> list[TrialRecord]:
    if not records.info("resolved")["final"]:
        return []
    folder = _folder(config.study)
    return [record for record in _shown(config, records) if not TrialFolder(folder, record.number).find("test")]


def _workload(config: StudyConfig, records: Records) -> Workload:
    """What the workers are given; the precision is measured once a study, where it would train."""
    resolved = records.info("resolved")
    folder, precision = str(_folder(config.study)), resolved["precision"]
    workload = Workload(
        folder=folder,
        backbone=resolved["backbone"],
        task=resolved["task"],
        precision=precision,
        seed=config.seed,
        zero_stage=config.resources.zero_stage,
        offload=config.resources.offload,
        generates=resolved["generates"],
        final=tuple(resolved["final"]),
        store=config.storage.path,
    )
    if precision == "auto":
        workload = replace(workload, precision=cluster.fastest_precision(workload, config.resources))
        records.set_info("resolved", {**resolved, "precision": workload.precision})
    return workload


def _front(records: Records) -> list[TrialRecord]:
    """The non-dominated complete trials, the cheapest first. Limits were kept before training."""
    complete = [
        (record, [objective.value(record.measurements) or 0.0 for objective in records.objectives])
        for record in records.all()
        if record.state is State.COMPLETE and record.reference is None and record.measurements
    ]
    mask = non_dominated([values for _, values in complete], [objective.direction for objective in records.objectives])
    members = [member for member, on_front in zip(complete, mask, strict=True) if on_front]
    return [record for record, _ in sorted(members, key=lambda member: member[1][1:])]


def _headline(config: StudyConfig, resolved: Mapping[str, Any], at_once: int) -> str:
    rows = ", ".join(f"{count:,} {split}" for split, count in resolved["rows"].items())
    fewer = f" of {config.resources.concurrent} asked for" if at_once < config.resources.concurrent else ""
    rungs = " and ".join(f"{rung:g}" for rung in config.rule.rungs)
    name = config.scheduler.name
    decided = f", {name} at {rungs}" if rungs else "" if name == "none" else f", {name} without a rung below that"
    return (
        f"study {config.study}: {config.backbone.model} on {resolved['task']['name']} ({rows}), "
        f"{resolved['precision']}, {config.trials} trials of {config.budget.epochs:.3g} epochs{decided}, "
        f"{at_once}{fewer} at once"
    )
