"""The baseline: a model that knows the training labels' means and nothing of the row.

It predicts the training mean (binary: the positive rate; ordinal and regression: label units), the training shares for
multiclass. What a model is worth is its distance from here.
"""

import numpy as np

from recmtl.evaluation.evaluate import Target, TaskMetrics, examples, measure, targets
from recmtl.evaluation.score import Scored
from recmtl.metrics.base import FloatArray
from recmtl.statistics import Statistics
from recmtl.tasks import Tasks

__all__ = ["baseline", "baseline_predictions"]


def baseline_predictions(rows: int, target: Target, statistics: Statistics) -> FloatArray | None:
    """(rows,), or (rows, C) for multiclass: the same on every row; None where train has no observed label."""
    known = statistics.labels if target.given is None else statistics.conditional_labels
    label = known.get(target.task.name)
    if label is None or not label.observed:
        return None
    if target.task.kind == "multiclass":
        return np.tile(np.array(label.distribution, np.float64), (rows, 1))
    return None if label.mean is None else np.full(rows, label.mean, np.float64)


def baseline(scored: Scored, tasks: Tasks, statistics: Statistics) -> TaskMetrics:
    """The baseline's metrics on the same rows as the model's; a target without a baseline is left out."""
    found: TaskMetrics = {}
    for target in targets(tasks):
        prediction = baseline_predictions(len(scored), target, statistics)
        if prediction is not None:
            found[target.key] = measure(examples(scored, target, prediction), target.task)
    return found
