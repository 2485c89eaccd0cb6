"""One file at a time, whole or not at all: shards and the reports that say they are done."""

import dataclasses
import json
import uuid
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from featurestore.digest import file_digest
from featurestore.snapshot import Shard

REPORTS = "reports"


def shard_name(kind: str, index: int, count: int) -> str:
    """Return a shard's path inside its snapshot."""
    return f"{kind}/part-{index:05d}-of-{count:05d}.parquet"


def write_parquet(table: pa.Table, folder: Path, name: str) -> Shard:
    """Write one shard under a temporary name and rename it, so that a retry or a kill leaves no part.

    Text and ratings are dictionary encoded; slots and times are plain, which reads fastest and, under
    zstd, takes little more room. Only the event time has statistics: nothing else is pruned by
    range, and finding the least of every text column took a third of the writing.
    """
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    pq.write_table(
        table,
        temporary,
        compression="zstd",
        compression_level=1,
        use_dictionary=[field.name for field in table.schema if not pa.types.is_integer(field.type)],
        write_statistics=[name for name in table.column_names if name == "timestamp"],
        row_group_size=1 << 20,
    )
    shard = Shard(name, table.num_rows, temporary.stat().st_size, file_digest(temporary))
    temporary.replace(path)
    return shard


def write_report(folder: Path, name: str, report: object) -> None:
    """Write a dataclass as ``reports/<name>.json``, whole or not at all."""
    path = folder / REPORTS / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    temporary = path.with_suffix(f".{uuid.uuid4().hex}")
    temporary.write_text(json.dumps(dataclasses.asdict(report)), encoding="utf-8")  # type: ignore[call-overload]
    temporary.replace(path)
