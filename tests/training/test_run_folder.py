import dataclasses
import os

import pytest

from featurestore.errors import ArtifactError, NotFound, VersionError
from training.checkpoint import load_checkpoint, save_checkpoint
from training.run_folder import RunFolder, find_run, new_run


@pytest.fixture
def folder(trained, tmp_path):
    """A run with two states, 100 and 200 rows into its third epoch."""
    run, checkpoint = RunFolder(tmp_path / "run"), load_checkpoint(trained.checkpoint)
    for rows in (100, 200):
        run.save_last(dataclasses.replace(checkpoint, state={**checkpoint.state, "rows": rows}))
    return run


def damage(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def load(run):
    notes = []
    return run.load_last(notes.append).rows, "".join(notes)


def test_the_last_state_is_loaded(folder):
    assert load(folder) == (200, "")


@pytest.mark.parametrize("harm", [damage, os.unlink, lambda path: os.truncate(path, 1000)])
def test_where_the_last_state_is_damaged_the_one_before_is_used_aloud(folder, harm):
    harm(folder.last)
    rows, said = load(folder)
    assert rows == 100
    assert "last.pt" in said
    assert "Going on from the checkpoint before it: epoch 3, 100 rows into it." in said


def test_where_both_are_damaged_it_is_an_error(folder):
    damage(folder.last)
    damage(folder.previous)
    with pytest.raises(ArtifactError, match=r"previous.pt is no intact checkpoint"):
        load(folder)


def test_where_there_is_none_it_is_an_error(tmp_path):
    with pytest.raises(NotFound, match=r"no checkpoint .*last.pt"):
        load(RunFolder(tmp_path))


def test_a_state_of_another_version_is_not_damage(folder):
    checkpoint = load_checkpoint(folder.last)
    save_checkpoint(folder.last, dataclasses.replace(checkpoint, format_version=99))
    with pytest.raises(VersionError, match=r"format version 99"):
        load(folder)


def test_runs_are_found_by_what_a_person_has_at_hand(tmp_path):
    checkpoints = tmp_path / "checkpoints"
    names = ["20260101-000000-aaaa", "20260102-000000-bbbb-first", "20260103-000000-cccc-second"]
    for name in [*names, "best"]:
        (checkpoints / name).mkdir(parents=True)
    file = checkpoints / names[0] / "best.pt"
    file.touch()
    assert find_run("aaaa", checkpoints) == RunFolder(checkpoints / names[0])
    assert find_run("first", checkpoints) == RunFolder(checkpoints / names[1])
    assert find_run("latest", checkpoints) == RunFolder(checkpoints / names[2])
    assert find_run(str(checkpoints / names[1]), checkpoints) == RunFolder(checkpoints / names[1])
    assert find_run(str(file), checkpoints) == file
    with pytest.raises(NotFound, match=r"3 runs are called like '2026'"):
        find_run("2026", checkpoints)
    with pytest.raises(NotFound, match=r"no run 'secnd' in .*checkpoints"):
        find_run("secnd", checkpoints)
    with pytest.raises(NotFound, match=r"no run ''"):
        find_run("", checkpoints)
    with pytest.raises(NotFound, match=r"no run 'latest'"):
        find_run("latest", tmp_path / "nowhere")


def test_new_runs_have_folders_of_their_own(tmp_path):
    one, other = new_run(tmp_path, "mine"), new_run(tmp_path, "mine")
    assert one != other
    assert one.path.name.endswith("-mine")
