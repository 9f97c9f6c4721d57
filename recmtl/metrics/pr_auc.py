"""Area under the precision-recall curve, as average precision.

AP = Σ_k (R_k − R_{k−1}) P_k over the distinct thresholds from the highest down, without interpolation (which would be
too kind: Davis and Goadrich 2006). Undefined where there is no positive.
"""

import numpy as np

from recmtl.metrics.base import Examples, FloatArray, Metric, Weighted, run_ends

__all__ = ["PR_AUC"]


def _prepare(examples: Examples) -> Weighted:
    order = np.argsort(-examples.prediction, kind="stable")
    ends = run_ends(examples.prediction[order])
    positive = examples.label[order]

    def average_precision(weight: FloatArray) -> float | None:
        sorted_weight = weight[order]
        rows = np.cumsum(sorted_weight)[ends]
        positives = np.cumsum(sorted_weight * positive)[ends]
        if positives[-1] == 0:
            return None
        precision = positives / np.where(rows > 0, rows, 1)
        return float(np.diff(positives, prepend=0) @ precision / positives[-1])

    return average_precision


PR_AUC = Metric(
    name="pr_auc",
    kinds=("binary",),
    higher_is_better=True,
    meaning="average precision; the share of positives is chance",
    prepare=_prepare,
)
