"""One piece of the inputs to one Parquet part, which appears whole.

In: a :class:`recmtl.scoring.inputs.Piece`. Out: ``part-00000.parquet`` in the working folder. A thread takes a batch
from encoding to predictions by itself; torch's own threads are off meanwhile. That gives the same bits on any number of
threads, and is faster: batches share nothing, and the operators of one are too small to be divided well.
"""

import json
import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import polars as pl
import pyarrow.parquet as pq
import torch

from recmtl import durable
from recmtl.errors import UserError
from recmtl.failures import writing
from recmtl.manifest import file_hash
from recmtl.package import Package
from recmtl.reading import NumberStyle, Unread, add_unread
from recmtl.scoring.inputs import Piece, Source, frames
from recmtl.scoring.ranking import TopK, best
from recmtl.settings import Settings

__all__ = ["Job", "Part", "Scorer", "cores", "groupless_of", "part_name", "unread_in", "write_part"]

_GROUP_ROWS = 65536
"""Rows of a row group of the output: what a reader takes at once."""
_GROUPLESS = b"recmtl.groupless"
_UNREAD = "recmtl.unread"
_SORTED_GROUP_ROWS = 8192
"""The same where a reader looks for stretches of keys."""


class Job(Settings):
    """What is done to every piece."""

    package: Path
    """The package's folder."""
    digest: str
    """And its digest, which a process that loads it compares."""
    device: str
    sources: tuple[Source, ...]
    folder: Path
    """Where the parts go."""
    columns: tuple[str, ...]
    """The predictions to write."""
    calibrated: bool
    """Whether the package's calibration is applied."""
    top: TopK | None
    """Keep each group's best rows alone."""
    batch_rows: int
    style: NumberStyle | None = None
    """How numbers are written in text, where otherwise than in training."""


class Part(NamedTuple):
    """A part that was written."""

    sha256: str
    """Of the file."""
    rows: int
    """In the file: with a top k fewer than were scored."""


class Scorer:
    """Scores pieces, one after the other.

    Args:
        package: the model.
        job: what to do.
        threads: how many batches are scored at a time.
    """

    def __init__(self, package: Package, job: Job, threads: int) -> None:
        self._package = package if job.style is None else package.read_as(job.style)
        self._job, self._threads = job, threads

    def write(self, piece: Piece, done: Callable[[int], None]) -> Part:
        """Score a piece and write its part; ``done`` hears of every batch's rows.

        Raises:
            UserError: rows that cannot be what the schema says, with their file.
            RunError: a file has gone or is damaged.
        """
        unread: dict[str, Unread] = {}
        rows = _grouped(self._scored(piece, done, unread), _GROUP_ROWS)
        path = self._job.folder / part_name(piece.number)
        if self._job.top is None:
            return write_part(path, rows, unread=unread)
        whole = pl.concat(list(rows))
        groupless = whole[self._job.top.by].null_count()
        return write_part(
            path,
            [best(whole, self._job.top)],
            row_group_rows=_SORTED_GROUP_ROWS,
            groupless=groupless,
            unread=unread,
        )

    def _scored(self, piece: Piece, done: Callable[[int], None], unread: dict[str, Unread]) -> Iterator[pl.DataFrame]:
        """Keys and predictions, batch by batch, in order; ``unread`` is added what could not be read."""
        batches = frames(self._package, self._job.sources, piece, self._job.batch_rows)
        waiting: deque[Future[tuple[pl.DataFrame, dict[str, Unread]]]] = deque()
        with _one_thread_each(), ThreadPoolExecutor(self._threads, "recmtl-scoring") as pool:
            try:
                waiting.extend(pool.submit(self._score, *batch) for batch in islice(batches, self._threads + 1))
                while waiting:
                    frame, problems = waiting.popleft().result()
                    add_unread(unread, problems)
                    waiting.extend(pool.submit(self._score, *batch) for batch in islice(batches, 1))
                    done(frame.height)
                    yield frame
            finally:
                for future in waiting:
                    future.cancel()

    def _score(self, name: str, copied: pl.DataFrame, features: pl.DataFrame) -> tuple[pl.DataFrame, dict[str, Unread]]:
        unread: dict[str, Unread] = {}
        try:
            rows = max(features.height, 1)
            predictions = self._package.predict(
                features, calibrated=self._job.calibrated, batch_rows=rows, unread=unread
            )
        except UserError as error:
            raise UserError(f"{name}: {error}") from error
        predictions = predictions.select(self._job.columns)
        return (copied.hstack(predictions) if copied.width else predictions), unread


def part_name(number: int) -> str:
    """The file of a part."""
    return f"part-{number:05}.parquet"


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def write_part(
    path: Path,
    frames: Iterator[pl.DataFrame] | Sequence[pl.DataFrame],
    *,
    row_group_rows: int = 0,
    groupless: int | None = None,
    unread: Mapping[str, Unread] | None = None,
) -> Part:
    """Write frames of the same columns; the file appears when it is whole.

    Args:
        path: of the file.
        frames: a row group each, or more.
        row_group_rows: how many rows a row group has at most.
        groupless: a number to note in the file, for :func:`groupless_of`.
        unread: what to note in the file, for :func:`unread_in`, once the frames are written.
    """
    rows = 0
    # What fails to be read is named already, by what makes the frames.
    with durable.replacing_file(path) as unfinished, writing(unfinished):
        writer: pq.ParquetWriter | None = None
        for frame in frames:
            rows += frame.height
            table = frame.to_arrow(compat_level=pl.CompatLevel.oldest())
            if groupless is not None:
                table = table.replace_schema_metadata({_GROUPLESS: str(groupless)})
            writer = writer or pq.ParquetWriter(unfinished, table.schema)
            writer.write_table(table, row_group_size=row_group_rows or None)
        assert writer is not None
        if unread:
            noted = {name: problem.model_dump(mode="json") for name, problem in unread.items()}
            writer.add_key_value_metadata({_UNREAD: json.dumps(noted)})
        writer.close()
        digest = file_hash(unfinished)
    return Part(digest, rows)


def groupless_of(path: Path) -> int:
    """How many rows a part left out because they belong to no group."""
    return int((pq.read_schema(path).metadata or {}).get(_GROUPLESS, b"0"))


def unread_in(path: Path) -> dict[str, Unread]:
    """Column → the values of a part's rows that could not be read as in training."""
    stated = json.loads((pq.read_metadata(path).metadata or {}).get(_UNREAD.encode(), b"{}"))
    return {name: Unread.model_validate(problem) for name, problem in stated.items()}


def _grouped(frames: Iterator[pl.DataFrame], rows: int) -> Iterator[pl.DataFrame]:
    """The same rows in frames of at least so many, but the last."""
    held: list[pl.DataFrame] = []
    for frame in frames:
        held.append(frame)
        if sum(each.height for each in held) >= rows:
            yield pl.concat(held)
            held = []
    if held:
        yield pl.concat(held)


@contextmanager
def _one_thread_each() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
