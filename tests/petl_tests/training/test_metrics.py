"""Scores of text equal what the libraries' own command lines say of the same files.

Real text comes from $PETL_DATA, by default `shared/data` beside the repository; without it those cases
are skipped, and handwritten lines remain.
"""

from __future__ import annotations

import csv
import gzip
import html
import json
import os
import random
import re
import subprocess
import sys
import unicodedata
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import sacrebleu

from petl.measurements import SCORES
from petl.tasks import SCRIPTS, Task, TaskError
from petl.training import evaluation, metrics
from petl.training.scripts import rouge_tokenizer, script_of

DATA = Path(os.environ.get("PETL_DATA", Path(__file__).parents[4] / "shared" / "data"))
ROUGE = ("rouge1", "rouge2", "rougeL", "rougeLsum")
ROMANIAN = (
    "Președintele a declarat că țara va primi 1.500 de refugiați până la sfârșitul anului.",
    "„Nu există nicio soluție”, a spus ministrul (într-un interviu) & a plecat…",
    "Şedinţa din 3 Martie s-a încheiat la ora 18:30 – fără rezultat.",
    "Îi mulțumesc dlui. Popescu pentru ajutor, <b>dar</b> aştept încă [un răspuns] | azi.",
    "O parte din sumă, 12,5% adică, se întoarce la stat: e\u00adxact cât s-a promis acum 2 ani.",
    "Ａｃｅｓｔ preț este mare！",
)
ALTERED = (
    "Presedintele a declarat ca tara va primi 1.500 de refugiati pana la sfarsitul lunii.",
    '"Nu există nici o soluție", a zis ministrul (într-un interviu) & a plecat...',
    "Ședința din 3 Martie s-a terminat la ora 18:30 - fără rezultat.",
    "Îi mulţumesc dlui. Popescu pentru ajutorul dat, <b>dar</b> aștept [un răspuns] | azi.",
    "",
    "Acest preț este mare!",
)
SUMMARIES = (
    "Nine men were arrested after a pitch invasion.\nThe club called the disruptions unacceptable.",
    "The striker is retiring.\nShe won two Olympic golds and scored 184 goals.",
    "A new chief executive was appointed.",
)
WRITTEN = (
    "The club said the repeated disruptions are unacceptable.\nNine men have been arrested.",
    "",
    "The broadcaster appoints its chief executive.\nHe joins in October.\n",
)


def rows(name: str) -> list[dict[str, str]]:
    path = DATA / name / "test.jsonl.gz"
    if not path.exists():
        pytest.skip(f"no {name}/test.jsonl.gz in {DATA}; PETL_DATA names the folder")
    return [json.loads(line) for line in gzip.decompress(path.read_bytes()).decode().splitlines()]


def noisy(lines: Sequence[str]) -> list[str]:
    """A word in eight dropped, one in eight swapped with the next; some lines empty."""
    draw = random.Random(0)
    altered = []
    for line in lines:
        words = [word for word in line.split() if draw.random() > 1 / 8]
        for index in range(len(words) - 1):
            if draw.random() < 1 / 8:
                words[index : index + 2] = reversed(words[index : index + 2])
        altered.append(" ".join(words) if draw.random() > 1 / 50 else "")
    return altered


def first_sentences(documents: Sequence[str]) -> list[str]:
    return [re.split(r"(?<=[.!?])\s", document, maxsplit=1)[0] for document in documents]


def translations(source: str) -> tuple[Sequence[str], Sequence[str]]:
    """Hypotheses and references."""
    if source == "handwritten":
        return ALTERED, ROMANIAN
    references = [row["ro"] for row in rows("wmt16_en_ro")]
    return noisy(references), references


def summaries(source: str) -> tuple[Sequence[str], Sequence[str]]:
    """Predictions and references."""
    if source == "handwritten":
        return WRITTEN, SUMMARIES
    read = rows("xsum")
    return first_sentences([row["document"] for row in read]), [row["summary"] for row in read]


