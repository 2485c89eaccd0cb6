import numpy as np
import pyarrow as pa
import pytest
import torch

from training.packing import RowFormat, SlotRangeError

COLUMNS = ("a_slot_0", "a_slot_1", "b_slot_0", "rating")


def batch(slots, labels=None):
    """Return an Arrow batch with these slots, a row a list."""
    arrays = [pa.array(list(column), pa.int32()) for column in zip(*slots, strict=True)]
    ratings = pa.array([1.5] * len(slots) if labels is None else labels, pa.float32())
    return pa.record_batch([*arrays, ratings], COLUMNS)


@pytest.mark.parametrize(
    ("num_slots", "slot_type", "words"),
    [
        (1, np.uint8, 2), (256, np.uint8, 2), (257, np.uint16, 3), (65_536, np.uint16, 3),
        (65_537, np.int32, 4), (2**31 - 1, np.int32, 4),
    ],
)  # fmt: skip
def test_slots_travel_in_the_narrowest_type_that_holds_them(num_slots, slot_type, words):
    form = RowFormat(COLUMNS, num_slots, None)
    assert (form.slot_type, form.words, form.lookups) == (slot_type, words, 3)
    slots = [[0, num_slots - 1, num_slots // 2], [num_slots - 1, 0, 0]]
    rows = form.empty(2)
    form.pack(batch(slots, [0.5, 5.0]), rows)
    unpacked, labels = form.unpack(torch.from_numpy(rows))
    assert unpacked.dtype == torch.int32
    assert unpacked.tolist() == slots
    assert unpacked.is_contiguous()
    assert labels.tolist() == [0.5, 5.0]


def test_a_threshold_makes_the_label_binary():
    form = RowFormat(COLUMNS, 10, 4.0)
    rows = form.empty(3)
    form.pack(batch([[1, 2, 3]] * 3, [3.5, 4.0, 5.0]), rows)
    assert form.unpack(torch.from_numpy(rows))[1].tolist() == [0.0, 1.0, 1.0]


@pytest.mark.parametrize("slot", [-1, 10, 2**31 - 1])
def test_a_slot_outside_the_table_is_refused(slot):
    form = RowFormat(COLUMNS, 10, None)
    with pytest.raises(SlotRangeError, match=rf"a_slot_1 holds slot {slot}, the table has slots 0 to 9"):
        form.pack(batch([[1, 2, 3], [1, slot, 3]]), form.empty(2))


def test_a_label_that_is_missing_is_an_error_not_a_number():
    form = RowFormat(COLUMNS, 10, None)
    with pytest.raises(pa.ArrowException, match=r"no nulls"):
        form.pack(batch([[1, 2, 3]], [None]), form.empty(1))


@pytest.mark.parametrize("block_rows", [1, 3, 7, 100])
def test_blocks_have_all_rows_in_order_however_they_come(block_rows):
    form = RowFormat(COLUMNS, 1000, None)
    batches = [
        batch([[first + row, 0, 0] for row in range(rows)]) for first, rows in ((0, 5), (5, 1), (6, 9))
    ]
    blocks = list(form.pack_blocks(batches, block_rows))
    assert all(len(block) == block_rows for block in blocks[:-1])
    slots, _ = form.unpack(torch.from_numpy(np.concatenate(blocks)))
    assert slots[:, 0].tolist() == list(range(15))
