"""Normalised entropy: log loss divided by the entropy of the positive rate, so that rates can be compared.

He et al. 2014, Practical Lessons from Predicting Clicks on Ads at Facebook, equation 1; p is the positive rate of the
evaluated rows. 1 is what knowing the rate alone is worth; undefined where one class is absent.
"""

import numpy as np

from recmtl.metrics.base import Additive, Examples, FloatArray, Metric
from recmtl.metrics.log_loss import row_losses

__all__ = ["NORMALISED_ENTROPY"]


def _terms(examples: Examples) -> tuple[FloatArray, ...]:
    return row_losses(examples), examples.label, 1 - examples.label


def _finish(sums: FloatArray) -> FloatArray:
    loss, positives, negatives = sums.T
    rows = positives + negatives
    p, q = positives / rows, negatives / rows
    return np.asarray(loss / rows / -(p * np.log(p) + q * np.log(q)))


NORMALISED_ENTROPY = Metric(
    name="normalised_entropy",
    kinds=("binary",),
    higher_is_better=False,
    meaning="log loss divided by that of the positive rate of the same rows; below 1 is better than the rate",
    additive=Additive(_terms, _finish),
)
