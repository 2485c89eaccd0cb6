"""MovieLens-shaped files of any size, with structure a model can learn.

``generate(parse_shape("10m"), folder)`` writes ``users.dat``, ``movies.dat`` and ``ratings.dat`` in the
format of MovieLens-1M, and ``synthetic.json``, which says that the other three are complete. Every rating
comes from one model::

    liking = user bias + movie bias + taste . movie + noise                mean 0, variance 1
    taste  = personal (6) @ loadings (6, 18) + gender, age and occupation effects (18 each)
    movie  = its genres, scaled to length 1, + a character of its own      (18)
    rating = 1 + how many of CUTS lie below the liking

so a biased matrix factorization beats the mean, and a model that knows genres and demographics can use
them. Popularity, activity, demographics and rating shares follow MovieLens-1M.

Users are drawn in chunks, each from its own seed: memory stays bounded at any size, and one shape gives
the same bytes on every run.
"""

import fcntl
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import click
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from featurestore.errors import SourceError, SpecError, StoreBusy

__all__ = ["SyntheticShape", "command", "generate", "is_complete", "parse_shape"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

GENERATOR_VERSION = 1  # raise it with every change that alters a byte of the output
CHUNK_ROWS = 1 << 17  # ratings drawn at a time; part of what the bytes depend on
MARKER = "synthetic.json"
DATA_FILES = ("users.dat", "movies.dat", "ratings.dat")

# What follows was measured on MovieLens-1M.
SHARES = np.array([0.056, 0.108, 0.261, 0.349, 0.226])  # of the ratings 1..5
CUTS = np.array([-1.5893, -0.9782, -0.1891, 0.7521])  # standard normal quantiles of the summed SHARES
GENRES = (
    *("Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama", "Fantasy"),
    *("Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western"),
)
GENRE_WEIGHTS = np.array([50, 28, 11, 25, 120, 21, 13, 160, 7, 4, 34, 11, 11, 47, 28, 49, 14, 7])
GENRES_PER_MOVIE = np.array([0.522, 0.341, 0.108, 0.029])  # of the movies with 1..4 genres
GENDERS = ("F", "M")
AGES = (1, 18, 25, 35, 45, 50, 56)  # codes: the lowest age of each group
DEMOGRAPHICS = (  # shares of the genders, the ages and the occupations 0..20
    np.array([0.28, 0.72]),
    np.array([0.04, 0.18, 0.34, 0.20, 0.09, 0.08, 0.07]),
    np.array([118, 87, 44, 29, 126, 19, 39, 112, 3, 15, 32, 21, 64, 24, 50, 24, 40, 83, 12, 12, 46]) / 1000,
)
OPENS, CLOSES = 956_700_000, 1_046_450_000  # unix seconds: 2000-04-25 and 2003-02-28

# Parts of the liking's variance, chosen so that biases reach an RMSE of about 0.90 and factors 0.85.
USER_VARIANCE, MOVIE_VARIANCE, TASTE_VARIANCE = 0.15, 0.22, 0.14
FACTORS = 6


@dataclass(frozen=True)
class SyntheticShape:
    """How much to generate: ``rows`` ratings by ``users`` users of ``movies`` movies, drawn from ``seed``.

    Raises:
        ValueError: counts that no set of distinct (user, movie) pairs can have; it names every problem.
    """

    rows: int
    users: int
    movies: int
    seed: int = 0

    def __post_init__(self) -> None:
        lowest = {"rows": 1, "users": 1, "movies": 1, "seed": 0}
        given = asdict(self)
        problems = [f"{k} is {given[k]}, at least {n} needed" for k, n in lowest.items() if given[k] < n]
        if self.rows < self.users:
            problems.append(f"{self.rows} rows are too few for {self.users} users with a rating each")
        if self.rows > self.users * self.movies:
            problems.append(f"{self.rows} rows are more than {self.users} users x {self.movies} movies")
        if problems:
            raise ValueError("; ".join(problems))


def parse_shape(text: str, seed: int = 0) -> SyntheticShape:
    """Read ``"ml-1m"`` or a number of ratings (``"500k"``, ``"10m"``, ``"1b"``, ``"10_000_000"``).

    A number of ratings gets one user for every 166 and 10,681 movies at ten million, as MovieLens has.

    Raises:
        ValueError: anything else; it says what is accepted.
    """
    if text == "ml-1m":
        return SyntheticShape(rows=1_000_209, users=6_040, movies=3_883, seed=seed)
    match = re.fullmatch(r"(\d+(?:_\d+)*)([kmb]?)", text.strip().lower())
    if not match or not int(match[1]):
        expected = "'ml-1m' or a number of ratings such as '500k', '10m', '1b' or '10_000_000'"
        raise ValueError(f"unknown shape {text!r}: expected {expected}")
    rows = int(match[1]) * {"": 1, "k": 10**3, "m": 10**6, "b": 10**9}[match[2]]
    movies = max(300, round(10_681 * (rows / 1e7) ** 0.375))
    return SyntheticShape(rows=rows, users=max(1, round(rows / 166)), movies=movies, seed=seed)


def generate(
    shape: SyntheticShape,
    out_dir: Path,
    progress: Callable[[int], None] | None = None,
    *,
    overwrite: bool = False,
) -> None:
    """Write the files of ``shape`` into ``out_dir``, or keep those already there.

    The folder appears at once when everything is written; a killed run leaves only the hidden
    ``.<name>.partial`` beside it, which the next run clears. ``progress`` is called with the number of
    ratings written so far. ``overwrite`` replaces an earlier output, and nothing else.

    Raises:
        SourceError: ``out_dir`` holds another shape, altered files or files of someone else.
        StoreBusy: another process is generating into ``out_dir``.
        OSError: the disk refused.
    """
    out_dir = out_dir.resolve()
    if not overwrite and is_complete(shape, out_dir):
        return
    _refuse_to_replace(shape, out_dir, overwrite=overwrite)
    with _staged(out_dir) as folder:
        for rows in _write_files(shape, folder):
            if progress is not None:
                progress(rows)
        sizes = {name: (folder / name).stat().st_size for name in DATA_FILES}
        (folder / MARKER).write_text(json.dumps(_identity(shape) | {"bytes": sizes}, indent=2) + "\n")


def is_complete(shape: SyntheticShape, out_dir: Path) -> bool:
    """Say whether ``out_dir`` holds the whole output of ``shape``, by its marker and the files' sizes."""
    marker = _read_marker(out_dir)
    sizes = {path.name: path.stat().st_size for name in DATA_FILES if (path := out_dir / name).is_file()}
    return marker == _identity(shape) | {"bytes": sizes} and len(sizes) == len(DATA_FILES)


# --- the folder -----------------------------------------------------------------------------------------


def _identity(shape: SyntheticShape) -> dict[str, object]:
    """Return what the bytes depend on, as the marker states it."""
    return {"format": "slotstore-synthetic", "generator": GENERATOR_VERSION} | asdict(shape)


def _read_marker(folder: Path) -> dict[str, object] | None:
    """Return the marker of ``folder``, or None where there is no readable one."""
    try:
        marker = json.loads((folder / MARKER).read_text())
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    return marker if isinstance(marker, dict) and marker.get("format") == "slotstore-synthetic" else None


def _refuse_to_replace(shape: SyntheticShape, out_dir: Path, *, overwrite: bool) -> None:
    """Raise SourceError unless ``out_dir`` is free, or is an output of ours that may be replaced."""
    if not out_dir.exists():
        return
    if not out_dir.is_dir():
        raise SourceError(f"{out_dir}: is a file; name a folder that is new, empty or an earlier output")
    names = {path.name for path in out_dir.iterdir()}
    marker = _read_marker(out_dir)
    foreign = sorted(names - {MARKER, *DATA_FILES} if marker else names)
    if foreign:
        some = ", ".join(foreign[:3]) + (", ..." if len(foreign) > 3 else "")
        remedy = "which `slotstore generate` did not write and will not replace; name another folder"
        raise SourceError(f"{out_dir}: holds {some}, {remedy}")
    if marker and not overwrite:
        raise SourceError(_describe_other(marker, shape, out_dir))


def _describe_other(marker: Mapping[str, object], shape: SyntheticShape, out_dir: Path) -> str:
    """Say how the output in ``out_dir`` differs from the one of ``shape``, and what to do."""
    remedy = "name another folder, or replace it with --overwrite (overwrite=True)"
    wanted = _identity(shape)
    differing = [key for key in wanted if marker.get(key) != wanted[key]]
    if not differing:
        return f"{out_dir}: its files do not have the sizes that {MARKER} states; {remedy}"
    there = ", ".join(f"{key} {marker.get(key)}" for key in differing)
    asked = ", ".join(f"{key} {wanted[key]}" for key in differing)
    return f"{out_dir}: holds a synthetic set with {there}, not {asked}; {remedy}"


@contextmanager
def _staged(out_dir: Path) -> Iterator[Path]:
    """Yield a hidden sibling folder that takes the place of ``out_dir`` if the block succeeds."""
    staging = out_dir.with_name(f".{out_dir.name}.partial")
    staging.mkdir(parents=True, exist_ok=True)
    with _locked(staging, out_dir):
        for left_over in staging.iterdir():  # of a killed run; the folder itself carries our lock
            left_over.unlink()
        try:
            yield staging
            _publish(staging, out_dir)
        except BaseException:
            shutil.rmtree(staging, ignore_errors=True)
            raise


@contextmanager
def _locked(staging: Path, out_dir: Path) -> Iterator[None]:
    """Hold an exclusive lock on ``staging``; the system drops it when the process ends, however it ends."""
    handle = os.open(staging, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            remedy = "wait for it or name another folder"
            raise StoreBusy(f"{out_dir}: another process is generating here; {remedy}") from error
        yield
    finally:
        os.close(handle)


def _publish(staging: Path, out_dir: Path) -> None:
    """Rename ``staging`` to ``out_dir``, moving an earlier output out of the way first."""
    replaced = out_dir.with_name(f".{out_dir.name}.replaced")
    shutil.rmtree(replaced, ignore_errors=True)  # of a run killed between the lines below
    if out_dir.exists():
        out_dir.rename(replaced)
    staging.rename(out_dir)
    shutil.rmtree(replaced, ignore_errors=True)


def _write_files(shape: SyntheticShape, folder: Path) -> Iterator[int]:
    """Write the three ``.dat`` files, yielding the number of ratings so far after each chunk.

    Memory is bounded by the chunk, the movies and some 50 bytes a user.
    """
    world = _draw_world(_rng(shape, "world"), shape)
    (folder / "movies.dat").write_bytes(_movie_lines(_rng(shape, "titles"), world))
    first_id, rows = 1, 0
    with (folder / "users.dat").open("wb") as users, (folder / "ratings.dat").open("wb") as ratings:
        for number, counts in enumerate(_user_chunks(_ratings_per_user(_rng(shape, "activity"), shape))):
            rng = _rng(shape, "chunk", number)
            people = _draw_people(rng, first_id, counts, world)
            users.write(_user_lines(rng, people))
            ratings.write(_rating_lines(rng, people, world))
            first_id += len(counts)
            rows += int(counts.sum())
            yield rows


def _rng(shape: SyntheticShape, purpose: str, number: int = 0) -> np.random.Generator:
    """Return a generator of its own for one purpose and chunk, so that neither shifts another's numbers."""
    key = ("world", "titles", "activity", "chunk").index(purpose)
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(shape.seed, spawn_key=(key, number))))


