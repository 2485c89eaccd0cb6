"""Layouts as functions of the vocabulary: their slots by hand, their floats, what does not fit."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featurestore.errors import SpecError
from featurestore.hashing import default_seed, slot
from featurestore.layouts import (
    LAYOUTS,
    NEED_NO_VOCABULARY,
    double,
    exact,
    exact_lowdim,
    hash_embedding,
    hashed_net,
    make_plan,
    mixed_dim,
    parse_layout,
    per_feature,
    quotient_remainder,
    robe,
    tensor_train,
    unified,
    unified_narrow,
    unified_small_exact,
)
from featurestore.plans import Field, TooSmall
from featurestore.signs import projection_signs, slot_signs

COLOURS = Field("colour", ("red", "green", "blue"))
IDS = Field("id", tuple(str(number) for number in range(10)))
FIELDS = (COLOURS, IDS)


def test_unified_slots_are_those_of_the_store():
    """13 rows of 6 floats fit 80 floats; with two lookups 26 of 3."""
    plan = unified(FIELDS, 6, 80)
    assert (plan.num_rows, plan.width, plan.floats) == (13, 6, 78)
    assert plan.slots[1][7, 0] == slot("7", default_seed("id", 0), 13)
    two = unified(FIELDS, 6, 80, lookups=2)
    assert (two.num_rows, two.width, two.floats) == (26, 3, 78)
    assert two.slots[0][2].tolist() == [slot("blue", default_seed("colour", k), 26) for k in (0, 1)]
    with pytest.raises(SpecError, match="lookups must divide the width 6, got 4"):
        unified(FIELDS, 6, 80, lookups=4)


def test_per_feature_has_a_range_each_and_never_squeezes_a_small_feature():
    plan = per_feature(FIELDS, 6, 48)  # 8 rows: at least min(3, 2) for colour, the rest by size
    assert plan.num_rows == 8
    assert set(plan.slots[0][:, 0]) <= {0, 1}
    assert set(plan.slots[1][:, 0]) <= {2, 3, 4, 5, 6, 7}
    assert plan.slots[1][4, 0] == 2 + slot("4", default_seed("id", 0), 6)


@given(st.lists(st.integers(1, 5000), min_size=1, max_size=8), st.integers(1, 20_000))
def test_per_feature_shares_every_row_and_leaves_each_feature_its_least(sizes, total):
    fields = [Field(f"f{number}", ("x",) * size) for number, size in enumerate(sizes)]
    if total < len(sizes):
        with pytest.raises(TooSmall, match="the smallest that works"):
            per_feature(fields, 1, total)
        return
    from featurestore.layouts import _shares

    shares = _shares(sizes, total)
    assert sum(shares) == total
    least = [max(1, min(size, total // (2 * len(sizes)))) for size in sizes]
    assert all(share >= low for share, low in zip(shares, least, strict=True))


def test_exact_has_a_row_for_each_value():
    plan = exact(FIELDS, 6, 1000)
    assert plan.floats == 13 * 6
    assert np.concatenate(plan.slots)[:, 0].tolist() == list(range(13))
    with pytest.raises(TooSmall, match=r"layout exact does not fit 308 bytes: .* is 312 bytes"):
        exact(FIELDS, 6, 77)


def test_exact_lowdim_deals_out_dimensions():
    """One dimension each costs 3 + 6 and 10 + 6; of 10 more floats only colour's second (9) fits."""
    plan = exact_lowdim(FIELDS, 6, 35)
    assert [slots.shape for slots in plan.slots] == [(3, 2), (10, 1)]
    assert plan.floats == 2 * (3 + 6) + (10 + 6) == 34
    assert sorted(np.concatenate([slots.ravel() for slots in plan.slots])) == list(range(16))
    with pytest.raises(TooSmall, match="100 bytes"):
        exact_lowdim(FIELDS, 6, 24)


