"""The trainable: a process that keeps backbone and data, and trains one trial after another.

A trial whose process died is started again by Ray with the same job, and continues from its folder.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from ray import tune

from search.attempt import Attempt, Job, Resident, Workload, failed
from search.gang import Gang, GangAttempt
from search.mirror import StoreAwayError
from search.store import StudyLock


class Worker(tune.Trainable):
    """Tune's view of one trial after another: one step is one milestone.

    `workers` processes train a trial: this one, or a gang that it leads.
    """

    def setup(
        self,
        config: dict[str, Any],
        workload: Workload | None = None,
        workers: int = 1,
        each: Mapping[str, float] | None = None,
    ) -> None:
        """Called once a process; `reset_config` hands it the next job. `each`: what Ray gives to one of a gang."""
        assert workload is not None
        self._workload = workload
        self._lock: StudyLock | None = None
        self._begin: Callable[[Job], Attempt | GangAttempt] = (
            Gang(workload, workers, each or {}).begin if workers > 1 else partial(Attempt, Resident(workload))
        )
        self.attempt = self._begin(Job.from_json(config["job"]))

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """The next trial of this process."""
        self.attempt.close()
        self.attempt = self._begin(Job.from_json(new_config["job"]))
        return True

    def step(self) -> dict[str, Any]:
        """Trains to the next milestone."""
        report = self._refusal() or self.attempt.advance()
        return {"report": json.dumps(report), "done": bool(report.get("done"))}

    def _refusal(self) -> dict[str, Any] | None:
        """The report of a trial where nothing can be trained, None where it can. Takes the worker's lock."""
        if self._lock is None:
            try:
                self._lock = StudyLock(self._workload.home)
            except StoreAwayError as error:
                return failed(error)
            self._lock.work()
        return None

    def cleanup(self) -> None:
        """Called when the process is no longer needed."""
        self.attempt.close()

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Never called: the trial's folder is the checkpoint, and Tune's storage lies on the driver's node alone."""
        raise RuntimeError(f"nothing is to be saved in {checkpoint_dir}")

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Nothing: the trial's folder is the checkpoint."""