# --- how active users are -------------------------------------------------------------------------------


def _ratings_per_user(rng: np.random.Generator, shape: SyntheticShape) -> Ints:
    """Return ``(users,)`` numbers of ratings: log-normal above a floor of 20, adding up to ``rows``.

    Nobody rates more than 60% of the movies, unless the shape is so dense that the mean does.
    """
    floor = max(1, min(20, shape.rows // (2 * shape.users)))
    ceiling = min(shape.movies, max(-(-shape.rows // shape.users), shape.movies * 6 // 10))
    z = rng.standard_normal(shape.users)
    z[z > 2.95] *= -1  # the far tail would hold users who had seen everything; mirrored, it is harmless
    return floor + _apportion(shape.rows - floor * shape.users, np.exp(1.17 * z), ceiling - floor)


def _apportion(total: int, weights: Floats, most: int) -> Ints:
    """Split ``total`` in whole numbers, proportionally to ``weights``, none above ``most``.

    Needs ``0 <= total <= most * len(weights)``.
    """
    low, high = 0.0, (total + 1) / float(np.min(weights))
    for _ in range(100):  # bisect the scale: enough halvings to reach neighbouring floats
        scale = (low + high) / 2
        low, high = (scale, high) if _shares(scale, weights, most).sum() <= total else (low, scale)
    shares = _shares(low, weights, most)
    shares[np.flatnonzero(shares < most)[: total - shares.sum()]] += 1
    assert shares.sum() == total
    return shares


def _shares(scale: float, weights: Floats, most: int) -> Ints:
    return np.minimum(scale * weights, most).astype(np.int64)


def _user_chunks(counts: Ints) -> list[Ints]:
    """Cut ``(users,)`` counts into runs of whole users with about CHUNK_ROWS ratings each."""
    chunk_of_user = (np.cumsum(counts) - 1) // CHUNK_ROWS
    return np.split(counts, np.flatnonzero(np.diff(chunk_of_user)) + 1)


# --- movies and what there is to like about them --------------------------------------------------------


@dataclass(frozen=True)
class _World:
    """What all chunks share; M movies, G genres."""

    movie_ids: Ints  # (M,) ascending, with gaps as the real ones
    genres: npt.NDArray[np.bool_]  # (M, G)
    popularity: Floats  # (M,) probabilities
    movie_bias: Floats  # (M,)
    movie_vectors: Floats  # (M, G)
    loadings: Floats  # (FACTORS, G)
    effects: tuple[Floats, ...]  # of the genders (2, G), ages (7, G) and occupations (21, G)


def _draw_world(rng: np.random.Generator, shape: SyntheticShape) -> _World:
    movies = shape.movies
    ids = 1 + np.sort(rng.choice(movies * 3952 // 3883, movies, replace=False))
    genres = _draw_genres(rng, movies)
    popularity = _draw_popularity(rng, movies)
    # Of the most popular, active users soon have no more to rate: a movie's share of all ratings is about
    # the chance that a user of twice the mean activity draws it at all.
    share = -np.expm1(-popularity * 2 * shape.rows / shape.users)
    share /= share.sum()
    bias = _draw_movie_bias(rng, popularity, share)
    vectors = genres / np.sqrt(genres.sum(axis=1, keepdims=True)) + rng.normal(0, 0.15, genres.shape)
    loadings, effects = _draw_tastes(rng, vectors, share)
    return _World(ids, genres, popularity, bias, vectors, loadings, effects)


def _draw_genres(rng: np.random.Generator, movies: int) -> npt.NDArray[np.bool_]:
    """Return ``(movies, G)``: one to four distinct genres each, the common ones more often."""
    # Adding Gumbel noise to log weights and ranking draws without replacement.
    keys = np.log(GENRE_WEIGHTS) + rng.gumbel(size=(movies, len(GENRES)))
    rank = np.argsort(np.argsort(-keys, axis=1), axis=1)
    wanted = 1 + rng.choice(len(GENRES_PER_MOVIE), movies, p=GENRES_PER_MOVIE)
    return np.asarray(rank < wanted[:, None])


def _draw_popularity(rng: np.random.Generator, movies: int) -> Floats:
    """Return ``(movies,)`` probabilities in random order: Zipf's law with a falling tail.

    The constants were fitted to the rating counts of MovieLens-1M at ranks 1, 10, 926, 1853 and 2780; the
    eighth power makes a cliff at the end, so that some movies get no rating at all.
    """
    rank = rng.permutation(movies) + 1
    depth = rank / movies
    weights = (rank + 2) ** -0.4 * np.exp(-4 * depth - 4 * depth**8)
    return np.asarray(weights / weights.sum())


def _draw_movie_bias(rng: np.random.Generator, popularity: Floats, share: Floats) -> Floats:
    """Return ``(movies,)`` biases, mean 0 and MOVIE_VARIANCE over ratings; what many see, they like more.

    ``share`` is each movie's share of the ratings.
    """
    bias = 0.2 * np.log(popularity) + rng.normal(0, 0.5, len(popularity))
    bias -= share @ bias
    variance = float(share @ bias**2)
    return np.asarray(bias * np.sqrt(MOVIE_VARIANCE / variance)) if variance else bias  # 0: a single movie


def _draw_tastes(
    rng: np.random.Generator, vectors: Floats, share: Floats
) -> tuple[Floats, tuple[Floats, ...]]:
    """Return the loadings and the demographic effects, scaled so that taste . movie has TASTE_VARIANCE."""
    loadings = rng.normal(size=(FACTORS, len(GENRES)))
    raw = [rng.normal(size=(len(shares), len(GENRES))) for shares in DEMOGRAPHICS]
    # An effect that all users have would be a movie bias.
    effects = [effect - shares @ effect for effect, shares in zip(raw, DEMOGRAPHICS, strict=True)]
    covariance = loadings.T @ loadings
    for effect, shares in zip(effects, DEMOGRAPHICS, strict=True):
        covariance += (effect.T * shares) @ effect
    moment = (vectors.T * share) @ vectors
    scale = np.sqrt(TASTE_VARIANCE / (covariance * moment).sum())
    return loadings * scale, tuple(effect * scale for effect in effects)


# --- users and their ratings ----------------------------------------------------------------------------


@dataclass(frozen=True)
class _People:
    """The users of one chunk; U users."""

    ids: Ints  # (U,)
    counts: Ints  # (U,) ratings to draw
    traits: tuple[Ints, ...]  # gender, age and occupation, (U,) positions in DEMOGRAPHICS
    bias: Floats  # (U,)
    taste: Floats  # (U, G)


def _draw_people(rng: np.random.Generator, first_id: int, counts: Ints, world: _World) -> _People:
    users = len(counts)
    traits = tuple(rng.choice(len(shares), users, p=shares) for shares in DEMOGRAPHICS)
    taste = rng.standard_normal((users, FACTORS)) @ world.loadings
    for trait, effect in zip(traits, world.effects, strict=True):
        taste += effect[trait]
    bias = rng.normal(0, np.sqrt(USER_VARIANCE), users)
    return _People(first_id + np.arange(users), counts, traits, bias, taste)


def _draw_pairs(rng: np.random.Generator, counts: Ints, popularity: Floats) -> tuple[Ints, Ints]:
    """Return user and movie positions, ``(rows,)`` each, sorted: ``counts[u]`` distinct movies of user u."""
    movies = len(popularity)
    cumulative = np.append(np.cumsum(popularity)[:-1], 1.0)
    codes = np.empty(0, np.int64)  # user * movies + movie, sorted and distinct
    for _ in range(6):  # draw what is missing, drop the repeated
        users = np.repeat(np.arange(len(counts)), _missing(codes, counts, movies))
        drawn = users * movies + np.searchsorted(cumulative, rng.random(len(users)), side="right")
        codes = np.sort(np.concatenate([codes, drawn]), kind="stable")  # stable merges what is sorted
        codes = codes[np.append(True, codes[1:] != codes[:-1])]
    codes = np.sort(np.concatenate([codes, *_draw_rest(rng, codes, counts, popularity)]), kind="stable")
    users = codes // movies
    return users, codes - users * movies


def _missing(codes: Ints, counts: Ints, movies: int) -> Ints:
    return counts - np.bincount(codes // movies, minlength=len(counts))


def _draw_rest(rng: np.random.Generator, codes: Ints, counts: Ints, popularity: Floats) -> Iterator[Ints]:
    """Yield the codes still missing: of few users, but those whose draws mostly repeat what they rated."""
    movies = len(popularity)
    missing = _missing(codes, counts, movies)
    for user in np.flatnonzero(missing):
        start, stop = np.searchsorted(codes, (user * movies, (user + 1) * movies))
        arrival = rng.standard_exponential(movies) / popularity  # the first n are a draw without replacement
        arrival[codes[start:stop] - user * movies] = np.inf
        yield user * movies + np.argpartition(arrival, missing[user] - 1)[: missing[user]]


def _draw_ratings(
    rng: np.random.Generator, people: _People, world: _World, users: Ints, movies: Ints
) -> Ints:
    """Return ``(rows,)`` ratings 1..5 of the pairs, by the model at the top of this file."""
    liking = people.bias[users] + world.movie_bias[movies]
    liking += np.einsum("ij,ij->i", people.taste[users], world.movie_vectors[movies])
    noise = 1 - USER_VARIANCE - MOVIE_VARIANCE - TASTE_VARIANCE
    liking += rng.normal(0, np.sqrt(noise), len(users))
    return 1 + np.searchsorted(CUTS, liking)


def _draw_times(rng: np.random.Generator, counts: Ints) -> Ints:
    """Return ``(rows,)`` unix seconds from OPENS to CLOSES, user by user, each user's in random order.

    Most users join early and rate in a few sittings, often several movies in the same second.
    """
    first = np.cumsum(counts) - counts
    gaps = _draw_gaps(rng, counts.sum())
    elapsed = np.cumsum(gaps)
    elapsed -= np.repeat(elapsed[first], counts)
    span = CLOSES - OPENS
    joined = (span * rng.beta(1.3, 9, len(counts))).astype(np.int64)
    # Who would go on for longer than there is time does the same in less.
    longest = (span - joined) * rng.uniform(0.5, 1, len(counts))
    squeeze = np.minimum(1.0, longest / np.maximum(1, elapsed[first + counts - 1]))
    times = OPENS + np.repeat(joined, counts) + (elapsed * np.repeat(squeeze, counts)).astype(np.int64)
    return np.asarray(times[_shuffle_within(rng, counts)])


def _draw_gaps(rng: np.random.Generator, rows: int) -> Ints:
    """Return ``(rows,)`` seconds since the rating before: mostly none, sometimes days."""
    gaps = rng.integers(5, 60, rows) * (rng.random(rows) < 0.45)
    pauses = np.flatnonzero(rng.random(rows) < 1 / 80)
    gaps[pauses] = 86_400 * rng.lognormal(np.log(7), 1.5, len(pauses))
    return gaps


def _shuffle_within(rng: np.random.Generator, counts: Ints) -> Ints:
    """Return ``(counts.sum(),)`` positions that shuffle each run of ``counts[i]`` rows in place."""
    runs = np.repeat(np.arange(len(counts)), counts)
    random_bits = 62 - CHUNK_ROWS.bit_length()  # a chunk has at most CHUNK_ROWS users
    return np.argsort(runs << random_bits | rng.integers(0, 1 << random_bits, len(runs)))


# --- text -----------------------------------------------------------------------------------------------

WORDS = (
    *("Autumn", "Bridge", "Candle", "Carnival", "Daughter", "Desert", "Dream", "Empire", "Garden", "Harbor"),
    *("Heart", "Hero", "Hunter", "Island", "Journey", "King", "Letter", "Lion", "Midnight", "Mirror", "Moon"),
    *("Mountain", "Night", "Ocean", "Promise", "Rain", "River", "Road", "Secret", "Shadow", "Silence", "Sky"),
    *("Smoke", "Soldier", "Song", "Star", "Storm", "Stranger", "Summer", "Sunday", "Thief", "Tiger", "Tower"),
    *("Train", "Voyage", "Wedding", "Winter", "Witness", "Wolf", "Zero"),
)
NAMES = (
    *("Alice", "Amélie", "Anna", "Björn", "Boris", "Carmen", "Chloé", "Clara", "David", "Emma", "Frank"),
    *("Günter", "Harry", "Ingrid", "Jane", "José", "Kate", "Léon", "Max", "Molly", "Niña", "Noël", "Oscar"),
    *("Peter", "Rosa", "Søren", "Tom", "Vera", "Walter", "Zoë"),
)
TITLES = (  # the real titles too have commas, colons, dots, quotes and brackets
    *("{a} {b}", "{a} of {b}", "{a}, The", "{a} and the {b}, The", "{a} {n}", "{a}: The {b} - Part {n}"),
    *("{name}", "{name}'s {a}", "Dr. {name} & the {a}", "{a} {b} ({name} e la {a})", 'All About "{a}"'),
)


def _movie_lines(rng: np.random.Generator, world: _World) -> bytes:
    """Return ``movies.dat``: ``MovieID::Title (Year)::Genre|Genre`` in latin-1."""
    movies = len(world.movie_ids)
    years = np.maximum(1919, 2000 - rng.exponential(13, movies).astype(np.int64))
    sizes = (len(TITLES), len(WORDS), len(WORDS), len(NAMES), 8)
    draws = rng.integers(0, sizes, (movies, len(sizes)))
    lines = []
    for number, year, (title, a, b, name, n), genres in zip(
        world.movie_ids.tolist(), years.tolist(), draws.tolist(), world.genres, strict=True
    ):
        text = TITLES[title].format(a=WORDS[a], b=WORDS[b], name=NAMES[name], n=n + 2)
        lines.append(f"{number}::{text} ({year})::{'|'.join(GENRES[g] for g in np.flatnonzero(genres))}\n")
    return "".join(lines).encode("latin-1")


def _user_lines(rng: np.random.Generator, people: _People) -> bytes:
    """Return this chunk of ``users.dat``: ``UserID::Gender::Age::Occupation::Zip``."""
    columns = [people.ids, *people.traits, *_draw_zips(rng, len(people.ids))]
    lines = [
        f"{user}::{GENDERS[gender]}::{AGES[age]}::{job}::{area:05d}{f'-{block:04d}' if block else ''}\n"
        for user, gender, age, job, area, block in zip(*(c.tolist() for c in columns), strict=True)
    ]
    return "".join(lines).encode("ascii")


def _draw_zips(rng: np.random.Generator, users: int) -> tuple[Ints, Ints]:
    """Return ``(users,)`` five-digit areas, some common, and four-digit blocks, 0 for the 99% without one."""
    rank = (8_000 * rng.random(users) ** 1.5).astype(np.int64)  # the lower, the more users live there
    areas = (rank * 60_013 + 98_107) % 100_000  # one to one, as 60,013 has no factor 2 or 5: scatters them
    blocks = rng.integers(1, 10_000, users) * (rng.random(users) < 0.011)
    return areas, blocks


def _rating_lines(rng: np.random.Generator, people: _People, world: _World) -> bytes:
    """Return this chunk of ``ratings.dat``: ``UserID::MovieID::Rating::Timestamp``, by user."""
    users, movies = _draw_pairs(rng, people.counts, world.popularity)
    ratings = _draw_ratings(rng, people, world, users, movies)
    times = _draw_times(rng, people.counts)
    return _join_lines(people.ids[users], world.movie_ids[movies], ratings, times)


def _join_lines(*columns: Ints) -> bytes:
    """Return the rows of ``columns`` as ASCII lines, fields parted by ``::``."""
    rows = pc.binary_join_element_wise(*(pc.cast(pa.array(column), pa.string()) for column in columns), "::")
    all_rows = pa.ListArray.from_arrays(pa.array([0, len(rows)], pa.int32()), rows)  # one list of them all
    return bytes(pc.binary_join(all_rows, "\n")[0].as_buffer()) + b"\n"


# --- the command ----------------------------------------------------------------------------------------


@click.command(
    "generate",
    short_help="Write MovieLens-shaped files of any size.",
    epilog="\b\nExamples:\n  slotstore generate ml-1m fake-1m\n  slotstore generate 10m fake-10m --seed 7",
)
@click.argument("shape")
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of every draw.")
@click.option("--overwrite", is_flag=True, help="Replace an earlier output in OUT, whatever its shape.")
def command(shape: str, out: Path, *, seed: int, overwrite: bool) -> None:
    """Write MovieLens-shaped ratings, users and movies into the folder OUT.

    SHAPE is "ml-1m" (1,000,209 ratings, 6,040 users, 3,883 movies) or a number of ratings: 500k, 10m, 1b,
    10_000_000. The files have the `.dat` format of MovieLens-1M, its long tails and a structure a model
    can learn. The same SHAPE and seed give the same bytes; if OUT holds them already, they are kept.
    """
    wanted = _parse_or_explain(shape, seed)
    started = time.perf_counter()
    try:
        reused = not overwrite and is_complete(wanted, out)
        with _progress_bar(wanted.rows) as report:
            generate(wanted, out, report, overwrite=overwrite)
    except OSError as error:
        raise SourceError(f"{out}: cannot write the files: {error}; nothing was left there") from error
    click.echo(_summary(wanted, out, None if reused else time.perf_counter() - started))


def _parse_or_explain(text: str, seed: int) -> SyntheticShape:
    try:
        return parse_shape(text, seed)
    except ValueError as error:
        raise SpecError("slotstore generate", [str(error)]) from error


@contextmanager
def _progress_bar(rows: int) -> Iterator[Callable[[int], None]]:
    """Show a bar on stderr, if that is a terminal; yield what moves it."""
    console = Console(stderr=True)
    columns = (TextColumn("ratings"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("ratings", total=rows)
        yield lambda written: bar.update(task, completed=written)


def _summary(shape: SyntheticShape, out: Path, seconds: float | None) -> str:
    what = f"{shape.rows:,} ratings by {shape.users:,} users of {shape.movies:,} movies"
    if seconds is None:
        return f"{out}: {what} were already there"
    megabytes = sum((out / name).stat().st_size for name in DATA_FILES) / 1e6
    return f"{out}: wrote {what} ({megabytes:,.1f} MB) in {seconds:.1f} s"
