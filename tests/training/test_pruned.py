"""The table without the rows that no value has: where slots lead, and that what it gives is the same bits."""

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from featurestore.encode import encode
from featurestore.spec import parse_spec
from training.embeddings import RADIX_ROWS, UnifiedEmbedding
from training.models import MODELS, build_model
from training.optimizers import TABLE
from training.predictor import Predictor
from training.pruned import KEPT, PrunedEmbedding, pack_slots, prune, pruned_table, unpack_slots


def flags(num_slots, kept):
    found = np.zeros(num_slots, dtype=np.bool_)
    found[list(kept)] = True
    return found


def tables(num_slots, kept, dim=3):
    """Return a whole table and the one without the rows that are not kept."""
    torch.manual_seed(0)
    whole = UnifiedEmbedding(num_slots, dim)
    pruned = PrunedEmbedding(num_slots, dim, pack_slots(flags(num_slots, kept)))
    weights = prune({TABLE: whole.weight.detach()}, flags(num_slots, kept))
    pruned.load_state_dict({"weight": weights[TABLE], "kept": weights[KEPT]})
    return whole, pruned


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_a_slot_leads_to_as_many_kept_slots_as_lie_below_it(dtype):
    _, pruned = tables(66, [0, 5, 31, 32, 63, 65])
    slots = torch.tensor([[0, 5, 31], [32, 63, 65]], dtype=dtype)
    assert pruned.rows(slots).tolist() == [[0, 1, 2], [3, 4, 5]]
    assert pruned.rows(torch.tensor([1, 30, 33, 62, 64], dtype=dtype)).tolist() == [6] * 5


@pytest.mark.parametrize("num_slots", [1, 31, 32, 33, 64])
@pytest.mark.parametrize("every", [True, False])
def test_all_slots_may_be_kept_or_none(num_slots, every):
    _, pruned = tables(num_slots, range(num_slots) if every else [])
    expected = list(range(num_slots)) if every else [0] * num_slots
    assert pruned.rows(torch.arange(num_slots)).tolist() == expected


@given(st.sets(st.integers(0, 199)), st.integers(200, 300), st.randoms())
def test_kept_slots_have_their_rows_and_all_others_one(kept, num_slots, random):
    whole, pruned = tables(num_slots, kept)
    slots = torch.arange(num_slots, dtype=torch.int32)[:, None]
    one, other = whole(slots), pruned(slots)
    among = torch.from_numpy(flags(num_slots, kept))
    assert one[among].equal(other[among])
    assert (other[~among] == pruned.weight[-1]).all()
    assert pruned.whole().equal(other)
    assert (unpack_slots(pack_slots(flags(num_slots, kept)), num_slots) == flags(num_slots, kept)).all()


def test_the_row_of_all_others_is_their_mean():
    table = torch.tensor([[1.0, 2.0], [10.0, -0.0], [3.0, 5.0], [8.0, 8.0]])
    found = prune({TABLE: table, "layer": torch.ones(1)}, flags(4, [1, 3]))
    assert found[TABLE].tolist() == [[10.0, 0.0], [8.0, 8.0], [2.0, 3.5]]
    assert found[TABLE][0, 1].signbit()
    assert found[KEPT].tolist() == [0b1010]
    assert found["layer"].tolist() == [1.0]
    assert prune({TABLE: table}, flags(4, range(4)))[TABLE][-1].tolist() == [0.0, 0.0]


def test_a_large_batch_takes_the_road_that_it_takes_with_the_whole_table():
    kept = range(0, 50, 3)
    whole, pruned = tables(50, kept, dim=4)
    layer = nn.Linear(12, 8)
    chosen = torch.randint(len(kept), (RADIX_ROWS, 3), generator=torch.Generator().manual_seed(1))
    slots = torch.tensor(kept, dtype=torch.int32)[chosen]
    assert pruned.project(slots, layer).equal(whole.project(slots, layer))
    assert pruned.project(slots[:9], layer).equal(whole.project(slots[:9], layer))
    # 17 rows are few beside so many examples, the 10,000 of the whole table are not: it is looked up
    whole, pruned = tables(10_000, kept, dim=4)
    assert pruned.project(slots, layer).equal(whole.project(slots, layer))


@pytest.mark.parametrize("slot", [-1, 50, 63, 64])
def test_a_slot_outside_the_table_is_an_error(slot):
    _, pruned = tables(50, [3, 7])
    with pytest.raises(IndexError, match="it has 50 rows"):
        pruned(torch.tensor([[3, slot]]))
    pruned(torch.empty(0, 2, dtype=torch.int32))


@pytest.mark.parametrize(
    ("kept", "said"),
    [
        (torch.zeros(2), "torch.float32"),
        (torch.zeros(3, dtype=torch.int32), r"\(3,\), that of 50 slots is torch.int32 \(2,\)"),
        (torch.tensor([0, 1 << 18], dtype=torch.int32), "slots from 50 on"),
    ],
)
def test_a_remap_of_another_table_is_an_error(kept, said):
    with pytest.raises(ValueError, match=said):
        PrunedEmbedding(50, 3, kept)


names = st.lists(st.sampled_from(["a", "b", "c", "d"]), min_size=1, unique=True)
values = st.lists(st.text(max_size=4), min_size=1, max_size=12, unique=True)


@settings(max_examples=40)
@given(st.data(), st.sampled_from(sorted(MODELS)), names, st.integers(1, 200), st.integers(1, 5))
def test_predictions_of_all_known_values_are_the_same_bits(data, model, features, num_slots, dim):
    lookups = {name: data.draw(st.integers(1, 3)) for name in features}
    spec = parse_spec(
        {
            "table": {"num_slots": num_slots, "dim": dim},
            "features": [{"name": name, "lookups": lookups[name]} for name in features],
            "label": {"column": "rating"},
            "split": {"kind": "random", "fractions": [0.8, 0.1, 0.1]},
        },
        name="any",
        where="any",
    )
    known = {name: data.draw(values) for name in features}
    most = max(map(len, known.values()))
    table = pa.table({name: (each * most)[:most] for name, each in known.items()})
    slots = encode(table, spec).select(spec.slot_columns)
    kept = flags(num_slots, {slot for column in slots.columns for slot in column.to_pylist()})
    whole = build_model(model, spec, 3.0)
    nn.init.normal_(whole.get_parameter(TABLE))
    weights = prune(whole.state_dict(), kept)
    pruned = build_model(model, spec, table=pruned_table(weights))
    pruned.load_state_dict(weights)
    one, other = (Predictor(each, spec).predict(table) for each in (whole, pruned))
    assert one.tobytes() == other.tobytes()
