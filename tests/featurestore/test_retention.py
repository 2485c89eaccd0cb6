"""Removing snapshots: whatever is removed, and wherever it is killed, what stays is whole."""

import datetime
import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from featurestore.compare import compare
from featurestore.database import Database
from featurestore.errors import ArtifactError, NotFound, StoreBusy
from featurestore.paths import as_path, files_below
from featurestore.retention import expired_snapshots, plan_removal, remove_snapshots, sweep
from featurestore.snapshot import list_snapshots, open_snapshot
from featurestore.snapshots_command import snapshots
from featurestore.staging import staging
from featurestore.store import FeatureStore

PARTS = 4
REJECT = {"file": "ratings.dat", "byte_offset": 7, "source_column": "rating", "raw": "x", "reason": "bad"}


def command(*args):
    return CliRunner().invoke(snapshots, [str(arg) for arg in args], catch_exceptions=False).stdout


def listed_files(store):
    """Every manifest and every file that one lists, relative to the folder of snapshots."""
    root = store / "snapshots"
    for snapshot in list_snapshots(store):
        yield f"{snapshot.folder.name}/manifest.json"
        for kind in snapshot.manifest.shards:
            for path in snapshot.files(kind):
                yield os.path.normpath(path.relative_to(root))


def assert_whole(store, ids):
    """Exactly these snapshots are there, all intact, one of them the newest, and no other file."""
    found = list_snapshots(store)
    assert {snapshot.manifest.id for snapshot in found} == set(ids)
    assert [snapshot.problems(deep=True) for snapshot in found] == [[]] * len(found)
    assert set(files_below(store / "snapshots")) == set(listed_files(store))
    folders = (path for path in (store / "snapshots").rglob("*") if path.is_dir())
    assert all(any(folder.iterdir()) for folder in folders)
    if ids:
        assert open_snapshot(store).manifest.id in ids


@pytest.fixture(scope="session")
def parts(make_table):
    """Tables of other rows each."""
    table = make_table(20 * PARTS)
    return [table.slice(20 * number, 20) for number in range(PARTS)]


@pytest.fixture(scope="module")
def made_family(tmp_path_factory, publish, append, parts):
    store = tmp_path_factory.mktemp("family") / "store"
    first = publish(store, parts[0], shards=2, rejects=[REJECT])
    second = append(store, parts[1], rejects=[{**REJECT, "byte_offset": 8}])
    third = append(store, parts[2])
    other = publish(store, parts[3], shards=1, created="2009-01-01T00:00:00.000+00:00")
    return store, [snapshot.manifest.id for snapshot in (first, second, third, other)]


@pytest.fixture
def family(made_family, tmp_path):
    """A store of four: a grandparent, its child, its grandchild, and one that shares nothing."""
    store, ids = made_family
    return shutil.copytree(store, tmp_path / "store"), list(ids)


@pytest.fixture
def empty_catalogs(monkeypatch):
    """Catalogs are written without views, which would take most of the time of many removals."""
    monkeypatch.setattr("featurestore.database.define_views", lambda *_: None)


# Nothing that is used goes, nothing unused stays


operations = st.lists(
    st.tuples(st.sampled_from(["publish", "append", "append", "remove"]), st.integers(0, 7)),
    min_size=3, max_size=7,
)  # fmt: skip


