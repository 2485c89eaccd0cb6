"""Byte ranges and the two ways to parse a block, which must agree on every line."""

import itertools

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines import read
from pipelines.movielens import ML_1M, ML_100K
from pipelines.read import RATINGS_SCHEMA, ByteRange, plan_ranges, read_ratings, reject_rows

GOOD = st.builds(
    "{}::{}::{}::{}".format,
    st.integers(1, 10**6),
    st.integers(1, 10**5),
    st.sampled_from(["1", "5", "0.5", "3.5", "4.", ".5"]),
    st.integers(788_918_400, 4_102_444_800),
)
ODD = st.one_of(
    st.text(alphabet="0123456789:.- +eExX\tna\x0b\x00é", max_size=30),
    st.builds(
        "{}::{}::{}::{}".format,
        *[st.sampled_from(["1", "", " 1", "0x1", "5", "978300000", "1e0", "-1", "+5", "1:"])] * 4,
    ),
)
LINES = st.lists(st.one_of(GOOD, GOOD, ODD), max_size=12)


def whole(path):
    return ByteRange(path, 0, path.stat().st_size, 0, 1)


def rows(records):
    return records.table.to_pylist()


@given(lines=LINES, newline=st.sampled_from(["\n", "\r\n"]), ended=st.booleans())
def test_a_block_read_fast_is_the_block_read_line_by_line(lines, newline, ended):
    block = (newline.join(lines) + newline * ended).encode()
    fast = read._parse_block(block, "::") if block else None
    slow, rejects = read._parse_lines(block, 0, "ratings.dat", "::")
    if fast is not None:
        assert not rejects
        assert fast.to_pylist() == slow.to_pylist()


@given(lines=st.lists(GOOD, min_size=1, max_size=20))
def test_good_lines_take_the_fast_way(lines):
    assert read._parse_block("".join(f"{line}\n" for line in lines).encode(), "::").num_rows == len(lines)


@given(lines=LINES, target=st.integers(1, 200), newline=st.sampled_from(["\n", "\r\n"]))
def test_any_ranges_hold_every_line_once(tmp_path_factory, lines, target, newline):
    path = tmp_path_factory.mktemp("ranges") / "ratings.dat"
    path.write_bytes("".join(f"{line}{newline}" for line in lines).encode())
    places = plan_ranges(path, path.stat().st_size, target)
    parts = [read_ratings(place, ML_1M) for place in places]
    at_once = read_ratings(whole(path), ML_1M)
    assert [row for part in parts for row in rows(part)] == rows(at_once)
    rejects = [row for part in parts for row in part.rejects.to_pylist()]
    assert rejects == at_once.rejects.to_pylist()
    assert at_once.table.num_rows + len(rejects) == sum(1 for line in lines if line)


@given(size=st.integers(0, 10**12), target=st.integers(1, 10**12))
def test_ranges_cover_a_file_without_gaps(size, target):
    if size / target > 1000:
        return
    places = plan_ranges("ratings.dat", size, target)
    assert places[0].start == 0
    assert places[-1].end == size
    assert all(one.end == other.start for one, other in itertools.pairwise(places))
    assert all(place.end - place.start <= target for place in places)
    assert [place.index for place in places] == list(range(places[0].count))


def test_a_reject_says_where_what_and_why(tmp_path):
    path = tmp_path / "ratings.dat"
    path.write_bytes(b"1::2::5::978300000\n1::2::x::978300000\n\n1::2::\xff\xfe::978300000\n1::2::5::9783")
    records = read_ratings(whole(path), ML_1M)
    assert records.table.num_rows == 1
    assert records.rejects.to_pylist() == [
        {"file": "ratings.dat", "byte_offset": 19, "source_column": "rating", "raw": "1::2::x::978300000",
         "reason": "rating must be a number in 0.5..5.0, got 'x'"},
        {"file": "ratings.dat", "byte_offset": 39, "source_column": "rating",
         "raw": "1::2::\\xff\\xfe::978300000",
         "reason": "rating must be a number in 0.5..5.0, got '\\\\xff\\\\xfe'"},
        {"file": "ratings.dat", "byte_offset": 59, "source_column": "timestamp", "raw": "1::2::5::9783",
         "reason": "timestamp must be unix seconds from 1995 to 2100, got '9783'"},
    ]  # fmt: skip


def test_one_bad_line_costs_its_block_only(tmp_path, monkeypatch):
    monkeypatch.setattr(read, "BLOCK_BYTES", 200)
    path = tmp_path / "ratings.dat"
    lines = [f"{number}::2::5::978300000" for number in range(100)]
    lines[50] = "bad"
    path.write_text("\n".join(lines))
    slow = []
    monkeypatch.setattr(
        read, "_parse_lines", lambda *args, real=read._parse_lines: slow.append(args[0]) or real(*args)
    )
    records = read_ratings(whole(path), ML_1M)
    assert records.table.num_rows == 99
    assert len(slow) == 1


def test_tabs_separate_ml_100k(tmp_path):
    path = tmp_path / "u.data"
    path.write_text("196\t242\t3\t881250949\n186\t302\t3\t891717742\n")
    records = read_ratings(whole(path), ML_100K)
    assert records.table.schema == RATINGS_SCHEMA
    assert rows(records)[0] == {"user_id": "196", "movie_id": "242", "rating": 3.0, "timestamp": 881250949}


def test_rejected_rows_are_found_again_in_the_file(tmp_path):
    path = tmp_path / "ratings.dat"
    path.write_text("1::1::5::978300000\nbad\n2::1::5::978300000\n3::1::5::978300000\n")
    records = read_ratings(whole(path), ML_1M)
    bad = pa.array([False, True, False]).to_numpy(zero_copy_only=False)
    kept = reject_rows(records, bad, "user_id", ["unknown"])
    assert [row["user_id"] for row in rows(kept)] == ["1", "3"]
    assert [(row["byte_offset"], row["raw"]) for row in kept.rejects.to_pylist()] == [
        (19, "bad"),
        (23, "2::1::5::978300000"),
    ]
    again = reject_rows(kept, ~bad[:2], "user_id", ["also"])
    assert [row["byte_offset"] for row in again.rejects.to_pylist()] == [0, 19, 23]


@pytest.mark.parametrize("text", ["", "\n", "\n\n\n"])
def test_a_range_without_lines_is_empty(tmp_path, text):
    path = tmp_path / "ratings.dat"
    path.write_text(text)
    records = read_ratings(whole(path), ML_1M)
    assert records.table.num_rows == records.rejects.num_rows == 0
