"""Area under the precision-recall curve, as average precision.

AP = Σ_k (R_k − R_{k−1}) P_k over the distinct thresholds from the highest down, without interpolation (which would be
too kind: Davis and Goadrich 2006). Undefined where there is no positive.
"""

import numpy as np

from recmtl.metrics.base import Examples, FloatArray, Metric, Weighted, by_class, dot

__all__ = ["PR_AUC"]


def _prepare(examples: Examples) -> Weighted:
    positives, negatives = (rows[::-1] for rows in by_class(examples))
    falling = -examples.prediction[positives]
    hits = np.searchsorted(falling, falling, side="right")  # positives, and negatives, at a positive's threshold
    misses = np.searchsorted(-examples.prediction[negatives], falling, side="right")

    def average_precision(weight: FloatArray) -> float | None:
        mine = weight[positives]
        found = np.cumsum(mine)[hits - 1]
        wrong = np.append(0.0, np.cumsum(weight[negatives]))[misses]
        if not mine.sum() > 0:
            return None
        counted = mine > 0
        return dot(mine[counted], found[counted] / (found + wrong)[counted]) / float(mine.sum())

    return average_precision


PR_AUC = Metric(
    name="pr_auc",
    kinds=("binary",),
    higher_is_better=True,
    meaning="average precision; the share of positives is chance",
    prepare=_prepare,
)
