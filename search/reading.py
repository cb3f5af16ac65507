"""The commands that read studies, and write what was found. Each imports what it needs: `front` loads no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated
from unicodedata import normalize

import typer

from search.options import Name, Names, Uri
from search.results.choices import AdapterFormat, Against, Page, Report, Rows, print_json

app = typer.Typer()


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
        print_json([study.to_row() for study in found])
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
        print_json(study.trial_rows())
    elif trials:
        tables.print_trials(study)
    elif against:
        from search.results.lists import compare, print_against

        if format is Report.JSON:
            print_json(compare(study).to_rows())
        else:
            print_against(study, console.console())
    elif format is Report.JSON:
        print_json(study.to_dict() if trial is None else study.trial(trial).to_dict())
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
        print_json(found.to_rows())
    else:
        typer.echo(found.to_frame().to_csv(index=False), nl=False)
    if plot:
        # stdout may be a file of JSON
        typer.echo(f"plot: {files.plot(study, plot, found)}", err=True)


@app.command()
def query(
    name: Name,
    where: Annotated[
        str, typer.Option(help="Which trials and references: an expression over columns.", metavar="EXPRESSION")
    ] = "",
    sort: Annotated[
        list[str] | None,
        typer.Option(help="A column to sort by, -NAME for the largest first; may be repeated.", metavar="[-]NAME"),
    ] = None,
    columns: Annotated[
        str, typer.Option(help="Columns, separated by commas. Default: all in JSON and CSV.", metavar="NAME,NAME")
    ] = "",
    limit: Annotated[int | None, typer.Option(help="At most so many rows.", min=0)] = None,
    format: Annotated[Rows, typer.Option(help="How to write it.")] = Rows.TABLE,
    uri: Uri = None,
) -> None:
    """Select trials and references, in every state, by what they are and what they measured.

    Columns are the flat parameters that MLflow shows (ffn.size, prefix.length, learning_rate ...), measurements,
    costs, state, kind, test_... An expression compares them with numbers and quoted text. What a trial does not have
    matches nothing.

    Example: petl-search query demo --where "stored_percent < 1 and ffn.size > 0" --sort -accuracy --limit 10

    Example: petl-search query demo --where "state == 'fail' or kind == 'reference'" --columns trial,name,state
    """
    from search.results.query import load_study
    from search.results.selection import columns_of, select

    study = load_study(name, uri)
    asked = [column.strip() for column in columns.split(",") if column.strip()]
    rows = select(study.flat_rows(), where, sort or (), asked, limit)
    if format is Rows.JSON:
        print_json(rows)
    elif format is Rows.CSV:
        import pandas as pd

        typer.echo(pd.DataFrame(rows, columns=asked or None).to_csv(index=False), nl=False)
    elif rows:
        from search.results.tables import print_rows

        used = [*columns_of(where), *(key.removeprefix("-") for key in sort or ())]
        usual = ("trial", "state", study.objectives[0].name, "stored_parameters", "stored_percent", *used, "name")
        print_rows(rows, asked or list(dict.fromkeys(usual)))
    else:
        typer.echo(f"none of {len(study.all_trials)} trials and references matches")


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
        print_json(to_dict(document([load_study(name, uri) for name in names])))
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
        print_json(rows)
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
        print_json({"model": model, "design": parsed.describe(), "labels": labels, **counts.to_dict()})
        return
    from search.results.console import console
    from search.results.counts import counts_table

    console().print(counts_table(counts, parsed.describe(), labels))


@app.command()
def ui(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="[NAME]",
            help="A study. Default: the newest.",
            callback=lambda name: name and normalize("NFC", name),
            show_default=False,
        ),
    ] = None,
    port: Annotated[int, typer.Option(help="Where to listen.", min=1, max=65_535)] = 5000,
    host: Annotated[
        str, typer.Option(help="The address to listen on; another one asks for accounts.", metavar="ADDRESS")
    ] = "127.0.0.1",
    uri: Uri = None,
    no_open: Annotated[bool, typer.Option("--no-open", help="Only print the address.")] = False,
) -> None:
    """Serve MLflow's pages, until Ctrl-C, and open the front of a study there.

    Without a terminal, or where the terminal has no screen beside it, the address is only printed. Of a store that is a
    server, the address is all there is.

    For this machine only, unless --host says otherwise: then everybody needs an account, the first of which is
    admin with the password $MLFLOW_AUTH_ADMIN_PASSWORD.

    Example: petl-search ui reviews --port 5001
    """
    from search.tracking.server import has_browser, serve

    serve(uri, port, host, name, opens=has_browser() and not no_open)
