"""Area under the precision-recall curve, as average precision.

AP = Σ_k (R_k − R_{k−1}) P_k over the distinct thresholds from the highest down, without interpolation (which would be
too kind: Davis and Goadrich 2006). Undefined where there is no positive.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from recmtl.metrics.base import ByCluster, Examples, FloatArray, Metric, Weighted, by_class, dot

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


def _resample(examples: Examples, cluster: NDArray[np.intp]) -> ByCluster:
    """As above with the rows' clusters sorted once, and whole weights."""
    positives, negatives = (rows[::-1] for rows in by_class(examples))
    falling = -examples.prediction[positives]
    hits = np.searchsorted(falling, falling, side="right") - 1
    misses = np.searchsorted(-examples.prediction[negatives], falling, side="right")
    of_positives, of_negatives = cluster[positives], cluster[negatives]
    cumulative = np.zeros(negatives.size + 1, np.int64)

    def average_precision(weight: NDArray[Any]) -> float | None:
        wrong = cumulative.copy()
        np.cumsum(weight[of_negatives], out=wrong[1:])
        mine = weight[of_positives].astype(np.int64)
        found = np.cumsum(mine)
        total = int(found[-1]) if found.size else 0
        if not total > 0:
            return None
        at = found[hits]
        counted = mine > 0
        return dot(mine[counted], at[counted] / (at + wrong[misses])[counted]) / total

    return average_precision


def _influence(examples: Examples) -> FloatArray | None:
    """A positive row adds its threshold's precision, and raises that of the thresholds at or below it; a negative one
    lowers those. With TP and FP at a threshold, dP/dTP = FP / (TP + FP)² and dP/dFP = −TP / (TP + FP)²."""
    positives, negatives = by_class(examples)
    rising = examples.prediction[positives]
    count = positives.size
    if not count:
        return None
    found = count - np.searchsorted(rising, rising, "left")
    wrong = negatives.size - np.searchsorted(examples.prediction[negatives], rising, "left")
    precision = found / (found + wrong)
    value = precision.mean()
    raised = np.cumsum(np.append(0.0, wrong / (found + wrong) ** 2))  # by the positives below a position
    lowered = np.cumsum(np.append(0.0, found / (found + wrong) ** 2))
    influence = np.empty(len(examples))
    influence[positives] = (precision - value + raised[np.searchsorted(rising, rising, "right")]) / count
    influence[negatives] = -lowered[np.searchsorted(rising, examples.prediction[negatives], "right")] / count
    return influence


PR_AUC = Metric(
    name="pr_auc",
    kinds=("binary",),
    higher_is_better=True,
    meaning="average precision; the share of positives is chance",
    prepare=_prepare,
    influence=_influence,
    scale="logit",
    resample=_resample,
)
