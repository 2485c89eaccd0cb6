"""What a comparison comes to: the published figures beside ours, and sentences."""

import pytest

from featurestore.layouts import LAYOUTS
from featurestore.spec import Label
from training.comparison.ranking import standings
from training.comparison.setup import PAPER_LABEL, CellResult
from training.comparison.verdicts import PUBLISHED, beside_published, dictionary_notes, verdicts


def ranked(label=PAPER_LABEL, metric="auc", budget=4000, **values):
    results = [
        CellResult(layout, seed, budget, budget, {metric: v, "log_loss": 1.0}, {}, 1, [], 1.0)
        for layout, each in values.items()
        for seed, v in enumerate(each)
    ]
    return standings(results, label)


def test_published_figures_stand_beside_the_same_layout_and_share():
    found = ranked(unified=(0.82, 0.84), per_feature=(0.75, 0.77), robe=(0.9, 0.9))
    rows = beside_published(found, 10_000)  # 1,000 floats of 10,000: 0.1x
    assert rows == [
        ("0.1x", "unified", "0.8300", "0.0141", "0.8200", "0.8263"),
        ("0.1x", "per_feature", "0.7600", "0.0141", "0.7707", "0.7712"),
        ("0.1x", "unified - per_feature", "+0.0700", "", "+0.0493", "+0.0551"),
    ]
    assert beside_published(found, 12_000) == []


def test_published_are_layouts_of_ours():
    assert {each.layout for each in PUBLISHED} <= LAYOUTS.keys()


def test_a_layout_without_vocabulary_that_wins_is_said_to():
    (told,) = verdicts(ranked(robe=(0.9, 0.91), exact_lowdim=(0.8, 0.82)), PAPER_LABEL)
    assert told == (
        "4,000 bytes: robe is best, 0.9050, and needs no vocabulary; "
        "next is exact_lowdim, 0.0950 lower, p = 0.032"
    )


def test_where_hashing_loses_it_is_said_to():
    found = ranked(exact=(0.9, 0.91), **{"unified_narrow:lookups=6": (0.89, 0.9), "unified": (0.8, 0.81)})
    (told,) = verdicts(found, PAPER_LABEL)
    assert told == (
        "4,000 bytes: exact is best, 0.9050; hashing is not the best choice here: "
        "of the layouts that need no vocabulary the best is unified_narrow:lookups=6, 0.0100 lower, p = 0.29"
    )


def test_the_dictionary_that_no_budget_counts_is_told():
    (told,) = dictionary_notes(["robe", "mixed_dim:tail=0.1", "mixed_dim", "exact"], 3504)
    assert told == (
        "a dictionary of all 3,504 values, which no budget counts, tells where a value's floats are in "
        "mixed_dim, exact: at least 14,016 bytes, a 32-bit hash each"
    )
    assert dictionary_notes(["unified_narrow:small=2", "per_feature", "unified_small_exact"], 3504) == []


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"robe": (1.0,)}, "robe is best, 1.0000, and needs no vocabulary"),
        ({"exact": (1.0,)}, "exact is best, 1.0000; none that needs no vocabulary was compared"),
        ({"exact": (1.0,), "robe": (1.1,)}, "the best is robe, 0.1000 higher"),
    ],
)
def test_of_ratings_less_is_better_and_one_seed_has_no_test(values, said):
    label = Label("rating")
    (told,) = verdicts(ranked(label, "rmse", **values), label)
    assert told.endswith(said)
