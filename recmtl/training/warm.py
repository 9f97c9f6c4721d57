"""Warm start: a model begins where another one ended.

In: a model at its initial values, what its features and vocabularies are, and the package of the one before (the
champion, usually). Out: the model with all of the other's values that mean the same in it.

- Embedding tables go by name and, row by row, by the id's value, because every vocabulary is fitted anew: ids move,
  come and go. An id that is new begins as it does in any model, at a small random vector. (Not at the row of unseen
  ids: that row is exactly 0 and is never trained, so it knows no more about a new id.) A hashed or managed table is
  carried whole when it has the same size, a managed one with its map of ids.
- Everything else goes by name and shape. What has another shape begins fresh, with a warning that names it.
- Where the features or the tasks, or their order, are others, a column of the tower's input or a row of its gates means
  something else, also where the shapes agree: then tables and projections alone are carried.
- A number must be standardised as it was, or the same weight means something else. The daily pipeline prepares its
  data by the champion's means and deviations (:attr:`recmtl.etl.days.DailyConfig.moments`); anywhere else a difference
  is warned of.
- Optimisers begin anew, and nothing is frozen.

With the same features the model then computes, before its first step, what the other does, on all rows whose ids both
know.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from recmtl.features import initial_table, table_shapes
from recmtl.model import Model, ModelConfig
from recmtl.package import Package
from recmtl.schema import Feature, Schema, Table
from recmtl.statistics import Statistics, Vocabulary
from recmtl.tasks import Task, Tasks

__all__ = ["WarmStarted", "warm_start"]

_TABLES, _ID_MAPS, _PROJECTIONS, _HEADS = "tables.", "features.id_maps.", "features.projections.", "heads.by_task."
_RESERVED = 2


@dataclass(frozen=True)
class WarmStarted:
    """What was carried over."""

    ids: int
    """Of all vocabularies: values that the other model knew."""
    new_ids: int
    """Those that it did not."""
    forgotten_ids: int
    """Values that it knew and this model does not."""
    tensors: int
    """Dense tensors that were carried."""
    fresh: tuple[str, ...]
    """Tables and dense tensors that begin anew."""
    warnings: tuple[str, ...]


def warm_start(
    model: Model,
    before: Package,
    *,
    config: ModelConfig,
    schema: Schema,
    tasks: Tasks,
    statistics: Statistics,
    seed: int,
) -> WarmStarted:
    """Give a model the values of another; every rank of a job calls it.

    Args:
        model: at its initial values.
        before: where the values come from.
        config, schema, tasks, statistics, seed: what the model was built from.

    Raises:
        RunError: the package's tensors are not those of its model.
    """
    theirs = {name: tensor.detach().cpu() for name, tensor in before.model.tensors().items()}
    warnings: list[str] = []
    fresh: list[str] = []
    ids = new_ids = forgotten = 0

    tables: dict[str, Tensor] = {}
    for name, shape in table_shapes(schema, statistics).items():
        weight_VW = initial_table(shape, std=config.inputs.embedding_std, seed=seed, name=name)
        old_VW = theirs.get(f"{_TABLES}{name}")
        reason = _other_table(schema.tables[name], before.schema.tables.get(name), shape.rows)
        if reason is not None or old_VW is None:
            warnings.append(f"warm start: table {name!r} begins anew ({reason})")
            fresh.append(f"{_TABLES}{name}")
        elif name in statistics.tables:
            rows, old_rows = _same_values(statistics.tables[name], before.statistics.tables[name])
            weight_VW[rows] = old_VW[old_rows].to(weight_VW.dtype)
            shared = len(rows) - _RESERVED
            ids += shared
            new_ids += len(statistics.tables[name].values) - shared
            forgotten += len(before.statistics.tables[name].values) - shared
        else:
            weight_VW = old_VW.to(weight_VW.dtype)
        tables[f"{_TABLES}{name}"] = weight_VW

    refused = _Refused(schema, before.schema, tasks, before.tasks)
    dense: dict[str, Tensor] = {}
    carried = 0
    for name, own in model.pieces().items():
        if name.startswith(_TABLES):
            continue
        assert isinstance(own, Tensor)
        old = theirs.get(name)
        table = name.removeprefix(_ID_MAPS).split(".")[0] if name.startswith(_ID_MAPS) else None
        if old is None or old.shape != own.shape or refused(name) or f"{_TABLES}{table}" in fresh:
            if old is None:
                warnings.append(f"warm start: {name} begins anew (the other model has none)")
            elif old.shape != own.shape:
                warnings.append(f"warm start: {name} begins anew (it is {_shape(own)}, was {_shape(old)})")
            fresh.append(name)
            dense[name] = own.detach().clone()
        else:
            dense[name] = old
            carried += 1
    model.load_tensors({**tables, **dense})
    warnings += _told(schema, before.schema, tasks, before.tasks)
    warnings += _restandardised(schema, statistics, before)
    return WarmStarted(ids, new_ids, forgotten, carried, tuple(fresh), tuple(warnings))


def _shape(tensor: Tensor) -> str:
    return "×".join(map(str, tensor.shape)) or "a scalar"


def _other_table(now: Table, then: Table | None, rows: int) -> str | None:
    """Why a table's rows mean something else than before, or None."""
    if then is None:
        return "the other model has none"
    if now.embedding_dim != then.embedding_dim:
        return f"its width is {now.embedding_dim}, was {then.embedding_dim}"
    if now.hash_buckets != then.hash_buckets:
        return f"its hash_buckets are {now.hash_buckets}, were {then.hash_buckets}"
    if (now.managed is None) != (then.managed is None) or (now.managed is not None and then.stated_rows != rows):
        return "its managed rows are others"
    return None


