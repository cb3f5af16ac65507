"""The command `petl-search`. Commands import what they need: `front` loads no torch, `--help` loads nothing."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from petl.errors import UserError, UserNotice
from search.options import Address, Code, Environment, Follow, JobsAddress, Name, Names, Overrides, Python, Uri
from search.results.choices import AdapterFormat, Against, Page, Report, Rows

if TYPE_CHECKING:
    from search.results.query import Study


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


app = typer.Typer(
    cls=_Commands,
    help="Search the design space of parameter-efficient transfer learning, and read what was found.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


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
def status(name: Name, address: JobsAddress = None) -> None:
    """Show the state of a submitted study.

    Example: petl-search status demo --address http://head:8265
    """
    from search.jobs import client as jobs

    cluster = jobs.Cluster(address)
    job = cluster.newest(name)
    typer.echo(jobs.status(name, job, cluster.log(job.submission_id or "")))


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


@app.command()
def ls(
    format: Annotated[Report, typer.Option(help="How to write it.")] = Report.TABLE,
    uri: Uri = None,
) -> None:
    """List the studies, the newest first.

    Example: petl-search ls
    """
    from search.results import console, tables
    from search.results.query import load_study
    from search.storage.commands import command
    from search.storage.locations import store_uri
    from search.tracking.reader import studies

    found = [load_study(summary.name, uri) for summary in studies(store_uri(uri))]
    if format is Report.JSON:
        _print_json([study.to_row() for study in found])
    elif found:
        console.console().print(tables.studies_table(found))
    else:
        typer.echo(f"no studies yet; `{command('run', 'STUDY.yaml')}` starts one")


@app.command()
def show(
    name: Name,
    trial: Annotated[int | None, typer.Argument(metavar="[TRIAL]", help="A trial's number.")] = None,
    against: Annotated[
        Against | None, typer.Option(help="Put a list of designs beside the paper's table that its file names.")
    ] = None,
    trials: Annotated[bool, typer.Option("--trials", help="List all trials, in every state.")] = False,
    format: Annotated[Report, typer.Option(help="How to write it.")] = Report.TABLE,
    uri: Uri = None,
) -> None:
    """Show a study, or one of its trials.

    Example: petl-search show demo 12

    Example: petl-search show demo --trials

    Example: petl-search show table12-xsum-small --against paper
    """
    from search.results import console, tables
    from search.results.query import load_study

    if (against or trials) and trial is not None:
        raise typer.BadParameter("--against and --trials are of a whole study: leave the trial's number out")
    study = load_study(name, uri)
    if trials and format is Report.JSON:
        _print_json(study.trial_rows())
    elif trials:
        tables.print_trials(study)
    elif against:
        from search.results.lists import compare, print_against

        if format is Report.JSON:
            _print_json(compare(study).to_rows())
        else:
            print_against(study, console.console())
    elif format is Report.JSON:
        _print_json(study.to_dict() if trial is None else study.trial(trial).to_dict())
    elif trial is None:
        tables.print_study(study)
    else:
        tables.print_trial(study.trial(trial), study=study.summary.status)


@app.command()
def front(
    name: Name,
    max_parameters: Annotated[
        str | None,
        typer.Option(help="At most this many stored parameters: 200000, or 1% of the model.", metavar="N|P%"),
    ] = None,
    fdr: Annotated[
        str | None,
        typer.Option(
            help="Those that replicates show to be on the front of true means, with at most this expected share of "
            "false ones: 5%.",
            metavar="P%",
        ),
    ] = None,
    format: Annotated[Rows, typer.Option(help="How to write it.")] = Rows.TABLE,
    plot: Annotated[
        Path | None, typer.Option(help="Also draw it into this file (.png, .pdf, .svg).", metavar="FILE")
    ] = None,
    uri: Uri = None,
) -> None:
    """Print the Pareto front, and draw it.

    Example: petl-search front demo --max-parameters 1% --plot front.png
    """
    from search.results import files, tables
    from search.results.query import load_study

    study = load_study(name, uri)
    found = study.front(max_parameters, fdr=fdr)
    if format is Rows.TABLE:
        tables.print_front(study, found)
    elif format is Rows.JSON:
        _print_json(found.to_rows())
    else:
        typer.echo(found.to_frame().to_csv(index=False), nl=False)
    if plot:
        # stdout may be a file of JSON
        typer.echo(f"plot: {files.plot(study, plot, found)}", err=True)


@app.command()
def report(
    names: Names,
    out: Annotated[
        Path | None,
        typer.Option(help="The page. Default: NAME.html here, report.html for several.", metavar="FILE.html"),
    ] = None,
    format: Annotated[Page, typer.Option(help="A page, or what it shows as JSON on stdout.")] = Page.HTML,
    watch: Annotated[
        bool, typer.Option("--watch", help="Write the page again until the studies end; an open one follows.")
    ] = False,
    every: Annotated[int, typer.Option(help="With --watch: seconds from one page to the next.", min=1)] = 30,
    uri: Uri = None,
) -> None:
    """Write a study, or several side by side, as one page that a browser shows without a network.

    Example: petl-search report demo --out page.html

    Example: petl-search report demo --watch
    """
    from search.results.query import load_study
    from search.results.report.data import document, to_dict
    from search.results.report.watch import write_pages

    if format is Page.JSON and (out or watch):
        raise typer.BadParameter("--format json goes to stdout, once: leave --out and --watch out")
    if format is Page.JSON:
        _print_json(to_dict(document([load_study(name, uri) for name in names])))
        return
    path = out or Path(f"{names[0] if len(names) == 1 else 'report'}.html")
    write_pages(names, path, uri, every if watch else None, say=lambda text: typer.echo(text, err=True))
    typer.echo(f"page: {path.absolute()}")


@app.command()
def export(
    name: Name,
    trial: Annotated[int, typer.Argument(metavar="TRIAL", help="A trial's number.")],
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="A folder that is new or empty.")],
    format: Annotated[
        AdapterFormat, typer.Option(help="Our own, or Hugging Face PEFT's, which cannot express every design.")
    ] = AdapterFormat.PETL,
    uri: Uri = None,
) -> None:
    """Write a trial's trained adapter as a folder.

    `petl.load_model` reads it, or with --format peft PEFT's `PeftModel.from_pretrained`.

    Example: petl-search export demo 12 my-adapter
    """
    from search.results.query import load_study

    study = load_study(name, uri)
    folder = study.trial(trial).export(directory, format)
    if format is AdapterFormat.PEFT:
        typer.echo(f"{folder}: load it in Python by peft.PeftModel.from_pretrained(base_model, {str(folder)!r})")
        typer.echo(f"base_model is {study.summary.info.backbone.model}, loaded by transformers for the study's task")
    else:
        typer.echo(f"{folder}: load it in Python by petl.load_model({str(folder)!r})")


@app.command()
def export_table(
    name: Name, file: Annotated[Path, typer.Argument(metavar="FILE.json", help="The table; replaced if it is there.")]
) -> None:
    """Write a study's fully trained trials as a table for `replay`.

    It reads the study's own records, in $PETL_SEARCH_DATABASE or under $PETL_SEARCH_HOME.

    Example: petl-search export-table demo demo.json
    """
    from search.optimizer.simulation.table import Table
    from search.results.replays import write_table
    from search.storage.locations import database_url
    from search.storage.studies import open_study

    table = Table.of(name, open_study(database_url(), name, writes=False))
    write_table(table, file)
    typer.echo(f"{len(table.rows)} trials in {file}")


@app.command()
def replay(
    file: Annotated[Path, typer.Argument(metavar="FILE.json", help="A table of export-table.")],
    samplers: Annotated[
        list[str] | None,
        typer.Option(
            "--sampler", help="Which to compare; may be repeated. Default: random, tpe, front, or nsga2 for two costs."
        ),
    ] = None,
    schedulers: Annotated[
        list[str] | None,
        typer.Option("--scheduler", help="Which to compare; may be repeated. Default: none, asha, halving."),
    ] = None,
    trials: Annotated[int, typer.Option(help="Of each search. Default: half as many as the table has.", min=0)] = 0,
    workers: Annotated[int, typer.Option(help="Simulated ones.", min=1)] = 4,
    seeds: Annotated[int, typer.Option(help="Searches of each kind.", min=1)] = 5,
    values: Annotated[
        list[str] | None,
        typer.Option(
            "--set", help="An option of the schedulers, such as eta=2; may be repeated.", metavar="OPTION=VALUE"
        ),
    ] = None,
    format: Annotated[Report, typer.Option(help="How to write it.")] = Report.TABLE,
) -> None:
    """Compare settings on what a finished study has shown, without training.

    Every search is given the table's nearest trials for what it proposes. `share` is the hypervolume of the front it
    finds, of that of the whole table; epochs and hours are those it would have trained.

    Example: petl-search replay demo.json --scheduler none --scheduler halving --workers 16
    """
    from search.results.replays import compare, print_compared, read_table, rule_options

    table = read_table(file)
    rows = compare(
        table,
        samplers or ["random", "tpe", "front" if len(table.names) == 2 else "nsga2"],
        schedulers or ["none", "asha", "halving"],
        trials=trials or max(1, len(table.rows) // 2),
        workers=workers,
        seeds=seeds,
        values=rule_options(values or ()),
    )
    if format is Report.JSON:
        _print_json(rows)
    else:
        print_compared(table, rows)


@app.command()
def count(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Hub id, folder, config.json, or package:NAME/path.")],
    design: Annotated[str, typer.Argument(metavar="DESIGN", help="A named design, with + for unions.")],
    labels: Annotated[int, typer.Option(help="Labels of the task head; 0 leaves the head out.", min=0)] = 0,
    format: Annotated[Report, typer.Option(help="How to write it.")] = Report.TABLE,
) -> None:
    """Count a design's parameters, without weights.

    Example: petl-search count facebook/bart-large mam:length=30,size=512,scale=4
    """
    from petl.backbones.count import count as count_parameters
    from petl.backbones.model import describe
    from petl.presets import parse

    parsed = parse(design)
    counts = count_parameters(parsed, describe(model, weights=False), labels)
    if format is Report.JSON:
        _print_json({"model": model, "design": parsed.describe(), "labels": labels, **counts.to_dict()})
        return
    from search.results.console import console
    from search.results.counts import counts_table

    console().print(counts_table(counts, parsed.describe(), labels))


@app.command()
def ui(
    port: Annotated[int, typer.Option(help="Where to listen.", min=1, max=65_535)] = 5000,
    host: Annotated[
        str, typer.Option(help="The address to listen on; another one asks for accounts.", metavar="ADDRESS")
    ] = "127.0.0.1",
    uri: Uri = None,
) -> None:
    """Serve MLflow's pages, until Ctrl-C.

    For this machine only, unless --host says otherwise: then everybody needs an account, the first of which is
    admin with the password $MLFLOW_AUTH_ADMIN_PASSWORD.

    Example: petl-search ui --port 5001
    """
    from search.tracking.server import serve

    serve(uri, port, host)


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


def _print_json(value: Any) -> None:
    import json

    typer.echo(json.dumps(value, indent=1))


def main() -> None:
    """Run a command: a UserError is printed in one line, any other exception as a traceback without passwords."""
    warnings.showwarning = _show_warning  # type: ignore[assignment]
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(130)
    except UserError as error:
        from petl.untrusted import printable
        from search.storage.address import redacted

        typer.echo(f"petl-search: {printable(redacted(error))}", err=True)
        sys.exit(error.exit_code)
    except Exception:
        sys.excepthook = _show_traceback  # here, since typer sets one of its own
        raise


def _show_traceback(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    import traceback

    from petl.untrusted import printable
    from search.storage.address import redacted

    typer.echo(printable(redacted("".join(traceback.format_exception(kind, error, trace)))), err=True, nl=False)


def _show_warning(message: Warning | str, kind: type[Warning], file: str, line: int, *_: object) -> None:
    ours = issubclass(kind, UserNotice)
    typer.echo(f"petl-search: {message}" if ours else warnings.formatwarning(message, kind, file, line), err=True)


if __name__ == "__main__":
    main()
