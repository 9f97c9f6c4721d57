"""Quadratic weighted kappa: agreement of predicted and observed levels beyond chance (Cohen 1968).

κ = 1 − E[(a − b)²] / E[(a′ − b′)²], where a is the level nearest to the predicted expectation (half-way between two:
the upper one), b the observed level, both as positions 0, 1, …, and a′, b′ are drawn independently from the two
distributions. Undefined where all predicted and observed levels are the same one.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from recmtl.metrics.base import Additive, Examples, FloatArray, Metric

__all__ = ["KAPPA"]


def _terms(examples: Examples) -> tuple[NDArray[Any], ...]:
    """Is the predicted level 0, 1, …, is the observed one, and the square of their distance: 2 L + 1 terms."""
    assert examples.levels is not None, "kappa is for ordinal tasks"
    halfway = (examples.levels[1:] + examples.levels[:-1]) / 2
    a = np.searchsorted(halfway, examples.prediction, side="right")
    b = np.searchsorted(halfway, examples.label, side="right")
    levels = range(examples.levels.size)
    return *(a == level for level in levels), *(b == level for level in levels), (a - b) ** 2


def _finish(sums: FloatArray) -> FloatArray:
    a, b = np.split(sums[:, :-1], 2, axis=1)
    rows, level = a.sum(axis=1), np.arange(a.shape[1])
    # No term is negative, so that only levels that are all the same one make exactly 0.
    by_chance = np.einsum("ri,ij,rj->r", a, np.subtract.outer(level, level) ** 2, b)
    return np.asarray(1 - sums[:, -1] * rows / by_chance)


KAPPA = Metric(
    name="kappa",
    kinds=("ordinal",),
    higher_is_better=True,
    meaning="quadratic weighted kappa of the nearest level; 0 is chance, 1 is agreement",
    scale="fisher",
    additive=Additive(_terms, _finish),
)
