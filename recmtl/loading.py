"""Prepared shards to batches: streamed, shuffled within a window, prefetched, and resumable at any batch.

In: a prepared dataset (:mod:`recmtl.manifest`). Out: :class:`~recmtl.batch.Batch` objects on the CPU.

An epoch's order is a pure function of (seed, epoch): the row groups of all shards are permuted; consecutive ones make a
window of at most ``window_rows`` rows; the rows of a window are permuted. Whatever comes before a position can thus be
skipped by counting, from Parquet metadata alone.

There are two windows in memory, in the same two places throughout: the one that is being cut (:mod:`recmtl.rows` says
how), and the next one, which threads decode meanwhile.
"""

import os
import queue
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from recmtl.batch import Batch
from recmtl.errors import RunError
from recmtl.etl.convert import RowEncoder
from recmtl.manifest import Manifest, Shard, file_hash, inside
from recmtl.reading import Unread, add_unread
from recmtl.rows import Bags, Ints, InTurn, Layout, Rows
from recmtl.schema import Schema
from recmtl.statistics import Statistics
from recmtl.tasks import Tasks

__all__ = ["Loader", "raw_frames", "to_batch"]

MOST_THREADS = 8
"""Threads that read row groups, one at a time, and permute columns. Each holds a row group as Arrow has it."""


