"""Attached models with the rest of transformers and torch: generation, padding, attention implementations, checkpoints.

The standard is always the bare model's own behaviour: an attachment must not change what makes a difference.
"""

from __future__ import annotations

import copy
import gc
import inspect
import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import transformers
from attached import randomise
from scope import sampled
from torch import Tensor, nn
from transformers import PreTrainedModel

from petl import presets
from petl.attach.attachment import HOLDER, Attachment, attach
from petl.attach.hook_points import HookPoints
from petl.backbones.families import FAMILIES
from petl.design import Design, DesignError, LayerNorm, Modification
from petl.forms.vocabulary import Delta
from petl.presets import parse

ROTARY = ("llama", "qwen2", "qwen3")
NO_TABLE = ("t5", "t5-gated", *ROTARY)  # of positions
ENCODERS = ("bert", "roberta", "distilbert")
# Families whose modules are those of another in most respects: fewer designs are enough.
ALIKE = {
    **dict.fromkeys(("roberta", "distilbert", "mbart"), ("bottlenecks", "normed prefix", "shifted prompt", "mixture")),
    **dict.fromkeys(("t5-gated", "qwen2", "qwen3"), ("mixture",)),
}
TEXTS = {
    "mam": "mam:length=3,size=4",
    "ungated": "prefix:length=3,gated=false",
    "bottlenecks": "parallel:size=4,where=both + sequential:size=3,where=both + pfeiffer:size=4",
    "lora": "lora:rank=2,where=both",
    "ia3": "ia3",
    "prompt": "prompt:length=3",
    "shifted prompt": "prompt:length=3,positions=shifted",
    "mixture": "prompt:length=2 + mam:length=2,size=3 + prefix:length=2,gated=false + multihead_parallel:size=3"
    " + lora:rank=2,where=both + ia3 + sequential:size=3,where=both + parallel:size=3,where=both + pfeiffer:size=3",
}
NORMED = {"normed prefix": "prefix:length=3", "normed heads": "multihead_parallel:size=3"}
DESIGNS = (*TEXTS, *NORMED)


def applies(name: str, family: str) -> bool:
    if name not in ALIKE.get(family, DESIGNS):
        return False
    if name == "shifted prompt":
        return family not in NO_TABLE
    return name not in NORMED or family not in ROTARY  # a rotary query is rotated after its linear


def design(name: str, family: str) -> Design:
    if name in NORMED:
        (part,) = parse(NORMED[name]).modifications
        return Design((replace(part, layer_norm=LayerNorm.IN),))
    whole = parse(TEXTS[name])
    return whole | presets.bitfit() if name == "mixture" and family in tiny.BIASED else whole


@contextmanager
def attached(model: PreTrainedModel, chosen: Design, seed: int = 1) -> Iterator[Attachment]:
    with attach(model, chosen, seed=seed) as attachment:
        randomise(attachment, seed, by=0.2)
        yield attachment


def with_tokens(family: str, **changes: Any) -> PreTrainedModel:
    """A model with logits for each token."""
    if family not in ENCODERS:
        return tiny.model(family, generates=True, **changes)
    return headed(family, transformers.AutoModelForTokenClassification, **changes)


shared = cache(with_tokens)  # for tests that leave it as it was


