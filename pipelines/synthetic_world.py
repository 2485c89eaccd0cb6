"""The made-up people, movies and tastes that synthetic ratings come from, as arrays."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipelines.synthetic_shape import SyntheticShape

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

CHUNK_ROWS = 1 << 17  # ratings drawn at a time; part of what the bytes depend on

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


# --- how active users are -------------------------------------------------------------------------------


def ratings_per_user(rng: np.random.Generator, shape: SyntheticShape) -> Ints:
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


def user_chunks(counts: Ints) -> list[Ints]:
    """Cut ``(users,)`` counts into runs of whole users with about CHUNK_ROWS ratings each."""
    chunk_of_user = (np.cumsum(counts) - 1) // CHUNK_ROWS
    return np.split(counts, np.flatnonzero(np.diff(chunk_of_user)) + 1)


# --- movies and what there is to like about them --------------------------------------------------------


@dataclass(frozen=True)
class World:
    """What all chunks share; M movies, G genres."""

    movie_ids: Ints  # (M,) ascending, with gaps as the real ones
    genres: npt.NDArray[np.bool_]  # (M, G)
    popularity: Floats  # (M,) probabilities
    movie_bias: Floats  # (M,)
    movie_vectors: Floats  # (M, G)
    loadings: Floats  # (FACTORS, G)
    effects: tuple[Floats, ...]  # of the genders (2, G), ages (7, G) and occupations (21, G)


def draw_world(rng: np.random.Generator, shape: SyntheticShape) -> World:
    """Draw the movies of a shape and what there is to like about them."""
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
    return World(ids, genres, popularity, bias, vectors, loadings, effects)


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
class People:
    """The users of one chunk; U users."""

    ids: Ints  # (U,)
    counts: Ints  # (U,) ratings to draw
    traits: tuple[Ints, ...]  # gender, age and occupation, (U,) positions in DEMOGRAPHICS
    bias: Floats  # (U,)
    taste: Floats  # (U, G)


def draw_people(rng: np.random.Generator, first_id: int, counts: Ints, world: World) -> People:
    """Draw the users numbered from ``first_id``, who will give ``counts`` (U,) ratings."""
    users = len(counts)
    traits = tuple(rng.choice(len(shares), users, p=shares) for shares in DEMOGRAPHICS)
    taste = rng.standard_normal((users, FACTORS)) @ world.loadings
    for trait, effect in zip(traits, world.effects, strict=True):
        taste += effect[trait]
    bias = rng.normal(0, np.sqrt(USER_VARIANCE), users)
    return People(first_id + np.arange(users), counts, traits, bias, taste)


def draw_pairs(rng: np.random.Generator, counts: Ints, popularity: Floats) -> tuple[Ints, Ints]:
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


def draw_ratings(rng: np.random.Generator, people: People, world: World, users: Ints, movies: Ints) -> Ints:
    """Return ``(rows,)`` ratings 1..5 of the pairs, by the model at the top of this file."""
    liking = people.bias[users] + world.movie_bias[movies]
    liking += np.einsum("ij,ij->i", people.taste[users], world.movie_vectors[movies])
    noise = 1 - USER_VARIANCE - MOVIE_VARIANCE - TASTE_VARIANCE
    liking += rng.normal(0, np.sqrt(noise), len(users))
    return 1 + np.searchsorted(CUTS, liking)


def draw_times(rng: np.random.Generator, counts: Ints) -> Ints:
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
