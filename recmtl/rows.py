"""Encoded columns to rows, and rows to batches, without a Python loop over rows.

In: the columns of an encoded shard (:mod:`recmtl.manifest`), as Arrow arrays. Out: :class:`Rows`, a few matrices, and
:class:`~recmtl.batch.Batch` objects, which are copied slices of them.

The ids are one matrix, feature-major as a batch has them, so that a batch costs a copy per matrix whatever the number
of features. Rows are permuted column by column, from one set of matrices into another, and not batch by batch later:
the column being permuted (4 MB for a million ids) stays in the processor's cache, the whole of a window does not. The
matrices are used again for the next rows: fresh memory costs more than what is written into it.

Dimensions: R rows, N columns of ``Batch.dense``, T tasks.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from recmtl.batch import Batch, SparseBatch
from recmtl.schema import Schema
from recmtl.tasks import Tasks

__all__ = ["Bags", "Chunks", "InTurn", "Ints", "Layout", "Rows"]

Array = npt.NDArray[Any]
Ints = npt.NDArray[np.int64]
Chunks = Mapping[str, list[pa.Array]]
"""Encoded column to its values, in one piece or several."""
InTurn = Callable[..., Iterator[Any]]
"""``map``, or that of an executor."""


@dataclass(frozen=True)
class Bags:
    """Ragged values: row i holds ``values[offsets[i]:offsets[i + 1]]``."""

    offsets: Ints
    values: npt.NDArray[np.int32] | Ints
    """Table rows; hashed ids (int64) of a managed table."""
    weights: npt.NDArray[np.float32] | None

    @staticmethod
    def from_chunks(values: Sequence[pa.Array], weights: Sequence[pa.Array] | None, *, hashed: bool) -> "Bags":
        """Lists, of hashed ids or of table rows, and a weight per value or none."""
        return Bags(
            _offsets(_joined([np.diff(chunk.offsets.to_numpy()) for chunk in values], np.int64)),
            _joined([chunk.flatten().to_numpy() for chunk in values], np.int64 if hashed else np.int32),
            None if weights is None else _joined([chunk.flatten().to_numpy() for chunk in weights], np.float32),
        )

    @staticmethod
    def concat(parts: "Sequence[Bags]") -> "Bags":
        """Rows one part after the other, in memory of their own."""
        weights = [part.weights for part in parts if part.weights is not None]
        return Bags(
            _offsets(_joined([part.lengths for part in parts], np.int64)),
            _joined([part.values for part in parts], parts[0].values.dtype if parts else np.int32),
            np.concatenate(weights) if weights else None,
        )

    def take(self, index: Ints) -> "Bags":
        """The rows at these places, copied."""
        starts = self.offsets[index]
        lengths = self.offsets[index + 1] - starts
        offsets = _offsets(lengths)
        # Position in the old values of each new one: its row's old start plus its place within the row.
        where = np.arange(offsets[-1]) + np.repeat(starts - offsets[:-1], lengths)
        return Bags(offsets, self.values[where], None if self.weights is None else self.weights[where])

    def slice(self, start: int, end: int) -> "Bags":
        """Some rows; the values are a view."""
        offsets = self.offsets[start : end + 1]
        part = slice(int(offsets[0]), int(offsets[-1]))
        return Bags(offsets - offsets[0], self.values[part], None if self.weights is None else self.weights[part])

    @property
    def lengths(self) -> Ints:
        """Values of each row."""
        return np.diff(self.offsets)


@dataclass(frozen=True)
class Rows:
    """R rows as a few matrices."""

    size: int
    """R."""
    ids: npt.NDArray[np.int32] | Ints
    """(features of kind id, R) table rows; int64 where one of them is managed, which has hashed ids."""
    dense: npt.NDArray[np.float32]
    """(R, N)."""
    labels: npt.NDArray[np.float32]
    """(T, R)."""
    observed: npt.NDArray[np.bool_]
    """(T, R)."""
    weights: npt.NDArray[np.float32]
    """(tasks that have row weights, R)."""
    keys: Ints
    """(2, R): group and row."""
    bags: Mapping[str, Bags]
    """By feature."""

    def slice(self, start: int, end: int) -> "Rows":
        """Some rows; views."""
        return Rows(
            end - start,
            self.ids[:, start:end],
            self.dense[start:end],
            self.labels[:, start:end],
            self.observed[:, start:end],
            self.weights[:, start:end],
            self.keys[:, start:end],
            {name: bags.slice(start, end) for name, bags in self.bags.items()},
        )

    def copy(self) -> "Rows":
        """The same, in memory of its own."""
        return Rows(
            self.size,
            self.ids.copy(),
            self.dense.copy(),
            self.labels.copy(),
            self.observed.copy(),
            self.weights.copy(),
            self.keys.copy(),
            {name: Bags.concat([bags]) for name, bags in self.bags.items()},
        )


class Layout:
    """What the encoded columns are, and where in a batch they go.

    Args:
        schema: the features.
        tasks: whose labels there are; None: none.
    """

    def __init__(self, schema: Schema, tasks: Tasks | None) -> None:
        self._sparse = tuple(feature.name for feature in schema.sparse)
        self._ids = {feature.name: i for i, feature in enumerate(schema.of_kind("id"))}
        self._bags = {f.name: f.kind == "weighted_bag" for f in schema.of_kind("bag", "weighted_bag")}
        self._hashed = {feature.name for feature in schema.sparse if feature.managed is not None}
        self._id_type: npt.DTypeLike = np.int64 if self._hashed & self._ids.keys() else np.int32
        self._dense_width = schema.dense_width
        self._tasks = tuple(tasks or ())
        self._weighted = tuple(name for name, task in (tasks or {}).items() if task.weight_column is not None)
        self.labels = [
            *(f"{what}:{name}" for name in self._tasks for what in ("label", "observed")),
            *(f"weight:{name}" for name in self._weighted),
            "group",
            "row",
        ]
        """The encoded columns that are no features."""
        self.columns = [
            *(f"id:{name}" for name in self._ids),
            *(f"bag:{name}" for name in self._bags),
            *(f"weights:{name}" for name, weighted in self._bags.items() if weighted),
            *(["dense"] if self._dense_width else []),
            *self.labels,
        ]
        """All encoded columns."""

    def empty(self, size: int) -> Rows:
        """Matrices for so many rows; groups and rows are -1, all else is yet to be written."""
        return Rows(
            size,
            ids=np.empty((len(self._ids), size), self._id_type),
            dense=np.empty((size, self._dense_width), np.float32),
            labels=np.empty((len(self._tasks), size), np.float32),
            observed=np.empty((len(self._tasks), size), np.bool_),
            weights=np.empty((len(self._weighted), size), np.float32),
            keys=np.full((2, size), -1, np.int64),
            bags={},
        )

    def write(self, columns: Chunks, into: Rows, start: int) -> dict[str, Bags]:
        """Copy encoded columns into matrices; different rows may be written at the same time.

        Args:
            columns: :attr:`columns`; ``group`` and ``row`` may be absent.
            into: where to.
            start: the first row there.

        Returns:
            The bags, whose size nobody knows before.
        """
        for name, place in self._places(into):
            end = start
            for chunk in columns.get(name, ()):
                begin, end = end, end + len(chunk)
                place[begin:end] = _array(chunk, place.shape[1:])
        return {
            name: Bags.from_chunks(
                columns[f"bag:{name}"],
                columns[f"weights:{name}"] if weighted else None,
                hashed=name in self._hashed,
            )
            for name, weighted in self._bags.items()
        }

    def take(self, rows: Rows, index: Ints, into: Rows, in_turn: InTurn = map) -> Rows:
        """Copy some rows into other matrices.

        Args:
            rows: where they are.
            index: which, in which order.
            into: as many rows at least.
            in_turn: takes a column at a time.

        Returns:
            The rows, in the memory of ``into``.
        """
        taken = into.slice(0, len(index))
        places = [(whole, out) for (_, whole), (_, out) in zip(self._places(rows), self._places(taken), strict=True)]

        def copy(place: tuple[Array, Array]) -> None:
            np.take(place[0], index, axis=0, out=place[1], mode="clip")  # other modes fill a copy of `out` first

        for _ in in_turn(copy, places):
            pass
        bags = in_turn(lambda name: rows.bags[name].take(index), list(self._bags))
        return replace(taken, bags=dict(zip(self._bags, bags, strict=True)))

    def _places(self, rows: Rows) -> Iterator[tuple[str, Array]]:
        """Encoded column to where it is; the longest first."""
        if self._dense_width:
            yield "dense", rows.dense
        for prefix, names, matrix in (
            ("id:", self._ids, rows.ids),
            ("label:", self._tasks, rows.labels),
            ("observed:", self._tasks, rows.observed),
            ("weight:", self._weighted, rows.weights),
            ("", ("group", "row"), rows.keys),
        ):
            yield from zip((prefix + name for name in names), matrix, strict=True)

    def batch(self, parts: Sequence[Rows]) -> Batch:
        """Rows, one part after the other, as one batch in memory of its own.

        Made by NumPy alone. The first of torch's operators that a thread spreads over the cores gives it a team of
        OpenMP threads of its own, and with more of these than cores the trainer's team stops waiting actively: a step
        then takes a tenth longer for as long as the loader's thread lives.
        """
        size = sum(part.size for part in parts)
        labels, observed, weights, keys = (
            torch.from_numpy(np.concatenate([getattr(part, name) for part in parts], axis=1))
            for name in ("labels", "observed", "weights", "keys")
        )
        return Batch(
            size=size,
            sparse=self._sparse_batch(parts, size),
            dense=torch.from_numpy(np.concatenate([part.dense for part in parts])),
            labels=dict(zip(self._tasks, labels.unbind(), strict=True)),
            observed=dict(zip(self._tasks, observed.unbind(), strict=True)),
            weights=dict(zip(self._weighted, weights.unbind(), strict=True)),
            group=keys[0],
            row=keys[1],
        )

    def _sparse_batch(self, parts: Sequence[Rows], size: int) -> SparseBatch:
        if not self._bags:
            ids = np.concatenate([part.ids for part in parts], axis=1, dtype=np.int64)
            ones = torch.from_numpy(np.ones(len(self._sparse) * size, np.int32))
            return SparseBatch(self._sparse, torch.from_numpy(ids).view(-1), ones, sizes=(size,) * len(self._sparse))
        values: list[Array] = []
        weights: list[Array] = []
        lengths = np.ones((len(self._sparse), size), np.int32)
        sizes = []
        for i, name in enumerate(self._sparse):
            if name in self._ids:
                pieces: list[Array] = [part.ids[self._ids[name]] for part in parts]
            else:
                bags = [part.bags[name] for part in parts]
                pieces = [each.values for each in bags]
                lengths[i] = np.concatenate([each.lengths for each in bags])
            values += pieces
            if self._bags.get(name):
                weights += [each.weights for each in bags if each.weights is not None]
            else:
                weights += [np.ones(len(piece), np.float32) for piece in pieces]
            sizes.append(sum(map(len, pieces)))
        return SparseBatch(
            keys=self._sparse,
            values=torch.from_numpy(np.concatenate(values, dtype=np.int64)),
            lengths=torch.from_numpy(lengths.reshape(-1)),
            weights=torch.from_numpy(np.concatenate(weights)) if any(self._bags.values()) else None,
            sizes=tuple(sizes),
        )


def _array(chunk: pa.Array, shape: tuple[int, ...]) -> Array:
    """Arrow's memory as NumPy's, row by row of this shape; it may be read-only."""
    if pa.types.is_boolean(chunk.type):
        bits: Array = chunk.cast(pa.uint8()).to_numpy()
        return bits.view(np.bool_)
    if pa.types.is_fixed_size_list(chunk.type):
        chunk = chunk.flatten()
    found: Array = chunk.to_numpy()
    return found.reshape(-1, *shape) if shape else found


def _joined(pieces: Sequence[Array], dtype: npt.DTypeLike) -> Array:
    return np.concatenate(pieces, dtype=dtype) if pieces else np.empty(0, dtype)


def _offsets(lengths: Array) -> Ints:
    offsets = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets
