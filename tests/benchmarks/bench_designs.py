"""What the designs cost: time and memory of a training step, attaching and detaching, counting.

Everything is measured in one process, in turns: each round visits every candidate once, in an order of
its own, a design and its form in peft one after the other, and ratios are taken within rounds, so that a
machine that slows down slows all of them. Models have random weights: time and memory do not depend on
the values.

`bare` is transformers' own model with everything frozen but the head, without any code of ours, and
`peft LoRA` that of Hugging Face PEFT on the same linears with the same rank, scale and trained head.

Memory is what the model holds (parameters, buffers, and the originals of what a design replaced)
and the most that the allocator had given out at once during one forward and backward on top of it
(activations, gradients). On a CPU it is summed over torch's own record of every allocation, which has no
noise; scratch space inside the matrix library is not in it, nor are an optimizer's states.
"""

from __future__ import annotations

import copy
import gc
import itertools
import json
import os
import platform
import random
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Final

os.environ.setdefault("KINETO_LOG_LEVEL", "7")  # the profiler announces its every start

import peft
import torch
import transformers
import typer
from rich import box
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from transformers import AutoConfig, AutoModelForSequenceClassification, LlamaConfig, PreTrainedModel

from petl.attach.attachment import HOLDER, AttachmentHolder, attach
from petl.backbones.count import count
from petl.backbones.families import family_of
from petl.backbones.model import describe, parameters_of
from petl.backbones.plan import deltas
from petl.design import Design, DesignError, Form
from petl.presets import PRESETS, parse

LABELS: Final = 3
BARE: Final = "bare"
REFERENCE: Final = "lora"  # the design whose peft twin others are compared with
DESIGNS: Final = (
    "head_only",
    "full",
    "bitfit",
    "ia3",
    "prompt:length=16",
    "prefix:length=16",
    "prefix:length=30",
    "prefix:length=16,reparameterisation=800",
    "prefix:length=16,gated=false",
    "multihead_parallel:size=16",
    "lora",
    "lora:where=ffn",
    "lora:where=both",
    "lora:rank=102,where=ffn,scale=4",
    "houlsby:size=16",
    "pfeiffer:size=16",
    "sequential:size=16",
    "parallel:size=16,where=attention",
    "parallel:size=16",
    "scaled_parallel:size=16",
    "scaled_parallel:size=512",
    "mam:length=16,size=16",
    "mam:length=30,size=512",
    "prefix_lora:length=16,rank=8",
)
ATTACHED: Final = ("mam:length=16,size=16", "mam:length=30,size=512", "lora", "lora:where=both")
SIZES: Final[Mapping[str, tuple[int, int, int]]] = {"minilm": (6, 384, 12), "base": (12, 768, 12), "tiny": (2, 64, 4)}


