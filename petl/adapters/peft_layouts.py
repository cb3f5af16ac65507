"""How Hugging Face PEFT lays out the methods that it shares with us, tensor by tensor; no PEFT is imported here.

    LORA             {linear}.lora_A.weight (r, in), {linear}.lora_B.weight (out, r), scaled by alpha / r
    IA3              {linear}.ia3_l (out, 1) for its output, (1, in) for its input
    PROMPT_TUNING    prompt_embeddings (l, width)
    PREFIX_TUNING    prompt_embeddings (l, layers x 2 x key width): key and value of each layer in turn

A layout writes the tensors of a design and reads them back. PEFT has one LoRA or vector at a linear: parts
that meet there are stacked or summed, and the parts of a fused linear are blocks of it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from typing import Any, Final, TypeAlias

import torch
from torch import Tensor
from transformers import PreTrainedModel

from petl.backbones.families import Family
from petl.backbones.model import family_of, parts
from petl.backbones.plan import Delta, Shapes, deltas, layout, linears
from petl.design import (
    FEED_FORWARD,
    Composition,
    Design,
    DesignError,
    Form,
    Insertion,
    LayerNorm,
    Layout,
    Modification,
    Positions,
    Site,
)

Tensors: TypeAlias = dict[str, Tensor]
# name of a delta without its form, such as `encoder.0.self.query` -> what is there
Found: TypeAlias = dict[str, tuple[Modification, Tensors]]

PROMPT: Final = "prompt_embeddings"
_A, _B, _VECTOR = "lora_A.weight", "lora_B.weight", "ia3_l"
# The end of a model's class -> PEFT's word for what it does.
_TASKS: Final[Mapping[str, str]] = {
    "ForSequenceClassification": "SEQ_CLS",
    "ForConditionalGeneration": "SEQ_2_SEQ_LM",
    "ForCausalLM": "CAUSAL_LM",
    "LMHeadModel": "CAUSAL_LM",
}


@dataclass(frozen=True)
class Target:
    """The model that an adapter is for."""

    model: PreTrainedModel

    @cached_property
    def family(self) -> Family:
        """Its row."""
        return family_of(self.model)

    @cached_property
    def base(self) -> str:
        """The path of the base model."""
        return parts(self.model).prefix

    @cached_property
    def shapes(self) -> Shapes:
        """Those of the base model's parameters."""
        return {name: tuple(parameter.shape) for name, parameter in parts(self.model).base.items()}

    @cached_property
    def layout(self) -> Layout:
        """Its stacks."""
        return layout(self.family, self.shapes)

    @cached_property
    def head(self) -> tuple[str, ...]:
        """The modules, children of the model, that hold its head."""
        return tuple(dict.fromkeys(name.partition(".")[0] for name in parts(self.model).head))

    @cached_property
    def paths(self) -> frozenset[str]:
        """Those of all its parameters."""
        return frozenset(name for name, _ in self.model.named_parameters(remove_duplicate=False))

    @property
    def task(self) -> str:
        """PEFT's task type, "" for a model that it has none for."""
        name = type(self.model).__name__
        return next((task for end, task in _TASKS.items() if name.endswith(end)), "")

    @property
    def generates(self) -> bool:
        """Whether it is a decoder, or has one, and a language-model head."""
        return self.task in ("CAUSAL_LM", "SEQ_2_SEQ_LM") and self.family.stacks[-1].name == "decoder"

    def linear(self, delta: Delta) -> str:
        """The path of the delta's linear from the model."""
        return ".".join(filter(None, (self.base, delta.layer, delta.linear)))

    def at(self, form: Form) -> dict[str, list[Delta]]:
        """Path of every linear -> the deltas that `form` could have there."""
        sites = linears(self.family, self.shapes)
        insertion = Insertion.PARALLEL
        if form is Form.RESCALE:
            sites, insertion = (*sites, Site.FFN_HIDDEN), Insertion.SEQUENTIAL
        size = int(form is Form.LOW_RANK)
        design = Design(tuple(Modification(form=form, site=s, insertion=insertion, size=size) for s in sites))
        found: dict[str, list[Delta]] = {}
        for delta in deltas(design, self.family, self.shapes):
            found.setdefault(self.linear(delta), []).append(delta)
        return found


