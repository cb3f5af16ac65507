"""A study as a Ray job: submitted to a cluster from a machine that is no part of it, watched, stopped, resumed.

A job is named petl-STUDY-N, so that a study's name is enough to find its newest job. `search.jobs.entrypoint` is what
the cluster runs first.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shlex
import socket
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, NoReturn
from urllib.parse import urlsplit

from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient
from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_fixed

from petl.errors import UserError
from petl.hashing import sha256
from search.config.loading import load_config
from search.config.study import StudyConfig
from search.jobs import entrypoint
from search.storage.address import REFERENCE, redacted, sqlite_file, without_password
from search.storage.commands import command, resume_command
from search.workers.cluster import use_token
from spaces.space import SPACES

DEFAULT: Final = "http://127.0.0.1:8265"  # Ray's own
_ANSWER: Final = 10.0  # seconds for a head to take a connection
_REPLY: Final = 60.0  # and for what it does then: it waits for agents of its own
_POLL: Final = 1.0  # seconds between two looks at a job
_LARGE: Final = 500_000  # characters of a log that may be read again every second
_AWAY: Final = 600.0  # seconds to wait for a head that went away
_PATIENCE: Final = "RAY_JOB_STOP_WAIT_TIME_S"
_STOP: Final = 60  # seconds from SIGTERM to SIGKILL; Ray's own 3 are too few to close a study
_BUSY: Final = 120.0  # seconds for the driver of a lost head to end
_LIMIT: Final = 100 * 2**20  # bytes that a head takes in one piece
_PACKAGES: Final = ("petl", "spaces", "search")
_RAYS: Final = re.compile(r"^(Running entrypoint for job .*|.*Runtime env is setting up\.)\n", re.MULTILINE)
_ENDS: Final[Mapping[JobStatus, str]] = {
    JobStatus.PENDING: "is about to start",
    JobStatus.RUNNING: "is running",
    JobStatus.STOPPED: "was stopped",
    JobStatus.SUCCEEDED: "is finished",
    JobStatus.FAILED: "failed",
}


class JobError(UserError):
    """A job cannot be submitted or does not exist, or a cluster does not answer."""


class UnknownJobError(JobError):
    """The cluster has no such job."""


class ClusterAwayError(JobError):
    """The cluster does not answer."""


class LeftJob(UserError):  # noqa: N818 (no error: the user asked for it)
    """Ctrl-C ended the watching; the job continues."""

    exit_code = 130


@dataclass(frozen=True)
class Input:
    """A file or folder that is sent with a study: the key that names it in the study, and the hash of its contents."""

    key: tuple[str, ...]
    path: Path
    digest: str


@dataclass(frozen=True)
class Submission:
    """All that a job is made of. Raises JobError where an argument or a variable has a password.

    `config` is the study's, None for a resume. `arguments` are those of petl-search on the head; `modules` are the
    files of a user's own space, by their names there. `env` is the environment of driver and workers, which everybody
    on the cluster can read. `python` is the cluster's interpreter; with `code` it runs the packages of this machine.
    `patience` is how many seconds the job waits for an earlier driver of the study to end.
    """

    study: str
    config: Mapping[str, Any] | None = None
    arguments: tuple[str, ...] = ()
    inputs: tuple[Input, ...] = ()
    modules: Mapping[str, Path] = field(default_factory=dict)
    env: Mapping[str, str] = field(default_factory=dict)
    python: str = "python"
    code: bool = False
    patience: float = 0.0

    def __post_init__(self) -> None:
        variables = {name: f"{name}={value}" for name, value in self.env.items()}
        if secret := [name for name, text in variables.items() if redacted(text) != text]:
            raise JobError(
                f"what --env gives is shown to everybody who may see the cluster's jobs, so it has no passwords; "
                f"received {', '.join(secret)}. Set them where Ray is started, and refer to them as ${{NAME}}"
            )
        if secret := [argument for argument in self.arguments if redacted(argument) != argument]:
            raise JobError(f"no password travels with a job; received {redacted(', '.join(secret))}")

    @property
    def options(self) -> str:
        """The options that a resume has to repeat."""
        python = ["--python", self.python] if self.python != "python" else []
        env = [word for name, value in self.env.items() for word in ("--env", f"{name}={value}")]
        return shlex.join([*env, *python, *(["--code"] if self.code else [])])

    def resumed(self) -> Submission:
        """Return what resumes the study after its job was lost, or begins it where the job had not."""
        arguments = tuple(argument for argument in self.arguments if argument not in ("--fresh", "--or-resume"))
        return replace(self, arguments=(*arguments, *(["--or-resume"] if self.config else [])), patience=_BUSY)

    def write(self, file: Path) -> None:
        """Write everything into one archive. Raises JobError where it is larger than a head takes.

        Ray would pack a folder too, but leave out what a .gitignore names, need a copy of all inputs in that folder,
        and not say which of the study's files make it too large.
        """
        job = {
            "study": self.study,
            "version": None if self.code else version("petl-search"),
            "config": self.config,
            "arguments": self.arguments,
            "inputs": [{"at": item.key, "digest": item.digest, "name": item.path.name} for item in self.inputs],
            "patience": self.patience,
        }
        sizes = {item.path: sum(path.stat().st_size for _, path in _files(item.path)) for item in self.inputs}
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1, strict_timestamps=False) as archive:
            archive.writestr("arrive.py", Path(entrypoint.__file__).read_text(encoding="utf-8"))
            archive.writestr("job.json", json.dumps(job))
            archive.mkdir("modules")
            for name, path in self.modules.items():
                archive.write(path, f"modules/{name}")
            for digest, top in {item.digest: item.path for item in self.inputs}.items():
                for name, path in _files(top):
                    archive.write(path, f"inputs/{digest}/{name}")
                    if file.stat().st_size > _LIMIT:
                        _refuse_size(sizes)
        if file.stat().st_size > _LIMIT:
            _refuse_size(sizes)


def _refuse_size(sizes: Mapping[Path, int]) -> NoReturn:
    named = ", ".join(f"{path} ({size / 2**20:,.0f} MiB)" for path, size in sizes.items())
    raise JobError(
        f"a Ray cluster takes {_LIMIT // 2**20} MiB with a job; the study's files are {named}. Put them on storage "
        "that every node mounts, name that path in the study, and if this machine mounts it too, give --mounted FOLDER"
    )


def pack(
    source: Path,
    *,
    overrides: Sequence[str] = (),
    arguments: Sequence[str] = (),
    mounted: Sequence[Path] = (),
    **settings: Any,
) -> Submission:
    """Read and check a study file, and return a submission with the files of this machine that it needs.

    What lies under `mounted` is at the same path on the cluster, and stays out. `settings` are fields of Submission.
    Raises ConfigError with every fault of the file, JobError for files that cannot be sent.
    """
    env = settings.get("env", {})
    with _elsewhere(env, [_text(source), *overrides]):
        config = load_config(source, overrides)
    faults = _private(config)
    dumped = config.model_dump(mode="json")
    there = [folder.expanduser().absolute() for folder in mounted]
    inputs = []
    for at in _path_keys(config):
        path = Path(_at(dumped, at))
        if any(path.is_relative_to(folder) for folder in there):
            continue
        if path.exists():
            inputs.append(Input(at, path, _digest(path)))
        elif path.is_relative_to(Path.cwd()):  # another absolute path may be one of the cluster
            faults.append(f"{'.'.join(at)}: no such file; received {path}")
    for name, uri in (("tracking.uri", config.tracking.uri), ("storage.database", config.storage.database)):
        file = sqlite_file(uri or "")
        if file and file.parent.exists() and not any(file.is_relative_to(folder) for folder in there):
            faults.append(f"{name}: a file of this machine, which the cluster does not see; received {file}")
    if faults:
        raise JobError(f"{source} cannot be sent:\n" + "\n".join(f"  {fault}" for fault in faults))
    modules = _modules(config)
    return Submission(config.study, dumped, tuple(arguments), tuple(inputs), modules, **settings)


def _text(source: Path) -> str:
    try:
        return source.read_text()
    except (OSError, UnicodeDecodeError):
        return ""  # load_config says it


@contextmanager
def _elsewhere(env: Mapping[str, str], texts: Sequence[str]) -> Iterator[None]:
    """Set the variables that these texts name within the context, as `env` has them, or to anything: a check of
    addresses needs them, and only the cluster has them.
    """
    named = {name for text in texts for name in REFERENCE.findall(text)}
    added = {name: env.get(name, "1") for name in named if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


def _private(config: StudyConfig) -> list[str]:
    addresses = {"tracking.uri": config.tracking.uri, "storage.database": config.storage.database}
    return [
        f"{name}: no password travels with a job: write ${{NAME}} for it, a variable of the cluster; "
        f"received {redacted(uri)}"
        for name, uri in addresses.items()
        if uri and without_password(uri) != uri
    ]


def _path_keys(config: StudyConfig) -> list[tuple[str, ...]]:
    """Return the keys of a study whose values may be paths of this machine."""
    found: list[tuple[str, ...]] = []
    if Path(config.backbone.model).is_absolute():
        found.append(("backbone", "model"))
    if config.task.get("data_dir"):
        found.append(("task", "data_dir"))
    found.extend(("task", "paths", split) for split in config.task.get("paths") or {})
    return [at for at in found if not _at(config.model_dump(mode="json"), at).startswith("package:")]


def _at(data: Any, at: Sequence[str]) -> str:
    for key in at:
        data = data[key]
    return str(data)


def _files(top: Path) -> list[tuple[str, Path]]:
    """Return the files of a folder, or the file itself, by their names in the archive."""
    if top.is_file():
        return [(top.name, top)]
    return [(f"{top.name}/{path.relative_to(top)}", path) for path in sorted(top.rglob("*")) if path.is_file()]


def _digest(top: Path) -> str:
    total = hashlib.sha256()
    for name, path in _files(top):
        total.update(f"{name}\0{sha256(path)}\0".encode())
    return total.hexdigest()[:24]


def _modules(config: StudyConfig) -> dict[str, Path]:
    """Return the files of a space of the user's own, and of what it imported from the current folder."""
    name = str(config.space.get("name", "unified"))
    if config.designs or name in SPACES:
        return {}
    tops = {module.partition(".")[0] for module in {*sys.modules, name.partition(":")[0]}} - {*_PACKAGES, "__main__"}
    here = Path.cwd()
    found: dict[str, Path] = {}
    for top in sorted(tops):
        file = getattr(sys.modules.get(top), "__file__", None)
        path = Path(file).absolute() if file else None
        if path is None or not path.is_relative_to(here) or path.is_relative_to(sys.prefix):
            continue  # installed; there too, or the job says so
        if path.name == "__init__.py":
            found |= {name: one for name, one in _files(path.parent) if "__pycache__" not in one.parts}
        else:
            found[path.name] = path
    return found


