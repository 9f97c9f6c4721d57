"""A model's predictions beside the labels, for a whole split. In: model and loader. Out: :class:`Scored`, in NumPy.

The columns are in memory, once, or on disk: :func:`score` with ``spill`` writes them to files as they come, and
:class:`Scored` then holds memory maps, so that a split may be larger than memory.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from recmtl.errors import RunError
from recmtl.evaluation.spill import Spill, is_spilled
from recmtl.group import ONE, Group
from recmtl.loading import Loader
from recmtl.model import Model
from recmtl.progress import Progress, Silent

__all__ = ["Scored", "score"]


@dataclass(frozen=True)
class Scored:
    """N rows: what was predicted and what happened."""

    predictions: Mapping[str, NDArray[np.float32]]
    """Prediction column (``Tasks.prediction_columns``) to (N,): probabilities, expectations, label units."""
    labels: Mapping[str, NDArray[np.float32]]
    """Task to (N,), as in :class:`recmtl.batch.Batch`: ordinal and multiclass hold the index of the level or class."""
    observed: Mapping[str, NDArray[np.bool_]]
    """Task to (N,): where its label counts; for a task with a parent, where all labels of its chain are observed."""
    group: NDArray[np.int64] | None
    """(N,): equal for rows of the same user; None where users are unknown."""
    row: NDArray[np.int64]
    """(N,): the row's number in the dataset's source order."""
    weights: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    """Task to (N,), for tasks with a ``weight_column``. Losses use them; metrics count every row once."""

    def __len__(self) -> int:
        return self.row.size

    def take(self, rows: NDArray[np.intp]) -> "Scored":
        """These rows, in memory, in this order; without weights, which are for the loss."""

        def part(columns: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
            return {name: np.asarray(values[rows]) for name, values in columns.items()}

        return Scored(
            predictions=part(self.predictions),
            labels=part(self.labels),
            observed=part(self.observed),
            group=None if self.group is None else np.asarray(self.group[rows]),
            row=np.asarray(self.row[rows]),
        )

    @property
    def spilled(self) -> bool:
        """Whether the columns are on disk."""
        return is_spilled((self.row, *self.predictions.values(), *self.labels.values()))


def score(
    model: Model,
    loader: Loader,
    *,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
    group: Group = ONE,
    spill: Path | None = None,
) -> Scored:
    """Predict every row of the loader's split, in its order.

    In float32 whatever training used, with dropout and batch statistics off; the model is left in the mode that it was
    in. Validation and test are read in source order when the loader has no shuffle seed.

    Args:
        model: already on ``device``.
        loader: one epoch of it is read; of several ranks, each has its part of every batch.
        device: where the model is.
        progress: shows a bar.
        group: the ranks that share the loader's batches; each gets all rows, in the split's order.
        spill: a folder for the columns (16 bytes a row and 4 a prediction column, 5 a task); the result holds memory
            maps of its files, which must stay as long as it is read. One rank alone can have it.

    Raises:
        RunError: a prediction is not finite.
    """
    assert spill is None or group.size == 1, "a rank has its part of the rows; gathering them needs memory"
    columns: _Columns = _InMemory(loader.rows) if spill is None else Spill(spill)
    sizes: list[int] = []
    done = 0
    was_training = model.training
    model.eval()
    kind = torch.device(device).type
    bar = (progress or Silent()).bar(f"scoring {loader.split}", total=loader.rows)
    try:
        with torch.no_grad(), torch.autocast(kind, enabled=False), bar as shown:
            for batch in loader.epoch(0):
                predictions = model.predictions(model(batch.to(device)))
                for name, values in predictions.items():
                    columns.append(f"predictions:{name}", _finite(name, values))
                for role, dtype in _ROLES.items():
                    for name, values in getattr(batch, role).items():
                        columns.append(f"{role}:{name}", values.cpu().numpy().astype(dtype, copy=False))
                columns.append("group", batch.group.cpu().numpy().astype(np.int64, copy=False))
                columns.append("row", batch.row.cpu().numpy().astype(np.int64, copy=False))
                sizes.append(batch.size)
                whole = min(loader.batch_size, loader.rows - done)
                shown.advance(whole)
                done += whole
    finally:
        model.train(was_training)
        columns.close()
    order = _order(np.array(sizes, np.int64), group)
    return _scored(columns, loader, (lambda rows: group.gather(rows)[order]) if group.size > 1 else lambda rows: rows)


_ROLES = {"labels": "float32", "observed": "bool", "weights": "float32"}


class _InMemory:
    """Columns in arrays of the right size from the first rows on, so that no column is held twice."""

    def __init__(self, rows: int) -> None:
        self._rows = rows
        self._whole: dict[str, NDArray[Any]] = {}
        self._filled: dict[str, int] = {}

    def append(self, column: str, values: NDArray[Any]) -> None:
        start = self._filled.get(column, 0)
        if column not in self._whole:
            self._whole[column] = np.empty(self._rows, values.dtype)
        self._whole[column][start : start + values.size] = values
        self._filled[column] = start + values.size

    def close(self) -> None:
        """Nothing is open."""

    @property
    def columns(self) -> tuple[str, ...]:
        return tuple(self._whole)

    def column(self, name: str, dtype: str) -> NDArray[Any]:
        if name not in self._whole:
            return np.empty(0, dtype)
        return self._whole[name][: self._filled[name]]  # a rank has fewer rows than the split


_Columns = _InMemory | Spill


def _order(sizes: NDArray[np.int64], group: Group) -> NDArray[np.intp] | slice:
    """Where the split's rows are among those that ``group.gather`` lays end to end, rank after rank.

    Args:
        sizes: rows of this rank in each batch.
        group: the ranks.
    """
    if group.size == 1:
        return slice(None)
    batch = np.tile(np.arange(len(sizes)), group.size)
    return np.argsort(np.repeat(batch, group.gather(sizes)), kind="stable")


def _finite(name: str, values: torch.Tensor) -> NDArray[np.float32]:
    array: NDArray[np.float32] = values.float().cpu().numpy()
    wrong = int((~np.isfinite(array)).sum())
    if wrong:
        raise RunError(
            f"prediction {name} is not finite on {wrong} of {array.size} rows of a batch: the model is broken"
        )
    return array


def _scored(columns: _Columns, loader: Loader, gather: Callable[[NDArray[Any]], NDArray[Any]]) -> Scored:
    def joined(name: str, dtype: str) -> NDArray[Any]:
        return gather(columns.column(name, dtype))

    def role(prefix: str, names: Iterable[str], dtype: str = "float32") -> dict[str, NDArray[Any]]:
        return {name: joined(f"{prefix}:{name}", dtype) for name in names}

    tasks = loader.tasks
    predicted = [name.removeprefix("predictions:") for name in columns.columns if name.startswith("predictions:")]
    return Scored(
        predictions=role(
            "predictions", predicted or [name for task in tasks for name in tasks.prediction_columns(task)]
        ),
        labels=role("labels", tasks),
        observed=role("observed", tasks, "bool"),
        weights=role("weights", [name for name, task in tasks.items() if task.weight_column is not None]),
        group=joined("group", "int64") if loader.manifest.columns.user is not None else None,
        row=joined("row", "int64"),
    )
