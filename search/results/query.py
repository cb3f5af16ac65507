"""What a finished or running study has come to, read from MLflow alone.

>>> from search import load_study
>>> front = load_study("demo").front(max_parameters="1%")
>>> front.to_frame()
>>> front.best().load_model().predict(["what a day"])
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from petl.configuration import Configuration
from petl.design import Design
from petl.measurements import Measurements
from search.results.selection import select
from search.storage.commands import resume_command
from search.storage.errors import StoreError
from search.storage.locations import StudyHome, store_uri
from search.storage.locks import is_driven
from search.tracking import reader, schema
from search.tracking.schema import StudySummary, TrialRow
from search.trials import pareto
from search.trials.front import beaten_lines, candidates, dominating, non_dominated_of
from search.trials.naming import flat_parameters, label
from search.trials.objectives import Objectives, objectives, reference_point
from search.trials.record import SeedSummary, State, TrialRecord, discoveries

if TYPE_CHECKING:
    import pandas as pd

    from petl.adapters.predict import AdaptedModel


ROW: Final = (
    "trial", "name", "design", "score", "metric", "stored_parameters", "stored_percent", "trained_parameters",
    "test_score", "seconds", "run_id",
)  # fmt: skip
Budget: TypeAlias = int | str | None


@dataclass(frozen=True)
class Trial:
    """Hold a trial or reference as MLflow has it, seen through the study's objectives."""

    row: TrialRow
    objectives: Objectives
    uri: str

    def __repr__(self) -> str:
        score = "no score" if self.score is None else f"{self.objectives[0].name} {self.score:.4f}"
        return f"<Trial {self.number} {self.name!r}: {score}>"

    @property
    def record(self) -> TrialRecord:
        return self.row.record

    @property
    def number(self) -> int:
        return self.record.number

    @property
    def name(self) -> str:
        """The name of a reference, what the user called an enqueued design, else the design in words."""
        return label(self.record)

    @property
    def state(self) -> State:
        return self.record.state

    @property
    def configuration(self) -> Configuration | None:
        """The design with its training; None for baselines, which train nothing in the network."""
        return self.record.configuration

    @property
    def design(self) -> Design | None:
        return self.configuration.design if self.configuration else None

    @property
    def design_text(self) -> str:
        """The design in words, "" for a baseline."""
        return self.design.describe() if self.design else ""

    @property
    def measurements(self) -> Measurements | None:
        """What training measured; None until the trial has trained to its end."""
        return self.record.measurements

    @property
    def values(self) -> Mapping[str, Any]:
        """The measurements by name; before the end of training those that are known by then, without scores."""
        return self.measurements.to_dict() if self.measurements else self.row.counts

    @property
    def score(self) -> float | None:
        """The score at full budget on the validation split, or the sample of it that the study searches by."""
        return self.objectives[0].value(self.measurements) if self.measurements else None

    @property
    def cost(self) -> float | None:
        """The study's first cost; before the end of training only where it is known by then."""
        return self.costs[0]

    @property
    def second_cost(self) -> float | None:
        """The study's second cost, as `cost`; None also for a study that has none."""
        return self.costs[1] if len(self.costs) > 1 else None

    @property
    def costs(self) -> tuple[float | None, ...]:
        """All costs of the study, in its order."""
        measured, counts = self.measurements, self.row.counts
        return tuple(cost.value(measured) if measured else counts.get(cost.name) for cost in self.objectives[1:])

    @property
    def validation_score(self) -> float | None:
        """The score on the whole validation split, of a member of the final front, a reference, or a listed design."""
        return self.row.validation.get(self.objectives[0].name)

    @property
    def test_score(self) -> float | None:
        """The score on the test split, of a member of the final front, a reference, or a listed design."""
        return self.row.test.get(self.objectives[0].name)

    @property
    def seed_summary(self) -> SeedSummary | None:
        """What replicates say of the score and of the place on the front; None where the study had none."""
        return self.row.seed_summary

    @property
    def run_id(self) -> str:
        """The identifier of the MLflow run."""
        return self.row.run_id

    def to_row(self) -> dict[str, Any]:
        """Return a JSON-ready row: the keys of ROW, the study's costs that are not among them, and where there were
        replicates the columns of TrialRow, such as `believed_mean`.
        """
        values = self.values
        costs = {objective.name: cost for objective, cost in zip(self.objectives[1:], self.costs, strict=True)}
        row = {
            "trial": self.number,
            "name": self.name,
            "design": self.design_text,
            "score": self.score,
            "metric": self.objectives[0].name,
            "stored_parameters": values.get("stored_parameters"),
            "stored_percent": values.get("stored_percent"),
            "trained_parameters": values.get("trained_parameters"),
            "test_score": self.test_score,
            "seconds": values.get("seconds"),
            "run_id": self.run_id,
        }
        return row | {name: cost for name, cost in costs.items() if name not in row} | self.row.columns

    def to_dict(self) -> dict[str, Any]:
        """Return all that is known of the trial, JSON-ready: its row, what it was, its rungs and every score."""
        record = self.record
        return self.to_row() | {
            "state": str(record.state).lower(),
            "reference": record.reference,
            "failure": record.failure,
            "withdrawn": self.row.withdrawn,
            "configuration": self.configuration.to_dict() if self.configuration else None,
            "rungs": [[epochs, score] for epochs, score in record.rungs.items()],
            "measurements": self.measurements.to_dict() if self.measurements else None,
            "validation": dict(self.row.validation),
            "test": dict(self.row.test),
        }

    def export(self, destination: str | Path, format: str = "petl") -> Path:
        """Write the trained adapter as a new folder, in the format "petl" or in that of Hugging Face, "peft".

        Raises StoreError where the trial has no adapter; for PEFT also what `petl.adapters.peft.convert` raises, above
        all where PEFT cannot express the design.
        """
        if format == "petl":
            return reader.download(self.uri, self.run_id, Path(destination))
        if format != "peft":
            raise StoreError(f"a format is petl or peft; received {format!r}")
        from petl.adapters.peft import convert

        reader.must_be_new(Path(destination))
        with tempfile.TemporaryDirectory(prefix="petl-search-") as folder:
            return convert(self.export(Path(folder) / schema.ADAPTER), destination)

    def load_model(self, backbone: str = "") -> AdaptedModel:
        """Return the backbone with this trial's trained adapter, ready to predict.

        `backbone` says where the backbone is on this machine, if not where the study had it. Raises StoreError where
        the trial has no adapter, and StorageError or BackboneError as `petl.adapters.storage.load_model` does.
        """
        from petl.adapters import storage

        with tempfile.TemporaryDirectory(prefix="petl-search-") as folder:
            return storage.load_model(self.export(Path(folder) / schema.ADAPTER), backbone=backbone)