def _same_values(now: Vocabulary, then: Vocabulary) -> tuple[Tensor, Tensor]:
    """Rows of the new table and, aligned, the old table's rows of the same values; the two reserved rows first."""
    reserved = torch.arange(_RESERVED)
    places = pc.index_in(pa.array(now.values, pa.string()), value_set=pa.array(then.values, pa.string()))
    known = torch.from_numpy(places.is_valid().to_numpy(zero_copy_only=False).copy())
    old = torch.from_numpy(places.drop_null().to_numpy(zero_copy_only=False).astype("int64"))
    rows = torch.arange(len(now.values))[known]
    return torch.cat([reserved, rows + _RESERVED]), torch.cat([reserved, old + _RESERVED])


def _layout(schema: Schema) -> list[tuple[str, str, object]]:
    """What the columns of the tower's input are, in order."""
    widths = {name: table.embedding_dim for name, table in schema.tables.items()}
    return [(feature.name, feature.kind, widths.get(feature.table or "", feature.dim)) for feature in schema.values()]


def _other_task(now: Task, then: Task | None) -> bool:
    """Whether a head's output means something else."""
    fields = ("kind", "parent", "levels", "classes", "link")
    return then is not None and any(getattr(now, field) != getattr(then, field) for field in fields)


class _Refused:
    """Which dense tensors may not be carried though name and shape agree."""

    def __init__(self, schema: Schema, old_schema: Schema, tasks: Tasks, old_tasks: Tasks) -> None:
        self._all = _layout(schema) != _layout(old_schema) or tuple(tasks) != tuple(old_tasks)
        self._tasks = [name for name, task in tasks.items() if _other_task(task, old_tasks.get(name))]

    def __call__(self, name: str) -> bool:
        if name.startswith((_ID_MAPS, _PROJECTIONS)):
            return False
        return self._all or any(name.startswith(f"{_HEADS}{task}.") for task in self._tasks)


def _told(schema: Schema, old_schema: Schema, tasks: Tasks, old_tasks: Tasks) -> list[str]:
    found = []
    now, then = _layout(schema), _layout(old_schema)
    if now != then:
        names = [one[0] for one in now if one not in then] + [one[0] for one in then if one not in now]
        what = f"the features differ ({', '.join(dict.fromkeys(names))})" if names else "the features' order differs"
        found.append(f"warm start: {what}, so tower and heads begin anew and tables alone are carried")
    if tuple(tasks) != tuple(old_tasks):
        found.append(
            f"warm start: the tasks are {', '.join(tasks)}, were {', '.join(old_tasks)}, so tower and heads begin anew "
            "and tables alone are carried"
        )
    found += [
        f"warm start: the head of task {name} begins anew (its kind, parent, levels, classes or link changed)"
        for name, task in tasks.items()
        if _other_task(task, old_tasks.get(name))
    ]
    return found


def _restandardised(schema: Schema, statistics: Statistics, before: Package) -> list[str]:
    """Numbers whose inputs mean something else than the other model learned."""
    changed = [
        feature.name
        for feature in _common(schema.of_kind("number"), before.schema)
        if feature.transform != before.schema[feature.name].transform
        or _moments(statistics, feature.name) != _moments(before.statistics, feature.name)
    ]
    if not changed:
        return []
    return [
        f"warm start: {', '.join(changed)} is standardised otherwise than in the other model, so this one begins as "
        "another function of it (the daily pipeline keeps the champion's means and deviations)"
    ]


def _common(features: Sequence[Feature], schema: Schema) -> list[Feature]:
    return [feature for feature in features if feature.name in schema and schema[feature.name].kind == feature.kind]


def _moments(statistics: Statistics, feature: str) -> tuple[float, float, tuple[float, ...]]:
    found = statistics.numbers[feature]
    return found.mean, found.std, found.quantiles
