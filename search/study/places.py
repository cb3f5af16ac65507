"""Where a study lies: its driver, its signals, what is refused and what is deleted."""

from __future__ import annotations

import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

from rich.console import Console

from search.config.study import StudyConfig
from search.storage.address import expand_env, one_line, redacted, restore_password, sqlite_file, without_password
from search.storage.database import is_postgresql
from search.storage.locations import (
    FullDiskError,
    StoreError,
    StudyHome,
    artifact_root,
    database_url,
    home,
    is_full,
    resume_command,
    store_uri,
)
from search.storage.locks import StudyLock
from search.storage.locks import driving as holding
from search.storage.remote import Mirror, mirror_of
from search.storage.studies import delete_study, study_begun, study_exists
from search.tracking.client import discard, has_trials
from search.trials.records import Records

if TYPE_CHECKING:
    from types import FrameType


JOURNAL: Final = "journal"  # in the study's folder


class StudyError(ValueError):
    """A study that exists already, does not exist, or no longer fits its backbone or data."""


class InterruptedStudy(Exception):  # noqa: N818 (no error: the user asked for it)
    """The run was interrupted; nothing that was finished is lost."""

    exit_code = 130  # as shells have it for SIGINT


class UndeliveredStudy(Exception):  # noqa: N818 (no error of the study's: it is done)
    """The trials are done, and MLflow, which is away, has not heard of all of them yet."""

    exit_code = 75  # as sendmail has it for what is to be tried again later


@contextmanager
def driving(study: str, database: str, console: Console) -> Iterator[Callable[[], None]]:
    """This process is the study's one driver inside; Ctrl-C, or a closed pipe, becomes InterruptedStudy.

    What it yields makes sure that it still is the only one: see `search.storage.locks.driving`.
    """
    lock = StudyLock(folder_of(study))
    lock.drive(say=console.print)
    try:
        with holding(database, study) as guard:
            yield guard
    except (KeyboardInterrupt, SystemExit):  # the second is rich's, where nobody reads the output any more: | head
        begun = True
        with suppress(StoreError):  # of a database that is away
            begun = study_begun(database, study)
        raise InterruptedStudy(
            f"interrupted; nothing that was finished is lost. Resume with: {resume_command(study, database=database)}"
            if begun
            else f"interrupted before the study {study!r} began"
        ) from None
    except Exception as error:
        if not is_full(error):
            raise
        raise FullDiskError(
            f"a disk is full ({one_line(error)}); nothing that was finished is lost. Make room, "
            f"perhaps by storage.max_gb, and resume with: {resume_command(study, database=database)}"
        ) from None
    finally:
        lock.release()


@contextmanager
def terminated_as_interrupted() -> Iterator[None]:
    """SIGTERM, which schedulers and clouds send before they kill, does what Ctrl-C does at that moment."""
    if threading.current_thread() is not threading.main_thread():  # which alone may set handlers
        yield
        return

    def interrupt(number: int, frame: FrameType | None) -> None:
        # Not by a SIGINT: jobs of Ray's have that blocked, and those that a shell put into the background ignore it.
        handler = signal.getsignal(signal.SIGINT)
        (handler if callable(handler) else signal.default_int_handler)(signal.SIGINT, frame)

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def store_of(config: StudyConfig, records: Records) -> str:
    """The MLflow store of a study: what it was when the study began, the home's own where nothing was said.

    Its password is not on record: the study file or $MLFLOW_TRACKING_URI has it, or the environment in other ways.
    """
    kept = records.resolved.uri
    if kept is None:
        return f"sqlite:///{home() / 'mlflow.db'}"
    return restore_password(kept, config.tracking.uri, os.environ.get("MLFLOW_TRACKING_URI"))


def require_new(config: StudyConfig, database: str) -> None:
    """Raises StudyError where trials of a study of that name are kept whose records are not in the database."""
    places = {str(folder_of(config.study)): any(folder_of(config.study).glob("trials/*/*/manifest.json"))}
    for mirror in _mirrors(config):
        places[mirror.address] = any(name.endswith("/manifest.json") for name in mirror.files(""))
    uri = store_uri(config.tracking.uri)
    places[redacted(uri)] = has_trials(uri, config.study)
    if there := [place for place, has in places.items() if has]:
        raise StudyError(
            f"{' and '.join(there)} has trials of a study {config.study!r} that {redacted(database)} does not know. "
            "Name the database that does by $PETL_SEARCH_DATABASE or storage.database, or choose another name; "
            "--fresh deletes those trials"
        )


def _mirrors(config: StudyConfig) -> list[Mirror]:
    """Where the study's trials are to be kept, or were, beside its folder."""
    there = {config.storage.path, mirrored.address if (mirrored := mirror_of(folder_of(config.study))) else None}
    return [Mirror(path, config.study) for path in there if path]


def delete(config: StudyConfig, database: str) -> None:
    """Removes a study everywhere, its lock file excepted; nothing where there is none."""
    discard(store_uri(config.tracking.uri), config.study)  # first: it may be a server that does not answer
    if study_exists(database, config.study):
        delete_study(database, config.study)
    for mirror in _mirrors(config):
        mirror.delete()
    for part in ("trials", JOURNAL):
        shutil.rmtree(folder_of(config.study) / part, ignore_errors=True)
    if root := artifact_root(config.tracking.uri):
        shutil.rmtree(root / config.study, ignore_errors=True)


def shared_folder(config: StudyConfig) -> Path | None:
    """The folder that all nodes share, if they share no store."""
    return None if config.storage.path else folder_of(config.study)


def folder_of(study: str) -> Path:
    return StudyHome(study).folder


def database_of(config: StudyConfig) -> str:
    """The address of a study's records. Raises StudyError where MLflow has that database."""
    database = database_url(config.storage.database)
    if file := sqlite_file(database):
        file.parent.mkdir(parents=True, exist_ok=True)
    published = expand_env(store_uri(config.tracking.uri))
    if is_postgresql(database) and without_password(database) == without_password(published):
        raise StudyError(
            f"the trials' records and MLflow need a database each (both have a table alembic_version of their own); "
            f"received {redacted(database)} for both"
        )
    return database
