"""The sentences of a page: which design to take, how far the front is luck, and what to run next."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Final, Literal

from petl.head import PROBE
from search.results.console import why_empty
from search.storage.address import without_password
from search.storage.commands import command, resume_command
from search.storage.locations import default_home, home, store_uri
from search.trials.formats import amount_text, count_text, percent_text, score_text, spread_text
from search.trials.record import discoveries

if TYPE_CHECKING:
    from search.results.query import ParetoFront, Study

_LIMITS: Final = ("1%", "0.1%")
_SURE: Final = 0.95  # probability from which a place on the front is settled, and below whose rest it is lost
_NAMED: Final = 12  # trials in a sentence
_GROWING: Final = 0.01  # share of the hypervolume in the last quarter of the epochs from which more would help


@dataclass(frozen=True, kw_only=True)
class Interval:
    """The score of a member of the front, `center` give or take `half`, by its seeds or by the number of rows."""

    trial: int
    center: float
    half: float
    seeds: int


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a reader wants to know first: `question` is `best overall`, `best under 1 % ...`; `trial` None for none.

    `text` has the costs and the design, or why there is none.
    """

    question: str
    trial: int | None
    score: float | None
    text: str


@dataclass(frozen=True, kw_only=True)
class Luck:
    """How far the front is beyond luck.

    `by` says what is known: `seeds` where trials were trained again, `rows` where only the number of validation rows
    is known, else `nothing`. `unsettled` are members whose place may be luck.
    """

    by: Literal["seeds", "rows", "nothing"]
    lines: Sequence[str]
    intervals: Sequence[Interval]
    unsettled: Sequence[int]


@dataclass(frozen=True, kw_only=True)
class Step:
    """What to do next: why, and the command, where it is one."""

    why: str
    command: str | None


def answers(study: Study, front: ParetoFront) -> list[Answer]:
    """Return the best design of all, and the best under some limits, in words."""
    found = [_answer("best overall", study, front)]
    for limit in _LIMITS:
        question = f"best under {limit.replace('%', ' %')} of the model's parameters"
        found.append(_answer(question, study, study.front(max_parameters=limit)))
    return found


def _answer(question: str, study: Study, front: ParetoFront) -> Answer:
    if not len(front):
        return Answer(question=question, trial=None, score=None, text=why_empty(study, front))
    best, size = front.best(), "parameters, {} % of the model"
    costs = [
        f"{count_text(best.values['stored_parameters'])} {size.format(percent_text(best.values['stored_percent']))}",
        *(
            f"{cost.title} {amount_text(value)}"
            for cost, value in zip(front.objectives[1:], best.costs, strict=True)
            if cost.name != "stored_parameters"
        ),
    ]
    design = best.design_text or "the model as it is"
    named = design if best.name in ("", design) else f"{best.name}: {design}"
    return Answer(question=question, trial=best.number, score=best.score, text="; ".join([*costs, named]))


def luck(study: Study, front: ParetoFront) -> Luck:
    """Return how far the places on the front, and the scores of its members, are luck."""
    if any(trial.seed_summary for trial in front):
        return _luck_of_seeds(study, front)
    metric = front.objectives[0].name
    again = "Nobody has trained them again with other seeds, so what a seed makes of a score is not known."
    rows = study.summary.info.resolved.rows
    count = int(rows.get("sample", rows.get("validation", 0)))
    if not len(front):
        return Luck(by="nothing", lines=(), intervals=(), unsettled=())
    if metric != "accuracy" or not count:
        why = (
            f"the standard error of {metric} is not known from the number of rows alone"
            if metric != "accuracy"
            else "the number of validation rows is not on record"
        )
        line = f"Members of the front were picked as the best of single scores, which have luck in them; {why}. {again}"
        return Luck(by="nothing", lines=(line,), intervals=(), unsettled=())
    intervals = [
        Interval(trial=trial.number, center=trial.score, half=standard_error(trial.score, count), seeds=1)
        for trial in front
        if trial.score is not None
    ]
    neighbours = list(pairwise(intervals)) if len(front.objectives) == 2 else []  # with two costs they have no order
    close = [
        (cheaper, dearer)
        for cheaper, dearer in neighbours
        if abs(dearer.center - cheaper.center) < max(cheaper.half, dearer.half)
    ]
    lines = [
        f"Single scores have luck in them: on {count:,} validation rows the standard error of accuracy is "
        f"{intervals[-1].half:.4f} at {intervals[-1].center:.4f}. {again}"
    ]
    if close:
        pairs = ", ".join(f"{cheaper.trial} and {dearer.trial}" for cheaper, dearer in close)
        lines.append(
            f"Neighbours on the front that differ by less than that: {pairs}. The dearer one may be no better."
        )
    elif neighbours:
        lines.append("All neighbours on the front differ by more than that.")
    return Luck(
        by="rows", lines=lines, intervals=intervals, unsettled=sorted({each.trial for p in close for each in p})
    )


