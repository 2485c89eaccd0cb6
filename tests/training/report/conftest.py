"""Stores with all that a page shows: rejects and values that look like HTML, comparisons, runs."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
from click.testing import CliRunner

from training.comparison.command import command as compare
from training.config import TrainConfig
from training.job import train
from training.report.command import command

HOSTILE_ZIP = "</script><script>document.title='owned'</script>"
HOSTILE_LINE = "1::1::<img src=x onerror=\"document.title='owned'\">::978300000"


@dataclass(frozen=True)
class Reported:
    """A store, the checkpoint of a run in it, and the folder for pages."""

    store: Path
    checkpoint: Path
    folder: Path

    def page(self, *args):
        """Write a page and return its path."""
        output = self.folder / f"page-{len(list(self.folder.iterdir()))}.html"
        run_report("--store", self.store, "--output", output, *args)
        return output


def run_report(*args):
    """Run the command, without MLflow."""
    words = [*map(str, args), "--no-tracking"]
    return CliRunner().invoke(command, words, catch_exceptions=False, standalone_mode=False)


@pytest.fixture(scope="session")
def reported(tmp_path_factory, tiny_store):
    """The default spec on made-up ratings, two comparisons of two layouts, a run of two epochs."""
    folder = tmp_path_factory.mktemp("reported")
    store = folder / "store"  # without what other tests have compared
    shutil.copytree(tiny_store, store, ignore=shutil.ignore_patterns("comparisons", "checkpoints"))
    sizes = ["--dim", "4", "--batch-size", "512", "--jobs", "1", "--no-tracking", "--epochs", "1"]
    for arguments in (["--label", "rating", "--seeds", "1"], ["--seeds", "2"]):
        words = [*arguments, "--layouts", "unified,exact", "--budgets", "1.0x,0.5x"]
        result = CliRunner().invoke(compare, ["--store", str(store), *words, *sizes])
        assert result.exit_code == 0, result.output
    run = store / "checkpoints" / "20260101-000000-aaaa"
    train(TrainConfig(store, epochs=2, tracking=False, checkpoint_dir=run))
    (folder / "pages").mkdir()
    return Reported(store, run / "best.pt", folder / "pages")


@pytest.fixture(scope="session")
def hostile(tmp_path_factory, ingest_folder, write_tiny_source):
    """A tiny store whose data would run scripts, were it not escaped, and whose rejects would too."""
    folder = tmp_path_factory.mktemp("hostile")
    source = folder / "ml"
    write_tiny_source(source)
    users = (source / "users.dat").read_text("latin-1").replace("48067", HOSTILE_ZIP)
    (source / "users.dat").write_text(users, "latin-1")
    with (source / "ratings.dat").open("a") as file:
        file.write(f"{HOSTILE_LINE}\n")
    ingest_folder(source, folder / "store", max_reject_ratio=0.5)
    (folder / "pages").mkdir()
    return Reported(folder / "store", folder / "none.pt", folder / "pages")
