"""Root of the mean squared error, in label units."""

import numpy as np

from recmtl.metrics.base import Metric, mean

__all__ = ["RMSE"]


_MSE = mean(lambda examples: (examples.prediction - examples.label) ** 2)

RMSE = Metric(
    name="rmse",
    kinds=("regression", "ordinal"),
    higher_is_better=False,
    meaning="root of the mean squared error, in label units",
    scale="log",
    additive=_MSE._replace(finish=lambda sums: np.sqrt(_MSE.finish(sums))),
)