@settings(max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(operations=operations)
def test_any_sequence_of_appends_and_removals(empty_catalogs, operations, publish, append, parts):
    """The model: an id for each set of parts. The same contents may come back by another way."""
    with tempfile.TemporaryDirectory() as folder:
        store, model = Path(folder), {}
        for step, (what, number) in enumerate(operations):
            created = f"{2001 + step}-01-01T00:00:00.000+00:00"
            known = sorted(model)
            if what == "publish" or not known:
                part = number % PARTS
                snapshot = publish(store, parts[part], shards=1 + number % 2, created=created)
                model[snapshot.manifest.id] = {part}
            elif what == "append":
                parent = known[number % len(known)]
                if left := sorted(set(range(PARTS)) - model[parent]):
                    part = left[number % len(left)]
                    snapshot = append(store, parts[part], parent, created=created)
                    model[snapshot.manifest.id] = model[parent] | {part}
            else:
                gone = known[number % len(known) :][:2]
                assert set(remove_snapshots(store, gone).ids) == set(gone)
                for name in gone:
                    del model[name]
            assert_whole(store, model)
        rows = {one.manifest.id: one.manifest.counts["examples"] for one in list_snapshots(store)}
        assert rows == {name: 20 * len(held) for name, held in model.items()}


def test_every_subset_can_go(family, tmp_path, empty_catalogs):
    store, ids = family
    subsets = [chosen for count in (1, 2, 4) for chosen in itertools.combinations(ids, count)]
    for number, chosen in enumerate(subsets):
        copy = shutil.copytree(store, tmp_path / str(number))
        before = set(files_below(copy / "snapshots"))
        removed = remove_snapshots(copy, chosen)
        left = set(files_below(copy / "snapshots"))
        assert before - left == {*removed.freed, *(f"{name}/manifest.json" for name in chosen)}
        assert set(removed.kept) <= left
        assert_whole(copy, set(ids) - set(chosen))


def test_a_child_is_read_when_its_parents_are_gone(family):
    store, ids = family
    with FeatureStore(store, ids[2]) as features:
        before = features.sql("FROM examples ORDER BY ALL")
    removed = remove_snapshots(store, ids[:2])
    assert removed.used_by == (ids[2],)
    assert all(path.startswith((f"{ids[0]}/vocabulary", f"{ids[1]}/vocabulary")) for path in removed.freed)
    with FeatureStore(store, ids[2]) as features:
        assert features.sql("FROM examples ORDER BY ALL").equals(before)


def test_a_removed_parent_comes_back_beside_its_remains(family, publish, parts):
    store, ids = family
    remove_snapshots(store, [ids[0]])
    again = publish(store, parts[0], shards=1, rejects=[REJECT])
    assert again.manifest.id == ids[0]
    assert_whole(store, ids)
    remove_snapshots(store, ids[1:3])
    assert_whole(store, [ids[0], ids[3]])


def test_a_plan_changes_nothing(family):
    store, ids = family
    before = {name: (store / name).stat().st_mtime_ns for name in files_below(store)}
    plan = plan_removal(store, [ids[0][:5], "latest", ids[0]])
    assert plan.ids == tuple(sorted([ids[0], ids[3]]))
    assert plan.newest == plan.heir.manifest.id == ids[2]
    assert plan.freed_bytes == sum((store / "snapshots" / path).stat().st_size for path in plan.freed)
    assert {name: (store / name).stat().st_mtime_ns for name in files_below(store)} == before


# The newest


def test_the_last_made_of_the_rest_becomes_the_newest(family):
    store, ids = family
    removed = remove_snapshots(store, ["latest"])
    assert (removed.ids, removed.newest) == ((ids[3],), ids[2])
    assert open_snapshot(store).manifest.id == ids[2]
    database = Database(store / "catalog.duckdb")
    assert database.execute("SELECT count(*) FROM examples") == [(60,)]
    database.close()


def test_the_newest_stays_the_newest(family):
    store, ids = family
    removed = remove_snapshots(store, [ids[2]])
    assert (removed.heir, removed.newest) == (None, ids[3])


def test_a_store_without_any_is_as_before_the_first_ingestion(family, publish, parts):
    store, ids = family
    remove_snapshots(store, ids)
    assert files_below(store) == ["ingest.lock"]
    with pytest.raises(NotFound, match="make one with `slotstore ingest"):
        open_snapshot(store)
    publish(store, parts[0])
    assert len(list_snapshots(store)) == 1


def test_a_newest_that_is_gone_is_replaced(family):
    store, ids = family
    (store / "LATEST").write_text("0123456789ab\n")
    remove_snapshots(store, [ids[0]])
    assert open_snapshot(store).manifest.id == ids[3]


def test_a_damaged_one_does_not_become_the_newest(family):
    store, ids = family
    open_snapshot(store, ids[2]).files("examples")[-1].unlink()
    with pytest.raises(ArtifactError, match=f"nothing was removed, .* snapshot {ids[2]} is damaged"):
        remove_snapshots(store, [ids[3]])
    assert len(list_snapshots(store)) == 4
    remove_snapshots(store, [ids[3], ids[2]])
    assert_whole(store, ids[:2])


# Damage and mistakes


@pytest.mark.parametrize("text", ["{", '{"format_version": 99}'])
def test_nothing_goes_while_it_is_unknown_what_another_uses(family, text):
    store, ids = family
    (store / "snapshots" / ids[2] / "manifest.json").write_text(text)
    before = files_below(store)
    with pytest.raises(ArtifactError, match=f"nothing was removed: .*(?s:.*)remove {ids[2]} --store"):
        remove_snapshots(store, [ids[0]])
    sweep(store)
    assert files_below(store) == before
    remove_snapshots(store, [ids[2]])
    assert_whole(store, [ids[0], ids[1], ids[3]])


def test_a_damaged_snapshot_can_be_removed(family):
    store, ids = family
    open_snapshot(store, ids[3]).files("examples")[0].unlink()
    remove_snapshots(store, [ids[3]])
    assert_whole(store, ids[:3])


def test_a_manifest_that_lists_files_outside_frees_none_of_them(family, tmp_path):
    store, ids = family
    path = store / "snapshots" / ids[3] / "manifest.json"
    data = json.loads(path.read_text())
    data["shards"]["examples"][0]["path"] = "../../../outside.parquet"
    path.write_text(json.dumps(data))
    (tmp_path / "outside.parquet").write_bytes(b"mine")
    remove_snapshots(store, [ids[3]])
    assert (tmp_path / "outside.parquet").read_bytes() == b"mine"
    assert_whole(store, ids[:3])


@pytest.mark.parametrize("name", ["", "0123", "nothing"])
def test_no_such_snapshot(family, name):
    store, ids = family
    with pytest.raises(NotFound):
        remove_snapshots(store, [ids[0], name])
    assert len(list_snapshots(store)) == 4


def test_no_such_store(tmp_path):
    with pytest.raises(NotFound):
        remove_snapshots(tmp_path / "nowhere", ["abc"])
    assert list(tmp_path.iterdir()) == []


def test_not_while_an_ingestion_runs(family):
    store, ids = family
    with staging(store), pytest.raises(StoreBusy, match="another ingestion"):
        remove_snapshots(store, [ids[0]])
    assert len(list_snapshots(store)) == 4


def test_a_file_that_cannot_be_removed(family, monkeypatch):
    store, ids = family

    def refuse(path, missing_ok=False):
        raise PermissionError(13, "Permission denied", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", refuse)
        with pytest.raises(ArtifactError, match=r"the removal stopped: .*Permission denied"):
            remove_snapshots(store, [ids[0]])
    assert_whole(store, ids)


# Killed


class Killed(BaseException):
    """As if the process ended: from then on everything that changes a file raises it."""


STEPS = ("unlink", "rmdir", "replace", "rename", "mkdir", "write_bytes")


def kill_at(patch, step):
    """Let ``step`` changes of files through, and no more."""
    done = itertools.count()

    def counted(change):
        def wrapped(*args, **kwargs):
            if next(done) >= step:
                raise Killed
            return change(*args, **kwargs)

        return wrapped

    for name in STEPS:
        patch.setattr(Path, name, counted(getattr(Path, name)))


def test_killed_at_any_step(family, tmp_path, empty_catalogs):
    """Whatever is still listed is whole, an heir is the newest, and the next removal ends the work."""
    store, ids = family
    gone, rest = [ids[0], ids[3]], ids[1:3]
    for step in itertools.count():
        copy = shutil.copytree(store, tmp_path / f"step-{step}")
        with pytest.MonkeyPatch.context() as patch:
            kill_at(patch, step)
            try:
                remove_snapshots(copy, gone)
            except Killed:
                killed = True
            else:
                killed = False
        found = list_snapshots(copy)
        assert [one.problems(deep=True) for one in found] == [[]] * len(found)
        left = {one.manifest.id for one in found}
        assert set(rest) <= left
        assert open_snapshot(copy).manifest.id in (ids[3], ids[2])
        if not killed:
            break
        remove_snapshots(copy, sorted(left - set(rest)))
        assert_whole(copy, rest)
        assert open_snapshot(copy).manifest.id == ids[2]
    assert step > 12
    assert_whole(copy, rest)


def test_a_process_that_dies(family):
    store, ids = family
    program = (
        "import os, sys, pathlib\n"
        "from featurestore import retention\n"
        "retention._remove_files = lambda *_: os._exit(9)\n"
        "retention.remove_snapshots(pathlib.Path(sys.argv[1]), sys.argv[2:])"
    )
    done = subprocess.run([sys.executable, "-c", program, str(store), ids[0], ids[3]])
    assert done.returncode == 9
    assert [one.manifest.id for one in list_snapshots(store)] == ids[1:3]
    assert open_snapshot(store).problems(deep=True) == []
    assert command("prune", "--keep", 9, "--store", store).startswith("removed no snapshot: 5 files")
    assert_whole(store, ids[1:3])


# Retention


def test_the_last_few_and_the_newest_stay(family):
    store, ids = family
    (store / "LATEST").write_text(f"{ids[0]}\n")  # published again of late

    def expired(*args):
        return [one.manifest.id for one in expired_snapshots(store, *args)]

    assert [expired(keep) for keep in (1, 2, 3, 9)] == [ids[1:3], ids[1:2], [], []]


def test_young_ones_stay(tmp_path, publish, parts):
    today = datetime.datetime.now(datetime.UTC)
    ids = [
        publish(tmp_path, part, created=(today - datetime.timedelta(days=days)).isoformat()).manifest.id
        for part, days in zip(parts, (30, 20, 10, 0), strict=True)
    ]
    expired = [one.manifest.id for one in expired_snapshots(tmp_path, 1, older_than_days=15)]
    assert expired == ids[:2]


# The commands


def test_prune(family):
    store, ids = family
    dry = json.loads(command("prune", "--keep", 2, "--store", store, "--dry-run", "--json"))
    assert len(list_snapshots(store)) == 4
    done = json.loads(command("prune", "--keep", 2, "--store", store, "--json"))
    assert {**dry, "dry_run": False} == done
    assert done["removed"] == sorted(ids[:2])
    assert (done["newest"], done["used_by"], done["kept_files"]) == (ids[3], [ids[2]], 5)
    assert_whole(store, ids[2:])
    assert command("prune", "--keep", 2, "--store", store) == "removed no snapshot: 0 files, 0 bytes\n"


def test_the_copies_that_trainings_made_of_a_snapshot_go_with_it(family):
    store, (first, *_) = family
    for name in (first, "another"):
        (store / "cache" / name).mkdir(parents=True)
        (store / "cache" / name / "train.npy").touch()
    remove_snapshots(store, [first])
    assert [path.name for path in (store / "cache").iterdir()] == ["another"]


def test_remove_says_what_it_does(family):
    store, ids = family
    dry = command("remove", ids[1], ids[3], "--store", store, "--dry-run").splitlines()
    said = command("remove", ids[1], ids[3], "--store", store).splitlines()
    assert len(said) == 3
    assert dry == [said[0].replace("removed", "would remove"), *said[1:]]
    both = ", ".join(sorted([ids[1], ids[3]]))
    assert said[0].startswith(f"removed {both}: ")
    assert said[1].endswith(f" bytes stay: {ids[0]} and {ids[2]} use them")
    assert said[2] == f"the newest is then {ids[2]}"
    assert command("remove", ids[0], ids[2], "--store", store).endswith("no snapshot is left\n")


# In a bucket


def test_a_store_in_a_bucket(family, s3_bucket):
    local, ids = family
    store = as_path(f"{s3_bucket}/family")
    for name in files_below(local):
        (store / name).write_bytes((local / name).read_bytes())
    (store / "snapshots" / ids[0] / "run-1" / "part.parquet").write_bytes(b"of another run")
    found = compare(*(open_snapshot(store, name) for name in ids[1:3]))
    assert (found.rows.kept, found.rows.added) == (40, 20)
    (store / "staging" / "run" / "part.parquet").write_bytes(b"half")
    with pytest.raises(StoreBusy, match=r"or was killed of late: .* remove s3://bucket/family/st"):
        remove_snapshots(store, ["latest"])
    (store / "staging" / "run" / "part.parquet").unlink()
    remove_snapshots(store, [ids[1], "latest"])
    left = list_snapshots(store)
    assert [one.manifest.id for one in left] == [ids[0], ids[2]]
    assert [one.problems(deep=True) for one in left] == [[], []]
    assert open_snapshot(store).manifest.id == ids[2]
    remove_snapshots(store, [ids[0], ids[2]])
    assert files_below(store / "snapshots") == []
