"""A model, what trains it and what it is trained on: the parts of one training, put together."""

import contextlib
import dataclasses
import functools
import math
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from featurestore.errors import TrainingError
from featurestore.store import FeatureStore
from training.checkpoint import Checkpoint, load_checkpoint, random_states, restore_random_states
from training.config import TrainConfig
from training.embeddings import UnifiedEmbedding
from training.feed import choose_feed
from training.interrupt import StopRequest
from training.keeper import CheckpointKeeper
from training.loop import Callback, EpochResult, Step, Trainer, TrainState, evaluate, fit
from training.metrics import Scores
from training.models import Table, build_model
from training.objective import objective_for, target_sql
from training.optimizers import TABLE, TABLE_LR, build_optimizer, clip_gradients
from training.order import Share
from training.profiling import Profile, ProfileResult
from training.resuming import Resumed
from training.run_folder import RunFolder, describe, new_run
from training.sharded import ShardedEmbedding, full_table, load_rows
from training.step import make_step
from training.stream import Batch, SplitStream
from training.tracking import TrackedRun
from training.world import World, broadcast_parameters, reduce_gradients

EVAL_BATCH_ROWS = 16_384


class Session:
    """One training on one rank.

    Args:
        config: its settings.
        store: the snapshot.
        device: of this rank.
        world: the ranks that train together.
        resumed: what to go on from.
        callbacks: who follows it.
        stack: closes, when the training is over, what is opened here.

    Raises:
        TrainingError: the train split is empty, or a step of that kind cannot be taken here.
        SpecError, FingerprintError: what is to be resumed cannot be, with this config or snapshot.
    """

    def __init__(
        self,
        config: TrainConfig,
        store: FeatureStore,
        device: torch.device,
        world: World,
        resumed: Resumed | None,
        callbacks: Sequence[Callback],
        stack: contextlib.ExitStack,
    ) -> None:
        if not store.splits.rows["train"]:
            raise TrainingError(f"the train split of {store!r} is empty: `slotstore splits` shows its rule")
        if resumed:
            resumed.check(config, store)
        self.config, self.store, self.device, self.world = config, store, device, world
        self.callbacks, self._stack = callbacks, stack
        self.feed = choose_feed(config.feed, store, device, config.window_rows)
        self._note(f"feed {self.feed}")
        self.objective = objective_for(store.spec.label)
        self.model = self._seeded_model()
        self.optimizer = build_optimizer(
            self.model,
            config.optimizer,
            lr=config.learning_rate,
            weight_decay=config.weight_decay,
            table_lr=config.table_learning_rate,
            capturable=config.step == "graph",
        )
        self.state = self._restore(resumed) if resumed else TrainState()
        self.over = resumed.over(config) if resumed else None
        self.folder = self._run_folder(resumed)
        self._note(f"checkpoints {self.folder.path}")
        self.profile = Profile(device, self.folder.path) if config.profile else None

    def _note(self, text: str) -> None:
        for callback in self.callbacks:
            callback.on_note(text)

    def _seeded_model(self) -> nn.Module:
        """Build the model on the CPU, so that a seed gives the same one on every device and any ranks."""
        config, spec = self.config, self.store.spec
        sparse = config.optimizer != "adam"
        table: Table = functools.partial(UnifiedEmbedding, sparse=sparse)
        if config.shard_table:
            table = functools.partial(ShardedEmbedding, world=self.world, sparse=sparse)
        bias = self.objective.constant(_mean_label(self.store))
        torch.manual_seed(config.seed)
        model = build_model(config.model, spec, bias, table=table).to(self.device)
        broadcast_parameters(model, self.world)
        return model

    def _restore(self, resumed: Resumed) -> TrainState:
        checkpoint, config = resumed.checkpoint, self.config
        self._load_model(checkpoint)
        self.optimizer.load_full_state_dict(checkpoint.optimizer)
        table_lr = TABLE_LR if config.table_learning_rate is None else config.table_learning_rate
        rates = [config.learning_rate, table_lr]  # what was asked for now, not then
        for group, rate in zip(self.optimizer.param_groups, rates, strict=False):
            group.update(lr=rate, weight_decay=config.weight_decay)
        restore_random_states(checkpoint.random)
        self._note(f"resuming {resumed.what} at {describe(checkpoint)}")
        return TrainState.from_dict(checkpoint.state)

    def _load_model(self, checkpoint: Checkpoint) -> None:
        """Take over the weights; of a table spread over ranks, this rank's rows."""
        weights = dict(checkpoint.model)
        table = self.model.get_submodule("embedding")
        if isinstance(table, ShardedEmbedding):
            load_rows(table, weights[TABLE])
            weights[TABLE] = table.weight.detach()
        self.model.load_state_dict(weights)

    def _run_folder(self, resumed: Resumed | None) -> RunFolder:
        """Return where checkpoints go; a resumed run goes on in its folder, or takes its best model along."""
        config = self.config
        if config.checkpoint_dir is not None:
            folder = RunFolder(config.checkpoint_dir)
        else:
            made = resumed.folder if resumed else new_run(config.folder / "checkpoints", config.run_name)
            folder = RunFolder(Path(self.world.share_text(str(made.path))))
        if self.world.rank == 0:
            self._stack.enter_context(folder.held())
        if resumed:
            self._take_over(resumed, folder)
        return folder

    def _take_over(self, resumed: Resumed, folder: RunFolder) -> None:
        """Make a folder that of the run resumed; where its best model is lost, the best is sought anew."""
        found = True
        if self.world.rank == 0:
            found = folder.take_best(resumed.checkpoint, resumed.folder)
            if resumed.damaged:  # else it would take the place of the one before, which is good
                resumed.folder.last.unlink(missing_ok=True)
        (lost,) = self.world.any_of([not found])
        if lost and self.state.history:
            self._note(
                f"the best model of {resumed.what} is not there: the best of the epochs to come is kept"
            )
            self.state.history = [dataclasses.replace(one, best=False) for one in self.state.history]

    def fit(self, callbacks: Sequence[Callback], tracked: TrackedRun | None) -> list[EpochResult]:
        """Train all epochs that are left."""
        if self.over and self.state.best < math.inf:
            self._note(f"{self.over}. Its best model is evaluated")
            return self.state.history
        source = self._train_source()
        validation = self._stream("validation", EVAL_BATCH_ROWS)
        profile = self.profile
        with StopRequest() as stop, profile.running() if profile else contextlib.nullcontext():
            keeper = self._keeper(stop, tracked)
            validate = functools.partial(self._validate, validation, keeper)
            trainer = Trainer(
                self.model,
                profile.step(self._step()) if profile else self._step(),
                self.objective,
                callbacks,
                sum_over_ranks=self.world.sum_over_ranks,
                end_epoch=self.optimizer.flush,
            )
            return fit(
                trainer,
                profile.source(source) if profile else source,
                (profile.call("validation", validate) if profile else validate) if validation.rows else None,
                epochs=self.config.epochs,
                patience=self.config.patience,
                state=self.state,
                keeper=keeper,
            )

    def _keeper(self, stop: StopRequest, tracked: TrackedRun | None) -> CheckpointKeeper:
        words = ["slotstore", "train"]
        if self.world.size > 1:
            words = ["torchrun", "--nproc-per-node", str(self.world.size), "-m", "training.train"]
        words += ["--store", str(self.config.store), "--resume", str(self.folder.path)]
        return CheckpointKeeper(
            self.folder,
            functools.partial(self._checkpoint, tracked=tracked),
            seconds=self.config.checkpoint_seconds,
            stop=stop,
            resume_command=shlex.join(words),
            world=self.world,
        )

    def _step(self) -> Step:
        config, world = self.config, self.world
        low, high = Share(world.rank, world.size).bounds(config.batch_size)
        clip = None
        if config.clip_norm is not None:
            clip = functools.partial(_clip, max_norm=config.clip_norm)
        return make_step(
            config.step,
            self.model,
            self.profile.optimizer(self.optimizer) if self.profile else self.optimizer,
            self.objective,
            batch_rows=high - low,
            precision=config.precision,
            clip=clip,
            reduce=functools.partial(reduce_gradients, world=world) if world.size > 1 else None,
            before=self.optimizer.catch_up if config.optimizer != "adam" else None,
        )

    def _train_source(self) -> SplitStream:
        """Return the training batches; where they are streamed, rank 0 makes the copy for all."""
        source = self._stream("train", self.config.batch_size, shuffle=True)
        if self.world.rank == 0:
            source.prepare()
        self.world.barrier()
        return source

    def _stream(self, split: str, batch_size: int, *, shuffle: bool = False) -> SplitStream:
        config = self.config
        stream = SplitStream(
            self.store,
            split,
            batch_size,
            seed=config.seed,
            shuffle=shuffle,
            feed=self.feed.feed,
            window_rows=config.window_rows,
            device=self.device,
            share=Share(self.world.rank, self.world.size),
        )
        self._stack.callback(stream.close)
        return stream

    def _validate(self, stream: SplitStream, keeper: CheckpointKeeper) -> Scores:
        def batches() -> Iterator[Batch]:
            for batch in stream.epoch(0):
                if keeper.stopping and self.world.size == 1:
                    keeper.keep(self.state)  # at the end of the epoch, not yet validated
                yield batch

        return evaluate(self.model, batches(), self.objective.metrics(), self.world.gather_rows)

    def _checkpoint(self, state: TrainState, tracked: TrackedRun | None) -> Checkpoint | None:
        """Return all that a training needs to go on, on rank 0; None on others, which must call this too."""
        weights, manifest = self.model.state_dict(), self.store.snapshot.manifest
        table = self.model.get_submodule("embedding")
        if isinstance(table, ShardedEmbedding):
            weights[TABLE] = full_table(table)
        optimizer = self.optimizer.full_state_dict()
        if optimizer is None:
            return None
        return Checkpoint(
            model=weights,
            optimizer=optimizer,
            state=state.to_dict(),
            random=random_states(),
            config=self.config.to_dict(),
            spec=self.store.spec.to_dict(),
            fingerprint=manifest.fingerprint,
            snapshot=manifest.id,
            tracked=dataclasses.asdict(tracked) if tracked else None,
        )

    def load_best(self) -> Checkpoint:
        """Take over the weights of the best epoch."""
        self.world.barrier()  # rank 0 has written it
        best = load_checkpoint(self.folder.best, mmap=True)
        self._load_model(best)
        return best

    def test(self) -> Scores | None:
        """Evaluate the model on the test split; None where that is empty."""
        stream = self._stream("test", EVAL_BATCH_ROWS)
        if not stream.rows:
            return None
        return evaluate(self.model, stream.epoch(0), self.objective.metrics(), self.world.gather_rows)

    def profiled(self) -> ProfileResult | None:
        """Return where the time went, where that was asked for."""
        return self.profile.result() if self.profile else None


def _clip(model: nn.Module, max_norm: float) -> Any:  # noqa: ANN401
    return clip_gradients(model.parameters(), max_norm)


def _mean_label(store: FeatureStore) -> float:
    """Return the mean label of the train split: a rating, or the share of positives."""
    value = target_sql(store.spec.label)
    mean: float = store.sql(f"SELECT avg({value}) AS mean FROM train")["mean"][0].as_py()  # noqa: S608
    return mean
