"""Byte ranges and the two ways to parse a block, which must agree on every line."""

import itertools

import apache_beam as beam
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines import read
from pipelines.movielens import ML_1M, ML_100K, ML_CSV
from pipelines.read import RATINGS_SCHEMA, ByteRange, Records, plan_ranges, read_ratings, reject_rows

SOURCES = (ML_1M, ML_CSV, ML_100K)
NEWLINES = st.sampled_from(["\n", "\r\n"])
FIELDS = ("1", "", " 1", "0x1", "5", "978300000", "978300000\t", "1e0", "-1", "+5", "1:", '"5"', "\r5", "5\r")


def good_lines(source):
    return st.builds(
        source.separator.join(["{}"] * 4).format,
        st.integers(1, 10**6),
        st.integers(1, 10**5),
        st.sampled_from(["1", "5", "0.5", "3.5", "4.", ".5", "4.0"]),
        st.integers(788_918_400, 4_102_444_800),
    )


def lines_of(source):
    """Lists of lines of which about a third are odd."""
    odd = st.one_of(
        st.text(alphabet='0123456789:.,- +eExX"\t\rna\x0b\x00é', max_size=30),
        st.builds(source.separator.join(["{}"] * 4).format, *[st.sampled_from(FIELDS)] * 4),
    )
    return st.lists(st.one_of(good_lines(source), good_lines(source), odd), max_size=12)


def whole(path):
    return ByteRange(path, 0, path.stat().st_size, 0, 1)


def rows(records):
    return records.table.to_pylist()


def test_beam_knows_the_size_of_records_without_pickling_them(monkeypatch, tmp_path):
    path = tmp_path / "ratings.dat"
    path.write_text("1::2::3::978300000\n" * 1000)
    records = read_ratings(whole(path), ML_1M)
    coder = beam.coders.registry.get_coder(Records)
    encoded = coder.encode(records)
    assert coder.decode(encoded) == records
    monkeypatch.setattr(read.pickle, "dumps", None)
    assert len(encoded) * 0.5 < coder.estimate_size(records) < len(encoded)


def check_paths_agree(block, source):
    fast = read._parse_block(block, source.separator) if block else None
    slow, rejects = read._parse_lines(block, 0, "ratings.dat", source.separator)
    if fast is not None:
        assert not rejects
        assert fast.to_pylist() == slow.to_pylist()


@given(data=st.data(), source=st.sampled_from(SOURCES), newline=NEWLINES, ended=st.booleans())
def test_a_block_read_fast_is_the_block_read_line_by_line(data, source, newline, ended):
    check_paths_agree((newline.join(data.draw(lines_of(source))) + newline * ended).encode(), source)


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.name)
@settings(max_examples=6)
@given(data=st.data(), end=st.sampled_from(["", "\n", "\n\n"]))
def test_both_ways_agree_wherever_a_character_is_put(source, data, end):
    text = "\r\n".join(data.draw(st.lists(good_lines(source), min_size=1, max_size=2))) + end
    for odd in ' \t\r\n\x0b\x0c\x00+-.,:"0/':
        for at in range(len(text) + 1):
            check_paths_agree((text[:at] + odd + text[at:]).encode(), source)


@given(data=st.data(), source=st.sampled_from(SOURCES), newline=NEWLINES, ended=st.booleans())
def test_good_lines_take_the_fast_way(data, source, newline, ended):
    lines = data.draw(st.lists(good_lines(source), min_size=1, max_size=10))
    block = (newline.join(lines) + newline * ended).encode()
    assert read._parse_block(block, source.separator).num_rows == len(lines)


STARTS = [(ML_1M, ""), (ML_CSV, f"{ML_CSV.header}\n"), (ML_CSV, f"\ufeff{ML_CSV.header}\r\n")]


@given(data=st.data(), start=st.sampled_from(STARTS), target=st.integers(1, 200), newline=NEWLINES)
def test_any_ranges_hold_every_line_once(tmp_path_factory, data, start, target, newline):
    source, header = start
    path = tmp_path_factory.mktemp("ranges") / source.ratings
    lines = "".join(f"{line}{newline}" for line in data.draw(lines_of(source)))
    path.write_bytes((header + lines).encode())
    places = plan_ranges(path, path.stat().st_size, target)
    parts = [read_ratings(place, source) for place in places]
    at_once = read_ratings(whole(path), source)
    assert [row for part in parts for row in rows(part)] == rows(at_once)
    rejects = [row for part in parts for row in part.rejects.to_pylist()]
    assert rejects == at_once.rejects.to_pylist()
    assert at_once.table.num_rows + len(rejects) == sum(
        1 for line in lines.split("\n") if line.removesuffix("\r")
    )
    content = path.read_bytes()
    assert all(content.startswith(row["raw"].encode(), row["byte_offset"]) for row in rejects)


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


@pytest.mark.parametrize("most", [200, 300, 10**6])
def test_one_bad_line_costs_a_small_block_only(tmp_path, monkeypatch, most):
    monkeypatch.setattr(read, "MIN_BLOCK_BYTES", 200)
    monkeypatch.setattr(read, "MAX_BLOCK_BYTES", most)
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
    assert len(slow[0]) <= 200


@pytest.mark.parametrize("ended", [True, False])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_a_header_is_neither_read_nor_rejected(tmp_path, newline, ended):
    path = tmp_path / "ratings.csv"
    lines = [
        ML_CSV.header,
        "1,2,3.5,1112486027",
        "2,2,4.0,1112484676",
        '"3","2","4","1112484676"',
        ML_CSV.header,
    ]
    path.write_bytes((newline.join(lines) + newline * ended).encode())
    starts = [0, *itertools.accumulate(len(line + newline) for line in lines)]
    records = read_ratings(whole(path), ML_CSV)
    assert rows(records) == [
        {"user_id": "1", "movie_id": "2", "rating": 3.5, "timestamp": 1112486027},
        {"user_id": "2", "movie_id": "2", "rating": 4.0, "timestamp": 1112484676},
    ]
    assert [(row["byte_offset"], row["reason"]) for row in records.rejects.to_pylist()] == [
        (starts[3], "user_id must be a whole number, got '\"3\"'"),
        (starts[4], "user_id must be a whole number, got 'userId'"),  # only at the beginning is it a header
    ]
    unknown = pa.array([False, True]).to_numpy(zero_copy_only=False)
    first = reject_rows(records, unknown, "user_id", ["unknown"]).rejects.to_pylist()[0]
    assert (first["byte_offset"], first["raw"]) == (starts[2], lines[2])


@pytest.mark.parametrize("end", ["", "\n", "\r\n"])
def test_a_header_alone_is_no_record(tmp_path, end):
    path = tmp_path / "ratings.csv"
    path.write_bytes((ML_CSV.header + end).encode())
    records = [read_ratings(place, ML_CSV) for place in plan_ranges(path, path.stat().st_size, 10)]
    assert sum(part.table.num_rows + part.rejects.num_rows for part in records) == 0


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
