"""Parameter types, options and output that several commands share."""

import json
import re
from collections.abc import Sequence
from pathlib import Path

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
        """Return the path; a usage error where it is a file, or a URL that cannot be opened."""
        try:
            path = as_path(value)
        except SpecError as error:
            self.fail(str(error), param, ctx)
        if isinstance(path, Path) and path.is_file():
            self.fail(f"Directory {str(value)!r} is a file.", param, ctx)
        return path


FOLDER = Folder()

store_option = click.option("--store", type=FOLDER, required=True, help="Folder or URL of the store.")
snapshot_option = click.option(
    "--snapshot", "snapshot_id", metavar="ID", help="A snapshot, or the start of its id. Default: the newest."
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
