"""What a study has come to, on the terminal: its front, its references, its trials, and what failed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any, Final

from rich.console import Console
from rich.table import Table
from rich.text import Text

from petl.head import PROBE
from petl.measurements import SHARES
from search.results.console import add, console, count_states, failures, new_table, say, state_text, why_empty
from search.results.lists import print_list
from search.storage.address import without_password
from search.storage.commands import command
from search.storage.locations import StudyHome, store_uri
from search.tracking.schema import FACTS, DiskUse
from search.trials.formats import (
    amount_text,
    bytes_text,
    count_text,
    heading,
    model_text,
    percent_text,
    score_text,
    seconds_text,
    spread_text,
    value_text,
)
from search.trials.naming import different_settings, flat_parameters, setting_text

if TYPE_CHECKING:
    from search.results.query import ParetoFront, Study, Trial
    from search.trials.objectives import Objectives
    from search.trials.record import SeedSummary


_REASONS: Final = 5  # of failures, and trials named with each
_USUAL: Final = ("accuracy", "rouge2", "sacrebleu")  # what people compare by
_SEED_HEADINGS: Final = ("mean ± spread", "seeds", "corrected for luck", "on the true front")
_SPENT: Final[Mapping[str, str]] = {  # keys of the section budget, with their units
    "hours": "hours",
    "device_hours": "device-hours",
    "money": "in money",
}


def front_table(trials: Sequence[Trial], objectives: Objectives, title: str = "", first: str = "trial") -> Table:
    """Return a table of trials. Only the design gives way to a narrow terminal.

    `first` is the heading of the first column and the key of `query.ROW` that fills it: "trial", or "name" for
    references. Further columns are scores on the whole validation split, where the search used a sample of it; the
    task's usual score on the test split, where the search used another one; the parameters of trained heads; costs
    other than stored parameters and seconds; published facts that have a heading; settings of training and head that
    differ.
    """
    score, *costs = objectives
    table = new_table(title)
    table.add_column(first, justify="right" if first == "trial" else "left", no_wrap=True)
    table.add_column("design", overflow="fold", min_width=10)
    further = [cost.name for cost in costs if heading(cost.name)]
    whole = any(trial.validation_score not in (None, trial.score) for trial in trials)
    usual = next((name for name in _USUAL if name != score.name and any(name in t.row.test for t in trials)), "")
    facts = [fact for name, fact in FACTS.items() if fact.heading and any(name in t.row.facts for t in trials)]
    scores = (score.name, "whole\nvalidation" if whole else "", "test", usual and f"test\n{usual}")
    heads = any(trial.values.get("head_parameters") for trial in trials)
    settings = _settings(trials)
    headings = [heading(name).replace(" ", "\n") for name in further] + [fact.heading for fact in facts]
    size = ("parameters", "%", "head" if heads else "")
    for column in (*scores, *size, "seconds", *headings, *(name.replace("_", "\n") for name in settings)):
        if column:
            table.add_column(column, justify="right", no_wrap=True)
    for trial in trials:
        row = replace(trial, objectives=objectives).to_row()
        named = row["name"] in (row["design"], row[first])
        design = row["design"] if named else ": ".join(filter(None, (row["name"], row["design"])))
        add(
            table,
            str(row[first]),
            design,
            score_text(row["score"]),
            *([score_text(trial.validation_score)] if whole else []),
            score_text(row["test_score"]),
            *([score_text(trial.row.test.get(usual))] if usual else []),
            count_text(row["stored_parameters"]),
            percent_text(row["stored_percent"]),
            *([count_text(trial.values.get("head_parameters"))] if heads else []),
            seconds_text(row["seconds"]),
            *(amount_text(row[name]) for name in further),
            *(fact.text(trial.row.facts[fact.name]) if fact.name in trial.row.facts else "" for fact in facts),
            *(setting_text(trial.configuration, name) for name in settings),
        )
    return table


def _settings(trials: Sequence[Trial]) -> list[str]:
    """Return the settings of training and head that tell trials apart."""
    return different_settings([trial.configuration for trial in trials if trial.configuration])


def seeds_table(trials: Sequence[Trial], title: str = "") -> Table:
    """Return a table of what replicates say of the trials, in their order."""
    table = new_table(title)
    for column in ("trial", *_SEED_HEADINGS):
        table.add_column(column, justify="right", no_wrap=True)
    for trial in trials:
        if trial.seed_summary:
            add(table, str(trial.number), *_seed_cells(trial.seed_summary))
    return table


def print_front(study: Study, front: ParetoFront, out: Console | None = None) -> None:
    """Print the front and the references beside it; for an empty front why it is empty, and what failed."""
    out = out or console()
    if len(front):
        out.print(front_table(front.trials, front.objectives, f"front of {study.name}"))
        for line in front.beaten:
            say(out, line, "bold")
        if any(trial.seed_summary for trial in front):
            out.print(seeds_table(front.trials, f"{front.objectives[0].name} over all seeds"))
    else:
        say(out, why_empty(study, front))
        _print_failures(study, out)
    _print_references(study, out)


def print_rows(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> None:
    """Print these columns of selected rows, as they are."""
    table = new_table("")
    for name in columns:
        number = all(isinstance(row.get(name), int | float) or row.get(name) is None for row in rows)
        table.add_column(name, justify="right" if number else "left", overflow="fold")
    for row in rows:
        add(table, *(_cell(row.get(name)) for name in columns))
    console().print(table)


def _cell(value: Any) -> str:
    return "" if value is None else value_text(value) if isinstance(value, int | float) else str(value)


def print_ending(study: Study, out: Console | None = None) -> None:
    """Print what a run ends with: the front, the references, the picture and the page, and what to type next."""
    out = out or console()
    front, listed = study.front(), study.summary.info.designs
    if listed:
        _print_list(study, out)
    else:
        print_front(study, front, out)
    places = StudyHome(study.name)
    for what, file in (("plot", places.front("png")), ("page", places.page)):
        if file.is_file():
            say(out, f"{what}: {file}")
    if len(front):
        share = study.objectives[0].name in SHARES
        best = front.best(within=0.01 if share else 0.0)
        smallest = best.number
        compared = study.summary.info.paper
        where = () if study.uri == store_uri() else ("--uri", without_password(study.uri))
        rows: dict[tuple[str, ...], str] = {
            ("front", study.name, "--max-parameters", "1%"): "the front under a limit",
            **({("show", study.name, "--against", "paper"): "beside what the paper prints"} if compared else {}),
            ("show", study.name, str(smallest)): f"all about the {'smallest within a point of the ' * share}best",
            **(
                {("front", study.name, "--fdr", "5%"): "what replicates have shown to be on it"}
                if front[0].seed_summary
                else {}
            ),
            **_export(study, front, best),
        }
        if not study.uri.startswith(("http://", "https://")):
            rows[("ui",)] = "every run side by side, in MLflow"
        commands = {command(*words, *where): what for words, what in rows.items()}
        width = max(map(len, commands))
        say(out, "next:")
        for text, what in commands.items():
            say(out, f"  {text.ljust(width)}   {what}")


def _export(study: Study, front: ParetoFront, best: Trial) -> dict[tuple[str, ...], str]:
    """Return what is offered to load: the best, unless a baseline is at least as good; then the probe, if it is."""
    better = set(front.dominating(best)) & {"majority", PROBE}
    if not better:
        return {("export", study.name, str(best.number), "my-adapter"): "its adapter, ready to load"}
    probes = [t for t in front.references if t.name in better and t.measurements and t.measurements.head_parameters]
    return {("export", study.name, str(probe.number), "my-probe"): "the probe, ready to load" for probe in probes}


def print_study(study: Study, out: Console | None = None) -> None:
    """Print what a study searched or listed, how far it is, its front or rows, the references, and what failed."""
    out = out or console()
    info, front = study.summary.info, study.front()
    facts = {
        "model": info.backbone.model,
        "task": info.task.name,
        "space": info.space.name,
        "limits": ", ".join(f"{name} <= {limit:g}" for name, limit in info.constraints.items()),
        "trials": count_states(study),
        "disk": _disk(study.summary.disk),
        "spent": _spent(study),
    }
    out.print(Text.assemble((study.name, "bold"), f"  {study.summary.status.lower()}"))
    for name, fact in facts.items():
        if fact:
            say(out, f"  {name:<7} {fact}")
    if info.designs:
        _print_list(study, out)
        return
    print_front(study, front, out)
    if len(front):
        say(out, f"hypervolume {front.hypervolume:.4f}: compares studies of the same model and objectives")
        _print_failures(study, out)


def print_trial(trial: Trial, out: Console | None = None, *, study: str = "RUNNING") -> None:
    """Print everything that is known of a trial. `study` is the status of its study, as `state_text` takes it."""
    out = out or console()
    record, measured = trial.record, trial.measurements
    title = f"trial {trial.number}" + (f", reference {record.reference}" if record.reference else "")
    say(out, f"{title}  {trial.name}  {state_text(trial.state, study)}", "bold")
    if record.failure:
        say(out, record.failure)
    if trial.row.withdrawn:
        say(out, f"its adapter was {trial.row.withdrawn}")
    if trial.row.twin is not None:
        say(out, f"the same training as trial {trial.row.twin}, whose result it was given")
    for part, values in (
        ("configuration", flat_parameters(trial.configuration) if trial.configuration else {}),
        ("rungs (epochs: score)", {f"{epochs:g}": score_text(score) for epochs, score in record.rungs.items()}),
        ("validation", {name: value_text(value) for name, value in measured.to_dict().items()} if measured else {}),
        ("whole validation split", {name: value_text(value) for name, value in trial.row.validation.items()}),
        (
            "all its seeds",
            dict(zip(_SEED_HEADINGS, _seed_cells(trial.seed_summary), strict=True)) if trial.seed_summary else {},
        ),
        ("test", {name: value_text(value) for name, value in trial.row.test.items()}),
        ("MLflow run", {"id": trial.run_id}),
    ):
        if values:
            say(out, f"\n{part}")
            width = max(map(len, values))
            for name, value in values.items():
                say(out, f"  {name:<{width}}  {value}")


def print_trials(study: Study, out: Console | None = None) -> None:
    """Print a line for each trial and reference of a study, in every state."""
    score = study.objectives[0].name
    table = new_table(f"trials of {study.name}")
    for column in ("trial", "state", "design", score, "epochs", "parameters", "%"):
        left = column in ("state", "design")
        table.add_column(column, justify="left" if left else "right", no_wrap=column != "design", overflow="fold")
    for trial in study.all_trials:
        record = trial.record
        last = record.rungs[max(record.rungs)] if record.rungs else None
        add(
            table,
            str(trial.number),
            state_text(trial.state, study.summary.status),
            f"reference {trial.name}" if record.reference else trial.name,
            score_text(last if trial.score is None else trial.score),
            f"{record.epochs:.3g}",
            count_text(trial.values.get("stored_parameters")),
            percent_text(trial.values.get("stored_percent")),
        )
    (out or console()).print(table)


def studies_table(studies: Sequence[Study]) -> Table:
    """Return a table with a line per study: how far it is, and its best score."""
    table = new_table("")
    table.add_column("study", no_wrap=True)
    table.add_column("status", no_wrap=True)
    table.add_column("trials", overflow="fold")
    table.add_column("best", justify="right", no_wrap=True)
    table.add_column("model", overflow="fold")
    table.add_column("task", overflow="fold")
    for study in studies:
        info, front = study.summary.info, study.front()
        best = f"{study.objectives[0].name} {score_text(front.best().score)}" if len(front) else ""
        add(
            table,
            study.name,
            study.summary.status.lower(),
            count_states(study),
            best,
            model_text(info.backbone.model),
            info.task.name,
        )
    return table


def _print_list(study: Study, out: Console) -> None:
    print_list(study, out)
    _print_references(study, out)


def _print_references(study: Study, out: Console) -> None:
    if references := study.complete_references:
        out.print(front_table(references, study.objectives, "references", first="name"))


def _print_failures(study: Study, out: Console) -> None:
    """Print the commonest reasons of failures, with their counts and the trials."""
    ordered = failures(study)
    for failure in ordered[:_REASONS]:
        which = ", ".join(map(str, failure.trials[:_REASONS])) + (" ..." if len(failure.trials) > _REASONS else "")
        say(out, f"  {len(failure.trials)} failed (trial {which}): {failure.reason}")
    if rest := sum(len(failure.trials) for failure in ordered[_REASONS:]):
        say(out, f"  {rest} failed for other reasons")


def _seed_cells(summary: SeedSummary) -> tuple[str, str, str, str]:
    """Return the cells below _SEED_HEADINGS."""
    failed = f", {summary.failed} failed" if summary.failed else ""
    return (
        spread_text(summary.mean, summary.spread if summary.seeds > 1 else None),
        f"{summary.seeds}{failed}",
        score_text(summary.corrected),
        f"{100 * summary.probability:.0f} %",
    )


def _spent(study: Study) -> str:
    """Return such as `0.5 of 0.5 hours, 0.83 device-hours, 2.1 in money`; "" where nothing is on record."""
    limits = study.summary.info.budget
    if study.summary.spent is None:
        return ""
    spent = asdict(study.summary.spent)
    if price := limits.price_per_device_hour:
        spent["money"] = price * spent["device_hours"]
    return ", ".join(
        f"{amount_text(spent[name])} {f'of {amount_text(limit)} ' if (limit := getattr(limits, name)) else ''}{unit}"
        for name, unit in _SPENT.items()
        if name in spent
    )


def _disk(disk: DiskUse | None) -> str:
    """Return such as `0.25 GB used of 2 GB (storage.max_gb)`; "" where nothing is on record."""
    if disk is None:
        return ""
    limit = "" if disk.limit is None else f" of {bytes_text(disk.limit)} (storage.max_gb)"
    return f"{bytes_text(disk.used)} used{limit}"
