"""Adapters in Hugging Face PEFT's format: PEFT itself says what they compute, in both directions."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from peft import (
    IA3Config,
    LoHaConfig,
    LoraConfig,
    PeftConfig,
    PeftModel,
    PrefixTuningConfig,
    PromptTuningConfig,
    get_peft_model,
)
from safetensors.torch import load_file, save_file
from tokens import of_some_words as tokenizer
from torch import Tensor
from transformers import AutoModelForMaskedLM, PreTrainedModel

from petl.adapters.peft import CONFIG, TENSORS, PeftMissingError, convert, from_peft, to_peft
from petl.adapters.peft_target import spelled
from petl.adapters.storage import StorageError, save
from petl.attach.attachment import HOLDER, Attachment, attach
from petl.backbones.families import family_of
from petl.backbones.layout import layout
from petl.backbones.loading import load
from petl.backbones.model import describe, parameters_of
from petl.design import Composition, Design, DesignError, Form, Modification, Site, StackShape
from petl.presets import parse

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")

MODELS = [(family, False) for family in tiny.FAMILIES] + [(family, True) for family in tiny.GENERATING]
ROTARY = ("llama", "qwen2", "qwen3")
# Ranks and scales that differ from site to site, at some layers and attentions only.
LORA = "lora:where=both,rank=3,scale=0.1,layers=0,2 + lora:rank=2,layers=1"
CROSS = "lora:rank=2,stacks=decoder,attentions=cross + lora:where=ffn,layers=top 1"
CLAIMED = [
    *((*model, text) for model in MODELS for text in (LORA, "ia3")),
    *((family, generates, CROSS) for family, generates in MODELS if family in tiny.ENCODER_DECODERS),
    *((family, generates, "lora + bitfit") for family, generates in MODELS if family in tiny.BIASED),
    *((family, True, "prompt:length=3,positions=shifted") for family in ("bart", "mbart", "gpt2")),
    *((family, True, "prompt:length=3") for family in ("t5", "t5-gated", *ROTARY)),
    *((family, generates, "prefix:length=3") for family in ROTARY for generates in (False, True)),
]


def build(family: str, generates: bool, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A tiny model whose matrices are small enough for rounding to stay below what is tested."""
    model = tiny.model(family, generates=generates)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(0.25)
    return model.to(dtype)


def put(model: PreTrainedModel, design: Design | str) -> Attachment:
    """A random adapter."""
    attachment = attach(model, parse(design) if isinstance(design, str) else design)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for _, parameter in attachment.named_parameters():
            parameter.add_(torch.empty(parameter.shape).normal_(0.0, 0.05, generator=generator))
    return attachment


def logits(model: Any, left: bool = False) -> Tensor:
    """Those of the tokens: PEFT returns rows for a prompt too."""
    batch = tiny.batch(left)
    if left and model.config.model_type in ROTARY:  # where PEFT counts padding that we do not, unless told
        batch["position_ids"] = (batch["attention_mask"].cumsum(1) - 1).clamp(min=0)
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    if base.config.is_encoder_decoder and base.get_output_embeddings() is not None:
        batch["decoder_input_ids"] = tiny.batch()["input_ids"]
    with torch.no_grad():
        result: Tensor = model(**batch).logits
    return result[:, -tiny.TOKENS :] if result.ndim == 3 else result


def deviation(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max() / other.abs().max())


def canonical(design: Design, model: PreTrainedModel) -> Design:
    shapes = {name: tuple(parameter.shape) for name, parameter in parameters_of(model).base.items()}
    return design.canonical(layout(family_of(model), shapes))


def look(model: PreTrainedModel) -> Mapping[str, object]:
    return {name: (id(p), p.requires_grad) for name, p in model.named_parameters()}


@pytest.mark.parametrize(("family", "generates", "text"), CLAIMED)
def test_peft_computes_the_same_and_it_comes_back(family: str, generates: bool, text: str, tmp_path: Path) -> None:
    model, plain = build(family, generates), build(family, generates)
    attachment = put(model, text)
    to_peft(attachment, tmp_path)
    read = PeftModel.from_pretrained(build(family, generates), tmp_path).eval()
    for left in (False, True):
        if left and family in ROTARY and "prompt" in text:
            continue  # where PEFT ignores positions that are given
        expected = logits(model, left)
        assert deviation(logits(plain, left), expected) > 1e-4
        assert deviation(logits(read, left), expected) < 1e-6
    again = build(family, generates)
    back = from_peft(tmp_path, again)
    assert back.design == canonical(attachment.design, model)
    assert deviation(logits(again), logits(model)) < 1e-6


