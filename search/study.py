"""run and resume: a study from its file to the published front.

Truth is the Optuna study and the trials' folders. MLflow is brought in line with it whenever a
driver starts, so that it does not matter when an earlier one died.
"""

from __future__ import annotations

import math
import os
import shlex
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from rich.console import Console

from petl import backbones, presets, tasks
from petl.backbones import Backbone
from petl.configuration import Configuration
from petl.count import count
from petl.design import Design
from search import cluster, report
from search.address import bare, masked, sqlite_file, whole, whole_again
from search.attempt import Workload
from search.budget import KEPT_EVERY, SECONDS, Budget, Meter
from search.config import StudyConfig, load_config
from search.core import Enqueued, Plan, Search
from search.database import driving, is_postgresql
from search.delivery import Delivery, patiently
from search.disk import GB, Held, Room, needs, require_room, written
from search.display import Display
from search.halving import Halving
from search.home import FullDiskError, StoreError, artifact_root, database_url, home, store_uri
from search.journal import Journal
from search.mirror import Mirror, keep_at, mirror_of
from search.naming import cost_text
from search.pareto import front as non_dominated
from search.publisher import Publisher
from search.query import Study, load_study
from search.race import Race, believed
from search.ray_tune import Bridge, RaceBridge, run_trials
from search.record import Records, State, TrialRecord
from search.samplers import excess
from search.seeds import named
from search.store import StudyLock, TrialFolder, is_full
from search.tracking import Tracker, discard, has_trials
from search.warm import prior
from spaces.space import Space, encode
from spaces.space import resolve as resolve_space

if TYPE_CHECKING:
    from types import FrameType

    from petl.data import TaskData

_SHOWN: Final = ("labels", "rows", "precision", "digest", "fingerprint", "signatures")  # of what is resolved, in MLflow
_JOURNAL: Final = "journal"  # in the study's folder
_BRIEFLY: Final = 10.0  # seconds for MLflow to hear of it that a run ends before its time
_CHANGEABLE: Final = ("budget", "replicates", "resources")  # sections that a resume may set anew, but for:
_MEANING: Final = (("budget", "epochs"), ("budget", "steps"), ("resources", "workers_per_trial"))
_PLACES: Final = ("storage",)  # sections that say where a study is found, not what it is


class StudyError(ValueError):
    """A study that exists already, does not exist, or no longer fits its backbone or data."""


class InterruptedStudy(Exception):  # noqa: N818 (no error: the user asked for it)
    """The run was interrupted; nothing that was finished is lost."""

    exit_code = 130  # as shells have it for SIGINT


class UndeliveredStudy(Exception):  # noqa: N818 (no error of the study's: it is done)
    """The trials are done, and MLflow, which is away, has not heard of all of them yet."""

    exit_code = 75  # as sendmail has it for what is to be tried again later


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
    config, console = load_config(source, overrides), console or report.console()
    database = _database(config)
    with _driving(config.study, database, console) as guard:
        there = Records.begun(database, config.study)
        if there and or_resume:
            return _go_on(config, Records.open_study(database, config.study, guard), address, console)
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
            records = Records.create_study(database, config.study, config.objectives.names, guard)
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
    if not Records.begun(database, name):
        there = ", ".join(Records.names(database))
        where = masked(database) if os.environ.get("PETL_SEARCH_DATABASE") else home()
        raise StudyError(
            f"there is no study {name!r} in {where}; there are: {there or 'none'}. A study in another database is "
            "found by $PETL_SEARCH_DATABASE"
        )
    console = console or report.console()
    with _driving(name, database, console) as guard:
        records = Records.open_study(database, name, guard)
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


@contextmanager
def _driving(study: str, database: str, console: Console) -> Iterator[Callable[[], None]]:
    """This process is the study's one driver inside; Ctrl-C, or a closed pipe, becomes InterruptedStudy.

    What it yields makes sure that it still is the only one: see `search.database.driving`.
    """
    lock = StudyLock(_folder(study))
    lock.drive(say=console.print)
    try:
        with driving(database, study) as guard:
            yield guard
    except (KeyboardInterrupt, SystemExit):  # the second is rich's, where nobody reads the output any more: | head
        begun = True
        with suppress(StoreError):  # of a database that is away
            begun = Records.begun(database, study)
        raise InterruptedStudy(
            f"interrupted; nothing that was finished is lost. Go on with: {_resuming(study, database)}"
            if begun
            else f"interrupted before the study {study!r} began"
        ) from None
    except Exception as error:
        if not is_full(error):
            raise
        raise FullDiskError(
            f"a disk is full ({' '.join(masked(error).split())}); nothing that was finished is lost. Make room, "
            f"perhaps by storage.max_gb, and go on with: {_resuming(study, database)}"
        ) from None
    finally:
        lock.release()


@contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """SIGTERM, which schedulers and clouds send before they kill, does what Ctrl-C does at that moment."""
    if threading.current_thread() is not threading.main_thread():  # which alone may set handlers
        yield
        return

    def interrupt(number: int, frame: FrameType | None) -> None:
        # Not by a SIGINT: jobs of Ray's have that blocked, and those that a shell put into the background ignore it.
        handler = signal.getsignal(signal.SIGINT)
        (handler if callable(handler) else signal.default_int_handler)(signal.SIGINT, frame)

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


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
    records.persist.say = display.say
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
            files = [file.name for file in report.write_front(study, folder)]
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


def _replicating(
    config: StudyConfig,
    records: Records,
    plan: Plan,
    meter: Meter | None = None,
    lacking: Callable[[Configuration | None, Sequence[int]], str] = lambda configuration, running: "",
) -> Race:
    return Race(
        records,
        plan.budget,
        meter or Meter(plan.budget, records, lambda: float(records.info(SECONDS, 0.0))),
        seeds=config.replicates.seeds,
        extra=config.replicates.extra,
        rungs=plan.rule.rungs,
        seed=config.sampler.seed,
        lacking=lacking,
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


def _rehearse(config: StudyConfig, resolved: Mapping[str, Any]) -> None:
    """A search that proposes one point and is thrown away.

    Raises SpaceError and SearchError for limits that leave nothing, and for enqueued designs outside them.
    """
    plan, names = _plan(config, resolved), config.objectives.names
    Search(Records.in_memory(names), plan)
    if config.designs:
        return
    bare = replace(plan, references={}, enqueued=(), sampler="random")
    Search(Records.in_memory(names), bare).next(free_workers=1)


def _limit(config: StudyConfig) -> int | None:
    """The study's bytes, at most; None for no limit."""
    return None if config.storage.max_gb is None else int(config.storage.max_gb * GB)


def _require_room(config: StudyConfig, resolved: Mapping[str, Any]) -> None:
    """Raises DiskError where the references and one trial cannot be within storage.max_gb."""
    if (limit := _limit(config)) is None:
        return
    known = [configuration for _, configuration in config.listed] or [Configuration(Design(), config.fixed_training)]
    smallest = min(known, key=lambda configuration: needs(configuration, resolved).peak)
    require_room(limit, config.reference_configurations(), smallest, resolved)


def _plan(config: StudyConfig, resolved: Mapping[str, Any]) -> Plan:
    backbone, labels = Backbone.from_dict(resolved["backbone"]), len(resolved["labels"])
    space, enqueued = (_listed if config.designs else _searched)(config, backbone)
    enqueued += [
        Enqueued(item["name"], Configuration.from_dict(item["configuration"]), item["coordinates"])
        for item in resolved.get("warm", ())  # which studies of earlier releases do not have
    ]

    def counts(configuration: Configuration) -> dict[str, float]:
        counted = count(configuration.design, backbone, labels)
        return {
            "stored_parameters": counted.stored,
            "stored_percent": counted.stored_percent,
            "trained_parameters": counted.trained,
            "trained_percent": counted.trained_percent,
            "paper_parameters": counted.paper,
        }

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
        teaching=config.sampler.teaching,
        references=config.reference_configurations(),
        enqueued=enqueued,
    )


def _searched(config: StudyConfig, backbone: Backbone) -> tuple[Space, list[Enqueued]]:
    """The space, and the designs to try before it is sampled."""
    options, training = dict(config.space), config.fixed_training
    name = options.pop("name", "unified")
    bound = resolve_space(name, options, training, config.seed)

    def space(trial: Any, backbone: Backbone, /) -> Configuration:
        configuration = bound(trial, backbone)
        return replace(configuration, training=replace(configuration.training, epochs=training.epochs))

    def enqueued(text: str) -> Enqueued:
        design = presets.parse(text).canonical(backbone.layout)
        coordinates = encode(name, design, training.learning_rate, backbone, options)
        return Enqueued(text, Configuration(design, training, config.seed), coordinates)

    return space, [enqueued(text) for text in config.enqueue]


def _warm(config: StudyConfig, resolved: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What earlier studies give this one to begin with. Raises StoreError where one is not there."""
    if not config.warm_start:
        return []
    plan = _plan(config, {**resolved, "warm": []})
    found = prior(
        [load_study(name, config.tracking.uri) for name in config.warm_start],
        space=config.space,
        backbone=plan.backbone,
        training=config.fixed_training,
        seed=config.seed,
        trials=config.trials,
        allowed=lambda configuration: all(
            above <= 0 for above in excess(plan.count(configuration), plan.limits).values()
        ),
    )
    if not found:
        raise StudyError(
            f"warm_start: nothing on the fronts of {', '.join(config.warm_start)} is in this study's space and within "
            "its constraints; leave it out, or widen the space"
        )
    return found


def _listed(config: StudyConfig, backbone: Backbone) -> tuple[Space, list[Enqueued]]:
    """Nothing to sample, and all of a list. Raises StudyError where two of its rows train the same."""

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


def _settled(config: StudyConfig, resolved: Mapping[str, Any]) -> StudyConfig:
    """The study with its budget in epochs, where it was given in steps."""
    return config if config.budget.steps is None else config.with_epochs(resolved["epochs"])


def _epochs(config: StudyConfig, data: TaskData) -> float | None:
    """How many epochs the budget's steps are; None for a budget in epochs."""
    if config.budget.steps is None:
        return None
    from petl.data import batches_per_epoch

    training = config.with_epochs(1.0).fixed_training
    batches = batches_per_epoch(data.splits["train"].lengths, training.batch_size, training.batch_tokens)
    return config.budget.steps * training.accumulation / batches


def _resolve(config: StudyConfig, revision: str = "", located: tasks.Task | None = None) -> dict[str, Any]:
    """What a study fixes when it begins, or fixed: then with its `revision` and `located` task.

    Raises BackboneError and TaskError where something is not there.
    """
    from petl.engine import prepare_process

    prepare_process()
    from petl.data import load_data, locate_data
    from petl.metrics import GENERATED, signatures

    model, task = config.backbone.model, located or tasks.resolve(config.task)
    backbone = backbones.describe(model, revision=revision)
    if not backbone.fingerprint:
        raise backbones.BackboneError(f"{model} has no weights to train: no *.safetensors beside its config.json")
    _require_fit(task, backbone)
    task = locate_data(task)
    tokenizer = backbones.load_tokenizer(model, revision=backbone.revision)
    data = load_data(task, tokenizer, decoder_only=backbone.architecture == "decoder")
    epochs = _epochs(config, data)
    known = config if epochs is None else config.with_epochs(epochs)
    trained = [*known.reference_configurations().values(), *(configuration for _, configuration in known.listed)]
    keeps = {known.fixed_training.keep, *(configuration.training.keep for configuration in trained if configuration)}
    generates = bool(GENERATED & {config.objectives.score, *keeps})
    whole, tested = data.splits["sample"] is data.splits["validation"], "test" in data.splits
    unseen = not whole or (not generates and bool(GENERATED & {*task.scores}))
    # Predictions of the front are kept in any case.
    final = [*(["validation"] if unseen or not tested else []), *(["test"] if tested else [])]
    return {
        "backbone": backbone.to_dict(),
        "fingerprint": backbone.fingerprint,
        "task": asdict(task),
        "labels": list(data.labels),
        "rows": {split: len(part) for split, part in data.splits.items() if split != "sample" or not whole},
        "digest": data.digest,
        "epochs": epochs,
        "precision": config.backbone.precision,
        "uri": bare(uri) if (uri := config.tracking.uri or os.environ.get("MLFLOW_TRACKING_URI")) else None,
        "generates": generates,
        "final": final,
        "written": written(tokenizer, backbone, data, final, task.decoding.max_length),
        "signatures": signatures(GENERATED & {*task.scores}),
    }


def _require_fit(task: tasks.Task, backbone: Backbone) -> None:
    """Raises TaskError where the backbone cannot do the task, or has no positions for its texts."""
    if not tasks.KINDS[task.kind].labelled and backbone.architecture == "encoder":
        raise tasks.TaskError(
            f"task {task.name} ({task.kind}) needs a model that generates text; {backbone.model} is an encoder, "
            f"a {backbone.family}. Take an encoder-decoder (bart, mbart, t5) or a decoder (gpt2, llama, qwen2, qwen3)"
        )
    if task.kind == "causal-lm" and backbone.architecture != "decoder":
        raise tasks.TaskError(
            f"task {task.name} (causal-lm) needs a decoder such as gpt2, llama or qwen2; received {backbone.model}, "
            f"a {backbone.family}"
        )
    longest = {"task.max_length": task.max_length}
    if not tasks.KINDS[task.kind].labelled and task.kind != "causal-lm":
        if backbone.architecture == "decoder":  # source, target or generated text stand in one line
            target = max(task.max_target_length, task.decoding.max_length)
            longest = {"task.max_length plus the longest target": task.max_length + target}
        else:
            longest |= {
                "task.max_target_length": task.max_target_length,
                "task.decoding.max_length": task.decoding.max_length,
            }
    for name, length in longest.items():
        if backbone.max_tokens is not None and length > backbone.max_tokens:
            raise tasks.TaskError(
                f"{name} is at most {backbone.max_tokens} on {backbone.model}, which has no more positions; "
                f"received {length}"
            )


def _uri(config: StudyConfig, records: Records) -> str:
    """The MLflow store of a study: what it was when the study began, the home's own where nothing was said.

    Its password is not on record: the study file or $MLFLOW_TRACKING_URI has it, or the environment in other ways.
    """
    kept: str | None = records.info("resolved")["uri"]
    if kept is None:
        return f"sqlite:///{home() / 'mlflow.db'}"
    return whole_again(kept, config.tracking.uri, os.environ.get("MLFLOW_TRACKING_URI"))


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


def _require_new(config: StudyConfig, database: str) -> None:
    """Raises StudyError where trials of a study of that name are kept whose records are not in the database."""
    places = {str(_folder(config.study)): any(_folder(config.study).glob("trials/*/*/manifest.json"))}
    for mirror in _mirrors(config):
        places[mirror.address] = any(name.endswith("/manifest.json") for name in mirror.files(""))
    uri = store_uri(config.tracking.uri)
    places[masked(uri)] = has_trials(uri, config.study)
    if there := [place for place, has in places.items() if has]:
        raise StudyError(
            f"{' and '.join(there)} has trials of a study {config.study!r} that {masked(database)} does not know. Name "
            "the database that does by $PETL_SEARCH_DATABASE or storage.database, or choose another name; "
            "--fresh deletes those trials"
        )


def _mirrors(config: StudyConfig) -> list[Mirror]:
    """Where the study's trials are to be kept, or were, beside its folder."""
    there = {config.storage.path, mirrored.address if (mirrored := mirror_of(_folder(config.study))) else None}
    return [Mirror(path, config.study) for path in there if path]


def _delete(config: StudyConfig, database: str) -> None:
    """Removes a study everywhere, its lock file excepted; nothing where there is none."""
    discard(store_uri(config.tracking.uri), config.study)  # first: it may be a server that does not answer
    if Records.exists(database, config.study):
        Records.delete(database, config.study)
    for mirror in _mirrors(config):
        mirror.delete()
    for part in ("trials", _JOURNAL):
        shutil.rmtree(_folder(config.study) / part, ignore_errors=True)
    if root := artifact_root(config.tracking.uri):
        shutil.rmtree(root / config.study, ignore_errors=True)


def _resuming(study: str, database: str) -> str:
    """What to type to go on with a study."""
    where = f"PETL_SEARCH_DATABASE={shlex.quote(bare(database))} " if database != database_url() else ""
    return f"{where}petl-search resume {study}"


def _shared(config: StudyConfig) -> Path | None:
    """The folder that all nodes share, if they share no store."""
    return None if config.storage.path else _folder(config.study)


def _folder(study: str) -> Path:
    return home() / "studies" / study


def _database(config: StudyConfig) -> str:
    """The address of a study's records. Raises StudyError where MLflow has that database."""
    database = database_url(config.storage.database)
    if file := sqlite_file(database):
        file.parent.mkdir(parents=True, exist_ok=True)
    if is_postgresql(database) and bare(database) == bare(whole(store_uri(config.tracking.uri))):
        raise StudyError(
            f"the trials' records and MLflow need a database each (both have a table alembic_version of their own); "
            f"received {masked(database)} for both"
        )
    return database