@dataclass(frozen=True)
class Method:
    """One of PEFT's: the forms of a design that it takes, and its layout.

    `faults` yields the rules that a design breaks. `write` gives fields of PEFT's configuration, and the
    tensors by their path from the model. `read` takes out of such tensors what it understands; raises
    DesignError for what a design cannot be. `config` is the name of PEFT's class, `prefix` what PEFT
    puts before a path. `fields` are the fields of its configuration that may be set in a file that is
    read, and the values that they may have, any where none are listed.
    """

    forms: tuple[Form, ...]
    config: str
    prefix: str
    faults: Callable[[Design, Target], Iterator[str]]
    write: Callable[[Target, Sequence[Delta], Mapping[str, Tensor]], tuple[dict[str, Any], Tensors]]
    read: Callable[[Target, Mapping[str, Any], Tensors], Found]
    fields: Mapping[str, tuple[Any, ...]]


def _lora_faults(design: Design, target: Target) -> Iterator[str]:
    if all(m.form is Form.BIAS for m in design.modifications):
        yield "PEFT trains biases beside a LoRA only"


def _write_lora(target: Target, found: Sequence[Delta], stored: Mapping[str, Tensor]) -> tuple[dict[str, Any], Tensors]:
    tensors: Tensors = {}
    sizes: dict[str, tuple[int, float]] = {}
    for path, here in _by_linear(target, found).items():
        scales = [_scale(delta, stored) for delta in here]
        # One constant scale stays PEFT's alpha; others go into B.
        one = scales[0] if len(set(scales)) == 1 and f"{here[0].name}.scale" not in stored else 1.0
        a = torch.cat([stored[f"{delta.name}.a"] for delta in here])
        b = torch.cat(
            [
                _whole(delta, stored[f"{delta.name}.b"] * (scale / one))
                for delta, scale in zip(here, scales, strict=True)
            ],
            1,
        )
        tensors |= {f"{path}.{_A}": a, f"{path}.{_B}": b}
        sizes[path] = (len(a), one * len(a))
    (rank, alpha), _ = Counter(sizes.values()).most_common(1)[0]
    others = {f"^{re.escape(path)}": size for path, size in sizes.items() if size != (rank, alpha)}
    dropouts = {delta.modification.dropout for delta in found}
    return {
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": {path: size[0] for path, size in others.items()},
        "alpha_pattern": {path: size[1] for path, size in others.items()},
        "lora_dropout": dropouts.pop() if len(dropouts) == 1 else 0.0,
        "target_modules": sorted(sizes),
        "fan_in_fan_out": target.family.transposed,
    }, tensors


def _read_lora(target: Target, config: Mapping[str, Any], tensors: Tensors) -> Found:
    found: Found = {}
    places = target.at(Form.LOW_RANK)
    for path in _paths(tensors, _A, places):
        a, b = tensors.pop(f"{path}.{_A}"), tensors.pop(f"{path}.{_B}", None)
        here = places[path]
        if b is None or a.ndim != 2 or b.shape != (_out(here[0]), len(a)) or a.shape[1] != here[0].reads:
            raise DesignError(f"the LoRA of {path} does not fit the model's linear")
        rank = _matched(config.get("rank_pattern"), path, config.get("r", 8))
        alpha = _matched(config.get("alpha_pattern"), path, config.get("lora_alpha", 8))
        scale = _tidy(alpha, rank**0.5 if config.get("use_rslora") else rank)
        blocks = [b[_rows(delta)] for delta in here]
        used = [block.ne(0).any(0) for block in blocks]
        nowhere = ~torch.stack(used).any(0)
        for delta, block, own in zip(here, blocks, used, strict=True):
            # of a fused linear, the ranks that reach this block; ones that reach none may learn to reach any
            columns = (own | nowhere).nonzero()[:, 0]
            if len(columns):
                m = replace(
                    delta.modification,
                    size=len(columns),
                    scale=scale,
                    composition=Composition.SCALE,
                    dropout=config.get("lora_dropout") or 0.0,
                )
                found[_place(delta)] = (m, {"a": a[columns], "b": block[:, columns]})
    return found


def _scale(delta: Delta, stored: Mapping[str, Tensor]) -> float:
    learned = stored.get(f"{delta.name}.scale")
    return delta.modification.scale if learned is None else learned.item()


def _matched(pattern: Mapping[str, Any] | None, path: str, default: Any) -> Any:
    """PEFT's reading of rank_pattern and alpha_pattern: the first regular expression that the path ends with."""
    return next((size for key, size in (pattern or {}).items() if re.match(rf"(.*\.)?({key})$", path)), default)


def _tidy(alpha: float, rank: float) -> float:
    """alpha / r; where rounding hides it, the short number that has this alpha."""
    short = float(f"{alpha / rank:.12g}")
    return short if short * rank == alpha else alpha / rank


