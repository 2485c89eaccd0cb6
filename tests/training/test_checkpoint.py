import dataclasses

import pytest
import torch

from featurestore.errors import ArtifactError, FingerprintError, NotFound, VersionError
from featurestore.spec import load_spec
from training.checkpoint import (
    FORMAT_VERSION, Checkpoint, load_checkpoint, random_states, restore_random_states, save_checkpoint,
)  # fmt: skip


@pytest.fixture
def checkpoint():
    spec = load_spec("article")
    return Checkpoint(
        model={"weight": torch.arange(50_000, dtype=torch.float32)},
        optimizer={
            "state": {0: {"step": torch.tensor(3.0)}},
            "param_groups": [{"lr": 0.1, "betas": (0.9, 0.999)}],
        },
        state={"history": [{"epoch": 3}], "rows": 17},
        random=random_states(),
        config={"epochs": 5, "store": "store", "threads": None},
        spec=spec.to_dict(),
        fingerprint=spec.fingerprint,
        snapshot="0123456789ab",
        tracked=None,
    )


def test_what_is_saved_is_loaded(checkpoint, tmp_path):
    path = tmp_path / "new" / "folder" / "best.pt"
    save_checkpoint(path, checkpoint)
    loaded = load_checkpoint(path)
    assert loaded.model["weight"].equal(checkpoint.model["weight"])
    tensors = {"model": None, "random": None}
    assert {**vars(loaded), **tensors} == {**vars(checkpoint), **tensors}
    assert loaded.random["cpu"].equal(checkpoint.random["cpu"])
    assert (loaded.epoch, loaded.rows) == (3, 17)
    assert loaded.load_spec().fingerprint == checkpoint.fingerprint
    assert [file.name for file in path.parent.iterdir()] == ["best.pt"]


def test_a_failed_save_leaves_the_last_one(checkpoint, tmp_path, monkeypatch):
    path = tmp_path / "best.pt"
    save_checkpoint(path, checkpoint)

    def full(content, file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(ArtifactError, match=r"cannot write the checkpoint .*best.pt.*No space left"):
        save_checkpoint(path, checkpoint)
    assert load_checkpoint(path).epoch == 3
    assert [file.name for file in tmp_path.iterdir()] == ["best.pt"]


def test_random_states_are_restored():
    states = random_states()
    expected = torch.rand(3)
    restore_random_states(states)
    assert torch.rand(3).equal(expected)


def test_the_old_file_can_be_kept_under_another_name(checkpoint, tmp_path):
    last, previous = tmp_path / "last.pt", tmp_path / "previous.pt"
    for rows in (1, 2, 3):
        state = {**checkpoint.state, "rows": rows}
        save_checkpoint(last, dataclasses.replace(checkpoint, state=state), previous)
    assert (load_checkpoint(last).rows, load_checkpoint(previous).rows) == (3, 2)
    assert len(list(tmp_path.iterdir())) == 2


def test_a_missing_file_says_how_to_make_one(tmp_path):
    with pytest.raises(NotFound, match=r"no checkpoint .*best.pt: `slotstore train` writes one"):
        load_checkpoint(tmp_path / "best.pt")


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[: len(content) // 2],
        lambda content: b"",
        lambda content: b"no checkpoint at all",
        lambda content: (
            content[:100_000] + bytes([content[100_000] ^ 1]) + content[100_001:]
        ),  # one bit of a weight
    ],
    ids=["cut", "empty", "foreign", "one bit"],
)
def test_a_damaged_file_is_refused(checkpoint, tmp_path, damage):
    path = tmp_path / "best.pt"
    save_checkpoint(path, checkpoint)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ArtifactError, match=r"best.pt is no intact checkpoint"):
        load_checkpoint(path)


@pytest.mark.parametrize(
    "content", [{"weight": torch.zeros(2)}, [1, 2], torch.zeros(2)], ids=["dict", "list", "tensor"]
)
def test_a_file_of_other_content_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "other.pt")
    with pytest.raises(ArtifactError, match=r"no intact checkpoint"):
        load_checkpoint(tmp_path / "other.pt")


def test_a_file_that_would_run_code_is_refused(tmp_path):
    torch.save({"format_version": FORMAT_VERSION, "model": print}, tmp_path / "evil.pt")
    with pytest.raises(ArtifactError, match=r"no intact checkpoint"):
        load_checkpoint(tmp_path / "evil.pt")


def test_another_version_is_refused(checkpoint, tmp_path):
    save_checkpoint(tmp_path / "best.pt", dataclasses.replace(checkpoint, format_version=99))
    with pytest.raises(VersionError, match=rf"format version 99, this slotstore reads {FORMAT_VERSION}"):
        load_checkpoint(tmp_path / "best.pt")


def test_a_snapshot_of_another_spec_is_refused_showing_both(checkpoint, tiny):
    with pytest.raises(FingerprintError) as refused:
        checkpoint.check_fits(tiny.snapshot)
    for shown in (checkpoint.fingerprint, checkpoint.snapshot, tiny.snapshot.manifest.fingerprint):
        assert shown in str(refused.value)