def command(*arguments: str | Path, given: str = "") -> str:
    """What a module's command line prints, the text given to it on standard input."""
    environment = {**os.environ, "PYTHONUTF8": "1"}
    line = [sys.executable, "-m", *map(str, arguments)]
    return subprocess.run(line, input=given, capture_output=True, encoding="utf-8", check=True, env=environment).stdout


def write(path: Path, lines: Sequence[str], end: str = "\n") -> Path:
    path.write_text("".join(f"{line}{end}" for line in lines), encoding="utf-8")
    return path


def rouge_command(folder: Path, predictions: Sequence[str], references: Sequence[str], *flags: str) -> list[list[str]]:
    end = "<end>"  # records are lines by default, but here a record may have several
    command(
        "rouge_score.rouge",
        f"--target_filepattern={write(folder / 'references', references, end)}",
        f"--prediction_filepattern={write(folder / 'predictions', predictions, end)}",
        f"--output_filename={folder / 'scores.csv'}",
        f"--rouge_types={','.join(ROUGE)}",
        f"--delimiter={end}",
        "--use_stemmer=true",
        *flags,
    )
    with (folder / "scores.csv").open() as table:
        return list(csv.reader(table))


def bleu_command(folder: Path, predictions: Sequence[str], references: Sequence[str], *flags: str) -> dict[str, object]:
    hypotheses, targets = write(folder / "hypotheses", predictions), write(folder / "references", references)
    answer = json.loads(command("sacrebleu", targets, "-i", hypotheses, "-m", "bleu", "-w", "10", *flags))
    score = command("sacrebleu", targets, "-i", hypotheses, "-m", "bleu", "-w", "10", "-b", *flags)
    assert float(score) == answer["score"]
    return dict(answer)


def moses_command(lines: Sequence[str]) -> list[str]:
    """The paper's steps with sacremoses' command line between files, and letters written out."""
    normal = command("sacremoses", "-l", "ro", "-q", "normalize", "-p", given="".join(f"{line}\n" for line in lines))
    printed = "".join(" " if unicodedata.category(mark)[0] == "C" and mark != "\n" else mark for mark in normal)
    for cedilla, comma in (("015E", "0218"), ("015F", "0219"), ("0162", "021A"), ("0163", "021B")):
        printed = printed.replace(chr(int(cedilla, 16)), chr(int(comma, 16)))
    for marked, plain in zip("ȘșȚțĂăÂâÎî", "SsTtAaAaIi", strict=True):
        printed = printed.replace(marked, plain)
    # This command cannot be told to leave XML's characters alone, so that its escapes are undone.
    return html.unescape(command("sacremoses", "-l", "ro", "-q", "tokenize", given=printed)).splitlines()


@pytest.mark.parametrize("source", ["handwritten", "xsum"])
def test_rouge_equals_its_command_line(tmp_path: Path, source: str) -> None:
    predictions, references = summaries(source)
    ours = metrics.text(predictions, references, ROUGE)
    head, *lines = rouge_command(tmp_path, predictions, references, "--aggregate=false")
    assert len(lines) == len(references)
    for name in ROUGE:
        column = head.index(f"{name}-F")
        written = [float(line[column]) for line in lines]  # to six decimals
        assert ours[name] == pytest.approx(np.mean(written), abs=5e-7), name
        if source == "handwritten":
            pairs = zip(predictions, references, strict=True)
            alone = [metrics.text([row], [target], [name])[name] for row, target in pairs]
            assert alone == pytest.approx(written, abs=5e-7), name


def test_rouge_lies_in_the_interval_that_its_command_line_draws(tmp_path: Path) -> None:
    """Without --aggregate=false it prints quantiles of unseeded bootstrap means, no mean."""
    predictions, references = summaries("xsum")
    ours = metrics.text(predictions, references, ROUGE)
    drawn = {name: list(map(float, scores)) for name, *scores in rouge_command(tmp_path, predictions, references)[1:]}
    for name in ROUGE:
        low, middle, high = drawn[f"{name}-F"]
        assert low < ours[name] < high
        assert ours[name] == pytest.approx(middle, abs=(high - low) / 10)


