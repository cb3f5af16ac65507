"""Study files that are drafted from a model and a file of rows."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import studies
import texts
from rich.console import Console
from typer.testing import CliRunner, Result

from search import cli
from search.config.loading import load_config
from search.config.study import StudyConfig
from search.config.text import ConfigError
from search.study.draft import DraftError, _affordable, _longest, draft, write
from search.study.resolve import resolve
from search.study.run import run


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("models")
    return {
        "bert": str(studies.write_backbone(folder / "bert")),
        "bart": str(texts.write_backbone("bart", folder / "bart")),
        "gpt2": str(texts.write_backbone("gpt2", folder / "gpt2")),
    }


def labelled(folder: Path) -> pd.DataFrame:
    return pd.read_csv(studies.write_rows(folder / "drawn.csv", 200))


def sentences(folder: Path) -> pd.DataFrame:
    return pd.read_json(texts.write_rows(folder / "drawn.jsonl", 200), lines=True)


def reviews(folder: Path) -> Path:
    """Labels that are numbers, and texts of two lines behind a byte order mark."""
    frame = labelled(folder)
    frame["text"] = [text.replace(" ", "\n", 1) for text in frame["text"]]
    frame["stars"] = frame.pop("label").map({"bad": 1, "plain": 3, "good": 5})
    frame.to_csv(file := folder / "My Reviews.csv", index=False, encoding="utf-8-sig")
    return file


def pairs(folder: Path) -> Path:
    frame = labelled(folder).rename(columns={"text": "premise", "label": "gold_label"})
    frame["hypothesis"] = frame["premise"].sample(frac=1.0, random_state=0).tolist()
    frame.to_csv(file := folder / "pairs.tsv", index=False, sep="\t")
    return file


def moods(folder: Path) -> Path:
    """No column has a usual name for a label, and one of the others is a number for each row."""
    rows = [{"id": n, "comment": row.text, "mood": row.label} for n, row in enumerate(labelled(folder).itertuples())]
    (file := folder / "moods.json").write_text(json.dumps(rows))
    return file


def news(folder: Path) -> Path:
    """The column that is called source names a newspaper."""
    frame = sentences(folder).rename(columns={"source": "document", "target": "summary"}).assign(source="gazette")
    frame.to_json(file := folder / "news.jsonl", orient="records", lines=True)
    return file


def chats(folder: Path) -> Path:
    frame = sentences(folder).rename(columns={"source": "prompt", "target": "completion"})
    frame.to_parquet(file := folder / "chats.parquet")
    return file


FILES = [
    (reviews, "bert", "text-classification", {"text": "text", "label": "stars"}, "my-reviews"),
    (
        pairs,
        "bert",
        "text-pair-classification",
        {"text": "premise", "pair": "hypothesis", "label": "gold_label"},
        "pairs",
    ),
    (moods, "bert", "text-classification", {"text": "comment", "label": "mood"}, "moods"),
    (news, "bart", "summarization", {"source": "document", "target": "summary"}, "news"),
    (chats, "gpt2", "summarization", {"source": "prompt", "target": "completion"}, "chats"),
]


def call(*arguments: str) -> Result:
    return CliRunner().invoke(cli.app, ["init", *arguments])


def drafted(file: Path, model: str, *arguments: str) -> StudyConfig:
    out = file.parent / "study.yaml"
    done = call("--model", model, "--data", str(file), "--out", str(out), *arguments)
    assert done.exit_code == 0, done.output
    assert done.stdout.splitlines()[-1].startswith(f"{out}: read it, then `")
    return load_config(out)


@pytest.mark.parametrize(("make", "model", "kind", "columns", "name"), FILES)
def test_a_file_is_understood(
    make: Callable[[Path], Path],
    model: str,
    kind: str,
    columns: dict[str, str],
    name: str,
    models: dict[str, str],
    tmp_path: Path,
) -> None:
    config = drafted(make(tmp_path), models[model], "--no-measure")
    assert (config.study, config.task["kind"], config.task["columns"]) == (name, kind, columns)
    assert "a guess: nothing was timed" in (tmp_path / "study.yaml").read_text()
    resolved = resolve(config)  # as a search begins: rows, labels, and one row through the model
    assert sum(resolved.rows.values()) == (200 if model == "bert" else len(sentences(tmp_path).drop_duplicates()))


def test_lengths_are_those_of_the_rows(models: dict[str, str], tmp_path: Path) -> None:
    """Words are tokens here: the longest text has 7, between two special ones."""
    config = drafted(news(tmp_path), models["bart"], "--no-measure")
    assert (config.task["max_length"], config.task["max_target_length"]) == (16, 16)
    assert "0.0% of the rows are longer and cut" in (tmp_path / "study.yaml").read_text()


def test_source_and_target_share_a_decoders_positions(models: dict[str, str], tmp_path: Path) -> None:
    """It has 40; the longest target takes 9 of them, and so 16."""
    frame = sentences(tmp_path)
    frame["source"] = [" ".join([text] * 9) for text in frame["source"]]
    frame.to_json(file := tmp_path / "long.jsonl", orient="records", lines=True)
    config = drafted(file, models["gpt2"], "--no-measure")
    assert (config.task["max_length"], config.task["max_target_length"]) == (24, 16)


@pytest.mark.parametrize(
    ("lengths", "room", "expected"),
    [
        ([7] * 100, 512, 8),
        ([8] * 100, 512, 8),
        ([9] * 100, 512, 16),
        ([5] * 99 + [900], 512, 8),
        ([900] * 100, 512, 512),
    ],
)
def test_a_length_leaves_99_of_100_rows_whole(lengths: list[int], room: int, expected: int) -> None:
    assert _longest(lengths, room) == expected


@pytest.mark.parametrize(
    ("seconds", "rows", "hours", "trials", "kept"),
    [
        (0.01, 1_000, 1.0, 100, None),  # 200 trials of 15 s, and 3 s each
        (0.1, 1_000, 1.0, 23, None),  # 23 of 150 s, and 3 s each
        (0.1, 4_000, 1.0, 12, 1_980),  # 5 of 600 s: 297 s for each of 12
        (1.0, 100_000, 0.1, 12, 18),  # 27 s for each of 12
    ],
)
def test_the_budget_is_what_the_hours_are_enough_for(
    seconds: float, rows: int, hours: float, trials: int, kept: int | None
) -> None:
    found, fewer, _ = _affordable(seconds, rows, hours)
    assert (found, fewer) == (trials, kept)


def test_a_measured_budget_is_in_the_file(models: dict[str, str], tmp_path: Path) -> None:
    config = drafted(reviews(tmp_path), models["bert"], "--hours", "0.02")
    assert 12 <= (config.budget.trials or 0) <= 100
    assert "ms a row with lora:rank=8 here" in (tmp_path / "study.yaml").read_text()


def test_a_large_model_is_not_timed(models: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("search.study.fit._TRIED", 1_000)  # bytes
    found = draft(models["bert"], str(reviews(tmp_path)))
    assert (found.trials, found.budget) == (24, "a guess: the model is too large to be timed in seconds")


def test_what_cannot_be_told_is_asked_for(models: dict[str, str], tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    labelled(tmp_path).assign(label2=["a", "b"] * 100, note=lambda rows: rows["text"]).rename(
        columns={"label": "one", "label2": "other", "text": "left", "note": "right"}
    ).to_csv(file, index=False)
    with pytest.raises(
        DraftError, match=r"the text of a text-classification .* may be any of 'left', 'right'.*--column text=NAME"
    ):
        draft(models["bert"], str(file), measure=False)
    with pytest.raises(DraftError, match=r"the label .* may be any of 'one', 'other'.*--column label=NAME"):
        draft(models["bert"], str(file), columns={"text": "left"}, measure=False)
    found = draft(models["bert"], str(file), columns={"text": "left", "label": "other"}, measure=False)
    assert found.task.columns == {"text": "left", "label": "other"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--kind", "regression"], "a kind is one of text-classification,"),
        (["--column", "text"], "a column is named by ROLE=NAME"),
        (["--column", "text=reviw"], "the file has the columns 'text', 'stars'; received reviw"),
        (["--out", "there.yaml"], "there.yaml is there already; --out names another file, and --force replaces one"),
    ],
)
def test_what_is_wrong_is_one_message(
    arguments: list[str], said: str, models: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("there.yaml").write_text("study: mine\n")
    done = call("--model", models["bert"], "--data", str(reviews(tmp_path)), "--no-measure", *arguments)
    assert isinstance(done.exception, DraftError)
    assert said in str(done.exception)
    assert sorted(path.name for path in tmp_path.glob("*.yaml")) == ["there.yaml"]
    assert Path("there.yaml").read_text() == "study: mine\n"


def test_a_text_that_is_not_read_is_said(models: dict[str, str], tmp_path: Path) -> None:
    file = tmp_path / "qnli.csv"
    frame = labelled(tmp_path)
    frame["question"] = [" ".join(reversed(text.split())) for text in frame["text"]]
    frame.to_csv(file, index=False)
    said = draft(models["bert"], str(file), measure=False).facts[-1]
    assert said == "not read: 'question'; --column ROLE=NAME gives a column another role"
    pair = draft(models["bert"], str(file), columns={"text": "question", "pair": "text"}, measure=False)
    assert pair.task.kind == "text-pair-classification"
    assert not pair.facts[-1].startswith("not read")


def test_a_file_without_rows(models: dict[str, str], tmp_path: Path) -> None:
    (file := tmp_path / "rows.csv").write_text("text,label\n")
    with pytest.raises(DraftError, match=r"rows\.csv has no rows"):
        draft(models["bert"], str(file), measure=False)


def test_rows_without_a_text_are_dropped_and_counted(models: dict[str, str], tmp_path: Path) -> None:
    frame = labelled(tmp_path)
    frame.loc[[3, 7], "text"] = None
    frame.to_csv(file := tmp_path / "gaps.csv", index=False)
    found = draft(models["bert"], str(file), measure=False)
    assert "of 200 read; dropped: 2 without text" in found.facts[0]
    assert found.task.max_length == 16  # words are tokens: the longest text has 13, between two special ones


def test_a_draft_that_is_no_study_replaces_nothing(models: dict[str, str], tmp_path: Path) -> None:
    drafted = replace(draft(models["bert"], str(reviews(tmp_path)), measure=False), trials=0)
    (out := tmp_path / "study.yaml").write_text("study: mine\n")
    with pytest.raises(ConfigError, match=r"budget\.trials"):
        write(drafted, out)
    assert out.read_text() == "study: mine\n"


@pytest.mark.full("a drafted study that is run")
def test_a_drafted_study_runs(models: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PETL_SEARCH_HOME", str(tmp_path / "home"))
    drafted(reviews(tmp_path), models["bert"], "--no-measure")
    config = load_config(tmp_path / "study.yaml", ["budget.trials=3", "budget.epochs=1", "resources.concurrent=1"])
    assert len(run(config, console=Console(quiet=True)).front())