@dataclass(frozen=True)
class ParetoFront:
    """Hold the trials that no other beats in score and every cost, by the first cost, then the second.

    `base_parameters` is the size of the pretrained model, 0 while nothing was measured. `limits` are the upper limits
    that members keep, by the names of Measurements, and `fdr` is the expected share of false members, if one was asked.
    `references` are the complete ones beside it.
    """

    trials: tuple[Trial, ...]
    objectives: Objectives
    base_parameters: int = 0
    limits: Sequence[tuple[str, float]] = ()
    fdr: float | None = None
    references: tuple[Trial, ...] = ()

    def __iter__(self) -> Iterator[Trial]:
        return iter(self.trials)

    def __len__(self) -> int:
        return len(self.trials)

    def __getitem__(self, index: int) -> Trial:
        return self.trials[index]

    def best(self, within: float = 0.0) -> Trial:
        """Return the cheapest trial whose score is within `within` of the best: 0.01 is a point of accuracy.

        Raises StoreError on an empty front.
        """
        if not self.trials:
            raise StoreError("the front is empty: no trial within the limits is complete yet")
        losses = [self.objectives[0].loss(trial.score or 0.0) for trial in self.trials]
        return next(t for t, loss in zip(self.trials, losses, strict=True) if loss <= min(losses) + within + 1e-12)

    @property
    def hypervolume(self) -> float:
        """The area, or volume, between the front and the objectives' reference point.

        A cost enters as `Objective.seen` gives it to samplers: log(1 + cost / knee) where it spans orders of
        magnitude, so that small designs count. Only studies of the same model and objectives can be compared.
        """
        if not self.trials:
            return 0.0

        def seen(values: Iterable[float]) -> list[float]:
            return [objective.seen(value) for objective, value in zip(self.objectives, values, strict=True)]

        reference = seen(reference_point(self.objectives, self.base_parameters))
        points = [seen(_values(trial)) for trial in self.trials]
        return pareto.hypervolume(points, reference, [objective.direction for objective in self.objectives])

    def to_rows(self) -> list[dict[str, Any]]:
        """Return the members as JSON-ready rows: `Trial.to_row`, and the references that dominate each."""
        return [trial.to_row() | {"dominated_by": self.dominating(trial)} for trial in self.trials]

    def dominating(self, member: Trial) -> list[str]:
        """Return the names of the references that are at least as good as a member at no greater cost."""
        records = [reference.record for reference in self.references if reference.number != member.number]
        return [label(record) for record in dominating(member.record, records, self.objectives)]

    @property
    def beaten(self) -> list[str]:
        """Return a sentence for each reference that dominates members, and what follows."""
        return beaten_lines(self.to_rows(), [replace(t, objectives=self.objectives).to_row() for t in self.references])

    def to_frame(self) -> pd.DataFrame:
        """Return a frame of the rows of `to_rows`, with their columns also where there are none."""
        import pandas as pd

        rows = [row | {"dominated_by": ", ".join(row["dominated_by"])} for row in self.to_rows()]
        costs = [objective.name for objective in self.objectives[1:]]
        columns = dict.fromkeys([*ROW, *costs, *(key for row in rows for key in row), "dominated_by"])
        return pd.DataFrame(rows, columns=list(columns))


