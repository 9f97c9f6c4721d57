"""Data-parallel tables: whole on every rank, stepping inside ``backward`` as the sharded ones beside them do.

In and out as :class:`recmtl.features.fused.FusedTables`. No id and no embedding travels for them; instead every step
adds up the gradient of the whole table over the ranks, so they are for small tables. TorchRec's own data-parallel
tables have no fused optimiser; here it is the same maths as FBGEMM's, written out (a row without a gradient does not
move under any of them, so touching every row changes nothing).

Dimensions: B batch, V rows of a table, W width of a table.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import register_multi_grad_hook

from recmtl.batch import SparseBatch
from recmtl.distributed.plan import Plan, optimizer_states, stored_width
from recmtl.errors import RunError
from recmtl.features.tables import Pieces, PlainTables, Stored, TableShape, check_weights
from recmtl.group import ONE, Group

__all__ = ["MixedTables", "ReplicatedTables"]


class ReplicatedTables(nn.Module):
    """Tables that every rank holds whole; no parameters of this module, as with FusedTables.

    Args:
        shapes: table name to shape.
        optimizer_type: RowWiseAdagrad, Adagrad or SGD.
        optimizer_kwargs: ``lr``, and ``eps`` of the adagrads.
        device: where the tables live.
        group: the ranks.
        plan: says how all tables are cut, for those who ask; these are whole.
    """

    def __init__(
        self,
        shapes: Mapping[str, TableShape],
        *,
        optimizer_type: type[torch.optim.Optimizer],
        optimizer_kwargs: Mapping[str, Any],
        device: torch.device | str = "cpu",
        group: Group = ONE,
        plan: Plan | None = None,
    ) -> None:
        super().__init__()
        self.plan = plan
        plain = PlainTables(shapes).to(device)
        self._plain = (plain,)  # in a tuple, so that it is no child of this module
        self._parameters_of = dict(plain.named_parameters())
        self.features = frozenset(feature for shape in shapes.values() for feature in shape.features)
        """The features that read them."""
        self._widths = {name: stored_width(shape.dim) for name, shape in shapes.items()}
        self._kinds = optimizer_states(optimizer_type)
        self._lr, self._eps = float(optimizer_kwargs["lr"]), float(optimizer_kwargs.get("eps", 0.0))
        self._group = group
        self._steps = 0
        self._sums = {
            name: torch.zeros_like(weight if kind == "element" else weight[:, 0])
            for name, weight in plain.weights().items()
            for kind in self._kinds
        }
        register_multi_grad_hook(tuple(self._parameters_of.values()), self._step)

    def forward(self, sparse: SparseBatch) -> dict[str, Tensor]:
        """See :class:`recmtl.features.tables.Tables`."""
        if torch.is_grad_enabled():
            self._steps += 1
            for parameter in self._parameters_of.values():
                parameter.grad = None
        pooled: dict[str, Tensor] = self._plain[0](sparse)
        return pooled

    @torch.no_grad()
    def _step(self, gradients: Sequence[Tensor | None]) -> None:
        """Called inside ``backward`` once every table's gradient is there."""
        moved = [
            (name, gradient.clone())
            for name, gradient in zip(self._parameters_of, gradients, strict=True)
            if gradient is not None
        ]
        self._group.sum_([gradient for _, gradient in moved])
        for name, gradient in moved:
            step = gradient
            for kind in self._kinds:
                total = self._sums[name]
                if kind == "row":  # the mean square of the row as FBGEMM stores it, padded
                    total += gradient.square().sum(dim=1) / self._widths[name]
                    total = total.unsqueeze(1)
                else:
                    total += gradient.square()
                # a row that never had a gradient: 0 / eps, and with eps 0 it must not be 0 / 0
                step = torch.where(gradient == 0, gradient, gradient / (total.sqrt() + self._eps))
            self._parameters_of[name].sub_(step, alpha=self._lr)

    def joined(self, sparse: SparseBatch, features: Sequence[str]) -> Tensor:
        """See :class:`recmtl.features.tables.Tables`."""
        pooled = self(sparse)
        return torch.cat([pooled[feature] for feature in features], dim=1)

    def weights(self) -> dict[str, Tensor]:
        """See :class:`recmtl.features.tables.Tables`: live views, on every rank."""
        return self._plain[0].weights()

    def pieces(self) -> dict[str, Tensor | Pieces]:
        """See :class:`recmtl.features.tables.Tables`."""
        return self._plain[0].pieces()

    def load_pieces(self, read: Callable[[Mapping[str, Tensor | Pieces]], None]) -> None:
        """See :class:`recmtl.features.tables.Tables`."""
        self._plain[0].load_pieces(read)

    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        """See :class:`recmtl.features.tables.Tables`."""
        self._plain[0].load_weights(weights)

    def load_blocks(self, table: str, blocks: Iterable[Tensor]) -> None:
        """See :class:`recmtl.features.tables.Tables`."""
        self._plain[0].load_blocks(table, blocks)

    def reset_rows(self, table: str, rows: Tensor) -> None:
        """Make these rows of a table, and their optimiser's state, zeros."""
        for tensor in (self._parameters_of[table].detach(), *([self._sums[table]] if self._kinds else [])):
            tensor[rows.to(tensor.device)] = 0.0

    def set_learning_rate(self, lr: float) -> None:
        """The learning rate of the next ``backward``."""
        self._lr = lr

    def optimizer_pieces(self) -> dict[str, Tensor | Pieces]:
        """The optimiser's state by name, live: ``TABLE.momentum_1`` and ``iter``; the same on every rank."""
        return {
            **{f"{name}.momentum_1": total for name, total in self._sums.items()},
            "iter": torch.tensor([self._steps]),
        }

    def load_optimizer_pieces(self, stored: Stored) -> None:
        """Read what :meth:`optimizer_pieces` saved.

        Raises:
            RunError: it is the state of another optimiser or of other tables.
        """
        mine = self.optimizer_pieces()
        if {name: tuple(part.shape) for name, part in mine.items()} != dict(stored.shapes()):
            raise RunError(
                f"the saved state of the tables' optimiser ({', '.join(sorted(stored.shapes()))}) does not fit this "
                f"one ({', '.join(sorted(mine))}): it is of another optimiser or other data"
            )
        steps = torch.zeros(1, dtype=torch.int64)
        stored.read({**mine, "iter": steps})
        self._steps = int(steps)

    def optimizer_state(self) -> dict[str, Tensor]:
        """:meth:`optimizer_pieces`, which are whole."""
        return {name: part for name, part in self.optimizer_pieces().items() if isinstance(part, Tensor)}