def _ia3_faults(design: Design, target: Target) -> Iterator[str]:
    sides: dict[str, set[bool]] = {}
    for delta in deltas(design, target.family, target.shapes):
        sides.setdefault(target.linear(delta), set()).add(_is_input(delta))
    if any(len(both) > 1 for both in sides.values()):
        yield f"PEFT rescales a linear's input or its output; received both {Site.FFN_HIDDEN} and {Site.FFN_DOWN}"


def _write_ia3(target: Target, found: Sequence[Delta], stored: Mapping[str, Tensor]) -> tuple[dict[str, Any], Tensors]:
    tensors, inputs = Tensors(), []
    for path, here in _by_linear(target, found).items():
        # Parts of one place read the same value, so that they add up.
        vector = sum((_whole(delta, stored[f"{delta.name}.vector"] - 1) for delta in here), torch.tensor(1.0))
        if _is_input(here[0]):
            inputs.append(path)
        tensors[f"{path}.{_VECTOR}"] = vector[None] if _is_input(here[0]) else vector[:, None]
    options = {"feedforward_modules": sorted(inputs), "fan_in_fan_out": target.family.transposed}
    return {"target_modules": sorted(_by_linear(target, found)), **options}, tensors


def _read_ia3(target: Target, config: Mapping[str, Any], tensors: Tensors) -> Found:
    found: Found = {}
    places = target.at(Form.RESCALE)
    for path in _paths(tensors, _VECTOR, places):
        vector = tensors.pop(f"{path}.{_VECTOR}")
        of_input = vector.shape[0] == 1
        here = [delta for delta in places[path] if _is_input(delta) is of_input]
        if not here:
            raise DesignError(f"only the input of {Site.FFN_DOWN} is rescaled; the adapter rescales that of {path}")
        vector = vector.flatten()
        if len(vector) != _out(here[0]):
            raise DesignError(f"the vector of {path} does not fit the model's linear")
        own = [delta for delta in here if vector[_rows(delta)].ne(1).any()] or here
        found |= {_place(delta): (delta.modification, {"vector": vector[_rows(delta)]}) for delta in own}
    return found


def _is_input(delta: Delta) -> bool:
    return delta.modification.site is Site.FFN_HIDDEN


def _prompt_faults(design: Design, target: Target) -> Iterator[str]:
    if not target.generates:
        yield (
            "PEFT leaves a prompt's rows before the head and gives it no ids, so that a classifier reads another row: "
            f"prompts go to models that generate; received {type(target.model).__name__}"
        )
    if target.family.input.entry and any(m.positions is Positions.KEPT for m in design.modifications):
        yield "PEFT gives a prompt the first positions and shifts the tokens: positions=shifted; received kept"


def _write_prompt(
    target: Target, found: Sequence[Delta], stored: Mapping[str, Tensor]
) -> tuple[dict[str, Any], Tensors]:
    rows = torch.cat([stored[f"{delta.name}.weight"] for delta in found])
    return _virtual(target, len(rows), rows.shape[1]), {PROMPT: rows}


def _read_prompt(target: Target, config: Mapping[str, Any], tensors: Tensors) -> Found:
    # An encoder-decoder's file may hold as many rows again, which its forward pass leaves aside.
    rows = tensors.pop(PROMPT)[: config.get("num_virtual_tokens")]
    positions = Positions.SHIFTED if target.family.input.entry else Positions.KEPT
    m = Modification(form=Form.PROMPT, site=Site.INPUT, size=len(rows), positions=positions)
    return {target.family.stacks[0].name: (m, {"weight": rows})}


_SHIFTS: Final = (
    "PEFT puts a prefix into a decoder's cache, which shifts the tokens by its length, and only for rotary positions "
    "can the keys be turned with them"
)


def _prefix_faults(design: Design, target: Target) -> Iterator[str]:
    config = target.model.config
    if not _rotary(target):
        yield f"{_SHIFTS}; received {target.family.name}"
        return
    if target.task not in ("CAUSAL_LM", "SEQ_CLS"):
        yield f"PEFT has prefixes for causal and classifying models; received {type(target.model).__name__}"
    if rotation := _moving(config):
        yield f"rotary frequencies of type {rotation} change with the length, and PEFT's prefix adds to it"
    if "sliding_attention" in (getattr(config, "layer_types", None) or ()):
        yield "a sliding window moves past PEFT's prefix"
    for m in design.modifications:
        if m.composition is not Composition.GATE or m.layer_norm is not LayerNorm.NONE:
            yield "PEFT's prefixes are gated, without a layer norm"
    rows: Counter[str] = Counter()
    for delta in deltas(design, target.family, target.shapes):
        rows[delta.layer] += delta.modification.size
    depth = target.layout["decoder"].depth
    if len(rows) < depth or len(set(rows.values())) > 1:
        yield f"PEFT's prefix has one length in all {depth} layers"


