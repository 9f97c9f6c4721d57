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

    def swept(self, values: FloatArray) -> FloatArray:
        """(N,) for each row: half the sum of the values of the rows above it, less half of those below it.

        It is what a row's weight moves the rows' centred ranks by, summed with these values.
        """
        mass = np.bincount(self.run, values)
        cumulative = np.cumsum(mass)
        above_less_below: FloatArray = cumulative[-1] - 2 * cumulative + mass
        return above_less_below[self.run] / 2


def _prepare(examples: Examples) -> Weighted:
    predicted, observed = _Ranks(examples.prediction), _Ranks(examples.label)

    def spearman(weight: FloatArray) -> float | None:
        x, y = predicted.centred(weight), observed.centred(weight)
        if x is None or y is None:
            return None
        return dot(weight * x, y) / math.sqrt(dot(weight * x, x) * dot(weight * y, y))

    return spearman


def _influence(examples: Examples) -> FloatArray | None:
    """With x and y the centred ranks, ρ = Sxy / √(Sxx Syy); a row's weight adds its own product to each sum and moves
    the ranks of all others by half, up or down."""
    predicted, observed = _Ranks(examples.prediction), _Ranks(examples.label)
    ones = np.ones(len(examples))
    x, y = predicted.centred(ones), observed.centred(ones)
    if x is None or y is None:
        return None
    xy, xx, yy = dot(x, y), dot(x, x), dot(y, y)
    of_xy = x * y + predicted.swept(y) + observed.swept(x)
    of_xx = x * x + 2 * predicted.swept(x)
    of_yy = y * y + 2 * observed.swept(y)
    root = math.sqrt(xx * yy)
    return np.asarray(of_xy / root - xy / root * (of_xx / xx + of_yy / yy) / 2)


SPEARMAN = Metric(
    name="spearman",
    kinds=("regression", "ordinal"),
    higher_is_better=True,
    meaning="rank correlation of predictions and labels, from −1 to 1",
    prepare=_prepare,
    influence=_influence,
    scale="fisher",
)