def configuration(family: str, size: str) -> Any:
    """A model of `family`: (layers, width, heads) as SIZES says, the rest as the family has it."""
    layers, width, heads = SIZES[size]
    inner = 4 * width
    bert = {
        "num_hidden_layers": layers,
        "hidden_size": width,
        "num_attention_heads": heads,
        "intermediate_size": inner,
    }
    llama = {**bert, "num_key_value_heads": heads, "head_dim": width // heads}
    bart = {
        **{f"{stack}_layers": layers for stack in ("encoder", "decoder")},
        **{f"{stack}_attention_heads": heads for stack in ("encoder", "decoder")},
        **{f"{stack}_ffn_dim": inner for stack in ("encoder", "decoder")},
        "d_model": width,
    }
    t5 = {"num_layers": layers, "d_model": width, "num_heads": heads, "d_kv": width // heads, "d_ff": inner}
    sizes: dict[str, dict[str, int]] = {
        "distilbert": {"n_layers": layers, "dim": width, "n_heads": heads, "hidden_dim": inner},
        "gpt2": {"n_layer": layers, "n_embd": width, "n_head": heads},
        "bart": bart,
        "mbart": bart,
        "t5": {**t5, "decoder_start_token_id": 0},
        "llama": llama,
        "qwen2": llama,
        "qwen3": llama,
    }
    tokens = {"pad_token_id": 1, "eos_token_id": 2, "num_labels": LABELS}
    return AutoConfig.for_model(family, **sizes.get(family, bert), **tokens)


def build(config: Any) -> PreTrainedModel:
    """A classifier with random weights."""
    return AutoModelForSequenceClassification.from_config(config)  # type: ignore[no-any-return, no-untyped-call]


def inputs(model: PreTrainedModel, batch: int, tokens: int) -> dict[str, Tensor]:
    """Random rows without padding, each closed by an end token, and their labels."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, model.config.vocab_size, (batch, tokens), generator=generator)
    ids[:, -1] = 2
    made = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "labels": torch.randint(LABELS, (batch,), generator=generator),
    }
    return {name: value.to(model.device) for name, value in made.items()}


@dataclass
class Candidate:
    """A model that is measured. `twin` is peft's form of the same design."""

    name: str
    model: nn.Module
    twin: str = ""
    seconds: list[float] = field(default_factory=list)
    memory: float = 0.0

    @property
    def trained(self) -> int:
        """Parameters that have a gradient."""
        return sum(parameter.numel() for parameter in self.model.parameters() if parameter.requires_grad)

    def step(self, batch: Mapping[str, Tensor]) -> None:
        """Forward and backward."""
        self.model(**batch).loss.backward()

    def clear(self) -> None:
        """Let go of the gradients."""
        self.model.zero_grad(set_to_none=True)

    def resident(self) -> int:
        """Bytes that the model holds."""
        held = [*self.model.parameters(), *self.model.buffers()]
        carried = getattr(self.model, HOLDER, None)
        if isinstance(carried, AttachmentHolder):
            held += [tensor for owners in carried.replaced.values() for _, tensor in owners]
        return sum(
            storage.nbytes() for storage in {t.untyped_storage().data_ptr(): t.untyped_storage() for t in held}.values()
        )


def fresh(base: PreTrainedModel) -> PreTrainedModel:
    """A copy that shares the pretrained parameters, which all candidates keep frozen, and has a head of its own."""
    own = parameters_of(base)
    return copy.deepcopy(base, {id(parameter): parameter for parameter in own.base.values()})


def bare(base: PreTrainedModel) -> PreTrainedModel:
    """Transformers' own model with a trained head."""
    model = fresh(base)
    for parameter in parameters_of(model).base.values():
        parameter.requires_grad_(False)
    return model


def attached(base: PreTrainedModel, design: Design) -> PreTrainedModel:
    """A model with the design."""
    model = fresh(base)
    attach(model, design)
    return model


def in_peft(base: PreTrainedModel, design: Design) -> nn.Module:
    """The same design in peft: LoRA on the same linears, or a prompt. Raises DesignError where it has none."""
    model = fresh(base)
    if {m.form for m in design.modifications} == {Form.PROMPT}:
        (m,) = design.modifications
        settings: Any = peft.PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=m.size)
    else:
        settings = lora_settings(model, design)
    with warnings.catch_warnings(action="ignore"):
        wrapped: nn.Module = peft.get_peft_model(model, settings)
    return wrapped


def lora_settings(model: PreTrainedModel, design: Design) -> peft.LoraConfig:
    """peft's form of one LoRA: full names of the linears, alpha = s r, the head saved beside it."""
    family, own = family_of(model), parameters_of(model)
    found = deltas(design, family, {name: tuple(parameter.shape) for name, parameter in own.base.items()})
    kinds = {(d.modification.form, d.modification.size, d.modification.scale) for d in found}
    if len(kinds) != 1 or any(d.modification.form is not Form.LOW_RANK or d.block for d in found):
        raise DesignError(f"peft has no such design: {design.describe()} on {family.name}")
    ((_, rank, scale),) = kinds
    return peft.LoraConfig(
        r=rank,
        lora_alpha=scale * rank,  # type: ignore[arg-type]  # divided by r, whatever it is
        target_modules=[".".join(filter(None, (own.prefix, d.layer, d.linear))) for d in found],
        modules_to_save=sorted({name.partition(".")[0] for name in own.head}),
        fan_in_fan_out=family.transposed,
    )


def candidates(base: PreTrainedModel, texts: Iterable[str], console: Console) -> list[Candidate]:
    """All that is measured; what this family or peft lacks is said and left out."""
    made = [Candidate(BARE, bare(base)), Candidate("all parameters trained", copy.deepcopy(base).requires_grad_(True))]
    for text in texts:
        design = parse(text)
        try:
            ours = Candidate(text, attached(base, design))
        except DesignError as error:
            console.print(f"left out: {text}: {error}")
            continue
        if {m.form for m in design.modifications} in ({Form.LOW_RANK}, {Form.PROMPT}):
            try:
                twin = Candidate(f"peft {text}", in_peft(base, design))
            except (DesignError, ValueError, AttributeError) as error:
                console.print(f"left out: peft {text}: {error}")
            else:
                ours.twin = twin.name
                made.append(twin)
        made.append(ours)
    return made


def check(made: Sequence[Candidate], batch: Mapping[str, Tensor], console: Console) -> list[Candidate]:
    """Those that run. Raises ValueError where a LoRA of ours and peft's differ in size or in their first loss."""
    losses: dict[str, float] = {}
    for candidate in made:
        candidate.model.eval()
        try:
            with torch.no_grad():
                losses[candidate.name] = float(candidate.model(**batch).loss)
        except (RuntimeError, ValueError, NotImplementedError) as error:
            if candidate.name == BARE:
                raise
            console.print(f"left out: {candidate.name} does not run: {error}")
    named = {candidate.name: candidate for candidate in made}
    for ours in made:
        if ours.twin in losses and ours.name.startswith("lora"):
            theirs = named[ours.twin]
            apart = abs(losses[ours.name] - losses[theirs.name])
            if ours.trained != theirs.trained or apart > 1e-2:
                raise ValueError(
                    f"{ours.name} and {theirs.name} are not the same: "
                    f"{ours.trained} and {theirs.trained} trained, losses {apart:g} apart"
                )
    return [candidate for candidate in made if candidate.name in losses]


def measure_time(
    made: Sequence[Candidate],
    batch: Mapping[str, Tensor],
    rounds: int,
    clock: Callable[[], float],
    advance: Callable[[], None],
) -> None:
    """`rounds` steps of each, after one that is not counted."""
    order = random.Random(0)
    twins = {candidate.twin for candidate in made}
    together = [[c, *(d for d in made if d.name == c.twin)] for c in made if c.name not in twins]
    on_gpu = batch["input_ids"].is_cuda
    gc.collect()
    gc.disable()
    for number in range(rounds + 1):
        turns = [order.sample(group, len(group)) for group in order.sample(together, len(together))]
        for candidate in itertools.chain.from_iterable(turns):
            if on_gpu:
                torch.cuda.synchronize()
            start = clock()
            candidate.step(batch)
            if on_gpu:
                torch.cuda.synchronize()
            if number:
                candidate.seconds.append(clock() - start)
            candidate.clear()
            advance()
        gc.collect()
    gc.enable()


def measure_memory(candidate: Candidate, batch: Mapping[str, Tensor]) -> None:
    """Peak of one step, in bytes, with what the model holds."""
    if batch["input_ids"].is_cuda:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        candidate.step(batch)
        growth = torch.cuda.max_memory_allocated() - before
    else:
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
            candidate.step(batch)
        events = [event for event in record.profiler.kineto_results.events() if event.name() == "[memory]"]
        now = growth = 0
        for event in sorted(events, key=lambda event: event.start_ns()):
            now += event.nbytes()
            growth = max(growth, now)
    candidate.clear()
    candidate.memory = candidate.resident() + growth


def ratios(mine: Sequence[float], other: Sequence[float]) -> tuple[float, float, float]:
    """Quartiles over the rounds."""
    each = sorted(a / b for a, b in zip(mine, other, strict=True))
    return tuple(each[round(share * (len(each) - 1))] for share in (0.25, 0.5, 0.75))  # type: ignore[return-value]


def rows(made: Sequence[Candidate]) -> list[dict[str, Any]]:
    """What was measured, with ratios to the bare model and to peft's twin, or its LoRA where there is none."""
    named = {candidate.name: candidate for candidate in made}
    table = []
    for candidate in made:
        row: dict[str, Any] = {
            "design": candidate.name,
            "trained": candidate.trained,
            "milliseconds": 1e3 * statistics.median(candidate.seconds),
            "fastest_milliseconds": 1e3 * min(candidate.seconds),
            "megabytes": candidate.memory / 1e6,
        }
        twin = named.get(candidate.twin) or named.get(f"peft {REFERENCE}")
        for name, other in (("bare", named[BARE]), ("peft", twin)):
            if other is not None:
                low, row[f"time_to_{name}"], high = ratios(candidate.seconds, other.seconds)
                row[f"quartiles_to_{name}"] = f"{low:.2f}-{high:.2f}"
                row[f"fastest_to_{name}"] = min(candidate.seconds) / min(other.seconds)
                row[f"memory_to_{name}"] = candidate.memory / other.memory
        row["peft"] = twin.name if twin else ""
        table.append(row)
    return table


def measure_attach(
    texts: Sequence[str], rounds: int, clock: Callable[[], float], advance: Callable[[], None]
) -> list[dict[str, Any]]:
    """Milliseconds to attach and to detach on a roberta-base-sized model, in turns with peft's LoRA."""
    model = build(configuration("roberta", "base"))
    model.train(False)

    def ours(design: Design) -> Callable[[], object]:
        return attach(model, design).detach

    def theirs(design: Design) -> Callable[[], object]:
        wrapped: Any = peft.get_peft_model(model, lora_settings(model, design))
        return wrapped.unload  # type: ignore[no-any-return]

    starts: dict[str, Callable[[], Callable[[], object]]] = {text: partial(ours, parse(text)) for text in texts}
    starts |= {f"peft {text}": partial(theirs, parse(text)) for text in texts if text.startswith("lora")}
    spent: dict[str, list[tuple[float, float]]] = {name: [] for name in starts}
    for number in range(rounds + 1):
        for name, start in starts.items():
            gc.collect()
            begun = clock()
            stop = start()
            on = clock()
            stop()
            if number:
                spent[name].append((on - begun, clock() - on))
            advance()
    table = []
    for name, pairs in spent.items():
        totals, peft_totals = ([sum(pair) for pair in spent[key]] for key in (name, f"peft {REFERENCE}"))
        table.append(
            {
                "design": name,
                "attach_milliseconds": 1e3 * statistics.median(on for on, _ in pairs),
                "detach_milliseconds": 1e3 * statistics.median(off for _, off in pairs),
                "both_milliseconds": 1e3 * statistics.median(totals),
                "fastest_milliseconds": 1e3 * min(totals),
                "to_peft": ratios(totals, peft_totals)[1],
            }
        )
    return table


def measure_counts(rounds: int, clock: Callable[[], float], advance: Callable[[], None]) -> list[dict[str, Any]]:
    """Milliseconds to count each named design on llama-7B, reading its config.json each time."""
    table = []
    with tempfile.TemporaryDirectory() as folder:
        LlamaConfig(pad_token_id=0).save_pretrained(folder)
        file = str(Path(folder) / "config.json")
        describe(file)  # imports
        for name in PRESETS:
            spent = []
            for _ in range(rounds):
                start = clock()
                backbone = describe(file)
                described = clock()
                try:
                    count(parse(name), backbone, LABELS)
                except DesignError:
                    break  # no biases in llama
                spent.append((described - start, clock() - described))
            advance()
            if spent:
                totals = [sum(pair) for pair in spent]
                table.append(
                    {
                        "design": name,
                        "describe_milliseconds": 1e3 * statistics.median(described for described, _ in spent),
                        "count_milliseconds": 1e3 * statistics.median(counted for _, counted in spent),
                        "both_milliseconds": 1e3 * statistics.median(totals),
                        "fastest_milliseconds": 1e3 * min(totals),
                    }
                )
    return table


def show(
    console: Console, title: str, table: Sequence[Mapping[str, Any]], columns: Mapping[str, tuple[str, str]]
) -> None:
    """One table: key -> (heading, format)."""
    shown = Table(box=box.SIMPLE)
    for heading, kind in columns.values():
        shown.add_column(heading, justify="left" if kind == "s" else "right", no_wrap=kind == "s")
    for row in table:
        shown.add_row(*(format(row[key], kind) if key in row else "" for key, (_, kind) in columns.items()))
    console.print(title, shown)


def main(
    family: Annotated[str, typer.Option(help="A family of petl/backbones/families.py.")] = "bert",
    size: Annotated[str, typer.Option(help=f"Of the model: {', '.join(SIZES)}.")] = "minilm",
    batch: Annotated[int, typer.Option(help="Rows.")] = 16,
    tokens: Annotated[int, typer.Option(help="Tokens a row.")] = 64,
    repetitions: Annotated[int, typer.Option(help="Rounds that are counted; 0 measures no step.")] = 15,
    attach_repetitions: Annotated[int, typer.Option(help="Rounds of attaching and counting; 0 for none.")] = 15,
    design: Annotated[list[str] | None, typer.Option(help="Measure these designs only; may be repeated.")] = None,
    threads: Annotated[int, typer.Option(help="Of torch on the CPU.")] = 1,
    device: Annotated[str, typer.Option(help="cpu, cuda; auto takes the GPU if there is one.")] = "auto",
    dtype: Annotated[str, typer.Option(help="Of weights and activations.")] = "float32",
    cpu_time: Annotated[
        bool, typer.Option("--cpu-time", help="Time that the process ran, not wall time: for a CPU with other work.")
    ] = False,
    to_json: Annotated[Path | None, typer.Option("--json", help="Write everything to this file too.")] = None,
) -> None:
    """Time and memory of the designs beside the bare model and peft's LoRA, attaching, and counting.

    Example: python tests/benchmarks/bench_designs.py --size base --batch 8 --design lora --json out.json
    """
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    where = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    console = Console() if sys.stdout.isatty() else Console(width=160)
    progress = Progress(console=Console(stderr=True), transient=True)
    clock = time.process_time if cpu_time else time.perf_counter
    machine = {
        "processor": torch.cuda.get_device_name() if where == "cuda" else _processor(),
        "threads": threads,
        "clock": clock.__name__,
        "versions": {module.__name__: module.__version__ for module in (torch, transformers, peft)},
        "model": {"family": family, "size": size, "batch": batch, "tokens": tokens, "dtype": dtype},
    }
    results: dict[str, Any] = {"machine": machine}
    with progress:
        if repetitions:
            base = build(configuration(family, size)).to(where, getattr(torch, dtype))  # type: ignore[arg-type]
            data = inputs(base, batch, tokens)
            texts = tuple(design or DESIGNS)
            made = check(candidates(base, texts, progress.console), data, progress.console)
            for candidate in made:
                candidate.model.train()
            task = progress.add_task("steps", total=len(made) * (repetitions + 1))
            measure_time(made, data, repetitions, clock, partial(progress.advance, task))
            task = progress.add_task("memory", total=len(made))
            for candidate in made:
                measure_memory(candidate, data)
                progress.advance(task)
            results["steps"] = rows(made)
        if attach_repetitions:
            total = (attach_repetitions + 1) * (len(ATTACHED) + sum(text.startswith("lora") for text in ATTACHED))
            task = progress.add_task("attach", total=total)
            results["attach"] = measure_attach(ATTACHED, attach_repetitions, clock, partial(progress.advance, task))
            task = progress.add_task("count", total=len(PRESETS))
            results["counts"] = measure_counts(attach_repetitions, clock, partial(progress.advance, task))
    console.print(", ".join(f"{key}: {value}" for key, value in machine.items()), soft_wrap=True, highlight=False)
    if "steps" in results:
        title = (
            f"Forward and backward, ms: median of {repetitions} rounds, ratios with their quartiles, ratios of the "
            f"fastest. Memory, MB. To peft: to its form of the same design where it has one, else to its {REFERENCE}."
        )
        show(console, title, results["steps"], {
            "design": ("", "s"),
            "trained": ("trained", ",d"),
            "milliseconds": ("ms", ".1f"),
            "time_to_bare": ("to bare", ".2f"),
            "time_to_peft": ("to peft", ".2f"),
            "quartiles_to_peft": ("", "s"),
            "fastest_to_bare": ("fastest: to bare", ".2f"),
            "fastest_to_peft": ("to peft", ".2f"),
            "megabytes": ("MB", ".1f"),
            "memory_to_bare": ("to bare", ".2f"),
            "memory_to_peft": ("to peft", ".2f"),
        })  # fmt: skip
    if "attach" in results:
        show(console, "Attach and detach on a roberta-base-sized model, ms: medians", results["attach"], {
            "design": ("", "s"),
            "attach_milliseconds": ("attach", ".1f"),
            "detach_milliseconds": ("detach", ".1f"),
            "both_milliseconds": ("both", ".1f"),
            "fastest_milliseconds": ("fastest", ".1f"),
            "to_peft": (f"to peft {REFERENCE}", ".2f"),
        })  # fmt: skip
        show(console, "Count on llama-7B from its config.json, ms: medians", results["counts"], {
            "design": ("", "s"),
            "describe_milliseconds": ("describe", ".1f"),
            "count_milliseconds": ("count", ".1f"),
            "both_milliseconds": ("both", ".1f"),
            "fastest_milliseconds": ("fastest", ".1f"),
        })  # fmt: skip
    if to_json:
        to_json.write_text(json.dumps(results, indent=2) + "\n")


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor()
    )


if __name__ == "__main__":
    typer.run(main)
