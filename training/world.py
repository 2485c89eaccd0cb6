"""The processes of one training, as torchrun starts them: who they are, what they tell each other.

Every rank must make the same calls in the same order. One that is lost ends the others with an error.
"""

import contextlib
import datetime
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import nn

from featurestore.errors import TrainingError

TIMEOUT_SECONDS = 600.0
"""How long a rank waits for the others. A dead one is noticed at once, a stuck one after this time. One that
writes the checkpoint of a large table takes its time."""


@dataclass(frozen=True)
class World:
    """One of ``size`` processes: number ``rank``, from 0. With a size of 1 nothing is sent."""

    rank: int = 0
    size: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.size:
            raise ValueError(f"rank must be in 0..{self.size - 1}, got {self.rank}")

    @classmethod
    def current(cls) -> "World":
        """Return the world that this process has joined."""
        if dist.is_available() and dist.is_initialized():
            return cls(dist.get_rank(), dist.get_world_size())
        return cls()

    def sum_over_ranks(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the sum of a tensor of the same shape on every rank; ``tensor`` stays as it is."""
        if self.size == 1:
            return tensor
        total = tensor.detach().clone()
        with self._together():
            dist.all_reduce(total)
        return total

    def barrier(self) -> None:
        """Wait for every rank."""
        self.sum_over_ranks(torch.zeros((), device=_device()))

    def broadcast(self, tensor: torch.Tensor) -> None:
        """Overwrite a contiguous tensor with rank 0's."""
        if self.size > 1:
            with self._together():
                dist.broadcast(tensor, 0)

    def share_text(self, text: str) -> str:
        """Return rank 0's text on every rank."""
        if self.size == 1:
            return text
        data = torch.tensor(list(text.encode()), dtype=torch.uint8, device=_device())
        length = self.counts(len(data))[0]
        shared = data if self.rank == 0 else data.new_empty(length)
        self.broadcast(shared)
        return bytes(shared.tolist()).decode()

    def any_of(self, flags: Sequence[bool]) -> list[bool]:
        """Return which flags are set on any rank."""
        if self.size == 1:
            return list(flags)
        given = torch.tensor(flags, dtype=torch.int32, device=_device())
        return [bool(count) for count in self.sum_over_ranks(given).tolist()]

    def gather_rows(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the rows of all ranks, rank 0's first, on every rank: (n_rank, ...) -> (sum of n, ...).

        The ranks may have different numbers of rows, also none. Padded to the most that one has: gloo has
        no gather of unequal parts.
        """
        if self.size == 1:
            return tensor
        counts = self.counts(len(tensor))
        padded = tensor.new_zeros(max(counts), *tensor.shape[1:])
        padded[: len(tensor)] = tensor.detach()
        parts = [torch.empty_like(padded) for _ in counts]
        with self._together():
            dist.all_gather(parts, padded)
        return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])

    def counts(self, number: int) -> list[int]:
        """Return the number that each rank gives."""
        if self.size == 1:
            return [number]
        own = torch.zeros(self.size, dtype=torch.int64, device=_device())
        own[self.rank] = number
        return [int(count) for count in self.sum_over_ranks(own).tolist()]

    def exchange(self, rows: torch.Tensor, out: Sequence[int], into: Sequence[int]) -> torch.Tensor:
        """Send each rank its part of ``rows`` and return the parts received, in rank order.

        Args:
            rows: (sum of out, ...), rank 0's part first.
            out: rows that go to each rank.
            into: rows that come from each rank.

        Returns:
            (sum of into, ...).
        """
        if self.size == 1:
            return rows
        received = rows.new_empty(sum(into), *rows.shape[1:])
        with self._together():
            dist.all_to_all_single(received, rows.contiguous(), list(into), list(out))
        return received

    def to_first(self, tensor: torch.Tensor, source: int) -> None:
        """Send a contiguous tensor of rank ``source`` to rank 0, into its own of that shape."""
        if source == 0 or self.rank not in (0, source):
            return
        with self._together():
            if self.rank == source:
                dist.send(tensor, 0)
            else:
                dist.recv(tensor, source)

    @contextlib.contextmanager
    def _together(self) -> Iterator[None]:
        """Turn the failure of a collective call into an error that says what happened and what to do."""
        try:
            yield
        except RuntimeError as error:  # what torch raises, whatever the backend
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise TrainingError(
                f"rank {self.rank} of {self.size} lost another worker: it died, or did not answer in time "
                f"({reason}). Look for its own message above. To go on from the last checkpoint, start all "
                "workers again with --resume and its path"
            ) from error


@contextlib.contextmanager
def join_world(
    device: torch.device, timeout: float = TIMEOUT_SECONDS
) -> Iterator[tuple[World, torch.device]]:
    """Join the processes that torchrun started, for the time of a with statement.

    torchrun says who we are by RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT. Without them we
    are alone. On CPUs the ranks talk by gloo, on CUDA by NCCL, each rank having the device LOCAL_RANK.

    Args:
        device: what to train on.
        timeout: seconds to wait for other ranks, when joining and in every later call.

    Yields:
        The world and this rank's device.

    Raises:
        TrainingError: not all ranks came; in the calls of `World`, one was lost.
    """
    if dist.is_available() and dist.is_initialized():  # by the caller, who also leaves it
        yield World.current(), device
        return
    if "WORLD_SIZE" not in os.environ:
        yield World(), device
        return
    world, local_rank = _launched()
    if device.type == "cuda":
        device = torch.device("cuda", local_rank)
        torch.cuda.set_device(device)
    try:
        dist.init_process_group(
            "nccl" if device.type == "cuda" else "gloo",
            rank=world.rank,
            world_size=world.size,
            timeout=datetime.timedelta(seconds=timeout),
            device_id=device if device.type == "cuda" else None,
        )
    except RuntimeError as error:
        raise TrainingError(
            f"rank {world.rank} waited {timeout:.0f} s for the {world.size} workers of this training: {error}"
        ) from error
    try:
        yield world, device
    finally:
        dist.destroy_process_group()


def launched_rank() -> int:
    """Return which rank torchrun started this process as, 0 where it did not."""
    return _launched()[0].rank if "WORLD_SIZE" in os.environ else 0


def _launched() -> tuple[World, int]:
    """Read what torchrun says: the world, and this process's number on its machine."""
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    try:
        rank, size = (int(os.environ[name]) for name in names[:2])
        return World(rank, size), int(os.environ.get(names[2], "0"))
    except (KeyError, ValueError) as error:
        found = ", ".join(f"{name}={os.environ.get(name)!r}" for name in names)
        raise TrainingError(
            f"the environment names no rank of a training ({found}): start it by torchrun, "
            "or unset WORLD_SIZE"
        ) from error


def _device() -> torch.device:
    """Return where the backend wants its tensors."""
    if dist.is_initialized() and dist.get_backend() == "nccl":
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def mark_sharded(parameter: nn.Parameter) -> None:
    """Say that each rank has other rows of a parameter, whose gradients it alone sums."""
    parameter.is_sharded = True  # type: ignore[attr-defined]


def is_sharded(parameter: nn.Parameter) -> bool:
    """Whether each rank has other rows of a parameter. If not, all have equal ones."""
    return getattr(parameter, "is_sharded", False)


def broadcast_parameters(model: nn.Module, world: World) -> None:
    """Give every rank rank 0's parameters and buffers, where they are not sharded."""
    for parameter in model.parameters():
        if not is_sharded(parameter):
            world.broadcast(parameter.data)
    for buffer in model.buffers():
        world.broadcast(buffer)


def reduce_gradients(model: nn.Module, world: World) -> None:
    """Sum the gradients of replicated parameters over the ranks.

    The loss of each rank is its rows' sum over the *global* number of rows, so that the sum of the gradients,
    not their mean, is that of the global batch. All dense ones travel as one flat tensor. A sparse one
    travels as its rows and values; every rank then has all of them in one order, and so the same sums. A
    sharded table's are summed in its backward.
    """
    if world.size == 1:
        return
    replicated = [parameter for parameter in model.parameters() if not is_sharded(parameter)]
    sparse = [one for one in replicated if one.grad is not None and one.grad.is_sparse]
    for parameter in sparse:
        parameter.grad = _gather_sparse(parameter.grad, world)
    _sum_dense([one for one in replicated if not any(one is other for other in sparse)], world)


def _sum_dense(parameters: Sequence[nn.Parameter], world: World) -> None:
    """Sum dense gradients; one that a rank lacks counts as zeros, so that all ranks send as much."""
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    if not parameters:
        return
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    total = world.sum_over_ranks(torch.cat([gradient.flatten() for gradient in gradients]))
    for gradient, part in zip(gradients, torch.split(total, [one.numel() for one in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))


def _gather_sparse(gradient: torch.Tensor | None, world: World) -> torch.Tensor:
    """Return a sparse gradient (N, D) with the rows of all ranks, not summed."""
    assert gradient is not None
    rows, values = gradient._indices()[0], gradient._values()  # the public ones want it coalesced
    rows, values = world.gather_rows(rows), world.gather_rows(values)
    return torch.sparse_coo_tensor(
        rows.unsqueeze(0), values, gradient.shape, is_coalesced=False, check_invariants=False
    )
