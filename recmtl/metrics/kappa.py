"""Quadratic weighted kappa: agreement of predicted and observed levels beyond chance (Cohen 1968).

κ = 1 − E[(a − b)²] / E[(a′ − b′)²], where a is the level nearest to the predicted expectation (half-way between two:
the upper one), b the observed level, both as positions 0, 1, …, and a′, b′ are drawn independently from the two
distributions, so that E[(a′ − b′)²] = E[a²] + E[b²] − 2 E[a] E[b]. Undefined where all predicted and observed levels
are the same one.
"""

import numpy as np

from recmtl.metrics.base import Examples, FloatArray, Metric, Weighted

__all__ = ["KAPPA"]


def _prepare(examples: Examples) -> Weighted:
    assert examples.levels is not None, "kappa is for ordinal tasks"
    halfway = (examples.levels[1:] + examples.levels[:-1]) / 2
    a = np.searchsorted(halfway, examples.prediction, side="right").astype(np.float64)
    b = np.searchsorted(halfway, examples.label, side="right").astype(np.float64)
    a2, b2, apart = a * a, b * b, (a - b) ** 2

    def kappa(weight: FloatArray) -> float | None:
        counted = weight > 0
        a_here, b_here = a[counted], b[counted]
        if (a_here == a_here[0]).all() and (b_here == a_here[0]).all():
            return None
        share = weight / weight.sum()
        by_chance = share @ a2 + share @ b2 - 2 * (share @ a) * (share @ b)
        return float(1 - share @ apart / by_chance)

    return kappa


KAPPA = Metric(
    name="kappa",
    kinds=("ordinal",),
    higher_is_better=True,
    meaning="quadratic weighted kappa of the nearest level; 0 is chance, 1 is agreement",
    prepare=_prepare,
)
