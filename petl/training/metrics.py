"""Scores of predictions: of classes through scikit-learn, of text through rouge_score, sacreBLEU and sacremoses."""

from __future__ import annotations

import unicodedata
from collections.abc import Collection, Iterable, Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING, Final

import numpy as np
from sklearn.metrics import accuracy_score, f1_score, log_loss, matthews_corrcoef

from petl.tasks import KINDS, Task, TaskError
from petl.training.scripts import BLEU_TOKENIZERS, rouge_tokenizer, script_of

if TYPE_CHECKING:
    from sacrebleu.metrics.bleu import BLEU


_ROUGE: Final[tuple[str, ...]] = ("rouge1", "rouge2", "rougeL", "rougeLsum")
_BLEU: Final[tuple[str, ...]] = ("sacrebleu", "paper_bleu")

# The scores that need generated text.
GENERATED: Final[frozenset[str]] = frozenset((*_ROUGE, *_BLEU))

_LEAST: Final = 0.1  # of a score's scale: what predictions that equal their references have to reach
_COMPARED: Final = 256  # answers, for that

# Barry Haddow's scripts for WMT16 in one step: s and t with a cedilla are read as with a comma below, and
# then all five letters lose their marks.
_ROMANIAN: Final = str.maketrans("ŞşŢţȘșȚțĂăÂâÎî", "SsTtSsTtAaAaIi")


