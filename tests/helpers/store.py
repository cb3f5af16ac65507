"""A finished study in a store of its own, trained in this process: tests copy the store, and damage the copy."""

from __future__ import annotations

import time
from pathlib import Path

import studies
from rich.console import Console

from search.config.loading import load_config
from search.optimizer.search import Search
from search.optimizer.steps import Start
from search.storage.locks import run_token
from search.storage.studies import create_study
from search.study.places import home_of
from search.study.plan import search_plan
from search.study.resolve import resolve, settled
from search.study.run import resume
from search.trials.record import State
from search.workers.assignment import Assignment, StudyContext
from search.workers.training import TrialTraining, WarmModel

STUDY = "tiny"
QUIET = Console(quiet=True)


def write_store(home: Path, inputs: Path) -> None:
    """Train, score and publish the study `tiny` in `home`, which $PETL_SEARCH_HOME has to name, from `inputs`."""
    content = studies.study(inputs, references=["majority"], budget={"trials": 2, "epochs": 1})
    content |= {"scheduler": "none", "tracking": {"patience": 3600}, "head": {"start": "random"}}
    config = load_config(content)
    places, resolved = home_of(config), resolve(config)
    records = create_study(places.database, config.study, config.objectives.names)
    records.config, records.resolved = config.to_dict(), resolved
    known = settled(config, resolved)
    search = Search(records, search_plan(known, resolved))
    warm = WarmModel(StudyContext(str(places.folder), resolved, run=run_token(places.folder)))
    while isinstance(step := search.next(1), Start):
        record = step.record
        milestones = search.rungs(record.number) or (1.0,)
        training = TrialTraining(
            warm, Assignment(record.number, record.configuration, record.reference, milestones, time.time())
        )
        report = training.advance()
        assert report.measurements, report.failure
        search.finish(record.number, report.measurements)
    for record in records.all():
        if record.state is State.COMPLETE:
            warm.test(record.number, record.reference)
    records.disconnect()
    resume(STUDY, console=QUIET)
