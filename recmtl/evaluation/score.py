"""A model's predictions beside the labels, for a whole split. In: model and loader. Out: :class:`Scored`, in NumPy."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from recmtl.errors import RunError
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


def score(
    model: Model,
    loader: Loader,
    *,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
    group: Group = ONE,
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

    Raises:
        RunError: a prediction is not finite.
    """
    columns: dict[str, list[NDArray[np.generic]]] = {}
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
                    columns.setdefault(f"predictions:{name}", []).append(_finite(name, values))
                for role in ("labels", "observed", "weights"):
                    for name, values in getattr(batch, role).items():
                        columns.setdefault(f"{role}:{name}", []).append(values.cpu().numpy())
                columns.setdefault("group", []).append(batch.group.cpu().numpy())
                columns.setdefault("row", []).append(batch.row.cpu().numpy())
                sizes.append(batch.size)
                whole = min(loader.batch_size, loader.rows - done)
                shown.advance(whole)
                done += whole
    finally:
        model.train(was_training)
    order = _order(np.array(sizes, np.int64), group)
    return _scored(columns, loader, lambda rows: group.gather(rows)[order])


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


def _scored(
    columns: Mapping[str, list[NDArray[np.generic]]],
    loader: Loader,
    gather: Callable[[NDArray[Any]], NDArray[Any]],
) -> Scored:
    def joined(name: str, dtype: str) -> NDArray[Any]:
        return gather(np.concatenate([np.empty(0, dtype), *columns.get(name, [])]).astype(dtype, copy=False))

    def role(prefix: str, names: Iterable[str], dtype: str = "float32") -> dict[str, NDArray[Any]]:
        return {name: joined(f"{prefix}:{name}", dtype) for name in names}

    tasks = loader.tasks
    predicted = [name.removeprefix("predictions:") for name in columns if name.startswith("predictions:")]
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
