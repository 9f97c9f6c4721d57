"""Calibration ratio: positives predicted (sum of the probabilities) over positives observed; undefined without any.

It has no direction, 1 being best, so it cannot be monitored.
"""

import numpy as np

from recmtl.metrics.base import Additive, Metric

__all__ = ["CALIBRATION"]


CALIBRATION = Metric(
    name="calibration",
    kinds=("binary",),
    higher_is_better=None,
    meaning="positives predicted over positives observed; 1 is right",
    scale="log",
    additive=Additive(
        terms=lambda examples: (examples.prediction, examples.label),
        finish=lambda sums: np.asarray(sums[:, 0] / sums[:, 1]),
    ),
)
