"""Log loss: mean of −log of the probability given to what happened, in nats.

A probability is first kept within [2⁻²⁴, 1 − 2⁻²⁴]: models predict in float32, which has nothing between the upper
bound and 1, so that a saturated prediction costs 16.6 nats when wrong rather than infinity.
"""

import numpy as np

from recmtl.metrics.base import Examples, FloatArray, Metric, mean

__all__ = ["LOG_LOSS", "PROBABILITY_MARGIN", "row_losses"]

PROBABILITY_MARGIN = 2.0**-24
"""Distance that probabilities keep from 0 and 1: that of the largest float32 below 1."""


def row_losses(examples: Examples) -> FloatArray:
    """(N,) nats: the loss of every row, binary or multiclass."""
    if examples.prediction.ndim == 2:
        happened = examples.prediction[np.arange(len(examples)), examples.label.astype(np.intp)]
    else:
        happened = np.where(examples.label == 1, examples.prediction, 1 - examples.prediction)
    return -np.log(np.clip(happened, PROBABILITY_MARGIN, 1 - PROBABILITY_MARGIN))


LOG_LOSS = Metric(
    name="log_loss",
    kinds=("binary", "multiclass"),
    higher_is_better=False,
    meaning="mean of −log of the probability given to what happened, in nats",
    scale="log",
    additive=mean(row_losses),
)
