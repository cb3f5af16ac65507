"""The room that a study may take: what its trials hold and may come to hold, and which results make way.

A trial starts where all that is there, and all that the running ones and itself may write at most, is within
`storage.max_gb`. So the limit holds at every moment, and not only when somebody looks. Counted are the bytes
of files: the study's folder, and its artifacts, of which a trial has a copy each of its adapter and predictions.

`needs` and `making_way` decide, from values alone; `Room` measures, asks them, and has things removed.
"""

from __future__ import annotations

import json
import math
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from petl.backbones.count import count, stored_shapes
from petl.backbones.model import Backbone
from petl.configuration import LAST, Configuration
from petl.design import Design
from petl.errors import UserError
from search.storage.folder import SCORED, TrialFolder, files_in, trial_files
from search.trials import pareto
from search.trials.formats import bytes_text
from search.trials.objectives import values
from search.trials.record import State, TrialRecord
from search.trials.records import Records
from search.trials.resolved import Resolved, WrittenBytes

if TYPE_CHECKING:
    from petl.data.tokens import TaskData


GB: Final = 10**9
# Upper limits of what is written beside tensors, in bytes: twice and more of the most that was seen.
_HEADER: Final = 256  # of a tensor in a safetensors file: its name, type, shape and place
_POINT: Final = 256  # of a training curve
_VALIDATION: Final = 1_024
_RECORD: Final = 8_192  # a trial's record, which waits for MLflow on the disk
_SMALL: Final = 65_536  # of a trial: its design, manifests, and the line for people
# Of a study: up to a megabyte of its journal that has arrived but not gone, and the front as a table and picture,
# in the folder and as artifacts.
SPARE: Final = 4_000_000
_BRIEFLY: Final = 2.0  # seconds in which the driver hears of no trial


class DiskError(UserError):
    """A study that cannot be within its limit on the disk. The message has the numbers, and what to change."""


@dataclass(frozen=True)
class Needs:
    """The bytes that a trial takes at most: at any moment of its life, and when it is over, scored and published."""

    peak: int
    left: int


@dataclass(frozen=True)
class Result:
    """What a complete trial would free: `values` are its objectives', `spare` says that nothing needs it any more."""

    number: int
    size: int
    values: tuple[float, ...]
    spare: bool = True
    reference: bool = False


def needs(configuration: Configuration | None, resolved: Resolved) -> Needs:
    """Of a trial of the study of which `resolved` is on record; a configuration None is a baseline's."""
    backbone, labels = resolved.backbone, len(resolved.labels)
    design = configuration.design if configuration else Design()
    counted = count(design, backbone, labels)
    tensors = 2 * len(stored_shapes(design, backbone, labels)) + 64  # a reparameterised prefix has some more
    curves, validations = _curves(configuration, resolved)
    adapter = 4 * (counted.stored + counted.head) + _HEADER * tensors + resolved.written.fixed
    if configuration is None:  # a linear probe, at most, which may be larger than a head
        adapter, state = 8 * max(map(math.prod, backbone.head_shapes(labels).values()), default=0), 0
    else:
        copies = 3 + (configuration.training.keep != LAST)  # the weights, AdamW's two moments, the best weights
        state = copies * (4 * counted.trained + _HEADER * tensors) + curves
    result = adapter + 2 * curves  # indented
    left = result + adapter + 2 * resolved.written.texts + _SMALL
    waiting = curves + _RECORD * (validations + 4)
    # A training state is written before the older one goes, and the result before the last one.
    return Needs(max(2 * state, state + result, left) + waiting + _SMALL, left)


def _curves(configuration: Configuration | None, resolved: Resolved) -> tuple[int, int]:
    """The size of a trial's curves as JSON, and how many validations are in them."""
    if configuration is None:
        return _VALIDATION, 1
    training, rows = configuration.training, resolved.rows["train"]
    batches = rows if training.batch_tokens else math.ceil(rows / training.batch_size)
    validations = math.ceil(training.epochs / training.validate_every) + 16  # at rungs too
    points = training.epochs * batches / training.accumulation / 10 + validations
    return math.ceil(_POINT * points + _VALIDATION * validations), validations


