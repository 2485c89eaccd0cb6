"""The store that a benchmark measures: one that is named, or a synthetic one made for it and thrown away."""

import contextlib
import subprocess
import sys
import tempfile
from pathlib import Path

from featurestore.store import FeatureStore
from training.config import TrainConfig
from training.job import train


def add_options(parser):
    """Add what says which store."""
    parser.add_argument(
        "--rows", default="ml-1m", help="rows of the synthetic store to make: ml-1m, 10m, ..."
    )
    parser.add_argument("--spec", default="movielens", help="its spec: movielens, article, or a file")
    parser.add_argument("--store", type=Path, help="measure this store instead")


@contextlib.contextmanager
def opened(args):
    """Open the store, made first where none is named."""
    with tempfile.TemporaryDirectory() as folder:
        path = args.store or Path(folder)
        if not args.store:
            ingest = ["-m", "pipelines.ingest", f"synthetic:{args.rows}", "--store", folder]
            subprocess.run([sys.executable, *ingest, "--spec", args.spec], check=True)
        with FeatureStore(path) as store:
            yield store


def trained(store, args, **options):
    """Train for ``args.epochs`` whole epochs, without a trace of it left; return the result."""
    with tempfile.TemporaryDirectory() as folder:
        config = TrainConfig(
            store.path,
            epochs=args.epochs,
            patience=args.epochs,
            batch_size=args.batch_size,
            threads=args.threads,
            device=args.device,
            tracking=False,
            checkpoint_dir=Path(folder),
            **options,
        )
        return train(config)


def integers(text):
    """Read numbers separated by commas."""
    return [int(number.replace("_", "")) for number in text.split(",")]