def scaled(site: Site, scale: float, learned: bool = False, **where: Any) -> Modification:
    composition = Composition.LEARNED_SCALE if learned else Composition.SCALE
    return Modification(form=Form.LOW_RANK, site=site, size=2, scale=scale, composition=composition, **where)


@pytest.mark.parametrize(
    ("family", "generates", "design", "comes_back_as"),
    [
        ("bert", False, Design((scaled(Site.KEY, 3.0, learned=True),)), "lora key 2"),
        ("gpt2", False, Design((scaled(Site.KEY, 3.0, learned=True), scaled(Site.QUERY, 2.0))), "lora key,query 2"),
        ("qwen2", True, Design((scaled(Site.FFN_GATE, 3.0), scaled(Site.FFN_GATE, 2.0))), "lora ffn_gate 4"),
        ("t5", True, parse("lora:rank=2,scale=3 + lora:rank=1,scale=3"), "lora query,value 3 x3"),
        ("bert", False, parse("ia3 + ia3:layers=top 2"), "rescale ffn_hidden,key,value"),
        ("bert", False, parse("lora:rank=2,head=false"), "lora query,value 2 x2"),
        (
            "gpt2",
            True,
            parse("prompt:length=2,positions=shifted + prompt:length=1,positions=shifted"),
            "prompt 3 positions shifted",
        ),
        ("llama", True, parse("prefix:length=2,reparameterisation=5"), "prefix 2"),
        (
            "qwen3",
            False,
            parse("prefix:length=2 + prefix:length=1,layers=top 1 + prefix:length=1,layers=0,1"),
            "prefix 3",
        ),
    ],
)
def test_what_peft_says_otherwise(
    family: str, generates: bool, design: Design, comes_back_as: str, tmp_path: Path
) -> None:
    model = build(family, generates)
    to_peft(put(model, design), tmp_path)
    expected = logits(model)
    assert deviation(logits(PeftModel.from_pretrained(build(family, generates), tmp_path).eval()), expected) < 1e-6
    again = build(family, generates)
    assert from_peft(tmp_path, again).design.describe() == comes_back_as
    assert deviation(logits(again), expected) < 1e-6


@pytest.mark.parametrize("family", ["bert", "bart", "t5-gated", "gpt2", "qwen3"])
@pytest.mark.parametrize("text", [LORA, "ia3"])
def test_double_precision(family: str, text: str, tmp_path: Path) -> None:
    model = build(family, False, torch.float64)
    to_peft(put(model, text), tmp_path)
    expected = logits(model)
    read, again = build(family, False, torch.float64), build(family, False, torch.float64)
    from_peft(tmp_path, again)
    assert deviation(logits(PeftModel.from_pretrained(read, tmp_path).eval()), expected) < 1e-10
    assert deviation(logits(again), expected) < 1e-10


def test_any_set_of_places_has_a_spelling() -> None:
    there = {"encoder": StackShape(4, ("self",)), "decoder": StackShape(3, ("self", "cross"))}
    rng = random.Random(0)
    for site in (Site.QUERY, Site.FFN_UP):
        m = Modification(form=Form.LOW_RANK, site=site, size=1)
        everywhere = m.covers(there)
        for _ in range(100):
            places = set(rng.sample(everywhere, rng.randint(1, len(everywhere))))
            covered = [place for part in spelled(m, places, there) for place in part.covers(there)]
            assert set(covered) == places
            assert len(covered) == len(places)


def test_generation_is_peft_s(tmp_path: Path) -> None:
    model = build("llama", True)
    to_peft(put(model, "prefix:length=3"), tmp_path)
    read = PeftModel.from_pretrained(build("llama", True), tmp_path).eval()
    settings = {"max_new_tokens": 6, "do_sample": False}
    assert torch.equal(
        read.generate(**tiny.batch(left=True), **settings), model.generate(**tiny.batch(left=True), **settings)
    )


def test_rotary_frequencies_that_are_stretched(tmp_path: Path) -> None:
    rope = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 10000.0, "original_max_position_embeddings": 20}
    models = [tiny.model("llama", generates=True, rope_parameters=rope) for _ in range(2)]
    to_peft(put(models[0], "prefix:length=3"), tmp_path)
    assert deviation(logits(PeftModel.from_pretrained(models[1], tmp_path).eval()), logits(models[0])) < 1e-5


