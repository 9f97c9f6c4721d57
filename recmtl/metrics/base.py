"""What a metric reads, and what it is: prepared once on a set of rows, then a function of the row weights.

The split in two is what makes intervals cheap: a bootstrap replicate is a vector of row weights (how often each row was
drawn), and everything that does not depend on it, such as sorting by prediction, is done once. Cheaper still is a
metric that is a function of weighted sums over the rows: it says so (:class:`Additive`), and a bootstrap over users
reads each user's sums in place of the rows.

Cheapest of all is the metric's influence function, its derivative by the weight of each row (the infinitesimal
jackknife: Jaeckel 1972; Efron 1982, chapter 6): summed over each user's rows and squared, it is the variance that the
bootstrap over users tends to, from one pass over the rows.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from recmtl.tasks import TaskKind

__all__ = [
    "Additive",
    "ByCluster",
    "Examples",
    "FloatArray",
    "Metric",
    "Scale",
    "Weighted",
    "by_class",
    "dot",
    "mean",
    "run_ends",
]

FloatArray = NDArray[np.float64]
Weighted = Callable[[FloatArray], float | None]
"""Row weights (N,), not negative, of positive sum → the metric's value; None where it is undefined."""
ByCluster = Callable[[NDArray[Any]], float | None]
"""Weights of the clusters (U,), whole numbers, not negative → the metric's value where each row has the weight of its
cluster; None where it is undefined."""
Scale = Literal["linear", "log", "logit", "fisher"]
"""Where a metric's error is closest to normal: as it is; its logarithm (positive: losses, ratios); its log-odds (0 to
1: AUC); its inverse hyperbolic tangent (−1 to 1: correlations; Fisher 1921). The normal interval is made there and
carried back, so that it stays within the metric's range."""


@dataclass(frozen=True)
class Examples:
    """N rows on which a task is observed; converted to float64 when made."""

    prediction: FloatArray
    """(N,): binary a probability, regression and ordinal in label units; multiclass (N, C) probabilities. Finite."""
    label: FloatArray
    """(N,): binary 0 or 1, regression and ordinal in label units, multiclass the index of the class."""
    group: NDArray[np.int64] | None = None
    """(N,): equal for rows of the same user; None where users are unknown."""
    weight: FloatArray | None = None
    """(N,): not negative; None counts every row once. A row of weight 2 is worth two equal rows."""
    levels: FloatArray | None = None
    """(L,): ordinal alone: the rising label values."""

    def __post_init__(self) -> None:
        for field in ("prediction", "label", "weight", "levels"):
            if getattr(self, field) is not None:
                object.__setattr__(self, field, np.asarray(getattr(self, field), np.float64))
        rows = self.label.shape
        assert len(rows) == 1, "labels have one dimension"
        assert self.prediction.shape[:1] == rows, "a prediction for every label"
        assert self.group is None or self.group.shape == rows, "a group for every label"
        assert self.weight is None or self.weight.shape == rows, "a weight for every label"

    def __len__(self) -> int:
        return self.label.size


class Additive(NamedTuple):
    """A metric that depends on the rows by sums alone: the sums' terms, and what to make of the sums."""

    terms: Callable[[Examples], Sequence[NDArray[Any]]]
    """K arrays (N,), numbers or bools: what each row adds to each sum when its weight is 1."""
    finish: Callable[[FloatArray], FloatArray]
    """(R, K) weighted sums, of R vectors of row weights → (R,) values, not finite where undefined."""
    by_user: bool = False
    """True: only for weights that are the same on all rows of a user."""

    def values(self, sums: FloatArray) -> FloatArray:
        """(R, K) → (R,) values; NaN where undefined."""
        with np.errstate(divide="ignore", invalid="ignore"):
            values = self.finish(sums)
        return np.where(np.isfinite(values), values, np.nan)

    def gradient(self, sums: FloatArray) -> FloatArray:
        """(R, K) sums → (R, K) the value's derivative by each of them; not finite where the value is not smooth.

        By a complex step (Squire and Trapp 1998), which is exact to the last digits because nothing is subtracted:
        ``finish`` is made of arithmetic, roots and logarithms, which complex numbers pass through.
        """
        step = 1e-30
        found = np.empty(sums.shape)
        for term in range(sums.shape[1]):
            stepped = sums.astype(np.complex128)
            stepped[:, term] += 1j * step
            with np.errstate(divide="ignore", invalid="ignore"):
                found[:, term] = np.imag(self.finish(stepped)) / step  # type: ignore[arg-type]
        return found

    def influence(self, examples: Examples) -> FloatArray | None:
        """(N,) the value's derivative by each row's weight, at weight 1 on every row; None where undefined."""
        terms = [np.asarray(term, np.float64) for term in self.terms(examples)]
        gradient = self.gradient(np.array([[term.sum() for term in terms]]))[0]
        if not np.isfinite(gradient).all():
            return None
        return np.asarray(sum(slope * term for slope, term in zip(gradient, terms, strict=True)))

    def prepare(self, examples: Examples) -> Weighted:
        """The metric as a function of the row weights."""
        terms = self.terms(examples)
        return lambda weight: float(self.values(np.array([[dot(weight, term) for term in terms]]))[0])


