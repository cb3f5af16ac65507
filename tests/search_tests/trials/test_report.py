"""A worker's report as JSON: between processes, and in the folder of a trial."""

from __future__ import annotations

import json

from petl.measurements import Measurements
from search.trials.report import Report, curve

POINTS = [{"step": 10, "loss": 0.5, "learning_rate": 1e-3, "tokens_per_second": 9.0, "seconds": 1.0}]
VALIDATIONS = [{"step": 20, "epoch": 1.0, "scores": {"accuracy": 0.5}, "seconds": 2.0}]


def test_a_report_survives_json() -> None:
    running = Report(process=7, startup_seconds=1.5, points=POINTS, validations=VALIDATIONS)
    trained = Report(process=7, measurements=Measurements(accuracy=0.5, seconds=3.0))
    failed = Report(failure="out of memory: 9 GB")
    for report in (running, trained, failed, Report()):
        assert Report.from_json(report.to_json()) == report
    assert [report.done for report in (running, trained, failed)] == [False, True, True]


def test_what_ba3158e_left_in_a_folder_is_read() -> None:
    written = {
        "process": 7,
        "startup_seconds": 1.5,
        "points": POINTS,
        "validations": VALIDATIONS,
        "measurements": {"accuracy": 0.5, "stored_parameters": 12, "seconds": 3.0},
    }
    report = Report.from_json(json.dumps(written))
    assert report.done
    assert report.measurements == Measurements(accuracy=0.5, stored_parameters=12, seconds=3.0)
    assert {name: report.to_dict()[name] for name in written if name != "measurements"} == {
        name: value for name, value in written.items() if name != "measurements"
    }
    assert report.to_dict()["measurements"].items() >= written["measurements"].items()


def test_what_there_is_nothing_of_is_not_written() -> None:
    assert Report(failure="diverged").to_dict() == {"failure": "diverged"}


def test_curve_tells_training_loss_from_validation_loss() -> None:
    points = [{"step": 10, "loss": 0.9, "learning_rate": 0.1}]
    validations = [{"step": 10, "epoch": 1.0, "scores": {"loss": 0.7, "accuracy": 0.6}, "seconds": 4.0}]
    assert curve(points, validations) == [
        {"step": 10, "train_loss": 0.9, "learning_rate": 0.1},
        {"step": 10, "epoch": 1.0, "seconds": 4.0, "loss": 0.7, "accuracy": 0.6},
    ]
