import contextlib
import shutil
import threading

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from featurestore.errors import ArtifactError, NotFound
from featurestore.spec import SPLITS
from featurestore.store import FeatureStore
from training.order import Share
from training.packing import RowFormat
from training.stream import FEEDS, SplitStream


def rows_of(batches):
    """Return all batches as one int32 array, the label as its bits, a row an example."""
    parts = [
        np.column_stack([batch.slots.numpy(), batch.labels.contiguous().view(torch.int32).numpy()])
        for batch in batches
    ]
    return np.concatenate(parts)


def stored(store, split="train"):
    """Return the split as the store has it, in the same form and the store's order."""
    table = store.stream(split, RowFormat.of(store.spec).columns).read_all()
    *slots, label = (column.to_numpy() for column in table.columns)
    if store.spec.label.is_binary:
        label = (label >= store.spec.label.threshold).astype(np.float32)
    return np.column_stack([*slots, label.view(np.int32)])


def sorted_rows(rows):
    return rows[np.lexsort(rows.T)]


WINDOWS = {"whole": 1 << 20, "in windows": 3000, "smaller than a batch": 100}

every_feed = pytest.mark.parametrize("feed", FEEDS)
every_window = pytest.mark.parametrize("window_rows", WINDOWS.values(), ids=WINDOWS)


@pytest.fixture(params=["tiny", "binary"])
def store(request):
    return request.getfixturevalue(request.param)


@pytest.fixture
def open_stream(tmp_path):
    """A function that opens a stream which is closed when the test ends, its copies beside it."""
    with contextlib.ExitStack() as stack:

        def make(store, split="train", batch_size=512, **options):
            stream = SplitStream(store, split, batch_size, cache=tmp_path, **options)
            stack.callback(stream.close)
            return stream

        yield make


@every_feed
@every_window
@pytest.mark.parametrize("shuffle", [True, False])
def test_every_row_comes_exactly_once_an_epoch(store, open_stream, feed, window_rows, shuffle):
    stream = open_stream(store, seed=3, shuffle=shuffle, feed=feed, window_rows=window_rows)
    expected = stored(store)
    assert stream.rows == len(expected)
    for epoch in (0, 1):
        assert (sorted_rows(rows_of(stream.epoch(epoch))) == sorted_rows(expected)).all()


@every_feed
def test_without_shuffling_the_order_is_the_stores(store, open_stream, feed):
    assert (rows_of(open_stream(store, feed=feed).epoch(0)) == stored(store)).all()


@every_window
def test_the_order_is_the_same_whatever_the_feed_the_batch_size_and_the_ranks(tiny, open_stream, window_rows):
    def epoch(number=1, seed=3, **options):
        stream = open_stream(tiny, seed=seed, shuffle=True, window_rows=window_rows, **options)
        return rows_of(stream.epoch(number))

    first = epoch()
    for feed in FEEDS:
        assert (epoch(feed=feed) == first).all()
        assert (epoch(feed=feed, batch_size=100) == first).all()
    assert (epoch(2) != first).any()
    assert (epoch(seed=4) != first).any()


@every_feed
@every_window
@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_have_disjoint_rows_that_are_together_the_batches_of_one(
    tiny, open_stream, feed, window_rows, ranks
):
    options = {"seed": 3, "shuffle": True, "feed": feed, "window_rows": window_rows, "batch_size": 1000}
    whole = list(open_stream(tiny, **options).epoch(1))
    parts = [open_stream(tiny, share=Share(rank, ranks), **options).epoch(1) for rank in range(ranks)]
    for batch, *shares in zip(whole, *parts, strict=True):
        assert torch.cat([share.slots for share in shares]).equal(batch.slots)
        assert torch.cat([share.labels for share in shares]).equal(batch.labels)
        assert {share.total for share in shares} == {len(batch.labels)}


def test_a_rank_without_rows_gets_empty_batches_of_the_right_shape(tiny, open_stream):
    (batch,) = open_stream(tiny, batch_size=1 << 20, share=Share(0, 1 << 30)).epoch(0)
    assert batch.slots.shape == (0, 8)
    assert batch.labels.shape == (0,)
    assert batch.total == tiny.splits.rows["train"]


@every_feed
@every_window
@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("batches", [0, 3, 1 << 20])
def test_an_epoch_can_be_gone_on_with_from_any_batch(tiny, open_stream, feed, window_rows, shuffle, batches):
    stream = open_stream(tiny, seed=3, shuffle=shuffle, feed=feed, window_rows=window_rows)
    start = min(batches * 512, stream.rows)
    whole = rows_of(stream.epoch(1))
    rest = list(stream.epoch(1, start))
    assert sum(batch.total for batch in rest) == stream.rows - start
    assert not rest or (rows_of(rest) == whole[start:]).all()


def test_an_epoch_can_be_gone_on_with_in_other_batches_by_other_ranks(tiny, open_stream):
    whole = rows_of(open_stream(tiny, seed=3, shuffle=True).epoch(1))
    parts = [
        list(open_stream(tiny, batch_size=37, seed=3, shuffle=True, share=Share(rank, 2)).epoch(1, 640))
        for rank in range(2)
    ]
    rest = [batch for both in zip(*parts, strict=True) for batch in both]
    assert (rows_of(rest) == whole[640:]).all()


def test_epochs_can_be_asked_for_again_and_out_of_order(tiny, open_stream):
    stream = open_stream(tiny, seed=3, shuffle=True)
    third, first = rows_of(stream.epoch(3)), rows_of(stream.epoch(1))
    assert (rows_of(stream.epoch(3)) == third).all()
    assert (rows_of(stream.epoch(1)) == first).all()


