"""How much memory there is: of the machine, of the container we are in, of the device."""

from pathlib import Path

import torch

_CGROUPS = (
    ("memory.max", "memory.current"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
)


def available_memory(proc: Path = Path("/proc"), cgroup: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Return the bytes of memory that can still be used, or None where the system does not tell.

    That is what Linux calls available, or less where a control group (version 2 or 1) allows less.
    """
    limits = [free for names in _CGROUPS if (free := _left(cgroup, *names)) is not None]
    if (total := _available(proc / "meminfo")) is not None:
        limits.append(total)
    return max(min(limits), 0) if limits else None


def _available(meminfo: Path) -> int | None:
    if not meminfo.exists():
        return None
    for line in meminfo.read_text().splitlines():
        name, _, value = line.partition(":")
        if name == "MemAvailable":
            return int(value.split()[0]) * 1024
    return None


def _left(cgroup: Path, limit: str, used: str) -> int | None:
    if not (cgroup / limit).exists() or not (cgroup / used).exists():
        return None
    text = (cgroup / limit).read_text().strip()
    return None if text == "max" else int(text) - int((cgroup / used).read_text())


def device_memory(device: torch.device) -> int | None:
    """Return the bytes that can still be allocated on a device; of the CPU, the machine's."""
    if device.type != "cuda":
        return available_memory()
    free, _ = torch.cuda.mem_get_info(device)
    return int(free) + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
