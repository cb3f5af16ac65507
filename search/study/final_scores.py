"""Who sees the test split: the members of the front when a search is over, and the references beside them.

Nobody else does, and nobody before: a search that chose by test scores would have none left to trust.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from search.config.study import StudyConfig
from search.storage.folder import SCORED, TrialFolder, read_json
from search.trials.front import front_of
from search.trials.record import State, TrialRecord, discoveries
from search.trials.records import Records
from search.trials.report import TWIN, Report


def eligible(config: StudyConfig, records: Records) -> list[TrialRecord]:
    """Return the trials that are scored on whole splits at the end of a study.

    Of a search these are the front, what replicates put on it, and the references; of a list all.
    """
    complete = [record for record in records.all() if record.state is State.COMPLETE]
    if config.designs:
        return complete
    front = front_of(records.all(), records.objectives)
    members, credible = {record.number for record in front}, discoveries(records.summaries)
    beside = [record for record in complete if record.reference or record.number in credible]
    return [*front, *(record for record in beside if record.number not in members)]


def unscored(config: StudyConfig, records: Records, folder: Path) -> list[TrialRecord]:
    """Return the eligible trials that have no final scores in the study's `folder` yet."""
    if not records.resolved.final:
        return []
    return [record for record in eligible(config, records) if not TrialFolder(folder, record.number).scored()]


def twins(trials: Sequence[TrialRecord], among: Sequence[TrialRecord], folder: Path) -> dict[int, int]:
    """Return by their numbers those of `trials` that were given the result of another one `among` these, with that."""
    numbers = {record.number for record in among}
    found: dict[int, int] = {}
    for record in trials:
        if result := TrialFolder(folder, record.number).result():
            twin = Report.from_dict(read_json(result.report)).facts.get(TWIN)
            if twin in numbers:
                found[record.number] = twin
    return found


def share_scores(number: int, twin: int, folder: Path) -> None:
    """Give a trial the final scores of its twin, where that has any."""
    if scored := TrialFolder(folder, twin).scored():
        own = TrialFolder(folder, number)
        own.copy(SCORED, scored.folder)
        own.commit(SCORED)
