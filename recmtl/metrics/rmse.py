"""Root of the mean squared error, in label units."""

import math

from recmtl.metrics.base import Examples, Metric, Weighted

__all__ = ["RMSE"]


def _prepare(examples: Examples) -> Weighted:
    squares = (examples.prediction - examples.label) ** 2
    return lambda weight: math.sqrt(weight @ squares / weight.sum())


RMSE = Metric(
    name="rmse",
    kinds=("regression", "ordinal"),
    higher_is_better=False,
    meaning="root of the mean squared error, in label units",
    prepare=_prepare,
)
