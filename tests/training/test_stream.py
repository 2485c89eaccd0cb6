import shutil
import threading

import numpy as np
import pyarrow as pa
import pytest
import torch

from featurestore.errors import ArtifactError, NotFound
from featurestore.store import FeatureStore
from training.packing import pack, packed_columns
from training.stream import SplitStream


def rows_of(batches):
    """Return all batches as one int32 array, the label as its bits, a row an example."""
    parts = [
        np.column_stack([batch.slots.numpy(), batch.labels.contiguous().view(torch.int32).numpy()])
        for batch in batches
    ]
    return np.concatenate(parts)


def stored(store, split="train"):
    """Return the split as the store has it, in the same form and the store's order."""
    table = store.stream(split, packed_columns(store.spec)).read_all()
    *slots, label = (column.to_numpy() for column in table.columns)
    if store.spec.label.is_binary:
        label = (label >= store.spec.label.threshold).astype(np.float32)
    return np.column_stack([*slots, label.view(np.int32)])


def sorted_rows(rows):
    return rows[np.lexsort(rows.T)]


SIZES = {"kept": 8_000_000, "streamed": 3000, "smaller than a batch": 100}


@pytest.fixture(params=["tiny", "binary"])
def store(request):
    return request.getfixturevalue(request.param)


@pytest.mark.parametrize("buffer_rows", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("shuffle", [True, False])
def test_every_row_comes_exactly_once_an_epoch(store, buffer_rows, shuffle):
    stream = SplitStream(store, "train", 512, seed=3, shuffle=shuffle, buffer_rows=buffer_rows)
    expected = stored(store)
    assert stream.rows == len(expected)
    for epoch in (0, 1):
        assert (sorted_rows(rows_of(stream.epoch(epoch))) == sorted_rows(expected)).all()


@pytest.mark.parametrize("buffer_rows", SIZES.values(), ids=SIZES)
def test_without_shuffling_the_order_is_the_stores(store, buffer_rows):
    stream = SplitStream(store, "train", 512, buffer_rows=buffer_rows)
    assert (rows_of(stream.epoch(0)) == stored(store)).all()


@pytest.mark.parametrize("buffer_rows", SIZES.values(), ids=SIZES)
def test_the_order_depends_on_seed_and_epoch_but_not_on_the_batch_size(tiny, buffer_rows):
    def epoch(number, seed=3, batch_size=512):
        options = {"seed": seed, "shuffle": True, "buffer_rows": buffer_rows}
        return rows_of(SplitStream(tiny, "train", batch_size, **options).epoch(number))

    first = epoch(1)
    assert (epoch(1) == first).all()
    assert (epoch(1, batch_size=100) == first).all()
    assert (epoch(2) != first).any()
    assert (epoch(1, seed=4) != first).any()


def test_epochs_can_be_asked_for_again_and_out_of_order(tiny):
    stream = SplitStream(tiny, "train", 512, seed=3, shuffle=True)
    third, first = rows_of(stream.epoch(3)), rows_of(stream.epoch(1))
    assert (rows_of(stream.epoch(3)) == third).all()
    assert (rows_of(stream.epoch(1)) == first).all()


def test_a_kept_split_is_read_once_and_permuted_as_a_whole(tiny):
    stream = SplitStream(tiny, "train", 512, seed=3, shuffle=True)
    rows_of(stream.epoch(0))
    tiny.stream = None  # reading again would raise
    shuffled = rows_of(stream.epoch(1))
    position = {row.tobytes(): index for index, row in enumerate(np.unique(shuffled, axis=0))}
    found = np.array([position[row.tobytes()] for row in shuffled])
    assert abs(np.corrcoef(found, np.arange(len(found)))[0, 1]) < 0.05


@pytest.mark.parametrize("buffer_rows", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("batch_size", [1000, 50_000])
def test_only_the_last_batch_is_short(tiny, buffer_rows, batch_size):
    stream = SplitStream(tiny, "train", batch_size, shuffle=True, buffer_rows=buffer_rows)
    sizes = [len(batch.labels) for batch in stream.epoch(0)]
    assert sum(sizes) == stream.rows
    assert all(size == batch_size for size in sizes[:-1])


def test_batches_have_the_types_that_the_model_takes(tiny):
    batch = next(iter(SplitStream(tiny, "train", 64, shuffle=True).epoch(0)))
    assert batch.slots.shape == (64, 8)
    assert (batch.slots.dtype, batch.labels.dtype) == (torch.int32, torch.float32)
    assert set(batch.labels.tolist()) <= {1.0, 2.0, 3.0, 4.0, 5.0}


def test_a_threshold_makes_the_label_binary(binary):
    batches = SplitStream(binary, "train", 4096).epoch(0)
    labels = torch.cat([batch.labels for batch in batches])
    ratings = binary.stream("train", ["rating"]).read_all()["rating"].to_numpy()
    assert (labels.numpy() == (ratings >= 4)).all()


def test_an_empty_split_has_no_batches(article_store):
    with FeatureStore(article_store) as store:
        assert store.splits.rows["test"] == 0
        assert list(SplitStream(store, "test", 512, shuffle=True).epoch(0)) == []


@pytest.mark.parametrize("buffer_rows", SIZES.values(), ids=SIZES)
def test_an_abandoned_epoch_leaves_no_thread_at_work(tiny, buffer_rows):
    stream = SplitStream(tiny, "train", 512, seed=3, shuffle=True, buffer_rows=buffer_rows)
    batches = stream.epoch(0)
    next(batches)
    batches.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("slotstore-prefetch")]


def test_an_unknown_split_names_the_nearest(tiny):
    with pytest.raises(NotFound, match=r"did you mean 'train'"):
        SplitStream(tiny, "trian", 512)


@pytest.mark.parametrize(("batch_size", "buffer_rows"), [(0, 1), (1, 0)])
def test_sizes_must_be_positive(tiny, batch_size, buffer_rows):
    with pytest.raises(ValueError, match=r"must be positive"):
        SplitStream(tiny, "train", batch_size, buffer_rows=buffer_rows)


@pytest.mark.parametrize("buffer_rows", [8_000_000, 3000], ids=["kept", "streamed"])
def test_a_shard_damaged_after_opening_is_an_error_that_says_where(tiny_store, tmp_path, buffer_rows):
    copy = shutil.copytree(tiny_store, tmp_path / "store")
    with FeatureStore(copy) as store:
        stream = SplitStream(store, "train", 512, shuffle=True, buffer_rows=buffer_rows)
        shard = store.snapshot.files("examples")[1]
        content = bytearray(shard.read_bytes())
        content[4 : len(content) // 2] = bytes(len(content) // 2 - 4)
        shard.write_bytes(content)
        with pytest.raises(ArtifactError, match=r"(?s)train of snapshot .* in .*store.*snapshots verify"):
            list(stream.epoch(0))


def test_rows_that_are_missing_are_an_error(tiny):
    stream = SplitStream(tiny, "train", 512, shuffle=True, buffer_rows=3000)
    stream.rows += 1
    with pytest.raises(ArtifactError, match=r"the manifest says"):
        list(stream.epoch(0))


def test_a_label_that_is_missing_is_an_error_not_a_number(tiny):
    names = packed_columns(tiny.spec)
    columns = [pa.array([1], pa.int32())] * (len(names) - 1) + [pa.array([None], pa.float32())]
    with pytest.raises(pa.ArrowException, match=r"no nulls"):
        pack(pa.record_batch(columns, names), np.empty((1, len(names)), np.int32), None)
