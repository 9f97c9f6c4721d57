"""What is attainable on a synthetic log: the metrics of the true probabilities, on exactly the rows that are observed.

In: the truth beside the log (``label:COLUMN`` the marginal probability or mean of a label, ``given:COLUMN`` the
probability given a positive parent, ``main:COLUMN`` a score from the main effects alone), aligned with the rows. No
model has a better expected AUC, log loss or RMSE; on finite rows one may pass it by noise, hence the intervals. For
the other metrics (MAE, kappa, Spearman) it is a reference rather than a bound.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from recmtl.errors import RunError
from recmtl.evaluation.evaluate import Target, TaskMetrics, examples, measure, targets
from recmtl.evaluation.score import Scored
from recmtl.metrics.base import FloatArray
from recmtl.tasks import Tasks

__all__ = ["RANKING", "Truth", "main_effects", "optimum", "share_of_attainable", "true_predictions"]

Truth = Mapping[str, NDArray[np.floating]]
"""``label:COLUMN``, ``given:COLUMN`` and ``main:COLUMN`` to (N,), aligned with the scored rows."""

RANKING = ("auc", "user_auc", "pr_auc")
"""The metrics by which main effects are judged."""


def true_predictions(scored: Scored, target: Target, truth: Truth, *, role: str | None = None) -> FloatArray | None:
    """(N,): what a perfect model predicts; None where the truth of this target is not known.

    Raises:
        RunError: the truth has another number of rows, or lacks rows that are observed.
    """
    column = f"{role or ('label' if target.given is None else 'given')}:{target.task.label}"
    if column not in truth or target.task.kind == "multiclass":
        return None
    values = np.asarray(truth[column], np.float64)
    if values.shape != (len(scored),):
        raise RunError(f"the truth's {column!r} has {values.size} rows, but {len(scored)} were scored: prepare again")
    unknown = int((~np.isfinite(values[target.rows(scored)])).sum())
    if unknown:
        raise RunError(f"the truth's {column!r} is missing on {unknown} rows where {target.key} is observed")
    return values


def optimum(scored: Scored, tasks: Tasks, truth: Truth) -> TaskMetrics:
    """The truth's metrics on the same rows as the model's; a target whose truth is unknown is left out."""
    found: TaskMetrics = {}
    for target in targets(tasks):
        prediction = true_predictions(scored, target, truth)
        if prediction is not None:
            found[target.key] = measure(examples(scored, target, prediction), target.task)
    return found


def main_effects(scored: Scored, tasks: Tasks, truth: Truth) -> TaskMetrics:
    """Ranking metrics of the main effects alone: how far a model without interactions could go."""
    found: TaskMetrics = {}
    for target in targets(tasks):
        prediction = true_predictions(scored, target, truth, role="main") if target.given is None else None
        if prediction is not None:
            found[target.key] = measure(examples(scored, target, prediction), target.task, RANKING)
    return found


def share_of_attainable(auc: float | None, best: float | None) -> float | None:
    """How far an AUC goes from 0.5 to the attainable one; None where that is unknown or no better than chance."""
    return None if auc is None or best is None or best <= 0.5 else (auc - 0.5) / (best - 0.5)
