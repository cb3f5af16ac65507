"""The limit on a study's bytes: what makes way is decided as by brute force, and a real search never exceeds it."""

from __future__ import annotations

import os
import threading
from collections.abc import Collection, Iterator
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import loop
import numpy as np
import pytest
import studies
from rich.console import Console
from scope import ALL

from petl import tasks
from petl.configuration import Configuration, Training
from petl.presets import parse
from search.optimizer.budget import Budget
from search.optimizer.search import Search
from search.results import tables as report
from search.storage import folder, quota
from search.storage.errors import StoreError
from search.storage.folder import TrialFolder
from search.storage.quota import DiskError, Result, estimate, eviction
from search.storage.remote import RemoteStore, set_store
from search.study.run import run
from search.tracking.publisher import Publisher
from search.trials.record import Replicate, State
from search.trials.records import Records
from search.trials.report import Report
from search.trials.resolved import Resolved, WrittenBytes

TIGHT, WIDE = 0.0037, 0.0065  # the second with the page of the first search
DIRECTIONS = ("maximize", "minimize")


# --- deciding ------------------------------------------------------------------------------------


def dominates(a: Result, b: Result) -> bool:
    """By the definition; of equals the earlier one stays on the front."""
    return no_worse(a, b) and (a.values != b.values or a.number < b.number)


def no_worse(a: Result, b: Result) -> bool:
    """By the score, and by each cost."""
    (score, *costs), (other, *prices) = a.values, b.values
    return score >= other and all(cost <= price for cost, price in zip(costs, prices, strict=True))


def layer(result: Result, others: list[Result]) -> int:
    """0 where no other is better in one and not worse in the other; else one more than the deepest that is."""
    above = [other for other in others if other.values != result.values and no_worse(other, result)]
    return 1 + max((layer(other, others) for other in above), default=-1)


def brute_force(lacking: int, results: list[Result]) -> set[int] | None:
    """Of all sets that are large enough and hold with a result also all worse ones: the smallest."""
    searched = [result for result in results if not result.reference]
    front = [one for one in searched if not any(dominates(other, one) for other in searched)]

    def badness(result: Result) -> tuple[float, ...]:
        if result.reference:
            return (0, 0, 0, -result.number)
        return (1, layer(result, searched), -result.values[0], result.number)

    allowed = [one for one in results if one not in front and one.spare and one.size]
    fitting = [
        {one.number for one in chosen}
        for count in range(len(allowed) + 1)
        for chosen in combinations(allowed, count)
        if sum(one.size for one in chosen) >= lacking
        and all(worse in chosen for one in chosen for worse in allowed if badness(worse) > badness(one))
    ]
    return min(fitting, key=len, default=None)


@pytest.mark.parametrize("costs", [1, 2])
def test_what_makes_way_is_what_brute_force_finds(costs: int) -> None:
    draw = np.random.default_rng(0)
    found = set()
    for _ in range(300):
        results = [
            Result(
                number,
                int(draw.integers(0, 4)),
                tuple(float(value) for value in draw.integers(0, 4, size=1 + costs)),
                spare=bool(draw.random() < 0.8),
                reference=bool(draw.random() < 0.2),
            )
            for number in range(int(draw.integers(0, 9)))
        ]
        lacking = int(draw.integers(0, 12))
        chosen = eviction(lacking, results, (*DIRECTIONS, "minimize")[: 1 + costs])
        assert (None if chosen is None else set(chosen)) == brute_force(lacking, results), (lacking, results)
        found.add(None if chosen is None else len(chosen))
    assert {None, 0, 1, 2, 3} <= found


def test_references_go_last_and_the_front_never() -> None:
    best, dominated = Result(0, 9, (0.9, 10.0)), Result(1, 1, (0.8, 20.0))
    reference = Result(2, 5, (0.1, 99.0), reference=True)
    assert eviction(1, [best, dominated, reference], DIRECTIONS) == [1]
    assert eviction(2, [best, dominated, reference], DIRECTIONS) == [1, 2]
    assert eviction(7, [best, dominated, reference], DIRECTIONS) is None
    assert eviction(2, [best, dominated, replace(reference, spare=False)], DIRECTIONS) is None


def test_what_a_trial_writes_is_within_what_was_reserved(tmp_path: Path) -> None:
    """A small transformer whose tensors outweigh all else: the bounds hold, and are not twice too large."""
    from search.config.loading import load_config
    from search.study.resolve import resolve
    from search.workers.assignment import Assignment, StudyContext
    from search.workers.training import TrialTraining, WarmModel

    content = studies.study(tmp_path, rows=180)
    resolved = resolve(load_config(content))
    for text in ("full", "prefix:length=4,reparameterisation=512", "lora:rank=8"):
        configuration = Configuration(parse(text), Training(epochs=1.0, batch_size=16, keep="accuracy"))
        context = StudyContext(str(tmp_path / text.partition(":")[0]), replace(resolved, precision="fp32"))
        attempt = TrialTraining(WarmModel(context), Assignment(0, configuration, None, (0.5, 1.0), 0.0))
        attempt.advance()
        state = walked(attempt.folder.path)
        report = attempt.advance()
        assert report.measurements, report
        result = attempt.folder.find("result")
        assert result is not None
        need = estimate(configuration, resolved)
        left = walked(result) + walked(result / "adapter")
        assert left <= need.left
        assert 2 * state <= need.peak
        if text == "prefix:length=4,reparameterisation=512":
            assert need.peak < 3 * state
        attempt.close()


# --- asking and measuring ------------------------------------------------------------------------


def studied(trials: int) -> Records:
    """The records of a study with so many complete trials."""
    records = Records.in_memory()
    records.resolved = Resolved(
        backbone=loop.BACKBONE,
        task=tasks.resolve({"name": "sst2"}),
        labels=("bad", "good"),
        rows={"train": 100},
        digest="",
        epochs=None,
        precision="fp32",
        uri=None,
        generates=False,
        final=(),
        written=WrittenBytes(1_000, 1_000),
    )
    search = Search(records, loop.plan(budget=Budget(trials=trials)))
    for number in range(trials):
        search.next(1)
        search.finish(number, loop.measured(records.get(number).configuration))
    return records


def test_what_a_probe_leaves_is_within_what_was_reserved() -> None:
    """The probe itself, the adapter with it, and the adapter's published copy; of so many labels that these count."""
    labels = tuple(map(str, range(20_000)))
    need = estimate(None, replace(studied(1).resolved, labels=labels, written=WrittenBytes(0, 0)))
    probe = 4 * len(labels) * (32 + 1)  # float32: as many weights as the backbone is wide, and a bias
    assert 3 * probe <= need.left <= need.peak < 7 * probe


def test_every_replicate_of_a_trial_is_weighed_at_once(tmp_path: Path) -> None:
    """There is room for two; each one that is accepted counts for the next, however soon that one is asked for."""
    records = studied(1)
    configuration = records.get(0).configuration
    limit = quota.SPARE + 2 * estimate(configuration, records.resolved).peak + 10_000
    usage = quota.Usage(tmp_path, None, records)
    room = quota.Quota(
        limit, usage, tmp_path, records, shown=list, withdraw=lambda number: None, settle=lambda *_: True, patience=0.0
    )
    assert [bool(room.refusal(configuration, [0] * running)) for running in range(5)] == [
        False,
        False,
        True,
        True,
        True,
    ]
    assert not room.refusal(configuration, [0])


def test_an_interrupted_replicate_keeps_its_state_and_is_resumed_where_it_fitted_before(tmp_path: Path) -> None:
    """Nothing runs while it is asked for, and what it has stored is part of what it may take."""
    records = studied(1)
    configuration = records.get(0).configuration
    assert configuration is not None
    records.replicates = [Replicate(number=0, seed=1)]
    replicate = TrialFolder(tmp_path, 0, 1)
    (replicate.begin("state-1") / "weights").write_bytes(bytes(200_000))
    replicate.commit("state-1")
    usage = quota.Usage(tmp_path, None, records)
    peak = estimate(configuration, records.resolved).peak
    for limit, refused in ((quota.SPARE + peak + 10_000, False), (quota.SPARE + peak - 10_000, True)):
        room = quota.Quota(
            limit, usage, tmp_path, records, shown=list, withdraw=lambda _: None, settle=lambda *_: True, patience=0.0
        )
        assert bool(room.refusal(replace(configuration, seed=1), [])) is refused
        assert replicate.latest_state()


def test_a_result_that_an_open_trial_will_be_given_is_not_evicted(tmp_path: Path) -> None:
    records = studied(6)
    configurations = [record.configuration for record in records.all()]
    for number in range(6):
        (TrialFolder(tmp_path, number).begin("result") / "weights").write_bytes(bytes(100_000))
        TrialFolder(tmp_path, number).commit("result")

    def evicted() -> list[int]:
        withdrawn: list[int] = []
        usage = quota.Usage(tmp_path, None, records)
        limit = usage.used + quota.SPARE + estimate(configurations[0], records.resolved).peak - 50_000
        room = quota.Quota(
            limit, usage, tmp_path, records, shown=list, withdraw=withdrawn.append, settle=lambda *_: True, patience=0.0
        )
        room.refusal(configurations[0], [])
        return withdrawn

    [worst] = evicted()
    records.create(configurations[worst], reference="the same")
    assert evicted() == []  # the others are on the front


@pytest.mark.parametrize("stored", [False, True])
def test_a_trial_is_listed_again_only_when_it_changed(
    stored: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records, study = studied(20), tmp_path / "demo"
    listed: list[str] = []
    if stored:
        set_store(study, str(tmp_path / "shared"))
        listing = RemoteStore.files

        def files(store: RemoteStore, path: str) -> dict[str, int]:
            listed.append(path)
            return listing(store, path)

        monkeypatch.setattr(RemoteStore, "files", files)
    else:
        walk = folder.files_in

        def files_in(path: Path, skip: Collection[str] = ()) -> dict[str, int]:
            listed.append(path.relative_to(study).as_posix())
            return walk(path, skip)

        for module in ("folder", "listing"):
            monkeypatch.setattr(f"search.storage.{module}.files_in", files_in)
    for number in range(20):
        write(study, number, 100)
    usage = quota.Usage(study, None, records)
    publisher = Publisher(lambda *entries: None, records, study, lambda: usage.used)
    listed.clear()
    publisher.everything()
    assert listed == ["trials"]
    kept = tmp_path / "shared" / "demo" / "trials" if stored else study / "trials"
    assert usage.used == pytest.approx(walked(kept), abs=200)  # beside the trials lies the store's address alone
    listed.clear()
    for number in (3, 4):
        write(study, number, 5_000)
        listed.clear()
        for listener in (usage, publisher):
            listener.ended(records.get(number))
        publisher.usage()
        assert set(listed) == {f"trials/{number:04d}"}
    assert usage.used == pytest.approx(walked(kept), abs=200)
    usage.relist()
    assert usage.used == pytest.approx(walked(kept), abs=200)


def write(study: Path, number: int, size: int) -> None:
    trial = TrialFolder(study, number)
    part = folder.ResultPart(trial.begin(folder.RESULT))
    folder.write_json(part.report, Report().to_dict())
    (part.folder / "weights").write_bytes(bytes(size))
    trial.commit(folder.RESULT)


# --- a real search -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        path = tmp_path_factory.mktemp("home")
        patch.setenv("PETL_SEARCH_HOME", str(path))
        yield path


class Sampler(threading.Thread):
    """The most bytes that some folders ever had together, looked at all the time."""

    def __init__(self, *folders: Path) -> None:
        super().__init__(daemon=True)
        self.folders, self.most, self.looks = folders, 0, 0
        self._over = threading.Event()

    def __enter__(self) -> Sampler:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self.join()

    def run(self) -> None:
        while not self._over.wait(0.005):
            self.most, self.looks = max(self.most, sum(map(walked, self.folders))), self.looks + 1


def walked(folder: Path) -> int:
    total = 0
    for where, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.stat(os.path.join(where, name)).st_size
            except OSError:
                continue
    return total


@pytest.fixture(scope="module")
def content(home: Path) -> dict[str, Any]:
    return studies.study(
        home / "inputs",
        rows=160,
        references=["majority", "head_only"],
        budget={"trials": 8, "epochs": 2},
        scheduler={"name": "none"},
    )


@pytest.mark.full("a search of minutes")
def test_a_search_stays_within_its_limit_and_its_front_is_whole(
    home: Path, content: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("search.storage.quota.SPARE", 2_800_000)  # so that a study this small feels its limit
    sampled = [home / "studies" / "tiny", home / "artifacts" / "tiny"]
    with pytest.raises(DiskError, match=r"head_only 0\.2 MB"):
        run({**content, "storage": {"max_gb": 0.0008}})
    if ALL:  # first with a limit that ends it early
        out = Console(record=True, width=500, file=(home / "out.txt").open("w"))
        with Sampler(*sampled) as sampler:
            early = run({**content, "storage": {"max_gb": TIGHT}}, console=out)
        assert 0 < sampler.most <= TIGHT * 10**9
        assert 0 < len(early.trials) < 8
        assert f"storage.max_gb {TIGHT:g} leaves no room for another trial: used are" in out.export_text()
        assert {trial.state for trial in early.trials} == {State.COMPLETE}

    with Sampler(*sampled) as sampler:
        study = run({**content, "storage": {"max_gb": WIDE}}, or_resume=True, console=Console(quiet=True))
    assert sampler.looks > 100
    assert 0 < sampler.most <= WIDE * 10**9
    assert [trial.state for trial in study.trials] == [State.COMPLETE] * 8
    gone = [trial for trial in study.trials if trial.row.withdrawn]
    members = {trial.number for trial in study.front()}
    assert gone
    assert members.isdisjoint(trial.number for trial in gone)
    for member in study.front():
        assert member.load_model().predict(["great lovely word1"])
    with pytest.raises(StoreError, match=r"removed to stay within storage\.max_gb"):
        gone[0].export(home / "gone")
    assert gone[0].score is not None
    for trial in gone:
        assert TrialFolder(sampled[0], trial.number).find("result") is None
    out = Console(record=True, width=200, file=(home / "show.txt").open("w"))
    report.print_study(study, out)
    used = study.summary.disk.used
    assert used is not None
    assert used == pytest.approx(sum(map(walked, sampled)), rel=0.02)
    assert "MB used of" in out.export_text()
