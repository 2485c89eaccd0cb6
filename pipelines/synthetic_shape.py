"""How large a synthetic source is: its ratings, users and movies."""

import re
from dataclasses import asdict, dataclass


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