class _Client(JobSubmissionClient):
    """Ray's client, with a limit on how long it waits for an answer."""

    def _do_request(self, method: str, endpoint: str, **settings: Any) -> Any:
        return super()._do_request(method, endpoint, timeout=_REPLY, **settings)


class Cluster:
    """The jobs of a cluster, by the names of their studies.

    Every method raises ClusterAwayError where the cluster does not answer.
    """

    def __init__(self, address: str | None = None) -> None:
        self._url = (address or os.environ.get("RAY_API_SERVER_ADDRESS") or DEFAULT).rstrip("/")
        self.address = redacted(self._url)  # for people
        if urlsplit(self._url).scheme not in ("http", "https"):
            raise JobError(
                f"a cluster takes jobs at the address of its dashboard, such as {DEFAULT}; received {self.address}"
            )
        logging.getLogger(JobSubmissionClient.__base__.__module__).setLevel(logging.ERROR)
        use_token()
        self._client = self._connect()

    def _connect(self) -> JobSubmissionClient:
        url = urlsplit(self._url)
        with self._answering():
            # Ray's client would try for minutes
            port = url.port or {"http": 80, "https": 443}[url.scheme]
            socket.create_connection((url.hostname or "", port), timeout=_ANSWER).close()
            with _without("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS"):  # which Ray puts before what it is given
                return _Client(self._url)

    @contextmanager
    def _answering(self) -> Iterator[None]:
        try:
            yield
        except AuthenticationError as error:
            raise JobError(
                f"the cluster at {self.address} asks for its token (RAY_AUTH_MODE=token with "
                f"~/.ray/auth_token, $RAY_AUTH_TOKEN or $RAY_AUTH_TOKEN_PATH): {_first(error)}"
            ) from None
        except OSError as error:  # requests' are such, too
            raise ClusterAwayError(
                f"no Ray cluster answers at {self.address} (--address, $RAY_API_SERVER_ADDRESS): {_first(error)}"
            ) from error
        except RuntimeError as error:
            if "status code 404" in str(error) or "does not exist" in str(error):
                raise UnknownJobError(redacted(_first(error))) from error
            if re.search(r"status code 5\d\d", str(error)) and "already exists" not in str(error):
                raise ClusterAwayError(
                    f"the cluster at {self.address} has trouble: {redacted(_first(error))}"
                ) from error
            raise JobError(f"the cluster at {self.address} refuses: {redacted(_first(error))}") from error

    def newest(self, study: str) -> JobDetails:
        """Return the newest job of a study. Raises UnknownJobError where the cluster has none."""
        if found := self._all(study):
            return found[max(found)]
        raise UnknownJobError(
            f"the cluster at {self.address} knows no job of study {study!r}, or has forgotten it. "
            f"If the study was begun, resume with: {resume_command(study, address=self.address)}"
        )

    def _all(self, study: str) -> dict[int, JobDetails]:
        name = re.compile(rf"petl-{re.escape(study)}-(\d+)")
        with self._answering():
            jobs = {job.submission_id or "": job for job in self._client.list_jobs()}
        return {int(match[1]): job for name_, job in jobs.items() if (match := name.fullmatch(name_))}

    def job(self, name: str) -> JobDetails:
        """Return a job by its own name. Raises UnknownJobError."""
        with self._answering():
            return self._client.get_job_info(name)

    def log(self, name: str) -> str:
        """Return a job's output so far, without Ray's own lines. Raises UnknownJobError."""
        with self._answering():
            return _RAYS.sub("", redacted(self._client.get_job_logs(name)))

    def send(self, submission: Submission) -> str:
        """Start a job and return its name. Raises JobError where one of the study has not ended yet."""
        jobs = self._all(submission.study)
        if jobs and not (last := jobs[max(jobs)]).status.is_terminal():
            raise JobError(
                f"study {submission.study!r} {_ENDS[last.status]} as job {last.submission_id}: follow it by "
                f"`{_remote('logs', submission.study, '--follow', address=self.address)}`, or stop it first"
            )
        with tempfile.TemporaryDirectory() as folder, self._answering():
            archive = Path(folder) / "submission.zip"
            submission.write(archive)
            environment: dict[str, Any] = {
                "working_dir": str(archive),
                "env_vars": {_PATIENCE: str(_STOP), **submission.env},
            }
            if submission.code:
                root = Path(__file__).parents[2]
                environment |= {"py_modules": [str(root / name) for name in _PACKAGES], "excludes": ["__pycache__"]}
            name: str = self._client.submit_job(
                entrypoint=f"exec {shlex.quote(submission.python)} arrive.py",
                submission_id=f"petl-{submission.study}-{max(jobs, default=0) + 1}",
                runtime_env=environment,
                metadata={"study": submission.study, "options": submission.options},
            )
            return name

    def stop(self, name: str) -> JobDetails:
        """End a job as Ctrl-C would, and return it once it has ended, or after a minute."""
        with self._answering():
            self._client.stop_job(name)
        deadline = time.monotonic() + _STOP + _ANSWER
        while not (job := self.job(name)).status.is_terminal() and time.monotonic() < deadline:
            time.sleep(_POLL)
        return job


