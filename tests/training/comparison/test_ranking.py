"""The table of a comparison: means, deviations, Welch's test, what does not fit."""

import pytest
from scipy import stats

from featurestore.errors import TrainingError
from featurestore.plans import TooSmall
from featurestore.spec import Label
from training.comparison.ranking import check_fair, columns, rows, standings, welch
from training.comparison.setup import PAPER_LABEL, CellResult


def result(layout, seed, auc, budget=1000, used=1000):
    scores = {"auc": auc, "log_loss": 1 - auc}
    return CellResult(layout, seed, budget, used, scores, scores, 3, [auc], 2.0)


def test_welch_is_scipys():
    one, other = [0.8, 0.81, 0.79, 0.83], [0.7, 0.78, 0.75]
    expected = stats.ttest_ind(one, other, equal_var=False)
    found = welch(one, other)
    assert (found.t, found.degrees, found.p) == pytest.approx(
        (expected.statistic, expected.df, expected.pvalue)
    )


@pytest.mark.parametrize(("one", "other"), [([1.0], [1.0, 2.0]), ([1.0, 1.0], [2.0, 2.0])])
def test_welch_is_undefined_without_spread_or_with_one_seed(one, other):
    assert welch(one, other) is None


def test_the_best_layout_of_each_budget_comes_first():
    results = [
        *(result("unified", seed, auc) for seed, auc in enumerate((0.7, 0.72))),
        *(result("exact", seed, auc) for seed, auc in enumerate((0.8, 0.82))),
        result("exact", 0, 0.9, budget=2000, used=2000),
    ]
    found = standings(results, PAPER_LABEL)
    assert [(each.budget, each.layout, each.seeds) for each in found] == [
        (2000, "exact", 1),
        (1000, "exact", 2),
        (1000, "unified", 2),
    ]
    assert found[1].quality == pytest.approx((0.81, 0.0002**0.5))
    assert found[1].loss == pytest.approx((0.19, 0.0002**0.5))
    assert found[1].against.p == pytest.approx(0.0194193, rel=1e-4)
    assert found[0].against is None  # there is no unified at this budget
    assert found[2].against is None


def test_of_ratings_the_lowest_error_comes_first():
    def rated(layout, rmse):
        return CellResult(layout, 0, 8, 8, {"rmse": rmse, "mae": 1.0}, {"rmse": rmse}, 1, [rmse], 1.0)

    found = standings([rated("unified", 1.0), rated("exact", 0.9)], Label("rating"))
    assert [each.layout for each in found] == ["exact", "unified"]
    assert found[0].loss is None


def test_rows_fit_the_columns_and_tell_the_smallest_budget():
    found = standings([result("unified", 0, 0.7)], PAPER_LABEL)
    table = rows(found, [TooSmall("exact", 250, 9000)])
    assert {len(row) for row in table} == {len(columns(PAPER_LABEL))}
    assert table[1][:3] == ("1,000", "exact", "needs 36,000")


def test_unused_bytes_are_told_and_too_many_refused():
    assert check_fair([result("unified", 0, 0.7, used=990)]) == []
    assert check_fair([result("unified", seed, 0.7, used=900) for seed in (0, 1)]) == [
        "unified uses 90.0% of 1,000 bytes: it comes in steps, or needs no more"
    ]
    with pytest.raises(TrainingError, match="1,001 bytes, its budget is 1,000"):
        check_fair([result("unified", 0, 0.7, used=1001)])


def test_one_seed_has_no_deviation():
    one, two = ([result("unified", seed, 0.7) for seed in range(count)] for count in (1, 2))
    assert rows(standings(one, PAPER_LABEL), [])[0][4:8] == ("0.7000", "", "0.3000", "")
    assert rows(standings(two, PAPER_LABEL), [])[0][4:8] == ("0.7000", "0.0000", "0.3000", "0.0000")
