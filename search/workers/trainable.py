"""Tune's view of the workers: a process, or a gang of them, that keeps its model and trains one run after another.

A run whose process died is started again by Ray with the same assignment, and resumed from its folder.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any, Final

import ray
from ray import tune
from ray.exceptions import GetTimeoutError, RayError, RayTaskError

from search.storage.locks import StudyLock
from search.storage.remote import StoreAwayError
from search.trials.report import Report
from search.workers.assignment import Assignment, StudyContext
from search.workers.training import TrialTraining, WarmModel, failed


class Worker(tune.Trainable):
    """Tune's view of one trial after another: one step is one milestone.

    `workers` processes train a trial: this one, or a gang that it leads.
    """

    def setup(
        self,
        config: dict[str, Any],
        context: StudyContext | None = None,
        workers: int = 1,
        each: Mapping[str, float] | None = None,
    ) -> None:
        """Begin the first run of the process; `reset_config` hands it the next. `each` is what a rank of a gang has."""
        assert context is not None
        self._context = context
        self._lock: StudyLock | None = None
        self._begin: Callable[[Assignment], TrialTraining | GangTraining] = (
            Gang(context, workers, each or {}).begin if workers > 1 else partial(TrialTraining, WarmModel(context))
        )
        self.training = self._begin(Assignment.from_json(config["assignment"]))

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Begin the next run of the process."""
        self.training.close()
        self.training = self._begin(Assignment.from_json(new_config["assignment"]))
        return True

    def step(self) -> dict[str, Any]:
        """Train to the next milestone."""
        report = self._refusal() or self.training.advance()
        return {"report": report.to_json(), "done": report.done}

    def _refusal(self) -> Report | None:
        """Take the worker's lock. Return a report of a failure where nothing can be trained, else None."""
        if self._lock is None:
            try:
                self._lock = StudyLock(self._context.home)
            except StoreAwayError as error:
                return failed(error)
            self._lock.work()
        return None

    def cleanup(self) -> None:
        """End what trains: the process is no longer needed."""
        self.training.close()

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Raise RuntimeError: the trial's folder is the checkpoint, and Tune's storage is the driver's node's alone."""
        raise RuntimeError(f"nothing is to be saved in {checkpoint_dir}")

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Do nothing: the trial's folder is the checkpoint."""


_GRACE: Final = 3.0  # seconds in which the death behind another rank's error becomes known


class Gang:
    """The ranks of one trial after another, started for the first of them.

    `each` is what Ray gives to a rank, as `{"CPU": 1, "GPU": 1}`; the actor that has a gang is placed
    together with room for all its ranks.
    """

    def __init__(self, context: StudyContext, workers: int, each: Mapping[str, float]) -> None:
        self._context, self._workers, self._each = context, workers, each
        self._ranks: list[Any] = []

    def begin(self, assignment: Assignment) -> GangTraining:
        """Return the training of the next run. Nothing starts before it advances."""
        return GangTraining(self, assignment)

    def ready(self) -> None:
        """Start the ranks, where there are none, and let them meet. Raises what `call` does."""
        if self._ranks:
            return
        actor = ray.remote(num_cpus=self._each.get("CPU", 0), num_gpus=self._each.get("GPU", 0))(Rank)
        self._ranks = [actor.remote(self._context, rank) for rank in range(self._workers)]
        hosts = set(self.call("arrive"))
        where = ray.get(self._ranks[0].meeting_place.remote(len(hosts) == 1))
        self.call("join", self._workers, where)

    def call(self, method: str, *arguments: Any) -> list[Any]:
        """Call a method of all ranks at once, and return what they answer, in their order.

        The first failed report of a trial ends the gang and is the answer. Raises RayActorError where a
        rank died, RayTaskError for an error of a rank; both end the gang too.
        """
        waiting = {getattr(rank, method).remote(*arguments): number for number, rank in enumerate(self._ranks)}
        answers: dict[int, Any] = {}
        try:
            while waiting:
                [done], _ = ray.wait(list(waiting))
                try:
                    answer = ray.get(done)
                except RayTaskError:
                    self._raise_death(waiting)
                    raise
                if isinstance(answer, Report) and answer.failure is not None:
                    self._raise_death(waiting)
                    self.end()
                    return [answer]
                answers[waiting.pop(done)] = answer
        except BaseException:
            self.end()
            raise
        return [answers[number] for number in sorted(answers)]

    def _raise_death(self, waiting: Iterable[Any]) -> None:
        """Raise RayActorError if a rank died: one that lost its peer fails as well, and may do so first."""
        deadline = time.monotonic() + _GRACE
        for call in waiting:
            with suppress(RayTaskError, GetTimeoutError):
                ray.get(call, timeout=max(0.0, deadline - time.monotonic()))

    def end(self) -> None:
        """End all ranks at once, whatever they do."""
        while self._ranks:
            ray.kill(self._ranks.pop())


class GangTraining:
    """A TrialTraining of all ranks."""

    def __init__(self, gang: Gang, assignment: Assignment) -> None:
        self._gang, self._assignment = gang, assignment
        self._begun = False

    def advance(self) -> Report:
        """Return rank 0's report of `TrialTraining.advance`. Raises RayActorError where a rank died."""
        try:
            self._gang.ready()
            if not self._begun:
                self._begun = True
                self._gang.call("begin", self._assignment.to_json())
            report: Report = self._gang.call("advance")[0]
        except RayTaskError as error:  # they could not meet
            return failed(error.cause)
        return report

    def close(self) -> None:
        """Put the backbones back as they were."""
        if self._begun:
            with suppress(RayError):  # the gang has ended, and with it what was to be put back
                self._gang.call("close")


class Rank:
    """One process of a gang."""

    def __init__(self, context: StudyContext, rank: int) -> None:
        from petl.training.processes import prepare_process

        prepare_process()
        self._warm, self._rank = WarmModel(context), rank
        self._training: TrialTraining | None = None

    def arrive(self) -> str:
        """Take the worker's lock, and return this host. Raises StoreAwayError where it has no folder of the study."""
        self._lock = StudyLock(self._warm.context.home)
        self._lock.work()
        return self._host()

    def _host(self) -> str:
        """Return the address by which other hosts know this one."""
        address: str = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
        return address

    def meeting_place(self, one_host: bool) -> str:
        """Return where the gang can meet: a file, or between hosts a port of this one."""
        if one_host:  # no port that others could reach
            self._folder = tempfile.TemporaryDirectory(prefix="petl-gang-")
            return f"file://{self._folder.name}/store"
        from petl.training.processes import open_meeting_place

        place, self._server = open_meeting_place(self._host())
        return place

    def join(self, workers: int, where: str) -> None:
        """Meet the other ranks; return when all have arrived."""
        from petl.training.processes import join_process_group

        host = "127.0.0.1" if where.startswith("file://") else self._host()
        join_process_group(self._rank, workers, where, host=host)

    def begin(self, assignment: str) -> None:
        """Take a trial up."""
        self._training = TrialTraining(self._warm, Assignment.from_json(assignment), self._rank)

    def advance(self) -> Report:
        """Train to the next milestone. After an error the backbone is left as it is: the gang ends."""
        assert self._training is not None
        try:
            return self._training.to_milestone()
        except Exception as error:
            return failed(error)

    def close(self) -> None:
        """Put the backbone back as it was."""
        if self._training is not None:
            self._training.close()
