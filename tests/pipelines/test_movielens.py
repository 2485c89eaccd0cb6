"""Recognising a source, and what a line of each format means."""

import pytest

from featurestore.errors import SourceError
from pipelines.movielens import (
    FORMATS,
    ML_1M,
    ML_10M,
    ML_100K,
    ML_CSV,
    BadRecord,
    header_size,
    parse_rating,
    recognise,
)


def touch(folder, **files):
    for name, text in files.items():
        (folder / name.replace("_", ".")).write_text(text)


def test_ml_1m_and_ml_100k_are_recognised_by_their_files(tmp_path):
    one, other = tmp_path / "one", tmp_path / "other"
    one.mkdir()
    other.mkdir()
    touch(one, ratings_dat="1::1::5::978300000\n", users_dat="x", movies_dat="x")
    touch(other, u_data="1\t1\t5\t978300000\n", u_user="x", u_item="x")
    assert recognise(one) is ML_1M
    assert recognise(other) is ML_100K


@pytest.mark.parametrize("tags", [True, False])
def test_ml_10m_is_told_from_an_incomplete_ml_1m(tmp_path, tags):
    touch(tmp_path, ratings_dat=f"1::1::{'5' if tags else '3.5'}::978300000\n", movies_dat="x")
    if tags:
        touch(tmp_path, tags_dat="")
    assert recognise(tmp_path) is ML_10M


def test_ml_1m_without_users_is_incomplete_not_ml_10m(tmp_path):
    touch(tmp_path, ratings_dat="1::1::5::978300000\n", movies_dat="x")
    with pytest.raises(SourceError, match=r"users\.dat is missing: ml-1m has the files"):
        recognise(tmp_path)
    assert recognise(tmp_path, "ml-10m") is ML_10M


def test_what_is_wrong_with_a_source_is_said(tmp_path):
    with pytest.raises(SourceError, match="is not a folder"):
        recognise(tmp_path / "missing")
    with pytest.raises(SourceError, match=r"no MovieLens files: expected .* found nothing"):
        recognise(tmp_path)
    with pytest.raises(SourceError, match=r"unknown format 'ml-1n' .did you mean 'ml-1"):
        recognise(tmp_path, "ml-1n")
    touch(tmp_path, ratings_dat="", users_dat="x", movies_dat="x")
    with pytest.raises(SourceError, match=r"ratings\.dat is empty"):
        recognise(tmp_path)


RATINGS_CSV = "userId,movieId,rating,timestamp\n1,2,3.5,1112486027\n"
MOVIES_CSV = "movieId,title,genres\n2,Jumanji (1995),Adventure\n"


@pytest.mark.parametrize("start", ["", "\ufeff"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_csv_folders_of_every_release_are_one_format(tmp_path, start, newline):
    for name, text in (("ratings.csv", RATINGS_CSV), ("movies.csv", MOVIES_CSV)):
        (tmp_path / name).write_bytes((start + text.replace("\n", newline)).encode())
    touch(tmp_path, tags_csv="", links_csv="")  # not read
    assert recognise(tmp_path) is ML_CSV
    assert recognise(tmp_path, "ml-csv") is ML_CSV
    assert ML_CSV.columns == ("user_id", "movie_id", "rating", "timestamp", "title", "genres")


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("ratings.csv", "1,2,3,1112486027\n", "begins with '1,2,3,1112486027': expected the header 'userId,"),
        ("ratings.csv", "userId,movieId,tag,timestamp\r\n", "begins with 'userId,movieId,tag,timestamp'"),
        ("ratings.csv", "movieId,userId,rating,timestamp\n1,2,3,9\n", "begins with 'movieId,userId"),
        ("ratings.csv", RATINGS_CSV.replace("stamp", "stamp,age", 1), "begins with 'userId,.*,age'"),
        ("ratings.csv", '"userId","movieId","rating","timestamp"\n', """begins with '"userId","movieId\""""),
        ("movies.csv", "\ufeffmovieId;title;genres\n", "begins with 'movieId;title;genres': .*'movieId,"),
        ("ratings.csv", "\n" + RATINGS_CSV, "begins with ''"),
        ("ratings.csv", "userId,movieId,rating,timestamp\r\n", "ratings.csv is empty below its header"),
        ("movies.csv", "movieId,title,genres", "movies.csv is empty below its header"),
        ("movies.csv", "", "movies.csv is empty: expected the ml-csv file"),
    ],
)  # fmt: skip
def test_another_header_is_refused(tmp_path, file, text, message):
    touch(tmp_path, ratings_csv=RATINGS_CSV, movies_csv=MOVIES_CSV)
    (tmp_path / file).write_text(text, "utf-8")
    with pytest.raises(SourceError, match=message):
        recognise(tmp_path)


def test_ratings_of_two_formats_in_one_folder_need_a_name(tmp_path):
    touch(tmp_path, ratings_csv=RATINGS_CSV)
    with pytest.raises(
        SourceError, match=r"movies\.csv is missing: ml-csv has the files ratings\.csv, movies\.csv"
    ):
        recognise(tmp_path)
    touch(tmp_path, movies_csv=MOVIES_CSV, ratings_dat="1::1::5::978300000\n", users_dat="x", movies_dat="x")
    message = r"--format which to read, ratings\.dat \(ml-1m, ml-10m\) or ratings\.csv \(ml-csv\)"
    with pytest.raises(SourceError, match=message):
        recognise(tmp_path)
    assert recognise(tmp_path, "ml-1m") is ML_1M
    assert recognise(tmp_path, "ml-csv") is ML_CSV


