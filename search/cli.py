"""The command `petl-search`. Commands import what they need: `front` loads no torch, `--help` loads nothing."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Annotated, Any, Final, NoReturn

import typer
from typer.core import TyperGroup

from petl.errors import UserError, UserNotice
from search import reading
from search.options import Address, Code, Environment, Follow, JobsAddress, Name, Overrides, Python
from search.results.choices import Report, print_json

if TYPE_CHECKING:
    from search.results.query import Study


_INTERRUPTED: Final = 130  # as shells have it for SIGINT


class _Commands(TyperGroup):
    """The commands. An option that has a new name is refused with it."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except Exception as error:
            from search.trials.upgrade import OPTIONS

            option = getattr(error, "option_name", "")  # of click's NoSuchOption; typer has a copy of click
            if option not in OPTIONS:
                raise
            raise UserError(f"the option {option} is called {OPTIONS[option]} now") from None


def _version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        typer.echo(f"petl-search {version('petl-search')}")
        raise typer.Exit


app = typer.Typer(
    cls=_Commands,
    help="Search the design space of parameter-efficient transfer learning, and read what was found.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@app.callback()
def petl_search(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Search the design space of parameter-efficient transfer learning, and read what was found."""


@app.command()
def init(
    model: Annotated[str, typer.Option(help="Hub id, folder, or package:NAME/path.", metavar="MODEL")],
    data: Annotated[Path, typer.Option(help="Rows: csv, tsv, json, jsonl or parquet.", metavar="FILE")],
    out: Annotated[Path | None, typer.Option(help="Default: NAME.yaml, after the rows.", metavar="STUDY.yaml")] = None,
    kind: Annotated[
        str | None, typer.Option(help="Kind of task. Default: by the columns and the model.", metavar="KIND")
    ] = None,
    column: Annotated[
        list[str] | None,
        typer.Option(
            help="Which column is the text, label ...; may be repeated. Default: by looking.", metavar="ROLE=NAME"
        ),
    ] = None,
    hours: Annotated[float, typer.Option(help="What the study may take on this machine.", min=0.01)] = 1.0,
    no_measure: Annotated[bool, typer.Option("--no-measure", help="Time no design for the budget.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace the study file.")] = False,
) -> None:
    """Write a study file for a model and a file of rows, after a look at both.

    It says beside each choice why it is one: the kind of task, the columns, lengths, and a budget by a short
    measurement.

    Example: petl-search init --model roberta-base --data reviews.csv

    Example: petl-search init --model gpt2 --data chats.jsonl --column source=prompt --column target=answer --hours 8
    """
    from search.storage.commands import command
    from search.study.draft import DraftError, draft, place_of, write

    path = place_of(str(data), out, force)
    with _loading("loading libraries"):
        from search.study.resolve import load_libraries

        load_libraries()
    columns = dict(text.partition("=")[::2] for text in column or ())
    if not all(columns.values()):
        raise DraftError(
            f"a column is named by ROLE=NAME, such as --column text=review; received {', '.join(column or ())}"
        )
    write(draft(model, str(data), kind, columns, hours, not no_measure, typer.echo), path)
    typer.echo(f"{path}: read it, then `{command('run', str(path))}`")


@app.command()
def run(
    study: Annotated[Path, typer.Argument(metavar="STUDY.yaml", help="A study file.")],
    overrides: Overrides = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Delete a study of that name first.")] = False,
    or_resume: Annotated[
        bool, typer.Option("--or-resume", help="Resume a study of that name, if there is one.")
    ] = False,
    address: Address = None,
) -> None:
    """Run a study: search, test scores, plot.

    Example: petl-search run spaces/studies/demo.yaml --set budget.trials=48

    Example, on a node of a Ray cluster: petl-search run study.yaml --or-resume --address auto
    """
    from search.config.text import read
    from search.storage.address import require_no_password

    require_no_password(overrides or ())
    read(study)  # a file that cannot be read is said before all that takes seconds to import
    with _loading(f"reading {study}"):
        from search.config.loading import load_config
        from search.study.inputs import require_inputs
    config = load_config(study, overrides or ())
    require_inputs(config)
    with _loading("loading libraries"):
        from search.study.resolve import load_libraries
        from search.study.run import run as run_study

        load_libraries()
    _end(run_study(config, fresh=fresh, or_resume=or_resume, address=address))


@app.command()
def resume(
    name: Name,
    overrides: Overrides = None,
    address: Address = None,
    env: Environment = None,
    python: Python = "python",
    code: Code = False,
    follow: Follow = False,
) -> None:
    """Resume an interrupted study.

    Killed or stopped at any moment, it loses nothing that was finished; a larger budget continues a
    finished one. At an http address it is resumed as a job, as submit has it, and takes submit's options.

    Example: petl-search resume demo --set budget.trials=48

    Example: petl-search resume demo --address http://head:8265 --follow
    """
    if address and address.startswith(("http://", "https://")):
        from search.jobs import client as jobs

        cluster = jobs.Cluster(address)
        submission = jobs.resumption(cluster, name, overrides or (), env or (), python, code)
        _end_of_job(jobs.submit(cluster, submission, follow, _say))
        return
    if env or follow or code or python != "python":
        raise typer.BadParameter("--env, --python, --code and --follow are for --address http://HEAD:8265")
    from search.storage.address import require_no_password

    require_no_password(overrides or ())
    with _loading("loading libraries"):
        from search.study.resolve import load_libraries
        from search.study.run import resume as resume_study

        load_libraries()
    _end(resume_study(name, overrides=overrides or (), address=address))


@app.command()
def submit(
    study: Annotated[Path, typer.Argument(metavar="STUDY.yaml", help="A study file.")],
    overrides: Overrides = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Delete a study of that name first.")] = False,
    or_resume: Annotated[
        bool, typer.Option("--or-resume", help="Resume a study of that name, if there is one.")
    ] = False,
    address: JobsAddress = None,
    env: Environment = None,
    python: Python = "python",
    code: Code = False,
    mounted: Annotated[
        list[Path] | None,
        typer.Option(help="A folder that the cluster has at the same path: stays out.", metavar="DIR"),
    ] = None,
    follow: Follow = False,
) -> None:
    """Run a study on a cluster, as a Ray job sent from here.

    The file is checked here; a model folder, rows and a space of your own that lie here go along (100 MiB at
    most) to $PETL_SEARCH_HOME of the cluster. With --follow it ends as the study does, and a head that comes
    back without the job is given it again.

    Example: petl-search submit study.yaml --address http://head:8265 --env PETL_SEARCH_HOME=/shared/petl --follow
    """
    from search.config.text import read

    read(study)
    with _loading("loading libraries"):
        from search.jobs import client as jobs

    if fresh and or_resume:
        raise jobs.JobError("--fresh and --or-resume contradict each other; give one")
    flags = [flag for flag, given in (("--fresh", fresh), ("--or-resume", or_resume)) if given]
    submission = jobs.pack(
        study,
        overrides=overrides or (),
        arguments=flags,
        mounted=mounted or (),
        env=jobs.read_environment(env or ()),
        python=python,
        code=code,
    )
    _end_of_job(jobs.submit(jobs.Cluster(address), submission, follow, _say))


@app.command()
def status(
    name: Name,
    format: Annotated[Report, typer.Option(help="How to write it.")] = Report.TABLE,
    address: JobsAddress = None,
) -> None:
    """Show the state of a submitted study.

    Example: petl-search status demo --address http://head:8265
    """
    from search.jobs import client as jobs

    cluster = jobs.Cluster(address)
    job = cluster.newest(name)
    row = jobs.status(name, job, cluster.log(job.submission_id or ""))
    if format is Report.JSON:
        print_json(row)
    else:
        typer.echo(jobs.status_text(row))


@app.command()
def logs(
    name: Name,
    follow: Follow = False,
    address: JobsAddress = None,
) -> None:
    """Print the log of a submitted study; with --follow, end as the study does.

    Example: petl-search logs demo --follow --address http://head:8265
    """
    from search.jobs import client as jobs

    cluster = jobs.Cluster(address)
    job = cluster.newest(name).submission_id or ""
    if follow:
        _end_of_job(jobs.watch(cluster, job, _say))
    else:
        typer.echo(cluster.log(job), nl=False)


@app.command()
def stop(name: Name, address: JobsAddress = None) -> None:
    """Stop a submitted study, as Ctrl-C would: nothing that was finished is lost.

    Example: petl-search stop demo --address http://head:8265
    """
    from search.jobs.client import Cluster, JobError, outcome

    cluster = Cluster(address)
    job = cluster.newest(name)
    if job.status.is_terminal():
        raise JobError(f"nothing to stop: {outcome(name, job, cluster.address)[0]}")
    job = cluster.stop(job.submission_id or "")
    typer.echo(outcome(name, job, cluster.address)[0])


@contextmanager
def _loading(what: str) -> Iterator[None]:
    """Say `what` is done within the context, which imports, and which Ctrl-C ends at once."""
    typer.echo(what)
    from search.study.interrupts import ending_at_once

    with ending_at_once():
        yield


def _end(study: Study) -> None:
    """Print what a run ended with; exit with 1 where nothing came out of it."""
    from search.results import tables

    tables.print_ending(study)
    if not len(study.front()):
        raise typer.Exit(1)


def _end_of_job(ending: tuple[str, int]) -> None:
    """Print how a job ended; its exit code becomes ours."""
    message, code = ending
    typer.echo(message, err=bool(code))
    if code:
        raise typer.Exit(code)


def _say(text: str) -> None:
    typer.echo(text, nl=False)


def main() -> None:
    """Run a command: a UserError is printed in one line, any other exception as a traceback without passwords."""
    warnings.showwarning = _show_warning  # type: ignore[assignment]
    try:
        app()
    except KeyboardInterrupt:
        _leave(_INTERRUPTED)
    except UserError as error:
        from petl.untrusted import printable
        from search.storage.address import redacted

        typer.echo(f"petl-search: {printable(redacted(error))}", err=True)
        if error.exit_code == _INTERRUPTED:
            _leave(_INTERRUPTED)
        sys.exit(error.exit_code)
    except Exception:
        sys.excepthook = _show_traceback  # here, since typer sets one of its own
        raise


def _leave(code: int) -> NoReturn:
    """End the process now: all is put away, and Python would take seconds to take down the libraries."""
    import os

    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _show_traceback(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    import traceback

    from petl.untrusted import printable
    from search.storage.address import redacted

    typer.echo(printable(redacted("".join(traceback.format_exception(kind, error, trace)))), err=True, nl=False)


def _show_warning(message: Warning | str, kind: type[Warning], file: str, line: int, *_: object) -> None:
    ours = issubclass(kind, UserNotice)
    typer.echo(f"petl-search: {message}" if ours else warnings.formatwarning(message, kind, file, line), err=True)


app.registered_commands += reading.app.registered_commands


if __name__ == "__main__":
    main()