def making_way(lacking: int, results: Sequence[Result], directions: Sequence[str]) -> list[int] | None:
    """The trials whose results go so that `lacking` bytes are free, or None where all that may go are not enough.

    The worst go first, by the front that they would be on if all before it were not there, then by the first
    objective; those of references last. Those on the front never do.
    """
    searched = [result for result in results if not result.reference]
    rank = dict(zip(searched, pareto.ranks([result.values for result in searched], directions).tolist(), strict=True))
    kept = dict(
        zip(searched, pareto.non_dominated([result.values for result in searched], directions).tolist(), strict=True)
    )
    sign = pareto.SIGNS[directions[0]]
    order = sorted(
        (result for result in searched if result.spare and not kept[result]),
        key=lambda result: (-rank[result], -sign * result.values[0], -result.number),
    )
    chosen, left = [], lacking
    for result in [*order, *(result for result in results if result.reference and result.spare)]:
        if left <= 0:
            break
        if result.size:
            chosen.append(result.number)
            left -= result.size
    return chosen if left <= 0 else None


def require_room(
    limit: int, references: Mapping[str, Configuration | None], smallest: Configuration, resolved: Resolved
) -> None:
    """Raises DiskError where the references of a study, whose results all stay, and one trial do not fit."""
    kept, asked = SPARE, []
    for name, configuration in [*references.items(), ("a trial", smallest)]:
        need = needs(configuration, resolved)
        asked.append((name, kept + need.peak, need.left))
        kept += need.left
    least = max(peak for _, peak, _ in asked)
    if least > limit:
        parts = ", ".join(f"{name} {bytes_text(left)}" for name, _, left in asked)
        raise DiskError(
            f"the references and one trial need up to {bytes_text(least)} while they train, and storage.max_gb is "
            f"{limit / GB:g}. What each leaves, adapter and artifact: {parts}, beside {bytes_text(SPARE)} for the "
            "study. Give more, or leave out references"
        )


class Held:
    """What a study has on the disk, as it was when this was made."""

    def __init__(self, study: Path, artifacts: Path | None, records: Sequence[TrialRecord]) -> None:
        self._trials = trial_files(study)
        self.rest = sum(files_in(study, skip=("trials",)).values())
        self.trials = sum(files.size() for files in self._trials.values())
        copied = sum(map(self.copied, records))
        there = sum(files_in(artifacts).values()) if artifacts else 0
        # By what the study puts there, or by what is there, of whomever, if that is more.
        self.artifacts = max(copied, there)

    @property
    def used(self) -> int:
        """All of it, with artifacts that are still to arrive."""
        return self.rest + self.trials + self.artifacts

    def of(self, number: int, part: str = "") -> int:
        """The bytes of a trial, or of one of its folders."""
        return files.size(part) if (files := self._trials.get(number)) else 0

    def copied(self, record: TrialRecord) -> int:
        """What is, or will be, of a trial among the artifacts."""
        adapter = self.of(record.number, "result/adapter") if record.state is State.COMPLETE else 0
        return adapter + self.of(record.number, "test")

    def tested(self, number: int) -> bool:
        """Whether a trial has its scores on whole splits."""
        return number in self._trials and self._trials[number].has(SCORED)