def test_exact_lowdim_gives_no_feature_more_dimensions_than_values():
    plan = exact_lowdim(FIELDS, 6, 10_000)
    assert [slots.shape[1] for slots in plan.slots] == [3, 6]


def test_small_features_are_exact_while_they_take_a_quarter():
    plan = unified_small_exact(FIELDS, 6, 12 * 6)
    assert plan.slots[0][:, 0].tolist() == [0, 1, 2]
    assert plan.slots[1][5, 0] == 3 + slot("5", default_seed("id", 0), 9)
    crowded = unified_small_exact(FIELDS, 6, 11 * 6)  # 3 of 11 rows are over a quarter
    assert crowded.slots[0][1, 0] == slot("green", default_seed("colour", 0), 11)


def test_narrow_rows_cost_no_floats_but_the_table_and_learned_projections():
    plan = unified_narrow(FIELDS, 6, 100, width=2, lookups=3)
    assert (plan.num_rows, plan.floats) == (50, 100)
    assert plan.slots[1][3, 2] == slot("3", default_seed("id", 2), 50)
    signs = slot_signs(plan.slots[1][3], 6)
    assert plan.signs[1][3].tolist() == signs[:3].tolist()
    assert np.allclose(plan.codes[1][3], 0.05 * signs)
    assert all(np.allclose(each, projection_signs(6, 6) / 6**0.5) for each in plan.projections)
    assert [each.shape for each in plan.codes] == [(3, 6), (10, 6)]
    assert unified_narrow(FIELDS, 6, 100, code=0).codes is None
    wide = unified_narrow(FIELDS, 2, 100, lookups=5, small=4)  # more lookups than columns
    assert [each.shape for each in wide.signs] == [(3, 4), (10, 4)]
    assert [each.shape for each in wide.projections] == [(4, 2), (4, 2)]
    assert wide.signs[1].tolist() == slot_signs(wide.slots[1], 4).tolist()
    small = unified_narrow(FIELDS, 6, 100, lookups=3, small=2, learned=True)
    assert (small.num_rows, small.floats) == (76, 100)  # 100 - 2 * 2 * 6
    learned = unified_narrow(FIELDS, 6, 100, width=2, lookups=3, learned=True)
    assert (learned.num_rows, learned.floats) == (14, 100)  # 100 - 2 * 3 * 2 * 6 = 28
    with pytest.raises(TooSmall, match="296 bytes"):
        unified_narrow(FIELDS, 6, 73, width=2, lookups=3, learned=True)


def test_mixed_dimensions_follow_the_counts():
    """16 and 4 and 1 examples with alpha 1/2: t is 1, for 9 floats of which a fifth is the tail's."""
    field = Field("colour", ("red", "green", "blue"), (16, 4, 1))
    plan = mixed_dim([field], 6, 9, tail=0.2)
    assert plan.floats == 9
    assert plan.slots[0].tolist() == [[0, 1, 2, 3], [4, 5, 4, 4], [6, 6, 6, 6]]
    assert plan.signs[0].tolist() == [[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0]]
    assert np.abs(plan.projections[0]).tolist() == np.ones((4, 6)).tolist()


def test_mixed_dimensions_leave_rare_values_to_the_tail():
    """With t just below 1, six floats are 3 + 2, and the third value has two lookups in the other three."""
    field = Field("colour", ("red", "green", "blue"), (16, 5, 1))
    plan = mixed_dim([field], 6, 8, tail=0.25)
    assert plan.slots[0][:2].tolist() == [[0, 1, 2], [3, 4, 3]]
    tail = [5 + slot("blue", default_seed("colour", k), 3) for k in (0, 1)]
    assert plan.slots[0][2].tolist() == [*tail, tail[0]]
    assert np.allclose(np.abs(plan.signs[0][2]), [0.5**0.5, 0.5**0.5, 0])
    for wrong in ({"tail": 2.0}, {"tail": 0.0}, {"alpha": 5.0}):
        with pytest.raises(SpecError, match="tail must be a share above 0 and at most 1"):
            mixed_dim([field], 6, 8, **wrong)
    with pytest.raises(SpecError, match="lookups times width must be at most 4,096"):
        unified_narrow([field], 6, 8, lookups=4096, width=2)


