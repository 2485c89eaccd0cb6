"""How much values that share rows of a table disturb each other, measured in a trained network.

B. Coleman et al., "Unified Embedding: Battle-Tested Feature Representations for Web-Scale ML Systems",
NeurIPS 2023, on why features can share a table: values of one feature pull a row that they share along one
direction, that in which the network reads the feature. Values of other features pull it along other
directions, and the network can turn these apart. Here are the numbers: whose gradients the rows get, the
angles between the directions, the norms of rows by how many values they hold, and the metrics of values that
share their rows and of those that do not.

What can be measured are the plans whose values have rows of one table, `TABLE_PLANS`. `Elements` shares
single floats, which have no direction; `TensorTrain` and `DeepHash` have no rows that values hold.

Words and results are those of `training.comparison.measures`. Notation: F features, V_f values of
feature f, V their sum, D the width of an embedding, k_f lookups of feature f, K their sum, P places, G
groups, R rows.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeGuard

import numpy as np
import torch
from torch.func import functional_call

from featurestore.plans import Integers, Plan, Products, Projected, Rows, Sums
from training.comparison.data import Coded
from training.comparison.measures import (
    COLLISIONS,
    CollisionScores,
    Doubles,
    Flags,
    GradientShares,
    Measures,
    Readouts,
    RowLoads,
    Whole,
)
from training.comparison.setup import Setup
from training.networks import Network
from training.objective import Objective, objective_for

TablePlan = Rows | Projected | Sums | Products
TABLE_PLANS = (Rows, Projected, Sums, Products)
"""The plans that can be measured."""

BLOCK_ROWS = 8192
SHUFFLE_SEED = 0
PER_VALUE = ("signs", "code", "weight_slots")
"""Buffers of `training.layout_embeddings` with an entry for each value, beside ``slots``."""

Batch = tuple[torch.Tensor, torch.Tensor]
Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def is_measurable(plan: Plan) -> TypeGuard[TablePlan]:
    """Return whether a plan is one of `TABLE_PLANS`."""
    return isinstance(plan, TABLE_PLANS)


def measure(model: Network, plan: Plan, coded: Coded, setup: Setup) -> Measures | None:
    """Measure a trained network over the embedding of a plan; None where it is none of `TABLE_PLANS`.

    Parameters, their gradients and torch's random numbers are left as they are. The batches are of
    ``setup.batch_size`` training rows, shuffled as they always are here.

    Args:
        model: of `training.models`, on the CPU; its ``embedding`` is made by `embed` from ``plan``.
        plan: says who has which rows.
        coded: the splits ``train`` and ``test``.
        setup: the label, and the size of a batch.
    """
    if not is_measurable(plan):
        return None
    names = tuple(field.name for field in coded.fields)
    codes, labels = (torch.from_numpy(part["train"]) for part in (coded.codes, coded.labels))
    objective, places = objective_for(setup.label), find_places(plan)
    traffic = count_traffic(coded.codes["train"], plan.slots)
    directions = readout_directions(model, codes)
    order = torch.randperm(len(codes), generator=torch.Generator().manual_seed(SHUFFLE_SEED))
    parts = (torch.split(part[order], setup.batch_size) for part in (codes, labels))
    table = model.get_parameter("embedding.table").detach()
    return Measures(
        features=names,
        gradients=gradient_shares(
            model,
            plan,
            zip(*parts, strict=True),
            objective.loss,
            traffic,
            row_directions(model, plan, directions),
        ),
        readouts=Readouts(directions, sharing_features(places)),
        rows=RowLoads(
            torch.linalg.vector_norm(table.double(), dim=1).numpy(),
            np.bincount(places.row, minlength=plan.num_rows),
            np.bincount(places.row, traffic[places.value], plan.num_rows).astype(np.int64),
        ),
        collisions=dict(zip(names, collision_scores(model, coded, objective, places), strict=True)),
    )


@dataclass(frozen=True)
class Places:
    """Which value has which row.

    of_lookups: of each feature int64 (V_f, k_f), the places to which the lookups of a value lead.
    value, row, lookup, group: int64 (P,). Values are numbered through all features; so are lookups, 0..K-1,
        of which a place has the first that leads there.
    group_row, group_feature: int64 (G,).
    """

    of_lookups: tuple[Whole, ...]
    value: Whole
    row: Whole
    lookup: Whole
    group: Whole
    group_row: Whole
    group_feature: Whole

    @property
    def feature(self) -> Whole:
        """Each place's feature, int64 (P,)."""
        return self.group_feature[self.group]


