"""The MovieLens archives of GroupLens: fetched, checked and unpacked.

``fetch(ARCHIVES["ml-1m"], Path("data"))`` leaves ``data/ml-1m/ratings.dat`` and its neighbours. Bytes are
collected in ``data/ml-1m.zip.part``, where the next run takes them up; the folder appears at once, when the
whole archive has the MD5 that GroupLens states.
"""

import hashlib
import http.client
import re
import sys
import tempfile
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import click
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from featurestore.errors import SourceError, SpecError

__all__ = ["ARCHIVES", "Archive", "command", "fetch", "is_complete"]

BASE_URL = "https://files.grouplens.org/datasets/movielens"
TIMEOUT_S = 30
BLOCK_BYTES = 1 << 16

LICENCE = """\
MovieLens data belongs to GroupLens, University of Minnesota. The README in the archive has the terms:
  - use it for research; commercial use needs permission of GroupLens
  - do not redistribute it without separate permission
  - do not state or imply that GroupLens or the university endorses you
  - cite F. Maxwell Harper and Joseph A. Konstan, "The MovieLens Datasets: History and Context",
    ACM TiiS 5(4), 2015, https://doi.org/10.1145/2827872
"""

# Called with the bytes at hand and the bytes in all, None if the server does not say.
Report = Callable[[int, int | None], None]


@dataclass(frozen=True)
class Archive:
    """One archive, ``<name>.zip``: its MD5, the folder inside it, and the files it must bring."""

    name: str
    md5: str
    folder: str
    files: tuple[str, ...]


_ARCHIVES = (
    Archive("ml-100k", "0e33842e24a9c977be4e0107933c0723", "ml-100k", ("u.data", "u.item", "u.user")),
    Archive("ml-1m", "c4d9eecfca2ab87c1945afe126590906", "ml-1m", ("ratings.dat", "movies.dat", "users.dat")),
    Archive("ml-10m", "ce571fd55effeba0271552578f2648bd", "ml-10M100K", ("ratings.dat", "movies.dat")),
    Archive("ml-20m", "cd245b17a1ae2cc31bb14903e1204af3", "ml-20m", ("ratings.csv", "movies.csv")),
    Archive("ml-25m", "6b51fb2759a8657d3bfcbfc42b592ada", "ml-25m", ("ratings.csv", "movies.csv")),
    Archive("ml-32m", "d472be332d4daa821edc399621853b57", "ml-32m", ("ratings.csv", "movies.csv")),
    # ml-latest and ml-latest-small are made anew from time to time: no MD5 holds for them
)
ARCHIVES = {archive.name: archive for archive in _ARCHIVES}


def fetch(archive: Archive, dest: Path, base_url: str = BASE_URL, report: Report | None = None) -> Path:
    """Return the folder ``dest/<name>`` with the files of ``archive``, downloading what is not there yet.

    Raises:
        SourceError: the server cannot be reached, breaks off or sends other bytes, or the folder exists
            and holds something else.
        ValueError: ``base_url`` is not http(s).
        OSError: the disk refused.
    """
    if not base_url.startswith(("http://", "https://")):
        raise ValueError(f"base url {base_url!r}: expected http://... or https://...")
    target = dest / archive.name
    if is_complete(archive, target):
        return target
    _refuse_to_replace(archive, target)
    dest.mkdir(parents=True, exist_ok=True)
    part = dest / f"{archive.name}.zip.part"
    # A run killed while unpacking has left the whole archive: no network is needed for that.
    if not (part.exists() and _md5(part) == archive.md5):
        url = f"{base_url.rstrip('/')}/{archive.name}.zip"
        _download(url, part, report, by_hand=_by_hand(archive, url, target))
        _verify(archive, url, part)
    _unpack(archive, part, target)
    part.unlink()
    return target


def is_complete(archive: Archive, folder: Path) -> bool:
    """Say whether ``folder`` has every file that ``archive`` must bring."""
    return all((folder / name).is_file() for name in archive.files)


def _refuse_to_replace(archive: Archive, target: Path) -> None:
    """Raise SourceError if there is anything at ``target`` but an empty folder."""
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        expected = ", ".join(archive.files)
        remedy = "remove it or choose another --dest"
        raise SourceError(f"{target}: exists but lacks some of {expected}; {remedy}")


def _by_hand(archive: Archive, url: str, target: Path) -> str:
    """Say what to do without a network."""
    return (
        f"either fetch {url} with a browser, unzip it and move its folder {archive.folder} to {target}, "
        "or use generated ratings in place of it: synthetic:ml-1m"
    )


# --- bytes ----------------------------------------------------------------------------------------------


def _download(url: str, part: Path, report: Report | None, *, by_hand: str) -> None:
    """Fetch ``url`` into ``part``, from where an earlier run broke off if the server can do that."""
    try:
        response, start = _open_from(url, part.stat().st_size if part.exists() else 0)
    except (OSError, http.client.HTTPException) as error:
        raise SourceError(f"{url}: cannot be fetched ({error}); {by_hand}") from error
    have = start
    total = None if response.length is None else start + response.length
    with response, part.open("ab") as out:
        out.truncate(start)
        for block in _blocks(url, response):
            out.write(block)
            have += len(block)
            if report is not None:
                report(have, total)
    if total is not None and have < total:
        raise SourceError(f"{url}: broke off after {have:,} of {total:,} bytes; run again to fetch the rest")


