"""What a submitted job does on the cluster's head before the study runs: move its files to a place that stays.

`search.jobs.client` sends this file beside `job.json`, so that both sides agree on its contents. Until the installed
version is known, this file needs Python alone. Ray unpacks what was sent into a folder of the session, which changes
with a restart and from node to node, and a study stores absolute paths. So the files are copied:

    $PETL_SEARCH_HOME/inputs/DIGEST/NAME    a model folder, a file or folder of rows; found by its contents
                      submitted/STUDY/      of the study that was begun: study.yaml, and the modules of a space of
                                            the user's own
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
import time
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

_POLL: Final = 1.0  # seconds between two looks at a driver that is about to end


def arrive(sent: Path) -> list[str]:
    """Put the sent files in their places, and return the arguments of `petl-search` that run the study.

    Changes the current folder. Raises SystemExit, with a message, where the study cannot run here.
    """
    job = json.loads((sent / "job.json").read_text(encoding="utf-8"))
    _require_package(job["version"])
    if not os.environ.get("PETL_SEARCH_HOME"):
        raise SystemExit(
            "the cluster has no $PETL_SEARCH_HOME, the folder of studies that all of its nodes share. "
            "Set it where Ray is started, or give --env PETL_SEARCH_HOME=/shared/folder"
        )
    home = Path(os.environ["PETL_SEARCH_HOME"]).absolute()
    home.mkdir(parents=True, exist_ok=True)
    _wait_for_end(job["study"], job["patience"])
    place = home / "submitted" / job["study"]
    arguments: list[str] = job["arguments"]
    if job["config"]:
        for item in job["inputs"]:
            section: Any = job["config"]
            for key in item["at"][:-1]:
                section = section[key]
            section[item["at"][-1]] = str(_kept(sent / "inputs" / item["digest"], home, item["name"]))
        study = sent / "study.yaml"
        study.write_text(json.dumps(job["config"], indent=1, ensure_ascii=False), encoding="utf-8")  # JSON is YAML
        # A study that is resumed keeps the code that it began with; so does a study whose name a new one is refused.
        if "--fresh" in arguments or not _is_begun(job["study"], job["config"]):
            shutil.rmtree(place, ignore_errors=True)
            shutil.copytree(sent / "modules", place)
            shutil.copy(study, place)
        arguments = ["run", str(study), *arguments]
    place.mkdir(parents=True, exist_ok=True)
    os.chdir(place)  # where a space of the user's own is found
    _find_records(place)
    return arguments


def _is_begun(study: str, config: dict[str, Any]) -> bool:
    """Return whether the study is on record. Raises SystemExit where the database does not answer."""
    from search.storage.address import AddressError
    from search.storage.locations import database_url
    from search.storage.studies import study_begun
    from search.trials.records import RecordsError

    try:
        return study_begun(database_url(config["storage"]["database"]), study)
    except (AddressError, RecordsError) as error:
        raise SystemExit(str(error)) from None


def _find_records(place: Path) -> None:
    """Set $PETL_SEARCH_DATABASE, by which a resume finds its study, to what the study's own file said."""
    try:
        config = json.loads((place / "study.yaml").read_text(encoding="utf-8"))
    except OSError:  # it was never sent here
        return
    if database := config["storage"]["database"]:
        os.environ.setdefault("PETL_SEARCH_DATABASE", database)


def _require_package(wanted: str | None) -> None:
    """Raise SystemExit where petl-search is missing here, or is not the `wanted` version."""
    try:
        found = version("petl-search") if wanted else None  # without: the code came along
    except PackageNotFoundError:
        found = ""
    if found != wanted or not find_spec("search"):
        raise SystemExit(
            f"{sys.executable} of the cluster has {f'petl-search {found}' if found else 'no petl-search'}, and the "
            f"study was sent by {wanted or 'one that sends its code'}. Install that one on all nodes, name the "
            "interpreter that has it by --python, or send this one's code by --code"
        )


def _wait_for_end(study: str, patience: float) -> None:
    """Return when no other process drives the study. Raises SystemExit after `patience` seconds."""
    from search.storage.locations import StudyHome
    from search.storage.locks import StudyBusyError, StudyLock

    deadline = time.monotonic() + patience
    while True:
        lock = StudyLock(StudyHome(study).folder)
        try:
            lock.drive()
        except StudyBusyError as error:
            if time.monotonic() > deadline:
                raise SystemExit(str(error)) from None
            time.sleep(_POLL)
        else:
            return
        finally:
            lock.release()


def _kept(sent: Path, home: Path, name: str) -> Path:
    """Return the folder or file under the home, after copying it there where it is missing."""
    place = home / "inputs" / sent.name
    if not place.exists():
        place.parent.mkdir(parents=True, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(prefix=f"{sent.name}.", dir=place.parent))
        shutil.copytree(sent, unfinished, dirs_exist_ok=True)
        try:
            unfinished.rename(place)
        except OSError:  # another job was faster
            shutil.rmtree(unfinished)
    return place / name


if __name__ == "__main__":
    try:
        arguments = arrive(Path(__file__).parent.absolute())
    except SystemExit as error:
        print(f"petl-search: {error}", flush=True)
        sys.exit(2)
    # The same process, since Ray asks this one to end; -P, since files of the user's lie in the current folder, which
    # would else be searched before the installed packages.
    os.execv(sys.executable, [sys.executable, "-P", "-m", "search.cli", *arguments])
