"""Expected calibration error over bins of equal mass: mean distance between what is predicted and what is observed.

ECE = Σ_b (W_b / W) · |mean prediction in b − mean label in b| (Naeini et al. 2015; bins of equal mass as in Nguyen and
O'Connor 2015). Exactly: the rows are sorted by prediction; a run of equal predictions lies at the middle of the weight
that it spans, m ∈ (0, 1), and belongs to bin ⌊m · BINS⌋. So ties stay together, the order of the rows does not matter,
and bins may be empty.
"""

from typing import NamedTuple

import numpy as np

from recmtl.metrics.base import Examples, FloatArray, Metric, Weighted, run_ends

__all__ = ["BINS", "ECE", "Bin", "reliability"]

BINS = 15
"""Bins of the metric, the number most used since Guo et al. 2017."""


class Bin(NamedTuple):
    """Rows with predictions next to each other."""

    rows: float
    """Their number, or weight."""
    predicted: float
    """Mean prediction."""
    observed: float
    """Mean label."""


def _prepare_bins(examples: Examples, bins: int) -> "_Sums":
    order = np.argsort(examples.prediction, kind="stable")
    return _Sums(order, run_ends(examples.prediction[order]), examples.prediction[order], examples.label[order], bins)


class _Sums(NamedTuple):
    order: np.ndarray[tuple[int], np.dtype[np.intp]]
    ends: np.ndarray[tuple[int], np.dtype[np.intp]]
    prediction: FloatArray
    label: FloatArray
    bins: int

    def at(self, weight: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
        """(bins,) each: weight, sum of predictions, sum of labels."""
        sorted_weight = weight[self.order]
        starts = np.append(0, self.ends[:-1] + 1)
        cumulative = np.cumsum(sorted_weight)[self.ends]
        middle = (cumulative + np.append(0.0, cumulative[:-1])) / 2
        bin_of_run = np.minimum((middle * (self.bins / cumulative[-1])).astype(np.intp), self.bins - 1)

        def total(values: FloatArray) -> FloatArray:
            sums = np.bincount(bin_of_run, np.add.reduceat(values, starts), minlength=self.bins)
            return np.asarray(sums, np.float64)

        return total(sorted_weight), total(sorted_weight * self.prediction), total(sorted_weight * self.label)


def _prepare(examples: Examples) -> Weighted:
    sums = _prepare_bins(examples, BINS)

    def ece(weight: FloatArray) -> float:
        mass, predicted, observed = sums.at(weight)
        return float(np.abs(predicted - observed).sum() / mass.sum())

    return ece


def reliability(examples: Examples, bins: int) -> tuple[Bin, ...]:
    """The bins that are not empty, by rising prediction: a calibration table (binary, regression, ordinal)."""
    weight = np.ones(len(examples)) if examples.weight is None else examples.weight
    if not weight.sum() > 0:
        return ()
    mass, predicted, observed = _prepare_bins(examples, bins).at(weight)
    return tuple(
        Bin(float(w), float(p / w), float(o / w)) for w, p, o in zip(mass, predicted, observed, strict=True) if w > 0
    )


ECE = Metric(
    name="ece",
    kinds=("binary",),
    higher_is_better=False,
    meaning=f"mean distance between predicted and observed rate over {BINS} bins of equal mass",
    prepare=_prepare,
)
