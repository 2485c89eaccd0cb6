"""Out of memory, as a message that says what to lower."""

import contextlib
from collections.abc import Iterator

import torch

from featurestore.errors import TrainingError
from featurestore.spec import FeatureSpec
from training.config import TrainConfig

_CPU_ALLOCATOR = "DefaultCPUAllocator"


@contextlib.contextmanager
def explain_memory(config: TrainConfig, spec: FeatureSpec) -> Iterator[None]:
    """Turn what torch and Python raise where memory runs out into a TrainingError."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise TrainingError(_message(config, spec, error)) from error
    except RuntimeError as error:  # what torch raises on the CPU
        if _CPU_ALLOCATOR not in str(error):
            raise
        raise TrainingError(_message(config, spec, error)) from error


def _message(config: TrainConfig, spec: FeatureSpec, error: Exception) -> str:
    table = spec.table.num_slots * spec.table.dim * 4
    copies = "twice as many for adam's state, as many for its gradient"
    if config.optimizer != "adam":
        copies = f"{spec.table.num_slots * 4:,} for the row-wise optimizer's state"
    first = (str(error) or type(error).__name__).splitlines()[0]
    return (
        f"out of memory on {config.torch_device()}: {first}\n"
        f"The table, {spec.table}, takes {table:,} bytes, {copies}.\n"
        f"Lower --batch-size (now {config.batch_size:,}), give --feed stream (now {config.feed}) or "
        "--optimizer rowwise_adagrad, or fewer --num-slots."
    )
