"""Accuracy: the share of rows whose most probable class is the observed one (a tie goes to the first class)."""

from recmtl.metrics.base import Metric, mean

__all__ = ["ACCURACY"]


ACCURACY = Metric(
    name="accuracy",
    kinds=("multiclass",),
    higher_is_better=True,
    meaning="share of rows whose most probable class is the observed one",
    scale="logit",
    additive=mean(lambda examples: examples.prediction.argmax(axis=1) == examples.label),
)
