"""Trials kept in an object store, spoken to in its own protocol, or in a folder that nodes share."""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path

import pytest
import studies
from rich.console import Console

from petl.configuration import Configuration, Training
from petl.presets import parse
from search.config.loading import load_config
from search.config.text import ConfigError
from search.storage.folder import TrialFolder
from search.storage.listing import trial_files
from search.storage.remote import RemoteStore, StoreAwayError, set_store
from search.study.places import StudyError
from search.study.run import resume, run
from search.trials.record import State
from search.workers.training import failed


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """The address of a bucket of an S3 server on this machine."""
    import boto3
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", "a-key")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "a-secret")
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        server.start()
        host, port = server.get_host_and_port()
        client = boto3.client("s3", endpoint_url=f"http://{host}:{port}", region_name="us-east-1")
        client.create_bucket(Bucket="studies")
        yield f"s3://studies/{{}}?endpoint_override={host}:{port}&scheme=http&region=us-east-1"
        server.stop()


@pytest.fixture(params=["s3", "folder"])
def address(request: pytest.FixtureRequest, tmp_path: Path, numbers: Iterator[int]) -> str:
    if request.param == "folder":
        return str(tmp_path / "shared")
    text: str = request.getfixturevalue("s3").format(f"prefix/{next(numbers)}")
    return text


@pytest.fixture(scope="module")
def numbers() -> Iterator[int]:
    return count()


@pytest.fixture
def node(address: str, tmp_path: Path) -> Callable[[str], Path]:
    """The study's folder on a node of that name."""

    def folder(name: str) -> Path:
        set_store(tmp_path / name / "demo", address)
        return tmp_path / name / "demo"

    return folder


def write(trial: TrialFolder, part: str, text: str = "x", *, commit: bool = True) -> None:
    folder = trial.begin(part)
    (folder / "inner").mkdir()
    (folder / "inner" / "a.txt").write_text(text)
    (folder / "empty").touch()
    if commit:
        trial.commit(part)


def test_what_one_node_commits_another_finds(node: Callable[[str], Path], address: str) -> None:
    here, there = TrialFolder(node("here"), 7), TrialFolder(node("there"), 7)
    assert there.find("result") is None
    write(here, "result")
    found = there.find("result")
    assert found == there.path / "result"
    assert (found / "inner" / "a.txt").read_text() == "x"
    assert (found / "empty").read_bytes() == b""
    assert set(trial_files(node("third"))[7].sizes) == {"result/inner/a.txt", "result/empty", "result/manifest.json"}
    assert set(RemoteStore(address, "demo").files("trials/0007")) == set(trial_files(node("third"))[7].sizes)


def test_a_study_of_another_script_is_found_by_its_name(address: str, tmp_path: Path) -> None:
    name = "отзывы-评论-مراجعات"
    for node in ("a", "b"):
        set_store(tmp_path / node / name, address)
    write(TrialFolder(tmp_path / "a" / name, 0), "result")
    found = TrialFolder(tmp_path / "b" / name, 0).find("result")
    assert found is not None
    assert (found / "inner" / "a.txt").read_text() == "x"
    assert list(trial_files(tmp_path / "b" / name)) == [0]
    assert RemoteStore(address, name).has_committed_parts()
    assert not RemoteStore(address, "another").has_committed_parts()


def test_the_store_is_the_truth(node: Callable[[str], Path], address: str) -> None:
    """Not what a node has left of an earlier driver, or of a study of the same name."""
    here, there = TrialFolder(node("here"), 0), TrialFolder(node("there"), 0)
    write(here, "result", "old")
    assert there.find("result")
    RemoteStore(address, "demo").delete()
    assert here.find("result") is None
    assert there.find("result") is None
    write(here, "result", "new")
    found = there.find("result")
    assert found
    assert (found / "inner" / "a.txt").read_text() == "new"
    (found / "inner" / "a.txt").write_text("damaged here")
    assert there.find("result") == found
    assert (found / "inner" / "a.txt").read_text() == "new"
    there.drop("result")
    assert here.find("result") is None


def test_an_upload_that_was_interrupted_or_damaged_is_no_part(node: Callable[[str], Path], address: str) -> None:
    here, there = TrialFolder(node("here"), 0), TrialFolder(node("there"), 0)
    store = RemoteStore(address, "demo")
    write(here, "state-1", commit=False)
    store.upload(here.path / "state-1" / "inner" / "a.txt", "trials/0000/state-1/inner/a.txt")
    assert there.latest_state() is None
    there.drop_interrupted()
    assert store.files("trials/0000") == {}
    for part in ("state-2", "state-10", "state-9"):
        write(here, part)
    state = there.latest_state()
    assert state
    assert state.name == "state-10"
    store.write("trials/0000/state-10/inner/a.txt", b"torn")
    state = TrialFolder(node("third"), 0).latest_state()
    assert state
    assert state.name == "state-9"
    there.drop_states(keep="state-9")
    assert {name.partition("/")[0] for name in store.files("trials/0000")} == {"state-9"}


def test_a_replicate_in_a_store_keeps_what_it_committed(node: Callable[[str], Path]) -> None:
    write(TrialFolder(node("here"), 7, 1), "state-1")
    TrialFolder(node("there"), 7).drop_interrupted()
    assert TrialFolder(node("third"), 7, 1).latest_state()


