"""Trying a failure on studies, at random moments, and counting what it cost them."""

from __future__ import annotations

import random
import statistics
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import optuna
import psutil
from mlflow.tracking import MlflowClient

from tests.chaos.cluster import Cluster, Driver, title, wait_until, whole, write_study
from tests.chaos.failures import Failure, Scene
from tests.chaos.ledger import Ledger

EPOCHS: Final = 4
_ROWS: Final = 2000
_RECOVERY: Final = 400.0  # seconds until all trials that were under way have passed a milestone
_END: Final = 400.0
_GONE: Final = 75.0  # seconds until nothing of a study lives: two agents of Ray's take 60 to give up on a driver
# What runs on a host while nothing is asked of it.
_RAYS_OWN: Final = (
    "raylet", "gcs_server", "ray/dashboard", "log_monitor.py", "monitor.py", "ray.scripts.scripts", "process_reaper",
    "ray::IDLE", "ray::Dashboard", "ray::RuntimeEnv", "ray.util.client.server", "default_worker.py", "sleep ",
)  # fmt: skip
_OVER: Final = {"COMPLETE": "FINISHED", "PRUNED": "KILLED", "FAIL": "FAILED"}


@dataclass
class Outcome:
    """What one failure came to, over all the times that it was tried. Seconds are lists, an item a time or a trial."""

    failure: str
    tried: int = 0
    finished: int = 0  # trials that were finished at some moment of failure
    lost: int = 0  # of them
    doubled: int = 0  # trials, runs or points of curves that are there twice
    running: int = 0  # after the end, in Optuna or MLflow
    failed: int = 0  # trials
    unequal: int = 0  # trials of which Optuna and MLflow do not say the same
    trained_twice: int = 0  # milestones
    repeated: list[float] = field(default_factory=list)
    recovery: list[float] = field(default_factory=list)
    stuck: int = 0  # times after which nothing went on
    left: list[str] = field(default_factory=list)  # processes
    restarts: int = 0  # of the driver
    trials: int = 0
    seconds: float = 0.0

    def row(self) -> list[str]:
        """For a table under HEADINGS."""
        return [
            self.failure,
            str(self.tried),
            f"{self.finished}, {self.lost}",
            str(self.doubled),
            str(self.trained_twice),
            str(self.running),
            str(self.failed),
            str(self.unequal),
            _spread(self.repeated),
            str(len(self.left)),
            _spread(self.recovery) + (f", never {self.stuck}" if self.stuck else ""),
            str(self.restarts),
        ]


HEADINGS: Final = (
    "failure", "tried", "finished, lost", "rows twice", "milestones twice", "RUNNING for ever", "failed",
    "MLflow differs", "repeated, s", "processes left", "recovered after, s", "driver restarted",
)  # fmt: skip


def _spread(seconds: Sequence[float]) -> str:
    """Median and maximum."""
    return f"{statistics.median(seconds):.1f}, at most {max(seconds):.1f}" if seconds else "-"