def find_places(plan: TablePlan) -> Places:
    """Return the places and groups of a plan."""
    features, sizes = len(plan.slots), [slots.shape for slots in plan.slots]
    rows = np.concatenate([slots.reshape(-1) for slots in plan.slots]).astype(np.int64)  # value by value
    starts = np.cumsum([0, *(size[0] for size in sizes)])
    values = np.concatenate(
        [start + np.repeat(np.arange(v), k) for start, (v, k) in zip(starts, sizes, strict=False)]
    )
    first = np.cumsum([0, *(size[1] for size in sizes)])
    lookups = np.concatenate(
        [start + np.tile(np.arange(k), v) for start, (v, k) in zip(first, sizes, strict=False)]
    )
    keys, index, inverse = np.unique(values * plan.num_rows + rows, return_index=True, return_inverse=True)
    value, row = np.divmod(keys, plan.num_rows)
    feature = np.searchsorted(starts, value, side="right") - 1
    groups, group = np.unique(row * features + feature, return_inverse=True)
    ends = np.cumsum([v * k for v, k in sizes])[:-1]
    parts = zip(np.split(inverse, ends), sizes, strict=True)
    of_lookups = tuple(part.reshape(size) for part, size in parts)
    return Places(of_lookups, value, row, lookups[index], group, *np.divmod(groups, features))


def count_traffic(codes: Integers, slots: Sequence[Integers]) -> Whole:
    """Return the examples of each value, int64 (V,), from codes (n, F)."""
    counts = [np.bincount(codes[:, f], minlength=len(each)) for f, each in enumerate(slots)]
    return np.concatenate(counts)


def sharing_features(places: Places) -> Flags:
    """Return which features have a row in common, bool (F, F), False on the diagonal."""
    features = int(places.group_feature.max()) + 1
    held = np.zeros((int(places.group_row.max()) + 1, features), dtype=np.float32)
    held[places.group_row, places.group_feature] = 1
    shared: Flags = (held.T @ held > 0) & ~np.eye(features, dtype=bool)
    return shared


def readout_directions(model: Network, codes: torch.Tensor) -> Doubles:
    """Return the mean over examples of d score / d (a feature's embedding): codes (n, F) -> (F, D)."""
    cut: list[torch.Tensor] = []

    def keep(_module: torch.nn.Module, _inputs: object, output: torch.Tensor) -> torch.Tensor:
        cut.append(output.detach().requires_grad_())
        return cut[-1]

    total = torch.zeros(model.width, dtype=torch.float64)
    with model.embedding.register_forward_hook(keep), torch.enable_grad():
        for block in torch.split(codes, BLOCK_ROWS):
            scores = model(block).sum()
            total += torch.autograd.grad(scores, cut.pop())[0].sum(0, dtype=torch.float64)
    directions: Doubles = (total / len(codes)).view(model.fields, model.dim).numpy()
    return directions


def row_directions(model: Network, plan: TablePlan, directions: Doubles) -> Doubles | None:
    """Return in which direction each lookup's rows are read, unit vectors (K, width).

    It is the direction (D,) of the embedding, taken back through what the layout does to the row. Signs and
    weights leave it on its line. None where rows have 1 float, or each value has a direction of its own.
    """
    match plan:
        case Rows():
            found = directions.reshape(-1, plan.width)
        case Sums():
            found = np.repeat(directions, plan.slots[0].shape[1], 0)
        case Projected():
            back = [_projection(model, plan, f) @ read for f, read in enumerate(directions)]
            found = np.concatenate(back).reshape(-1, plan.width)
        case Products():
            return None
    norms = np.linalg.norm(found, axis=1, keepdims=True)
    return None if found.shape[1] == 1 else _ratio(found, norms, 0)


def _projection(model: Network, plan: Projected, feature: int) -> Doubles:
    if plan.projections is not None:
        return plan.projections[feature].astype(np.float64)
    learned: Doubles = model.get_parameter(f"embedding.projections.{feature}").detach().double().numpy()
    return learned