def test_lines_are_the_sentences_of_rouge_lsum() -> None:
    predictions = ["b c a d"]
    lines, line = (metrics.text(predictions, [target], ROUGE) for target in ("a d\nb c", "a d b c"))
    assert lines["rougeLsum"] == 1.0
    assert line["rougeLsum"] == 0.5
    assert {name: lines[name] for name in ROUGE[:3]} == {name: line[name] for name in ROUGE[:3]}


@pytest.mark.parametrize("source", ["handwritten", "wmt16_en_ro"])
def test_sacrebleu_equals_its_command_line(tmp_path: Path, source: str) -> None:
    predictions, references = translations(source)
    theirs = bleu_command(tmp_path, predictions, references)
    assert metrics.text(predictions, references, ["sacrebleu"])["sacrebleu"] == pytest.approx(theirs["score"], abs=1e-9)
    assert metrics.signatures(["sacrebleu"]) == {"sacrebleu": theirs["signature"]}


@pytest.mark.parametrize("source", ["handwritten", "wmt16_en_ro"])
def test_paper_bleu_equals_the_command_lines(tmp_path: Path, source: str) -> None:
    predictions, references = translations(source)
    hypotheses, targets = moses_command(predictions), moses_command(references)
    assert metrics.paper_tokens(references) == targets
    assert metrics.paper_tokens(predictions) == hypotheses
    theirs = bleu_command(tmp_path, hypotheses, targets, "--tokenize", "none", "--smooth-method", "none", "--force")
    ours = metrics.text(predictions, references, ["paper_bleu"])["paper_bleu"]
    assert ours == pytest.approx(theirs["score"], abs=1e-9)
    assert metrics.signatures(["paper_bleu"])["paper_bleu"].endswith(f"|{theirs['signature']}")


@pytest.mark.parametrize(
    ("line", "tokens"),
    [
        ("Şi şapte ŢĂRI ţin; Și șapte ȚĂRI țin.", "Si sapte TARI tin ; Si sapte TARI tin ."),
        ("Îl văd în Ânul câine.", "Il vad in Anul caine ."),
        ("„Da”, zise el…", '" Da " , zise el ...'),
        ("a & b <c> [d] | 'e'", "a & b < c > [ d ] | ' e '"),
        ("5 % din 2\u00a0000", "5 % din 2.000"),
        ("un\u200bcuvânt\tdoi\nrânduri", "un cuvant doi randuri"),
        ("Ce？ Ａ！", "Ce ? Ａ !"),
        ("café, Zürich", "café , Zürich"),
        ("", ""),
        (" \n", ""),
    ],
)
def test_tokens_of_the_paper(line: str, tokens: str) -> None:
    assert metrics.paper_tokens([line]) == [tokens]


def test_the_two_bleus_differ_by_diacritics_and_by_tokens() -> None:
    marked, bare = (
        [ROMANIAN[0]],
        ["Presedintele a declarat ca tara va primi 1.500 de refugiati pana la sfarsitul anului."],
    )
    scores = metrics.text(bare, marked, ["sacrebleu", "paper_bleu"])
    assert scores["paper_bleu"] == pytest.approx(100.0)
    assert scores["sacrebleu"] < 50.0
    same = metrics.text(marked, marked, ["sacrebleu", "paper_bleu"])
    assert same == pytest.approx({"sacrebleu": 100.0, "paper_bleu": 100.0})
    signatures = metrics.signatures(["sacrebleu", "paper_bleu"])
    assert "tok:13a" in signatures["sacrebleu"]
    assert "moses" not in signatures["sacrebleu"]
    assert "moses-tokenised-ro" in signatures["paper_bleu"]
    assert f"sacremoses:{version('sacremoses')}" in signatures["paper_bleu"]


def test_no_four_words_in_common_are_no_score_of_the_paper() -> None:
    predictions, references = ["o casă mare şi veche"], ["casa e mare şi foarte veche"]
    scores = metrics.text(predictions, references, ["sacrebleu", "paper_bleu"])
    assert scores["paper_bleu"] == 0.0
    assert scores["sacrebleu"] > 0.0  # smoothed