@given(st.lists(st.integers(0, 1000), min_size=1, max_size=30), st.integers(1, 500), st.integers(1, 6))
def test_mixed_dimensions_keep_within_their_floats_and_the_order_of_the_counts(counts, floats, most):
    field = Field("f", tuple(map(str, range(len(counts)))), tuple(counts))
    plan = mixed_dim([field], 6, floats, most=most)
    assert plan.slots[0].max() < plan.floats == floats
    own = np.where(np.isclose(plan.signs[0], 1), plan.slots[0], -1)
    taken = own[own >= 0]
    dims = (own >= 0).sum(1)
    if plan.signs[0].min() >= 0 and not np.isclose(plan.signs[0], 0.5**0.5).any():  # all have their own
        assert len(set(taken.tolist())) == len(taken)
    assert dims.max() <= most
    order = np.argsort(counts)
    assert (np.diff(dims[order]) >= 0).all()


def test_sums():
    assert double(FIELDS, 6, 80).slots[0].shape == (3, 2)
    plan = hash_embedding(FIELDS, 6, 80)  # 10 weights of 2 leave 10 rows of 6
    assert (plan.num_weights, plan.num_rows, plan.floats) == (10, 10, 80)
    assert plan.weight_slots[1][8] == slot("8", default_seed("id/weight", 0), 10)


def test_quotients_and_remainders_tell_all_values_apart():
    """10 values: 3 + 4 rows at least; 3 values: 2 + 2, or 1 + 3."""
    plan = quotient_remainder(FIELDS, 6, 11 * 6)
    assert plan.num_rows == 11
    for slots in plan.slots:
        assert len({tuple(pair) for pair in slots}) == len(slots)
    with pytest.raises(TooSmall, match="264 bytes"):
        quotient_remainder(FIELDS, 6, 65)


def test_blocks_run_on_and_around():
    plan = robe(FIELDS, 6, 11, block=3)
    start = slot("2", default_seed("id", 1), 11)
    assert plan.places[1][2, 3:].tolist() == [(start + i) % 11 for i in range(3)]
    assert plan.floats == 11
    with pytest.raises(SpecError, match="block must divide the width 6, got 4"):
        robe(FIELDS, 6, 11, block=4)