def table(outcomes: Sequence[Outcome], headings: Sequence[str] = HEADINGS) -> str:
    """Markdown."""
    rows = [headings, ["---"] * len(headings), *(outcome.row() for outcome in outcomes)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


class Study:
    """A study on the cluster, and whoever starts its driver again, as a supervisor or a person would.

    `command` is Python's, of the driver; `address` that of its records, where $PETL_PASSWORD stands for the password.
    `numbered`: whether the trials' folders have Optuna's numbers.
    """

    def __init__(
        self, there: Cluster, name: str, trials: int, address: str, command: Sequence[str], *, numbered: bool = True
    ) -> None:
        self.numbered = numbered
        self.there, self.name, self.trials, self.address = there, name, trials, address
        self.log = there.folder / f"{name}.log"
        self._command = command
        self.restarts = 0
        self._ended = 0.0
        self.driver = self._drive()

    def handed_out(self) -> set[str]:
        """The folders of trials that Optuna has as running, as ours are named: one may not have begun to train."""
        if not self.numbered or self.address.startswith("sqlite"):
            return set()
        try:
            numbers = self.there.database.sql("SELECT number FROM trials WHERE state = 'RUNNING'", self.name)
        except subprocess.CalledProcessError:  # nothing is there yet
            return set()
        return {f"{int(number):04d}" for number in numbers.split()}

    def results(self) -> list[Path]:
        """Of the trials that were trained to their end."""
        return sorted(manifest.parent for manifest in self.folder.glob("trials/*/result/manifest.json"))

    @property
    def folder(self) -> Path:
        return self.there.home / "studies" / self.name

    def tend(self) -> bool:
        """Starts the driver again where it ended before its time. Whether the study is over."""
        code = self.driver.poll()
        if code in (None, 0):
            return code == 0
        self._ended = self._ended or time.monotonic()
        if time.monotonic() - self._ended > 2:  # nobody is faster
            self._ended, self.restarts = 0.0, self.restarts + 1
            self.driver = self._drive()
        return False

    def _drive(self) -> Driver:
        return self.there.drive(*self._command, log=self.log)


def begin(there: Cluster, name: str, trials: int, failure: Failure) -> Study:
    """Starts one on the cluster's head."""
    address, path = there.sql_address(name), there.folder / f"{name}.yaml"
    content: dict[str, Any] = {
        "rows": _ROWS,
        "study": name,
        "references": [],
        "scheduler": {"name": "none"},
        "training": {"batch_size": 16, "learning_rate": 3e-3},
        "sampler": {"name": "random", "seed": 0},
        "budget": {"trials": trials, "epochs": EPOCHS},
        "resources": {"concurrent": len(there.hosts)},
        "storage": {"database": address},
        "tracking": {"uri": there.mlflow.uri},
    }
    if "storage" in failure.study:
        address = f"sqlite:///{there.home / 'optuna.db'}"
    write_study(path, **{**content, **failure.study})
    command = ("-m", "search.cli", "run", str(path), "--or-resume", "--address", there.address)
    return Study(there, name, trials, address, command)


@dataclass
class Attempts:
    """Trying a failure so many times, on as many studies one after the other as that takes.

    `seconds(full)` is how long an outage lasts that lasts `full` where all is waited for.
    """

    there: Cluster
    name: str
    failure: Failure
    times: int
    draw: random.Random
    seconds: Callable[[float], float]
    say: Callable[[str], None]
    begin: Callable[[Cluster, str, int, Failure], Study]
    count: Callable[[Study, Outcome, Callable[[str], None]], None]

    def __post_init__(self) -> None:
        self.outcome = Outcome(self.failure.what)

    def run(self) -> None:
        """`outcome` is what it came to, also where this is interrupted."""
        began = time.monotonic()
        try:
            for number in range(1, self.times + 3):
                missing = self.times - self.outcome.tried
                if missing:
                    self.there.ready()
                    trials = self.failure.trials * (1 + min(missing, 5))
                    self._on_one_study(self.begin(self.there, f"{self.name}{number}", trials, self.failure))
        finally:
            self.outcome.seconds = time.monotonic() - began

    def _on_one_study(self, study: Study) -> None:
        outcome, before = self.outcome, dict[str, int]()
        with Ledger(study.folder) as ledger:
            while outcome.tried < self.times and self._comes_to_pass(study, ledger):
                before |= ledger.finished()
                under_way = ledger.under_way() | study.handed_out()
                at = self.failure.inflict(Scene(self.there, study.driver, self.draw, self.seconds))
                if at is None:
                    break
                outcome.tried += 1
                self._recover(study, ledger, under_way, at)
            if not wait_until(study.tend, _END):
                self.say(f"{study.name} does not end:\n{study.log.read_text()[-2000:]}")
                outcome.stuck += 1
                study.driver.kill()
        after = ledger.finished()
        outcome.finished += len(before)
        outcome.lost += sum(after.get(trial) != at for trial, at in before.items())
        outcome.trained_twice += sum(course.twice for course in ledger.courses.values())
        outcome.restarts += study.restarts
        outcome.trials += study.trials
        self.count(study, outcome, self.say)
        there = left(self.there)
        outcome.left += there
        if there:
            self.say(f"{study.name}: left on its hosts: {'; '.join(there)}")
        text = study.log.read_text()
        if study.numbered and "Traceback" in text:  # Tune's own driver has one for each process that died
            self.say(f"{study.name}: a traceback in its log\n{text[text.index('Traceback') :][:3000]}")

    def _comes_to_pass(self, study: Study, ledger: Ledger) -> bool:
        """Waits for a random moment at which trials are under way. False where the study is over, or nearly."""
        moment = ledger.progress() + self.draw.randint(1, 2 * EPOCHS)
        if not wait_until(lambda: study.tend() or ledger.progress() >= moment, _RECOVERY):
            return False
        time.sleep(self.draw.uniform(0, 3))
        return not study.tend() and bool(ledger.under_way()) and len(ledger.finished()) + 2 < study.trials

    def _recover(self, study: Study, ledger: Ledger, under_way: set[str], at: float) -> None:
        """Waits until each trial that was under way at that moment has passed a milestone."""
        wait_until(lambda: study.tend() or ledger.next_milestones(under_way, at) is not None, _RECOVERY)
        reached = ledger.next_milestones(under_way, at)
        seconds = None if reached is None else max((moment - at for moment in reached), default=0.0)
        if seconds is None:
            self.outcome.stuck += 1
        else:
            self.outcome.recovery.append(seconds)
        all_down = self.failure.restart
        wasted = ledger.since_milestone(under_way, at) if all_down else ledger.wasted(at - 1.0, time.time())
        self.outcome.repeated += wasted
        self.say(
            f"{study.name}, {self.outcome.tried} of {self.times}: {self.failure.what}; {len(under_way)} trials under "
            f"way, {'not recovered' if seconds is None else f'recovered after {seconds:.1f} s'}, repeated "
            f"{', '.join(f'{seconds:.1f} s' for seconds in wasted) or 'nothing'}"
        )


def count(study: Study, outcome: Outcome, say: Callable[[str], None]) -> None:
    """What Optuna and MLflow have of the study."""
    address = whole(study.address, study.there.environment).replace("postgresql://", "postgresql+psycopg://")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    trials = optuna.load_study(study_name=study.name, storage=address).trials
    keys = Counter(str(trial.user_attrs["configuration"]) for trial in trials)
    outcome.doubled += sum(number - 1 for number in keys.values())
    states = Counter(trial.state.name for trial in trials)
    outcome.running += states["RUNNING"] + states["WAITING"]
    outcome.failed += states["FAIL"]
    outcome.lost += max(0, study.trials - len(trials))
    client = MlflowClient(study.there.mlflow.uri)
    experiment = client.get_experiment_by_name(study.name)
    runs = client.search_runs([experiment.experiment_id]) if experiment else []
    children = [run for run in runs if "trial" in run.data.tags]
    numbers = Counter(int(run.data.tags["trial"]) for run in children)
    outcome.doubled += sum(number - 1 for number in numbers.values()) + max(0, len(runs) - len(children) - 1)
    outcome.lost += len({trial.number for trial in trials} - set(numbers))
    outcome.running += sum(run.info.status == "RUNNING" for run in runs)
    for run in children:
        trial = trials[int(run.data.tags["trial"])]
        same = run.info.status == _OVER.get(trial.state.name)
        if trial.values:
            same = same and run.data.metrics.get("accuracy") == trial.values[0]
        history = client.get_metric_history(run.info.run_id, "accuracy")
        outcome.doubled += len(history) - len({point.step for point in history})
        outcome.unequal += not same
    for trial in trials:
        if trial.state.name == "FAIL":
            say(f"{study.name}: trial {trial.number} failed: {trial.user_attrs.get('outcome', {}).get('failure')}")


def left(there: Cluster) -> list[str]:
    """The processes of a study that outlive it, on all hosts."""

    def foreign() -> list[psutil.Process]:
        found = []
        for host in there.hosts:
            for process in host.processes():
                words = title(process)
                with suppress(psutil.Error):
                    if (
                        words
                        and process.status() != psutil.STATUS_ZOMBIE
                        and not any(own in words for own in _RAYS_OWN)
                    ):
                        found.append(process)
        return found

    wait_until(lambda: not foreign(), _GONE)
    return [title(process) for process in foreign()]