def headed(family: str, kind: Any, **changes: Any) -> PreTrainedModel:
    """As `tiny.model`, with another head."""
    config = tiny.CONFIGS[family]()
    labels = 2 if "Answering" in kind.__name__ else 3
    for name, value in {"num_labels": labels, **changes}.items():
        setattr(config, name, value)
    build = getattr(kind, "from_config", None) or kind._from_config
    model: PreTrainedModel = build(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            norm = parameter.ndim == 1 and name.endswith("weight")
            parameter.normal_(1.0 if norm else 0.0, 0.2, generator=generator)
    return model.eval()


def inputs_for(model: PreTrainedModel, left: bool = False) -> dict[str, Tensor]:
    """A padded batch, with something for a decoder."""
    inputs = tiny.batch(left)
    if model.config.is_encoder_decoder and "ForSequenceClassification" not in type(model).__name__:
        inputs["decoder_input_ids"] = torch.tensor([[2, 11, 12, 13]] * 3)
    return inputs


def logits(model: PreTrainedModel, **inputs: Any) -> Tensor:
    out = model(**inputs)
    result: Tensor = out.logits if "logits" in out else out.last_hidden_state
    return result


def apart(one: Tensor, other: Tensor) -> float:
    """The largest difference, as a share of the largest value."""
    assert one.shape == other.shape
    one, other = one.detach(), other.detach()
    return float((one - other).abs().max() / other.abs().max())


def positions(mask: Tensor) -> Tensor:
    return (mask.cumsum(-1) - 1).clamp(0)


EVERY_FAMILY = pytest.mark.parametrize("family", tiny.FAMILIES)
CASES = sampled(
    "what libraries do with designs on families",
    [(family, name) for family in tiny.FAMILIES for name in DESIGNS if applies(name, family)],
    # every design on a decoder, and one design of several forms on every family
    lambda case: case[0] == "llama" or case[1] == "mixture",
)
EVERY_CASE = pytest.mark.parametrize(("family", "name"), CASES)
SHORT = pytest.mark.parametrize(
    ("family", "name"), [case for case in CASES if case[1] in ("bottlenecks", "prompt", "mixture")]
)

# -- generation

GENERATION = [
    (family, name, side)
    for family, name in CASES
    if family in tiny.GENERATING
    for side in ("left", "right")
    # Decoders are padded on the left; an encoder's padding is hidden wherever it is.
    if (side == "left" if family not in tiny.ENCODER_DECODERS else side == "right" or name in ("mam", "mixture"))
]


@cache
def generating(family: str) -> PreTrainedModel:
    """Kept between tests, which detach what they attach."""
    model = tiny.model(family, generates=True)
    settings = {"eos_token_id": None, "forced_eos_token_id": None, "max_new_tokens": 4, "max_length": None}
    if model.config.is_encoder_decoder:
        settings["decoder_start_token_id"] = 2
    for name, value in settings.items():
        setattr(model.generation_config, name, value)
    return model


def step_by_step(model: PreTrainedModel, inputs: dict[str, Tensor], steps: int) -> Tensor:
    """Greedy decoding by whole forward passes."""
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    if model.config.is_encoder_decoder:
        found = torch.full((len(ids), 1), model.generation_config.decoder_start_token_id)
        for _ in range(steps):
            following = model(**inputs, decoder_input_ids=found, use_cache=False).logits[:, -1].argmax(-1)
            found = torch.cat((found, following[:, None]), 1)
        return found
    for _ in range(steps):
        out = model(input_ids=ids, attention_mask=mask, position_ids=positions(mask), use_cache=False)
        ids = torch.cat((ids, out.logits[:, -1:].argmax(-1)), 1)
        mask = torch.cat((mask, mask[:, -1:]), 1)
    return ids


@pytest.mark.parametrize(("family", "name", "side"), GENERATION)
def test_generation_equals_full_forwards(family: str, name: str, side: str) -> None:
    model, inputs = generating(family), tiny.batch(left=side == "left")

    def generate(**settings: Any) -> Any:
        torch.manual_seed(0)
        return model.generate(**inputs, **settings, return_dict_in_generate=True, output_scores=True)

    with attached(model, design(name, family)), torch.no_grad():
        assert torch.equal(generate(do_sample=False).sequences, step_by_step(model, inputs, 4))
        for settings in (
            {"do_sample": False},
            {"num_beams": 3, "do_sample": False},
            {"do_sample": True, "num_return_sequences": 2},
        ):
            cached, whole = (generate(use_cache=use, **settings) for use in (True, False))
            assert torch.equal(cached.sequences, whole.sequences)
            for one, other in zip(cached.scores, whole.scores, strict=True):
                assert torch.allclose(one, other, atol=1e-5, rtol=1e-5)
            if "num_beams" in settings:
                assert torch.allclose(cached.sequences_scores, whole.sequences_scores, atol=1e-5)


@pytest.mark.parametrize("text", ["prompt:length=3", "mam:length=3,size=4"])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_generation_in_chunks_and_from_guesses(family: str, text: str) -> None:
    model = generating(family)
    repeating = torch.tensor([[5, 6, 7, 8, 5, 6, 7, 8, 9, 5, 6, 7]])
    with attached(model, parse(text)):
        for inputs, settings in (
            (tiny.batch(left=True), {"prefill_chunk_size": 4}),
            ({"input_ids": repeating, "attention_mask": torch.ones_like(repeating)}, {"prompt_lookup_num_tokens": 2}),
        ):
            plain = model.generate(**inputs, do_sample=False)
            assert torch.equal(model.generate(**inputs, do_sample=False, **settings), plain)


@pytest.mark.parametrize("text", ["prompt:length=3", "mam:length=3,size=4"])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_cache_is_continued(family: str, text: str) -> None:
    model = tiny.model(family, generates=True)
    ids = tiny.batch()["input_ids"][:1]
    with attached(model, parse(text)):
        first = model(input_ids=ids[:, :4], use_cache=True)
        second = model(input_ids=ids[:, 4:7], past_key_values=first.past_key_values)
        third = model(input_ids=ids[:, 7:], past_key_values=second.past_key_values)
        whole = model(input_ids=ids).logits
    steps = torch.cat((first.logits, second.logits, third.logits), 1)
    assert apart(steps, whole) < 1e-5


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_generating_on_from_a_cache_with_a_prompt_is_refused(family: str) -> None:
    """transformers cuts off as many tokens as the cache has rows, those of the prompt included."""
    model = generating(family)
    ids = tiny.batch()["input_ids"][:1]
    with attached(model, parse("prompt:length=3")):
        out = model.generate(ids, do_sample=False, return_dict_in_generate=True)
        longer = torch.cat((out.sequences, torch.full((1, 5), 7)), 1)
        with pytest.raises(DesignError, match="the cache holds 3 rows of prompts"):
            model.generate(longer, past_key_values=out.past_key_values)
    with attached(model, parse("prefix:length=3")):
        out = model.generate(ids, do_sample=False, return_dict_in_generate=True)
        longer = torch.cat((out.sequences, torch.full((1, 5), 7)), 1)
        continued = model.generate(longer, past_key_values=out.past_key_values, do_sample=False)
        assert torch.equal(continued, model.generate(longer, do_sample=False))


@pytest.mark.parametrize("family", ["bart", "t5"])
@pytest.mark.parametrize("text", ["prompt:length=3", "mam:length=3,size=4"])
def test_encoder_outputs_computed_before(family: str, text: str) -> None:
    model = tiny.model(family, generates=True)
    inputs = inputs_for(model)
    with attached(model, parse(text)):
        whole = logits(model, **inputs)
        ids = inputs.pop("input_ids")
        states = model.get_encoder()(input_ids=ids, attention_mask=inputs["attention_mask"])
        assert torch.equal(logits(model, encoder_outputs=states, **inputs), whole)
        assert torch.equal(logits(model, encoder_outputs=tuple(states.values()), **inputs), whole)


# -- padding


@EVERY_CASE
def test_padding_matters_where_it_does_to_the_bare_model(family: str, name: str) -> None:
    model = shared(family)
    takes_positions = "position_ids" in inspect.signature(model.forward).parameters and family != "roberta"
    held = 0

    def changed_by_padding(left: bool, given: bool) -> float:
        padded = inputs_for(model, left)
        if given:
            padded["position_ids"] = positions(padded["attention_mask"])
        tokens = padded["attention_mask"][2].bool()
        alone = {key: value[2:] if "decoder" in key else value[2:, tokens] for key, value in padded.items()}
        shown = slice(None) if model.config.is_encoder_decoder else tokens
        return apart(logits(model, **padded)[2:, shown], logits(model, **alone))

    for left in (False, True):
        for given in {False, takes_positions}:
            if left and family in ("t5", "t5-gated") and "prompt" in TEXTS.get(name, ""):
                continue  # the padding lies between prompt and tokens, and their distance is all that positions are
            with torch.no_grad():
                bare = changed_by_padding(left, given)
                if bare < 1e-5:
                    held += 1
                    with attached(model, design(name, family)):
                        assert changed_by_padding(left, given) < 1e-5, (left, given)
                    with attached(model, design(name, family)):
                        pass
    assert held >= (1 if family in ("bart", "mbart") or "prompt" in TEXTS.get(name, "") else 2)


# -- attention implementations


@cache
def in_both_ways(family: str, dtype: torch.dtype) -> tuple[PreTrainedModel, PreTrainedModel]:
    return tuple(with_tokens(family, _attn_implementation=way).to(dtype) for way in ("sdpa", "eager"))  # type: ignore[return-value]


@EVERY_CASE
def test_sdpa_equals_eager(family: str, name: str) -> None:
    # Llama's eager softmax is in float32, where the mask of a float64 model overflows.
    precisions = [(torch.float32, 1e-5)] if family in ROTARY or name == "mixture" else []
    if family not in ROTARY:
        precisions.append((torch.float64, 1e-10))
    for dtype, tolerance in precisions:
        found: list[list[Tensor]] = []
        for way, model in zip(("sdpa", "eager"), in_both_ways(family, dtype), strict=True):
            assert model.config._attn_implementation == way
            found.append([])
            with attached(model, design(name, family)) as attachment:
                for left, masked in ((False, True), (True, True), (False, False)):
                    inputs = inputs_for(model, left)
                    if not masked:
                        del inputs["attention_mask"]
                    out = logits(model, **inputs)
                    if masked:
                        out = out[inputs["attention_mask"].bool()] if len(out[0]) == tiny.TOKENS else out
                    found[-1].append(out.detach())
                out.square().sum().backward()
                found[-1] += [p.grad for _, p in attachment.named_parameters() if p.grad is not None]
            assert model.config._attn_implementation == way
        assert len(found[0]) == len(found[1]) > 3
        scale = max(float(tensor.abs().max()) for tensor in found[0][3:])
        for one, other in zip(found[0][:3], found[1][:3], strict=True):
            assert apart(one, other) < tolerance
        for one, other in zip(found[0][3:], found[1][3:], strict=True):
            assert float((one - other).abs().max()) < tolerance * scale


def test_a_model_loaded_eager(tmp_path: Path) -> None:
    model = tiny.model("gpt2", generates=True)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(
        tiny.folder("gpt2", tmp_path, generates=True), attn_implementation="eager"
    )
    with attached(model, parse(TEXTS["mixture"])), attached(loaded, parse(TEXTS["mixture"])):
        assert loaded.config._attn_implementation == "petl_eager"
        inputs = tiny.batch()
        shown = inputs["attention_mask"].bool()
        assert apart(logits(loaded, **inputs)[shown], logits(model, **inputs)[shown]) < 1e-5
    assert loaded.config._attn_implementation == "eager"


# -- gradient checkpointing


def undropped(family: str, **changes: Any) -> PreTrainedModel:
    """In training mode, without dropout, in float64."""
    config = tiny.CONFIGS[family]()
    for key in [key for key in vars(config) if "drop" in key]:
        if isinstance(getattr(config, key), float):
            changes[key] = 0.0
    return with_tokens(family, **changes).double().train()


@cache
def gradients(family: str, name: str, reentrant: bool | None) -> dict[str, Tensor | None]:
    model = undropped(family)
    if reentrant is not None:
        model.activation_checkpointing_enable({"use_reentrant": reentrant})
    if reentrant:
        model.enable_input_require_grads()
    with attached(model, design(name, family)) as attachment:
        logits(model, **inputs_for(model), use_cache=False).square().sum().backward()
        if reentrant is not None:
            copy.deepcopy(model)  # which takes no activation that was kept
        return {key: parameter.grad for key, parameter in attachment.named_parameters()}


@pytest.mark.parametrize(
    ("family", "name", "reentrant"),
    [
        (*case, reentrant)
        for case in CASES
        for reentrant in (False, True)
        if case[1] in ("bottlenecks", "mixture")
        or (case[1] in ("ungated", "normed prefix", "prompt") and not reentrant)
    ],
)
def test_gradient_checkpointing(family: str, name: str, reentrant: bool) -> None:
    if family == "mbart" and reentrant and any(part.site == "ffn" for part in design(name, family).modifications):
        with pytest.raises(RuntimeError, match="'use_reentrant': False"):
            gradients(family, name, reentrant)
        return
    plain, checkpointed = gradients(family, name, None), gradients(family, name, reentrant)
    scale = max(float(gradient.abs().max()) for gradient in plain.values() if gradient is not None)
    for key, one in plain.items():
        other = checkpointed[key]
        assert one is not None
        assert other is not None
        # Llama's norms and softmax are computed in float32.
        assert float((one - other).abs().max()) < (1e-5 if family in ROTARY else 1e-10) * scale, key


# -- precision


@SHORT
def test_autocast(family: str, name: str) -> None:
    model = shared(family)
    inputs = inputs_for(model)
    with attached(model, design(name, family)) as attachment:
        exact = logits(model, **inputs)
        with torch.autocast("cpu", torch.bfloat16):
            out = logits(model, **inputs)
        assert apart(out.float(), exact) < 0.1
        out.float().square().mean().backward()
        for key, parameter in attachment.named_parameters():
            assert parameter.grad is not None, key
            assert parameter.grad.dtype == torch.float32
            assert parameter.grad.isfinite().all()


@SHORT
def test_a_model_in_bfloat16(family: str, name: str) -> None:
    model = with_tokens(family)
    with attached(model, design(name, family)) as attachment:
        exact, kept = logits(model, **inputs_for(model)), copy.deepcopy(attachment.state_dict())
    model.bfloat16()
    with attached(model, design(name, family)) as attachment:
        attachment.load_state_dict(kept)
        assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
        out = logits(model, **inputs_for(model))
        assert out.dtype == torch.bfloat16
        out.square().mean().backward()
        assert all(p.grad is not None and p.grad.dtype == torch.bfloat16 for _, p in attachment.named_parameters())
    shown = slice(None) if model.config.is_encoder_decoder else tiny.batch()["attention_mask"].bool()
    assert apart(out.float()[shown], exact[shown]) < 0.5


@pytest.mark.parametrize("family", ["bert", "mbart", "t5", "gpt2", "llama"])
@pytest.mark.parametrize("text", ["full", "bitfit", "mam:length=2,size=3"])
def test_a_model_moved_after_attaching(family: str, text: str) -> None:
    if text == "bitfit" and family not in tiny.BIASED:
        return
    model, other = tiny.model(family), tiny.model(family).double()
    first, second = attach(model, parse(text)), attach(model, parse("full"))
    logits(model, **tiny.batch())
    model.to(torch.float64)
    assert logits(model, **tiny.batch()).dtype == torch.float64
    second.detach()
    with attached(other, parse(text)) as attachment:
        attachment.load_state_dict(first.state_dict(), first.head_state_dict())
        assert torch.equal(logits(model, **tiny.batch()), logits(other, **tiny.batch()))
    first.detach()
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float64}
    assert torch.equal(logits(model, **tiny.batch()), logits(other, **tiny.batch()))


