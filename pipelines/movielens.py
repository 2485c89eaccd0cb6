"""The MovieLens formats: which files a source has, how a line is divided, what each column means.

========  =============================  =========  ==========================================
format    files                          encoding   columns beside user_id, movie_id, rating,
                                                    timestamp
========  =============================  =========  ==========================================
ml-1m     ratings/users/movies.dat       latin-1    gender, age, occupation, zip, title, genres
ml-10m    ratings/movies.dat             UTF-8      title, genres
ml-100k   u.data, u.user, u.item         latin-1    age, gender, occupation, zip, title,
                                                    release_date, genres
ml-csv    ratings.csv, movies.csv        UTF-8      title, genres
========  =============================  =========  ==========================================

ml-csv is the one shape of ml-20m, ml-25m, ml-32m, ml-latest and ml-latest-small; their tags, links and
genome are not read. A header line begins each file (after a byte order mark, where a spreadsheet has put
one); lines end in LF or CRLF. A title that holds commas or quotes is quoted, its inner quotes doubled;
numbers are not quoted.

From the README of each data set (GroupLens). Values are kept as their text; a rating is a number
from 0.5 to 5 and a timestamp the unix second of the rating, not before MovieLens began.
"""

import csv
import dataclasses
import re
from collections.abc import Callable
from dataclasses import dataclass

from featurestore.errors import SourceError, did_you_mean
from featurestore.manifest import KEYS
from featurestore.paths import AnyPath

RATING_COLUMNS = (*KEYS, "rating", "timestamp")
LOWEST_RATING, HIGHEST_RATING = 0.5, 5.0
FIRST_TIMESTAMP = 788_918_400  # 1995-01-01; MovieLens' first ratings are of that year
LAST_TIMESTAMP = 4_102_444_800  # 2100-01-01
HEADER_BYTES = 1024
"""Of a file's beginning, enough for `header_size`."""

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
    """A file with one line for each user or movie; ``divide`` turns a line into its columns.

    header: the file's first line, where it has one that names the columns.
    """

    file: str
    key: str
    columns: tuple[str, ...]
    divide: Callable[[str], Fields]
    header: str | None = None