def _luck_of_seeds(study: Study, front: ParetoFront) -> Luck:
    summaries = {trial.number: trial.seed_summary for trial in study.trials if trial.seed_summary}
    metric, sure = front.objectives[0].name, discoveries(summaries)
    members = [(trial.number, trial.seed_summary) for trial in front if trial.seed_summary]
    contested = [number for number, summary in members if 1 - _SURE < summary.probability < _SURE]
    lost = [number for number, summary in members if summary.probability <= 1 - _SURE]
    rivals = [n for n, own in summaries.items() if own.probability > 1 - _SURE and n not in dict(members)]
    settled = len(members) - len(contested) - len(lost)
    lines = [
        f"{settled} of {len(front)} members are on the true front, that of means over all seeds, with a probability of "
        f"at least {100 * _SURE:.0f} %; {len(contested)} are open, and {len(lost)} owe their place to luck, as surely"
        + (f": {_numbers(lost)}." if lost else "."),
        f"With at most 5 % false ones expected, these can be named: {_numbers(sorted(sure)) or 'none'}.",
    ]
    if rivals:
        lines.append(f"Not on the front, but perhaps on the true one: {_numbers(sorted(rivals))}.")
    best = front.best()
    if best.seed_summary:
        own = best.seed_summary
        mean = spread_text(own.mean, own.spread if own.seeds > 1 else None)
        lines.append(
            f"The best, trial {best.number}, was picked with {metric} {score_text(best.score)}; over {own.seeds} "
            f"{'seeds' if own.seeds > 1 else 'seed'} it has {mean}, corrected for luck {score_text(own.corrected)}."
        )
    intervals = [
        Interval(trial=number, center=summary.mean, half=summary.spread, seeds=summary.seeds)
        for number, summary in members
        if summary.seeds > 1
    ]
    return Luck(by="seeds", lines=lines, intervals=intervals, unsettled=sorted(contested))


def standard_error(accuracy: float, rows: int) -> float:
    """Return the standard error of an accuracy on so many rows: the binomial one."""
    return math.sqrt(max(accuracy * (1 - accuracy), 0.0) / rows)


def steps(study: Study, front: ParetoFront, known: Luck, gain: float | None) -> Iterator[Step]:
    """Yield what to do next, the most urgent first.

    `gain` is the share of the hypervolume that came with the last quarter of the epochs, None where nothing ended.
    """
    name, listed = study.name, bool(study.summary.info.designs)
    unfinished = sum(trial.state.open for trial in study.all_trials)
    if study.summary.status == "RUNNING":
        watch = command("report", name, "--watch", *where(study))
        yield Step(why="The study is running. Keep a page up to date while it does", command=watch)
        return
    if unfinished or study.summary.status != "FINISHED":
        left = f"{unfinished} trials are not finished" if unfinished else "the study did not come to its end"
        yield Step(why=f"Finish it: {left}", command=resume_command(name))
    if not len(front):
        return
    if known.by != "seeds" and len(front) > 1 and not listed:
        yield Step(
            why="Tell choice from luck: train contested members of the front again with new seeds",
            command=resume_command(name, options="--set replicates.per_trial=5"),
        )
    elif known.by == "seeds" and known.unsettled:
        yield Step(
            why=f"Settle trial {_numbers(known.unsettled)}: allow more epochs for new seeds",
            command=resume_command(name, options="--set replicates.extra=0.5"),
        )
    if not listed and gain is not None and len(study.trials) > 1:
        more = resume_command(name, options=f"--set budget.trials={2 * len(study.trials)}")
        if gain > _GROWING:
            why = f"Search on: {100 * gain:.1f} % of the hypervolume came with the last quarter of the epochs"
            yield Step(why=why, command=more)
        else:
            why = (
                f"More trials promise little: {100 * gain:.1f} % of the hypervolume came with the last quarter of the "
                "epochs. Another space, more epochs a trial or more rows may"
            )
            yield Step(why=why, command=None)
    best = front.best()
    if not best.row.withdrawn and not {"majority", PROBE} & set(front.dominating(best)):
        why = f"Take the adapter of the best, trial {best.number}"
        yield Step(why=why, command=command("export", name, str(best.number), "my-adapter", *where(study)))


def commands(study: Study) -> dict[str, str]:
    """Return commands for a shell, and a line of Python, that use a trial, whose number stands for `{trial}`."""
    place = shlex.join(where(study))
    return {
        "show": command("show", study.name, options=f"{{trial}} {place}".strip()),
        "export": command("export", study.name, options=f"{{trial}} my-adapter {place}".strip()),
        "python": f"import search; model = search.load_study({_python_arguments(study)}).trial({{trial}}).load_model()",
    }


def where(study: Study) -> tuple[str, ...]:
    """Return the option that a command needs to find the study's store, if it needs one."""
    return () if study.uri == store_uri() else ("--uri", without_password(study.uri))


def _python_arguments(study: Study) -> str:
    """Return the arguments by which `load_study` finds the study in a new interpreter, from the current folder."""
    found = study.uri == store_uri() and home() == default_home()
    return repr(study.name) if found else f"{study.name!r}, {without_password(study.uri)!r}"


def _numbers(trials: Sequence[int]) -> str:
    more = len(trials) - _NAMED
    return ", ".join(map(str, trials[:_NAMED])) + (f" and {more} more" if more > 0 else "")
