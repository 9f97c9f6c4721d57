"""Mean absolute error, in label units."""

import numpy as np

from recmtl.metrics.base import Examples, Metric, Weighted

__all__ = ["MAE"]


def _prepare(examples: Examples) -> Weighted:
    distances = np.abs(examples.prediction - examples.label)
    return lambda weight: float(weight @ distances / weight.sum())


MAE = Metric(
    name="mae",
    kinds=("regression", "ordinal"),
    higher_is_better=False,
    meaning="mean absolute error, in label units",
    prepare=_prepare,
)