@dataclass(frozen=True)
class Study:
    """Hold a study as MLflow had it when it was loaded."""

    summary: StudySummary
    everything: tuple[TrialRow, ...]
    uri: str = field(repr=False)  # it may have a password

    @property
    def name(self) -> str:
        return self.summary.name

    @cached_property
    def objectives(self) -> Objectives:
        """The score, the cost, and the second cost if there is one."""
        return objectives(**vars(self.summary.info.objectives))

    @cached_property
    def trials(self) -> tuple[Trial, ...]:
        """The trials of the search, in every state, by number."""
        return tuple(trial for trial in self.all_trials if not trial.record.reference)

    @cached_property
    def references(self) -> tuple[Trial, ...]:
        """The baselines beside the front, in every state."""
        return tuple(trial for trial in self.all_trials if trial.record.reference)

    @property
    def base_parameters(self) -> int:
        """The size of the pretrained model without task head, 0 while nothing was measured."""
        return max((t.measurements.base_parameters for t in self.all_trials if t.measurements), default=0)

    def trial(self, number: int) -> Trial:
        """Return a trial or reference by its number. Raises StoreError where there is none of that number."""
        for trial in self.all_trials:
            if trial.number == number:
                return trial
        numbers = f"0 to {self.all_trials[-1].number}" if self.all_trials else "none yet"
        raise StoreError(f"study {self.name!r} has no trial {number}; its numbers: {numbers}")

    def front(
        self, max_parameters: Budget = None, cost: str | None = None, fdr: float | str | None = None
    ) -> ParetoFront:
        """Return the front among trials that are complete and within the study's limits; references stay outside.

        Where heads start from a linear probe, the probe is a candidate: the design that changes nothing but the head,
        before its first step.

        `max_parameters` limits the stored parameters further: a number, or a share of the pretrained model such as
        "1%". With `cost`, a name of `objectives.COSTS`, it is the front of the score and this cost alone.

        A front of single scores has members by luck. With `fdr`, a share such as 0.05 or "5%", the members are
        instead those trials that replicates have shown to be on the front of true means: as many as can be named while
        at most this share of them is expected to be false.

        Raises StoreError for a limit or share that is none, for `fdr` where the study had no replicates or with a
        `cost` of its own; ValueError for an unknown cost.
        """
        share = None if fdr is None else _share(fdr)
        searched = objectives(self.objectives[0].name, cost) if cost else self.objectives
        limits = [*self.summary.info.constraints.items(), *_limit(max_parameters)]
        within = [replace(trial, objectives=searched) for trial in self.eligible(limits)]
        if share is None:
            numbers = {record.number for record in non_dominated_of([trial.record for trial in within], searched)}
        else:
            numbers = self._discoveries(share, cost)
        members = [trial for trial in within if trial.number in numbers]
        members.sort(key=lambda trial: _values(trial)[1:])
        beside = self.complete_references
        return ParetoFront(tuple(members), searched, self.base_parameters, limits, share, beside)

    def eligible(self, limits: Sequence[tuple[str, float]] | None = None) -> list[Trial]:
        """Return the trials that a front is chosen from: complete, and within these limits, else those of the study."""
        bounds = list(self.summary.info.constraints.items()) if limits is None else limits
        complete = {record.number for record in candidates([trial.record for trial in self.all_trials])}
        return [
            trial
            for trial in self.all_trials
            if trial.number in complete
            and trial.measurements
            and all(_number(getattr(trial.measurements, name)) <= limit for name, limit in bounds)
        ]

    def _discoveries(self, fdr: float, cost: str | None) -> set[int]:
        summaries = {trial.number: trial.seed_summary for trial in self.trials if trial.seed_summary}
        if not summaries:
            raise StoreError(
                f"fdr needs replicates, and study {self.name!r} has none; train some by "
                f"`{resume_command(self.name, options='--set replicates.per_trial=5')}`"
            )
        costs = [objective.name for objective in self.objectives[1:]]
        if cost is not None and [cost] != costs:
            raise StoreError(
                f"replicates are of the study's own objectives; received cost {cost!r}: leave out fdr or cost"
            )
        return discoveries(summaries, fdr)

    @property
    def complete_references(self) -> tuple[Trial, ...]:
        """The references that have a score to compare with."""
        return tuple(trial for trial in self.references if trial.state is State.COMPLETE and trial.measurements)

    def to_row(self) -> dict[str, Any]:
        """Return what a list of studies says of this one, JSON-ready: how far it is, and its best score."""
        info, front = self.summary.info, self.front()
        return {
            "study": self.name,
            "status": self.summary.status.lower(),
            "trials": dict(Counter(str(trial.state).lower() for trial in self.trials)),
            "metric": self.objectives[0].name,
            "best": front.best().score if len(front) else None,
            "model": info.backbone.model or None,
            "task": info.task.name or None,
        }

    def to_dict(self) -> dict[str, Any]:
        """Return the study with what is stored of it, its front and its references, JSON-ready."""
        return self.to_row() | {
            "info": asdict(self.summary.info),
            "disk": asdict(self.summary.disk) if self.summary.disk else None,
            "spent": asdict(self.summary.spent) if self.summary.spent else None,
            "front": self.front().to_rows(),
            "references": self.reference_rows(),
        }

    def reference_rows(self) -> list[dict[str, Any]]:
        """Return the complete references as rows: see `Trial.to_row`."""
        return [trial.to_row() for trial in self.complete_references]

    def trial_rows(self) -> list[dict[str, Any]]:
        """Return every trial and reference as a row, see `Trial.to_row`, with its state."""
        return [trial.to_row() | {"state": str(trial.state).lower()} for trial in self.all_trials]

    def flat_rows(self) -> list[dict[str, Any]]:
        """Return every trial and reference as a flat row, JSON-ready, which `search.results.selection` selects from.

        Beside what `trial_rows` has: `kind`, trial or reference; every measurement by its name; scores on whole splits
        such as `test_f1`; and the configuration's flat parameters, such as `ffn.size`, in text. A key that there is
        nothing for is left out; where a parameter and a measurement share a name, such as `epochs`, it is the
        parameter.
        """
        return [
            {
                name: value
                for name, value in {**_measured(trial), **row, **_parameters(trial)}.items()
                if value is not None
            }
            for trial, row in zip(self.all_trials, self.trial_rows(), strict=True)
        ]

    def to_frame(self, where: str = "", columns: Sequence[str] = ()) -> pd.DataFrame:
        """Return a frame of `flat_rows`, of those for which `where` is true, and of these columns, by default all.

        Raises SelectionError for an expression or a column that makes no sense.

        >>> study.to_frame(where="stored_percent < 1 and ffn.size > 0", columns=["trial", "score"])
        """
        import pandas as pd

        rows = select(self.flat_rows(), where, columns=columns)
        first = (*ROW, "state", "kind")
        return pd.DataFrame(
            rows, columns=list(columns or dict.fromkeys([*first, *(name for row in rows for name in row)]))
        )

    @cached_property
    def all_trials(self) -> Sequence[Trial]:
        """The trials and the references in every state, by number."""
        return [Trial(row, self.objectives, self.uri) for row in self.everything]


