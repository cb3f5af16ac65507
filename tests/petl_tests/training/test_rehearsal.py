"""The row that is tried before a study: what no trial could do is one message, and the model is left as it was."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import attached
import pytest
import tiny
import tokens
import torch
from studies import study, write_backbone, write_rows
from tokens import write_lines
from transformers import AutoTokenizer

from petl import backbones
from petl.backbones.locate import BackboneError
from petl.data.tokens import TaskData, load_data
from petl.tasks import resolve
from petl.training.rehearsal import rehearse
from search.config.loading import load_config
from search.study.resolve import resolve as resolve_study


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rehearsal")
    write_backbone(path / "backbone")
    write_rows(path / "rows.csv", rows=60)
    return path


@pytest.fixture(scope="module")
def data(folder: Path) -> TaskData:
    task = resolve({"name": "words", "paths": str(folder / "rows.csv")})
    return load_data(task, backbones.load_tokenizer(str(folder / "backbone")))


def load(folder: Path, data: TaskData) -> Any:
    return backbones.load(str(folder / "backbone"), labels=data.labels)


def test_a_model_that_can_is_left_as_it_was(folder: Path, data: TaskData) -> None:
    model = load(folder, data)
    before, values = attached.look(model), {name: tensor.clone() for name, tensor in model.state_dict().items()}
    seen: list[torch.Size] = []
    hook = model.bert.embeddings.word_embeddings.register_forward_pre_hook(
        lambda _, inputs: seen.append(inputs[0].shape)
    )
    rehearse(model, data, "m")
    assert seen == [torch.Size((1, int(data.splits["train"].lengths.max())))]
    hook.remove()
    assert attached.look(model) == before
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(tensor, values[name]) for name, tensor in model.state_dict().items())


def test_tokens_beyond_the_embeddings_are_refused_in_any_row(folder: Path, data: TaskData) -> None:
    model = load(folder, data)
    rows = [row for part in data.splits.values() for row in part.rows["input_ids"]]
    highest = max(map(max, rows))
    model.resize_token_embeddings(highest + 1)
    rehearse(model, data, "m")
    model.resize_token_embeddings(highest)
    with pytest.raises(BackboneError, match=rf"m: .* embeddings of, {highest} here; received {highest}, 'word"):
        rehearse(model, data, "m")


def test_targets_and_padding_have_embeddings_too(tmp_path: Path) -> None:
    file = write_lines(tmp_path / "rows.jsonl", json.dumps({"source": "a", "target": "~"}) + "\n")
    paths = {split: str(file) for split in ("train", "validation")}
    task = resolve({"name": "t", "kind": "summarization", "paths": paths})
    own = tokens.of_words()
    data = load_data(task, own)
    highest = own.convert_tokens_to_ids("~")
    with pytest.raises(BackboneError, match=rf"{highest} here; received {highest}, '~'"):
        rehearse(tiny.model("bart", generates=True, vocab_size=highest), data, "m")
    own.add_special_tokens({"pad_token": "[PAD]"})
    with pytest.raises(BackboneError, match=r"'\[PAD\]'"):
        rehearse(tiny.model("bart", generates=True, vocab_size=highest + 1), data, "m")


def test_what_a_library_refuses_and_what_is_no_number_is_one_line(folder: Path, data: TaskData) -> None:
    model = load(folder, data)
    model.bert.embeddings.position_embeddings = torch.nn.Embedding(2, 32)
    with pytest.raises(BackboneError, match=r"^m: a row of task words does not pass through the model: .*$"):
        rehearse(model, data, "m")
    model = load(folder, data)
    with torch.no_grad():
        model.bert.encoder.layer[1].output.dense.bias[0] = float("nan")
    with pytest.raises(BackboneError, match="received nan: are its weights damaged"):
        rehearse(model, data, "m")


def test_a_study_tries_it_before_it_begins(tmp_path: Path) -> None:
    file = study(tmp_path)
    place = Path(file["backbone"]["model"])
    tokenizer = AutoTokenizer.from_pretrained(place)
    resolve_study(load_config(file))
    tokenizer.add_tokens(["word7"])
    tokenizer.add_tokens(["awful-grim"])
    tokenizer.save_pretrained(place)
    rows = Path(file["task"]["paths"]["train"])
    rows.write_text(rows.read_text() + "".join(f"awful-grim road word{row},bad\n" for row in range(9)))
    with pytest.raises(BackboneError, match="'awful-grim'"):
        resolve_study(load_config(file))