class MixedTables(nn.Module):
    """Some tables cut up over the ranks, some whole on each; in and out as either kind.

    Args:
        sharded: the former.
        replicated: the latter.
        plan: of both.
    """

    def __init__(self, sharded: Any, replicated: ReplicatedTables, plan: Plan) -> None:
        super().__init__()
        # Neither is a child of this module, for the same reason as within them.
        self._kinds: tuple[tuple[Any, frozenset[str]], ...] = tuple(
            (kind, frozenset(kind.pieces())) for kind in (sharded, replicated)
        )
        self._features = tuple(kind.features for kind, _ in self._kinds)
        self.plan = plan

    def forward(self, sparse: SparseBatch) -> dict[str, Tensor]:
        """See :class:`recmtl.features.tables.Tables`."""
        pooled: dict[str, Tensor] = {}
        for (kind, _), features in zip(self._kinds, self._features, strict=True):
            pooled.update(kind(_only(sparse, features)))
        return pooled

    def joined(self, sparse: SparseBatch, features: Sequence[str]) -> Tensor:
        """See :class:`recmtl.features.tables.Tables`."""
        pooled = self(sparse)
        return torch.cat([pooled[feature] for feature in features], dim=1)

    def weights(self) -> dict[str, Tensor]:
        """See :class:`recmtl.features.tables.Tables`."""
        return self._merged("weights")

    def pieces(self) -> dict[str, Tensor | Pieces]:
        """See :class:`recmtl.features.tables.Tables`."""
        return self._merged("pieces")

    def load_pieces(self, read: Callable[[Mapping[str, Tensor | Pieces]], None]) -> None:
        """See :class:`recmtl.features.tables.Tables`."""
        for kind, _ in self._kinds:
            kind.load_pieces(read)

    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        """See :class:`recmtl.features.tables.Tables`."""
        check_weights({name: tuple(part.shape) for name, part in self.pieces().items()}, weights)
        for kind, names in self._kinds:
            kind.load_weights({name: weight for name, weight in weights.items() if name in names})

    def load_blocks(self, table: str, blocks: Iterable[Tensor]) -> None:
        """See :class:`recmtl.features.tables.Tables`."""
        self._kind_of(table).load_blocks(table, blocks)

    def reset_rows(self, table: str, rows: Tensor) -> None:
        """Make these rows of a table, and their optimiser's state, zeros."""
        self._kind_of(table).reset_rows(table, rows)

    def set_learning_rate(self, lr: float) -> None:
        """The learning rate of the next ``backward``."""
        for kind, _ in self._kinds:
            kind.set_learning_rate(lr)

    def optimizer_pieces(self) -> dict[str, Tensor | Pieces]:
        """The state of both kinds, by name; see there."""
        return self._merged("optimizer_pieces")

    def load_optimizer_pieces(self, stored: Stored) -> None:
        """Read what :meth:`optimizer_pieces` saved.

        Raises:
            RunError: it is the state of another optimiser or of other tables.
        """
        there = stored.shapes()
        for number, (kind, names) in enumerate(self._kinds):
            mine = {name for name in there if name == "iter" or _table_of(name) in names}
            strange = {name for name in there.keys() - mine if all(_table_of(name) not in ns for _, ns in self._kinds)}
            kind.load_optimizer_pieces(_Some(stored, mine | (strange if number == 0 else set())))

    def optimizer_state(self) -> dict[str, Tensor]:
        """The state of both kinds as whole tensors; with several ranks all call it, and rank 0 has it."""
        return self._merged("optimizer_state")

    def _merged(self, what: str) -> dict[str, Any]:
        merged: dict[str, Any] = {}
        for kind, _ in self._kinds:
            merged.update(getattr(kind, what)())
        return merged

    def _kind_of(self, table: str) -> Any:
        (kind,) = (kind for kind, names in self._kinds if table in names)
        return kind


