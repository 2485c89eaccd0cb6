import json

from click.testing import CliRunner

from featurestore.cache import Cached, cached, clear_cache
from featurestore.cache_command import command
from featurestore.paths import as_path


def fill(store):
    for snapshot, name, size in (("a", "train.npy", 10), ("a", "train.xxh3.npy", 2), ("b", "train.npy", 5)):
        path = store / "cache" / snapshot / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(size))


def test_what_is_cached_is_listed_by_snapshot(tmp_path):
    assert cached(tmp_path) == []
    fill(tmp_path)
    assert cached(tmp_path) == [
        Cached("a", ("train.npy", "train.xxh3.npy"), 12),
        Cached("b", ("train.npy",), 5),
    ]


def test_the_copies_of_some_snapshots_or_all_can_be_removed(tmp_path):
    fill(tmp_path)
    assert [one.snapshot for one in clear_cache(tmp_path, ["b", "c"])] == ["b"]
    assert [one.snapshot for one in cached(tmp_path)] == ["a"]
    clear_cache(tmp_path)
    assert cached(tmp_path) == []


def test_those_of_a_url_lie_in_a_folder_of_its_name_here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fill(tmp_path / "store")
    assert [one.snapshot for one in cached(as_path("s3://bucket/store"))] == ["a", "b"]


def invoke(*args):
    return CliRunner().invoke(command, [*map(str, args)], catch_exceptions=False).stdout


def test_the_command_shows_and_clears(tmp_path):
    assert invoke("--store", tmp_path) == "in all 0 bytes\n"
    fill(tmp_path)
    lines = invoke("--store", tmp_path).splitlines()
    assert [line.split() for line in lines] == [
        ["snapshot", "files", "bytes"], ["a", "2", "12"], ["b", "1", "5"], ["in", "all", "17", "bytes"],
    ]  # fmt: skip
    shown = json.loads(invoke("--store", tmp_path, "--json"))
    assert shown[0] == {"snapshot": "a", "files": 2, "bytes": 12}
    assert invoke("--store", tmp_path, "--clear").endswith("removed 17 bytes\n")
    assert invoke("--store", tmp_path) == "in all 0 bytes\n"
