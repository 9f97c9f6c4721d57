"""Area under the ROC curve: the chance that a positive row is ranked above a negative one, a tie counting half.

The Mann-Whitney statistic, exact: every positive row wins against the negative ones below it, and half against those
that are level with it. Undefined where one class is absent.
"""

import numpy as np

from recmtl.metrics.base import Examples, FloatArray, Metric, Weighted, by_class, dot

__all__ = ["AUC"]


def _prepare(examples: Examples) -> Weighted:
    positives, negatives = by_class(examples)
    ranked = examples.prediction[negatives]
    below = np.searchsorted(ranked, examples.prediction[positives], side="left")
    up_to = np.searchsorted(ranked, examples.prediction[positives], side="right")

    def auc(weight: FloatArray) -> float | None:
        mine, theirs = weight[positives], np.append(0.0, np.cumsum(weight[negatives]))
        total = mine.sum() * theirs[-1]
        return dot(mine, theirs[below] + theirs[up_to]) / (2 * total) if total > 0 else None

    return auc


AUC = Metric(
    name="auc",
    kinds=("binary",),
    higher_is_better=True,
    meaning="chance that a positive row is ranked above a negative one; 0.5 is chance",
    prepare=_prepare,
)
