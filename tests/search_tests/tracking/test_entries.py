"""What waits to be published: written, read back, applied; to every tracker of the study."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from published import record

from search.storage.errors import StoreError
from search.tracking.entries import (
    KINDS,
    Artifacts,
    Begin,
    Close,
    Disk,
    Ensure,
    Entry,
    Facts,
    Front,
    Progress,
    Publish,
    Replicated,
    Spending,
    Withdraw,
    parsed,
    written,
)
from search.tracking.outbox import Delivery, Journal
from search.tracking.tracker import open_others
from search.trials.record import Replicate, Spent

RECORD = record(3, 0.5, 100)
REPLICATE = Replicate(number=3, seed=7, failure="diverged", started=1.0, ended=2.0)
ENTRIES: list[tuple[Entry, tuple[Any, ...], dict[str, Any]]] = [  # with the call that each comes to
    (Begin(), ("begin",), {}),
    (Ensure(RECORD), ("ensure", RECORD), {}),
    (Publish(RECORD, {"a": 1.0}), ("publish", RECORD, {"a": 1.0}), {"at": 9.0}),
    (Progress(3, [{"step": 1}]), ("progress", 3, [{"step": 1}]), {"at": 9.0}),
    (Facts(3, {"final": {"test": {}}}), ("facts", 3, {"final": {"test": {}}}), {"at": 9.0}),
    (Replicated(REPLICATE, []), ("replicate", REPLICATE, []), {"at": 9.0}),
    (Artifacts(3, "x/y", "adapter"), ("artifacts", 3, Path("/study/x/y"), "adapter"), {}),
    (Withdraw(3, "no room"), ("withdraw", 3, "no room"), {}),
    (Disk(5, None), ("disk", 5, None), {}),
    (Spending(0.5, 1.0), ("spent", Spent(hours=0.5, device_hours=1.0)), {}),
    (Front([{"a": 1}], [], ["f.csv"]), ("front", [{"a": 1}], [], [Path("/study/f.csv")]), {}),
    (Close("FINISHED"), ("close", "FINISHED"), {}),
]


class Recording:
    """A tracker that only remembers its calls."""

    def __init__(self) -> None:
        self.calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def __getattr__(self, name: str) -> Any:
        return lambda *arguments, **options: self.calls.append(((name, *arguments), options))


@pytest.mark.parametrize(("entry", "call", "options"), ENTRIES, ids=lambda value: type(value).__name__)
def test_an_entry_is_read_back_and_applies_itself(entry: Entry, call: tuple[Any, ...], options: dict[str, Any]) -> None:
    kind, values = written(entry)
    again = parsed(kind, json.loads(json.dumps(values)))
    assert again == entry
    tracker = Recording()
    again.apply(tracker, Path("/study"), 9.0)
    assert tracker.calls == [(call, options)]


def test_every_kind_is_tested() -> None:
    assert {type(entry) for entry, _, _ in ENTRIES} == set(KINDS.values())


def test_the_journal_of_an_earlier_version_is_read() -> None:
    """As ba3158e wrote what a trial scored on whole splits, and what its seeds say."""
    assert parsed("tested", {"number": 3, "scores": {"test": {"f1": 0.5}}}) == Facts(
        3, {"final": {"test": {"f1": 0.5}}}
    )
    assert parsed("believed", {"number": 3, "what": {"mean": 0.5}}) == Facts(3, {"believed": {"mean": 0.5}})


def test_a_second_tracker_is_a_function_in_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_tracker.py").write_text(
        "class Lines:\n"
        "    def __init__(self, file): self.file = file\n"
        "    def __getattr__(self, name):\n"
        "        return lambda *arguments, **options: self.file.open('a').write(name + '\\n')\n"
        "def lines(study, folder, info): return Lines(folder / f'{study}.txt')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    first = Recording()

    def connect() -> list[Any]:
        return [first, *open_others(["my_tracker:lines"], "demo", tmp_path, {})]

    with Delivery(Journal(tmp_path / "journal", print), connect, tmp_path, print) as delivery:
        delivery.send(Begin(), Publish(RECORD, {}), Close("FINISHED"))
        assert delivery.drain(patience=60.0)
    assert [call[0] for call, _ in first.calls] == ["begin", "publish", "close"]
    assert (tmp_path / "demo.txt").read_text().split() == ["begin", "publish", "close"]


@pytest.mark.parametrize("name", ["no_such_module:open", "json:no_such_function", "json", ""])
def test_a_tracker_that_is_not_there_is_named(name: str, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"package\.module:function"):
        open_others([name], "demo", tmp_path, {})