@pytest.mark.parametrize("feed", ["memory", "device"])
def test_a_split_in_memory_is_read_once(tiny, open_stream, feed):
    stream = open_stream(tiny, seed=3, shuffle=True, feed=feed)
    rows_of(stream.epoch(0))
    tiny.stream = None  # reading again would raise
    assert len(rows_of(stream.epoch(1))) == stream.rows


@every_feed
@every_window
@pytest.mark.parametrize("batch_size", [1000, 50_000])
def test_only_the_last_batch_is_short(tiny, open_stream, feed, window_rows, batch_size):
    stream = open_stream(tiny, batch_size=batch_size, shuffle=True, feed=feed, window_rows=window_rows)
    sizes = [len(batch.labels) for batch in stream.epoch(0)]
    assert sum(sizes) == stream.rows
    assert all(size == batch_size for size in sizes[:-1])


def test_a_shuffle_in_windows_leaves_no_more_order_than_one_of_the_whole(tiny, open_stream):
    """Neighbours in an epoch are not neighbours in time: the autocorrelation is within that of chance."""
    stream = open_stream(tiny, seed=3, shuffle=True, window_rows=1000)
    place = {row.tobytes(): index for index, row in enumerate(stored(tiny))}
    found = np.array([place[row.tobytes()] for row in rows_of(stream.epoch(0))], np.float64)
    chance = 4 / np.sqrt(len(found))
    for lag in (1, 2, 10, 100):
        assert abs(np.corrcoef(found[:-lag], found[lag:])[0, 1]) < chance


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


@every_feed
def test_no_batch_has_what_the_label_drops(paper_store, open_stream, feed):
    with FeatureStore(paper_store) as store:
        counted = store.sql("SELECT rating, count(*) AS n FROM examples GROUP BY rating").to_pydict()
        stars = dict(zip(counted["rating"], counted["n"], strict=True))
        labels = [
            np.concatenate([batch.labels.numpy() for batch in open_stream(store, split, feed=feed).epoch(0)])
            for split in SPLITS
        ]
        assert store.splits.dropped == stars[3.0] > 0
    assert sum(map(len, labels)) == 20_000 - stars[3.0]
    assert sum(part.sum() for part in labels) == stars[4.0] + stars[5.0]


def test_an_empty_split_has_no_batches(article_store):
    with FeatureStore(article_store) as store:
        assert store.splits.rows["test"] == 0
        assert list(SplitStream(store, "test", 512, shuffle=True).epoch(0)) == []


@every_feed
@every_window
def test_an_abandoned_epoch_leaves_no_thread_at_work(tiny, open_stream, feed, window_rows):
    batches = open_stream(tiny, seed=3, shuffle=True, feed=feed, window_rows=window_rows).epoch(0)
    next(batches)
    batches.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("slotstore-prefetch")]


def test_an_unknown_split_names_the_nearest(tiny):
    with pytest.raises(NotFound, match=r"did you mean 'train'"):
        SplitStream(tiny, "trian", 512)


@pytest.mark.parametrize(("batch_size", "window_rows"), [(0, 1), (1, 0)])
def test_sizes_must_be_positive(tiny, batch_size, window_rows):
    with pytest.raises(ValueError, match=r"must be positive"):
        SplitStream(tiny, "train", batch_size, window_rows=window_rows)


def test_an_unknown_feed_names_the_nearest(tiny):
    with pytest.raises(ValueError, match=r"did you mean 'stream'"):
        SplitStream(tiny, "train", 512, feed="steam")


@every_feed
@every_window
def test_a_shard_damaged_after_opening_is_an_error_that_says_where(
    tiny_store, open_stream, tmp_path, feed, window_rows
):
    copy = shutil.copytree(tiny_store, tmp_path / "store")
    with FeatureStore(copy) as store:
        stream = open_stream(store, shuffle=True, feed=feed, window_rows=window_rows)
        shard = store.snapshot.files("examples")[1]
        content = bytearray(shard.read_bytes())
        content[4 : len(content) // 2] = bytes(len(content) // 2 - 4)
        shard.write_bytes(content)
        with pytest.raises(ArtifactError, match=r"(?s)train of snapshot .* in .*store.*snapshots verify"):
            list(stream.epoch(0))


def test_rows_that_are_missing_are_an_error(tiny, open_stream):
    tiny.splits.rows["train"] += 1
    with pytest.raises(ArtifactError, match=r"the manifest says"):
        list(open_stream(tiny, shuffle=True).epoch(0))


@pytest.mark.parametrize("slot", [-1, 32768])
def test_a_slot_that_the_table_does_not_have_is_found_before_it_is_looked_up(
    tiny_store, open_stream, tmp_path, slot
):
    copy = shutil.copytree(tiny_store, tmp_path / "store")
    with FeatureStore(copy) as store:
        shard = store.snapshot.files("examples")[0]
        table = pq.read_table(shard)
        column = table["zip_slot_0"].to_pylist()
        table = table.set_column(
            table.schema.get_field_index("zip_slot_0"),
            "zip_slot_0",
            pa.array([slot, *column[1:]], pa.int32()),
        )
        pq.write_table(table, shard)
        found = (
            rf"train of snapshot .*: zip_slot_0 of feature zip, value '{table['zip'][0]}', is {slot}; "
            r"the table has 32,768 slots, 0 to 32767"
        )
        with pytest.raises(ArtifactError, match=found):
            list(open_stream(store).epoch(0))