def test_a_head_that_is_tied_in_part(tmp_path: Path) -> None:
    def model() -> PreTrainedModel:
        torch.manual_seed(0)
        return AutoModelForMaskedLM.from_config(tiny.CONFIGS["bert"]()).eval()

    adapted, again = model(), model()
    to_peft(put(adapted, "lora+bitfit"), tmp_path)
    assert deviation(logits(PeftModel.from_pretrained(model(), tmp_path).eval()), logits(adapted)) < 1e-6
    from_peft(tmp_path, again)
    assert deviation(logits(again), logits(adapted)) < 1e-6


@pytest.mark.parametrize(
    ("family", "generates", "text", "rules"),
    [
        ("bert", False, "mam:length=2,size=4", ["PEFT has no bottleneck adapters", "only for rotary positions"]),
        ("bert", False, "multihead_parallel:size=2", ["PEFT has no adapters of heads"]),
        ("bert", False, "full", ["merge() it and save the model"]),
        ("bert", False, "head_only", ["PEFT trains a head beside one of its methods only"]),
        ("bert", False, "bitfit", ["PEFT trains biases beside a LoRA only"]),
        ("llama", True, "lora + ia3", ["one PEFT adapter is of one method; received parts of LORA, IA3"]),
        ("bert", False, "prompt:length=2", ["classifier reads another row", "positions=shifted; received kept"]),
        ("llama", False, "prompt:length=2", ["classifier reads another row"]),
        ("gpt2", True, "prompt:length=2", ["positions=shifted; received kept"]),
        *((family, True, "prefix:length=2", ["only for rotary positions"]) for family in ("bart", "t5", "gpt2")),
        ("bert", False, "prefix:length=2", ["only for rotary positions"]),
        ("llama", True, "prefix:length=2,gated=false", ["PEFT's prefixes are gated"]),
        ("llama", True, "prefix:length=2,layers=top 2", ["one length in all 3 layers"]),
        ("llama", True, "prefix:length=2 + prefix:length=1,layers=0", ["one length in all 3 layers"]),
    ],
)
def test_what_peft_cannot_express_is_refused(
    family: str, generates: bool, text: str, rules: list[str], tmp_path: Path
) -> None:
    attachment = put(build(family, generates), text)
    with pytest.raises(DesignError, match="PEFT cannot express") as refusal:
        to_peft(attachment, tmp_path / "new")
    for rule in rules:
        assert rule in str(refusal.value)
    assert not (tmp_path / "new").exists()


def test_moving_frequencies_and_both_sides_of_a_linear_are_refused(tmp_path: Path) -> None:
    model = tiny.model("llama", rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0})
    with pytest.raises(DesignError, match="type dynamic change with the length"):
        to_peft(put(model, "prefix:length=2"), tmp_path)
    down = Modification(form=Form.RESCALE, site=Site.FFN_DOWN, insertion="sequential")  # type: ignore[arg-type]
    with pytest.raises(DesignError, match="input or its output; received both ffn_hidden and ffn_down"):
        to_peft(put(tiny.model("bert"), parse("ia3") | Design((down,))), tmp_path)


def trained_by_peft(family: str, generates: bool, config: PeftConfig, folder: Path) -> Tensor:
    """The logits of an adapter that PEFT made and saved."""
    model = get_peft_model(build(family, generates), config).eval()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.empty(parameter.shape).normal_(0.0, 0.1, generator=generator))
    model.save_pretrained(folder)
    return logits(model)


SEQ_CLS, CAUSAL, SEQ2SEQ = "SEQ_CLS", "CAUSAL_LM", "SEQ_2_SEQ_LM"
PATTERNS = LoraConfig(
    task_type=SEQ_CLS,
    r=4,
    use_rslora=True,
    target_modules=r".*layer\.[02]\..*(query|key)",
    rank_pattern={"query": 2},
    alpha_pattern={"layer.0.attention.self.key": 5},
)
PROJECTED = PrefixTuningConfig(task_type=CAUSAL, num_virtual_tokens=3, prefix_projection=True, encoder_hidden_size=8)


