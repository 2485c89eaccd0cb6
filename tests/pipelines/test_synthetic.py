import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import csv

from featurestore.errors import SourceError, SpecError, StoreBusy
from pipelines import synthetic, synthetic_world
from pipelines.generate_command import command
from pipelines.synthetic import generate, is_complete
from pipelines.synthetic_shape import SyntheticShape, parse_shape

ROOT = Path(synthetic.__file__).parents[1]
SMALL = parse_shape("3k", seed=5)


def ratings_of(folder):
    """Return (rows, 4) integers: user, movie, rating, time."""
    table = csv.read_csv(
        folder / "ratings.dat",
        read_options=csv.ReadOptions(autogenerate_column_names=True),
        parse_options=csv.ParseOptions(delimiter=":"),  # every second column is what lies between two colons
    )
    return np.stack([table.column(number).to_numpy() for number in (0, 2, 4, 6)], axis=1)


def records_of(folder, name):
    return [line.split("::") for line in (folder / name).read_text("latin-1").split("\n")[:-1]]


def files_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def ml_1m(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shape") / "ml-1m"
    generate(parse_shape("ml-1m"), folder)
    return folder


@pytest.fixture(scope="module")
def ratings(ml_1m):
    return ratings_of(ml_1m)


# --- shapes


@pytest.mark.parametrize(
    ("text", "rows", "users", "movies"),
    [
        ("ml-1m", 1_000_209, 6_040, 3_883),
        ("10000000", 10_000_000, 60_241, 10_681),
        ("10_000_000", 10_000_000, 60_241, 10_681),
        ("10m", 10_000_000, 60_241, 10_681),
        ("500K", 500_000, 3_012, 3_473),
        ("1b", 1_000_000_000, 6_024_096, 60_064),
        ("1", 1, 1, 300),
    ],
)
def test_parse_shape(text, rows, users, movies):
    assert parse_shape(text, seed=3) == SyntheticShape(rows, users, movies, seed=3)


@pytest.mark.parametrize(
    "text", ["", "ml-2m", "-5", "0", "0k", "1e6", "1.5m", "10 m", "_1", "1__0", "m", "10mm"]
)
def test_parse_shape_says_what_is_accepted(text):
    with pytest.raises(ValueError, match=r"expected 'ml-1m' or a number of ratings such as '500k', '10m'"):
        parse_shape(text)


def test_a_shape_names_every_problem():
    with pytest.raises(
        ValueError, match=r"movies is 0, at least 1 needed; seed is -1.*; 2 rows are too few for 3"
    ):
        SyntheticShape(rows=2, users=3, movies=0, seed=-1)
    with pytest.raises(ValueError, match="7 rows are more than 2 users x 3 movies"):
        SyntheticShape(rows=7, users=2, movies=3)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.floats(0, 1), st.integers(0, 2**40))
def test_any_shape_is_met_exactly(users, movies, density, seed):
    rows = users + round(density * (users * movies - users))
    with tempfile.TemporaryDirectory() as folder:
        generate(SyntheticShape(rows, users, movies, seed), Path(folder))
        table = ratings_of(Path(folder))
        known = {int(record[0]) for record in records_of(Path(folder), "movies.dat")}
    assert len(table) == rows == len(np.unique(table[:, :2], axis=0))
    assert np.array_equal(np.unique(table[:, 0]), np.arange(1, users + 1))
    assert len(known) == movies
    assert known.issuperset(table[:, 1].tolist())


@given(
    st.lists(st.floats(0.01, 100), min_size=1, max_size=50),
    st.integers(0, 30),
    st.floats(0, 1),
)
def test_apportion_gives_out_everything_and_nobody_too_much(weights, most, fullness):
    total = round(fullness * most * len(weights))
    shares = synthetic_world._apportion(total, np.array(weights), most)
    assert shares.sum() == total
    assert shares.min() >= 0
    assert shares.max() <= most


# --- format and statistics


def test_files_have_the_format_of_movielens_1m(ml_1m):
    patterns = {
        "users.dat": rb"\d+::[FM]::(1|18|25|35|45|50|56)::(1?\d|20)::\d{5}(-\d{4})?",
        "movies.dat": rb"\d+::[^:].* \((19|20)\d\d\)::[A-Z][A-Za-z'-]+(\|[A-Z][A-Za-z'-]+){0,3}",
        "ratings.dat": rb"\d+::\d+::[1-5]::(9|10)\d{8}",
    }
    for name, pattern in patterns.items():
        assert re.fullmatch(rb"(?:(?:%s)\n)+" % pattern, (ml_1m / name).read_bytes()), name


def test_users_and_movies_are_varied(ml_1m):
    movies, users = records_of(ml_1m, "movies.dat"), records_of(ml_1m, "users.dat")
    assert all(len(movie) == 3 for movie in movies)
    assert 100 < sum(not movie[1].isascii() for movie in movies) < 1000
    assert {genre for movie in movies for genre in movie[2].split("|")} == set(synthetic_world.GENRES)
    assert [int(user[0]) for user in users] == list(range(1, 6041))
    assert {int(user[3]) for user in users} == set(range(21))
    zips = [user[4] for user in users]
    assert any(z.startswith("0") for z in zips)
    assert 20 < sum("-" in z for z in zips) < 150
    assert 3000 < len(set(zips)) < 5000