def test_a_manifest_cannot_name_files_outside_its_part(node: Callable[[str], Path], address: str) -> None:
    store = RemoteStore(address, "demo")
    store.write("trials/0000/result/manifest.json", b'{"../../../escaped": "0"}')
    store.write("trials/0000/result/x", b"")
    assert TrialFolder(node("here"), 0).find("result") is None
    assert not list(node("here").parent.rglob("escaped"))


def test_a_trial_goes_on_at_another_node(node: Callable[[str], Path], tmp_path: Path) -> None:
    """Bit for bit as it would have on the first one."""
    from search.study.resolve import resolve
    from search.workers.assignment import Assignment, StudyContext
    from search.workers.training import TrialTraining, WarmModel

    content = studies.study(tmp_path / "inputs")
    resolved = resolve(load_config(content))
    configuration = Configuration(parse("lora:rank=2"), Training(epochs=2.0, batch_size=16))
    assignment = Assignment(0, configuration, None, (1.0, 2.0), time.time())

    def attempt(folder: Path) -> TrialTraining:
        return TrialTraining(WarmModel(StudyContext(str(folder), replace(resolved, precision="fp32"))), assignment)

    first = attempt(node("one"))
    assert not first.advance().done
    first.close()  # and is never heard of again
    second = attempt(node("two"))
    assert len(second.advance().validations) == 1  # as the state has it
    done = second.advance()
    calm = attempt(tmp_path / "calm")
    calm.advance()
    expected = calm.advance().measurements
    for score in ("accuracy", "loss"):
        assert getattr(done.measurements, score) == getattr(expected, score)
    parts = {name.partition("/")[0] for name in trial_files(node("three"))[0].sizes}
    assert parts == {"result"}


# --- what goes wrong -----------------------------------------------------------------------------


def test_a_store_that_is_away_is_said_within_seconds(s3: str) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        port = nobody.getsockname()[1]
    began = time.monotonic()
    with pytest.raises(StoreAwayError, match=rf"the store s3://studies/x\?endpoint_override=127.0.0.1:{port}.*onnect"):
        RemoteStore(f"s3://studies/x?endpoint_override=127.0.0.1:{port}&scheme=http&region=us-east-1", "demo").require()
    assert time.monotonic() - began < 30
    with pytest.raises(StoreAwayError, match="bucket"):
        RemoteStore(s3.replace("studies/{}", "no-such-bucket/x"), "demo").require()
    RemoteStore(s3.format("x"), "demo").require()


def test_a_store_that_goes_away_is_no_fault_of_the_trial(
    s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("search.storage.remote._ATTEMPTS", 1)
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        set_store(
            tmp_path / "demo", f"s3://x?endpoint_override=127.0.0.1:{nobody.getsockname()[1]}&scheme=http&region=eu"
        )
        with pytest.raises(StoreAwayError) as raised:
            TrialFolder(tmp_path / "demo", 0).find("result")
    assert failed(raised.value).failure.startswith("store away: ")


@pytest.mark.parametrize("text", ["ftp://host/x", "s3://bucket/x?colour=red"])
def test_what_pyarrow_does_not_read_is_refused(text: str) -> None:
    with pytest.raises(StoreAwayError, match=r"a folder or an address such as s3://bucket/prefix.*received"):
        RemoteStore(text, "demo")


@pytest.mark.parametrize(
    "text",
    ["s3://key:s3cret@bucket/x", "s3://key:s3/cret@bucket/x", "s3://bucket/x?secret_key=s3cret", "abfs://:s3cret@me/x"],
)
def test_keys_in_an_address_are_refused_and_not_printed(text: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="the keys of a store are the environment's") as raised:
        load_config(studies.study(tmp_path, storage={"path": text}))
    assert "s3cret" not in str(raised.value)
    assert "cret@" not in str(raised.value)


# --- a whole study -------------------------------------------------------------------------------


@pytest.mark.full("two searches")
def test_a_study_whose_scratch_is_lost_goes_on_from_its_store(
    s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    monkeypatch.setenv("PETL_SEARCH_HOME", str(tmp_path / "home"))
    where = s3.format("whole")
    content = studies.study(
        tmp_path / "inputs",
        references=["majority"],
        budget={"trials": 2, "epochs": 2},
        scheduler={"name": "none"},
        storage={"path": where, "max_gb": 0.05},
    )
    study = run(content, console=Console(quiet=True))
    assert [trial.state for trial in study.trials] == [State.COMPLETE] * 2
    assert all(member.test_score is not None for member in study.front())
    store = RemoteStore(where, "tiny")
    before = {number: store.read(f"trials/{number:04d}/result/manifest.json") for number in range(3)}
    assert all(before.values())
    assert not any("/state-" in name for name in store.files("trials"))
    with pytest.raises(StudyError, match="are kept at s3://"):
        resume("tiny", overrides=[f"storage.path={tmp_path}"])
    shutil.rmtree(tmp_path / "home" / "studies" / "tiny" / "trials")
    study = resume("tiny", overrides=["budget.trials=3"], console=Console(quiet=True))
    assert [trial.state for trial in study.trials] == [State.COMPLETE] * 3
    for number, manifest in before.items():
        assert store.read(f"trials/{number:04d}/result/manifest.json") == manifest
    for member in study.front():
        assert member.load_model().predict(["great lovely word1"])
    assert study.summary.disk.used
