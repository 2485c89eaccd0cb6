"""Parameter types, options and output that several commands share."""

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from featurestore.errors import SpecError
from featurestore.output import table_text
from featurestore.paths import AnyPath, as_path


class Folder(click.ParamType[AnyPath]):
    """A local folder, or a URL such as s3://bucket/folder."""

    name = "folder|url"

    def convert(
        self, value: str | AnyPath, param: click.Parameter | None, ctx: click.Context | None
    ) -> AnyPath:
        """Return the path; a usage error where it is empty, a file, or a URL that cannot be opened."""
        if isinstance(value, str) and not value.strip():
            self.fail("an empty path names no folder; '.' is the current one", param, ctx)
        try:
            path = as_path(value)
        except SpecError as error:
            self.fail(str(error), param, ctx)
        if isinstance(path, Path) and path.is_file():
            self.fail(f"Directory {str(value)!r} is a file.", param, ctx)
        return path


class OutputFile(click.Path):
    """A file to write, new or there before, in a folder that can be written: seen before the work is done."""

    def __init__(self) -> None:
        super().__init__(dir_okay=False, path_type=Path)

    def convert(
        self,
        value: Any,  # noqa: ANN401  # click's
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> Any:  # noqa: ANN401  # click's
        """Return the path; a usage error where no file can be written there."""
        path = Path(str(super().convert(value, param, ctx)))
        real = path.resolve()  # where a link leads is written, see `featurestore.output.whole_file`
        if not real.parent.is_dir():
            folder = real.parent if path.is_symlink() else path.parent
            self.fail(f"there is no folder {str(folder)!r}", param, ctx)
        is_replaced = real.is_file() or not real.exists()  # by another file of its folder; a pipe is not
        if not os.access(real.parent if is_replaced else real, os.W_OK):
            self.fail(f"{str(path)!r} cannot be written", param, ctx)
        return path


FOLDER = Folder()
OUTPUT_FILE = OutputFile()

store_option = click.option("--store", type=FOLDER, required=True, help="Folder or URL of the store.")


class SnapshotId(click.ParamType[str]):
    """A snapshot's id, or the start of it, or ``latest``."""

    name = "id"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the id; a usage error where it is empty, which would be the start of any."""
        if not value.strip():
            self.fail("an empty id names no snapshot: give the start of one, or latest", param, ctx)
        return value


SNAPSHOT_ID = SnapshotId()
snapshot_option = click.option(
    "--snapshot",
    "snapshot_id",
    type=SNAPSHOT_ID,
    metavar="ID",
    help="A snapshot, or the start of its id. Default: the newest.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON for machines.")


def _parse_lookups(ctx: click.Context, param: click.Parameter, given: Sequence[str]) -> dict[str, int]:
    """Return the lookups by feature of texts such as ``zip=2``; a usage error where one is something else."""
    lookups: dict[str, int] = {}
    for text in given:
        name, _, count = text.partition("=")
        if not name or not re.fullmatch(r"-?[0-9]{1,9}", count):
            raise click.BadParameter(f"expected FEATURE=NUMBER, such as zip=2, got {text!r}", ctx, param)
        if lookups.setdefault(name, int(count)) != int(count):
            raise click.BadParameter(f"{name} is given {lookups[name]} and {count} lookups", ctx, param)
    return lookups


lookups_option = click.option(
    "--lookups",
    multiple=True,
    metavar="FEATURE=NUMBER",
    callback=_parse_lookups,
    help="How many lookups a feature takes; may be repeated. Default: as many as it has.",
)


def show_rows(names: Sequence[str], rows: Sequence[Sequence[object]], *, as_json: bool) -> None:
    """Print a table for a person, or JSON for machines."""
    if as_json:
        click.echo(json.dumps([dict(zip(names, row, strict=True)) for row in rows], indent=1))
    else:
        click.echo(table_text(names, rows), nl=False)