@contextmanager
def _without(*names: str) -> Iterator[None]:
    kept = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(kept)


def _remote(*words: str, address: str) -> str:
    return command(*words, "--address", address, remote=True)


def _first(error: object) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def follow(cluster: Cluster, name: str, say: Callable[[str], None], patience: float = _AWAY) -> JobDetails:
    """Say what a job says until it ends, and return the job. A head that goes away is waited for.

    Raises UnknownJobError where it comes back without the job, ClusterAwayError where it does not come back.
    """
    shown, away = 0, None
    while True:
        try:
            job = cluster.job(name)  # before its log: that of an ended one is whole
            log = cluster.log(name)
        except ClusterAwayError as error:
            if away is None:
                away = time.monotonic()
                say(f"{error}; waiting up to {patience / 60:g} minutes for it\n")
            elif time.monotonic() > away + patience:
                raise
            time.sleep(_POLL)
            continue
        if away is not None:
            away = None
            say("the cluster answers again\n")
        if job.status.is_terminal():
            if log[shown:]:
                say(log[shown:])
            return job
        whole = log.rfind("\n") + 1  # a line that is being written is said when it is whole
        if whole > shown:
            say(log[shown:whole])
            shown = whole
        time.sleep(max(_POLL, len(log) / _LARGE))


def outcome(study: str, job: JobDetails, address: str) -> tuple[str, int]:
    """Return how a job ended, in words with what to do next, and the exit code for it."""
    again = resume_command(study, address=address, options=(job.metadata or {}).get("options", ""))
    if not job.status.is_terminal():
        look = _remote("status", study, address=address)
        return f"study {study} is still ending, as job {job.submission_id}; look again by `{look}`", 1
    if job.status is JobStatus.SUCCEEDED:
        return f"study {study} is finished", 0
    if job.status is JobStatus.STOPPED:
        return f"study {study} was stopped; nothing that was finished is lost. Resume with: {again}", 130
    code = job.driver_exit_code or 1
    if job.driver_exit_code is None:
        reason = f": {_first(job.message)}" if job.message else ""
    else:
        reason = f" with exit code {code}; what it said last is above"
        if code == 127:
            reason += ". The cluster has no such interpreter: name one by --python"
    return redacted(f"the job of study {study} failed{reason}. Resume with: {again}"), code


def status(study: str, job: JobDetails, log: str) -> dict[str, Any]:
    """Return how a job is, JSON-ready: its state in a word, its seconds so far, and its last lines.

    `exit_code` is None while the job runs, and where the cluster does not know.
    """
    began, ended = (job.start_time or 0) / 1000, (job.end_time or 0) / 1000
    return {
        "study": study,
        "job": job.submission_id,
        "state": str(job.status).lower(),
        "ended": job.status.is_terminal(),
        "exit_code": job.driver_exit_code,
        "seconds": round((ended or time.time()) - began),
        "log": [line for line in log.splitlines() if line.strip()][-5:],
    }


