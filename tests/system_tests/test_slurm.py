"""infra/slurm/study.sbatch under a real Slurm: two nodes, the time limit, the queue again, and the study's end."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil
import pytest
import studies
import yaml
from slurm import Slurm, missing, slurm
from survival import finished

from search.results.query import load_study
from search.trials.record import State

SCRIPT = Path(__file__).parents[2] / "infra" / "slurm" / "study.sbatch"
MORE = 4
UNDER_WAY = ("PENDING", "CONFIGURING", "RUNNING", "SIGNALING", "COMPLETING", "REQUEUED")
SHOWN = ("JobState", "Restarts", "Reason", "NodeList", "TimeLimit")

pytestmark = [
    pytest.mark.skipif(not os.environ.get("PETL_SLURM"), reason="takes five minutes or more: make test-slurm"),
    pytest.mark.skipif(bool(missing()), reason=missing()),
]


def write_study(home: Path, trials: int) -> Path:
    path = home / "study.yaml"
    content = studies.study(
        home / "inputs",
        rows=960,
        study="queued",
        references=["majority"],
        scheduler={"name": "none"},
        budget={"trials": trials, "epochs": 3},
    )
    path.write_text(yaml.safe_dump(content))
    return path


def processes(job: str, there: Slurm) -> list[str]:
    """What lives of a job."""
    found = []
    for process in psutil.process_iter():
        try:
            environment = process.environ()
            if environment.get("SLURM_JOB_ID") == job and environment.get("SLURM_CONF", "").startswith(
                str(there.folder)
            ):
                found.append(" ".join(process.cmdline())[:200])
        except psutil.Error:
            continue
    return found


def test_time_limit_requeue_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However fast the machine: the limit comes when something is finished, and then some more is asked for."""
    monkeypatch.setenv("PETL_SEARCH_HOME", str(tmp_path))
    study, log = write_study(tmp_path, trials=1000), tmp_path / "job.log"
    limited, before = False, dict[int, str]()
    scratch = set(Path("/tmp").glob("petl.*"))
    with TemporaryDirectory(prefix="slurm", dir="/tmp") as folder, slurm(Path(folder)) as there:
        job = there.run(
            *("sbatch", "--parsable", f"--output={log}", f"--chdir={tmp_path}"),
            *("--nodes=2", "--cpus-per-task=1", "--gpus-per-node=0", "--time=30", str(SCRIPT), str(study)),
            PETL_VENV=str(Path(sys.executable).parent.parent),
            PETL_SEARCH_HOME=str(tmp_path),
        )
        told, began = "", time.monotonic()
        while True:
            fields, done = there.job(job), finished(tmp_path, "queued")
            line = " ".join(
                f"{key}={fields[key]}" for key in ("JobState", "Restarts", "Reason", "NodeList", "TimeLimit")
            )
            if line != told:
                print(f"{time.monotonic() - began:4.0f} s: {line}, {len(done)} trials finished")
                told = line
            if fields["JobState"] == "RUNNING" and len(done) > 2 and not limited:
                hours, minutes, _ = fields["RunTime"].split(":")
                limit = 60 * int(hours) + int(minutes) + 2  # at least a minute from now, less than --signal
                there.run("scontrol", "update", f"JobId={job}", f"TimeLimit={limit}")
                limited = True
            if fields["JobState"] == "PENDING" and limited and not before:
                before = done
                write_study(tmp_path, trials=len(before) + MORE)
                there.run("scontrol", "update", f"JobId={job}", "TimeLimit=30")
            if fields["JobState"] not in UNDER_WAY:
                break
            assert time.monotonic() - began < 1500, log.read_text()
            time.sleep(1)
        print(log.read_text())
        print((Path(folder) / "ended.txt").read_text())
        assert processes(job, there) == []
        assert set(Path("/tmp").glob("petl.*")) <= scratch
    assert (fields["JobState"], fields["Restarts"]) == ("COMPLETED", "1")
    assert "Traceback" not in log.read_text()

    assert len(before) > 2
    assert before.items() <= finished(tmp_path, "queued").items()  # the very files: nothing was trained again
    trials = load_study("queued").trials
    assert len(trials) == len(before) + MORE
    assert {trial.state for trial in trials} == {State.COMPLETE}
