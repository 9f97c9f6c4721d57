"""Intervals from influence functions, clustered by user: one pass over the rows in place of a thousand draws.

In: rows of a target, a metric and each row's cluster. Out: the figure with its interval, and the paired difference of
two systems with its p-value.

The error of a metric is, to first order, the sum over the rows of its influence (its derivative by the row's weight:
:meth:`recmtl.metrics.Metric.influences`). Rows of a user depend on each other and users do not, so that its variance is

    V = U / (U − 1) · Σ_u D_u²,    D_u = Σ of the influence over the rows of user u   (Σ_u D_u = 0),

the infinitesimal jackknife over clusters (Jaeckel 1972; Efron 1982); for AUC and users of one row each it is DeLong's,
and for AUC with clusters Obuchowski's 1997. Two systems on the same rows: D_u is the difference of theirs.

The interval is made where the error is nearest to normal (:data:`recmtl.metrics.base.Scale`) and carried back: for AUC,
PR-AUC and user AUC the log-odds. This matters where a slice is small: on the plain scale the interval of an AUC near 1
passes 1 and is too short on the lower side, and on the log-odds it does neither (Newcombe 2006; Qin and Hotilovac
2008). Its quantile is Student's t, whose degrees of freedom say how many users V rests on: by the fourth powers of D_u
(Satterthwaite 1946), so that a rare task in which ten users have a positive row counts as few users however many there
are. Where V is 0 at the end of a metric's range (an AUC of exactly 1) the rows say nothing of the error: no interval.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recmtl.findings import Difference, Figure
from recmtl.metrics import METRICS, Examples
from recmtl.metrics.base import FloatArray, Scale

__all__ = ["Part", "Spread", "by_part", "clustered", "clustered_difference", "difference_of", "figure_of", "spread"]


@dataclass(frozen=True)
class Spread:
    """How the clusters pull at a value: all that an interval needs."""

    clusters: int
    """U: clusters with a row."""
    squares: float
    """Σ D_u²."""
    fourths: float
    """Σ D_u⁴."""

    @property
    def variance(self) -> float | None:
        """Of the value; None where there are fewer than two clusters."""
        return None if self.clusters < 2 else self.squares * self.clusters / (self.clusters - 1)

    @property
    def freedom(self) -> float:
        """Of the variance, from 1 to U − 1: U − 1 where the D_u are normal, few where few are large."""
        excess = self.fourths - self.squares**2 / self.clusters
        limit = float(self.clusters - 1)
        return limit if excess <= 0 else min(max(2 * self.squares**2 / excess, 1.0), limit)


def spread(parts: FloatArray, clusters: int | None = None) -> Spread:
    """The spread of the clusters' parts.

    Args:
        parts: (C,) D_u, the influence summed over each cluster's rows.
        clusters: how many of them have a row, where some of ``parts`` are clusters without.
    """
    squared = parts * parts
    return Spread(parts.size if clusters is None else clusters, float(squared.sum()), float((squared * squared).sum()))


def figure_of(value: float | None, error: Spread | None, scale: Scale, confidence: float) -> Figure:
    """A value with its interval; without one where the error is unknown."""
    if value is None or error is None or error.variance is None:
        return Figure(value=value)
    if error.variance == 0:
        at_an_end = value in _ENDS[scale]
        return Figure(value=value) if at_an_end else Figure(value=value, low=value, high=value)
    there, slope, back = _carried(value, scale)
    if not np.isfinite(slope):
        return Figure(value=value)
    half = _quantile(confidence, error.freedom) * slope * error.variance**0.5
    return Figure(value=value, low=back(there - half), high=back(there + half))


def difference_of(value: float | None, error: Spread | None, confidence: float) -> Difference:
    """A paired difference with its interval, on the plain scale, and the two-sided p-value of no difference."""
    if value is None or error is None or error.variance is None:
        return Difference(value=value)
    if error.variance == 0:
        same = value == 0
        return Difference(value=value, low=0.0, high=0.0, p_value=1.0) if same else Difference(value=value)
    from scipy.special import stdtr

    deviation = error.variance**0.5
    half = _quantile(confidence, error.freedom) * deviation
    p_value = float(2 * stdtr(error.freedom, -abs(value) / deviation))
    return Difference(value=value, low=value - half, high=value + half, p_value=p_value)


def clustered(examples: Examples, metric: str, cluster: NDArray[Any], confidence: float = 0.95) -> Figure:
    """A metric of some rows with its clustered interval.

    Args:
        examples: N rows, each counted once.
        metric: a name in ``METRICS``; one without an influence function (ece) gets no interval.
        cluster: (N,) whole numbers, equal on rows of the same cluster.
        confidence: of the interval.
    """
    return by_part({"model": examples}, [metric], cluster, confidence=confidence)[0].systems["model"][metric]


def clustered_difference(
    model: Examples, other: Examples, metric: str, cluster: NDArray[Any], confidence: float = 0.95
) -> Difference:
    """A metric of one system less that of another on the same rows, paired; arguments as in :func:`clustered`."""
    both = by_part({"model": model, "other": other}, [metric], cluster, confidence=confidence)
    return both[0].differences["other"][metric]


@dataclass(frozen=True)
class Part:
    """The figures of one part of the rows."""

    rows: int
    clusters: int
    positives: int | None
    """Rows whose label is 1, where labels are 0 and 1 alone; None otherwise."""
    systems: dict[str, dict[str, Figure]] = field(default_factory=dict)
    """System → metric → figure."""
    differences: dict[str, dict[str, Difference]] = field(default_factory=dict)
    """Other system → metric → the first system less it."""


def by_part(
    systems: Mapping[str, Examples],
    metrics: Sequence[str],
    cluster: NDArray[Any],
    codes: NDArray[Any] | None = None,
    parts: int = 1,
    *,
    confidence: float = 0.95,
    binary: bool = False,
) -> tuple[Part, ...]:
    """The metrics of several systems on every part of the rows, as the slices of a column.

    The rows are put in order once: by part, and within it by the model's prediction. Metrics by sums are computed for
    all parts at once, and so are all clusters' sums; ranking goes part by part over rows that are sorted already.

    Args:
        systems: name to the same N rows as it predicts them; the first one is compared with each other.
        metrics: names in ``METRICS`` of the rows' kind.
        cluster: (N,) whole numbers, equal on rows of the same cluster.
        codes: (N,) each row's part, from 0 to ``parts`` − 1, or −1: in none; None: all are in part 0.
        parts: how many.
        confidence: of the intervals.
        binary: labels are 0 and 1: positives are counted.

    Returns:
        (parts,) in order; one without rows has figures without values.
    """
    first = next(iter(systems))
    size = len(systems[first])
    codes = np.zeros(size, np.intp) if codes is None else np.asarray(codes, np.intp)
    kept = np.flatnonzero(codes >= 0)
    shown = systems[first].prediction
    order = kept[np.argsort(shown[kept], kind="stable")] if shown.ndim == 1 else kept
    order = order[np.argsort(codes[order].astype(np.min_scalar_type(max(parts - 1, 1))), kind="stable")]
    part_of = codes[order]
    rows = np.bincount(part_of, minlength=parts)
    edges = np.append(0, np.cumsum(rows))
    pair, part_of_pair = _pairs(part_of, np.asarray(cluster)[order])
    clusters = np.bincount(part_of_pair, minlength=parts)
    label = systems[first].label[order]
    positives = np.bincount(part_of, label, minlength=parts).astype(int).tolist() if binary else [None] * parts
    found = [Part(int(rows[part]), int(clusters[part]), positives[part]) for part in range(parts)]
    pulls: dict[str, dict[str, tuple[FloatArray, FloatArray | None]]] = {}
    for name, examples in systems.items():
        sorted_rows = _take(examples, order)
        pulls[name] = {
            metric: _pull(metric, sorted_rows, part_of, edges, pair, part_of_pair.size) for metric in metrics
        }

    def spreads(of_pair: FloatArray | None) -> list[Spread | None]:
        if of_pair is None:
            return [None] * parts
        squared = of_pair * of_pair
        squares = np.bincount(part_of_pair, squared, minlength=parts)
        fourths = np.bincount(part_of_pair, squared * squared, minlength=parts)
        return [
            Spread(int(clusters[part]), float(squares[part]), float(fourths[part]))
            if np.isfinite(squares[part])
            else None
            for part in range(parts)
        ]

    for name in systems:
        for metric in metrics:
            values, of_pair = pulls[name][metric]
            for part, error in enumerate(spreads(of_pair)):
                figure = figure_of(_number(values[part]), error, METRICS[metric].scale, confidence)
                found[part].systems.setdefault(name, {})[metric] = figure
            if name == first:
                continue
            mine, my_pairs = pulls[first][metric]
            errors = spreads(None if my_pairs is None or of_pair is None else my_pairs - of_pair)
            for part, error in enumerate(errors):
                difference = difference_of(_number(mine[part] - values[part]), error, confidence)
                found[part].differences.setdefault(name, {})[metric] = difference
    return tuple(found)


def _pull(
    name: str,
    rows: Examples,
    part_of: NDArray[np.intp],
    edges: NDArray[np.intp],
    pair: NDArray[np.intp],
    pairs: int,
) -> tuple[FloatArray, FloatArray | None]:
    """(parts,) values, NaN where undefined, and (pairs,) the influence summed over each part's cluster (NaN where the
    part has none), or None where the metric has none at all. Rows are sorted by part."""
    metric, parts = METRICS[name], edges.size - 1
    if metric.additive is not None and not metric.additive.by_user:
        terms = [np.asarray(term, np.float64) for term in metric.additive.terms(rows)]
        sums = np.stack([_summed(part_of, term, parts) for term in terms], axis=1)
        slopes = metric.additive.gradient(sums)
        slopes = np.where(np.isfinite(slopes), slopes, np.nan)  # a part without positives, say: it has no error
        influence = np.zeros(len(rows))
        for slope, term in zip(slopes.T, terms, strict=True):
            influence += slope[part_of] * term
        return metric.additive.values(sums), _summed(pair, influence, pairs)
    values, influence = np.full(parts, np.nan), np.full(len(rows), np.nan)
    for part in np.flatnonzero(np.diff(edges)):
        here = slice(edges[part], edges[part + 1])
        part_rows = _take(rows, here)
        value = metric.compute(part_rows)
        if value is not None:
            values[part] = value
            found = metric.influences(part_rows)
            if found is not None:
                influence[here] = found
    return values, _summed(pair, influence, pairs) if metric.has_influence else None


def _pairs(part_of: NDArray[np.intp], cluster: NDArray[Any]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """(N,) the number of each row's (part, cluster), and (pairs,) the part of each."""
    if not part_of.size:
        return part_of, part_of
    low, span = int(cluster.min()), int(cluster.max()) - int(cluster.min()) + 1
    if span > max(4 * cluster.size, 1 << 20):
        _, cluster = np.unique(cluster, return_inverse=True)
        low, span = 0, int(cluster.max()) + 1
    key = part_of * span + (cluster - low)
    if part_of[-1] == 0 and span <= 4 * cluster.size:  # one part, as most calls have: no sort
        present = np.bincount(key, minlength=span) > 0
        return (np.cumsum(present) - 1)[key], np.zeros(int(present.sum()), np.intp)
    pairs, pair = np.unique(key, return_inverse=True)
    return pair, pairs // span