def status_text(row: Mapping[str, Any]) -> str:
    """Describe a job for people, from what `status` returns."""
    word = f"{_ENDS[JobStatus(row['state'].upper())]}{f' (exit code {code})' if (code := row['exit_code']) else ''}"
    when = f"{'after' if row['ended'] else 'for'} {timedelta(seconds=row['seconds'])}"
    return "\n".join([f"study {row['study']} {word} {when}, job {row['job']}", *(f"  {line}" for line in row["log"])])


def watch(
    cluster: Cluster, name: str, say: Callable[[str], None], submission: Submission | None = None
) -> tuple[str, int]:
    """Follow a job to its end, and return how it ended, with an exit code.

    A job that the cluster lost is submitted again where its `submission` is known; this is how a study outlives the
    head of its cluster. Raises LeftJob for Ctrl-C, UnknownJobError for a lost job whose submission is not known.
    """
    study = name.removeprefix("petl-").rpartition("-")[0]
    try:
        while True:
            try:
                return outcome(study, follow(cluster, name, say), cluster.address)
            except UnknownJobError:
                if submission is None:
                    raise UnknownJobError(
                        f"the cluster has forgotten job {name} with its head. Resume with: "
                        f"{resume_command(study, address=cluster.address)}"
                    ) from None
            say(f"the cluster is back without job {name}; the study is resumed\n")
            submission = submission.resumed()
            name = _send_again(cluster, submission)
    except KeyboardInterrupt:
        raise LeftJob(
            f"left; job {name} continues. `{_remote('logs', study, '--follow', address=cluster.address)}` follows "
            f"it again, `{_remote('stop', study, address=cluster.address)}` stops it"
        ) from None


def _send_again(cluster: Cluster, submission: Submission) -> str:
    """Submit to a head that has just started, and may not take jobs yet."""
    attempts = Retrying(
        retry=retry_if_exception_type(ClusterAwayError),
        wait=wait_fixed(_POLL),
        stop=stop_after_delay(_AWAY),
        reraise=True,
    )
    return attempts(cluster.send, submission)


def submit(cluster: Cluster, submission: Submission, follow: bool, say: Callable[[str], None]) -> tuple[str, int]:
    """Start a job, and return what to tell the user, with an exit code; with `follow`, once the job has ended."""
    job = cluster.send(submission)
    if follow:
        say(f"job {job} at {cluster.address}\n")
        return watch(cluster, job, say, submission)
    study, address = submission.study, cluster.address
    return f"job {job}. See `{_remote('logs', study, '--follow', address=address)}`, status and stop likewise", 0


def resumption(
    cluster: Cluster, study: str, overrides: Sequence[str], env: Sequence[str], python: str, code: bool
) -> Submission:
    """Return what resumes a study, with the variables of its last job where the cluster still has that job."""
    known: dict[str, str] = {}
    with suppress(UnknownJobError):
        known = dict((cluster.newest(study).runtime_env or {}).get("env_vars", {}))
        known.pop(_PATIENCE, None)
    arguments = ("resume", study, *(word for override in overrides for word in ("--set", override)))
    return Submission(
        study, None, arguments, env={**known, **read_environment(env)}, python=python, code=code, patience=_BUSY
    )


def read_environment(texts: Sequence[str]) -> dict[str, str]:
    """Return the variables of --env KEY=VALUE. Raises JobError."""
    for text in texts:
        if not re.fullmatch(r"[A-Za-z_]\w*=.*", text, re.DOTALL):
            raise JobError(f"--env takes KEY=VALUE, such as PETL_SEARCH_HOME=/shared; received {redacted(text)!r}")
    return dict(text.split("=", 1) for text in texts)
