"""Spearman's rank correlation: Pearson's between the ranks of predictions and labels, ties having their mean rank.

With weights, a rank is the weight below plus half the weight tied, so that a row of weight 2 is two equal rows.
Undefined where predictions or labels are all equal.
"""

import math

import numpy as np

from recmtl.metrics.base import Examples, FloatArray, Metric, Weighted, dot, run_ends

__all__ = ["SPEARMAN"]


class _Ranks:
    """The mean ranks of some values (N,), as a function of the row weights."""

    def __init__(self, values: FloatArray) -> None:
        order = np.argsort(values, kind="stable")
        ends = run_ends(values[order])
        self.run = np.empty(values.size, np.intp)  # which of the distinct values a row has
        self.run[order] = np.repeat(np.arange(ends.size), np.diff(ends, prepend=-1))

    def centred(self, weight: FloatArray) -> FloatArray | None:
        """(N,) ranks less their weighted mean (half of the weight); None where all are equal."""
        mass = np.bincount(self.run, weight)
        if np.count_nonzero(mass) < 2:
            return None
        cumulative = np.cumsum(mass)
        centred: FloatArray = cumulative - mass / 2 - cumulative[-1] / 2
        return centred[self.run]


def _prepare(examples: Examples) -> Weighted:
    predicted, observed = _Ranks(examples.prediction), _Ranks(examples.label)

    def spearman(weight: FloatArray) -> float | None:
        x, y = predicted.centred(weight), observed.centred(weight)
        if x is None or y is None:
            return None
        return dot(weight * x, y) / math.sqrt(dot(weight * x, x) * dot(weight * y, y))

    return spearman


SPEARMAN = Metric(
    name="spearman",
    kinds=("regression", "ordinal"),
    higher_is_better=True,
    meaning="rank correlation of predictions and labels, from −1 to 1",
    prepare=_prepare,
)