def _summed(at: NDArray[np.intp], values: FloatArray, length: int) -> FloatArray:
    """(length,) the values summed by where they belong."""
    return np.asarray(np.bincount(at, values, minlength=length), np.float64)


def _take(rows: Examples, index: NDArray[np.intp] | slice) -> Examples:
    group = None if rows.group is None else rows.group[index]
    return Examples(rows.prediction[index], rows.label[index], group, levels=rows.levels)


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


_ENDS: dict[Scale, tuple[float, ...]] = {"linear": (), "log": (0.0,), "logit": (0.0, 1.0), "fisher": (-1.0, 1.0)}


def _carried(value: float, scale: Scale) -> tuple[float, float, Callable[[float], float]]:
    """The value on its scale, the scale's derivative there (infinite at an end), and the way back."""
    if value in _ENDS[scale]:
        return value, math.inf, float
    match scale:
        case "log":
            return math.log(value), 1 / value, lambda there: math.exp(min(there, 700.0))
        case "logit":
            return math.log(value / (1 - value)), 1 / (value * (1 - value)), _expit
        case "fisher":
            return math.atanh(value), 1 / (1 - value * value), math.tanh
    return value, 1.0, float


def _expit(there: float) -> float:
    return 1 / (1 + math.exp(min(-there, 700.0)))


def _quantile(confidence: float, freedom: float) -> float:
    from scipy.special import stdtrit

    return float(stdtrit(freedom, (1 + confidence) / 2))