@pytest.mark.parametrize(
    ("family", "generates", "config", "design"),
    [
        ("bert", False, LoraConfig(task_type=SEQ_CLS, r=4, lora_alpha=6), "lora query,value 4 x1.5"),
        (
            "roberta",
            False,
            PATTERNS,
            "lora key 4 x2.5, layers 0; lora query 2 x5.65685, layers 0,2; lora key 4 x4, top 1",
        ),
        ("bert", False, LoraConfig(task_type=SEQ_CLS, r=2, lora_alpha=2, bias="all", target_modules=["query"]), None),
        ("gpt2", False, LoraConfig(task_type=SEQ_CLS, r=4), "lora key,query,value 4 x2"),
        (
            "gpt2",
            True,
            LoraConfig(task_type=CAUSAL, r=4, target_modules=["c_fc", "c_proj"]),
            "lora attention_out,ffn_down,ffn_up 4 x2",
        ),
        ("t5", False, LoraConfig(task_type=SEQ_CLS, r=2), "lora query,value 2 x4"),
        (
            "t5-gated",
            True,
            LoraConfig(task_type=SEQ2SEQ, r=8, target_modules=["wi_0", "o"]),
            "lora attention_out,ffn_gate 8",
        ),
        ("bart", True, IA3Config(task_type=SEQ2SEQ), "rescale ffn_hidden,query,value"),
        ("gpt2", True, IA3Config(task_type=CAUSAL), "rescale ffn_hidden,key,query,value"),
        ("bart", True, PromptTuningConfig(task_type=SEQ2SEQ, num_virtual_tokens=3), "prompt 3 positions shifted"),
        ("t5", True, PromptTuningConfig(task_type=SEQ2SEQ, num_virtual_tokens=3), "prompt 3"),
        ("llama", False, PrefixTuningConfig(task_type=SEQ_CLS, num_virtual_tokens=3), "prefix 3"),
        ("qwen2", True, PROJECTED, "prefix 3"),
    ],
)
def test_adapters_that_peft_made(
    family: str, generates: bool, config: PeftConfig, design: str | None, tmp_path: Path
) -> None:
    expected = trained_by_peft(family, generates, config, tmp_path)
    model = build(family, generates)
    if design is None:  # PEFT trains the pooler's bias too
        with pytest.raises(DesignError, match=r"does not change bert\.pooler\.dense\.bias"):
            from_peft(tmp_path, model)
        return
    assert from_peft(tmp_path, model).design.describe() == design
    assert deviation(logits(model), expected) < 1e-6


@pytest.mark.parametrize(
    ("config", "why"),
    [
        (
            LoHaConfig(task_type=CAUSAL, target_modules=["q_proj"]),
            "LORA, PREFIX_TUNING, IA3, PROMPT_TUNING; received LOHA",
        ),
        (LoraConfig(task_type=CAUSAL, use_dora=True, target_modules=["q_proj"]), "nothing like PEFT's use_dora=True"),
        (
            LoraConfig(task_type=CAUSAL, init_lora_weights="pissa", target_modules=["q_proj"]),
            "init_lora_weights='pissa'",
        ),
        (LoraConfig(task_type=CAUSAL, target_modules=["q_proj", "lm_head"]), "the adapter also changes lm_head"),
        (LoraConfig(task_type=CAUSAL, target_modules=["q_proj"], modules_to_save=["norm"]), "does not change model."),
        (
            IA3Config(task_type=CAUSAL, target_modules=["o_proj"], feedforward_modules=["o_proj"]),
            "only the input of ffn_down",
        ),
    ],
)
def test_what_no_design_is_is_refused(config: PeftConfig, why: str, tmp_path: Path) -> None:
    trained_by_peft("llama", True, config, tmp_path)
    model = build("llama", True)
    before = look(model)
    with pytest.raises(DesignError) as refusal:
        from_peft(tmp_path, model)
    assert why in str(refusal.value)
    assert look(model) == before
    assert not hasattr(model, HOLDER)


