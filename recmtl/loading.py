"""Prepared shards to batches: streamed, shuffled within a window, prefetched, and resumable at any batch.

In: a prepared dataset (:mod:`recmtl.manifest`). Out: :class:`~recmtl.batch.Batch` objects on the CPU.

An epoch's order is a pure function of (seed, epoch): the row groups of all shards are permuted; consecutive ones make a
window of at most ``window_rows`` rows; the rows of a window are permuted. Whatever comes before a position can thus be
skipped by counting, from Parquet metadata alone.
"""

import queue
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from recmtl.batch import Batch, SparseBatch
from recmtl.errors import RunError
from recmtl.etl.encode import Encoder
from recmtl.manifest import Manifest, Shard, file_hash, inside
from recmtl.schema import Schema
from recmtl.statistics import Statistics
from recmtl.tasks import Tasks

__all__ = ["Loader", "raw_frames", "to_batch"]

Ints = npt.NDArray[np.int64]
Array = npt.NDArray[Any]


def to_batch(frame: pl.DataFrame, schema: Schema, tasks: Tasks | None) -> Batch:
    """Encoded rows as one batch on the CPU.

    Args:
        frame: columns of an encoded shard (:mod:`recmtl.manifest`); ``group`` and ``row`` may be absent when scoring
            rows outside of a prepared dataset (-1 then).
        schema: the features that the frame was encoded by.
        tasks: whose labels to take; None when there are none (scoring).
    """
    return _Rows.from_frame(frame, schema, tasks).to_batch(schema)


def raw_frames(folder: Path, manifest: Manifest, split: str) -> Iterator[pl.DataFrame]:
    """The raw columns of validation or test, part by part, in the order of the encoded rows.

    Raises:
        RunError: a shard is gone or unreadable.
    """
    for shard in manifest.splits[split].raw_shards:
        try:
            yield pl.read_parquet(inside(folder, shard.path), glob=False)
        except (OSError, pl.exceptions.PolarsError) as error:
            raise _unreadable(folder, shard, error) from error


