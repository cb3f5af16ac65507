"""What heads start from is fitted once a study, and kept: every worker and every resume has the same bits."""

from __future__ import annotations

from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from studies import context, study

from search.config.loading import load_config
from search.config.study import StudyConfig
from search.storage.remote import set_store
from search.study.places import StudyError
from search.study.runner import head_starts
from search.trials.records import Records
from search.workers import scoring
from search.workers.assignment import StudyContext


class Fits:
    """Stands for the fit on a worker: what it gives, and how often it was asked."""

    def __init__(self, content: bytes) -> None:
        self.content, self.asked = content, list[str]()

    def __call__(self, context: StudyContext, resources: object, pooling: str) -> bytes:
        self.asked.append(pooling)
        return self.content


@pytest.fixture
def fits(monkeypatch: pytest.MonkeyPatch) -> Fits:
    found = Fits(b"fitted")
    monkeypatch.setattr(scoring, "head_start", found)
    return found


def begun(folder: Path, **sections: Any) -> tuple[Records, StudyContext, StudyConfig]:
    content = study(folder / "inputs", **sections)
    records, what = Records.in_memory(), context(folder / "study", content)
    records.resolved = what.resolved
    return records, what, load_config(content)


@pytest.mark.parametrize("remote", [False, True])
def test_it_is_fitted_once_and_lies_where_the_trials_are(tmp_path: Path, fits: Fits, remote: bool) -> None:
    records, what, config = begun(tmp_path)
    set_store(tmp_path / "study", str(tmp_path / "store") if remote else None)
    assert head_starts(config, records, what) == {"mean": b"fitted"}
    assert records.resolved.starts == {"mean": sha256(b"fitted").hexdigest()}
    place = tmp_path / "store" / "study" if remote else tmp_path / "study"
    assert (place / "starts" / "mean.safetensors").read_bytes() == b"fitted"
    fits.content = b"of another machine"
    assert head_starts(config, records, what) == {"mean": b"fitted"}
    assert fits.asked == ["mean"]


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_bytes(b"fit")])
def test_what_is_lost_or_damaged_is_fitted_again_or_refused(
    tmp_path: Path, fits: Fits, damage: Callable[[Path], object]
) -> None:
    records, what, config = begun(tmp_path)
    head_starts(config, records, what)
    kept = tmp_path / "study" / "starts" / "mean.safetensors"
    damage(kept)
    assert head_starts(config, records, what) == {"mean": b"fitted"}
    assert kept.read_bytes() == b"fitted"
    damage(kept)
    fits.content = b"of another machine"
    with pytest.raises(StudyError, match=r"lost or damaged.*put starts/mean.safetensors back into .*study"):
        head_starts(config, records, what)
    assert records.resolved.starts == {"mean": sha256(b"fitted").hexdigest()}


def test_only_what_a_head_starts_from_is_fitted(tmp_path: Path, fits: Fits) -> None:
    records, what, config = begun(tmp_path / "none", head={"start": "random"})
    assert head_starts(config, records, what) == {}
    references = {"head_only": {"head": {"pooling": "last"}}, "full": {"head": {"start": "random"}}}
    records, what, config = begun(tmp_path / "two", head={"pooling": "first"}, references=references)
    assert sorted(head_starts(config, records, what)) == ["first", "last"]
    assert fits.asked == ["first", "last"]