def _rotary(target: Target) -> bool:
    return target.family.stacks[-1].attentions["self"].rotary


def _moving(config: Any) -> str:
    """The type of rotary frequencies, where they depend on the length of the sequence."""
    kind = str((getattr(config, "rope_parameters", None) or {}).get("rope_type", "default"))
    return kind if kind in ("dynamic", "longrope") else ""


def _write_prefix(
    target: Target, found: Sequence[Delta], stored: Mapping[str, Tensor]
) -> tuple[dict[str, Any], Tensors]:
    layers: dict[int, list[Delta]] = {}
    for delta in found:
        layers.setdefault(int(delta.layer.rpartition(".")[2]), []).append(delta)
    keys, values = (
        [torch.cat([stored[f"{delta.name}.{leaf}"] for delta in layers[layer]]) for layer in sorted(layers)]
        for leaf in ("key", "value")
    )
    length = len(keys[0])
    pairs = [(_turned(key, length, target), value) for key, value in zip(keys, values, strict=True)]
    rows = torch.cat([row for pair in pairs for row in pair], 1)
    return _virtual(target, length, keys[0].shape[1]), {PROMPT: rows}


def _read_prefix(target: Target, config: Mapping[str, Any], tensors: Tensors) -> Found:
    if not _rotary(target):
        raise DesignError(f"{_SHIFTS}; received {target.family.name}")
    rows = tensors.pop(PROMPT)
    length = len(rows)
    m = Modification(form=Form.PREFIX, site=Site.HEADS, composition=Composition.GATE, size=length)
    here = deltas(Design((m,)), target.family, target.shapes)
    if rows.shape[1] != sum(delta.reads + delta.adds for delta in here):
        raise DesignError(f"the prefix of shape {tuple(rows.shape)} does not fit the model's {len(here)} layers")
    found: Found = {}
    for delta, pair in zip(here, rows.chunk(len(here), 1), strict=True):
        key, value = pair[:, : delta.reads], pair[:, delta.reads :]
        found[_place(delta)] = (m, {"key": _turned(key, -length, target), "value": value})
    return found


def _turned(key: Tensor, by: int, target: Target) -> Tensor:
    """Prefix keys, (l, key width), turned on by that many positions.

    A prefix of ours is what the rotated queries meet: score R(i) q · k for the token at i. In PEFT's
    cache the token stands at i + l, and R(i + l) q · R(l) k is the same.
    """
    rotary = target.model.get_submodule(".".join(filter(None, (target.base, "rotary_emb"))))
    angle = by * rotary.get_buffer("inv_freq").double().to(key.device)
    cos, sin = angle.cos(), angle.sin()
    first, second = key.double().view(len(key), -1, 2, len(angle)).unbind(2)  # a head's halves make the pairs
    turned = torch.stack((first * cos - second * sin, second * cos + first * sin), 2)
    return turned.view(key.shape).to(key.dtype)


def _virtual(target: Target, length: int, width: int) -> dict[str, Any]:
    """The fields that PEFT's prompts and prefixes share."""
    config = target.model.config
    return {
        "num_virtual_tokens": length,
        "token_dim": width,
        "num_layers": target.layout[target.family.stacks[-1].name].depth,
        "num_attention_heads": getattr(config, "num_key_value_heads", None) or config.num_attention_heads,
        "num_transformer_submodules": 1,
    }


_COMMON: Final = dict.fromkeys(
    ("auto_mapping", "base_model_name_or_path", "inference_mode", "modules_to_save", "peft_type", "peft_version",
     "revision", "task_type", "target_modules", "exclude_modules", "fan_in_fan_out"), ()
)  # fmt: skip
_LORA: Final = dict.fromkeys(
    ("r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "lora_dropout", "layers_to_transform",
     "layers_pattern", "megatron_core", "qalora_group_size", "runtime_config", "loftq_config", "eva_config",
     "ensure_weight_tying"), ()
)  # fmt: skip
_VIRTUAL: Final = dict.fromkeys(
    ("num_virtual_tokens", "token_dim", "num_layers", "num_attention_heads", "num_transformer_submodules",
     "prompt_tuning_init", "prompt_tuning_init_text", "tokenizer_name_or_path", "tokenizer_kwargs",
     "encoder_hidden_size", "prefix_projection", "init_weights"), ()
)  # fmt: skip
# Other first values come with other frozen weights.
_INITS: Final = (True, False, "gaussian", "orthogonal", "eva", "mica")
PATHS: Final = "base_model.model."

