"""What is left of a study of a name that is to begin: refused, or deleted."""

from __future__ import annotations

import shutil

from search.storage.address import redacted
from search.storage.listing import has_committed_parts
from search.storage.locations import StudyHome
from search.storage.remote import RemoteStore, find_store
from search.storage.studies import delete_study, study_exists
from search.study.places import StudyError
from search.tracking.experiment import discard, has_trials


def require_new(places: StudyHome) -> None:
    """Raise StudyError where trials of a study of that name are kept whose records are not in the database."""
    trials = {str(places.folder): has_committed_parts(places.folder)}
    for store in _stores(places):
        trials[store.address] = store.has_committed_parts()
    trials[redacted(places.uri)] = has_trials(places.uri, places.name)
    if found := [place for place, has in trials.items() if has]:
        raise StudyError(
            f"{' and '.join(found)} has trials of a study {places.name!r} that {redacted(places.database)} does not "
            "know. Name the database that does by $PETL_SEARCH_DATABASE or storage.database, or choose another name; "
            "--fresh deletes those trials"
        )


def delete(places: StudyHome) -> None:
    """Remove a study everywhere, without its lock file; nothing where there is none."""
    discard(places.uri, places.name)  # first: it may be a server that does not answer
    if study_exists(places.database, places.name):
        delete_study(places.database, places.name)
    for store in _stores(places):
        store.delete()
    for folder in (places.trials, places.journal, places.artifacts):
        if folder:
            shutil.rmtree(folder, ignore_errors=True)


def _stores(places: StudyHome) -> list[RemoteStore]:
    """Return where the study's trials are to be kept, or were, beside its folder."""
    current = find_store(places.folder)
    return [
        RemoteStore(address, places.name) for address in {places.store, current.address if current else None} if address
    ]