class Loader:
    """One split of a prepared dataset, as batches.

    Args:
        folder: the dataset's folder.
        manifest: its manifest.
        split: train, validation or test.
        batch_size: rows of a batch; the last one of an epoch holds what is left.
        shuffle_seed: seed of the order; None: source order (train: the order on disk).
        window_rows: rows that are shuffled together, which bounds the memory taken: a window is as many whole row
            groups as fit, at least one.
        prefetch: batches made ahead by a background thread; 0: none, and no thread.
        verify: check every shard's hash first.
        encoder: score the split's rows with another model: its schema and statistics. Its features are encoded from
            the raw columns that validation and test keep; labels, masks and weights stay this dataset's.
        rank: which part of every batch to yield, of ``world_size`` parts as even as they can be, the longer ones first.
            The order and the batches do not depend on either; the last batch of an epoch may leave a rank no rows.
        world_size: how many ranks share the batches.

    Raises:
        RunError: a shard is gone, damaged or not what the manifest says.
    """

    def __init__(
        self,
        folder: Path,
        manifest: Manifest,
        split: str,
        *,
        batch_size: int,
        shuffle_seed: int | None,
        window_rows: int = 1_000_000,
        prefetch: int = 4,
        verify: bool = False,
        encoder: tuple[Schema, Statistics] | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, not {batch_size}")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank {rank} is not one of {world_size}")
        self.folder = folder
        self.manifest = manifest
        self.split = split
        self.batch_size = batch_size
        self.shuffle_seed = shuffle_seed
        self.window_rows = window_rows
        self.prefetch = prefetch
        self.rank = rank
        self.world_size = world_size
        self.tasks = manifest.tasks_
        self.schema = manifest.schema_ if encoder is None else encoder[0]
        self._encoder = None if encoder is None else Encoder(*encoder)
        self._shards = manifest.splits[split].shards
        self._raw_shards = manifest.splits[split].raw_shards
        if encoder is not None and len(self._raw_shards) != len(self._shards):
            raise RunError(f"{folder}: {split} keeps no raw rows, so another model cannot score it")
        if verify:
            self._verify()
        self._groups = self._row_groups()
        self.rows = sum(group.rows for group in self._groups)
        """Rows of an epoch, over all ranks."""
        self.batches = -(-self.rows // batch_size)
        """Batches of an epoch."""

    def epoch(self, number: int, start: int = 0) -> Iterator[Batch]:
        """The batches of an epoch from batch ``start`` on.

        They are the same, bit for bit, as those of an uninterrupted epoch. Closing the iterator (or exhausting it)
        ends the background thread.

        Args:
            number: the epoch, which together with the seed fixes the order.
            start: batches to skip; windows that lie before them are not read.

        Raises:
            RunError: a shard cannot be read, or the dataset was prepared anew in the meantime.
        """
        self._check_unchanged()
        batches = self._make(number, start)
        return batches if self.prefetch < 1 else _in_background(batches, self.prefetch)

    def _make(self, number: int, start: int) -> Iterator[Batch]:
        """Cut the epoch's order into batches, joining what a window's end leaves over to the next one's beginning."""
        skip = start * self.batch_size
        remaining = self.rows - skip  # rows of the epoch from the current batch on
        have = 0  # rows of the current batch that lay in earlier windows, and those of them that are this rank's
        parts: list[_Rows] = []
        for index, window in enumerate(self._windows(number)):
            size = sum(group.rows for group in window)
            if skip >= size:
                skip -= size
                continue
            rows = self._read(window)
            order: Ints | None = None
            if self.shuffle_seed is not None:
                order = _generator(self.shuffle_seed, number, 1 + index).permutation(size)
            position, skip = skip, 0
            while position < size:
                wanted = min(self.batch_size, remaining)
                end = min(position + wanted - have, size)
                first, last = _part(wanted, self.rank, self.world_size)
                begin, stop = (min(max(position + edge - have, position), end) for edge in (first, last))
                parts.append(rows.slice(begin, stop) if order is None else rows.take(order[begin:stop]))
                have += end - position
                position = end
                if have == wanted:
                    yield _Rows.concat(parts).to_batch(self.schema)
                    remaining -= wanted
                    have, parts = 0, []

    def _windows(self, number: int) -> Iterator[list["_RowGroup"]]:
        order: Sequence[int] | Ints = range(len(self._groups))
        if self.shuffle_seed is not None:
            order = _generator(self.shuffle_seed, number, 0).permutation(len(self._groups))
        window: list[_RowGroup] = []
        size = 0
        for position in order:
            group = self._groups[position]
            if window and size + group.rows > self.window_rows:
                yield sorted(window)
                window, size = [], 0
            window.append(group)
            size += group.rows
        if window:
            yield sorted(window)  # its rows are permuted anyway; a shard is then opened once

    def _row_groups(self) -> list["_RowGroup"]:
        groups = []
        for index, shard in enumerate(self._shards):
            metadata = self._open(shard).metadata
            if metadata.num_rows != shard.rows:
                raise RunError(
                    f"{self.folder / shard.path}: {metadata.num_rows} rows where the manifest says {shard.rows}; "
                    f"remove {self.folder} and prepare again"
                )
            for number in range(metadata.num_row_groups):
                rows = metadata.row_group(number).num_rows
                if rows:
                    groups.append(_RowGroup(index, number, rows))
        return groups

    def _read(self, window: list["_RowGroup"]) -> "_Rows":
        """A window's rows, row group after row group."""
        columns = _columns(self.schema if self._encoder is None else None, self.tasks)
        frames = []
        start = 0
        while start < len(window):
            # Row groups that follow each other in the order and share a shard are read in one go.
            end = start + 1
            while end < len(window) and window[end].shard == window[start].shard:
                end += 1
            shard = window[start].shard
            numbers = [group.number for group in window[start:end]]
            frame = self._read_groups(self._shards[shard], numbers, columns)
            if self._encoder is not None:
                raw = self._read_groups(self._raw_shards[shard], numbers, None)
                if raw.height != frame.height:
                    raise RunError(f"{self.folder / self._raw_shards[shard].path}: not row for row the encoded shard's")
                frame = pl.concat((self._encoder.rows(raw), frame), how="horizontal")
            frames.append(_Rows.from_frame(frame, self.schema, self.tasks))
            start = end
        return _Rows.concat(frames)

    def _read_groups(self, shard: Shard, numbers: list[int], columns: list[str] | None) -> pl.DataFrame:
        file = self._open(shard)
        try:
            found = pl.from_arrow(file.read_row_groups(numbers, columns=columns))
        except (OSError, pa.ArrowException) as error:
            raise _unreadable(self.folder, shard, error) from error
        finally:
            file.close()
        assert isinstance(found, pl.DataFrame)
        return found

    def _open(self, shard: Shard) -> pq.ParquetFile:
        try:
            return pq.ParquetFile(inside(self.folder, shard.path))
        except (OSError, pa.ArrowException) as error:
            raise _unreadable(self.folder, shard, error) from error

    def _verify(self) -> None:
        for shard in (*self._shards, *(self._raw_shards if self._encoder is not None else ())):
            try:
                found = file_hash(inside(self.folder, shard.path))
            except OSError as error:
                raise _unreadable(self.folder, shard, error) from error
            if found != shard.sha256:
                raise RunError(
                    f"{self.folder / shard.path}: damaged, its hash is not the manifest's; "
                    f"remove {self.folder} and prepare again"
                )

    def _check_unchanged(self) -> None:
        now = Manifest.read_from(self.folder)
        if (now.fingerprint, now.statistics) != (self.manifest.fingerprint, self.manifest.statistics):
            raise RunError(
                f"{self.folder}: prepared anew, from other data or another config, since this run opened it; give each "
                "config a `data.prepared` folder of its own and start again"
            )


def _part(rows: int, rank: int, world_size: int) -> tuple[int, int]:
    """First row of a batch that is this rank's, and the row after its last, as ``numpy.array_split`` has them."""
    each, more = divmod(rows, world_size)
    first = rank * each + min(rank, more)
    return first, first + each + (rank < more)


class _RowGroup(NamedTuple):
    shard: int
    number: int
    rows: int


@dataclass(frozen=True)
class _Bags:
    """Ragged values: row i holds ``values[offsets[i]:offsets[i + 1]]``."""

    offsets: Ints
    values: npt.NDArray[np.int32]
    weights: npt.NDArray[np.float32] | None

    def take(self, index: Ints) -> "_Bags":
        starts = self.offsets[index]
        lengths = self.offsets[index + 1] - starts
        offsets = _offsets(lengths)
        # Position in the old values of each new one: its row's old start plus its place within the row.
        where = np.arange(offsets[-1]) + np.repeat(starts - offsets[:-1], lengths)
        return _Bags(offsets, self.values[where], None if self.weights is None else self.weights[where])

    def slice(self, start: int, end: int) -> "_Bags":
        offsets = self.offsets[start : end + 1]
        part = slice(int(offsets[0]), int(offsets[-1]))
        return _Bags(offsets - offsets[0], self.values[part], None if self.weights is None else self.weights[part])

    @staticmethod
    def concat(parts: "Sequence[_Bags]") -> "_Bags":
        lengths = np.concatenate([np.diff(part.offsets) for part in parts])
        weights = [part.weights for part in parts if part.weights is not None]
        return _Bags(
            _offsets(lengths),
            np.concatenate([part.values for part in parts]),
            np.concatenate(weights) if weights else None,
        )


@dataclass(frozen=True)
class _Rows:
    """Rows as NumPy arrays, converted once a window; taking a batch out of them is an index per array."""

    size: int
    flat: Mapping[str, Array]
    """Columns of one entry a row: id:, dense, label:, observed:, weight:, group, row."""
    bags: Mapping[str, _Bags]
    """By feature."""

    @classmethod
    def from_frame(cls, frame: pl.DataFrame, schema: Schema, tasks: Tasks | None) -> "_Rows":
        size = frame.height
        flat: dict[str, Array] = {}
        bags: dict[str, _Bags] = {}
        for feature in schema.sparse:
            if feature.kind == "id":
                flat[f"id:{feature.name}"] = frame[f"id:{feature.name}"].to_numpy()
            else:
                weights = frame[f"weights:{feature.name}"] if feature.kind == "weighted_bag" else None
                bags[feature.name] = _bags(frame[f"bag:{feature.name}"], weights)
        if schema.dense_width:
            flat["dense"] = frame["dense"].to_numpy().reshape(size, schema.dense_width)
        for name in tasks or ():
            flat[f"label:{name}"] = frame[f"label:{name}"].to_numpy()
            flat[f"observed:{name}"] = frame[f"observed:{name}"].to_numpy()
            if f"weight:{name}" in frame.columns:
                flat[f"weight:{name}"] = frame[f"weight:{name}"].to_numpy()
        for name in ("group", "row"):
            flat[name] = frame[name].to_numpy() if name in frame.columns else np.full(size, -1, np.int64)
        return cls(size, flat, bags)

    def take(self, index: Ints) -> "_Rows":
        return _Rows(
            len(index),
            {name: values[index] for name, values in self.flat.items()},
            {name: bag.take(index) for name, bag in self.bags.items()},
        )

    def slice(self, start: int, end: int) -> "_Rows":
        return _Rows(
            end - start,
            {name: values[start:end] for name, values in self.flat.items()},
            {name: bag.slice(start, end) for name, bag in self.bags.items()},
        )

    @staticmethod
    def concat(parts: "Sequence[_Rows]") -> "_Rows":
        if len(parts) == 1:
            return parts[0]
        return _Rows(
            sum(part.size for part in parts),
            {name: np.concatenate([part.flat[name] for part in parts]) for name in parts[0].flat},
            {name: _Bags.concat([part.bags[name] for part in parts]) for name in parts[0].bags},
        )

    def to_batch(self, schema: Schema) -> Batch:
        keys = tuple(feature.name for feature in schema.sparse)
        total = self.size * (len(keys) - len(self.bags)) + sum(len(bag.values) for bag in self.bags.values())
        values = np.empty(total, np.int64)
        lengths = np.ones((len(keys), self.size), np.int32)
        weights = np.ones(total, np.float32) if schema.of_kind("weighted_bag") else None
        end = 0
        for position, name in enumerate(keys):
            bag = self.bags.get(name)
            start = end
            if bag is None:
                end = start + self.size
                values[start:end] = self.flat[f"id:{name}"]
                continue
            end = start + len(bag.values)
            values[start:end] = bag.values
            lengths[position] = np.diff(bag.offsets)
            if weights is not None and bag.weights is not None:
                weights[start:end] = bag.weights
        sparse = SparseBatch(
            keys=keys,
            values=torch.from_numpy(values),
            lengths=torch.from_numpy(lengths.reshape(-1)),
            weights=None if weights is None else torch.from_numpy(weights),
        )
        tensors = {name: _tensor(column) for name, column in self.flat.items() if not name.startswith("id:")}
        return Batch(
            size=self.size,
            sparse=sparse,
            dense=tensors.get("dense", torch.empty(self.size, 0)),
            labels=_with_prefix(tensors, "label:"),
            observed=_with_prefix(tensors, "observed:"),
            weights=_with_prefix(tensors, "weight:"),
            group=tensors["group"],
            row=tensors["row"],
        )


def _with_prefix(tensors: Mapping[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _tensor(values: Array) -> torch.Tensor:
    # Arrow's memory is read-only and torch warns of it: a view of it is copied, what was indexed out of it is not.
    return torch.from_numpy(values if values.flags.writeable and values.flags.c_contiguous else values.copy())


def _bags(values: pl.Series, weights: pl.Series | None) -> _Bags:
    flat = values.explode(empty_as_null=False).to_numpy()
    return _Bags(
        _offsets(values.list.len().to_numpy()),
        flat,
        None if weights is None else weights.explode(empty_as_null=False).to_numpy(),
    )


def _offsets(lengths: Array) -> Ints:
    offsets = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets


def _columns(schema: Schema | None, tasks: Tasks) -> list[str] | None:
    """The encoded columns to read; without a schema, those that are not features."""
    columns = []
    if schema is not None:
        for feature in schema.sparse:
            columns.append(f"{'id' if feature.kind == 'id' else 'bag'}:{feature.name}")
            if feature.kind == "weighted_bag":
                columns.append(f"weights:{feature.name}")
        if schema.dense_width:
            columns.append("dense")
    for name, task in tasks.items():
        columns += [f"label:{name}", f"observed:{name}"]
        if task.weight_column is not None:
            columns.append(f"weight:{name}")
    return [*columns, "group", "row"]


def _generator(seed: int, epoch: int, stream: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(np.random.SeedSequence((seed, epoch, stream))))


def _unreadable(folder: Path, shard: Shard, error: Exception) -> RunError:
    return RunError(f"{folder / shard.path}: cannot be read ({error}); remove {folder} and prepare again")


class _Failed(NamedTuple):
    error: BaseException


class _End:
    """No more batches."""


def _in_background(batches: Iterator[Batch], ahead: int) -> Iterator[Batch]:
    """The same batches, made by a thread that stays at most ``ahead`` of the consumer and ends with the iterator."""
    made: queue.Queue[Batch | _Failed | _End] = queue.Queue(maxsize=ahead)
    stopped = threading.Event()

    def put(item: Batch | _Failed | _End) -> None:
        while not stopped.is_set():
            try:
                made.put(item, timeout=0.1)
                return
            except queue.Full:
                continue

    def work() -> None:
        try:
            for batch in batches:
                put(batch)
                if stopped.is_set():
                    return
            put(_End())
        except BaseException as error:  # whatever it is, it belongs to the consumer
            put(_Failed(error))

    thread = threading.Thread(target=work, name="recmtl-loader", daemon=True)
    thread.start()
    try:
        while True:
            item = made.get()
            if isinstance(item, _End):
                return
            if isinstance(item, _Failed):
                raise item.error
            yield item
    finally:
        stopped.set()
        thread.join()
