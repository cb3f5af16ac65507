"""Trials that several processes train: what one process comes to, no deadlock, and an end for all when one goes."""

from __future__ import annotations

import os
import re
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import ray
import studies
from ray import tune
from ray.exceptions import RayActorError
from scope import sampled

from petl import backbones, tasks
from petl.configuration import Configuration, Training
from petl.data.tokens import load_data
from petl.presets import parse
from petl.training.run import TrainingRun
from search.config.loading import load_config
from search.config.sections import ResourcesConfig
from search.config.text import ConfigError
from search.storage.locks import StudyLock, run_token
from search.study.places import StudyError
from search.study.run import resume, run
from search.trials.report import Report
from search.workers.assignment import Assignment, StudyContext
from search.workers.cluster import ClusterError, joined, room
from search.workers.trainable import Gang, Rank, Worker
from search.workers.training import TrialTraining, WarmModel

DESIGNS = ("lora:rank=2", "sequential:size=4", "mam:length=2,size=4,scale=2")
EACH = {"CPU": 1.0}
STAGES = sampled("ZeRO stages of a gang", (0, 1, 2, 3), lambda stage: stage == 3)  # test_engine has all, without Ray


@pytest.fixture(scope="module", autouse=True)
def _four_cpus() -> Iterator[None]:
    """As many as are declared: two gangs of two find room, whatever the machine has."""
    ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    content = studies.study(tmp_path_factory.mktemp("inputs"))
    for section in ("space", "constraints", "references", "sampler"):
        del content[section]
    return {**content, "designs": {design: design for design in DESIGNS}, "seeds": [1, 2], "budget": {"epochs": 2}}


@pytest.fixture
def context(content: dict[str, Any], tmp_path: Path) -> StudyContext:
    StudyLock(tmp_path).drive()
    return replace(studies.context(tmp_path, content), run=run_token(tmp_path))


def assignment(epochs: float = 3.0) -> Assignment:
    training = Training(learning_rate=2e-4, epochs=epochs, batch_size=8, accumulation=2)
    configuration = Configuration(parse("lora:rank=2"), training)
    return Assignment(0, configuration, None, (1.0, 2.0, epochs), time.time())


@pytest.mark.full("two searches of minutes; test_engine has the training without Ray")
@pytest.mark.parametrize("stage", STAGES)
def test_search_of_two_gangs_comes_to_what_one_process_comes_to(content: dict[str, Any], stage: int) -> None:
    """Six trials, two at once on four CPUs, with the backbone's own dropout."""
    resources = {"concurrent": 2, "workers_per_trial": 2, "zero_stage": stage}
    study = run({**content, "study": f"gangs-{stage}", "training": {"batch_size": 8}, "resources": resources})
    assert len(study.trials) == 6
    model, tokenizer = content["backbone"]["model"], backbones.load_tokenizer(content["backbone"]["model"])
    data = load_data(tasks.resolve(content["task"]), tokenizer)
    for trial in study.trials:
        assert trial.configuration.training.accumulation == 2
        alone = TrainingRun(backbones.load(model, labels=data.labels), data, trial.configuration)
        loss = [alone.advance(epoch).scores["loss"] for epoch in (1.0, 2.0)][-1]
        alone.close()
        assert trial.measurements.loss == pytest.approx(loss, abs=1e-5)

    with pytest.raises(StudyError, match=r"resources\.workers_per_trial decides what a score means"):
        resume(f"gangs-{stage}", overrides=["resources.workers_per_trial=1"])


@pytest.mark.full("two minutes")
def test_rank_that_dies_ends_all_at_once_and_another_gang_goes_on(context: StudyContext, tmp_path: Path) -> None:
    gang = Gang(context, 2, EACH)
    attempt = gang.begin(assignment(epochs=60.0))
    attempt.advance()
    ranks = _ranks()
    assert len(ranks) == 2
    errors: list[BaseException] = []

    def train() -> None:
        try:
            for _ in range(2):
                attempt.advance()
        except RayActorError as error:
            errors.append(error)

    thread = threading.Thread(target=train)
    thread.start()
    time.sleep(0.3)  # it is in the epochs between the second milestone and the last
    ranks[1].kill()
    thread.join(timeout=60.0)
    assert not thread.is_alive()
    assert len(errors) == 1
    assert psutil.wait_procs(ranks, timeout=30.0)[1] == []

    again = gang.begin(assignment(epochs=60.0))
    alone = TrialTraining(WarmModel(replace(context, folder=str(tmp_path / "alone"))), assignment(epochs=60.0))
    found, expected = _finished(again), _finished(alone)
    again.close()
    np.testing.assert_allclose(_losses(found), _losses(expected), rtol=0, atol=1e-5)
    gang.end()