class Room:
    """Whether there is room for a trial, which is made where it can be.

    `limit` is in bytes, None for none; `folder` is the study's, `artifacts` that of its artifacts where it is
    known. `shown` tells the trials that are scored when the search ends. `withdraw` has the results of a
    trial removed, in the order of all that MLflow is told; `settled(patience, limit)` waits for that so many
    seconds while MLflow is away, and in any case.
    """

    def __init__(
        self,
        limit: int | None,
        folder: Path,
        artifacts: Path | None,
        records: Records,
        shown: Callable[[], Sequence[TrialRecord]],
        withdraw: Callable[[int], None],
        settled: Callable[[float, float], bool],
        patience: float,
    ) -> None:
        self.limit, self.folder, self.artifacts, self.records = limit, folder, artifacts, records
        self._shown, self._withdraw, self._settled, self._patience = shown, withdraw, settled, patience
        self._resolved = records.resolved
        self._going: set[int] = set()  # trials whose results were withdrawn
        self._refused: tuple[frozenset[int], float, str] = (frozenset(), -math.inf, "")

    def lacking(self, configuration: Configuration | None, active: Collection[int], number: int | None = None) -> str:
        """Why a trial cannot start beside those that run, "" where it can. `number` is that of one that goes on.

        Of a complete trial, `active` has its replicates: the number once for each. Removes what has to make way. Waits
        for MLflow to let go of that: briefly, where others run.
        """
        if self.limit is None:
            return ""
        who, when, why = self._refused
        if active and who == frozenset(active) and time.monotonic() - when < 1.0:
            return why  # asked again and again until one of them ends
        running = [*active, *([] if number is None else [number])]
        peak = 0 if number is not None else needs(configuration, self._resolved).peak
        why = self._made(peak, running, (_BRIEFLY, _BRIEFLY) if active else (self._patience, math.inf))
        self._refused = (frozenset(active), time.monotonic(), why)
        return why

    def _held(self) -> Held:
        return Held(self.folder, self.artifacts, self.records.all())

    def _made(self, peak: int, running: Collection[int], patience: tuple[float, float]) -> str:
        """Makes room for so many bytes beside what is there and what the running ones may take."""
        assert self.limit is not None
        if self._taken(self._held(), running) + peak <= self.limit:
            return ""
        self._tidy(running)
        held = self._held()
        short = self._taken(held, running) + peak - self.limit
        results = self._results(held, running)
        going = sum(result.size for result in results if result.number in self._going)
        chosen = making_way(short - going, results, [each.direction for each in self.records.objectives])
        if chosen is not None and short > 0:
            for number in chosen:
                self._going.add(number)
                self._withdraw(number)
            self._settled(*patience)
            held = self._held()
            short = self._taken(held, running) + peak - self.limit
        return "" if short <= 0 else self._explained(held, short, waiting=chosen is not None)

    def _taken(self, held: Held, running: Collection[int]) -> int:
        """What is there, and what the running trials, and the scores of those that are shown, may add to it."""
        texts = 2 * self._resolved.written.texts + _SMALL
        taken = SPARE + held.used + texts * sum(not self._scored(held, record.number) for record in self._shown())
        for number, times in Counter(running).items():
            record = self.records.get(number)
            already = held.of(number) if record.state.open else 0  # of a complete one that is not a replicate's
            taken += times * max(0, needs(record.configuration, self._resolved).peak - already)
        return taken

    def _scored(self, held: Held, number: int) -> bool:
        return not self._resolved.final or held.tested(number)

    def _results(self, held: Held, running: Collection[int]) -> list[Result]:
        shown = {record.number for record in self._shown()}
        return [
            Result(
                record.number,
                held.of(record.number, "result") + held.of(record.number, "result/adapter"),
                values(self.records.objectives, record.measurements),
                spare=record.number not in self._going
                and (record.number not in shown or self._scored(held, record.number)),
                reference=record.reference is not None,
            )
            for record in self.records.all()
            if record.state is State.COMPLETE and record.number not in running
        ]

    def _tidy(self, running: Collection[int]) -> None:
        """Removes what nobody needs: what was interrupted, training states of closed trials, results of failed ones."""
        for record in self.records.all():
            if record.number in running:
                continue
            folder = TrialFolder(self.folder, record.number)
            folder.drop_interrupted()
            if not record.state.open:
                folder.drop_states()
                if record.state is not State.COMPLETE:
                    folder.drop("result")

    def _explained(self, held: Held, short: int, *, waiting: bool) -> str:
        assert self.limit is not None
        front = {record.number for record in self._shown() if not record.reference}
        sums = {"references": 0, "the front": 0}
        for record in self.records.all():
            if record.reference or record.number in front:
                name = "references" if record.reference else "the front"
                sums[name] += held.of(record.number) + held.copied(record)
        sums["the rest"] = max(0, held.used - sum(sums.values()))
        what = ", ".join(f"{name} {bytes_text(count)}" for name, count in sums.items())
        return (
            f"storage.max_gb {self.limit / GB:g} leaves no room for another trial: used are {bytes_text(held.used)} "
            f"({what}), and what it may write lacks {bytes_text(short)}"
            f"{'; MLflow, which does not answer, holds adapters that are to go' * waiting}. A resume with "
            f"--set storage.max_gb={math.ceil((self.limit + short) / GB * 10_000) / 10_000:g} or more goes on"
        )


def written(tokenizer: Any, backbone: Backbone, data: TaskData, splits: Sequence[str], longest: int) -> WrittenBytes:
    """Sizes that are the same for all trials: what is beside an adapter's tensors, and all its predictions.

    `longest` is that of a prediction, in tokens; one of a label is as long as the labels are.
    """
    with tempfile.TemporaryDirectory(prefix="petl-search-") as folder:
        tokenizer.save_pretrained(folder)
        fixed = sum(files_in(Path(folder)).values())
    fixed += len(json.dumps({"backbone": backbone.to_dict(), "task": data.facts()}, indent=1))
    said = max(map(len, data.labels)) if data.labels else 8 * longest  # bytes of a token, escapes included
    answers = [answer for split in splits for answer in data.references(split)]
    texts = sum(len(json.dumps(answer, ensure_ascii=False).encode()) + 2 * said + 40 for answer in answers)
    return WrittenBytes(fixed, texts)
