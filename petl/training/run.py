"""The training loop, explicit: every number that decides a trial is made in this file.

A micro-batch and its dropout masks are functions of (seed, its index), and the learning rate of the
step: so a run is described by its tensors, its optimizer and one position, and one that is interrupted
and resumed equals, bit for bit, one that was not.

Several processes train one configuration together if each makes the same calls on a TrainingRun: the
micro-batches of a step are dealt out to the ranks, which leaves losses, gradients and scores as they
are in one process, except in rounding.
"""

from __future__ import annotations

import json
import math
import resource
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import count as integers
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from petl.attach.attachment import attach
from petl.backbones.count import Counts
from petl.backbones.loading import draw_head
from petl.configuration import LAST, STEP, Configuration
from petl.data.batches import batches_per_epoch, epoch_batches
from petl.data.tokens import TaskData
from petl.head import PROBE
from petl.measurements import SCORES, Measurements
from petl.training.engine import MOMENTS, autocast, open_engine, place
from petl.training.evaluation import DivergedError, Progress, evaluate, latency, silent, summed_loss
from petl.training.probe import start_head
from petl.training.processes import device, rank, sum_over_ranks, world_size

if TYPE_CHECKING:
    from transformers import PreTrainedModel


_LOG_EVERY: Final = 10  # steps between two points of the training curve
_TENSORS: Final = "state.safetensors"
_POSITION: Final = "position.json"


@dataclass(frozen=True)
class CurvePoint:
    """One point of the training curve, at a step: mean loss since the last point, and the pace."""

    step: int
    loss: float
    learning_rate: float
    tokens_per_second: float
    seconds: float


@dataclass(frozen=True)
class Validation:
    """The validation split's scores at an epoch."""

    step: int
    epoch: float
    scores: Mapping[str, float]
    seconds: float


@dataclass
class Position:
    """Where a run stands: all of its state that is not a tensor.

    The random state is (seed, micro_batch), from which batches and dropout are drawn. `seconds`,
    `tokens` and the curves run over all attempts at the trial. `best` numbers the validation whose
    weights are kept, where the training asks for the best.
    """

    seed: int
    micro_batch: int = 0
    step: int = 0
    seconds: float = 0.0
    tokens: int = 0
    training_seconds: float = 0.0
    peak_memory_mb: float = 0.0
    best: int = 0
    points: list[CurvePoint] = field(default_factory=list)
    validations: list[Validation] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values, which `from_dict` reads."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Position:
        """Read what `to_dict` writes."""
        return cls(
            **{
                **data,
                "points": [CurvePoint(**point) for point in data["points"]],
                "validations": [Validation(**validation) for validation in data["validations"]],
            }
        )