def lookup_gradients(model: Network, plan: TablePlan, batch: Batch, loss: Loss) -> torch.Tensor:
    """Return what each lookup of each example sends to its row: d (mean loss) / d row, (B, K, width).

    The model runs over a table that has a row for each of these lookups, filled with copies. Its outputs are
    what they were; its gradients are not added up yet.
    """
    codes, labels = batch
    slots = [model.get_buffer(f"embedding.slots_{f}")[codes[:, f]] for f in range(len(plan.slots))]
    rows = model.get_parameter("embedding.table").detach()[torch.cat(slots, 1)].requires_grad_()
    own = torch.arange(rows.shape[0] * rows.shape[1]).view(rows.shape[:2])
    replaced, buffers = {}, dict(model.named_buffers())
    parts = torch.split(own, [each.shape[1] for each in slots], 1)
    for f, part in enumerate(parts):  # an example is a value of its own: what values have is told anew
        replaced[f"embedding.slots_{f}"] = part
        names = [f"embedding.{name}_{f}" for name in PER_VALUE]
        replaced |= {name: buffers[name][codes[:, f]] for name in names if name in buffers}
    every = torch.arange(len(codes))[:, None].expand(codes.shape)
    with torch.enable_grad():
        table = {"embedding.table": rows.flatten(0, 1)}
        scores = functional_call(model, {**replaced, **table}, (every,))
        return torch.autograd.grad(loss(scores, labels), rows)[0]


class _Energies:
    """Energies of gradients, added up over batches.

    Each is C numbers: the squared norm and, for each of K directions, the square of the part along it.

    A batch costs what its own places do. Where a place is not in a batch but its group is, the others of the
    group are the whole group: the group's energy over all batches is kept, (G, C), and what the places that
    were there have to be spared is taken off. So it is with groups in their rows. Sums are made from places
    to groups to rows, so that one that stands alone is the same in all three, and the differences are 0.
    """

    def __init__(self, places: Places, rows: int, directions: Doubles | None) -> None:
        self.group, self.group_row = torch.from_numpy(places.group), torch.from_numpy(places.group_row)
        self.directions = None if directions is None else torch.from_numpy(directions.T.copy())
        columns = 1 if directions is None else 1 + len(directions)
        shapes = [(size, columns) for size in (len(places.group), len(places.group_row), rows)]
        self.own, self.groups, self.rows = (torch.zeros(shape, dtype=torch.float64) for shape in shapes)
        self._within, self._between = torch.zeros_like(self.own), torch.zeros_like(self.groups)

    def add(self, lookups: torch.Tensor, gradients: torch.Tensor) -> None:
        """Add a batch: the places (N,) that lookups lead to, and what each sends there, (N, width)."""
        places, own, _ = _sum_by(lookups, gradients.double())
        groups, of_group, to_group = _sum_by(self.group[places], own)
        rows, of_row, to_row = _sum_by(self.group_row[groups], of_group)
        own_energy, group_energy, row_energy = (self._energy(each) for each in (own, of_group, of_row))
        self.own[places] += own_energy
        self.groups[groups] += group_energy
        self.rows[rows] += row_energy
        self._within[places] += self._energy(of_group[to_group] - own) - group_energy[to_group]
        self._between[groups] += self._energy(of_row[to_row] - of_group) - row_energy[to_row]

    def _energy(self, gradients: torch.Tensor) -> torch.Tensor:
        whole = gradients.square().sum(1, keepdim=True)
        if self.directions is None:
            return whole
        return torch.cat([whole, (gradients @ self.directions).square()], 1)

    @property
    def within(self) -> torch.Tensor:
        """The energy of the others of a place's group, (P, C)."""
        return (self._within + self.groups[self.group]).clamp(min=0)

    @property
    def between(self) -> torch.Tensor:
        """The energy of the other groups of a place's row, (P, C)."""
        return (self._between + self.rows[self.group_row]).clamp(min=0)[self.group]


