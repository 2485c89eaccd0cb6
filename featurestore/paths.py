"""Paths that may be URLs, and files written whole or not at all.

A local path is a `pathlib.Path`. ``s3://bucket/key`` and ``gs://bucket/key`` are a `RemotePath`: Arrow's
filesystem behind the part of pathlib's surface that this project uses. Credentials, region and endpoint
come from where every client of the service looks for them (AWS_PROFILE, AWS_ENDPOINT_URL, ...).
"""

import contextlib
import fcntl
import functools
import os
import posixpath
import re
import shlex
import shutil
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import pyarrow as pa
from pyarrow import fs

from featurestore.errors import SpecError

SCHEMES = ("s3", "gs")
REQUESTS = 16
"""How many objects are asked for at a time, where many are."""
_KEY = re.compile(r"[a-z0-9][a-z0-9._-]*/[^?*\[]+", re.DOTALL)
RETRY_SECONDS = 60
"""How long gs is asked again; by default a mere lack of credentials is told after a quarter of an hour."""
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://(.*)", re.DOTALL)


@dataclass(frozen=True)
class RemoteStat:
    """What is known of an object, in the words of `os.stat_result`; an object has no inode."""

    st_size: int
    st_mtime_ns: int
    st_ino: int = 0


@dataclass(frozen=True)
class RemotePath:
    """An object, or the prefix of some, on an object store: ``key`` is ``bucket/path``, without ``..``.

    Methods do what those of `pathlib.Path` do, with two differences: a prefix needs no making, and what is
    written appears whole, in one request, or not at all.
    """

    scheme: str
    key: str

    def __str__(self) -> str:
        return f"{self.scheme}://{self.key}"

    def __truediv__(self, other: str) -> Self:
        return self._at(posixpath.normpath(posixpath.join(self.key, other)))

    @property
    def filesystem(self) -> fs.FileSystem:
        """The service that holds it, which is first spoken to here; OSError where it cannot be found."""
        return _filesystem(self.scheme, self.key.split("/", maxsplit=1)[0])

    @property
    def name(self) -> str:
        """Last part of the key."""
        return posixpath.basename(self.key)

    @property
    def parent(self) -> Self:
        """The prefix above."""
        return self._at(posixpath.dirname(self.key))

    def absolute(self) -> Self:
        """Return the path itself: a URL is absolute."""
        return self

    def stat(self) -> RemoteStat:
        """Return size and modification time; FileNotFoundError if there is no such object."""
        info = self.filesystem.get_file_info(self.key)
        if info.type != fs.FileType.File:
            raise FileNotFoundError(f"{self} is not there")
        return RemoteStat(info.size, info.mtime_ns or 0)

    def exists(self) -> bool:
        """Whether there is an object of this name or below it."""
        return bool(self._type() != fs.FileType.NotFound)

    def is_file(self) -> bool:
        """Whether there is an object of this name."""
        return bool(self._type() == fs.FileType.File)

    def is_dir(self) -> bool:
        """Whether there are objects below it."""
        return bool(self._type() == fs.FileType.Directory)

    def iterdir(self) -> Iterator[Self]:
        """Yield what lies directly below, by name."""
        everything = self.scheme == "gs"  # Arrow names no prefixes there, so they are found by what they hold
        selector = fs.FileSelector(self.key, recursive=everything, allow_not_found=True)
        found = (info.path[len(self.key) + 1 :] for info in self.filesystem.get_file_info(selector))
        yield from (self / name for name in sorted({path.split("/")[0] for path in found}))

    def open(self, mode: str = "rb") -> Any:  # noqa: ANN401 - pyarrow has no types
        """Open for reading at any position."""
        assert mode == "rb"
        return self.filesystem.open_input_file(self.key)

    def read_bytes(self) -> bytes:
        """Return the whole object."""
        with self.open() as file:
            data: bytes = file.read()
        return data

    def read_text(self, encoding: str = "utf-8") -> str:
        """Return the whole object as text."""
        return self.read_bytes().decode(encoding)

    def write_bytes(self, data: bytes | pa.Buffer) -> None:
        """Write the whole object, in one request or several that take effect together."""
        with self.filesystem.open_output_stream(self.key) as sink:
            sink.write(data)

    def unlink(self, *, missing_ok: bool = False) -> None:
        """Remove the object."""
        with contextlib.suppress(FileNotFoundError) if missing_ok else contextlib.nullcontext():
            self.filesystem.delete_file(self.key)

    def mkdir(self, *, parents: bool = False, exist_ok: bool = False) -> None:
        """Do nothing: a prefix is there when something lies below it."""

    def copy_to(self, target: "RemotePath") -> None:
        """Copy the object; its bytes do not leave the service."""
        self.filesystem.copy_file(self.key, target.key)

    def _at(self, key: str) -> Self:
        return type(self)(self.scheme, key)

    def _type(self) -> fs.FileType:
        return self.filesystem.get_file_info(self.key).type