@pytest.mark.parametrize(("dim", "block"), [(30, 6), (16, 8), (4, 4), (7, 7), (11, 1)])
def test_blocks_fit_every_width(dim, block):
    places = robe(FIELDS, dim, 1000).places[0]
    runs = (np.diff(places.reshape(3, dim // block, block), axis=2) % 1000 == 1).all()
    assert places.shape == (3, dim)
    assert runs


def test_elements_have_a_place_and_a_sign_each():
    plan = hashed_net(FIELDS, 6, 11)
    assert plan.places[0][1, 5] == slot("green", default_seed("colour", 5), 11)
    assert set(np.unique(plan.signs[1])) == {-1.0, 1.0}


def test_tensor_trains_have_the_ranks_that_fill():
    plan = tensor_train(FIELDS, 6, 100)
    (n1, n2, n3), (d1, d2, d3), (r1, r2) = plan.rows, plan.columns, plan.ranks
    assert n1 * n2 * n3 >= 13
    assert (d1, d2, d3) == (1, 2, 3)
    assert plan.floats == n1 * d1 * r1 + r1 * n2 * d2 * r2 + r2 * n3 * d3 <= 100


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(sorted(LAYOUTS)), st.integers(1, 6000))
def test_no_layout_costs_more_than_it_may(name, floats):
    """And what does not fit says what would, which then fits."""
    smallest = smallest_that_works(name, floats)
    assert make_plan(name, FIELDS, 6, smallest).floats <= smallest
    if smallest > floats:
        with pytest.raises(TooSmall):
            make_plan(name, FIELDS, 6, smallest - 1)


def smallest_that_works(name, floats):
    try:
        make_plan(name, FIELDS, 6, floats)
    except TooSmall as error:
        return error.smallest
    return floats


ML_100K = {"user_id": 943, "movie_id": 1682, "gender": 2, "age": 61, "occupation": 21, "zip": 795}
MANY = tuple(Field(name, tuple(map(str, range(size)))) for name, size in ML_100K.items())


@pytest.mark.parametrize("share", [1.0, 0.5, 0.1])
@pytest.mark.parametrize("name", sorted(LAYOUTS))
def test_equal_bytes_within_a_percent(name, share):
    """At sizes that occur."""
    floats = int(sum(map(len, MANY)) * 30 * share)
    if name == "exact" and share < 1:
        with pytest.raises(TooSmall):
            make_plan(name, MANY, 30, floats)
        return
    assert make_plan(name, MANY, 30, floats).floats >= 0.99 * floats


def test_parameters_of_a_layout_are_read():
    layout = parse_layout("unified_narrow:signs=0:lookups=4")
    assert (layout.name, layout.parameters) == ("unified_narrow", {"signs": False, "lookups": 4})
    assert str(layout) == "unified_narrow:lookups=4:signs=0"
    plan = make_plan("unified_narrow:lookups=2:width=3", FIELDS, 6, 80)
    assert (plan.width, plan.slots[0].shape) == (3, (3, 2))


def test_a_layout_has_one_name_and_two_layouts_have_two():
    assert str(parse_layout("unified:lookups=1")) == "unified"
    assert str(parse_layout("unified_narrow:signs=1:code=0.05")) == "unified_narrow"
    near = {str(parse_layout(f"unified_narrow:code=0.1234567{digit}")) for digit in "0123456789"}
    assert len(near) == 10
    for name in near:
        assert str(parse_layout(name)) == name
    assert str(parse_layout("unified_narrow:code=1e-9")) == "unified_narrow:code=1e-09"
    assert str(parse_layout("unified_narrow:code=-0")) == str(parse_layout("unified_narrow:code=0"))


def test_a_parameter_is_given_once():
    with pytest.raises(SpecError, match="unified: lookups is given twice"):
        parse_layout("unified:lookups=2:lookups=3")


def test_wrong_parameters_are_told_all_at_once():
    with pytest.raises(SpecError) as caught:
        parse_layout("unified_narrow:lookup=2:width=0:signs=yes:lookups=1.5:lookups=99999")
    known = ["did you mean 'lookups'", "width must be a whole number from 1", "signs must be 0 or 1"]
    known += ["lookups must be a whole number"] * 2
    assert len(caught.value.problems) == 5
    for problem, part in zip(caught.value.problems, known, strict=True):
        assert part in problem
    with pytest.raises(SpecError, match="exact has no parameter 'lookups': it takes none"):
        parse_layout("exact:lookups=2")


def test_those_that_need_no_vocabulary_are_layouts():
    assert LAYOUTS.keys() > NEED_NO_VOCABULARY


@pytest.mark.parametrize("name", sorted(NEED_NO_VOCABULARY))
def test_hashing_layouts_give_a_value_the_same_whatever_others_there_are(name):
    """Where there are fewer floats than `hash_embedding` could use for its weights."""
    alone, together = (make_plan(name, fields, 6, 60) for fields in ((IDS,), (IDS, COLOURS)))
    for part in ("slots", "places", "codes"):
        if hasattr(alone, part):
            assert np.array_equal(getattr(alone, part)[0], getattr(together, part)[0])


def test_an_unknown_layout_is_told_the_nearest():
    with pytest.raises(SpecError, match=r"unknown layout 'unifed' .did you mean 'unified'"):
        make_plan("unifed", FIELDS, 6, 100)