def mean(of: Callable[[Examples], NDArray[Any]]) -> Additive:
    """The weighted mean of a number (N,) that each row has."""
    return Additive(
        terms=lambda examples: (of(examples), np.ones(len(examples))),
        finish=lambda sums: np.asarray(sums[:, 0] / sums[:, 1]),
    )


class Metric(NamedTuple):
    """A line of the table of metrics."""

    name: str
    kinds: tuple[TaskKind, ...]
    """The kinds of task that it is defined for."""
    higher_is_better: bool | None
    """None: neither direction is better (calibration is best at 1), so it cannot be monitored."""
    meaning: str
    """One line for the report's legend."""
    prepare: Callable[[Examples], Weighted] | None = None
    """Does what does not depend on the weights; None: ``additive`` says it all."""
    additive: Additive | None = None
    """The metric as a function of sums, where it is one; equal to ``prepare`` where both are given."""
    influence: Callable[[Examples], FloatArray | None] | None = None
    """The value's derivative by each row's weight (N,), where ``additive`` does not give it."""
    scale: Scale = "linear"
    """Where a normal interval is made."""
    resample: Callable[[Examples, NDArray[np.intp]], ByCluster] | None = None
    """A faster form for a bootstrap over clusters, given each row's; equal to ``prepare`` on the rows' weights."""

    def by_weight(self, examples: Examples) -> Weighted:
        """The metric as a function of the row weights: None, never NaN or infinite, wherever it is undefined."""
        if not len(examples):
            return _undefined
        prepare = self.prepare or (self.additive and self.additive.prepare)
        assert prepare, f"metric {self.name} has neither form"
        value_at = prepare(examples)

        def by_weight(weight: FloatArray) -> float | None:
            if not weight.sum() > 0:
                return None
            value = value_at(weight)
            return float(value) if value is not None and math.isfinite(value) else None

        return by_weight

    @property
    def has_influence(self) -> bool:
        """Whether the metric is smooth enough in the row weights for an influence function to tell its error."""
        return self.influence is not None or (self.additive is not None and not self.additive.by_user)

    def influences(self, examples: Examples) -> FloatArray | None:
        """(N,) d metric / d weight of each row, at weight 1 on every row; they sum to 0.

        None where the metric is undefined or where it has no meaningful derivative (:attr:`has_influence`): ece, whose
        bins move with the weights and whose absolute values have a kink exactly where calibration is perfect.
        """
        if not len(examples) or not self.has_influence:
            return None
        of = self.influence or (self.additive and self.additive.influence)
        assert of
        found = of(examples)
        return None if found is None or not np.isfinite(found).all() else found

    def by_cluster(self, examples: Examples, cluster: NDArray[np.intp]) -> ByCluster:
        """The metric as a function of the clusters' weights.

        Args:
            examples: N rows.
            cluster: (N,) each row's cluster, from 0.
        """
        if self.resample is not None and len(examples):
            return self.resample(examples, cluster)
        by_weight = self.by_weight(examples)
        return lambda weight: by_weight(weight[cluster].astype(np.float64, copy=False))

    def compute(self, examples: Examples) -> float | None:
        """The metric on these rows; None where it is undefined (no rows, one class only, nothing to correlate)."""
        weight = np.ones(len(examples)) if examples.weight is None else examples.weight
        return self.by_weight(examples)(weight)


def _undefined(weight: FloatArray) -> None:
    return None


def dot(one: NDArray[Any], other: NDArray[Any]) -> float:
    """Sum of products, without BLAS: its threads wait by spinning, and called from a thread of the bootstrap they cost
    fifteen times the processor time of the work itself (64 s in place of 4 on two cores)."""
    return float((one * other).sum())


def run_ends(values: NDArray[Any]) -> NDArray[np.intp]:
    """Of sorted values (N,), N ≥ 1: the position of the last row of every run of equal ones."""
    return np.append(np.flatnonzero(values[1:] != values[:-1]), values.size - 1)


def by_class(examples: Examples) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """The positive and the negative rows of a binary task, each by rising prediction."""
    positives, negatives = np.flatnonzero(examples.label == 1), np.flatnonzero(examples.label != 1)
    return (
        positives[np.argsort(examples.prediction[positives], kind="stable")],
        negatives[np.argsort(examples.prediction[negatives], kind="stable")],
    )
