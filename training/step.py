"""One training step: forward, backward and update, in three ways that do the same.

A step is called with slots, labels and the number of rows that all processes have together, and returns
its share of the mean loss. It never waits for the device.
"""

import contextlib
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch
from torch import nn

from featurestore.errors import TrainingError, did_you_mean
from training.objective import Objective

PRECISIONS = ("fp32", "tf32", "bf16")
WARM_UP_STEPS = 3
"""Steps before a CUDA graph is captured, as PyTorch's documentation asks for: libraries set themselves up."""

Hook = Callable[[nn.Module], None]


class Optimizer(Protocol):
    """What a step needs of `torch.optim.Optimizer` or of `training.optimizers.Optimizers`."""

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """Parameters with their settings."""

    def zero_grad(self) -> None:
        """Forget all gradients."""

    def step(self) -> object:
        """Update all parameters."""


class EagerStep:
    """A step as PyTorch runs it, one operator after the other.

    Args:
        model: trained in place: slots (B, L) -> scores (B,).
        optimizer: of the model's parameters.
        objective: gives the mean loss of a batch.
        precision: of the products of matrices. ``fp32``; ``tf32``, which rounds their inputs to 10 bits on
            a CUDA device and changes nothing elsewhere; ``bf16``, autocast to bfloat16. Parameters, loss
            and update are float32 always.
        clip: limits the gradients, which are sparse where the model's table is.
        reduce: sums the gradients over the processes, before they are clipped.
        before: is called with a batch's slots before they are looked up.

    Raises:
        ValueError: the precision is unknown.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        objective: Objective,
        *,
        precision: str = "fp32",
        clip: Hook | None = None,
        reduce: Hook | None = None,
        before: Callable[[torch.Tensor], None] | None = None,
    ) -> None:
        if precision not in PRECISIONS:
            raise ValueError(f"no precision {precision!r}{did_you_mean(precision, PRECISIONS)}")
        self.model, self.optimizer, self.objective = model, optimizer, objective
        self.precision, self.clip, self.reduce, self.before = precision, clip, reduce, before

    def __call__(self, slots: torch.Tensor, labels: torch.Tensor, global_rows: int) -> torch.Tensor:
        """Train on one batch.

        Args:
            slots: int32 or int64 (B, L). B may be 0 where other processes have rows: the gradients are 0.
            labels: float32 (B,).
            global_rows: rows of this step in all processes; B where there is one.

        Returns:
            The sum of the B losses / global_rows, float32 (), detached. Over all processes these, and the
            gradients, sum to the mean loss and its gradient.
        """
        self.optimizer.zero_grad()
        if self.before is not None:
            self.before(slots)
        return self._advance(slots, labels, global_rows)

    def _advance(self, slots: torch.Tensor, labels: torch.Tensor, global_rows: int) -> torch.Tensor:
        """Train on one batch, where there are no gradients yet."""
        with _matmul_precision("high" if self.precision == "tf32" and slots.is_cuda else None):
            loss = self._loss(slots, labels, global_rows)
            loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        if self.reduce is not None:
            self.reduce(self.model)
        if self.clip is not None:
            self.clip(self.model)
        self.optimizer.step()
        return loss.detach()

    def _loss(self, slots: torch.Tensor, labels: torch.Tensor, global_rows: int) -> torch.Tensor:
        rows = len(labels)
        if not rows:  # the mean of nothing is not a number; the sum is 0 and gives gradients of 0
            return self._scores(slots).sum()
        mean = self._mean_loss(slots, labels)
        return mean if rows == global_rows else mean * (rows / global_rows)

    def _mean_loss(self, slots: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return self.objective.loss(self._scores(slots), labels)

    def _scores(self, slots: torch.Tensor) -> torch.Tensor:
        with torch.autocast(slots.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            scores: torch.Tensor = self.model(slots)
        return scores.float()


@contextlib.contextmanager
def _matmul_precision(name: str | None) -> Iterator[None]:
    """Set the precision of float32 products, which is global; leave it alone where there is no name."""
    if name is None:
        yield
        return
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(name)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


class CompiledStep(EagerStep):
    """A step whose forward and backward `torch.compile` fuses, for batches of one size; others run eagerly.

    The first step compiles, for some 20 seconds. Losses differ from `EagerStep`'s in the last bits, and are
    the same at every run.

    Args:
        model: as in `EagerStep`; its table must not be sparse.
        optimizer: as in `EagerStep`.
        objective: as in `EagerStep`.
        batch_rows: the size to compile for. The last batch of an epoch may be shorter.
        precision: as in `EagerStep`.
        clip: as in `EagerStep`.
        reduce: as in `EagerStep`.

    Raises:
        TrainingError: there is no C++ compiler, or the model's table is sparse.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        objective: Objective,
        *,
        batch_rows: int,
        precision: str = "fp32",
        clip: Hook | None = None,
        reduce: Hook | None = None,
    ) -> None:
        super().__init__(model, optimizer, objective, precision=precision, clip=clip, reduce=reduce)
        _check_compilable(model)
        self.batch_rows = batch_rows
        self._compiled = torch.compile(super()._mean_loss, dynamic=False)

    def _mean_loss(self, slots: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        if len(labels) != self.batch_rows:
            return super()._mean_loss(slots, labels)
        return self._compiled(slots, labels)


def _check_compilable(model: nn.Module) -> None:
    compiler = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")  # as torch chooses
    if sys.platform != "win32" and shutil.which(compiler) is None:
        raise TrainingError(
            f"torch.compile needs a C++ compiler, and there is no {compiler!r}: install one, name one in the "
            "variable CXX, or train without it: --step eager"
        )
    if any(getattr(module, "sparse", False) for module in model.modules()):
        raise TrainingError("torch.compile cannot make a sparse gradient: --step eager, or --optimizer adam")


class GraphedStep(EagerStep):
    """A step replayed from a CUDA graph, for batches of one size; others run eagerly. Never run or measured.

    It was written from PyTorch's documentation ("CUDA Graphs", whole-network capture) without a CUDA device
    at hand. The first steps are true steps that run eagerly, on a side stream; the next one is captured.
    The learning rate is captured with it: one that changes must be a tensor.

    Args:
        model: as in `EagerStep`, on a CUDA device; its table must not be sparse.
        optimizer: as in `EagerStep`, with ``capturable=True``.
        objective: as in `EagerStep`.
        batch_rows: the size to capture. The last batch of an epoch may be shorter.
        precision: as in `EagerStep`.
        clip: as in `EagerStep`; it must not wait for the device.

    Raises:
        TrainingError: the model is not on a CUDA device, its table is sparse, or the optimizer is not
            capturable.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        objective: Objective,
        *,
        batch_rows: int,
        precision: str = "fp32",
        clip: Hook | None = None,
    ) -> None:
        super().__init__(model, optimizer, objective, precision=precision, clip=clip)
        _check_capturable(model, optimizer)
        self.batch_rows = batch_rows
        self._side = torch.cuda.Stream()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        self._warm_up_left = WARM_UP_STEPS
        self._graph: torch.cuda.CUDAGraph | None = None
        self._static: tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # slots, labels, loss of the graph

    def __call__(self, slots: torch.Tensor, labels: torch.Tensor, global_rows: int) -> torch.Tensor:
        """Train on one batch, see `EagerStep`."""
        if not len(labels) == global_rows == self.batch_rows:
            return super().__call__(slots, labels, global_rows)
        if self._warm_up_left:
            return self._warm_up(slots, labels)
        if self._graph is None:
            self._graph = self._capture(slots, labels)
        static_slots, static_labels, loss = self._static
        static_slots.copy_(slots)
        static_labels.copy_(labels)
        self._graph.replay()
        return loss.clone()  # the next replay overwrites it

    def _warm_up(self, slots: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        self._warm_up_left -= 1
        self._side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._side):
            loss = super().__call__(slots, labels, self.batch_rows)
        torch.cuda.current_stream().wait_stream(self._side)
        return loss

    def _capture(self, slots: torch.Tensor, labels: torch.Tensor) -> torch.cuda.CUDAGraph:
        """Record a step without running it."""
        static_slots, static_labels = slots.clone(), labels.clone()
        graph = torch.cuda.CUDAGraph()
        self.optimizer.zero_grad()  # so that the gradients are allocated in the graph's own memory
        with torch.cuda.graph(graph, stream=self._side):
            loss = self._advance(static_slots, static_labels, self.batch_rows)
        self._static = static_slots, static_labels, loss
        return graph


def _check_capturable(model: nn.Module, optimizer: Optimizer) -> None:
    devices = {parameter.device.type for parameter in model.parameters()}
    if devices != {"cuda"}:
        raise TrainingError(f"a CUDA graph needs a model on a CUDA device, not {devices}: --step eager")
    if any(getattr(module, "sparse", False) for module in model.modules()):
        raise TrainingError("a CUDA graph cannot have a sparse gradient: --step eager, or --optimizer adam")
    if not all(group.get("capturable") for group in optimizer.param_groups):
        raise TrainingError("a CUDA graph needs an optimizer with capturable=True")


STEPS = ("auto", "eager", "compile", "graph")


def make_step(
    kind: str,
    model: nn.Module,
    optimizer: Optimizer,
    objective: Objective,
    *,
    batch_rows: int,
    precision: str = "fp32",
    clip: Hook | None = None,
    reduce: Hook | None = None,
    before: Callable[[torch.Tensor], None] | None = None,
) -> EagerStep:
    """Make a step by name.

    Args:
        kind: one of `STEPS`. ``auto`` is ``eager``: on a CPU compiling gains an eighth, which the time it
            takes eats up in most trainings, and on CUDA the others were never measured.
        model: see `EagerStep`.
        optimizer: see `EagerStep`.
        objective: see `EagerStep`.
        batch_rows: rows of every batch but the last of an epoch, in this process.
        precision: see `EagerStep`.
        clip: see `EagerStep`.
        reduce: see `EagerStep`.
        before: see `EagerStep`; only for ``eager``.

    Raises:
        ValueError: the kind or the precision is unknown.
        TrainingError: that kind of step cannot be taken here.
    """
    if kind in ("auto", "eager"):
        return EagerStep(
            model, optimizer, objective, precision=precision, clip=clip, reduce=reduce, before=before
        )
    if kind == "compile":
        return CompiledStep(
            model,
            optimizer,
            objective,
            batch_rows=batch_rows,
            precision=precision,
            clip=clip,
            reduce=reduce,
        )
    if kind != "graph":
        raise ValueError(f"no step {kind!r}{did_you_mean(kind, STEPS)}")
    if reduce is not None:
        raise TrainingError("a CUDA graph is for one process: --step eager")
    return GraphedStep(model, optimizer, objective, batch_rows=batch_rows, precision=precision, clip=clip)