def _open_from(url: str, have: int) -> tuple[http.client.HTTPResponse, int]:
    """Return an answer and the byte of the file it starts at: ``have``, or 0 from a server that cannot."""
    if have:
        try:
            response = _open(url, {"Range": f"bytes={have}-"})
        except urllib.error.HTTPError as error:
            error.close()
            if error.code != http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
                raise
            # Nothing follows our bytes, and they are not the archive (the MD5 was looked at): start again.
        else:
            if response.status == http.HTTPStatus.OK:
                return response, 0
            if re.match(rf"bytes {have}-", response.headers.get("Content-Range", "")):
                return response, have
            response.close()
    return _open(url, {}), 0


def _open(url: str, headers: dict[str, str]) -> http.client.HTTPResponse:
    request = urllib.request.Request(url, headers=headers)  # noqa: S310 - fetch() let only http(s) through
    response = urllib.request.urlopen(request, timeout=TIMEOUT_S)  # noqa: S310
    assert isinstance(response, http.client.HTTPResponse)
    return response


def _blocks(url: str, response: http.client.HTTPResponse) -> Iterator[bytes]:
    """Yield the body; raises SourceError if the connection breaks, apart from errors of the disk."""
    try:
        while block := response.read(BLOCK_BYTES):
            yield block
    except (OSError, http.client.HTTPException) as error:
        raise SourceError(f"{url}: broke off ({error}); run again to fetch the rest") from error


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def _verify(archive: Archive, url: str, part: Path) -> None:
    """Raise SourceError, and delete ``part``, if it is not the archive."""
    found = _md5(part)
    if found != archive.md5:
        part.unlink()
        raise SourceError(
            f"{url}: what came has MD5 {found}, expected {archive.md5}; it was deleted: run again, "
            "and look for a proxy that answers in the server's place if it stays so"
        )


# --- the archive ----------------------------------------------------------------------------------------


def _unpack(archive: Archive, part: Path, target: Path) -> None:
    """Unzip ``part`` beside ``target`` and rename the folder inside it to ``target``."""
    with tempfile.TemporaryDirectory(prefix=f".{archive.name}-", dir=target.parent) as scratch:
        try:
            with zipfile.ZipFile(part) as zipped:
                _refuse_escapes(part, zipped.namelist())
                zipped.extractall(scratch)
        except zipfile.BadZipFile as error:
            raise SourceError(f"{part}: is not a zip archive ({error}); remove it and run again") from error
        unpacked = Path(scratch) / archive.folder
        if not is_complete(archive, unpacked):
            expected = ", ".join(f"{archive.folder}/{name}" for name in archive.files)
            raise SourceError(f"{part}: lacks some of {expected}; remove it and run again")
        unpacked.rename(target)


def _refuse_escapes(part: Path, names: list[str]) -> None:
    """Raise SourceError if unpacking one of ``names`` would write outside the folder it is unpacked in."""
    for name in names:
        path = PurePosixPath(name.replace("\\", "/"))
        if path.is_absolute() or ".." in path.parts or ":" in name:
            raise SourceError(f"{part}: holds {name!r}, a path out of the folder; nothing was unpacked")


# --- the command ----------------------------------------------------------------------------------------


@click.command(
    "download",
    short_help="Fetch a MovieLens data set from GroupLens.",
    epilog="\b\nExamples:\n  slotstore download ml-1m\n  slotstore download ml-10m --dest raw",
)
@click.argument("name", type=click.Choice(list(ARCHIVES)))
@click.option(
    "--dest", type=click.Path(path_type=Path), default=Path("data"), show_default=True, help="Parent folder."
)
@click.option("--accept-licence", is_flag=True, help="Agree to the terms of GroupLens without being asked.")
@click.option("--base-url", default=BASE_URL, show_default=True, help="Where NAME.zip lies: a mirror.")
def command(name: str, *, dest: Path, accept_licence: bool, base_url: str) -> None:
    """Fetch a MovieLens data set into the folder DEST/NAME.

    Shows the licence and asks for your consent, resumes a download that broke off, checks the MD5 and
    unpacks. A data set that is already there is kept. Without a network, `slotstore generate ml-1m OUT`
    writes files of the same format, statistics and size.
    """
    archive = ARCHIVES[name]
    if is_complete(archive, dest / name):
        click.echo(f"{dest / name}: already there")
        return
    _ask_for_consent(name, accepted=accept_licence)
    try:
        with _progress_bar(name) as report:
            folder = fetch(archive, dest, base_url, report)
    except ValueError as error:
        raise SpecError("slotstore download", [str(error)]) from error
    except OSError as error:
        raise SourceError(f"{dest}: cannot write the data set: {error}") from error
    megabytes = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6
    click.echo(f"{folder}: {megabytes:,.1f} MB, MD5 of the archive as GroupLens states it")


def _ask_for_consent(name: str, *, accepted: bool) -> None:
    """Show the licence; raises SpecError where nobody can be asked, SourceError if the answer is no."""
    click.echo(LICENCE, err=True)
    if accepted:
        return
    if not _can_ask():
        problem = "the licence has to be accepted and there is no terminal to ask on: pass --accept-licence"
        raise SpecError(f"slotstore download {name}", [problem])
    if not click.confirm("Do you accept these terms?", err=True):
        raise SourceError(f"{name}: the licence was not accepted; nothing was downloaded")


def _can_ask() -> bool:
    return sys.stdin.isatty()


@contextmanager
def _progress_bar(name: str) -> Iterator[Report]:
    """Show a bar on stderr, if that is a terminal; yield what moves it."""
    console = Console(stderr=True)
    columns = (TextColumn(name), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(name, total=None)
        yield lambda have, total: bar.update(task, completed=have, total=total)