class TrainingRun:
    """One configuration being trained on a resident backbone.

    Attaches the design, draws a new head by the configuration's seed where the task has labels, and
    restores the model on `close`. `start` is what a head that starts from a probe starts from: see
    `petl.training.probe.start`. `state()` and `restore()` carry a run over to another process, which may be one of a
    group of another size, at another ZeRO stage: the tensors that train, AdamW's moments of each, and the position.

    `generates`: whether validations also score generated text, where the task has such scores. `progress`
    hears of steps and validations. `zero`, `offload` and `persistent` are `open_engine`'s. At stage 3 the model's
    tensors are empty while the run is open: the attachment's are read inside `gathered`.

    Raises ValueError where a step's micro-batches cannot be dealt out evenly to the ranks or a `start` is missing, and
    DivergedError from `advance`.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        data: TaskData,
        configuration: Configuration,
        precision: str = "fp32",
        *,
        generates: bool = True,
        progress: Progress = silent,
        zero: int = 0,
        offload: Collection[str] = (),
        persistent: int = 100_000,
        start: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.configuration, self.data, self.precision = configuration, data, precision
        self.generates, self.progress = generates, progress
        training = configuration.training
        if training.accumulation % world_size():
            raise ValueError(
                "the micro-batches of a step are dealt out evenly: accumulation is a multiple of the "
                f"{world_size()} workers; received {training.accumulation}"
            )
        if configuration.head.start == PROBE and start is None:
            raise ValueError("a head that starts from a probe needs what petl.training.probe.start returns")
        self._lengths = data.splits["train"].lengths
        self.batches_per_epoch = batches_per_epoch(self._lengths, training.batch_size, training.batch_tokens)
        self.steps = max(1, round(training.epochs * self.batches_per_epoch / training.accumulation))
        self.position = Position(configuration.seed)
        self._kept: dict[str, Tensor] = {}
        place(model, training=True)
        self.model = model
        self._restore_dropout = set_dropout(model, training.dropout)
        head = configuration.head
        self.attachment = attach(model, configuration.design, seed=configuration.seed, pooling=head.pooling)
        if data.labels:
            draw_head(model, configuration.seed)
        if start is not None:
            start_head(model, start)
        self._engine = open_engine(
            model, training, self.steps, precision, zero=zero, offload=offload, persistent=persistent
        )

    @property
    def epoch(self) -> float:
        """Return the epochs trained so far; exactly `training.epochs` at the end."""
        if self.position.step == self.steps:
            return self.configuration.training.epochs
        return self.position.micro_batch / self.batches_per_epoch

    @property
    def finished(self) -> bool:
        """Return whether it has validated at the end of its epochs, or its patience has ended."""
        validations, training = self.position.validations, self.configuration.training
        # Two milestones may round to one step, of which the second says nothing new.
        waited = len({validation.step for validation in validations[self.position.best :]}) - 1
        return bool(validations) and (validations[-1].epoch >= training.epochs or 0 < training.patience <= waited)

    def advance(self, until: float) -> Validation:
        """Train to `until` epochs and validate there. `until` beyond the budget means its end.

        Keeps the weights where they are the best so far and the training asks for the best.
        """
        training = self.configuration.training
        share = min(until / training.epochs, 1.0)
        began, before = time.perf_counter(), self.position.seconds
        with _peak_memory() as peak:
            self._train(max(1, round(share * self.steps)))
            self.position.training_seconds += time.perf_counter() - began
            evaluation = evaluate(
                self.model, self.data, "sample", self.precision, generates=self.generates, progress=self.progress
            )
            self.position.seconds = before + time.perf_counter() - began
        self.position.peak_memory_mb = max(self.position.peak_memory_mb, peak())
        epoch = min(until, training.epochs)
        validation = Validation(self.position.step, epoch, dict(evaluation.scores), self.position.seconds)
        self.position.validations.append(validation)
        self._keep(validation)
        return validation

    def finish(self) -> None:
        """End the run with what the training keeps: its last weights, or those of its best validation."""
        if self._kept:
            parameters = dict(self.attachment.named_parameters())
            self._engine.load({parameters[name]: value for name, value in self._kept.items()}, {})

    @contextmanager
    def gathered(self) -> Iterator[None]:
        """Make the attachment's tensors, head included, whole within the context, to be read, at every ZeRO stage."""
        head = [self.model.get_parameter(name) for name in self.attachment.head_state_dict()]
        trained = [parameter for _, parameter in self.attachment.named_parameters()]
        with self._engine.gathered([*trained, *head]):
            yield

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return tensors, the same on every rank, and JSON; `restore` continues from both."""
        tensors = {}
        with self.gathered():
            for name, parameter in self.attachment.named_parameters():
                tensors[f"model.{name}"] = parameter.detach()
                for moment, value in self._engine.moments(parameter).items():
                    tensors[f"optimizer.{moment}.{name}"] = value
        tensors |= {f"kept.{name}": value for name, value in self._kept.items()}
        return {name: value.cpu().contiguous() for name, value in tensors.items()}, self.position.to_dict()

    def restore(self, tensors: Mapping[str, Tensor], position: Mapping[str, Any]) -> None:
        """Continue where another run's `state()` was taken. Raises ValueError if it is of another design."""
        parameters = dict(self.attachment.named_parameters())
        kept = {name.removeprefix("model.") for name in tensors if name.startswith("model.")}
        if kept != set(parameters):
            raise ValueError(f"the training state is of another design: {sorted(kept ^ set(parameters))[:3]} differ")
        self._engine.load(
            {parameter: tensors[f"model.{name}"] for name, parameter in parameters.items()},
            {
                parameter: {
                    moment: tensors[f"optimizer.{moment}.{name}"]
                    for moment in ("step", *MOMENTS)
                    if f"optimizer.{moment}.{name}" in tensors
                }
                for name, parameter in parameters.items()
            },
        )
        self.position = Position.from_dict(position)
        self._kept = {name.removeprefix("kept."): value for name, value in tensors.items() if name.startswith("kept.")}
        self._engine.seek(self.position.micro_batch // world_size(), self.position.step)

    def save(self, folder: Path | None) -> None:
        """Write `state()` as safetensors and JSON. Collective: ranks without a folder only take part."""
        tensors, position = self.state()
        if folder:
            save_file(tensors, folder / _TENSORS)
            (folder / _POSITION).write_text(json.dumps(position))

    def load(self, folder: Path) -> None:
        """Continue from what `save` wrote."""
        self.restore(load_file(folder / _TENSORS), json.loads((folder / _POSITION).read_text()))

    def measurements(self, counts: Counts) -> Measurements:
        """Return the outcome of the run: the scores of the validation that it keeps, the counts, and the pace.

        `epochs` are the full ones where patience ended it before.
        """
        position = self.position
        kept = position.best if self.configuration.training.keep != LAST else -1
        return Measurements(
            **position.validations[kept].scores,  # type: ignore[arg-type]
            **counts.values(),
            base_parameters=counts.base,
            head_parameters=counts.trained_head,
            epochs=self.configuration.training.epochs if self.finished else self.epoch,
            steps=position.step,
            seconds=position.seconds,
            tokens_per_second=position.tokens / position.training_seconds,
            peak_memory_mb=position.peak_memory_mb,
            latency_ms=latency(self.model, self.data, self.precision),
        )

    def close(self) -> None:
        """Detach the design: the model's outputs are bit-equal to before."""
        self._engine.close()
        self.attachment.detach()
        self._restore_dropout()

    def _keep(self, validation: Validation) -> None:
        """Keep the weights of the newest validation, if it is the best by the score that the training names."""
        name = self.configuration.training.keep
        if name == LAST:
            return
        sign = 1 if SCORES[name] else -1
        position = self.position
        if len(position.validations) > 1:
            before = position.validations[position.best].scores[name]
            if sign * validation.scores[name] <= sign * before:
                return
        position.best = len(position.validations) - 1
        with self.gathered():
            self._kept = {
                name: parameter.detach().cpu().clone() for name, parameter in self.attachment.named_parameters()
            }

    def _train(self, until: int) -> None:
        position, training = self.position, self.configuration.training
        engine, targets = self._engine.deepspeed, self.data.splits["train"].targets
        engine.train()
        losses: list[Tensor] = []
        began, tokens = time.perf_counter(), 0
        for step in self._steps():
            if position.step >= until:
                break
            rate = self._engine.optimizer.param_groups[0]["lr"]
            terms = [float(targets[index].sum()) for index in step]
            if training.loss_over == STEP:  # DeepSpeed takes the mean of so many losses
                terms = [sum(terms) / len(step)] * len(step)
            for index, divisor in zip(step, terms, strict=True):
                if position.micro_batch % world_size() == rank():
                    inputs, labels = self.data.batch("train", index)
                    torch.manual_seed(_mix(position.seed, position.micro_batch))
                    loss = summed_loss(engine, self.model, inputs, labels, training.label_smoothing) / divisor
                    engine.backward(loss)
                    engine.step()
                    losses.append(loss.detach())
                tokens += int(self._lengths[index].sum())
                position.micro_batch += 1
            position.step += 1
            self.progress("training", position.step, self.steps)
            if position.step % _LOG_EVERY == 0 or position.step == until:
                mean = float(sum_over_ranks(torch.stack(losses).mean()) / world_size())
                if not math.isfinite(mean):
                    raise DivergedError(f"the loss became {mean} by step {position.step}")
                if self._engine.skipped:
                    raise DivergedError(f"the gradients were no longer finite by step {position.step}")
                spent = time.perf_counter() - began
                position.seconds += spent
                position.tokens += tokens
                position.points.append(CurvePoint(position.step, mean, rate, tokens / spent, position.seconds))
                losses, began, tokens = [], time.perf_counter(), 0

    def _steps(self) -> Iterator[list[np.ndarray]]:
        """Yield the micro-batches of each step from the position on, without end; a step may reach into an epoch."""
        epoch, skip = divmod(self.position.micro_batch, self.batches_per_epoch)
        training, seed = self.configuration.training, self.position.seed

        def micro_batches() -> Iterator[np.ndarray]:
            for number in integers(epoch):
                batches = epoch_batches(self._lengths, training.batch_size, seed, number, training.batch_tokens)
                yield from batches[skip if number == epoch else 0 :]

        batches = micro_batches()
        while True:
            yield list(islice(batches, training.accumulation))


def fastest_precision(model: PreTrainedModel) -> str:
    """Return "bf16" where autocast to it is faster than fp32 on this device, measured on a small batch.

    One forward and backward pass of 4 x 32 tokens each, the better of two after a first one: small,
    since a CPU without bfloat16 instructions is slower by an order of magnitude.
    """
    tokens = torch.full((4, 32), 5, device=device())
    inputs = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
    if model.config.is_encoder_decoder:
        tokens[:, -1] = model.config.eos_token_id  # where their classifiers read
        inputs["decoder_input_ids"] = tokens
    place(model, training=True)

    def seconds(precision: str) -> float:
        began = time.perf_counter()
        with autocast(precision):
            loss = model(**inputs).logits.float().sum()
        loss.backward()
        float(loss.detach())  # waits for the device
        model.zero_grad()
        return time.perf_counter() - began

    def best(precision: str) -> float:
        seconds(precision)
        return min(seconds(precision) for _ in range(2))

    return min(("fp32", "bf16"), key=best)


def set_dropout(model: nn.Module, rate: float | None) -> Callable[[], None]:
    """Set every dropout of the backbone to `rate`; the result called brings back the rates it had.

    A rate is the `p` of a Dropout module, or a number that a module keeps for nn.functional.dropout
    and attention functions (BART's `activation_dropout`, llama's `attention_dropout`).
    """
    rates = [
        (module, name, before)
        for module in model.modules()
        for name, before in vars(module).items()
        if (isinstance(module, nn.Dropout) and name == "p") or ("dropout" in name and type(before) in (float, int))
    ]

    def restore() -> None:
        for module, name, before in rates:
            setattr(module, name, before)

    for module, name, _ in rates if rate is not None else ():
        setattr(module, name, rate)
    return restore


def _mix(*numbers: int) -> int:
    """Return a well-spread 63-bit seed from small numbers; trailing zeros change nothing."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))


@contextmanager
def _peak_memory() -> Iterator[Callable[[], float]]:
    """Yield a function that returns, at any later time, the highest memory in MB since entering."""
    if device().type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        yield lambda: torch.cuda.max_memory_allocated() / 1e6
        return
    status = Path("/proc/self/status")
    try:
        Path("/proc/self/clear_refs").write_text("5")  # Linux: resets the high-water mark VmHWM
    except OSError:
        yield lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    else:
        yield lambda: int(status.read_text().split("VmHWM:")[1].split()[0]) * 1024 / 1e6
