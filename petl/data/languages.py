"""The languages of a translation, for tokenizers that have codes for them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from petl.tasks import Task, TaskError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def language_tokens(task: Task, tokenizer: PreTrainedTokenizerBase) -> tuple[int | None, int | None]:
    """Return `TaskData`'s `start` and `first` of a tokenizer, and set it to the task's languages."""
    set_languages(task, tokenizer)
    return set_language_tokens(tokenizer)


def set_languages(task: Task, tokenizer: PreTrainedTokenizerBase) -> None:
    """Set the languages. Raises TaskError for one that a tokenizer with language codes has none for."""
    if task.languages is None or not hasattr(tokenizer, "src_lang"):
        return
    vocabulary = tokenizer.get_vocab()
    codes = []
    for language in task.languages:
        forms = (rf"{re.escape(language)}_[A-Z]{{2}}", rf"__{re.escape(language)}__", re.escape(language))
        matches = [code for form in forms for code in sorted(vocabulary) if re.fullmatch(form, code)]
        if not matches:
            raise TaskError(f"task {task.name}: the tokenizer has no code for the language {language!r}")
        codes.append(matches[0].strip("_"))
    tokenizer.src_lang, tokenizer.tgt_lang = codes


def set_language_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[int | None, int | None]:
    """Return (start, first). In mBART the code ends a target, whose decoder wraps it to the front."""
    if not hasattr(tokenizer, "src_lang"):
        return None, None
    tokens = tokenizer(text_target="")["input_ids"]
    return (None, tokens[0]) if tokens[-1] == tokenizer.eos_token_id else (tokens[-1], None)
