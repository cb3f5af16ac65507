"""Where a study lies, and its one driver."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from rich.console import Console

from petl.errors import UserError
from search.config.study import StudyConfig
from search.storage.address import expand_env, one_line, redacted, restore_password, sqlite_file, without_password
from search.storage.commands import resume_command
from search.storage.errors import FullDiskError, StoreError, is_full
from search.storage.locations import StudyHome, home
from search.storage.locks import StudyLock
from search.storage.locks import driving as holding
from search.storage.studies import study_begun
from search.study.interrupts import interrupted_for_certain
from search.trials.records import Records


class StudyError(UserError):
    """A study that exists already, does not exist, or no longer fits its backbone or data."""


class InterruptedStudy(UserError):  # noqa: N818 (no error: the user asked for it)
    """The run was interrupted; nothing that was finished is lost."""

    exit_code = 130  # as shells have it for SIGINT


class UndeliveredStudy(UserError):  # noqa: N818 (no error of the study's: it is done)
    """The trials are done, and MLflow, which is away, has not received all of them yet."""

    exit_code = 75  # as sendmail has it for what is to be tried again later


def home_of(config: StudyConfig) -> StudyHome:
    """Return the places of a study. Raises StudyError where MLflow has the database of its records."""
    places = StudyHome(config.study, config.storage.database, config.tracking.uri, config.storage.path)
    published = without_password(expand_env(places.uri))
    if not sqlite_file(places.database) and without_password(places.database) == published:
        raise StudyError(
            f"the trials' records and MLflow need a database each (both have a table alembic_version of their own); "
            f"received {redacted(places.database)} for both"
        )
    return places


def store_of(config: StudyConfig, records: Records) -> str:
    """Return the MLflow store of a study: what it was when the study began, else the home's own.

    Its password is not on record: the study file or $MLFLOW_TRACKING_URI has it, or the environment in other ways.
    """
    recorded = records.resolved.uri
    if recorded is None:
        return f"sqlite:///{home() / 'mlflow.db'}"
    return restore_password(recorded, config.tracking.uri, os.environ.get("MLFLOW_TRACKING_URI"))


def how_to_resume(places: StudyHome, options: str = "") -> str:
    """Return the command that resumes the study from this folder and environment."""
    return resume_command(places.name, database=places.database, options=options)


def interrupted(places: StudyHome) -> InterruptedStudy:
    """Return what to raise where a study was interrupted: it says how to resume the study, if it had begun."""
    begun = True
    with suppress(StoreError):  # of a database that is away
        begun = study_begun(places.database, places.name)
    return InterruptedStudy(
        f"interrupted; nothing that was finished is lost. Resume with: {how_to_resume(places)}"
        if begun
        else f"interrupted before the study {places.name!r} began"
    )


@contextmanager
def driving(places: StudyHome, console: Console) -> Iterator[Callable[[], None]]:
    """Make this process the study's one driver within the context, and Ctrl-C or a closed pipe an InterruptedStudy.

    What it yields makes sure that it still is the only one: see `search.storage.locks.driving`.
    """
    try:
        with interrupted_for_certain(), _locked(places, console) as guard:
            yield guard
    except (KeyboardInterrupt, SystemExit):  # the second is rich's, where nobody reads the output any more: | head
        raise interrupted(places) from None
    except Exception as error:
        if not is_full(error):
            raise
        raise FullDiskError(
            f"a disk is full ({one_line(error)}); nothing that was finished is lost. Make room, "
            f"perhaps by storage.max_gb, and resume with: {how_to_resume(places)}"
        ) from None


@contextmanager
def _locked(places: StudyHome, console: Console) -> Iterator[Callable[[], None]]:
    lock = StudyLock(places.folder)
    try:
        lock.drive(say=console.print)
        with holding(places.database, places.name) as guard:
            yield guard
    finally:
        lock.release()