def test_only_what_was_asked_for_is_scored_and_signed() -> None:
    for name in metrics.GENERATED:
        assert set(metrics.text(ALTERED, ROMANIAN, [name])) == set(metrics.signatures([name])) == {name}
    together = metrics.text(ALTERED, ROMANIAN)
    assert set(together) == set(metrics.signatures()) == metrics.GENERATED
    assert together == {name: metrics.text(ALTERED, ROMANIAN, [name])[name] for name in metrics.GENERATED}
    assert metrics.text(ALTERED, ROMANIAN, []) == metrics.signatures([]) == {}
    assert set(SCORES) >= metrics.GENERATED
    assert all(SCORES[name] for name in metrics.GENERATED)  # higher is better


def test_rouge_is_signed_with_its_version_and_stemmer() -> None:
    signatures = metrics.signatures(ROUGE)
    assert all(f"version:{version('rouge_score')}" in line and "stemmer:porter" in line for line in signatures.values())
    assert "sentences:lines" in signatures["rougeLsum"]
    assert metrics.text(["running dogs"], ["dogs run"], ["rouge1"])["rouge1"] == 1.0


@pytest.mark.parametrize("predictions", [["", ""], [" ", "\n"], ["", "ceva cu totul diferit"]])
def test_empty_predictions_score_nothing(predictions: list[str]) -> None:
    scores = metrics.text(predictions, ROMANIAN[:2])
    assert scores == pytest.approx(dict.fromkeys(metrics.GENERATED, 0.0))


def test_faults_are_named() -> None:
    with pytest.raises(ValueError, match="2 against 1"):
        metrics.text(["a", "b"], ["a"])
    with pytest.raises(ValueError, match="at least one row"):
        metrics.text([], [])
    for scored in (lambda: metrics.text(["a"], ["a"], ["bleu"]), lambda: metrics.signatures(["bleu"])):
        with pytest.raises(ValueError, match=r"sacrebleu, paper_bleu; not bleu\."):
            scored()


