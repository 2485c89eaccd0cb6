import json
import math

import pytest
import torch
from torch import nn

from featurestore.errors import TrainingError
from training.loop import EpochResult, Trainer, TrainState, evaluate, fit, train_epoch
from training.metrics import RatingMetrics, Scores
from training.objective import BINARY, RATING
from training.step import EagerStep
from training.stream import Batch


class Fixed:
    """The same batches every epoch."""

    def __init__(self, *batches):
        self.batches = batches
        self.rows = sum(len(batch.labels) for batch in batches)

    def epoch(self, number, start=0):
        for batch in self.batches:
            if start <= 0:
                yield batch
            start -= len(batch.labels)


class Constant(nn.Module):
    """Predicts its one parameter."""

    def __init__(self, value):
        super().__init__()
        self.value = nn.Parameter(torch.tensor(value))

    def forward(self, slots):
        return self.value.expand(len(slots))


class Recorder:
    def __init__(self):
        self.heard = []

    def on_note(self, text):
        self.heard.append(("note", text))

    def on_start(self, rows):
        self.heard.append(("start", rows))

    def on_step(self, epoch, rows, loss):
        self.heard.append(("step", epoch, rows, round(loss.item(), 6)))

    def on_epoch(self, result):
        self.heard.append(("epoch", result.epoch, result.best))


class Keeper:
    """Notes what it is asked to keep; a state is due at the steps it was given."""

    def __init__(self, *due_rows):
        self.due_rows, self.bests, self.kept, self.ends = due_rows, [], [], []

    def due(self, state):
        return state.rows in self.due_rows

    def keep(self, state):
        self.kept.append(state.to_dict())

    def keep_best(self, state):
        self.bests.append(state.epoch - 1)

    def end_epoch(self, state, *, last):
        self.ends.append((state.epoch - 1, last))


def batch(*labels):
    return Batch(torch.zeros(len(labels), 1, dtype=torch.int32), torch.tensor(labels), len(labels))


def trainer(value=0.0, lr=0.0, objective=RATING, callbacks=()):
    model = Constant(value)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    return Trainer(model, EagerStep(model, optimizer, objective), objective, callbacks)


def validations(*losses):
    """Return a validate function that gives these losses, one an epoch."""
    remaining = iter(losses)
    return lambda: Scores({"rmse": (value := next(remaining))}, loss=value)


def train_once(learner, *batches, epoch=1):
    """Train one epoch without validation; return its result."""
    state = TrainState(epoch=epoch)
    fit(learner, Fixed(*batches), None, epochs=epoch, patience=1, state=state, keeper=Keeper())
    return state.history[-1]


def ended(epoch, score, best):
    scores = Scores({"rmse": score}, score)
    return EpochResult(epoch, scores, scores, rows=1, seconds=1.0, best=best)


def run(validate, epochs=10, patience=2, history=()):
    keeper, state = Keeper(), TrainState(epoch=len(history) + 1, history=[*history])
    results = fit(
        trainer(), Fixed(batch(1.0)), validate, epochs=epochs, patience=patience, state=state, keeper=keeper
    )
    assert keeper.ends == [(result.epoch, result is results[-1]) for result in results[len(history) :]]
    return [result.epoch for result in results], keeper.bests


def test_the_train_loss_is_the_mean_over_rows_not_over_batches():
    result = train_once(trainer(), batch(1.0, 1.0, 1.0), batch(3.0))
    assert result.train.loss == math.sqrt((3 * 1 + 9) / 4)
    assert result.rows == 4
    assert result.validation is None
    assert result.score == result.train.loss


def test_it_stops_after_patience_epochs_without_a_better_one_and_saves_the_best():
    assert run(validations(3.0, 2.0, 2.5, 2.0, 1.0)) == ([1, 2, 3, 4], [1, 2])
    assert run(validations(3.0, 2.0, 2.5, 1.5, 1.6), epochs=5) == ([1, 2, 3, 4, 5], [1, 2, 4])
    assert run(validations(3.0, 3.0), patience=1) == ([1, 2], [1])