def _sum_by(keys: torch.Tensor, numbers: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the distinct keys (n,), the sums of their numbers (n, ...), and where each key went (N,)."""
    found, where = torch.unique(keys, return_inverse=True)
    sums = numbers.new_zeros(len(found), numbers.shape[1]).index_add_(0, where, numbers)
    return found, sums, where


def gradient_shares(
    model: Network,
    plan: TablePlan,
    batches: Iterable[Batch],
    loss: Loss,
    traffic: Whole,
    directions: Doubles | None,
) -> GradientShares:
    """Measure whose gradients the rows get.

    Args:
        model: with the embedding of the plan.
        plan: says who has which rows.
        batches: codes int (B, F) and labels float32 (B,).
        loss: gives the mean loss of a batch.
        traffic: int64 (V,), the weights of the values.
        directions: unit vectors (K, width), or None.
    """
    places = find_places(plan)
    of_lookups = [torch.from_numpy(each) for each in places.of_lookups]
    energies = _Energies(places, plan.num_rows, directions)
    for codes, labels in batches:
        lookups = torch.cat([each[codes[:, f]] for f, each in enumerate(of_lookups)], 1)
        gradients = lookup_gradients(model, plan, (codes, labels), loss)
        energies.add(lookups.flatten(), gradients.flatten(0, 1))
    return _shares(places, energies, traffic, model.get_parameter("embedding.table").shape[1])


def _shares(places: Places, energies: _Energies, traffic: Whole, width: int) -> GradientShares:
    """Turn energies of places into shares of features."""
    three = [part.numpy() for part in (energies.own, energies.within, energies.between)]
    total = three[0][:, 0] + three[1][:, 0] + three[2][:, 0]
    weights = np.where(total > 0, traffic[places.value], 0.0)
    whole = _by_feature(places, weights)

    def mean(energy: Doubles) -> Doubles:
        return _ratio(_by_feature(places, weights * _ratio(energy, total, 0)), whole)

    own, within, between = (mean(each[:, 0]) for each in three)
    alignable = energies.directions is not None

    def aligned(energy: Doubles, part: Doubles) -> Doubles | None:
        """Return how much of a part of the shares lies along each place's direction."""
        columns = np.arange(len(total)), 1 + places.lookup
        return _ratio(mean(energy[columns]), part) if alignable else None

    return GradientShares(
        own=own,
        within=within,
        between=between,
        arriving=_arriving(places, energies.groups[:, 0].numpy(), weights),
        within_aligned=aligned(three[1], within),
        between_aligned=aligned(three[2], between),
        width=width,
    )


def _arriving(places: Places, energies: Doubles, weights: Doubles) -> Doubles:
    """Return shares (F, F) of the energies (G,) of groups, of what arrives in the rows of each feature."""
    features = int(places.group_feature.max()) + 1
    by_row = np.zeros((int(places.group_row.max()) + 1, features))
    by_row[places.group_row, places.group_feature] = energies
    shares = _ratio(by_row, by_row.sum(1, keepdims=True), 0)
    found = np.zeros((features, features))
    np.add.at(found, places.feature, weights[:, None] * shares[places.row])
    return _ratio(found, _by_feature(places, weights)[:, None])


def _by_feature(places: Places, numbers: Doubles) -> Doubles:
    """Add up the numbers (P,) of each feature's places, (F,)."""
    return np.bincount(places.feature, numbers).astype(np.float64)


def _ratio(one: Doubles, other: Doubles, empty: float = math.nan) -> Doubles:
    """Divide; ``empty`` where the divisor is 0."""
    result = np.full(np.broadcast_shapes(one.shape, other.shape), empty, dtype=np.float64)
    np.divide(one, other, out=result, where=other != 0)
    return result


def collision_scores(
    model: Network, coded: Coded, objective: Objective, places: Places
) -> list[dict[str, CollisionScores]]:
    """Return the metrics of the test split by feature and by kind of its values."""
    kinds = value_collisions(places)
    codes, labels = (torch.from_numpy(part["test"]) for part in (coded.codes, coded.labels))
    with torch.no_grad():
        scores = torch.cat([model(block) for block in torch.split(codes, BLOCK_ROWS)])
    found, start = [], 0
    for feature, field in enumerate(coded.fields):
        of_values = torch.from_numpy(kinds[start : start + len(field)])
        of_examples = of_values[codes[:, feature]]
        start += len(field)
        by_kind = {}
        for kind, name in enumerate(COLLISIONS):
            chosen = of_examples == kind
            metrics = objective.metrics()
            metrics.update(scores[chosen], labels[chosen])
            examples = int(chosen.sum())
            by_kind[name] = CollisionScores(
                int((of_values == kind).sum()), examples, metrics.compute() if examples else None
            )
        found.append(by_kind)
    return found


def value_collisions(places: Places) -> Whole:
    """Return the kind of each value, its number in `COLLISIONS`: int64 (V,)."""
    in_group, in_row = np.bincount(places.group), np.bincount(places.row)
    kinds: Whole = np.zeros(int(places.value.max()) + 1, dtype=np.int64)
    kinds[places.value[in_row[places.row] > 1]] = COLLISIONS.index("between")
    kinds[places.value[in_group[places.group] > 1]] = COLLISIONS.index("within")
    return kinds
