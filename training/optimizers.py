"""Optimizers: Adam over everything, or one whose step costs what the batch does, not what the table does."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from training.embeddings import sparse_gradient
from training.sharded import ShardedEmbedding, full_state, own_state
from training.world import World, is_sharded

OPTIMIZERS = ("adam", "rowwise_adagrad")
TABLE = "embedding.weight"
"""The table, among the parameters of a model."""
TABLE_LR = 0.05
"""The table's learning rate under row-wise Adagrad, where none is given.

Best validation RMSE, the mean of three seeds: 1.0170 on ml-100k (batches of 1,024), 0.9605 on a million
synthetic ratings (8,192). Adam's at 2e-3: 1.0181 and 0.9617. 0.02 gives 1.0164 and 0.9612, 0.2 1.0169 and
0.9478, and from there on ml-100k is overfitted within two epochs.
"""
LARGEST_LR = 10.0
"""Far above what trains anything. With 1e30 weights overflow, or end as figures that mean nothing."""

FLUSH_ROWS = 1_000_000
"""Rows that are brought up to date at a time, so that no copy of a large table is made."""


def coalesced(gradient: torch.Tensor) -> torch.Tensor:
    """Sum what a sparse gradient (rows, D) has for the same row; the rows are then sorted.

    It is `Tensor.coalesce` in half the time on a CPU (65,536 rows of 16 floats, one thread: 0.8 ms against
    1.5; unique with index_add_ takes 1.4, sorting with index_add_ 3.1).
    """
    if gradient.is_coalesced():
        return gradient
    rows, values = gradient._indices()[0], gradient._values()  # the public ones want it coalesced
    if not _increasing(rows):
        return sparse_gradient(rows, values, len(gradient))
    return torch.sparse_coo_tensor(
        rows[None], values, gradient.shape, is_coalesced=True, check_invariants=False
    )


def _increasing(rows: torch.Tensor) -> bool:
    """Whether rows are sorted and distinct, as a lookup on a CPU leaves them: autograd forgets that they are.

    Elsewhere it is not asked, for the answer would wait for the device.
    """
    return rows.device.type == "cpu" and bool((rows[1:] > rows[:-1]).all())


class RowwiseAdagrad(torch.optim.Optimizer):
    """Adagrad with one accumulator a row, for tables with sparse gradients: a step touches the batch's rows.

    For each row r that has a gradient g, after what the batch has for the same row was summed:

        sum[r]    += mean(g**2)
        weight[r] *= 1 - lr * weight_decay
        weight[r] -= lr * g / (sqrt(sum[r]) + eps)

    This is the exact row-wise Adagrad of FBGEMM (EXACT_ROWWISE_ADAGRAD, with the weight decay it calls
    decoupled), which TorchRec trains tables with; Adagrad is J. Duchi et al., "Adaptive Subgradient Methods
    for Online Learning and Stochastic Optimization", JMLR 12, 2011. Unlike FBGEMM's, the decay reaches *all*
    rows in every step, but lazily: a row keeps the logarithm of the decay it has had, and is multiplied by
    what it still owes when it is next used. So call `catch_up` with the rows of a batch before its
    forward, and `flush` before the table is read as a whole: to evaluate it, to save it. Both return at once
    where nothing ever decayed. The learning rate may change between steps.

    State of a table (N, D): ``sum`` float32 (N,) and, once weights decay, ``decayed`` float64 (N,) and the
    number ``log_decay``. Not for CUDA graphs: the number of distinct rows, and with it every shape, changes.

    Args:
        params: tables (N, D), or groups of them.
        lr: the most that a row moves in its first step (root mean square over its D floats).
        eps: keeps the division finite.
        weight_decay: share of the weights, times lr, that each step takes away from every row.

    Raises:
        ValueError: a number is out of range; in `step`, a gradient is not sparse.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter] | Iterable[dict[str, Any]],
        lr: float = TABLE_LR,
        *,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        if not (lr > 0 and eps > 0 and 0 <= lr * weight_decay < 1):
            raise ValueError(
                "lr and eps must be positive, weight_decay at least 0 and less than 1 / lr: "
                f"{lr}, {eps}, {weight_decay}"
            )
        super().__init__(params, {"lr": lr, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # noqa: ARG002  # as torch calls it
        """Update the rows that have a gradient."""
        for group in self.param_groups:
            for table in group["params"]:
                if table.grad is not None:
                    self._update(table, group)

    def _update(self, table: torch.Tensor, group: Mapping[str, Any]) -> None:
        if table.grad is None or not table.grad.is_sparse:
            raise ValueError("row-wise Adagrad needs sparse gradients: make the table with sparse=True")
        gradient = coalesced(table.grad)
        rows, values = gradient.indices()[0], gradient.values()  # (U,), (U, D)
        state = self._state_for(table, decays=group["weight_decay"] > 0)
        if group["weight_decay"]:
            state["log_decay"] += math.log1p(-group["lr"] * group["weight_decay"])
        _pay(table, state, rows)
        # index_select with index_copy_: a fifth of the time of index_add_, or of weight[rows], on a CPU
        squares = state["sum"].index_select(0, rows) + values.square().mean(1)  # (U,)
        state["sum"].index_copy_(0, rows, squares)
        roots = (squares.sqrt() + group["eps"]).unsqueeze(1)
        table.index_copy_(0, rows, table.index_select(0, rows).addcdiv_(values, roots, value=-group["lr"]))

    def _state_for(self, table: torch.Tensor, *, decays: bool) -> dict[str, Any]:
        state: dict[str, Any] = self.state[table]
        if not state:
            state["sum"] = table.new_zeros(len(table))
        if decays and "decayed" not in state:
            # float64: the decay of one step is some 1e-7, and lost beside that of many in 24 bits
            state["decayed"] = table.new_zeros(len(table), dtype=torch.float64)
            state["log_decay"] = 0.0
        return state

    @torch.no_grad()
    def catch_up(self, rows: torch.Tensor) -> None:
        """Bring the rows of a batch up to date, int of any shape, each as often as it comes."""
        for table in self._tables():
            _pay(table, self.state[table], rows.flatten().long())  # index_copy_ takes no int32

    @torch.no_grad()
    def flush(self) -> None:
        """Bring every row up to date."""
        for table in self._tables():
            state = self.state[table]
            if state.get("log_decay"):
                for start in range(0, len(table), FLUSH_ROWS):
                    part = slice(start, start + FLUSH_ROWS)
                    owed = state["log_decay"] - state["decayed"][part]
                    table[part] *= owed.exp().to(table.dtype).unsqueeze(1)
                state["decayed"].zero_()
                state["log_decay"] = 0.0

    def _tables(self) -> list[torch.Tensor]:
        return [table for group in self.param_groups for table in group["params"]]

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over a state. What torch's own method rounds to the table's dtype is kept exact."""
        super().load_state_dict(state_dict)
        for number, table in enumerate(self._tables()):
            saved = state_dict["state"].get(number, {})
            if "decayed" in saved:
                self.state[table]["decayed"] = saved["decayed"].to(table.device, copy=True)


def _pay(table: torch.Tensor, state: Mapping[str, Any], rows: torch.Tensor) -> None:
    """Multiply rows by the decay they still owe. A row that comes twice is written twice with one value."""
    if not state.get("log_decay"):
        return
    owed = state["log_decay"] - state["decayed"].index_select(0, rows)  # (n,)
    table.index_copy_(0, rows, table.index_select(0, rows) * owed.exp().to(table.dtype).unsqueeze(1))
    state["decayed"].index_fill_(0, rows, state["log_decay"])


@torch.no_grad()
def clip_gradients(
    parameters: Iterable[nn.Parameter], max_norm: float, world: World | None = None
) -> torch.Tensor:
    """Scale all gradients so that their norm, over all of them together, is at most ``max_norm``.

    `torch.nn.utils.clip_grad_norm_` for sparse gradients too, which are coalesced in the process, and for
    tables whose rows are spread over the ranks of ``world``, the one joined where it is None: each rank then
    has the same norm, and scales as the others do. It never waits for the device.

    Returns:
        The norm there was, float32 ().
    """
    having = [parameter for parameter in parameters if parameter.grad is not None]
    values = [_gradient_values(parameter) for parameter in having]
    if not values:
        return torch.zeros(())
    norms = torch.stack([torch.linalg.vector_norm(value) for value in values])
    if any(map(is_sharded, having)):
        sharded = torch.tensor([is_sharded(parameter) for parameter in having], device=norms.device)
        everywhere = (world or World.current()).sum_over_ranks(norms.square() * sharded)
        norms = torch.where(sharded, everywhere.sqrt(), norms)
    norm: torch.Tensor = torch.linalg.vector_norm(norms)
    torch._foreach_mul_(values, (max_norm / (norm + 1e-6)).clamp(max=1.0))  # as torch.nn.utils does
    return norm


def _gradient_values(parameter: nn.Parameter) -> torch.Tensor:
    """Return what a gradient is made of, to be changed in place."""
    assert parameter.grad is not None
    if parameter.grad.is_sparse:
        parameter.grad = coalesced(parameter.grad)
        return parameter.grad._values()  # values() is a copy to autograd
    return parameter.grad


def settled(weights: Mapping[str, torch.Tensor], state: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Return a model's weights with the decay that rows of its table still owe, which a state tells of.

    Args:
        weights: a state_dict of the model.
        state: `Optimizers.full_state_dict` of the same moment.
    """
    rows = state.get("table", {}).get("state", {}).get(0, {})
    if not rows.get("log_decay"):
        return dict(weights)
    owed = (rows["log_decay"] - rows["decayed"]).exp()
    return {**weights, TABLE: weights[TABLE] * owed.to(weights[TABLE].dtype).unsqueeze(1)}


class Optimizers:
    """The optimizers of one model as one: Adam, and row-wise Adagrad for the table where it is used."""

    def __init__(self, dense: torch.optim.Adam, table: RowwiseAdagrad | None, embedding: nn.Module) -> None:
        self._dense, self._table = dense, table
        self._sharded = embedding if isinstance(embedding, ShardedEmbedding) else None
        if self._sharded and table:
            self._sharded.before_lookup = table.catch_up  # only there is known which of its rows are needed

    @property
    def _members(self) -> dict[str, torch.optim.Optimizer]:
        return {"dense": self._dense, **({"table": self._table} if self._table else {})}

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The groups of all of them, to be changed in place: a table that has its own comes last."""
        return [group for member in self._members.values() for group in member.param_groups]

    def zero_grad(self) -> None:
        """Forget all gradients."""
        for member in self._members.values():
            member.zero_grad()

    def step(self) -> None:
        """Update all parameters."""
        for member in self._members.values():
            member.step()

    def catch_up(self, slots: torch.Tensor) -> None:
        """Bring the rows of a batch up to date, before its forward. A sharded table does so by itself."""
        if self._table and not self._sharded:
            self._table.catch_up(slots)

    def flush(self) -> None:
        """Bring the whole table up to date, before it is evaluated or saved."""
        if self._table:
            self._table.flush()

    def state_dict(self) -> dict[str, Any]:
        """Return this rank's state: Adam's own where it is alone, else that of each by name."""
        return self._joined({name: member.state_dict() for name, member in self._members.items()})

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over this rank's state."""
        for name, part in self._parted(state).items():
            self._members[name].load_state_dict(dict(part))

    def full_state_dict(self) -> dict[str, Any] | None:
        """Return the state of the whole table, on rank 0 and None on others, which must all call this."""
        if not self._sharded:
            return self.state_dict() if World.current().rank == 0 else None
        parts = {name: full_state(member, self._sharded) for name, member in self._members.items()}
        if self._sharded.world.rank:
            return None
        return self._joined({name: part for name, part in parts.items() if part is not None})

    def load_full_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a state from `full_state_dict`: all of it, or of a sharded table the rows held here."""
        for name, part in self._parted(state).items():
            member = self._members[name]
            member.load_state_dict(own_state(member, part, self._sharded) if self._sharded else dict(part))

    def _joined(self, parts: dict[str, dict[str, Any]]) -> dict[str, Any]:
        return parts if self._table else parts["dense"]

    def _parted(self, state: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
        parts = dict(state) if self._table else {"dense": state}
        if parts.keys() != self._members.keys() or not all("state" in part for part in parts.values()):
            raise ValueError(f"this is the state of another kind of optimizer: {', '.join(state)}")
        return parts


def build_optimizer(
    model: nn.Module,
    kind: str,
    *,
    lr: float,
    weight_decay: float,
    table_lr: float | None = None,
    capturable: bool = False,
) -> Optimizers:
    """Make the optimizer of a model whose table is ``model.embedding.weight``.

    Args:
        model: already on its device.
        kind: ``adam``, one fused Adam over everything; or ``rowwise_adagrad``, which gives the table, whose
            gradients are then sparse, to `RowwiseAdagrad` and all else to Adam.
        lr: Adam's learning rate.
        weight_decay: of both. Adam adds it to the gradient (L2), row-wise Adagrad takes it off the weights.
        table_lr: row-wise Adagrad's learning rate, `TABLE_LR` where it is None.
        capturable: make steps that a CUDA graph can hold.

    Raises:
        ValueError: an unknown kind, or one that does not go with the rest.
    """
    if kind not in OPTIMIZERS:
        raise ValueError(f"unknown optimizer {kind!r}, expected {', '.join(OPTIMIZERS)}")
    table = model.get_parameter(TABLE)
    rowwise = None
    if kind == "rowwise_adagrad":
        if capturable:
            raise ValueError("rowwise_adagrad cannot be captured: its shapes change with the batch's rows")
        rowwise = RowwiseAdagrad(
            [table], TABLE_LR if table_lr is None else table_lr, weight_decay=weight_decay
        )
    elif table_lr is not None:
        raise ValueError("adam has one learning rate; a table_lr is rowwise_adagrad's")
    rest = [parameter for parameter in model.parameters() if rowwise is None or parameter is not table]
    adam = torch.optim.Adam(rest, lr=lr, weight_decay=weight_decay, fused=True, capturable=capturable)
    return Optimizers(adam, rowwise, model.get_submodule("embedding"))