def test_damaged_and_foreign_files(tmp_path: Path) -> None:
    to_peft(put(build("bert", False), "lora:rank=2"), tmp_path)
    tensors, config = load_file(tmp_path / TENSORS), (tmp_path / CONFIG).read_text()
    model = build("bert", False)

    def refused(why: str) -> None:
        with pytest.raises((StorageError, DesignError), match=why):
            from_peft(tmp_path, model)
        assert not hasattr(model, HOLDER)

    a = next(name for name in tensors if "lora_A" in name)
    save_file({name: tensor for name, tensor in tensors.items() if name != a.replace("_A", "_B")}, tmp_path / TENSORS)
    refused("does not fit")
    save_file({**tensors, a: tensors[a][:, :-1].contiguous()}, tmp_path / TENSORS)
    refused("does not fit")
    save_file({**tensors, "base_model.model.other": torch.ones(2)}, tmp_path / TENSORS)
    refused("does not change other")
    save_file({**tensors, "base_model.model.classifier.weight": torch.ones(5, 32)}, tmp_path / TENSORS)
    refused("classifier.weight has shape")
    save_file({name: tensor for name, tensor in tensors.items() if "lora" not in name}, tmp_path / TENSORS)
    refused("holds no tensors of LORA")
    (tmp_path / CONFIG).write_text(json.dumps({**json.loads(config), "peft_type": "PROMPT_TUNING", "bias": "none"}))
    refused("nothing like PEFT's")
    (tmp_path / CONFIG).write_text(json.dumps({"peft_type": "PROMPT_TUNING"}))
    refused("holds no tensors of PROMPT_TUNING")
    (tmp_path / TENSORS).write_bytes(b"damaged")
    refused("damaged")
    (tmp_path / TENSORS).rename(tmp_path / "adapter_model.bin")
    refused("would be unpickled")
    (tmp_path / "adapter_model.bin").unlink()
    refused(f"lacks {TENSORS}")
    (tmp_path / CONFIG).write_text(config[:20])
    refused("damaged")


def test_without_the_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    attachment = put(build("bert", False), "lora:rank=2")
    to_peft(attachment, tmp_path)
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(PeftMissingError, match=r"pip install 'petl-search\[peft\]'"):
        to_peft(attachment, tmp_path)
    assert from_peft(tmp_path, build("bert", False)).design == attachment.design


def test_the_configuration_names_the_base_model(tmp_path: Path) -> None:
    attachment = put(build("bert", False), LORA)
    config = json.loads((to_peft(attachment, tmp_path, base_model="org/name") / CONFIG).read_text())
    assert config["base_model_name_or_path"] == "org/name"
    assert config["task_type"] == SEQ_CLS
    assert config["modules_to_save"] == ["classifier"]


def test_an_adapter_directory_is_converted(tmp_path: Path) -> None:
    backbone = tiny.folder("bert", tmp_path)
    attachment = put(load(str(backbone), labels=tiny.LABELS), "lora:rank=2")
    task = {"labels": list(tiny.LABELS)}
    folder = save(tmp_path / "own", attachment, describe(str(backbone)), task, tokenizer())
    where = convert(folder, tmp_path / "out")
    assert json.loads((where / CONFIG).read_text())["base_model_name_or_path"] == str(backbone)
    assert (where / "tokenizer" / "tokenizer.json").exists()
    (tmp_path / "plain").touch()
    assert {(where / name).stat().st_mode for name in (CONFIG, TENSORS)} == {(tmp_path / "plain").stat().st_mode}
    read = PeftModel.from_pretrained(load(str(backbone), labels=tiny.LABELS, seed=5), where).eval()
    assert deviation(logits(read), logits(attachment.model)) < 1e-6


LORA_OF_4 = LoraConfig(task_type=CAUSAL, r=4, lora_alpha=8, target_modules=["q_proj"])


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"r": 8}, "rank 8 .*q_proj, whose tensors have 4"),
        ({"r": 8, "rank_pattern": {"layers.1.self_attn.q_proj": 4}}, "rank 8 for model.layers.0"),
        ({"rank_pattern": {"q_proj": 2}}, "rank 2 .*q_proj, whose tensors have 4"),
        ({"r": 0}, "r is a whole number of at least 1; received 0"),
        ({"r": True}, "r is a whole number of at least 1; received True"),
        ({"r": None}, "r is a whole number"),
        ({"lora_alpha": "8"}, "lora_alpha is a finite number; received '8'"),
        ({"lora_alpha": float("nan")}, "lora_alpha is a finite number; received nan"),
        ({"lora_dropout": "much"}, "lora_dropout is a number in"),
        ({"lora_dropout": 1.0}, "lora_dropout is a number in"),
        ({"use_rslora": "no"}, "use_rslora is true or false"),
        ({"alpha_pattern": ["q_proj"]}, "alpha_pattern is finite numbers by pattern"),
        ({"alpha_pattern": {"q_proj": "8"}}, "alpha_pattern is finite numbers by pattern"),
        ({"alpha_pattern": {"q_proj(": 3}}, r"'q_proj\(' is no pattern of paths"),
        ({"alpha_pattern": {"(" * 200 + ")+" * 200: 3}}, "is no pattern of paths"),
        ({"alpha_pattern": {"q" * 1001: 3}}, "more than 1000 characters"),
        ({"peft_type": ["LORA"]}, r"received \['LORA'\]"),
        ({"r": 8, "lora_alpha": [1] * 1000}, r"received \[1, 1, .{,80}$"),
    ],
)
def test_a_configuration_is_not_believed_against_its_tensors(changes: dict[str, Any], why: str, tmp_path: Path) -> None:
    trained_by_peft("llama", True, LORA_OF_4, tmp_path)
    _rewrite(tmp_path, changes)
    model = build("llama", True)
    with pytest.raises(DesignError, match=why):
        from_peft(tmp_path, model)
    assert not hasattr(model, HOLDER)


