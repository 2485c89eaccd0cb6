"""The real files: every stored slot is the article's formula, computed row by row with no help from us."""

import pytest
import xxhash

from featurestore.spec import load_spec
from featurestore.store import FeatureStore
from pipelines.movielens import ML_1M, ML_100K

pytestmark = pytest.mark.real_data


def raw_rows(folder, source):
    """Yield each rating joined to its user by plain Python: {column: text}."""
    users = {}
    name, split = ("u.user", "|") if source is ML_100K else ("users.dat", "::")
    for line in (folder / name).read_text("latin-1").splitlines():
        fields = line.split(split)
        order = (
            ("user_id", "age", "gender", "occupation", "zip")
            if source is ML_100K
            else ("user_id", "gender", "age", "occupation", "zip")
        )
        users[fields[0]] = dict(zip(order, fields, strict=True))
    for line in (folder / source.ratings).read_text("latin-1").splitlines():
        user, movie, rating, timestamp = line.split(source.separator)
        yield {**users[user], "movie_id": movie, "rating": rating, "timestamp": timestamp}


@pytest.mark.parametrize(
    ("fixture", "source", "spec", "rows"),
    [
        ("ml100k_article_store", ML_100K, "article", 100_000),
        ("ml1m_late_store", ML_1M, "movielens", 103_934),
    ],
)
def test_every_slot_is_the_formula_row_by_row(request, real_data, fixture, source, spec, rows):
    folder = real_data / ("ml-100k" if source is ML_100K else "ml-1m-late")
    spec = load_spec(spec)
    with FeatureStore(request.getfixturevalue(fixture)) as store:
        stored = store.sql("FROM examples")
    columns = {name: stored[name].to_pylist() for name in stored.column_names}
    seen = 0
    for index, row in enumerate(raw_rows(folder, source)):
        seen += 1
        assert columns["rating"][index] == float(row["rating"])
        assert columns["timestamp"][index] == int(row["timestamp"])
        for feature in spec.features:
            value = row[feature.column]
            assert columns[feature.column][index] == value
            for seed, name in zip(feature.seeds, feature.slot_columns, strict=True):
                slot = xxhash.xxh32(value.encode(), seed=seed).intdigest() % spec.table.num_slots
                assert columns[name][index] == slot
    assert seen == rows == stored.num_rows


def test_counts_and_titles_are_those_of_the_data_set(ml100k_article_store):
    with FeatureStore(ml100k_article_store) as store:
        counts = store.sql("SELECT feature, count(*) AS n FROM vocabulary GROUP BY feature").to_pylist()
        top = store.sql(
            "SELECT title, count(*) AS n FROM examples GROUP BY title ORDER BY n DESC LIMIT 1"
        ).to_pylist()
    assert {row["feature"]: row["n"] for row in counts} == {
        "user_id": 943, "movie_id": 1682, "age": 61, "occupation": 21, "zip": 795,
    }  # fmt: skip
    assert top == [{"title": "Star Wars (1977)", "n": 583}]


def test_the_paper_leaves_the_3s_out(tmp_path, real_data, ingest_folder):
    splits = ingest_folder(real_data / "ml-100k", tmp_path, spec="paper").snapshot.manifest.load_splits()
    assert splits.dropped == 27_145
    assert sum(splits.rows.values()) == 100_000 - 27_145
    assert splits.rows["train"] / 72_855 == pytest.approx(0.8, abs=0.005)


def test_the_first_fold_is_that_of_its_files(tmp_path, real_data, ingest_folder):
    folder = real_data / "ml-100k"
    splits = ingest_folder(folder, tmp_path, spec="ml100k_u1").snapshot.manifest.load_splits()
    assert splits.rows["test"] == 20_000
    assert splits.rows["train"] + splits.rows["validation"] == 80_000
    assert splits.rows["validation"] == pytest.approx(8_000, rel=0.05)
    with FeatureStore(tmp_path) as store:
        for split, name in (("train", "u1.base"), ("validation", "u1.base"), ("test", "u1.test")):
            lines = {tuple(line.split()) for line in (folder / name).read_text().splitlines()}
            keys = store.stream(split, ["user_id", "movie_id", "rating", "timestamp"]).read_all()
            rows = zip(*keys.to_pydict().values(), strict=True)
            assert {(user, movie, f"{rating:g}", f"{time}") for user, movie, rating, time in rows} <= lines


def test_the_article_splits_at_the_median_timestamp(ml100k_article_store):
    with FeatureStore(ml100k_article_store) as store:
        facts = store.sql(
            "SELECT (SELECT quantile_disc(timestamp, 0.5) FROM examples) AS median, "
            "(SELECT max(timestamp) FROM train) AS last, (SELECT min(timestamp) FROM validation) AS first, "
            "(SELECT count(*) FROM train) AS train, (SELECT count(*) FROM validation) AS validation"
        ).to_pylist()[0]
    assert facts["last"] < facts["first"]
    assert facts["last"] <= facts["median"] <= facts["first"]
    assert facts["train"] + facts["validation"] == 100_000
    assert abs(facts["train"] - 50_000) < 50  # ratings of the median second stay together
