import os
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest

from featurestore.errors import ArtifactError
from featurestore.store import FeatureStore
from training.copies import PackedCopy, copy_path, write_copy
from training.order import BaseOrder, Shuffle
from training.reader import SplitReader
from training.stream import SplitStream

WINDOW = 3000


@pytest.fixture
def reader(tiny):
    return SplitReader(tiny, "train")


@pytest.fixture
def shuffle(reader):
    return Shuffle(reader.rows, 5, WINDOW)


@pytest.fixture
def copied(reader, shuffle, tmp_path):
    """The path of a fresh copy."""
    path = tmp_path / "train.npy"
    write_copy(path, reader.blocks(1000), reader.format.words, shuffle)
    return path


@pytest.fixture
def opened(copied, reader, shuffle):
    copy = PackedCopy.open(copied, reader.rows, reader.format.words, shuffle.chunk_rows)
    yield copy
    copy.close()


def test_a_copy_is_the_base_order(copied, reader, shuffle):
    assert (np.load(copied) == reader.base(shuffle)).all()
    stored = np.concatenate(list(reader.blocks(10**6)))
    assert (np.load(copied)[BaseOrder(reader.rows, WINDOW).places()] == stored).all()
    assert sorted(path.name for path in copied.parent.iterdir()) == ["train.npy", "train.xxh3.npy"]


def test_windows_are_read_as_they_are_in_memory(opened, reader, shuffle):
    base = reader.base(shuffle)
    for window in shuffle.windows(2):
        assert (opened.read(window)[window.order()] == base[window.positions()]).all()


def read_all(opened, shuffle):
    return [opened.read(window) for window in shuffle.windows(0)]


def test_a_flipped_bit_is_found_when_it_is_read(copied, opened, shuffle):
    content = bytearray(copied.read_bytes())
    content[len(content) // 2] ^= 1
    copied.write_bytes(content)
    with pytest.raises(ArtifactError, match=r"train.npy: rows [\d,]+ and on are damaged\n.*remove it \(rm "):
        read_all(opened, shuffle)


def test_a_cut_file_is_an_error_not_a_crash(copied, opened, shuffle):
    os.truncate(copied, copied.stat().st_size // 2)
    with pytest.raises(ArtifactError, match=r"ends before row"):
        read_all(opened, shuffle)


@pytest.mark.parametrize(
    "harm",
    [
        lambda path: path.write_bytes(b"no array"),
        lambda path: os.truncate(path, path.stat().st_size // 2),
        lambda path: np.save(path, np.zeros((3, 5), np.int32)),
        lambda path: path.with_name("train.xxh3.npy").unlink(),
        lambda path: np.save(path.with_name("train.xxh3.npy"), np.zeros(5, np.uint64)),
    ],
    ids=["foreign", "cut", "other rows", "no digests", "other digests"],
)
def test_what_is_no_copy_of_the_split_is_refused(copied, reader, shuffle, harm):
    harm(copied)
    with pytest.raises(ArtifactError, match=r"(?s)train.npy.*It is a copy, made again when it is missing"):
        PackedCopy.open(copied, reader.rows, reader.format.words, shuffle.chunk_rows)


def test_its_name_changes_with_all_that_it_depends_on(tiny, binary, reader, shuffle, tmp_path):
    def path(store=tiny, split="train", form=reader.format, order=shuffle):
        return copy_path(tmp_path, store, split, form, order)

    assert path() == path()
    assert path().parent == tmp_path / tiny.snapshot.manifest.id
    changed = [
        path(binary), path(split="test"), path(order=Shuffle(reader.rows, 5, 2000)),
        path(form=SplitReader(binary, "train").format),
    ]  # fmt: skip
    assert len({path().name, *(one.name for one in changed)}) == 5
    assert path(order=Shuffle(reader.rows, 6, WINDOW)) == path()  # every seed uses the same one


def streamed(store, cache):
    stream = SplitStream(store, "train", 512, shuffle=True, feed="stream", window_rows=WINDOW, cache=cache)
    try:
        return sum(len(batch.labels) for batch in stream.epoch(1))
    finally:
        stream.close()


def test_it_is_made_once_and_again_when_it_was_removed(tiny, tmp_path):
    rows = streamed(tiny, tmp_path)
    (folder,) = tmp_path.iterdir()
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert streamed(tiny, tmp_path) == rows
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    shutil.rmtree(folder)
    assert streamed(tiny, tmp_path) == rows


def test_a_full_disk_is_an_error_that_says_what_to_do(reader, shuffle, tmp_path):
    """The limit on a file's size stands in for the disk; it is of a process of its own."""
    program = f"""
import resource, signal, sys
from pathlib import Path
from featurestore.errors import ArtifactError
from featurestore.store import FeatureStore
from training.stream import SplitStream
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
with FeatureStore({str(reader.store.path)!r}) as store:
    options = dict(shuffle=True, feed="stream", window_rows={WINDOW}, cache=Path({str(tmp_path)!r}))
    stream = SplitStream(store, "train", 512, **options)
    try:
        next(stream.epoch(0))
    except ArtifactError as error:
        print(error)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert "the copy that this split is streamed from: " in done.stdout, done.stderr
    assert "make room, or give --feed memory" in done.stdout
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_killed_writer_leaves_nothing_that_is_taken_for_a_copy(tiny, tmp_path):
    program = f"""
import os, signal
from pathlib import Path
from featurestore.store import FeatureStore
from training.stream import SplitStream
import training.copies
training.copies._permute = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
with FeatureStore({str(tiny.path)!r}) as store:
    options = dict(shuffle=True, feed="stream", window_rows={WINDOW}, cache=Path({str(tmp_path)!r}))
    next(SplitStream(store, "train", 512, **options).epoch(0))
"""
    killed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    with FeatureStore(tiny.path) as store:
        assert streamed(store, tmp_path) == store.splits.rows["train"]