METHODS: Final[Mapping[str, Method]] = {
    "LORA": Method(
        (Form.LOW_RANK, Form.BIAS), "LoraConfig", PATHS, _lora_faults, _write_lora, _read_lora,
        {**_COMMON, **_LORA, "bias": ("none", "all"), "init_lora_weights": _INITS},
    ),
    "IA3": Method(
        (Form.RESCALE,), "IA3Config", PATHS, _ia3_faults, _write_ia3, _read_ia3,
        {**_COMMON, "feedforward_modules": (), "init_ia3_weights": ()},
    ),
    "PROMPT_TUNING": Method(
        (Form.PROMPT,), "PromptTuningConfig", "base_model.", _prompt_faults, _write_prompt, _read_prompt,
        {**_COMMON, **_VIRTUAL},
    ),
    "PREFIX_TUNING": Method(
        (Form.PREFIX,), "PrefixTuningConfig", "base_model.", _prefix_faults, _write_prefix, _read_prefix,
        {**_COMMON, **_VIRTUAL},
    ),
}  # fmt: skip


def united(target: Target, found: Found) -> Design:
    """The design of what was found, in as few modifications as its layers, stacks and attentions allow."""
    groups: dict[Modification, set[tuple[str, int, str]]] = {}
    for place, (m, _) in found.items():
        stack, layer, *kind = place.split(".")[:-1] if m.form is not Form.PROMPT else (place, "0")
        groups.setdefault(m, set()).add((stack, int(layer), kind[0] if kind else ""))
    modifications: list[Modification] = []
    for m, places in groups.items():
        modifications += [m] if m.form is Form.PROMPT else spelled(m, places, target.layout)
    return Design(tuple(modifications))


def spelled(m: Modification, places: set[tuple[str, int, str]], there: Layout) -> Iterator[Modification]:
    """The modification at these places: the widest one that covers no other, then what is left."""
    left = set(places)
    while left:
        candidates = [(len(covered), other) for other, covered in _candidates(m, left, there) if covered <= left]
        best = max(candidates, key=lambda pair: pair[0])[1].canonical(there)
        yield best
        left -= set(best.covers(there))


def _candidates(
    m: Modification, left: set[tuple[str, int, str]], there: Layout
) -> Iterator[tuple[Modification, set[tuple[str, int, str]]]]:
    kinds = ("all",) if m.site in FEED_FORWARD else ("all", "self", "cross")
    for stacks, attentions in product(("all", *there), kinds):
        wide = replace(m, stacks=stacks, attentions=attentions)
        whole = wide.covers(there)
        numbers = sorted({n for _, n, _ in whole} - {place[1] for place in whole if place not in left})
        depth = max((there[stack].depth for stack, _, _ in whole), default=0)
        layers = [f"top {k}" for k in range(1, depth + 1)] + ([",".join(map(str, numbers))] if numbers else [])
        for other in (wide, *(replace(wide, layers=text) for text in layers)):
            if covered := set(other.covers(there)):
                yield other, covered


def _place(delta: Delta) -> str:
    return delta.name.rpartition(".")[0]


def _by_linear(target: Target, found: Iterable[Delta]) -> dict[str, list[Delta]]:
    linears: dict[str, list[Delta]] = {}
    for delta in found:
        linears.setdefault(target.linear(delta), []).append(delta)
    return linears


def _paths(tensors: Tensors, leaf: str, places: Collection[str]) -> list[str]:
    """The linears that have this tensor. Raises DesignError where one is none that a design can name."""
    paths = [name.removesuffix(f".{leaf}") for name in tensors if name.endswith(f".{leaf}")]
    if unknown := [path for path in paths if path not in places]:
        raise DesignError(f"a design changes the linears of layers; the adapter also changes {', '.join(unknown[:5])}")
    return paths


def _rows(delta: Delta) -> slice:
    block = delta.block
    return slice(None) if block is None else slice(block.start, block.start + block.width)


def _out(delta: Delta) -> int:
    return delta.adds if delta.block is None else delta.block.total


def _whole(delta: Delta, rows: Tensor) -> Tensor:
    """The rows of a part, as those of the whole fused linear: zero elsewhere."""
    if delta.block is None:
        return rows
    whole = rows.new_zeros(delta.block.total, *rows.shape[1:])
    whole[_rows(delta)] = rows
    return whole