def to_batch(frame: pl.DataFrame, schema: Schema, tasks: Tasks | None) -> Batch:
    """Encoded rows as one batch on the CPU.

    Args:
        frame: columns of an encoded shard (:mod:`recmtl.manifest`); ``group`` and ``row`` may be absent when scoring
            rows outside of a prepared dataset (-1 then).
        schema: the features that the frame was encoded by.
        tasks: whose labels to take; None when there are none (scoring).
    """
    layout = Layout(schema, tasks)
    rows = layout.empty(frame.height)
    return layout.batch([replace(rows, bags=layout.write(_columns(frame.to_arrow()), rows, 0))])


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
        prefetch: batches made ahead by a background thread, which has others decode; 0: none, and no thread.
        verify: check every shard's hash first.
        encoder: score the split's rows with another model: its schema and statistics. Its features are encoded from
            the raw columns that validation and test keep; labels, masks and weights stay this dataset's.
        rank: which part of every batch to yield, of ``world_size`` parts as even as they can be, the longer ones first.
            The order and the batches do not depend on either; the last batch of an epoch may leave a rank no rows.
        world_size: how many ranks share the batches.
        pin_memory: the background thread moves batches to page-locked memory, for asynchronous copies to the current
            GPU.
        tasks: some of the dataset's tasks, whose labels alone are read; None: all.

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
        pin_memory: bool = False,
        tasks: Tasks | None = None,
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
        self.tasks = manifest.tasks_ if tasks is None else tasks
        self.schema = manifest.schema_ if encoder is None else encoder[0]
        self.pin_memory = pin_memory
        self._layout = Layout(self.schema, self.tasks)
        self._encoder = None if encoder is None else RowEncoder(*encoder)
        self.unread: dict[str, Unread] = {}
        """With an encoder: column → its values that the encoder's model cannot read as in its training."""
        self._noting = threading.Lock()
        self._shards = manifest.splits[split].shards
        self._raw_shards = manifest.splits[split].raw_shards
        if encoder is not None and len(self._raw_shards) != len(self._shards):
            raise RunError(f"{folder}: {split} keeps no raw rows, so another model cannot score it")
        if verify:
            self._verify()
        self._groups = self._row_groups()
        self.rows = sum(group.rows for group in self._groups)
        """Rows of an epoch, over all ranks."""
        self._largest = min(max([window_rows, *(group.rows for group in self._groups)]), self.rows)
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
        return self._make(number, start) if self.prefetch < 1 else self._in_background(number, start)

    def _in_background(self, number: int, start: int) -> Iterator[Batch]:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        threads = max(1, min(MOST_THREADS, cores // self.world_size))
        step_aside = _nothing if self.pin_memory else _step_aside
        pool = ThreadPoolExecutor(threads, thread_name_prefix="recmtl-loader", initializer=step_aside)
        batches = self._make(number, start, pool)
        if self.pin_memory:
            batches = _pinned(batches, torch.cuda.current_device())
        try:
            yield from _made_ahead(batches, self.prefetch, step_aside)
        finally:
            pool.shutdown(cancel_futures=True)

    def _make(self, number: int, start: int, pool: ThreadPoolExecutor | None = None) -> Iterator[Batch]:
        """Cut the epoch's order into batches, joining what a window's end leaves over to the next one's beginning.

        Args:
            number: the epoch.
            start: batches to skip.
            pool: decodes the next window while this one is cut; None: nothing happens before it is asked for.
        """
        in_turn: InTurn = map if pool is None else pool.map
        waiting = self._planned(number, start)
        reading, cutting = self._layout.empty(self._largest), self._layout.empty(self._largest)

        def begin() -> tuple[_Plan, Iterator[dict[str, Bags]]] | None:
            plan = next(waiting, None)
            if plan is None:
                return None
            return plan, in_turn(partial(self._read, into=reading), plan.window, _starts(plan.window))

        batch, have = start, 0  # the current batch, and those of its rows that lay in earlier windows
        left: list[Rows] = []
        begun = begin()
        while begun is not None:
            plan, parts = begun
            taken = self._taken(number, plan)  # while they are read
            found = list(parts)
            bags = {name: Bags.concat([part[name] for part in found]) for name in found[0]}
            rows = replace(reading.slice(0, plan.size), bags=bags)
            if taken is None:
                reading, cutting = cutting, reading
            else:
                rows = self._layout.take(rows, taken, cutting, in_turn)
            begun = begin()
            position = 0
            while batch < self.batches:
                end = position + self._mine(batch) - have
                if end > rows.size:
                    break
                yield self._layout.batch([*left, rows.slice(position, end)])
                position, have, left = end, 0, []
                batch += 1
            if position < rows.size:  # a copy: the matrices will be used again
                left.append(rows.slice(position, rows.size).copy())
                have += rows.size - position

    def _mine(self, batch: int) -> int:
        """This rank's rows of a batch."""
        first, end = _part(min(self.batch_size, self.rows - batch * self.batch_size), self.rank, self.world_size)
        return end - first

    def _planned(self, number: int, start: int) -> Iterator["_Plan"]:
        """The windows that hold something of batch ``start`` or a later one."""
        begin = 0
        for place, window in enumerate(self._windows(number)):
            size = sum(group.rows for group in window)
            skip = max(start * self.batch_size - begin, 0)
            if skip < size:
                yield _Plan(place, window, size, begin, skip)
            begin += size

    def _taken(self, number: int, plan: "_Plan") -> Ints | None:
        """Which rows of a window to take, in their order in the epoch; None: all of them, as they stand."""
        if self.shuffle_seed is not None:
            order: Ints = _generator(self.shuffle_seed, number, 1 + plan.place).permutation(plan.size)[plan.skip :]
        elif plan.skip or self.world_size > 1:
            order = np.arange(plan.skip, plan.size)
        else:
            return None
        if self.world_size == 1:
            return order
        return order[self._is_mine(np.arange(plan.begin + plan.skip, plan.begin + plan.size))]

    def _is_mine(self, positions: Ints) -> npt.NDArray[np.bool_]:
        """Whether the rows at these positions of the epoch are this rank's."""
        last = (self.batches - 1) * self.batch_size
        whole, short = (_part(size, self.rank, self.world_size) for size in (self.batch_size, self.rows - last))
        place = positions % self.batch_size
        return np.where(
            positions < last, (place >= whole[0]) & (place < whole[1]), (place >= short[0]) & (place < short[1])
        )

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

    def _encode(self, raw: pl.DataFrame) -> pl.DataFrame:
        assert self._encoder is not None
        found: dict[str, Unread] = {}
        rows = self._encoder.rows(raw, found)
        if found:
            with self._noting:
                add_unread(self.unread, found)
        return rows

    def _read(self, group: "_RowGroup", start: int, into: Rows) -> dict[str, Bags]:
        """Write a row group into a window's matrices, from row ``start`` on."""
        columns = self._layout.columns if self._encoder is None else self._layout.labels
        table = self._read_group(self._shards[group.shard], group.number, columns)
        chunks = _columns(table)
        if self._encoder is not None:
            raw = pl.from_arrow(self._read_group(self._raw_shards[group.shard], group.number, None))
            assert isinstance(raw, pl.DataFrame)
            if raw.height != table.num_rows:
                raise RunError(
                    f"{self.folder / self._raw_shards[group.shard].path}: not row for row the encoded shard's"
                )
            chunks |= _columns(self._encode(raw).to_arrow())
        return self._layout.write(chunks, into, start)

    def _read_group(self, shard: Shard, number: int, columns: Sequence[str] | None) -> pa.Table:
        file = self._open(shard)
        try:
            return file.read_row_group(number, columns=columns, use_threads=False)
        except (OSError, pa.ArrowException) as error:
            raise _unreadable(self.folder, shard, error) from error
        finally:
            file.close()

    def _open(self, shard: Shard) -> pq.ParquetFile:
        try:
            return pq.ParquetFile(inside(self.folder, shard.path), pre_buffer=False)
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


class _Plan(NamedTuple):
    """A window of an epoch."""

    place: int
    """Windows before it."""
    window: list[_RowGroup]
    size: int
    """Its rows."""
    begin: int
    """Rows of the epoch before it."""
    skip: int
    """Its first rows that are not wanted."""


def _starts(window: list[_RowGroup]) -> list[int]:
    """Where each row group begins in the window."""
    return list(accumulate((group.rows for group in window[:-1]), initial=0))


def _columns(table: pa.Table) -> dict[str, list[pa.Array]]:
    return {name: table.column(name).chunks for name in table.column_names}


def _pinned(batches: Iterator[Batch], device: int) -> Iterator[Batch]:
    torch.cuda.set_device(device)  # each thread has its own current device, and pinning needs one
    for batch in batches:
        yield batch.pin_memory()


def _generator(seed: int, epoch: int, stream: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(np.random.SeedSequence((seed, epoch, stream))))


def _unreadable(folder: Path, shard: Shard, error: Exception) -> RunError:
    return RunError(f"{folder / shard.path}: cannot be read ({error}); remove {folder} and prepare again")


class _Failed(NamedTuple):
    error: BaseException


class _End:
    """No more batches."""


NICENESS = 10


def _step_aside() -> None:
    """Let this thread have the cores that computing leaves over.

    A product on all cores waits for the slowest: one core taken by the loader for a millisecond is one that all of them
    lose. What is left over, while the interpreter prepares the next product on one core alone, is enough for it.
    """
    if sys.platform == "linux":  # where niceness is a thread's own
        thread = threading.get_native_id()
        os.setpriority(os.PRIO_PROCESS, thread, min(os.getpriority(os.PRIO_PROCESS, thread) + NICENESS, 19))


def _nothing() -> None:
    """A GPU computes elsewhere: the loader shall be as fast as it can."""


def _made_ahead(batches: Iterator[Batch], ahead: int, first: Callable[[], None]) -> Iterator[Batch]:
    """The same batches, made by a thread that stays at most ``ahead`` of the consumer and ends with the iterator.

    Args:
        batches: the batches.
        ahead: how many.
        first: called in that thread before anything else.
    """
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
        first()
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
