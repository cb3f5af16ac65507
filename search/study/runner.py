"""Runner: all that happens to a study that is on record, from wherever it stands to its published front."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

from rich.console import Console

from petl.data.report import DataReport
from petl.head import MODEL, OWN_HEAD
from search.config.study import StudyConfig
from search.optimizer.budget import Meter
from search.optimizer.search import Search
from search.optimizer.steps import Source
from search.results.files import write_front
from search.results.live import Display
from search.results.query import Study, load_study
from search.storage.errors import DamagedStoreError, FullDiskError, StoreError, is_full
from search.storage.folder import RESULT, TrialFolder
from search.storage.locations import StudyHome, artifact_root
from search.storage.locks import run_token
from search.storage.quota import Quota, Usage
from search.storage.remote import set_store
from search.study.final_scores import eligible, share_scores, twins, unscored
from search.study.heads import head_starts
from search.study.interrupts import terminated_as_interrupted
from search.study.places import (
    InterruptedStudy,
    UndeliveredStudy,
    home_of,
    how_to_resume,
    interrupted,
    store_of,
)
from search.study.plan import disk_limit, replication, search_plan
from search.tracking.client import damaged
from search.tracking.entries import Begin, Close, Front
from search.tracking.outbox import Delivery, Journal, patiently
from search.tracking.publisher import Publisher
from search.tracking.tracker import Tracker, open_others
from search.tracking.writer import MlflowTracker
from search.trials.formats import amount_text
from search.trials.front import front_of
from search.trials.records import Records
from search.trials.report import Run
from search.trials.resolved import Resolved
from search.workers import cluster, scoring
from search.workers.assignment import StudyContext
from search.workers.tune import Bridge, Outcome, run_trials

_PUBLISHED: Final = ("labels", "rows", "precision", "digest", "fingerprint", "signatures")  # of what is resolved
_BRIEFLY: Final = 3.0  # seconds for MLflow to record that a run ends before its time


class Runner:
    """Trains what is left of a study, scores its front, and publishes both. Ray is joined already.

    MLflow is only the published copy: the study goes on while it is away, and waits for it at the end.
    """

    def __init__(self, config: StudyConfig, records: Records, console: Console) -> None:
        self.config, self.records = config, records
        self.places = replace(home_of(config), tracking=store_of(config, records))
        self.folder = self.places.folder
        set_store(self.folder, config.storage.path)
        self.resolved = records.resolved
        self.context = study_context(config, self.resolved)
        self.plan = search_plan(config, self.resolved)
        self.display = Display(
            config.study,
            config.trials,
            cluster.room(config.resources),
            config.objectives.names,
            records.all,
            lambda: front_of(records.all(), records.objectives),
            console,
            lambda number, seed=None: TrialFolder(self.folder, number, seed).last_note(),
            config.rule.total,
        )

    def run(self) -> Study:
        """Run the study to its end, and return it read back.

        Raises StoreError where a study that begins finds no MLflow, UndeliveredStudy where it is away at the end.
        """
        info = published(self.config, self.resolved)
        root = artifact_root(self.places.uri)

        def connect() -> list[Tracker]:
            study, also = self.config.study, self.config.tracking.also
            mlflow = MlflowTracker.open(self.places.uri, study, root, info)
            return [mlflow, *open_others(also, study, self.folder, info)]

        trackers = [] if self.records.all() else connect()  # a resumed study does without MLflow, if need be
        self.records.persist.announce(self.display.say)
        journal = Journal(self.places.journal, self.display.say)
        with Delivery(journal, connect, self.folder, self.display.say, trackers) as self.delivery:
            limit = disk_limit(self.config)
            self.usage = Usage(self.folder, self.places.artifacts, self.records)
            self.publisher = Publisher(
                self.delivery.send,
                self.records,
                self.folder,
                lambda: self.usage.used,
                limit,
            )
            self.quota = Quota(
                limit,
                self.usage,
                self.folder,
                self.records,
                shown=lambda: eligible(self.config, self.records),
                withdraw=self.publisher.withdraw,
                settle=self.delivery.drain,
                patience=self.config.tracking.patience,
            )
            self._publish_recorded()  # first: it refuses records that were changed
            self.delivery.send(Begin())
            try:
                with terminated_as_interrupted():  # here, since Ray sets a handler of its own when it is joined
                    self._train()
                    self._score()
                self._publish()
            except UndeliveredStudy:
                raise
            except BaseException as error:
                failed = isinstance(error, Exception) and not isinstance(error, InterruptedStudy)
                self.delivery.send(Close("FAILED" if failed else "KILLED"))
                if not self.delivery.drain(patience=0.0, limit=_BRIEFLY):
                    self.display.say(f"{self.delivery.waiting} for MLflow wait on disk; a resume delivers them")
                raise
            finally:
                self.records.disconnect()
        return self._read()

    def _train(self) -> None:
        """Train the search's trials, then the replicates, both on one clock."""
        self.display.say(headline(self.config, self.resolved, self.display.at_once))
        for line in (*head_lines(self.config), *data_lines(self.resolved)):
            self.display.say(line)
        search = Search(self.records, self.plan, lacking=self.quota.refusal)
        try:
            for record in search.take_closed():  # no worker reports them
                for listener in (self.usage, self.publisher):
                    listener.ended(record)
            self._search(search)
            self._replicate(search)
            self._say_device_hours(search.meter)
        finally:
            search.meter.keep()
            self.publisher.spent()

    def _publish_recorded(self) -> None:
        """Publish all that is on record, and name the trials whose files are damaged."""
        for number in self.publisher.everything():
            self.display.say(
                f"a file of {TrialFolder(self.folder, number).path / RESULT} is missing or damaged. What MLflow has of "
                f"trial {number} stays: `petl-search export {self.config.study} {number} DIR` writes its adapter"
            )

    def _until_done(self, source: Source[Run]) -> None:
        """Train what the source hands out. Raises InterruptedStudy where Ctrl-C ended that before it was done."""
        bridge = Bridge(source, (self.usage, self.publisher, self.display), self.config.objectives.score)
        starts = head_starts(self.config, self.records, self.context, self.display.say)
        if run_trials(bridge, replace(self.context, starts=starts), self.config.resources) is Outcome.INTERRUPTED:
            raise interrupted(self.places)

    def _search(self, search: Search) -> None:
        if not search.done:
            with self.display.showing():
                self._until_done(search)
        if search.note:
            self.display.say(search.note)
        elif search.meter.spent() and (search.counted < self.config.trials or search.waiting):
            left = f", {search.waiting} of which are not finished" if search.waiting else ""
            self.display.say(
                f"the budget of {search.meter.spent()} is spent after {search.counted} trials{left}; "
                "resume with more to continue"
            )

    def _replicate(self, search: Search) -> None:
        replicates = replication(self.config, self.records, search.plan, search.meter, self.quota.refusal)
        self.publisher.summaries(replicates.conclude())
        if not self.config.replicates.per_trial:
            return
        if search.meter.spent():
            self.display.say(
                f"no more replicates: the budget of {search.meter.spent()} is spent; resume with more to continue"
            )
            return
        if not replicates.done:
            self.display.say(
                f"replicates: up to {self.config.replicates.per_trial} fresh seeds for trials that are contested, "
                f"{replicates.left:.3g} epochs together at most"
            )
            with self.display.replicating(lambda: replicates.runs):
                self._until_done(replicates)
        beliefs = replicates.conclude()
        self.publisher.summaries(beliefs)
        if replicates.note:
            self.display.say(replicates.note)
        elif search.meter.spent():
            self.display.say(
                f"the budget of {search.meter.spent()} is spent; resume with more to continue with the replicates"
            )
        elif not beliefs:
            self.display.say(
                "no trial has a second seed: nothing is contested, all failed, or one training is more than "
                f"replicates.extra {self.config.replicates.extra:g} of the search's epochs; "
                f"`{how_to_resume(self.places, '--set replicates.extra=1')}` allows more"
            )

    def _say_device_hours(self, meter: Meter) -> None:
        if self.config.budget.device_hours or self.config.budget.money:
            price = self.config.budget.price_per_device_hour
            cost = f", {amount_text(price * meter.device_hours)} of money" if price else ""
            self.display.say(f"trials have held devices for {amount_text(meter.device_hours)} hours{cost}")

    def _score(self) -> None:
        """Score those that see the test split, and have not yet."""
        shown = eligible(self.config, self.records)
        untested = unscored(self.config, self.records, self.folder)
        shared = twins(untested, shown, self.folder)  # which are scored once
        if untested := [record for record in untested if record.number not in shared]:
            splits = self.resolved.final
            self.display.say(
                f"scoring {len(untested)} trials on the {' and '.join(splits)} split{'s' if len(splits) > 1 else ''}"
            )
            for record in untested:
                TrialFolder(self.folder, record.number).note("")  # the last one is of its training
            with self.display.scoring([record.number for record in untested]) as done:

                def scored(number: int, reason: str) -> None:
                    done(number)
                    if reason and is_full(OSError(reason)):
                        raise FullDiskError(f"scoring trial {number}: {reason}")
                    if reason:
                        self.display.say(f"trial {number} could not be scored: {reason}")

                trials = [(record.number, record.reference) for record in untested]
                scoring.test_scores(self.context, self.config.resources, trials, scored)
        for number, twin in shared.items():
            share_scores(number, twin, self.folder)
        self.publisher.tested(shown)

    def _publish(self) -> None:
        """Publish the front of what MLflow has. Raises UndeliveredStudy where it stays away."""
        self._deliver()
        if self.delivery.left_out:  # somebody deleted a run, say: it is created once more
            self.publisher.everything()
            self.publisher.tested(eligible(self.config, self.records))
            self._deliver()
        study = self._read()
        files = [file.name for file in write_front(study, self.folder)]
        self.delivery.send(Front(study.front().to_rows(), study.reference_rows(), files))
        self._deliver()
        self.usage.relist()  # once a run: the published number is exact
        self.publisher.usage()
        self.delivery.send(Close("FINISHED"))
        self._deliver()

    def _deliver(self) -> None:
        """Wait until MLflow has everything. Raises UndeliveredStudy where it stays away."""
        if not self.delivery.drain(self.config.tracking.patience):
            if self.delivery.damaged:
                raise damaged(self.places.uri, self.delivery.trouble)
            raise UndeliveredStudy(
                f"the trials of {self.config.study} are done and kept, but MLflow does not answer "
                f"({self.delivery.trouble}). {self.delivery.waiting} for it wait in {self.delivery.journal.folder}: "
                f"`{how_to_resume(self.places)}` delivers them when it is back, and trains nothing again"
            )

    def _read(self) -> Study:
        """Return the study as MLflow has it. Raises UndeliveredStudy where it stays away."""
        try:
            return patiently(lambda: load_study(self.config.study, self.places.uri), self.config.tracking.patience)
        except DamagedStoreError:
            raise
        except StoreError as error:
            raise UndeliveredStudy(
                f"the trials of {self.config.study} are done and kept, but what MLflow has of them cannot be read "
                f"({error}); `{how_to_resume(self.places)}` ends the study when it is back"
            ) from error


