"""Reports: what each step says of the file that it has written, in one beside it."""

import dataclasses
import json

from featurestore.paths import AnyPath, write_whole

REPORTS = "reports"


def write_report(folder: AnyPath, name: str, report: object) -> None:
    """Write a dataclass as ``reports/<name>.json``, whole or not at all."""
    path = folder / REPORTS / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    write_whole(path, json.dumps(dataclasses.asdict(report)).encode())  # type: ignore[call-overload]