def load_study(name: str, uri: str | None = None) -> Study:
    """Return a study by name, from the store at `uri`, else where `search.storage.locations.store_uri` finds one.

    Raises StoreError for a study that is not in the store, naming those that are.
    """
    uri = store_uri(uri)
    summary = reader.summary(uri, name)
    if summary.status == "RUNNING" and is_driven(StudyHome(name).folder) is False:
        summary = replace(summary, status="KILLED")  # its driver died before it could say so
    return Study(summary, tuple(reader.records(uri, name)), uri)


def _measured(trial: Trial) -> dict[str, Any]:
    """Return a trial's measurements, its kind, and its scores on whole splits."""
    whole = {"validation": trial.row.validation, "test": trial.row.test}
    scores = {f"{split}_{name}": value for split, own in whole.items() for name, value in own.items()}
    return {**trial.values, "kind": "reference" if trial.record.reference else "trial", **scores}


def _parameters(trial: Trial) -> dict[str, str]:
    return flat_parameters(trial.configuration) if trial.configuration else {}


def _limit(budget: Budget) -> list[tuple[str, float]]:
    if budget is None:
        return []
    text = str(budget).strip()
    try:
        name = "stored_percent" if text.endswith("%") else "stored_parameters"
        limit = float(text.removesuffix("%").replace(",", ""))
    except ValueError:
        limit = -1.0
    if not limit >= 0:
        raise StoreError(f"max_parameters is a number like 200000 or a share like 1%; received {budget!r}")
    return [(name, limit)]


def _share(share: float | str) -> float:
    text = str(share).strip()
    try:
        value = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1:
        raise StoreError(f"fdr is a share like 0.05 or 5%, below 1; received {share!r}")
    return value


def _values(trial: Trial) -> tuple[float, ...]:
    """Return the trial's values by all objectives, NaN for what was not measured."""
    return tuple(map(_number, (trial.score, *trial.costs)))


def _number(value: float | None) -> float:
    return float("nan") if value is None else value
