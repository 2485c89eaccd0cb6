"""Synthetic users, movies and ratings as the lines of ml-1m's files."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.synthetic_world import (
    AGES,
    GENDERS,
    GENRES,
    Ints,
    People,
    World,
    draw_pairs,
    draw_ratings,
    draw_times,
)

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


def movie_lines(rng: np.random.Generator, world: World) -> bytes:
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


def user_lines(rng: np.random.Generator, people: People) -> bytes:
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


def rating_lines(rng: np.random.Generator, people: People, world: World) -> bytes:
    """Return this chunk of ``ratings.dat``: ``UserID::MovieID::Rating::Timestamp``, by user."""
    users, movies = draw_pairs(rng, people.counts, world.popularity)
    ratings = draw_ratings(rng, people, world, users, movies)
    times = draw_times(rng, people.counts)
    return _join_lines(people.ids[users], world.movie_ids[movies], ratings, times)


def _join_lines(*columns: Ints) -> bytes:
    """Return the rows of ``columns`` as ASCII lines, fields parted by ``::``."""
    rows = pc.binary_join_element_wise(*(pc.cast(pa.array(column), pa.string()) for column in columns), "::")
    all_rows = pa.ListArray.from_arrays(pa.array([0, len(rows)], pa.int32()), rows)  # one list of them all
    return bytes(pc.binary_join(all_rows, "\n")[0].as_buffer()) + b"\n"