def with_precision(config: StudyConfig, resolved: Resolved, say: Callable[[str], object]) -> Resolved:
    """Return what is resolved with a precision, which is measured where the study would train, once a study.

    Raises BackboneError where a row of the data does not pass through the model there.
    """
    if resolved.precision != "auto":
        return resolved
    say("measuring in which precision the model trains faster: fp32 or bf16")
    return replace(resolved, precision=scoring.fastest_precision(study_context(config, resolved), config.resources))


def study_context(config: StudyConfig, resolved: Resolved) -> StudyContext:
    """Return what the workers are given."""
    return StudyContext(
        str(StudyHome(config.study).folder),
        resolved,
        seed=config.seed,
        zero_stage=config.resources.zero_stage,
        offload=config.resources.offload,
        store=config.storage.path,
        run=run_token(home_of(config).folder),
    )


def published(config: StudyConfig, resolved: Resolved) -> dict[str, Any]:
    """Return what MLflow is given of a study, JSON-ready."""
    values = resolved.to_dict()
    return {**config.to_dict(), "resolved": {key: values[key] for key in _PUBLISHED}}


def headline(config: StudyConfig, resolved: Resolved, at_once: int) -> str:
    """Return the line that a study begins with: model, data, budget, rule, and how many train `at_once`."""
    rows = ", ".join(f"{count:,} {split}" for split, count in resolved.rows.items())
    fewer = f" of {config.resources.concurrent} asked for" if at_once < config.resources.concurrent else ""
    rungs = " and ".join(f"{rung:g}" for rung in config.rule.rungs)
    name = config.scheduler.name
    rule = f", {name} at {rungs}" if rungs else "" if name == "none" else f", {name} without a rung below that"
    return (
        f"study {config.study}: {config.backbone.model} on {resolved.task.name} ({rows}), "
        f"{resolved.precision}, {config.trials} trials of {config.budget.epochs:.3g} epochs{rule}, "
        f"{at_once}{fewer} at once"
    )


def head_lines(config: StudyConfig) -> list[str]:
    """Return what the study's head costs, below the headline; nothing of the model's own head."""
    head = config.head_of()
    if head == OWN_HEAD:
        return []
    cost = "an adapter with it leaves in our own format, for PEFT or a merged model set head.pooling: model"
    return [f"head: {head.describe()}" + (f"; {cost}" if head.pooling != MODEL else "")]


def data_lines(resolved: Resolved) -> list[str]:
    """Return what was understood of the rows, below the headline; nothing of a study that did not record it."""
    return DataReport.from_dict(resolved.data).lines(resolved.task.columns) if resolved.data else []
