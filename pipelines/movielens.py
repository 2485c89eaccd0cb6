"""The MovieLens formats: which files a source has, how a line is divided, what each column means.

========  =============================  =========  ==========================================
format    files                          encoding   columns beside user_id, movie_id, rating,
                                                    timestamp
========  =============================  =========  ==========================================
ml-1m     ratings/users/movies.dat       latin-1    gender, age, occupation, zip, title, genres
ml-10m    ratings/movies.dat             UTF-8      title, genres
ml-100k   u.data, u.user, u.item         latin-1    age, gender, occupation, zip, title,
                                                    release_date, genres
========  =============================  =========  ==========================================

From the README of each data set (GroupLens). Values are kept as their text; a rating is a number
from 0.5 to 5 and a timestamp the unix second of the rating, not before MovieLens began.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

from featurestore.errors import SourceError, did_you_mean
from featurestore.paths import AnyPath

KEYS = ("user_id", "movie_id")
RATING_COLUMNS = (*KEYS, "rating", "timestamp")
LOWEST_RATING, HIGHEST_RATING = 0.5, 5.0
FIRST_TIMESTAMP = 788_918_400  # 1995-01-01; MovieLens' first ratings are of that year
LAST_TIMESTAMP = 4_102_444_800  # 2100-01-01

_ID = re.compile(r"[0-9]+", re.ASCII)
_SECONDS = re.compile(r"0*[0-9]{1,12}", re.ASCII)  # int() refuses thousands of digits
_NUMBER = re.compile(r"[0-9]+\.?[0-9]*|\.[0-9]+", re.ASCII)
_GENRES_100K = (
    *("unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama"),
    *(
        "Fantasy",
        "Film-Noir",
        "Horror",
        "Musical",
        "Mystery",
        "Romance",
        "Sci-Fi",
        "Thriller",
        "War",
        "Western",
    ),
)

Fields = dict[str, str]


class BadRecord(ValueError):
    """A line that cannot become a record: the column at fault and the reason."""

    def __init__(self, column: str, reason: str) -> None:
        super().__init__(reason)
        self.column = column
        self.reason = reason


@dataclass(frozen=True)
class EntityFormat:
    """A file with one line for each user or movie; ``divide`` turns a line into its columns."""

    file: str
    key: str
    columns: tuple[str, ...]
    divide: Callable[[str], Fields]


@dataclass(frozen=True)
class SourceFormat:
    """A data set's files and how their lines are divided."""

    name: str
    ratings: str
    separator: str
    encoding: str
    entities: tuple[EntityFormat, ...]

    @property
    def files(self) -> tuple[str, ...]:
        """Names of all files, the ratings first."""
        return (self.ratings, *(entity.file for entity in self.entities))

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of all raw columns of an example."""
        return (*RATING_COLUMNS, *(column for entity in self.entities for column in entity.columns))


def parse_rating(line: str, separator: str) -> tuple[str, str, float, int]:
    """Return user_id, movie_id, rating and timestamp of a line; BadRecord says what is wrong with it."""
    parts = line.split(separator)
    if len(parts) != len(RATING_COLUMNS):
        raise BadRecord(
            "", f"expected {len(RATING_COLUMNS)} columns separated by {separator!r}, got {len(parts)}"
        )
    for column, text in zip(KEYS, parts, strict=False):
        if not _ID.fullmatch(text):
            raise BadRecord(column, f"{column} must be a whole number, got {text!r}")
    return parts[0], parts[1], rating_of(parts[2]), _timestamp_of(parts[3])


def rating_of(text: str) -> float:
    """Return a rating; BadRecord if ``text`` is none."""
    if not _NUMBER.fullmatch(text) or not LOWEST_RATING <= float(text) <= HIGHEST_RATING:
        raise BadRecord(
            "rating", f"rating must be a number in {LOWEST_RATING}..{HIGHEST_RATING}, got {text!r}"
        )
    return float(text)


def _timestamp_of(text: str) -> int:
    seconds = int(text.lstrip("0") or "0") if _SECONDS.fullmatch(text) else 0
    if not FIRST_TIMESTAMP <= seconds <= LAST_TIMESTAMP:
        raise BadRecord("timestamp", f"timestamp must be unix seconds from 1995 to 2100, got {text!r}")
    return seconds


def _split_fields(line: str, separator: str, columns: tuple[str, ...]) -> Fields:
    parts = line.split(separator)
    if len(parts) != len(columns):
        raise BadRecord("", f"expected {len(columns)} columns separated by {separator!r}, got {len(parts)}")
    return dict(zip(columns, parts, strict=True))


def _user_dat(line: str) -> Fields:
    return _split_fields(line, "::", ("user_id", "gender", "age", "occupation", "zip"))


def _movie_dat(line: str) -> Fields:
    """Divide ``id::title::genres``; a title may itself contain ``::`` and quotes."""
    movie_id, first, rest = line.partition("::")
    title, last, genres = rest.rpartition("::")
    if not first or not last:
        raise BadRecord("", f"expected movie id, title and genres separated by '::', got {line!r}")
    return {"movie_id": movie_id, "title": title, "genres": genres}


def _user_100k(line: str) -> Fields:
    return _split_fields(line, "|", ("user_id", "age", "gender", "occupation", "zip"))


def _movie_100k(line: str) -> Fields:
    parts = line.split("|")
    if len(parts) != 5 + len(_GENRES_100K):
        raise BadRecord("", f"expected {5 + len(_GENRES_100K)} columns separated by '|', got {len(parts)}")
    genres = "|".join(genre for genre, flag in zip(_GENRES_100K, parts[5:], strict=True) if flag == "1")
    return {"movie_id": parts[0], "title": parts[1], "release_date": parts[2], "genres": genres}


_MOVIES = EntityFormat("movies.dat", "movie_id", ("title", "genres"), _movie_dat)
_USERS = EntityFormat("users.dat", "user_id", ("gender", "age", "occupation", "zip"), _user_dat)
_USERS_100K = EntityFormat("u.user", "user_id", ("age", "gender", "occupation", "zip"), _user_100k)
_MOVIES_100K = EntityFormat("u.item", "movie_id", ("title", "release_date", "genres"), _movie_100k)

ML_1M = SourceFormat("ml-1m", "ratings.dat", "::", "latin-1", (_USERS, _MOVIES))
ML_10M = SourceFormat("ml-10m", "ratings.dat", "::", "utf-8", (_MOVIES,))
ML_100K = SourceFormat("ml-100k", "u.data", "\t", "latin-1", (_USERS_100K, _MOVIES_100K))
FORMATS = {source.name: source for source in (ML_100K, ML_1M, ML_10M)}


def recognise(folder: AnyPath, name: str | None = None) -> SourceFormat:
    """Return the format of the files in ``folder``, or the one called ``name`` if its files are there.

    Raises:
        SourceError: the folder, or a file of the format, is missing or empty.
    """
    if not folder.is_dir():
        raise SourceError(
            f"{folder} is not a folder: SOURCE is a folder of MovieLens files, or synthetic:ml-1m"
        )
    source = _named(name) if name else _guess(folder)
    for file in source.files:
        path = folder / file
        if not path.is_file():
            raise SourceError(f"{path} is missing: {source.name} has the files {', '.join(source.files)}")
        if not path.stat().st_size:
            raise SourceError(f"{path} is empty: expected the {source.name} file of that name")
    return source


def _named(name: str) -> SourceFormat:
    if name not in FORMATS:
        raise SourceError(f"unknown format {name!r}{did_you_mean(name, FORMATS)}")
    return FORMATS[name]


def _guess(folder: AnyPath) -> SourceFormat:
    present = {path.name for path in folder.iterdir()}
    if ML_100K.ratings in present:
        return ML_100K
    if ML_1M.ratings in present:
        return ML_1M if "users.dat" in present or not _looks_like_10m(folder) else ML_10M
    raise SourceError(
        f"{folder} has no MovieLens files: expected ratings.dat (ml-1m, ml-10m) or u.data (ml-100k), "
        f"found {', '.join(sorted(present)[:8]) or 'nothing'}"
    )


def _looks_like_10m(folder: AnyPath) -> bool:
    """Tell ml-10m from an ml-1m whose users.dat is missing: it has tags, or ratings of half stars."""
    if (folder / "tags.dat").exists():
        return True
    with (folder / ML_10M.ratings).open("rb") as file:
        return b".5::" in file.read(64 << 20)
