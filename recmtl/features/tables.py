"""Embedding tables behind one seam: what the model asks of them, and the pure-torch kind.

In: a :class:`recmtl.batch.SparseBatch`. Out: each feature's embeddings summed per example, by feature name (a sharded
or fused collection has an order of its own). Pooling is always a sum, weighted where the batch has weights; what makes
a mean of it stands in :mod:`recmtl.features.inputs`, so features on one table may differ in pooling.

:class:`PlainTables` needs torch alone: it serves, and it trains under an ordinary optimiser. The kind that steps inside
``backward`` is :class:`recmtl.features.fused.FusedTables`.

Dimensions: B batch, N values in all, V rows of a table, W width of a table.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recmtl.batch import SparseBatch
from recmtl.errors import RunError

__all__ = ["MakeTables", "PlainTables", "TableShape", "Tables", "check_weights"]


class TableShape(NamedTuple):
    """What it takes to make one table."""

    rows: int
    """V, with the two reserved rows."""
    dim: int
    """W."""
    features: tuple[str, ...]
    """The features that read it."""
    weighted: bool = False
    """Whether one of them is a weighted bag."""


class Tables(Protocol):
    """What the model asks of its tables; both kinds are also ``nn.Module``."""

    def __call__(self, sparse: SparseBatch) -> dict[str, Tensor]:
        """Feature name to (B, W) float32: the (weighted) sum of its rows per example, zeros where it has none."""
        ...

    def weights(self) -> dict[str, Tensor]:
        """Table name to (V, W) float32, detached: a live view, which training changes under the caller's eyes."""
        ...

    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Copy values into the tables named in ``weights`` (some or all of them).

        Raises:
            RunError: a table that is not here, or another shape.
        """
        ...


MakeTables = Callable[[Mapping[str, TableShape]], Tables]
"""How :func:`recmtl.model.build_model` is told which kind of tables to make."""


class PlainTables(nn.Module):
    """Tables as ordinary parameters, gathered with ``torch.nn.functional.embedding_bag``.

    Args:
        shapes: table name to shape.
        sparse: give the tables sparse gradients (for ``SparseAdam`` and the like) instead of dense ones.
    """

    def __init__(self, shapes: Mapping[str, TableShape], *, sparse: bool = False) -> None:
        super().__init__()
        self._table_of = {feature: name for name, shape in shapes.items() for feature in shape.features}
        self._sparse = sparse
        # Not a ParameterDict: it refuses names such as `keys`, and tables are named by the user's columns.
        for name, shape in shapes.items():
            self._parameters[name] = nn.Parameter(torch.zeros(shape.rows, shape.dim))

    def forward(self, sparse: SparseBatch) -> dict[str, Tensor]:
        """See :class:`Tables`.

        Raises:
            RuntimeError: a table row out of bounds (on a GPU the device's assertion fails instead).
        """
        if not sparse.keys:
            return {}
        lengths_FB = sparse.lengths.view(len(sparse.keys), -1)
        sizes = lengths_FB.sum(dim=1).tolist()
        values = torch.split(sparse.values, sizes)
        weights = (None,) * len(sizes) if sparse.weights is None else torch.split(sparse.weights, sizes)
        return {
            feature: self._pool(feature, values_N, lengths_B, weights_N)
            for feature, values_N, lengths_B, weights_N in zip(sparse.keys, values, lengths_FB, weights, strict=True)
        }

    def _pool(self, feature: str, values_N: Tensor, lengths_B: Tensor, weights_N: Tensor | None) -> Tensor:
        table_VW = self._table(self._table_of[feature])
        starts_B = lengths_B.cumsum(0, dtype=torch.int64) - lengths_B
        return F.embedding_bag(
            values_N.long(), table_VW, starts_B, mode="sum", per_sample_weights=weights_N, sparse=self._sparse
        )

    def _table(self, name: str) -> nn.Parameter:
        parameter = self._parameters[name]
        assert parameter is not None
        return parameter

    def weights(self) -> dict[str, Tensor]:
        """See :class:`Tables`."""
        return {name: self._table(name).detach() for name in self._parameters}

    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        """See :class:`Tables`."""
        check_weights(self.weights(), weights)
        for name, weight in weights.items():
            self._table(name).detach().copy_(weight)


def check_weights(have: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> None:
    """Check that every given table exists with that shape.

    Raises:
        RunError: it does not.
    """
    for name, weight in given.items():
        if name not in have:
            raise RunError(f"there is no table {name!r} in this model; its tables are: {', '.join(have)}")
        if weight.shape != have[name].shape:
            raise RunError(
                f"table {name!r} has shape {tuple(have[name].shape)} in this model but {tuple(weight.shape)} in what "
                "is loaded: they come from different data or another embedding_dim"
            )