@dataclass(frozen=True)
class SourceFormat:
    """A data set's files and how their lines are divided; ``header`` is the first line of the ratings.

    rating_files: where given, the ratings are in these files of the same form instead, and an example says in
    the column `FILE` which it is from.
    """

    name: str
    ratings: str
    separator: str
    encoding: str
    entities: tuple[EntityFormat, ...]
    header: str | None = None
    rating_files: tuple[str, ...] = ()

    @property
    def files_of_ratings(self) -> tuple[str, ...]:
        """Names of the files that hold the ratings."""
        return self.rating_files or (self.ratings,)

    @property
    def files(self) -> tuple[str, ...]:
        """Names of all files, the ratings first."""
        return (*self.files_of_ratings, *(entity.file for entity in self.entities))

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of all raw columns of an example that a feature can read."""
        return (*RATING_COLUMNS, *(column for entity in self.entities for column in entity.columns))

    @property
    def headers(self) -> dict[str, str]:
        """The header lines, by the files that have one."""
        found = dict.fromkeys(self.files_of_ratings, self.header)
        found |= {entity.file: entity.header for entity in self.entities}
        return {file: header for file, header in found.items() if header is not None}


def header_size(start: bytes, header: str | None) -> int:
    """Return how many bytes the header takes with its line end and byte order mark; 0 if it is not there.

    ``start``: the first `HEADER_BYTES` of the file, or more.
    """
    if header is None:
        return 0
    found = re.match(rb"(?:\xef\xbb\xbf)?" + re.escape(header.encode()) + rb"(?:\r?\n|\Z)", start)
    return found.end() if found else 0


def parse_rating(line: str, separator: str) -> tuple[str, str, float, int]:
    """Return user_id, movie_id, rating and timestamp of a line; BadRecord says what is wrong with it."""
    parts = line.split(separator)
    if len(parts) != len(RATING_COLUMNS):
        raise BadRecord(
            "", f"expected {len(RATING_COLUMNS)} columns separated by {separator!r}, got {len(parts)}"
        )
    for column, text in zip(KEYS, parts, strict=False):
        _check_id(column, text)
    return parts[0], parts[1], rating_of(parts[2]), _timestamp_of(parts[3])


def _check_id(column: str, text: str) -> None:
    if not _ID.fullmatch(text):
        raise BadRecord(column, f"{column} must be a whole number, got {text!r}")


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


def _movie_csv(line: str) -> Fields:
    """Divide ``id,title,genres``; a quoted field may hold commas and doubled quotes, but no line end."""
    columns = ("movie_id", "title", "genres")
    try:
        parts = next(csv.reader([line], strict=True))
    except csv.Error as error:
        reason = f"a quoted field must be closed before the line ends, quotes in it doubled ({error})"
        raise BadRecord("", reason) from error
    if len(parts) != len(columns):
        raise BadRecord("", f"expected {len(columns)} columns separated by ',', got {len(parts)}")
    _check_id("movie_id", parts[0])
    return dict(zip(columns, parts, strict=True))


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
_MOVIES_CSV = EntityFormat(
    "movies.csv", "movie_id", ("title", "genres"), _movie_csv, header="movieId,title,genres"
)

ML_1M = SourceFormat("ml-1m", "ratings.dat", "::", "latin-1", (_USERS, _MOVIES))
ML_10M = SourceFormat("ml-10m", "ratings.dat", "::", "utf-8", (_MOVIES,))
ML_100K = SourceFormat("ml-100k", "u.data", "\t", "latin-1", (_USERS_100K, _MOVIES_100K))
ML_CSV = SourceFormat(
    "ml-csv", "ratings.csv", ",", "utf-8", (_MOVIES_CSV,), header="userId,movieId,rating,timestamp"
)
FORMATS = {source.name: source for source in (ML_100K, ML_1M, ML_10M, ML_CSV)}


def recognise(folder: AnyPath, name: str | None = None) -> SourceFormat:
    """Return the format of the files in ``folder``, or the one called ``name`` if its files are there.

    Raises:
        SourceError: the folder, or a file of the format, is missing or empty; a header is another one than
            expected; or no name was given where the ratings of two formats are there.
    """
    if not folder.is_dir():
        raise SourceError(
            f"{folder} is not a folder: SOURCE is a folder of MovieLens files, or synthetic:ml-1m"
        )
    source = _named(name) if name else _guess(folder)
    for file in source.files:
        if not (folder / file).is_file():
            files = ", ".join(source.files)
            raise SourceError(f"{folder / file} is missing: {source.name} has the files {files}")
    _check_contents(folder, source)
    return source


def read_from(source: SourceFormat, folder: AnyPath, files: tuple[str, ...]) -> SourceFormat:
    """Return the format with its ratings in ``files`` of ``folder``, and as before where there are none.

    Raises:
        SourceError: one of them is missing, empty, a file of users or movies, or begins with another header.
    """
    if not files:
        return source
    for file in files:
        if not (folder / file).is_file():
            present = ", ".join(sorted(path.name for path in folder.iterdir())[:20]) or "nothing"
            raise SourceError(
                f"{folder / file} is missing: the spec's split names it, the folder has {present}"
            )
        if file in (entity.file for entity in source.entities):
            raise SourceError(f"the spec's split names {file}: {source.name} has no ratings in it")
    source = dataclasses.replace(source, rating_files=files)
    _check_contents(folder, source)
    return source


def _check_contents(folder: AnyPath, source: SourceFormat) -> None:
    for file in source.files:
        path = folder / file
        if not path.stat().st_size:
            raise SourceError(f"{path} is empty: expected {_what(source, file)}")
        if header := source.headers.get(file):
            _check_header(path, header)


def _what(source: SourceFormat, file: str) -> str:
    named = file in source.rating_files
    return f"ratings in the form of {source.name}" if named else f"the {source.name} file of that name"


def _check_header(path: AnyPath, header: str) -> None:
    with path.open("rb") as file:
        start = file.read(HEADER_BYTES)
    size = header_size(start, header)
    if not size:
        first = start.partition(b"\n")[0].removesuffix(b"\r").decode("utf-8-sig", "backslashreplace")
        raise SourceError(f"{path} begins with {first[:80]!r}: expected the header {header!r}")
    if size == path.stat().st_size:
        raise SourceError(f"{path} is empty below its header")


def _named(name: str) -> SourceFormat:
    if name not in FORMATS:
        raise SourceError(f"unknown format {name!r}{did_you_mean(name, FORMATS)}")
    return FORMATS[name]


def _guess(folder: AnyPath) -> SourceFormat:
    """Tell the format by the file of ratings. A folder with those of two formats is not guessed about."""
    present = {path.name for path in folder.iterdir()}
    known = {ML_1M.ratings: "ml-1m, ml-10m", ML_100K.ratings: "ml-100k", ML_CSV.ratings: "ml-csv"}
    found = [file for file in known if file in present]
    if not found:
        raise SourceError(
            f"{folder} has no MovieLens files: expected {_listed(known)}, "
            f"found {', '.join(sorted(present)[:8]) or 'nothing'}"
        )
    if len(found) > 1:
        raise SourceError(
            f"{folder} has the ratings of several formats: say with --format which to read, "
            f"{_listed({file: known[file] for file in found})}"
        )
    if found[0] == ML_1M.ratings:
        return ML_1M if "users.dat" in present or not _looks_like_10m(folder) else ML_10M
    return ML_100K if found[0] == ML_100K.ratings else ML_CSV


def _listed(formats: dict[str, str]) -> str:
    return " or ".join(f"{file} ({names})" for file, names in formats.items())


def _looks_like_10m(folder: AnyPath) -> bool:
    """Tell ml-10m from an ml-1m whose users.dat is missing: it has tags, or ratings of half stars."""
    if (folder / "tags.dat").exists():
        return True
    with (folder / ML_10M.ratings).open("rb") as file:
        return b".5::" in file.read(64 << 20)
