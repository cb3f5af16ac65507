"""What Ray runs before and after the trials: what all of them need is found, and finished ones are scored."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final, TypeVar

import ray
from ray.exceptions import RayActorError, RayTaskError

from petl.errors import UserError
from search.storage.locks import StudyLock
from search.workers.assignment import StudyContext
from search.workers.cluster import places
from search.workers.training import WarmModel

if TYPE_CHECKING:
    from search.config.sections import ResourcesConfig

T = TypeVar("T")
_ATTEMPTS: Final = 3  # at scoring a trial, where the process dies


def fastest_precision(context: StudyContext, resources: ResourcesConfig) -> str:
    """Return "fp32" or "bf16": which is the faster one where a trial would run, with a worker's resources.

    Raises BackboneError where a row of the data does not pass through the model there.
    """

    def measure() -> str:
        from petl.training import processes, rehearsal
        from petl.training import run as train

        processes.prepare_process()
        warm = WarmModel(context)
        rehearsal.rehearse(warm.model, warm.data, warm.backbone.model)
        return train.fastest_precision(warm.model)

    return _on_a_worker(measure, resources)


def head_start(context: StudyContext, resources: ResourcesConfig, pooling: str) -> bytes:
    """Return what heads of this pooling start from, as safetensors, fitted where a trial would run."""

    def fit() -> bytes:
        from safetensors.torch import save

        from petl.training import probe, processes

        processes.prepare_process()
        warm = WarmModel(context)
        return save(probe.start(warm.model, warm.data, pooling, context.resolved.precision))

    return _on_a_worker(fit, resources)


def _on_a_worker(work: Callable[[], T], resources: ResourcesConfig) -> T:
    """Return what `work` does in a process with a worker's resources. Raises the UserError that it raised."""
    task = ray.remote(num_cpus=resources.each["CPU"], num_gpus=resources.each["GPU"], max_calls=1)(work)
    try:
        return ray.get(task.remote())
    except RayTaskError as error:
        if isinstance(error.cause, UserError):
            raise error.cause from None
        raise


class Tester:
    """A process that scores one finished trial after another."""

    def __init__(self, context: StudyContext) -> None:
        self._warm = WarmModel(context)
        self._lock: StudyLock | None = None

    def test(self, number: int, reference: str | None) -> str:
        """Score a trial, and return why it could not be scored, "" where it was."""
        try:
            if self._lock is None:
                self._lock = StudyLock(self._warm.context.home)
                self._lock.work()
            self._warm.test(number, reference)
        except Exception as error:  # one adapter that cannot be tested must not cost the others
            return f"{type(error).__name__}: {error}"
        return ""


def test_scores(
    context: StudyContext,
    resources: ResourcesConfig,
    trials: Sequence[tuple[int, str | None]],
    scored: Callable[[int, str], None],
) -> None:
    """Score finished trials, given as (number, reference), on whole splits, several at once.

    The scores lie in the trials' folders. `scored(number, reason)` is called as each is done, with the
    reason where it failed.
    """
    if not trials:
        return
    actor = ray.remote(
        num_cpus=resources.each["CPU"], num_gpus=resources.each["GPU"], max_restarts=-1, max_task_retries=_ATTEMPTS - 1
    )(Tester)
    at_once = max(1, min(resources.concurrent * resources.workers_per_trial, places(resources.each)))
    waiting, busy = deque(trials), dict[Any, tuple[Any, int]]()
    idle: list[Any] = [actor.remote(context) for _ in range(min(at_once, len(trials)))]
    while waiting or busy:
        while waiting and idle:
            tester, trial = idle.pop(), waiting.popleft()
            busy[tester.test.remote(*trial)] = tester, trial[0]
        (done, *_), _ = ray.wait(list(busy))
        tester, number = busy.pop(done)
        try:
            reason = ray.get(done)
        except RayActorError:
            reason = f"its process died {_ATTEMPTS} times (killed, or out of memory)"
        idle.append(tester)  # one that died starts again
        scored(number, reason)
