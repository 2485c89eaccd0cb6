"""`slotstore cache`: the copies that trainings have made, and their removal."""

import click

from featurestore.cache import cached, clear_cache
from featurestore.options import json_option, show_rows, store_option
from featurestore.paths import AnyPath

EPILOG = """\b
Examples:
  slotstore cache --store store
  slotstore cache --store store --clear

A split that is streamed from disk, and is larger than what is shuffled together, is copied once, shuffled,
slots only. A copy is made again when it is missing."""


@click.command("cache", epilog=EPILOG)
@store_option
@click.option("--clear", is_flag=True, help="Remove them. Do not, while a training streams from one.")
@json_option
def command(store: AnyPath, *, clear: bool, as_json: bool) -> None:
    """Show the copies that trainings have made of snapshots, with their bytes, or remove them."""
    found = clear_cache(store) if clear else cached(store)
    rows = [(one.snapshot, len(one.files), one.bytes) for one in found]
    if rows or as_json:
        show_rows(["snapshot", "files", "bytes"], rows, as_json=as_json)
    if not as_json:
        total = sum(one.bytes for one in found)
        click.echo(f"{'removed' if clear else 'in all'} {total:,} bytes")