def test_scores_of_classes_need_no_library_of_text() -> None:
    code = (
        "import logging, sys; from petl.training import metrics;"
        "assert not {'rouge_score', 'sacrebleu', 'sacremoses', 'nltk', 'absl'} & set(sys.modules);"
        "metrics.text(['a'], ['a']); assert not logging.root.handlers"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


ROUGE_OF_OTHERS = (
    ("комитет собрался в понедельник", "комитет собрался во вторник", {"rouge1": 2 / 4, "rouge2": 1 / 3}),
    ("η επιτροπή συνεδρίασε", "η επιτροπή έφυγε", {"rouge1": 2 / 3, "rouge2": 1 / 2}),
    ("اجتمعت اللجنة يوم الاثنين", "اجتمعت اللجنة أمس", {"rouge1": 2 * 2 / 7, "rouge2": 2 * 1 / 5}),
    ("समिति की बैठक", "समिति की सभा", {"rouge1": 2 / 3, "rouge2": 1 / 2}),  # vowel signs are parts of words
    ("委员会星期一开会", "委员会星期二开会", {"rouge1": 7 / 8, "rouge2": 5 / 7}),
    ("雨が降る", "雨が止む", {"rouge1": 2 / 4, "rouge2": 1 / 3}),
    ("GPT模型 2024", "gpt模型 2023", {"rouge1": 3 / 4, "rouge2": 2 / 3}),
)


@pytest.mark.parametrize(("reference", "prediction", "expected"), ROUGE_OF_OTHERS)
def test_rouge_counts_the_words_of_any_script(reference: str, prediction: str, expected: dict[str, float]) -> None:
    """The expected shares are counted by hand: F of words, and of pairs of words, in common."""
    assert metrics.text([prediction], [reference], expected) == pytest.approx(expected)
    assert metrics.text([reference], [reference], ROUGE) == dict.fromkeys(ROUGE, 1.0)


def test_the_better_of_two_chinese_predictions_has_the_better_scores() -> None:
    reference = ["委员会星期一上午在北京开会讨论预算"]
    near, far = ["委员会星期一下午在北京开会讨论预算"], ["他们昨天在上海踢了一场足球比赛"]
    better, worse = (metrics.text(prediction, reference, (*ROUGE, "sacrebleu")) for prediction in (near, far))
    assert all(better[name] > worse[name] for name in better)
    assert better["sacrebleu"] == pytest.approx(sacrebleu.corpus_bleu(near, [reference], tokenize="zh").score, abs=1e-9)


@pytest.mark.parametrize(
    ("texts", "script"),
    [
        (["the committee met"], "latin"),
        (["Ședința s-a încheiat", "Übung macht den Meister"], "latin"),
        (["the α-helix of the protein that was found in the old laboratory"], "latin"),
        (["1,500", ""], "latin"),
        (["комитет собрался"], "spaced"),
        (["위원회는 월요일에 만났다"], "spaced"),
        (["委员会星期一开会"], "han"),
        (["委員会は月曜日に開かれた"], "unspaced"),
        (["คณะกรรมการประชุมวันจันทร์"], "unspaced"),
    ],
)
def test_the_script_is_that_of_the_letters(texts: list[str], script: str) -> None:
    assert script_of(texts) == script
    assert script in SCRIPTS
    assert metrics.text(texts, texts, ["rouge1", "sacrebleu"]) == metrics.text(
        texts, texts, ["rouge1", "sacrebleu"], script
    )


def test_words_of_latin_letters_are_those_of_rouge_score_in_every_script() -> None:
    lines = (*SUMMARIES, "snake_case, don't, RUNNING-dogs 3.5%")
    theirs, ours = (rouge_tokenizer(script) for script in ("latin", "spaced"))
    assert [ours.tokenize(line) for line in lines] == [theirs.tokenize(line) for line in lines]


def test_a_script_that_is_named_is_in_the_signature() -> None:
    latin, han = (metrics.signatures(["rouge2", "sacrebleu"], script) for script in ("latin", "han"))
    assert "tokenizer:rouge_score" in latin["rouge2"]
    assert "tokenizer:any-script" in han["rouge2"]
    assert "tok:13a" in latin["sacrebleu"]
    assert "tok:zh" in han["sacrebleu"]
    text = ["委员会星期一开会"]
    assert metrics.text(text, text, ["rouge1"], "latin") == {"rouge1": 0.0}  # what a study began with it keeps


@pytest.mark.parametrize(
    ("kind", "answers", "blind", "telling"),
    [
        ("summarization", ["one", "two"], ["rouge2"], ["rouge1", "rougeL", "loss"]),
        ("translation", ["one two", "two one"], ["sacrebleu"], ["loss"]),
        ("text-classification", ["good", "good"], ["accuracy", "f1", "matthews"], ["loss"]),
        ("text-classification", ["good", "bad"], [], ["accuracy", "f1", "matthews", "loss"]),
        ("summarization", ["", ""], ["rouge1", "rouge2"], ["loss"]),
    ],
)
def test_a_score_that_is_blind_to_its_answers_is_refused(
    kind: str, answers: list[str], blind: list[str], telling: list[str]
) -> None:
    metrics.require_telling(Task(kind=kind), answers, telling)
    for name in blind:
        with pytest.raises(TaskError, match=name):
            metrics.require_telling(Task(kind=kind), answers, [name])


@pytest.mark.parametrize(("script", "rouge"), [("latin", 0.0), ("han", 1.0), (None, 1.0)])
def test_generated_text_is_scored_by_the_script_of_its_task(
    script: str | None, rouge: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = ["委员会星期一开会"]
    task = Task(kind="summarization", script=script)
    data: Any = SimpleNamespace(labels=(), task=task, references=lambda split: texts)
    monkeypatch.setattr(evaluation, "mean_loss", lambda *arguments: 1.0)
    monkeypatch.setattr(evaluation, "generate_split", lambda *arguments: texts)
    model: Any = None
    assert evaluation.evaluate(model, data, "test").scores["rouge1"] == rouge
