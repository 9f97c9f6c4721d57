"""Area under the ROC curve: the chance that a positive row is ranked above a negative one, a tie counting half.

The Mann-Whitney statistic by its definition, exact, from one sort. Undefined where one class is absent.
"""

import numpy as np

from recmtl.metrics.base import Examples, FloatArray, Metric, Weighted, run_ends

__all__ = ["AUC"]


def _prepare(examples: Examples) -> Weighted:
    order = np.argsort(examples.prediction, kind="stable")
    ends = run_ends(examples.prediction[order])
    positive = examples.label[order]
    negative = 1 - positive

    def auc(weight: FloatArray) -> float | None:
        sorted_weight = weight[order]
        positives = np.cumsum(sorted_weight * positive)[ends]
        negatives = np.cumsum(sorted_weight * negative)[ends]
        if positives[-1] == 0 or negatives[-1] == 0:
            return None
        twice_won = (positives[1:] - positives[:-1]) @ (negatives[1:] + negatives[:-1]) + positives[0] * negatives[0]
        return float(twice_won / (2 * positives[-1] * negatives[-1]))

    return auc


AUC = Metric(
    name="auc",
    kinds=("binary",),
    higher_is_better=True,
    meaning="chance that a positive row is ranked above a negative one; 0.5 is chance",
    prepare=_prepare,
)