def test_a_resumed_training_has_a_score_to_beat():
    assert run(validations(3.0, 2.0), history=[ended(1, 1.0, best=True)]) == ([1, 2, 3], [])
    assert run(validations(0.5, 2.0), epochs=3, history=[ended(1, 1.0, best=True)]) == ([1, 2, 3], [2])


def test_a_resumed_training_remembers_the_epochs_without_a_gain():
    before = [ended(1, 1.0, best=True), ended(2, 1.5, best=False)]
    assert run(validations(2.0, 0.1), history=before) == ([1, 2, 3], [])


def test_callbacks_hear_of_the_start_of_every_step_and_of_every_epoch():
    recorder = Recorder()
    train_once(trainer(callbacks=[recorder]), batch(1.0, 1.0), batch(2.0), epoch=4)
    assert recorder.heard == [("start", 3), ("step", 4, 2, 1.0), ("step", 4, 3, 4.0), ("epoch", 4, True)]


@pytest.mark.parametrize("label", [math.nan, math.inf])
def test_a_loss_that_is_no_number_stops_the_training_and_says_what_to_do(label):
    expected = r"the loss became (nan|inf) in the batch of rows 1 to 1 of the order of epoch 1: lower .*--lr"
    with pytest.raises(TrainingError, match=expected):
        train_once(trainer(), batch(1.0), batch(label), batch(1.0))


def test_it_is_noticed_before_the_epoch_ends(monkeypatch):
    monkeypatch.setattr("training.loop.LOOK_STEPS", 2)
    recorder = Recorder()
    with pytest.raises(TrainingError, match=r"in the batch of rows 0 to 0 of"):
        train_once(trainer(callbacks=[recorder]), batch(math.nan), *[batch(1.0)] * 9)
    assert [heard[0] for heard in recorder.heard] == ["start", "step"]


@pytest.mark.parametrize("rows", [1, 3, 4])
def test_a_state_that_is_kept_has_all_that_the_rest_of_the_epoch_needs(rows):
    batches = [batch(1.0), batch(2.0, 3.0), batch(4.0), batch(0.1, 0.7)]
    whole, keeper = TrainState(history=[ended(0, 1.0, best=True)]), Keeper(rows)
    train_epoch(trainer(), Fixed(*batches), whole, keeper)
    (kept,) = keeper.kept
    rest = TrainState.from_dict(kept)
    assert rest.rows == rows
    train_epoch(trainer(), Fixed(*batches), rest)
    assert (rest.rows, rest.loss, rest.history) == (whole.rows, whole.loss, whole.history)


def test_a_state_is_plain_values():
    state = TrainState(2, 5, 0.1 + 0.2, 1.5, [ended(1, 1 / 3, best=True)])
    plain = json.loads(json.dumps(state.to_dict()))
    assert TrainState.from_dict(plain) == state


def test_a_validation_that_is_no_number_stops_the_training():
    with pytest.raises(TrainingError, match=r"validation loss of epoch 1 is nan"):
        run(validations(math.nan))


def test_nothing_to_train_on_is_an_error():
    with pytest.raises(TrainingError, match=r"no rows"):
        train_once(trainer())


def test_steps_follow_the_gradient():
    """One SGD step on the mean squared error: 0 - 0.1 * 2 * (0 - 3)."""
    learner = trainer(lr=0.1)
    train_once(learner, batch(3.0))
    assert learner.model.value.item() == pytest.approx(0.6)


def test_a_binary_loss_is_in_nats():
    result = train_once(trainer(objective=BINARY), batch(1.0, 0.0))
    assert result.train.values == pytest.approx({"log_loss": math.log(2)})


def test_evaluation_changes_nothing_and_needs_no_gradient():
    model = Constant(2.0)
    scores = evaluate(model, Fixed(batch(1.0), batch(4.0)).epoch(0), RatingMetrics())
    assert scores.values == pytest.approx({"rmse": math.sqrt(2.5), "mae": 1.5})
    assert model.value.item() == 2.0
    assert model.value.grad is None
