"""Resolve what a study fixes when it begins: backbone, data, epochs, sizes."""

from __future__ import annotations

import json
import os
import tempfile
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from petl import backbones, tasks
from petl.backbones.generation import checkpoint_settings
from petl.backbones.model import Backbone
from petl.backbones.pooling import require_pooling
from petl.errors import UserNotice
from search.config.study import StudyConfig
from search.storage.address import without_password
from search.storage.folder import files_in
from search.study.fit import require_fit, try_out
from search.trials.resolved import Resolved, WrittenBytes

if TYPE_CHECKING:
    from petl.data.tokens import TaskData


def _written(tokenizer: Any, backbone: Backbone, data: TaskData, splits: Sequence[str], longest: int) -> WrittenBytes:
    """Return the sizes that are the same for all trials: what lies beside an adapter's tensors, and all predictions.

    `longest` is the length of a generated prediction, in tokens; a predicted label is as long as the labels are.
    """
    with tempfile.TemporaryDirectory(prefix="petl-search-") as folder:
        tokenizer.save_pretrained(folder)
        fixed = sum(files_in(Path(folder)).values())
    fixed += len(json.dumps({"backbone": backbone.to_dict(), "task": data.facts()}, indent=1))
    prediction = max(map(len, data.labels)) if data.labels else 8 * longest  # bytes of a token, escapes included
    answers = [answer for split in splits for answer in data.references(split)]
    texts = sum(len(json.dumps(answer, ensure_ascii=False).encode()) + 2 * prediction + 40 for answer in answers)
    return WrittenBytes(fixed, texts)


def settled(config: StudyConfig, resolved: Resolved) -> StudyConfig:
    """Return the study with its budget in epochs, where it was given in steps."""
    return config if resolved.epochs is None else config.with_epochs(resolved.epochs)


def _epochs(config: StudyConfig, data: TaskData) -> float | None:
    """Return how many epochs the budget's steps are; None for a budget in epochs."""
    if config.budget.steps is None:
        return None
    from petl.data.batches import batches_per_epoch

    training = config.with_epochs(1.0).fixed_training
    batches = batches_per_epoch(data.splits["train"].lengths, training.batch_size, training.batch_tokens)
    return config.budget.steps * training.accumulation / batches


def load_libraries() -> None:
    """Import what `resolve` needs, which takes seconds the first time."""
    from petl.training.processes import prepare_process

    prepare_process()
    import petl.data.tokens
    import petl.training.metrics
    import petl.training.rehearsal  # noqa: F401


def resolve(
    config: StudyConfig,
    revision: str = "",
    located: tasks.Task | None = None,
    say: Callable[[str], object] = lambda text: None,
) -> Resolved:
    """Return what a study fixes when it begins, or fixed: then with its `revision` and `located` task.

    `say` is given a line before each step that may take seconds. Raises BackboneError and TaskError where something is
    not there, or where the score could not tell trials apart.
    """
    load_libraries()
    from petl.data.sources import locate_data
    from petl.data.tokens import load_data
    from petl.training.metrics import GENERATED, signatures
    from petl.training.scripts import script_of

    model, task = config.backbone.model, located or tasks.resolve(config.task)
    say(f"reading the model {model} and its tokenizer")
    backbone = backbones.describe(model, revision=revision)
    if not backbone.fingerprint:
        raise backbones.BackboneError(f"{model} has no weights to train: no *.safetensors beside its config.json")
    require_fit(task, backbone)
    tokenizer = backbones.load_tokenizer(model, revision=backbone.revision)
    say(f"reading the data of task {task.name}")
    task = locate_data(task)
    data = load_data(task, tokenizer, decoder_only=backbone.architecture == "decoder")
    if tasks.KINDS[task.kind].generates and task.script is None:
        task = data.task = replace(task, script=script_of(data.references("sample")))
    epochs = _epochs(config, data)
    known = config if epochs is None else config.with_epochs(epochs)
    trained = [*known.reference_configurations().values(), *(configuration for _, configuration in known.listed)]
    for head in {config.head_of(), *(configuration.head for configuration in trained if configuration)}:
        require_pooling(backbone.row, head.pooling)
    keeps = {known.fixed_training.keep, *(configuration.training.keep for configuration in trained if configuration)}
    deciding = {config.objectives.score, *keeps}
    if located is None:
        _require_sound(task, backbone, data, deciding, say)
    generates = bool(GENERATED & deciding)
    whole, tested = data.splits["sample"] is data.splits["validation"], "test" in data.splits
    unseen = not whole or (not generates and bool(GENERATED & {*task.scores}))
    # Predictions of the front are kept in any case.
    final = tuple(split for split, scores in (("validation", unseen or not tested), ("test", tested)) if scores)
    return Resolved(
        backbone=backbone,
        task=task,
        labels=tuple(data.labels),
        rows={split: len(part) for split, part in data.splits.items() if split != "sample" or not whole},
        digest=data.digest,
        epochs=epochs,
        precision=config.backbone.precision,
        uri=without_password(uri) if (uri := config.tracking.uri or os.environ.get("MLFLOW_TRACKING_URI")) else None,
        generates=generates,
        final=final,
        written=_written(tokenizer, backbone, data, final, task.decoding.max_length),
        signatures=signatures(GENERATED & {*task.scores}, task.script or "latin"),
        data=data.report.to_dict(),
    )


def _require_sound(
    task: tasks.Task,
    backbone: Backbone,
    data: TaskData,
    deciding: Collection[str],
    say: Callable[[str], object],
) -> None:
    """Try what no trial can change, when a study begins. Raises TaskError and BackboneError for what is wrong.

    `deciding` are the scores by which trials are compared.
    """
    from petl.data.sources import require_apart
    from petl.training.metrics import require_telling

    require_apart(task)
    data.report.require_known(task)
    require_telling(task, data.references("sample"), deciding)
    say("trying one row on the model")
    try_out(backbone, data)
    if tasks.KINDS[task.kind].generates and not task.decoding.checkpoint:
        _say_what_is_off(checkpoint_settings(backbone.model, revision=backbone.revision))


def _say_what_is_off(settings: Mapping[str, Any]) -> None:
    """Warn of generation settings of the checkpoint that do not hold."""
    if settings:
        named = ", ".join(f"{name} {value}" for name, value in settings.items())
        warnings.warn(
            UserNotice(
                f"text is generated as task.decoding says; what the checkpoint sets beside it is off: {named} "
                "(task.decoding.checkpoint: true keeps it)"
            ),
            stacklevel=2,
        )
