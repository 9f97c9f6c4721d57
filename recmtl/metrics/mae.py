"""Mean absolute error, in label units."""

import numpy as np

from recmtl.metrics.base import Metric, mean

__all__ = ["MAE"]


MAE = Metric(
    name="mae",
    kinds=("regression", "ordinal"),
    higher_is_better=False,
    meaning="mean absolute error, in label units",
    scale="log",
    additive=mean(lambda examples: np.abs(examples.prediction - examples.label)),
)
