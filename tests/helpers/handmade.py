"""Studies as readers have them, made by hand: without a store, and without training."""

from __future__ import annotations

import io
import struct
from pathlib import Path
from typing import Any

from rich.console import Console

from petl.configuration import Configuration
from petl.design import Composition, Design, Form, Modification, Site
from petl.measurements import Measurements
from search.results.query import Study
from search.tracking.schema import StudyInfo, StudySummary, TrialRow
from search.trials.record import State, TrialRecord

BASE = 22_713_216
INFO = {
    "objectives": {"score": "accuracy", "cost": "stored_parameters"},
    "backbone": {"model": "package:minilm/model"},
    "task": {"name": "tweets"},
}


def trial(number: int, accuracy: float, stored: int, **changes: Any) -> TrialRecord:
    design = Design(
        (
            Modification(form=Form.PREFIX, site=Site.HEADS, composition=Composition.GATE, size=number + 1),
            Modification(form=Form.BOTTLENECK, site=Site.FFN, composition=Composition.SCALE, size=8, scale=4.0),
        )
    )
    measured = Measurements(
        accuracy=accuracy,
        loss=1 - accuracy,
        stored_parameters=stored,
        stored_percent=100 * stored / BASE,
        base_parameters=BASE,
        seconds=10.0 + number,
        latency_ms=8.0 + number / 10,
    )
    values = {
        "number": number,
        "state": State.COMPLETE,
        "configuration": Configuration(design),
        "measurements": measured,
    }
    return TrialRecord(**{**values, **changes})


RECORDS = [
    *(trial(n, 0.65 + 0.01 * n - 0.0005 * n * n, 3_000 * 2**n) for n in range(8)),
    *(trial(8 + n, 0.60 + 0.01 * n, 5_000 * 2**n) for n in range(6)),
    trial(14, 0.3, 9_999),
    trial(15, 0.61, 50_000, state=State.PRUNED, rungs={0.5: 0.6, 1.0: 0.67}, measurements=None),
    trial(16, 0.0, 1, state=State.FAIL, measurements=None, failure="diverged: loss\nat step 3"),
    trial(17, 0.73, BASE, reference="full"),
    trial(18, 0.43, 0, reference="majority", configuration=None),
]


def study(records: list[TrialRecord] = RECORDS, **objectives: str) -> Study:
    info = {**INFO, "objectives": {**INFO["objectives"], **objectives}}
    summary = StudySummary(
        name="demo", experiment_id="1", run_id="p", status="FINISHED", started=0.0, info=StudyInfo.from_dict(info)
    )
    rows = [
        TrialRow(
            record=record,
            run_id=f"run-{record.number}",
            counts={"stored_parameters": 50_000} if record.number == 15 else {},
            facts={"final": {"test": {"accuracy": 0.5}}},
        )
        for record in records
    ]
    return Study(summary, tuple(rows), "sqlite:///nowhere.db")


def printed(what: Any, width: int) -> str:
    out = Console(width=width, file=io.StringIO(), color_system=None)
    what(out)
    text = out.file.getvalue()  # type: ignore[attr-defined]
    assert isinstance(text, str)
    return text


def failed(number: int, reason: str | None) -> TrialRecord:
    return trial(number, 0.0, 1, state=State.FAIL, measurements=None, failure=reason)


def size_of_png(file: Path) -> tuple[int, int]:
    data = file.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    return struct.unpack(">II", data[16:24])
