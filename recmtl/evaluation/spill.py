"""Columns on disk: a split's predictions and labels when they are too many for memory.

In: arrays, piece by piece. Out: read-only memory maps of the whole columns, which
:class:`~recmtl.evaluation.score.Scored` holds in place of arrays, and :func:`read`, which takes a piece of one from its
file. Reading by the file and not through the map keeps the process small: pages of a map that were touched count as its
memory until the system wants them back.
"""

import mmap
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["PIECE", "Spill", "is_spilled", "pieces", "read"]

PIECE = 1 << 20
"""Rows that are read at once."""


class Spill:
    """Columns that are written as they come. Close it, or leave its ``with``, before reading them."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._files: dict[str, tuple[Path, IO[bytes]]] = {}

    def append(self, column: str, values: NDArray[Any]) -> None:
        """Write the next rows of a column: (n,), of the same dtype each time."""
        if column not in self._files:
            path = self.folder / f"{len(self._files)}.bin"  # a column's name may hold anything
            self._files[column] = path, path.open("wb")
        np.ascontiguousarray(values).tofile(self._files[column][1])

    def close(self) -> None:
        """Write out what is left; idempotent."""
        for _, file in self._files.values():
            file.close()

    def __enter__(self) -> "Spill":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that have been written to, in order."""
        return tuple(self._files)

    def column(self, name: str, dtype: str) -> NDArray[Any]:
        """(N,) the whole column, as a read-only memory map; an empty array where nothing was written."""
        path = self._files[name][0] if name in self._files else None
        if path is None or not path.stat().st_size:
            return np.empty(0, dtype)
        return np.memmap(path, dtype, mode="r")


def read(values: NDArray[Any], start: int, stop: int) -> NDArray[Any]:
    """Rows ``start`` to ``stop`` of a column: from its file where it is a memory map, a view otherwise."""
    base: Any = values.base
    if isinstance(values, np.memmap) and isinstance(base, mmap.mmap):  # a map, and not a part of one
        count = max(min(stop, values.size) - start, 0)
        offset = values.offset + start * values.itemsize
        return np.fromfile(str(values.filename), values.dtype, count, offset=offset)
    return values[start:stop]


def pieces(rows: int, size: int = PIECE) -> Iterator[tuple[int, int]]:
    """(start, stop) of the pieces of so many rows."""
    for start in range(0, rows, size):
        yield start, min(start + size, rows)


def is_spilled(columns: Mapping[str, NDArray[Any]] | Iterable[NDArray[Any]]) -> bool:
    """Whether any of the columns is a memory map."""
    each = columns.values() if isinstance(columns, Mapping) else columns
    return any(isinstance(values, np.memmap) for values in each)
