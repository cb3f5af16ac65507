"""The same failures on Ray Tune as it comes: OptunaSearch on a database, MLflowLoggerCallback on a server.

As its documentation has it: a function that reports with a checkpoint and goes on from it, FailureConfig for
processes that die, one storage for all nodes, and `Tuner.restore` after the driver. Each trial trains for about as
long as one of ours, by sleeping, and leaves the same marks in a folder for the ledger: those are no part of Tune.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import optuna
from mlflow.tracking import MlflowClient

from tests.chaos.attempts import EPOCHS, Outcome, Study
from tests.chaos.cluster import Cluster, whole
from tests.chaos.failures import FAILURES, Failure

APPLY: Final = ("worker", "driver", "node", "mlflow")
_SECONDS: Final = 2.5  # an epoch
_STEPS: Final = 10  # of an epoch


def begin(there: Cluster, name: str, trials: int, failure: Failure) -> Study:
    """Starts one on the cluster's head."""
    address = there.sql_address(name)
    settings = {
        "name": name,
        "trials": trials,
        "concurrent": len(there.hosts),
        "optuna": _sqlalchemy(there, address),
        "mlflow": there.mlflow.uri,
        "home": str(there.home),
        "ray": there.address,
    }
    path = there.folder / f"{name}.json"
    path.write_text(json.dumps(settings))
    return Study(there, name, trials, address, ("-m", "tests.chaos.stock", str(path)), numbered=False)


def count(study: Study, outcome: Outcome, say: Callable[[str], None]) -> None:
    """What Optuna and MLflow have, against what was trained to its end."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    storage = _sqlalchemy(study.there, study.address)
    trials = optuna.load_study(study_name=study.name, storage=storage).trials
    states = Counter(trial.state.name for trial in trials)
    complete = {trial.params["x"] for trial in trials if trial.state.name == "COMPLETE"}
    points = Counter(trial.params["x"] for trial in trials)
    trained = {json.loads((result.parent / "config.json").read_text())["x"] for result in study.results()}
    outcome.lost += len(trained - complete)
    outcome.doubled += sum(number - 1 for number in points.values()) + max(0, len(points) - study.trials)
    outcome.running += states["RUNNING"] + states["WAITING"]
    outcome.failed += states["FAIL"]
    client = MlflowClient(study.there.mlflow.uri)
    experiment = client.get_experiment_by_name(study.name)
    runs = client.search_runs([experiment.experiment_id]) if experiment else []
    names = Counter(run.data.tags.get("trial_name", run.info.run_id) for run in runs)
    outcome.doubled += sum(number - 1 for number in names.values())
    outcome.running += sum(run.info.status == "RUNNING" for run in runs)
    whole_runs = {run.data.params["x"] for run in runs if run.data.metrics.get("epoch") == EPOCHS}
    outcome.unequal += len({str(x) for x in trained} - whole_runs)
    say(f"{study.name}: Optuna {dict(states)}; MLflow {dict(Counter(run.info.status for run in runs))}")


def failures() -> dict[str, Failure]:
    """Those that apply."""
    return {name: FAILURES[name] for name in APPLY}


def _sqlalchemy(there: Cluster, address: str) -> str:
    return whole(address, there.environment).replace("postgresql://", "postgresql+psycopg://")


def train(config: dict[str, Any], home: str = "") -> None:
    """A trial: its epochs, from its last checkpoint on."""
    from ray import tune

    done = 0
    if checkpoint := tune.get_checkpoint():
        with checkpoint.as_directory() as folder:
            done = json.loads((Path(folder) / "state.json").read_text())["epoch"]
    marks = Path(home) / tune.get_context().get_trial_id()
    marks.mkdir(parents=True, exist_ok=True)
    (marks / "config.json").write_text(json.dumps(config))
    for epoch in range(done + 1, EPOCHS + 1):
        for step in range(1, _STEPS + 1):
            time.sleep(_SECONDS / _STEPS)
            (marks / "progress").write_text(f"training {(epoch - 1) * _STEPS + step}/{EPOCHS * _STEPS}")
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "state.json").write_text(json.dumps({"epoch": epoch}))
            score = config["x"] * (1 - 0.5**epoch)
            tune.report({"accuracy": score, "epoch": epoch}, checkpoint=tune.Checkpoint.from_directory(folder))
        part = marks / ("result" if epoch == EPOCHS else f"state-{epoch}")
        part.mkdir(exist_ok=True)
        (part / "manifest.json").write_text("{}")


def main(path: str) -> int:
    """The driver: starts the study of these settings, or goes on with it."""
    import ray
    from ray import tune
    from ray.air.integrations.mlflow import MLflowLoggerCallback
    from ray.tune.search.optuna import OptunaSearch

    settings = json.loads(Path(path).read_text())
    name, home = settings["name"], settings["home"]
    ray.init(address=settings["ray"], log_to_driver=False)
    trainable = tune.with_resources(tune.with_parameters(train, home=f"{home}/studies/{name}/trials"), {"CPU": 1})
    place = f"{home}/tune/{name}"
    if tune.Tuner.can_restore(place):
        print("restored", flush=True)
        tuner = tune.Tuner.restore(place, trainable=trainable, resume_unfinished=True, resume_errored=True)
    else:
        search = OptunaSearch(
            {"x": optuna.distributions.FloatDistribution(0, 1)},
            metric="accuracy",
            mode="max",
            study_name=name,
            storage=optuna.storages.RDBStorage(settings["optuna"]),
            sampler=optuna.samplers.RandomSampler(seed=0),
        )
        logger = MLflowLoggerCallback(tracking_uri=settings["mlflow"], experiment_name=name)
        tuner = tune.Tuner(
            trainable,
            tune_config=tune.TuneConfig(
                search_alg=search, num_samples=settings["trials"], max_concurrent_trials=settings["concurrent"]
            ),
            run_config=tune.RunConfig(
                name=name,
                storage_path=f"{home}/tune",
                failure_config=tune.FailureConfig(max_failures=3),
                callbacks=[logger],
            ),
        )
    results = tuner.fit()
    print(f"{len(results)} results, {results.num_errors} errors", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
