"""Predictions and labels to metrics, task by task.

A task gives one line, or two: under its own name the metrics on all rows where it is observed (for a task with a
parent: of the product p(parent) · p(task | parent), on all rows where all labels of its chain are observed); and, for
a task with a parent, under TASK_given_PARENT those of the conditional probability, on the rows where the parent is
positive as well. Every row counts once: row weights are for the loss.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from recmtl.evaluation.score import Scored
from recmtl.evaluation.spill import read
from recmtl.metrics import METRICS, Examples, metrics_for
from recmtl.metrics.user_auc import users_with_both
from recmtl.tasks import Task, Tasks

__all__ = ["Target", "TaskMetrics", "Values", "evaluate", "examples", "measure", "predictions", "targets"]

Values = dict[str, float | int | None]
"""Metric to value: ``rows``, for binary tasks ``positives`` and ``user_auc_users``, then every metric of the kind; None
where undefined."""
TaskMetrics = dict[str, Values]
"""TASK and TASK_given_PARENT to values."""


@dataclass(frozen=True)
class Target:
    """One line of an evaluation: a task, or a task given its parent."""

    key: str
    """TASK or TASK_given_PARENT: its name in ``metrics.json``."""
    task: Task
    columns: tuple[str, ...]
    """The prediction columns that it judges: one, or one a class."""
    given: str | None = None
    """The parent that is positive on its rows."""

    def rows(self, scored: Scored, start: int = 0, stop: int | None = None) -> NDArray[np.bool_]:
        """(stop − start,): which rows count, of all of them or of a piece."""
        end = len(scored) if stop is None else stop
        observed: NDArray[np.bool_] = read(scored.observed[self.task.name], start, end)
        if self.given is not None:
            parent = read(scored.labels[self.given], start, end) == 1
            observed = observed & read(scored.observed[self.given], start, end) & parent
        return observed


def targets(tasks: Tasks) -> tuple[Target, ...]:
    """What is evaluated, in config order, a conditional after its product."""
    found = []
    for name, task in tasks.items():
        columns = tasks.prediction_columns(name)
        if task.parent is None:
            found.append(Target(name, task, columns))
        else:
            product, conditional = columns
            found += [Target(product, task, (product,)), Target(conditional, task, (conditional,), given=task.parent)]
    return tuple(found)


def examples(
    scored: Scored,
    target: Target,
    prediction: NDArray[np.floating] | None = None,
    *,
    start: int = 0,
    stop: int | None = None,
) -> Examples:
    """The rows on which a target is judged.

    Args:
        scored: a split's rows, N of them.
        target: which line.
        prediction: (N,) or (N, C): judge these in place of the model's (a baseline, the truth, another system).
        start: the first row of a piece, of whose rows alone ``prediction`` is then.
        stop: the row after its last one.
    """
    end = len(scored) if stop is None else stop
    rows = np.flatnonzero(target.rows(scored, start, end))
    predicted = predictions(scored, target, start, end) if prediction is None else prediction
    label = read(scored.labels[target.task.name], start, end)[rows].astype(np.float64)
    levels = None if target.task.levels is None else np.array(target.task.levels)
    if levels is not None:
        label = levels[label.astype(np.intp)]
    group = None if scored.group is None else read(scored.group, start, end)[rows]
    return Examples(predicted[rows].astype(np.float64), label, group, levels=levels)


def predictions(scored: Scored, target: Target, start: int, stop: int) -> NDArray[np.float32]:
    """(stop − start,), or (stop − start, C) for multiclass: what the system that scored them predicts for a piece."""
    columns = [read(scored.predictions[name], start, stop) for name in target.columns]
    return np.stack(columns, axis=1) if target.task.kind == "multiclass" else columns[0]


def measure(rows: Examples, task: Task, names: Sequence[str] | None = None) -> Values:
    """Counts and metrics of one target; ``names``: these metrics alone, without the counts."""
    if names is not None:
        return {name: METRICS[name].compute(rows) for name in names}
    values: Values = {"rows": len(rows)}
    if task.kind == "binary":
        values["positives"] = int(rows.label.sum())
        values["user_auc_users"] = users_with_both(rows)
    return values | {metric.name: metric.compute(rows) for metric in metrics_for(task.kind)}


def evaluate(scored: Scored, tasks: Tasks) -> TaskMetrics:
    """Every metric of every task, and of every task given its parent, for the model's own predictions."""
    return {target.key: measure(examples(scored, target), target.task) for target in targets(tasks)}
