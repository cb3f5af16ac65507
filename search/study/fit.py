"""Whether a backbone can do a task: its kind, its positions, and one row that is tried."""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from petl import tasks
from petl.backbones.model import Backbone
from petl.design import Design, DesignError, Positions, Site

if TYPE_CHECKING:
    from petl.data.tokens import TaskData

_TRIED: Final = 2 * 10**9  # bytes of weights that a driver loads in seconds; larger ones are tried where they train


def require_fit(task: tasks.Task, backbone: Backbone) -> None:
    """Raises TaskError where the backbone cannot do the task, or has no positions for its texts."""
    if not tasks.KINDS[task.kind].labelled and backbone.architecture == "encoder":
        raise tasks.TaskError(
            f"task {task.name} ({task.kind}) needs a model that generates text; {backbone.model} is an encoder, "
            f"a {backbone.family}. Take an encoder-decoder (bart, mbart, t5) or a decoder (gpt2, llama, qwen2, qwen3)"
        )
    if task.kind == "causal-lm" and backbone.architecture != "decoder":
        raise tasks.TaskError(
            f"task {task.name} (causal-lm) needs a decoder such as gpt2, llama or qwen2; received {backbone.model}, "
            f"a {backbone.family}"
        )
    for name, length in _lengths(task, backbone).items():
        if backbone.max_tokens is not None and length > backbone.max_tokens:
            raise tasks.TaskError(
                f"{name} is at most {backbone.max_tokens} on {backbone.model}, which has no more positions; "
                f"received {length}"
            )


def _lengths(task: tasks.Task, backbone: Backbone) -> dict[str, int]:
    """Return the longest inputs of the backbone's stacks, by what sets them; a prompt enters the first."""
    longest = {"task.max_length": task.max_length}
    if not tasks.KINDS[task.kind].labelled and task.kind != "causal-lm":
        if backbone.architecture == "decoder":  # source, target or generated text stand in one line
            target = max(task.max_target_length, task.decoding.max_length)
            longest = {"task.max_length plus the longest target": task.max_length + target}
        else:
            longest |= {
                "task.max_target_length": task.max_target_length,
                "task.decoding.max_length": task.decoding.max_length,
            }
    return longest


def require_positions(design: Design, task: tasks.Task, backbone: Backbone) -> None:
    """Raise DesignError where prompts with positions leave too few of them for the longest text."""
    rows = sum(m.size for m in design.modifications if m.site is Site.INPUT and m.positions is Positions.SHIFTED)
    name, length = next(iter(_lengths(task, backbone).items()))
    if rows and backbone.max_tokens is not None and rows + length > backbone.max_tokens:
        raise DesignError(
            f"shifted prompts and {name} are at most {backbone.max_tokens} together on {backbone.model}, which has no "
            f"more positions; received {rows} and {length}"
        )


def try_out(backbone: Backbone, data: TaskData) -> None:
    """Load the backbone and run one row forward and backward, where it is small; else only look at its files.

    Raises BackboneError where no trial could train.
    """
    from petl.backbones.locate import is_hub_id, locate
    from petl.backbones.weights import require_weights
    from petl.training.rehearsal import rehearse

    if is_small(backbone):
        rehearse(load(backbone, data), data, backbone.model)
    elif not is_hub_id(backbone.model):
        require_weights(Path(locate(backbone.model)), backbone.model)


def is_small(backbone: Backbone) -> bool:
    """Return whether a driver loads the weights in seconds."""
    return 4 * sum(map(prod, backbone.shapes.values())) <= _TRIED


def load(backbone: Backbone, data: TaskData) -> Any:
    """Return the backbone with the head that the task's rows need."""
    from petl import backbones

    return backbones.load(
        backbone.model,
        labels=data.labels or None,
        generates=not data.labels,
        revision=backbone.revision,
        tokenizer=data.tokenizer,
    )
