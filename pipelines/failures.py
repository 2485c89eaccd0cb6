"""What a worker's failure means to a user: of a trace of a hundred lines, the one that says why."""

import builtins
import re

_RAISED = re.compile(r"(?:\w+\.)*(\w+): .")


def system_error(trace: str) -> str | None:
    """Return the last line that says which disk, file or service failed; None if none did."""
    lines = [line.strip() for line in trace.splitlines()]
    found = [line for line in lines if "[Errno " in line or _is_system_error(line)]
    return found[-1].split(" [while running")[0] if found else None


def _is_system_error(line: str) -> bool:
    raised = _RAISED.match(line)
    kind = getattr(builtins, raised.group(1), None) if raised else None
    return isinstance(kind, type) and issubclass(kind, OSError)
