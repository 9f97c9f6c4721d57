"""Normalised entropy: log loss divided by the entropy of the positive rate, so that rates can be compared.

He et al. 2014, Practical Lessons from Predicting Clicks on Ads at Facebook, equation 1; p is the positive rate of the
evaluated rows. 1 is what knowing the rate alone is worth; undefined where one class is absent.
"""

import math

from recmtl.metrics.base import Examples, FloatArray, Metric, Weighted
from recmtl.metrics.log_loss import row_losses

__all__ = ["NORMALISED_ENTROPY"]


def _prepare(examples: Examples) -> Weighted:
    losses = row_losses(examples)
    negative = 1 - examples.label

    def normalised_entropy(weight: FloatArray) -> float | None:
        total = weight.sum()
        p, q = float(weight @ examples.label / total), float(weight @ negative / total)
        if p == 0 or q == 0:
            return None
        return float(weight @ losses / total) / -(p * math.log(p) + q * math.log(q))

    return normalised_entropy


NORMALISED_ENTROPY = Metric(
    name="normalised_entropy",
    kinds=("binary",),
    higher_is_better=False,
    meaning="log loss divided by that of the positive rate of the same rows; below 1 is better than the rate",
    prepare=_prepare,
)