def test_counts_and_tails_are_those_of_movielens_1m(ratings):
    user, movie, rating, _ = ratings.T
    assert len(ratings) == 1_000_209
    assert np.all(np.diff(np.sort(user * 10_000 + movie)) > 0)
    assert np.all(np.diff(user) >= 0)
    shares = np.bincount(rating, minlength=6)[1:] / len(rating)
    assert shares == pytest.approx(synthetic_world.SHARES, abs=0.01)
    assert rating.mean() == pytest.approx(3.58, abs=0.03)
    per_user, per_movie = np.bincount(user)[1:], np.bincount(movie)
    assert 20 <= per_user.min() <= 25
    assert 1900 < per_user.max() < 2400
    assert np.median(per_user) == pytest.approx(96, abs=5)
    assert per_movie.max() == pytest.approx(3400, abs=200)
    assert 3600 < np.count_nonzero(per_movie) < 3883


def test_time_splits_leave_known_users_and_ties(ratings):
    user, time_s = ratings[:, 0], ratings[:, 3]
    assert time_s.min() >= synthetic_world.OPENS
    assert time_s.max() <= synthetic_world.CLOSES
    by_time = np.lexsort((time_s, user))
    same_user = np.diff(user) == 0
    assert 0.3 < np.mean(np.diff(time_s[by_time])[same_user] == 0) < 0.7
    assert 0.4 < np.mean(np.diff(time_s)[same_user] >= 0) < 0.6  # file order tells nothing about time
    late = time_s >= np.quantile(time_s, 0.8)
    assert 0.3 < np.isin(user[late], user[~late]).mean() < 0.7


def bias_rmse(table, holdout):
    """Return the RMSE on ``holdout`` of the mean, and of mean + user bias + movie bias, fitted elsewhere."""
    user, movie, rating = table[:, 0], table[:, 1], table[:, 2]
    mean = rating[~holdout].mean()
    biases = np.zeros(user.max() + 1), np.zeros(movie.max() + 1)
    for _ in range(6):
        for mine, key, other, other_key in ((1, movie, 0, user), (0, user, 1, movie)):
            rest = (rating - mean - biases[other][other_key])[~holdout]
            counts = np.bincount(key[~holdout], minlength=len(biases[mine]))
            biases[mine][:] = np.bincount(key[~holdout], rest, len(biases[mine])) / (counts + 4)
    predicted = mean + biases[0][user] + biases[1][movie]
    return [np.sqrt(np.mean((rating - guess)[holdout] ** 2)) for guess in (mean, predicted)]


def test_biases_predict_much_better_than_the_mean(ratings):
    of_mean, of_biases = bias_rmse(ratings, np.random.default_rng(0).random(len(ratings)) < 0.1)
    assert of_mean == pytest.approx(1.12, abs=0.02)
    assert of_biases == pytest.approx(0.91, abs=0.02)


def test_genres_and_gender_matter_beyond_the_biases(ml_1m, ratings):
    user, movie, rating, _ = ratings.T
    women = np.array([False] + [record[1] == "F" for record in records_of(ml_1m, "users.dat")])
    genres = {int(record[0]): record[2].split("|") for record in records_of(ml_1m, "movies.dat")}
    movie_mean = np.bincount(movie, rating) / np.maximum(1, np.bincount(movie))
    surprise = rating - movie_mean[movie]
    gaps = []
    for genre in synthetic_world.GENRES:
        has = np.array([genre in genres.get(number, ()) for number in range(movie.max() + 1)])[movie]
        gaps.append(surprise[has & women[user]].mean() - surprise[has & ~women[user]].mean())
    assert np.std(gaps) > 0.05  # its standard error is below 0.02 for all but the rarest genres


# --- the same bytes, and nothing half-done


def test_same_shape_and_seed_same_bytes_another_seed_others(tmp_path):
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        generate(parse_shape("3k", seed), tmp_path / name)
    a, b, c = (files_of(tmp_path / name) for name in "abc")
    assert a == b
    assert set(a) == {"users.dat", "movies.dat", "ratings.dat", "synthetic.json"}
    assert all(a[name] != c[name] for name in a)


def test_many_chunks_join_without_a_gap_and_report_progress(tmp_path, monkeypatch):
    monkeypatch.setattr(synthetic_world, "CHUNK_ROWS", 256)
    written = []
    generate(SMALL, tmp_path / "out", written.append)
    assert len(written) > 8
    assert written == sorted(set(written))
    assert written[-1] == 3000 == len(ratings_of(tmp_path / "out"))


def test_a_complete_output_is_kept_and_parents_are_made(tmp_path):
    out = tmp_path / "deep" / "out"
    generate(SMALL, out)
    before = (out / "ratings.dat").stat()
    generate(SMALL, out, lambda rows: pytest.fail("nothing should be written"))
    assert (out / "ratings.dat").stat() == before
    assert is_complete(SMALL, out)
    assert not is_complete(parse_shape("3k", seed=6), out)
    assert [path.name for path in out.parent.iterdir()] == ["out"]