def test_a_header_is_measured_with_its_line_end():
    assert header_size(b"a,b\n1,2\n", "a,b") == 4
    assert header_size(b"\xef\xbb\xbfa,b\r\n1,2\n", "a,b") == 8
    assert header_size(b"a,b", "a,b") == 3
    assert (
        header_size(b"a,bc\n", "a,b") == header_size(b"x\na,b\n", "a,b") == header_size(b"a,b\n", None) == 0
    )


@pytest.mark.parametrize(
    ("line", "title", "genres"),
    [
        ("2,Jumanji (1995),Adventure|Children", "Jumanji (1995)", "Adventure|Children"),
        ('2,"Three Ages, ""The"" (1923)",Comedy', 'Three Ages, "The" (1923)', "Comedy"),
        ('2,"""Great Performances"" Cats (1998)",Musical', '"Great Performances" Cats (1998)', "Musical"),
        ('2,All About "Eve" (1950),Drama', 'All About "Eve" (1950)', "Drama"),
        ("2,Amélie: a::b (2001),(no genres listed)", "Amélie: a::b (2001)", "(no genres listed)"),
        ('"2","","Drama"', "", "Drama"),
    ],
)
def test_titles_of_csv_are_unquoted(line, title, genres):
    divided = entity("ml-csv", "movies.csv").divide(line)
    assert divided == {"movie_id": "2", "title": title, "genres": genres}


@pytest.mark.parametrize(
    ("line", "column", "reason"),
    [
        ('2,"Three Ages (1923),Comedy', "", r"quoted field must be closed before the line ends, "),
        ('2,"Three "Ages" (1923)",Comedy', "", "quotes in it doubled .*expected after"),
        ("2,Three Ages, The (1923),Comedy", "", "expected 3 columns separated by ',', got 4"),
        ("2;Jumanji;Adventure", "", "got 1"),
        ("movieId,title,genres", "movie_id", "movie_id must be a whole number, got 'movieId'"),
        (f"2,{'x' * 200_000},Drama", "", "field larger than field limit"),
    ],
)  # fmt: skip
def test_a_bad_line_of_csv_says_why(line, column, reason):
    with pytest.raises(BadRecord, match=reason) as caught:
        entity("ml-csv", "movies.csv").divide(line)
    assert caught.value.column == column


def entity(source, file):
    return next(entity for entity in FORMATS[source].entities if entity.file == file)


def test_a_title_may_hold_separators_and_quotes():
    divide = entity("ml-10m", "movies.dat").divide
    assert divide('7::"Great: A::B" (1999)::Drama|War') == {
        "movie_id": "7",
        "title": '"Great: A::B" (1999)',
        "genres": "Drama|War",
    }
    with pytest.raises(BadRecord, match="expected movie id, title and genres"):
        divide("7::only two")


def test_genre_flags_of_ml_100k_become_names():
    flags = "|".join("1" if index in (5, 16) else "0" for index in range(19))
    divided = entity("ml-100k", "u.item").divide(f"3|Four Rooms (1995)|01-Jan-1995||url|{flags}")
    assert divided == {
        "movie_id": "3",
        "title": "Four Rooms (1995)",
        "release_date": "01-Jan-1995",
        "genres": "Comedy|Thriller",
    }


def test_columns_of_users_are_named_alike_in_both_formats():
    assert entity("ml-1m", "users.dat").divide("1::F::18::10::48067")["age"] == "18"
    assert entity("ml-100k", "u.user").divide("1|24|M|technician|85711")["occupation"] == "technician"


@pytest.mark.parametrize(
    ("line", "column", "reason"),
    [
        ("1::2::5", "", "expected 4 columns"),
        ("1::2::5::978300000::9", "", "got 5"),
        ("x::2::5::978300000", "user_id", "user_id must be a whole number, got 'x'"),
        ("1::::5::978300000", "movie_id", "movie_id must be a whole number, got ''"),
        ("1::2::abc::978300000", "rating", "rating must be a number"),
        ("1::2::nan::978300000", "rating", "got 'nan'"),
        ("1::2::9::978300000", "rating", r"in 0\.5\.\.5\.0, got '9'"),
        ("1::2::5::" + "9" * 5000, "timestamp", "unix seconds"),
        ("1::2::5::97830000", "timestamp", "unix seconds from 1995 to 2100"),
        ("1::2::5::9783000 00", "timestamp", "got '9783000 00'"),
        ("1::2::5::٣78300000", "timestamp", "unix seconds"),
    ],
)
def test_a_bad_line_names_its_column_and_reason(line, column, reason):
    with pytest.raises(BadRecord, match=reason) as caught:
        parse_rating(line, "::")
    assert caught.value.column == column


def test_half_stars_are_ratings():
    assert parse_rating("1::2::3.5::978300000", "::") == ("1", "2", 3.5, 978300000)