# -- copies


def look(model: PreTrainedModel) -> dict[str, object]:
    """All that attaching may touch."""
    return {
        "parameters": {name: (p.detach().numpy().tobytes(), p.requires_grad) for name, p in model.named_parameters()},
        "modules": [name for name, _ in model.named_modules()],
        "hooks": {
            name: [len(hooks) for key, hooks in vars(module).items() if "hooks" in key and hasattr(hooks, "__len__")]
            for name, module in model.named_modules()
        },
        "attributes": {name: sorted(vars(module)) for name, module in model.named_modules()},
        "attention": {module.config._attn_implementation for module in model.modules() if hasattr(module, "config")},
    }


def saved(thing: Any) -> Any:
    file = io.BytesIO()
    torch.save(thing, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("way", [copy.deepcopy, saved], ids=["deepcopy", "save"])
@pytest.mark.parametrize(("family", "name"), [case for case in CASES if case[1] == "mixture"])
def test_copies(family: str, name: str, way: Any) -> None:
    model = tiny.model(family)
    before, plain = look(model), logits(model, **tiny.batch())
    with attached(model, design(name, family)) as attachment:
        changed = logits(model, **tiny.batch())
        alone = way(model)
        twin, its = way((model, attachment))
        for other in (alone, twin):
            assert torch.equal(logits(other, **tiny.batch()), changed)
            with torch.no_grad():
                for parameter in other.get_submodule(HOLDER).parameters():
                    parameter.copy_(torch.randn(parameter.shape))
            assert not torch.equal(logits(other, **tiny.batch()), changed)
        assert torch.equal(logits(model, **tiny.batch()), changed)
        assert its.model is twin
        its.detach()
        assert torch.equal(logits(twin, **tiny.batch()), plain)
        assert look(twin) == before
        assert torch.equal(logits(model, **tiny.batch()), changed)
        assert look(model) != before
    assert torch.equal(logits(model, **tiny.batch()), plain)
    assert look(model) == before


# -- two at once

PAIRS = (
    ("mam:length=3,size=4", "mam:length=2,size=3"),
    ("prefix:length=2", "prefix:length=3,gated=false + multihead_parallel:size=2"),
    ("bitfit", "bitfit + lora:rank=2"),
    ("pfeiffer:size=3", "pfeiffer:size=4 + parallel:size=3"),
    ("prompt:length=2", "prompt:length=3 + prefix:length=2"),
    ("ia3", "lora:rank=2,where=both + sequential:size=3,where=both"),
    ("lora:rank=2,head=false", "parallel:size=3,where=both"),
    ("parallel:size=3,where=both", "lora:rank=2,head=false"),
    ("bitfit:head=false", "lora:rank=2"),
)
PAIRED = ("bert", "mbart", "t5", "gpt2")


def place(delta: Delta) -> tuple[str, str, Modification]:
    """What tells deltas apart where each form is there once or differs in size."""
    return delta.layer, re.sub(r"_\d+$", "", delta.name), delta.modification


def load_union(whole: Attachment, parts: list[Attachment]) -> None:
    """The tensors of all parts; of what several own, those of the last that trains it."""
    theirs = {place(delta): part.changes[delta.name] for part in parts for delta in part.deltas}
    own: dict[str, Tensor] = {}
    for part in parts:
        own |= dict(part._head) if part.design.head or not own else {}
        own |= dict(part.owned_parameters())
    with torch.no_grad():
        for delta in whole.deltas:
            whole.changes[delta.name].load_state_dict(theirs.pop(place(delta)).state_dict())
        for key, parameter in {**whole._head, **whole.owned_parameters()}.items():
            parameter.copy_(own[key])
    assert not theirs


@pytest.mark.parametrize("later_first", [False, True], ids=["", "later_first"])
@pytest.mark.parametrize("pair", PAIRS, ids=" & ".join)
@pytest.mark.parametrize("family", PAIRED)
def test_two_attachments_act_as_their_union(family: str, pair: tuple[str, str], later_first: bool) -> None:
    if "bitfit" in pair[0] and family not in tiny.BIASED:
        return
    model, fresh = tiny.model(family).double(), tiny.model(family).double()
    designs = [parse(text) for text in pair]
    inputs = tiny.batch()
    before, plain = look(model), logits(model, **inputs)
    attachments = []
    for seed, chosen in enumerate(designs):
        attachments.append(attach(model, chosen, seed=seed))
        randomise(attachments[-1], seed)
    parts = tuple({*designs[0].modifications, *designs[1].modifications})
    with attach(fresh, Design(parts, head=any(chosen.head for chosen in designs))) as whole:
        load_union(whole, attachments)
        both, together = logits(model, **inputs), logits(fresh, **inputs)
        assert apart(both, together) < 1e-6
        both.square().sum().backward()
        together.square().sum().backward()
        trained, expected = ([p.grad for p in m.parameters() if p.requires_grad] for m in (model, fresh))
        sums = [sum(float(grad.square().sum()) for grad in grads if grad is not None) for grads in (trained, expected)]
        assert sums[0] == pytest.approx(sums[1], rel=1e-3)
    first, last = reversed(attachments) if later_first else attachments
    first.detach()
    with attach(fresh, last.design) as alone:
        alone.load_state_dict(last.state_dict(), last.head_state_dict())
        assert torch.equal(logits(model, **inputs), logits(fresh, **inputs))
    last.detach()
    assert torch.equal(logits(model, **inputs), plain)
    assert look(model) == before


@pytest.mark.parametrize("family", PAIRED)
@pytest.mark.parametrize(
    ("text", "double"),
    [
        ("mam:length=2,size=3", "mam:length=4,size=6"),
        ("prompt:length=2", "prompt:length=4"),
        ("lora:rank=2,where=both", "lora:rank=4,where=both"),
        ("multihead_parallel:size=2", "multihead_parallel:size=4"),
        ("sequential:size=2", "sequential:size=4"),
        ("pfeiffer:size=2", "pfeiffer:size=4"),
    ],
)
def test_the_same_design_twice_is_one_of_double_size(family: str, text: str, double: str) -> None:
    model, wide = tiny.model(family).double(), tiny.model(family).double()
    before = look(model)
    with (
        attached(model, parse(text), 1) as one,
        attached(model, parse(text), 2) as two,
        attach(wide, parse(double)) as whole,
    ):
        firsts, seconds = one.state_dict(), two.state_dict()
        joined = {}
        for key, tensor in firsts.items():
            other, leaf = seconds[key], key.rpartition("bottleneck.")[2].rpartition(".low_rank.")[2]
            if leaf == "up.bias":
                joined[key] = tensor + other
            else:
                joined[key] = torch.cat((tensor, other), 1 if leaf in ("up.weight", "b") else 0)
        whole.load_state_dict(joined, two.head_state_dict())
        assert apart(logits(model, **tiny.batch()), logits(wide, **tiny.batch())) < 1e-6
    assert look(model) == before


@pytest.mark.parametrize("text", ["mam:length=2,size=3", "bitfit", "prompt:length=2"])
def test_a_detached_attachment_leaves_later_ones_alone(text: str) -> None:
    model = tiny.model("bert")
    old = attach(model, parse(text))
    old.detach()
    with attached(model, parse(text)):
        changed = logits(model, **tiny.batch())
        old.detach()
        assert torch.equal(logits(model, **tiny.batch()), changed)
    assert not hasattr(model, HOLDER)


def test_a_failure_leaves_the_other_attachment_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.model("bart")
    before = look(model)
    with attached(model, parse("prefix:length=2 + bitfit + pfeiffer:size=2")):
        carried, changed = look(model), logits(model, **tiny.batch())
        with pytest.raises(DesignError, match="the stack has 3 layers"):
            attach(model, parse("lora:layers=top 9"))
        assert look(model) == carried
        insert, calls = HookPoints.insert, []

        def interrupted(self: HookPoints, *arguments: Any) -> None:
            calls.append(arguments)
            if len(calls) == 7:
                raise KeyboardInterrupt
            insert(self, *arguments)

        monkeypatch.setattr(HookPoints, "insert", interrupted)
        with pytest.raises(KeyboardInterrupt):
            attach(model, parse("mam:length=2,size=2 + bitfit + prompt:length=2 + lora"))
        monkeypatch.undo()
        assert look(model) == carried
        assert torch.equal(logits(model, **tiny.batch()), changed)
    assert look(model) == before


# -- heads

HEADS = [
    (family, kind)
    for kind, families in {
        "AutoModel": tiny.FAMILIES,
        "AutoModelForMaskedLM": ENCODERS,
        "AutoModelForSequenceClassification": tiny.FAMILIES,
        "AutoModelForTokenClassification": (*ENCODERS, "t5", "gpt2", *ROTARY),
        "AutoModelForQuestionAnswering": (*ENCODERS, "bart", "mbart", "t5", "gpt2", *ROTARY),
        "AutoModelForMultipleChoice": ENCODERS,
        "AutoModelForPreTraining": ("bert", "bart", "t5", "gpt2"),
        "T5EncoderModel": ("t5",),
    }.items()
    for family in families
]


def head_of(model: PreTrainedModel) -> set[str]:
    """What the bare model does not have. An output embedding is the pretrained model's."""
    bare = {name for name, _ in transformers.AutoModel.from_config(model.config).named_parameters()}
    prefix = f"{model.base_model_prefix}."
    output = model.get_output_embeddings()
    tied = set() if output is None else {id(parameter) for parameter in output.parameters()}
    return {
        name
        for name, parameter in model.named_parameters()
        if name not in bare and name.removeprefix(prefix) not in bare and id(parameter) not in tied
    }


def tensors(model: PreTrainedModel) -> dict[str, Tensor]:
    """What a model of any kind puts out, without its encoder's states."""
    inputs = tiny.batch()
    if "MultipleChoice" in type(model).__name__:
        inputs = {key: value[:, None] for key, value in inputs.items()}
    parameters = inspect.signature(model.forward).parameters
    if "decoder_input_ids" in parameters and not type(model).__name__.endswith(("Classification", "Answering")):
        inputs["decoder_input_ids"] = torch.tensor([[2, 11, 12, 13]] * 3)
    return {key: value for key, value in model(**inputs).items() if isinstance(value, Tensor) and "enc" not in key}


@pytest.mark.parametrize(("family", "kind"), HEADS)
def test_every_kind_of_head(family: str, kind: str) -> None:
    model = headed(family, getattr(transformers, kind))
    before, plain, head = look(model), tensors(model), head_of(model)
    whole = parse("mam:length=2,size=2 + prompt:length=2 + pfeiffer:size=2 + lora:rank=2,where=both")
    for trained in (True, False):
        with attached(model, replace(whole, head=trained)) as attachment:
            training = {name for name, p in model.named_parameters() if p.requires_grad}
            assert {name for name in training if not name.startswith(HOLDER)} == (head if trained else set())
            assert set(attachment.head_state_dict()) == head
            found = tensors(model)
            assert {key: value.shape for key, value in found.items()} == {k: v.shape for k, v in plain.items()}
            assert all(not torch.equal(found[key], plain[key]) for key in plain)
            sum(value.square().sum() for value in found.values()).backward()
            for name, parameter in attachment.named_parameters():
                assert parameter.grad is not None, name
    assert look(model) == before


@pytest.mark.parametrize("family", [family for family in tiny.FAMILIES if family in tiny.BIASED])
def test_the_biases_of_a_frozen_head_are_bitfits(family: str) -> None:
    model = tiny.model(family)
    head = head_of(model)
    with attach(model, replace(presets.bitfit(), head=False)) as attachment:
        training = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        assert training & head == {name for name in head if name.endswith(".bias")}
        assert set(attachment.head_state_dict()) == head - training


# -- what else a forward pass takes and gives


@EVERY_CASE
def test_states_and_tuples(family: str, name: str) -> None:
    model = shared(family)
    bare = model(**inputs_for(model), output_hidden_states=True, output_attentions=True)
    with attached(model, design(name, family)):
        plain = model(**inputs_for(model))
        full = model(**inputs_for(model), output_hidden_states=True, output_attentions=True)
        assert torch.equal(full.logits, plain.logits)
        assert torch.equal(model(**inputs_for(model), return_dict=False)[0], plain.logits)
        whole = model(**inputs_for(model), return_dict=False, output_hidden_states=True, output_attentions=True)
        assert torch.equal(whole[0], plain.logits)
        for key in ("hidden_states", "decoder_hidden_states"):
            if bare.get(key):
                assert [states.shape for states in full[key]] == [states.shape for states in bare[key]]
                inside = [value for value in whole if isinstance(value, tuple) and len(value) == len(full[key])]
                assert any(all(map(torch.equal, value, full[key])) for value in inside)
        eager = in_both_ways(family, torch.float32)[1]
        with attached(eager, design(name, family)):
            out = eager(**inputs_for(eager), output_attentions=True)
            seen = [value for key, value in out.items() if key.endswith("attentions")]
            assert seen
            assert all(weights is not None for value in seen for weights in value)


@pytest.mark.parametrize("family", ["bert", "mbart", "t5", "gpt2", "llama"])
@pytest.mark.parametrize("name", ["bottlenecks", "mixture"])
def test_hidden_states_are_those_of_the_changed_layers(family: str, name: str) -> None:
    """Whether the model was asked for them before it was attached to, or not."""
    fresh, asked = with_tokens(family), with_tokens(family)
    asked(**inputs_for(asked), output_hidden_states=True)
    found = []
    for model in (fresh, asked):
        with attached(model, design(name, family)):
            out = model(**inputs_for(model), output_hidden_states=True)
            found.append([state for key, states in out.items() if key.endswith("hidden_states") for state in states])
    assert all(map(torch.equal, *found))
    assert len(found[0]) > 3


@SHORT
def test_labels_and_embeddings(family: str, name: str) -> None:
    model = shared(family)
    inputs = inputs_for(model)
    labels = inputs["input_ids"] % 3
    if "decoder_input_ids" in inputs:
        labels = inputs.pop("decoder_input_ids")
        model.config.decoder_start_token_id = 2
    with attached(model, design(name, family)) as attachment:
        out = model(**inputs, labels=labels)
        if not model.config.is_encoder_decoder:
            shift = 0 if family in ENCODERS else 1
            scores = out.logits[:, : tiny.TOKENS - shift].flatten(0, 1)
            expected = nn.functional.cross_entropy(scores, labels[:, shift:].flatten())
            assert torch.allclose(out.loss, expected, atol=1e-6)
        out.loss.backward()
        assert all(parameter.grad is not None for _, parameter in attachment.named_parameters())
        if family == "roberta":  # which counts its padding from the ids alone
            inputs = {key: value[:1] for key, value in inputs.items()}
            labels = labels[:1]
        expected = model(**inputs, labels=labels).logits
        embedded = model.get_input_embeddings()(inputs.pop("input_ids"))
        if family in ("bart", "mbart"):
            embedded = embedded.detach()
        assert apart(model(**inputs, inputs_embeds=embedded, labels=labels).logits, expected) < 1e-5


# -- hostile


@pytest.mark.parametrize(("family", "name"), [case for case in CASES if case[1] in ("bottlenecks", "mixture")])
def test_a_failure_inside_a_forward_pass_leaves_nothing_behind(family: str, name: str) -> None:
    model = shared(family)
    inputs = inputs_for(model)
    row = FAMILIES[model.config.model_type]
    stack = row.stacks[-1]
    last = f"{stack.layers}.1"
    base = model if hasattr(model, "encoder") and hasattr(model, "shared") else model.base_model
    middle = base.get_submodule(last)
    inner = [module for module in middle.modules() if not list(module.children()) and list(module.parameters())]
    with attached(model, design(name, family)):
        expected = logits(model, **inputs)
        for module in (inner[0], inner[len(inner) // 2], inner[-1]):
            handle = module.register_forward_hook(lambda *_: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                logits(model, **inputs)
            handle.remove()
            if module is inner[-1]:
                copy.deepcopy(model)  # which takes no activation that was kept
            assert torch.equal(logits(model, **inputs), expected)


def test_a_failed_pass_does_not_reach_into_a_cached_one() -> None:
    model = tiny.model("gpt2", generates=True)
    ids = tiny.batch()["input_ids"]
    with attached(model, parse("prompt:length=3")):
        first = model(input_ids=ids[:1, :4], use_cache=True)
        handle = model.transformer.h[1].register_forward_hook(lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            model(input_ids=ids)
        handle.remove()
        rest = model(input_ids=ids[:1, 4:], past_key_values=first.past_key_values)
        assert apart(rest.logits, model(input_ids=ids[:1]).logits[:, 4:]) < 1e-5


@pytest.mark.parametrize("family", ["bert", "bart", "t5", "gpt2", "llama"])
def test_no_activation_outlives_a_pass(family: str) -> None:
    model = undropped(family)
    with attached(model, design("mixture", family)):
        logits(model, **inputs_for(model), use_cache=False).square().sum().backward()
        kept = [thing for thing in gc.get_objects() if type(thing) is Tensor and thing.grad_fn is not None]
        assert not [tensor.shape for tensor in kept if tensor.dtype == torch.float64]


@pytest.mark.parametrize("family", ["bert", "mbart", "t5", "gpt2", "llama"])
def test_training_mode_reaches_the_changes(family: str) -> None:
    model = with_tokens(family, attention_dropout=0.0, dropout=0.0, dropout_rate=0.0)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    for key in [key for key in vars(model.config) if "drop" in key]:
        setattr(model.config, key, 0.0)
    for text in ("mam:length=3,size=4", "prompt:length=3", "lora:rank=2", "multihead_parallel:size=3"):
        whole = parse(text)
        dropped = replace(whole, modifications=tuple(replace(m, dropout=0.5) for m in whole.modifications))
        for module in model.modules():
            for key in ("dropout", "activation_dropout"):
                if isinstance(getattr(module, key, None), float):
                    setattr(module, key, 0.0)
        with attached(model, dropped):
            inputs = inputs_for(model)
            still = logits(model, **inputs)
            assert torch.equal(logits(model.train(), **inputs).isfinite(), torch.ones_like(still, dtype=torch.bool))
            assert not torch.equal(logits(model, **inputs), logits(model, **inputs))
            assert torch.equal(logits(model.eval(), **inputs), still)
        with attached(model.train(), dropped):
            assert not torch.equal(logits(model, **inputs), logits(model, **inputs))
            model.eval()
    model.eval()


@pytest.mark.parametrize(
    ("text", "there", "absent"),
    [
        ("lora:layers=2", {"encoder.2.self"}, {"decoder.2.self"}),
        ("lora:layers=top 1", {"encoder.2.self", "decoder.1.self", "decoder.1.cross"}, {"encoder.1.self"}),
        ("lora:layers=top 3", {"encoder.0.self", "decoder.0.self"}, set()),
        ("prefix:stacks=decoder,attentions=cross", {"decoder.0.cross"}, {"decoder.0.self", "encoder.0.self"}),
        ("prefix:attentions=self", {"encoder.0.self", "decoder.0.self"}, {"decoder.0.cross"}),
        ("parallel:stacks=encoder", {"encoder.0.ffn"}, {"decoder.0.ffn"}),
    ],
)
@pytest.mark.parametrize("family", tiny.ENCODER_DECODERS)
def test_addresses(family: str, text: str, there: set[str], absent: set[str]) -> None:
    model = tiny.model(family)
    with attached(model, parse(text)) as attachment:
        found = {".".join(delta.name.split(".")[:3]) for delta in attachment.deltas}
        assert found >= there
        assert not found & absent
        logits(model, **tiny.batch()).square().sum().backward()
        assert all(
            parameter.grad is not None and parameter.grad.any() for _, parameter in attachment.named_parameters()
        )


REFUSED = (
    ("t5", "bitfit", "no biases"),
    ("llama", "bitfit", "no biases"),
    ("qwen3", "bitfit", "no biases"),
    ("bert", "lora:layers=3", "the stack has 3 layers, 0 to 2; received layers '3'"),
    ("bert", "lora:layers=top 4", "the stack has 3 layers"),
    ("bart", "lora:layers=2,stacks=decoder", "the stack has 2 layers"),
    ("bart", "lora:attentions=cross,stacks=encoder", "nothing to change"),
    ("gpt2", "lora:attentions=cross", "nothing to change"),
    ("gpt2", "parallel:stacks=encoder", "nothing to change"),
    ("bert", "prefix:stacks=decoder", "nothing to change"),
    ("t5", "prompt:positions=shifted", "relative positions"),
    ("llama", "prompt:positions=shifted", "relative positions"),
)


@pytest.mark.parametrize(("family", "text", "why"), REFUSED)
def test_what_means_nothing_on_a_family_is_refused(family: str, text: str, why: str) -> None:
    model = tiny.model(family)
    before = look(model)
    for whole in (text, f"{text} + mam:length=2,size=2"):
        with pytest.raises(DesignError, match=why):
            attach(model, parse(whole))
        assert look(model) == before


REFUSED_PARTS: tuple[tuple[dict[str, Any], str], ...] = (
    ({"form": "multi_head", "site": "heads", "composition": "gate", "size": 2}, "share of a softmax"),
    ({"form": "bottleneck", "site": "ffn", "composition": "gate", "size": 2}, "share of a softmax"),
    ({"form": "prompt", "site": "heads", "size": 2}, "in front of the input"),
    ({"form": "prompt", "site": "input", "size": 2, "layers": "top 1"}, "in front of the input"),
    ({"form": "prefix", "site": "heads", "size": 2, "layer_norm": "out"}, "none or in"),
    ({"form": "prefix", "site": "ffn", "size": 2}, "takes site heads"),
    ({"form": "rescale", "site": "key", "insertion": "sequential", "size": 2}, "has no size"),
    (
        {"form": "bottleneck", "site": "attention", "insertion": "after_residual", "size": 2},
        "attention takes insertion",
    ),
)


@pytest.mark.parametrize(("fields", "why"), REFUSED_PARTS)
def test_what_means_nothing_anywhere_is_refused(fields: dict[str, Any], why: str) -> None:
    with pytest.raises(DesignError, match=why):
        Modification(**fields)


def test_parts_that_a_model_lacks_are_refused() -> None:
    gate = Design((Modification(form="low_rank", site="ffn_gate", size=2),))  # type: ignore[arg-type]
    with pytest.raises(DesignError, match="nothing to change"):
        attach(tiny.model("t5"), gate)
    with attach(tiny.model("t5-gated"), gate) as attachment:
        assert len(attachment.deltas) == 5
    for name in NORMED:
        with pytest.raises(DesignError, match="rotates its queries after their linear"):
            attach(tiny.model("llama"), design(name, "llama"))
    with pytest.raises(DesignError, match="no encoder"):
        attach(headed("bart", transformers.BartForCausalLM), presets.prompt(2))
    with pytest.raises(DesignError, match="has no task head"):
        attach(headed("bert", transformers.AutoModel), presets.head_only())


def test_a_change_of_implementation_under_a_prefix_is_noticed() -> None:
    model = tiny.model("bert")
    with attached(model, presets.prefix(2)):
        model.set_attn_implementation("eager")
        with pytest.raises(RuntimeError, match="petl_eager"):
            logits(model, **tiny.batch())
        model.set_attn_implementation("petl_eager")
        logits(model, **tiny.batch())


def test_models_that_share_a_configuration() -> None:
    config = tiny.CONFIGS["bert"]()
    one, other = (transformers.BertForSequenceClassification(config).eval() for _ in range(2))
    first, second = attach(one, presets.prefix(2)), attach(other, presets.prefix(2))
    second.detach()
    logits(one, **tiny.batch())
    second = attach(other, presets.prefix(2))
    first.detach()
    with pytest.raises(RuntimeError, match="shares the configuration"):
        logits(other, **tiny.batch())
    second.detach()
    logits(other, **tiny.batch())


@pytest.mark.parametrize("cut", ["T5EncoderModel", "AutoModelForTokenClassification"])
def test_a_prompt_on_an_encoder_alone_is_cut_off(cut: str) -> None:
    model = headed("t5", getattr(transformers, cut))
    with attached(model, presets.prompt(3)):
        assert logits(model, **tiny.batch()).shape[1] == tiny.TOKENS
