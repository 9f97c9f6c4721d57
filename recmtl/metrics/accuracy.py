"""Accuracy: the share of rows whose most probable class is the observed one (a tie goes to the first class)."""

import numpy as np

from recmtl.metrics.base import Examples, Metric, Weighted

__all__ = ["ACCURACY"]


def _prepare(examples: Examples) -> Weighted:
    right = (examples.prediction.argmax(axis=1) == examples.label).astype(np.float64)
    return lambda weight: float(weight @ right / weight.sum())


ACCURACY = Metric(
    name="accuracy",
    kinds=("multiclass",),
    higher_is_better=True,
    meaning="share of rows whose most probable class is the observed one",
    prepare=_prepare,
)