@pytest.mark.parametrize("pattern", ["(([a-z0-9_.]+)+)+!", "(.|[a-z_.])+[!?]", "(a|a)*" * 100 + "!"])
def test_a_pattern_that_would_not_end_does_not_match(pattern: str, tmp_path: Path) -> None:
    trained_by_peft("llama", True, LORA_OF_4, tmp_path)
    _rewrite(tmp_path, {"alpha_pattern": {pattern: 3}})
    assert from_peft(tmp_path, build("llama", True)).design.describe() == "lora query 4 x2"


@pytest.mark.parametrize(
    ("family", "config", "changes"),
    [
        ("llama", PrefixTuningConfig(task_type=CAUSAL, num_virtual_tokens=3), {"num_virtual_tokens": 2}),
        ("llama", PrefixTuningConfig(task_type=CAUSAL, num_virtual_tokens=3), {"num_virtual_tokens": "3"}),
        ("llama", PrefixTuningConfig(task_type=CAUSAL, num_virtual_tokens=3), {"num_layers": 6}),
        ("llama", PrefixTuningConfig(task_type=CAUSAL, num_virtual_tokens=3), {"num_attention_heads": 4}),
        ("llama", PrefixTuningConfig(task_type=CAUSAL, num_virtual_tokens=3), {"token_dim": 8}),
        ("gpt2", PromptTuningConfig(task_type=CAUSAL, num_virtual_tokens=4), {"num_virtual_tokens": 3}),
        ("gpt2", PromptTuningConfig(task_type=CAUSAL, num_virtual_tokens=4), {"num_virtual_tokens": 8}),
        ("gpt2", PromptTuningConfig(task_type=CAUSAL, num_virtual_tokens=4), {"num_virtual_tokens": -1}),
        ("gpt2", PromptTuningConfig(task_type=CAUSAL, num_virtual_tokens=4), {"token_dim": 16}),
    ],
)
def test_virtual_tokens_are_those_of_the_tensors(
    family: str, config: PeftConfig, changes: dict[str, Any], tmp_path: Path
) -> None:
    trained_by_peft(family, True, config, tmp_path)
    assert from_peft(tmp_path, build(family, True)).design.modifications[0].size == config.num_virtual_tokens
    _rewrite(tmp_path, changes)
    with pytest.raises(DesignError, match=f"{next(iter(changes))}|virtual tokens"):
        from_peft(tmp_path, build(family, True))


@pytest.mark.parametrize(
    ("config", "leaf"),
    [
        (IA3Config(task_type=CAUSAL), "ia3_l"),
        (PrefixTuningConfig(task_type=CAUSAL, num_virtual_tokens=3), "prompt_embeddings"),
        (PromptTuningConfig(task_type=CAUSAL, num_virtual_tokens=3), "prompt_embeddings"),
        (LORA_OF_4, "lora_A.weight"),
    ],
)
@pytest.mark.parametrize("shape", [(), (7,), (2, 2), (3, 0), (1, 1, 1)])
def test_tensors_of_another_shape_are_refused(
    config: PeftConfig, leaf: str, shape: tuple[int, ...], tmp_path: Path
) -> None:
    trained_by_peft("llama", True, config, tmp_path)
    tensors = load_file(tmp_path / TENSORS)
    first = next(name for name in tensors if name.endswith(leaf))
    save_file({**tensors, first: torch.ones(shape)}, tmp_path / TENSORS)
    model = build("llama", True)
    with pytest.raises((DesignError, StorageError)):
        from_peft(tmp_path, model)
    assert not hasattr(model, HOLDER)


def _rewrite(folder: Path, changes: dict[str, Any]) -> None:
    (folder / CONFIG).write_text(json.dumps({**json.loads((folder / CONFIG).read_text()), **changes}))