AnyPath = Path | RemotePath


@functools.cache
def _filesystem(scheme: str, bucket: str) -> fs.FileSystem:
    """Return Arrow's filesystem for a bucket; that of s3 is asked for its region unless AWS_REGION is set."""
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    options = {"s3": f"?region={region}" if region else "", "gs": f"?retry_limit_seconds={RETRY_SECONDS}"}
    return fs.FileSystem.from_uri(f"{scheme}://{bucket}{options[scheme]}")[0]


def as_path(text: str | AnyPath) -> AnyPath:
    """Return the path that ``text`` names: a URL's scheme says which filesystem.

    Raises:
        SpecError: the scheme is unknown, or the URL names no folder in a bucket.
    """
    if not isinstance(text, str):
        return text
    url = _URL.fullmatch(text)
    if url is None:
        return Path(text)
    scheme, rest = url.group(1).lower(), url.group(2)
    if scheme == "file" and rest.startswith("/"):
        return Path(rest)
    if scheme not in SCHEMES:
        raise SpecError(text, [f"unknown scheme {scheme!r}: expected {', '.join(SCHEMES)}, or a local path"])
    if not _KEY.fullmatch(rest) or ".." in rest.split("/"):
        raise SpecError(text, [f"expected {scheme}://BUCKET/FOLDER, the bucket of a-z, 0-9 and .-_"])
    key = posixpath.normpath(rest)
    return RemotePath(scheme, key)


def typed(path: object) -> str:
    """Return a path as it is typed into a shell, for commands that messages name."""
    return shlex.quote(str(path))


def local_folder(store: AnyPath) -> Path:
    """Return where what is made of a store is kept: the store, or a folder of its name here for a URL."""
    return store if isinstance(store, Path) else Path(store.name)


def arrow_file(path: AnyPath) -> pa.NativeFile:
    """Open a file for Arrow to read at any position."""
    return pa.OSFile(str(path)) if isinstance(path, Path) else path.open()


def write_whole(path: AnyPath, data: bytes | pa.Buffer, *, durable: bool = False) -> None:
    """Replace a file so that a reader, or a crash, sees the old bytes or the new, never a part.

    ``durable``: the bytes are on the disk when this returns; on an object store they always are.
    """
    if isinstance(path, RemotePath):
        path.write_bytes(data)
        return
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        temporary.write_bytes(data)
        if durable:
            sync(temporary)
        temporary.replace(path)
        if durable:
            sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def sizes(paths: Sequence[AnyPath]) -> list[int | None]:
    """Return each file's bytes, None where there is no file; objects are looked up many at a time."""
    if remote := [path for path in paths if isinstance(path, RemotePath)]:
        infos = remote[0].filesystem.get_file_info([path.key for path in remote])
        return [info.size if info.type == fs.FileType.File else None for info in infos]
    return [path.stat().st_size if path.is_file() else None for path in paths]


def files_below(folder: AnyPath) -> list[str]:
    """Return the files in a folder and the folders below it, as sorted paths relative to it."""
    if isinstance(folder, Path):
        return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    selector = fs.FileSelector(folder.key, recursive=True, allow_not_found=True)
    infos = folder.filesystem.get_file_info(selector)
    return sorted(info.path[len(folder.key) + 1 :] for info in infos if info.type == fs.FileType.File)


def remove_tree(path: AnyPath) -> None:
    """Remove a folder, or a prefix, with all below it; one that is not there is no error."""
    if isinstance(path, Path):
        shutil.rmtree(path, ignore_errors=True)
        return
    objects = [path / name for name in files_below(path)]
    with ThreadPoolExecutor(REQUESTS) as pool:
        list(pool.map(lambda each: each.unlink(missing_ok=True), objects))


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock file, made with its folder if missing, for the time of a with statement.

    Raises:
        BlockingIOError: another process holds it.
        OSError: it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield


def sync(path: Path) -> None:
    """Bring a file's bytes, or a folder's names, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