class _Some:
    """Some of the tensors of a :class:`Stored`."""

    def __init__(self, stored: Stored, names: Set[str]) -> None:
        self._stored, self._names = stored, names

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        return {name: shape for name, shape in self._stored.shapes().items() if name in self._names}

    def read(self, into: Mapping[str, Tensor | Pieces]) -> None:
        self._stored.read(into)

    def whole(self) -> dict[str, Tensor]:
        return {name: tensor for name, tensor in self._stored.whole().items() if name in self._names}


def _table_of(state: str) -> str:
    return state.rpartition(".momentum_")[0]


def _only(sparse: SparseBatch, features: Set[str]) -> SparseBatch:
    """The part of a batch that is of these features."""
    lengths_FB = sparse.lengths.view(len(sparse.keys), sparse.batch_size)
    sizes = sparse.feature_sizes()
    kept = [number for number, key in enumerate(sparse.keys) if key in features]
    values = torch.split(sparse.values, sizes)
    weights = None if sparse.weights is None else torch.split(sparse.weights, sizes)
    return replace(
        sparse,
        keys=tuple(sparse.keys[number] for number in kept),
        values=torch.cat([values[number] for number in kept]),
        lengths=lengths_FB[kept].reshape(-1),
        weights=None if weights is None else torch.cat([weights[number] for number in kept]),
        sizes=None if sparse.sizes is None else tuple(sizes[number] for number in kept),
    )