def classification(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Return accuracy, macro f1, matthews and loss (mean cross-entropy, nats) of logits (rows, classes)."""
    predicted = logits.argmax(1)
    classes = range(logits.shape[1])
    shifted = logits.astype(np.float64) - logits.max(1, keepdims=True)
    shares = np.exp(shifted) / np.exp(shifted).sum(1, keepdims=True)
    return {
        "accuracy": float(accuracy_score(labels, predicted)),
        "f1": float(f1_score(labels, predicted, average="macro", labels=list(classes), zero_division=0.0)),
        "matthews": float(matthews_corrcoef(labels, predicted)),
        "loss": float(log_loss(labels, shares, labels=list(classes))),
    }


def text(
    predictions: Sequence[str],
    references: Sequence[str],
    names: Collection[str] = GENERATED,
    script: str | None = None,
) -> dict[str, float]:
    """Return the named scores of generated text against one reference a row.

    `script` says what the words are, one of `petl.tasks.SCRIPTS`; None: as the references are written.
    ROUGE is the mean F-measure of the rows, a share in [0, 1], on Porter stems; rougeLsum takes each line
    for a sentence. BLEU is of the whole corpus, 0 to 100: `sacrebleu` is sacreBLEU's default for the script, of
    the text as it stands; `paper_bleu` is for Romanian only, on what `paper_tokens` makes of both sides, unsmoothed,
    as in He et al. (2022). A prediction may be empty. Raises ValueError for other names, for no rows, and
    for unequal numbers of rows.
    """
    _check(names)
    if len(predictions) != len(references):
        raise ValueError(f"Each prediction needs its reference: {len(predictions)} against {len(references)}.")
    if not predictions:
        raise ValueError("Scores of text need at least one row.")
    script = script or script_of(references)
    rouge = [name for name in _ROUGE if name in names]
    scores = _rouge(rouge, predictions, references, script) if rouge else {}
    if "sacrebleu" in names:
        scores["sacrebleu"] = float(_bleu("sacrebleu", references, script).corpus_score(predictions, None).score)
    if "paper_bleu" in names:
        hypotheses, targets = paper_tokens(predictions), paper_tokens(references)
        scores["paper_bleu"] = float(_bleu("paper_bleu", targets).corpus_score(hypotheses, None).score)
    return scores


def signatures(names: Iterable[str] = GENERATED, script: str = "latin") -> dict[str, str]:
    """Return how `text` computes each named score, with the versions of what computes it; needs no data."""
    names = _check(names)
    words = "rouge_score" if script == "latin" else "any-script"
    rouge = f"tokenizer:{words}|stemmer:porter|score:f1|rows:mean|version:{version('rouge_score')}"
    steps = "text:plain-punctuation,moses-normalised-ro,printing,no-diacritics,moses-tokenised-ro,unescaped"
    before = {
        "rougeLsum": "sentences:lines|",
        "paper_bleu": f"{steps}|sacremoses:{version('sacremoses')}|",
    }
    signed = {name: rouge for name in _ROUGE if name in names}
    signed |= {name: str(_bleu(name, [""], script).get_signature()) for name in _BLEU if name in names}
    return {name: before.get(name, "") + signature for name, signature in signed.items()}


def require_telling(task: Task, answers: Sequence[str], scores: Collection[str]) -> None:
    """Raise TaskError where one of these scores of the task is about the same whatever is predicted for the answers."""
    labelled = KINDS[task.kind].labelled
    for name in (name for name in task.scores if name in scores):
        if labelled and name != "loss" and len(set(answers)) == 1:
            raise TaskError(
                f"task {task.name}: all {len(answers)} validation rows have the label {answers[0]!r}, so that no trial "
                f"has a better {name} than the majority. Shuffle the rows, or name other ones by task.paths"
            )
        if name not in GENERATED:
            continue
        some = answers[:_COMPARED]
        best = text(some, some, [name], task.script)[name] / (100.0 if name in _BLEU else 1.0)
        if not best >= _LEAST:  # NaN included
            others = ", ".join(other for other in task.scores if other != name)
            raise TaskError(
                f"task {task.name}: {name} cannot tell trials apart here: predictions that equal their references have "
                f"{best:.2g} of the most that it can be. The references are too short for it, or in another script "
                f"than task.script {task.script}. Choose another score ({others}) or script"
            )


def paper_tokens(lines: Iterable[str]) -> list[str]:
    """Return Romanian as He et al. (2022) score it: Moses tokens, separated by spaces, without diacritics.

    The steps are those of exps/romanian_postprocess.sh in their repository: Unicode punctuation replaced,
    Moses' punctuation normalisation, a space for each non-printing character, no diacritics, Moses'
    tokens without XML escapes (`-no-escape`). Moses' Perl scripts are replaced by sacremoses, whose Romanian
    leaves `,"` and `."` as they stand where Perl writes `",` and `".` within a sentence: a system that
    quotes otherwise than the references scores lower here.
    """
    from sacremoses import MosesPunctNormalizer, MosesTokenizer

    normalizer = MosesPunctNormalizer("ro", pre_replace_unicode_punct=True)
    tokenizer = MosesTokenizer("ro")

    def tokens(line: str) -> str:
        # sacremoses can remove non-printing characters itself, but would join the words between them.
        normal = normalizer.normalize(line)
        printed = "".join(" " if unicodedata.category(letter).startswith("C") else letter for letter in normal)
        return str(tokenizer.tokenize(printed.translate(_ROMANIAN), return_str=True, escape=False))

    return [tokens(line) for line in lines]


def _check(names: Iterable[str]) -> frozenset[str]:
    names = frozenset(names)
    if unknown := names - GENERATED:
        raise ValueError(f"Scores of text are {', '.join((*_ROUGE, *_BLEU))}; not {', '.join(sorted(unknown))}.")
    return names


def _rouge(
    names: Sequence[str], predictions: Sequence[str], references: Sequence[str], script: str
) -> dict[str, float]:
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(names, tokenizer=rouge_tokenizer(script))
    rows = [scorer.score(target, predicted) for target, predicted in zip(references, predictions, strict=True)]
    return {name: float(np.mean([row[name].fmeasure for row in rows])) for name in names}


def _bleu(name: str, references: Sequence[str], script: str = "latin") -> BLEU:
    from sacrebleu.metrics.bleu import BLEU

    if name == "sacrebleu":
        return BLEU(references=[references], tokenize=BLEU_TOKENIZERS[script])
    return BLEU(tokenize="none", smooth_method="none", force=True, references=[references])
