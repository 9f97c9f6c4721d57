"""Embedding tables behind one seam: what the model asks of them, and the pure-torch kind.

In: a :class:`recmtl.batch.SparseBatch`. Out: each feature's embeddings summed per example, by feature name (a sharded
or fused collection has an order of its own). Pooling is always a sum, weighted where the batch has weights; what makes
a mean of it stands in :mod:`recmtl.features.inputs`, so features on one table may differ in pooling.

:class:`PlainTables` needs torch alone: it serves, and it trains under an ordinary optimiser. The kind that steps inside
``backward`` is :class:`recmtl.features.fused.FusedTables`.

With several ranks a table may be cut up among them. :class:`Pieces` is what one rank holds of a tensor: it is what a
checkpoint saves and loads, so neither needs a whole table anywhere.

Dimensions: B batch, N values in all, V rows of a table, W width of a table.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recmtl.batch import SparseBatch
from recmtl.errors import RunError

__all__ = [
    "InMemory",
    "MakeTables",
    "Piece",
    "Pieces",
    "PlainTables",
    "Stored",
    "TableShape",
    "Tables",
    "check_weights",
    "pieces_of",
]


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


class Piece(NamedTuple):
    """A block of a larger tensor."""

    start: tuple[int, ...]
    """Where it begins in the whole, by dimension."""
    tensor: Tensor
    """A live view."""


class Pieces(NamedTuple):
    """What this rank holds of a tensor that all ranks hold together, each element exactly one of them."""

    shape: tuple[int, ...]
    """Of the whole."""
    dtype: torch.dtype
    held: tuple[Piece, ...]
    """This rank's, possibly none."""


def pieces_of(whole: Tensor, into: Tensor | Pieces) -> None:
    """Copy what ``into`` wants out of a whole tensor of its shape."""
    if isinstance(into, Tensor):
        into.copy_(whole)
        return
    for start, tensor in into.held:
        tensor.copy_(whole[tuple(slice(at, at + size) for at, size in zip(start, tensor.shape, strict=True))])


class Stored(Protocol):
    """Tensors on disk, of which every rank reads the part that it wants."""

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Name to shape of everything there is."""
        ...

    def read(self, into: Mapping[str, Tensor | Pieces]) -> None:
        """Fill these tensors, or this rank's pieces of them, in place.

        Raises:
            RunError: one is not there or has another shape.
        """
        ...

    def whole(self) -> dict[str, Tensor]:
        """All of it, on the CPU."""
        ...


class InMemory:
    """Whole tensors as :class:`Stored`."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._tensors = dict(tensors)

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """See :class:`Stored`."""
        return {name: tuple(tensor.shape) for name, tensor in self._tensors.items()}

    def read(self, into: Mapping[str, Tensor | Pieces]) -> None:
        """See :class:`Stored`."""
        for name, target in into.items():
            if name not in self._tensors or self._tensors[name].shape != target.shape:
                raise RunError(f"{name} is not there, or not of shape {tuple(target.shape)}")
            pieces_of(self._tensors[name], target)

    def whole(self) -> dict[str, Tensor]:
        """See :class:`Stored`."""
        return {name: tensor.detach().cpu() for name, tensor in self._tensors.items()}


class Tables(Protocol):
    """What the model asks of its tables; both kinds are also ``nn.Module``."""

    def __call__(self, sparse: SparseBatch) -> dict[str, Tensor]:
        """Feature name to (B, W) float32: the (weighted) sum of its rows per example, zeros where it has none."""
        ...

    def joined(self, sparse: SparseBatch, features: Sequence[str]) -> Tensor:
        """The same for some features (at least one), side by side in this order: (B, their widths' sum)."""
        ...

    def weights(self) -> dict[str, Tensor]:
        """Table name to (V, W) float32, detached: a live view, which training changes under the caller's eyes.

        Where ranks hold parts of the tables every rank calls it, and rank 0 alone gets them, as whole copies.
        """
        ...

    def pieces(self) -> dict[str, Tensor | Pieces]:
        """Table name to this rank's part of (V, W), live; a tensor is a whole table that every rank has."""
        ...

    def load_pieces(self, read: Callable[[Mapping[str, Tensor | Pieces]], None]) -> None:
        """Have ``read`` overwrite what :meth:`pieces` gives."""
        ...

    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Copy values into the tables named in ``weights`` (some or all of them); with several ranks, on each of them.

        Raises:
            RunError: a table that is not here, or another shape.
        """
        ...

    def load_blocks(self, table: str, blocks: Iterable[Tensor]) -> None:
        """Fill a table from blocks (n, W) of consecutive rows, none of which is kept; a rank without it draws none."""
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
            RuntimeError, IndexError: a table row out of bounds (on a GPU the device's assertion fails instead).
        """
        if not sparse.keys:
            return {}
        if not torch.is_grad_enabled() and _one_each(sparse):
            return {
                feature: F.embedding(values_B, self._table(self._table_of[feature]))
                for feature, values_B in zip(sparse.keys, sparse.values.view(len(sparse.keys), -1), strict=True)
            }
        return {
            feature: self._pool(feature, values_N, lengths_B, weights_N)
            for feature, values_N, lengths_B, weights_N in sparse.by_feature()
        }

    def joined(self, sparse: SparseBatch, features: Sequence[str]) -> Tensor:
        """See :class:`Tables`."""
        pooled = self(sparse)
        return torch.cat([pooled[feature] for feature in features], dim=1)

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
        check_weights({name: weight.shape for name, weight in self.weights().items()}, weights)
        for name, weight in weights.items():
            self._table(name).detach().copy_(weight)

    def pieces(self) -> dict[str, Tensor | Pieces]:
        """See :class:`Tables`."""
        return {**self.weights()}

    def load_pieces(self, read: Callable[[Mapping[str, Tensor | Pieces]], None]) -> None:
        """See :class:`Tables`."""
        read(self.pieces())

    def load_blocks(self, table: str, blocks: Iterable[Tensor]) -> None:
        """See :class:`Tables`."""
        weight, row = self._table(table).detach(), 0
        for block in blocks:
            weight[row : row + len(block)] = block
            row += len(block)


def _one_each(sparse: SparseBatch) -> bool:
    """Whether every feature has one value in every example, so that there is nothing to add up; a GPU is not asked."""
    if sparse.weights is not None or sparse.values.is_cuda or sparse.values.shape != sparse.lengths.shape:
        return False
    return bool((sparse.lengths == 1).all())


def check_weights(have: Mapping[str, tuple[int, ...]], given: Mapping[str, Tensor]) -> None:
    """Check that every given table exists with that shape.

    Raises:
        RunError: it does not.
    """
    for name, weight in given.items():
        if name not in have:
            raise RunError(f"there is no table {name!r} in this model; its tables are: {', '.join(have)}")
        if weight.shape != have[name]:
            raise RunError(
                f"table {name!r} has shape {tuple(have[name])} in this model but {tuple(weight.shape)} in what "
                "is loaded: they come from different data or another embedding_dim"
            )
