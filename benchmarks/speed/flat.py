"""The flat train rows in memory, for those who are not recmtl. In: ``flat.parquet``. Out: :class:`Flat`, in NumPy."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from work import CARDINALITIES, RESERVED, TASKS, Work

IDS = tuple(f"C{i}" for i in range(len(CARDINALITIES)))
NUMBERS = tuple(f"I{i}" for i in range(Work().numbers))


@dataclass(frozen=True)
class Flat:
    """R rows."""

    ids: np.ndarray
    """(F, R) int64, contiguous by feature."""
    numbers: np.ndarray
    """(R, N) float32."""
    labels: np.ndarray
    """(R, T) float32."""

    @classmethod
    def read(cls, folder: Path, rows: int | None = None, *, name: str = "flat.parquet") -> "Flat":
        """The first rows, or all."""
        table = pq.read_table(folder / name).slice(0, rows)
        columns = {name: table[name].to_numpy() for name in table.column_names}
        return cls(
            np.stack([columns[name] for name in IDS]),
            np.stack([columns[name] for name in NUMBERS], axis=1),
            np.stack([columns[name] for name in TASKS], axis=1),
        )

    @property
    def rows(self) -> int:
        return self.ids.shape[1]

    def longer(self, times: int) -> "Flat":
        """Ids of tables so many times as long: each one is spread over as many rows."""
        if times == 1:
            return self
        spread = np.random.default_rng(1).integers(0, times, self.ids.shape)
        ids = np.where(self.ids < RESERVED, self.ids, RESERVED + (self.ids - RESERVED) * times + spread)
        return Flat(ids, self.numbers, self.labels)

    def batches(self, size: int) -> Iterator["Flat"]:
        """Whole batches, in order."""
        if self.rows < size:
            raise ValueError(f"the data have fewer rows than a batch of {size}")
        for start in range(0, self.rows - size + 1, size):
            part = slice(start, start + size)
            yield Flat(np.ascontiguousarray(self.ids[:, part]), self.numbers[part], self.labels[part])

    def tensors(self) -> tuple[Any, Any, Any]:
        """ids, numbers, labels as torch has them."""
        import torch

        return torch.from_numpy(self.ids), torch.from_numpy(self.numbers), torch.from_numpy(self.labels)
