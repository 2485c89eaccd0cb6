"""Slots from the store train exactly as hashes in `forward` do: same losses, epoch by epoch."""

import pytest
import torch
import xxhash

from featurestore.store import FeatureStore
from training.loop import Trainer, TrainState, train_epoch
from training.models import build_model
from training.objective import RATING
from training.order import Shuffle
from training.stream import Batch, SplitStream

COLUMNS = ("user_id", "movie_id", "age", "occupation", "zip")
SEEDS = ((0, 1), (2, 3), (4,), (5,), (6,))
NUM_SLOTS = 1000
BATCH = 512
EPOCHS = 2


class ArticleInForward(torch.nn.Module):
    """The article's module: it hashes every value of a batch in `forward`, one by one."""

    def __init__(self, spec):
        super().__init__()
        self.inner = build_model("article", spec, bias=3.5)

    def forward(self, rows):
        slots = [
            [xxhash.xxh32(value.encode(), seed).intdigest() % NUM_SLOTS for value in values]
            for values, seeds in zip(zip(*rows, strict=True), SEEDS, strict=True)
            for seed in seeds
        ]
        return self.inner(torch.tensor(slots).T)


class RawValues:
    """The raw values of the train split, as the article's loader gives them: texts and a label."""

    def __init__(self, store):
        table = store.stream("train", [*COLUMNS, "rating"]).read_all()
        texts = [["" if value is None else value for value in table[name].to_pylist()] for name in COLUMNS]
        self.texts = list(zip(*texts, strict=True))
        self.labels = torch.from_numpy(table["rating"].to_numpy().copy())
        self.rows = len(self.labels)

    def epoch(self, number, start=0):
        (window,) = Shuffle(self.rows, seed=0).windows(number)  # that of the stream with seed 0
        order = window.positions()
        for start in range(0, self.rows, BATCH):
            picked = order[start : start + BATCH]
            yield Batch([self.texts[row] for row in picked], self.labels[picked], len(picked))


def losses(model, source):
    optimizer, found = torch.optim.Adam(model.parameters(), fused=True), []

    def step(inputs, labels, _):  # the plain step: what is looked up is slots here, raw values there
        optimizer.zero_grad()
        loss = RATING.loss(model(inputs), labels)
        loss.backward()
        optimizer.step()
        return loss.detach()

    trainer = Trainer(model, step, RATING)
    for epoch in range(1, EPOCHS + 1):
        state = TrainState(epoch=epoch)
        train_epoch(trainer, source, state)
        found.append(state.loss)
    return found


def check(store_path):
    with FeatureStore(store_path) as store:
        torch.manual_seed(0)
        hashing = ArticleInForward(store.spec)
        stored = build_model("article", store.spec)
        stored.load_state_dict(hashing.inner.state_dict())
        from_store = losses(stored, SplitStream(store, "train", BATCH, seed=0, shuffle=True))
        assert from_store == losses(hashing, RawValues(store))
        assert from_store[-1] < from_store[0]
        for mine, theirs in zip(stored.parameters(), hashing.parameters(), strict=True):
            assert mine.equal(theirs)


def test_generated_data_train_the_same_from_the_store_as_hashed_in_forward(article_store):
    check(article_store)


@pytest.mark.real_data
def test_real_data_train_the_same_from_the_store_as_hashed_in_forward(ml100k_article_store):
    check(ml100k_article_store)


def test_the_spec_is_the_articles(article_store):
    with FeatureStore(article_store) as store:
        assert store.spec.table.num_slots == NUM_SLOTS
        assert [(feature.column, feature.seeds) for feature in store.spec.features] == list(
            zip(COLUMNS, SEEDS, strict=True)
        )