def test_death_is_what_counts_though_its_peer_is_heard_first(context: StudyContext) -> None:
    """As when a rank dies while the gang meets: the others cannot connect to it."""

    class Peer:
        def __init__(self, dies: bool) -> None:
            self.dies = dies

        def meet(self) -> None:
            if not self.dies:
                raise RuntimeError("Connection closed by peer")
            time.sleep(0.5)
            os._exit(1)

    class Meeting(Gang):
        def ready(self) -> None:
            self._ranks = [ray.remote(num_cpus=1)(Peer).remote(dies) for dies in (False, True)]
            self.call("meet")

    with pytest.raises(RayActorError):
        Meeting(context, 2, EACH).begin(assignment()).advance()


def test_port_where_a_gang_meets_is_its_own_before_the_ranks_meet(context: StudyContext) -> None:
    ranks = [ray.remote(num_cpus=1)(Rank).remote(context, number) for number in range(2)]
    place = ray.get(ranks[0].meeting_place.remote(False))
    host, _, port = place.removeprefix("tcp://").rpartition(":")
    with socket.socket() as other, pytest.raises(OSError, match="in use"):
        other.bind((host, int(port)))
    ray.get([rank.join.remote(2, place) for rank in ranks])
    for rank in ranks:
        ray.kill(rank)


@pytest.mark.full("more than a minute")
def test_node_without_the_studys_folder_trains_nothing(context: StudyContext, tmp_path: Path) -> None:
    """What it trained would be in a folder of its own, and lost."""
    folder = tmp_path / "not mounted"
    gang = Gang(replace(context, folder=str(folder)), 2, EACH)
    report = gang.begin(assignment()).advance()
    assert re.match(r"store away: node \S+ does not see the study's folder .*not mounted", report.failure)
    worker = tune.with_parameters(Worker, context=replace(context, folder=str(folder)))
    result = worker({"assignment": assignment().to_json()}).train()
    assert result["done"]
    assert Report.from_json(result["report"]).failure == report.failure
    assert not folder.exists()


@pytest.mark.full("half a minute")
def test_error_of_the_training_is_the_trials_failure_and_ends_the_gang(context: StudyContext) -> None:
    gang = Gang(context, 2, EACH)
    broken = assignment()
    assert broken.configuration
    training = replace(broken.configuration.training, learning_rate=1e30, clip=0.0)
    diverging = replace(broken.configuration, training=training)
    report = gang.begin(replace(broken, configuration=diverging)).advance()
    assert report.failure.startswith("diverged: ")
    assert psutil.wait_procs(_ranks(), timeout=30.0)[1] == []

    report = gang.begin(assignment()).advance()  # the next trial gets a new one
    assert report.validations
    gang.end()


def test_cluster_without_room_for_a_gang_is_said(content: dict[str, Any], tmp_path: Path) -> None:
    for asked, message in (
        ({"workers_per_trial": 5}, r"1 CPU and 0 GPU for each of its 5 workers .* Ray has 4 CPU"),
        ({"workers_per_trial": 2, "cpus_per_trial": 10}, r"5 CPU and 0 GPU for each of its 2 workers"),
        ({"workers_per_trial": 2, "gpus_per_trial": 2}, r"1 CPU and 1 GPU for each"),
    ):
        with pytest.raises(ClusterError, match=message), joined(ResourcesConfig(**asked), tmp_path):
            pass
    assert room(ResourcesConfig(concurrent=9, workers_per_trial=2)) == 2
    assert room(ResourcesConfig(concurrent=9, workers_per_trial=3, cpus_per_trial=1.5)) == 2
    for gpus in (1, 3):
        with pytest.raises(ConfigError, match="a worker trains on one GPU"):
            load_config({**content, "resources": {"workers_per_trial": 2, "gpus_per_trial": gpus}})


def _ranks() -> list[psutil.Process]:
    return [process for process in psutil.Process().children(recursive=True) if _is_rank(process)]


def _is_rank(process: psutil.Process) -> bool:
    try:
        return "ray::Rank" in " ".join(process.cmdline())
    except psutil.Error:  # it has ended in the meantime
        return False


def _finished(attempt: Any) -> Report:
    report = Report()
    while not report.done:
        report = attempt.advance()
    return report


def _losses(report: Report) -> list[float]:
    return [validation["scores"]["loss"] for validation in report.validations]
