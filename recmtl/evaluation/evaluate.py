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
from recmtl.metrics import METRICS, Examples, metrics_for
from recmtl.metrics.base import FloatArray
from recmtl.metrics.user_auc import users_with_both
from recmtl.tasks import Task, Tasks

__all__ = ["Target", "TaskMetrics", "Values", "evaluate", "examples", "measure", "targets"]

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

    def rows(self, scored: Scored) -> NDArray[np.bool_]:
        """(N,): the rows that count."""
        observed = scored.observed[self.task.name]
        if self.given is not None:
            observed = observed & scored.observed[self.given] & (scored.labels[self.given] == 1)
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


def examples(scored: Scored, target: Target, prediction: FloatArray | None = None) -> Examples:
    """The rows on which a target is judged.

    Args:
        scored: a split's rows, N of them.
        target: which line.
        prediction: (N,) or (N, C): judge these in place of the model's (a baseline, the truth).
    """
    rows = target.rows(scored)
    if prediction is None:
        columns = [scored.predictions[name].astype(np.float64) for name in target.columns]
        prediction = np.stack(columns, axis=1) if target.task.kind == "multiclass" else columns[0]
    label = scored.labels[target.task.name][rows].astype(np.float64)
    levels = None if target.task.levels is None else np.array(target.task.levels)
    if levels is not None:
        label = levels[label.astype(np.intp)]
    group = None if scored.group is None else scored.group[rows]
    return Examples(prediction[rows], label, group, levels=levels)


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