def test_another_shape_is_refused_and_can_be_replaced(tmp_path):
    out = tmp_path / "out"
    generate(SMALL, out)
    other = parse_shape("4k", seed=5)
    with pytest.raises(
        SourceError, match=r"with rows 3000, users 18, movies 510, not rows 4000, .*--overwrite"
    ):
        generate(other, out)
    assert is_complete(SMALL, out)
    generate(other, out, overwrite=True)
    assert is_complete(other, out)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_altered_files_are_not_taken_for_whole(tmp_path):
    generate(SMALL, tmp_path / "out")
    with (tmp_path / "out" / "ratings.dat").open("ab") as file:
        file.truncate(100)
    assert not is_complete(SMALL, tmp_path / "out")
    with pytest.raises(SourceError, match=r"do not have the sizes that synthetic\.json states"):
        generate(SMALL, tmp_path / "out")
    generate(SMALL, tmp_path / "out", overwrite=True)
    assert is_complete(SMALL, tmp_path / "out")


@pytest.mark.parametrize("marker", [None, "{", "[]", '{"format": "other"}'])
def test_files_of_someone_else_are_never_replaced(tmp_path, marker):
    (tmp_path / "ratings.dat").write_text("mine")
    if marker is not None:
        (tmp_path / "synthetic.json").write_text(marker)
    with pytest.raises(SourceError, match=r"holds ratings\.dat.*did not write and will not replace"):
        generate(SMALL, tmp_path, overwrite=True)
    assert (tmp_path / "ratings.dat").read_text() == "mine"


def test_notes_beside_an_output_keep_it_from_being_replaced(tmp_path):
    generate(SMALL, tmp_path / "out")
    (tmp_path / "out" / "notes.txt").touch()
    with pytest.raises(SourceError, match=r"holds notes\.txt, which"):
        generate(SMALL, tmp_path / "out", overwrite=True)


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "out").touch()
    with pytest.raises(SourceError, match="is a file"):
        generate(SMALL, tmp_path / "out")


def test_an_interrupted_run_removes_what_it_wrote(tmp_path):
    def interrupt(rows):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        generate(SMALL, tmp_path / "out", interrupt)
    assert list(tmp_path.iterdir()) == []


def test_a_killed_run_leaves_nothing_that_looks_whole(tmp_path):
    out, partial = tmp_path / "out", tmp_path / ".out.partial"
    call = f"from pipelines.generate_command import command; command(['50m', {str(out)!r}])"
    with subprocess.Popen([sys.executable, "-c", call], cwd=ROOT) as child:
        give_up = time.monotonic() + 60
        while not (
            (partial / "ratings.dat").exists() and (partial / "ratings.dat").stat().st_size > 1_000_000
        ):
            assert child.poll() is None
            assert time.monotonic() < give_up
            time.sleep(0.02)
        with pytest.raises(StoreBusy, match="another process is generating here"):
            generate(SMALL, out)
        os.kill(child.pid, signal.SIGKILL)
    assert child.returncode == -signal.SIGKILL
    assert [path.name for path in tmp_path.iterdir()] == [".out.partial"]
    assert not (partial / "synthetic.json").exists()
    generate(SMALL, out)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


# --- the command


def run(*args):
    return CliRunner().invoke(command, [str(arg) for arg in args])


def test_command_writes_then_reuses(tmp_path):
    first, second = run("3k", tmp_path / "out", "--seed", 5), run("3k", tmp_path / "out", "--seed", 5)
    assert (first.exit_code, second.exit_code) == (0, 0)
    assert "wrote 3,000 ratings by 18 users of 510 movies (0.1 MB) in" in first.stdout
    assert second.stdout.endswith("were already there\n")
    assert first.stderr == ""  # no bar where there is no terminal
    assert is_complete(SMALL, tmp_path / "out")


def test_command_explains_a_wrong_shape_and_touches_nothing(tmp_path):
    error = run("5x", tmp_path / "out").exception
    assert isinstance(error, SpecError)
    assert "unknown shape '5x': expected 'ml-1m' or a number" in str(error)
    assert list(tmp_path.iterdir()) == []


def test_command_overwrites_only_when_told(tmp_path):
    run("3k", tmp_path / "out")
    assert isinstance(run("4k", tmp_path / "out").exception, SourceError)
    assert run("4k", tmp_path / "out", "--overwrite").exit_code == 0
    assert is_complete(parse_shape("4k"), tmp_path / "out")


def test_command_reports_a_disk_that_refuses(tmp_path):
    (tmp_path / "file").touch()
    error = run("3k", tmp_path / "file" / "out").exception
    assert isinstance(error, SourceError)
    assert "cannot write the files" in str(error)


def test_help_teaches():
    text = run("--help").stdout
    assert "1,000,209 ratings" in text
    assert "slotstore generate 10m fake-10m --seed 7" in text
