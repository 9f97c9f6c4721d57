"""Intervals by the Poisson bootstrap over users: how much a figure depends on which users happened to be in the split.

A replicate weighs each user by a number drawn from Poisson(1), all of the user's rows alike (Chamandy et al. 2012,
Estimating Uncertainty for Massive Data Streams; weighing rows would take a user's rows for independent, which they are
not). It is the ordinary bootstrap without its one constraint, that the draws add up to the number of users; that makes
each user's draws independent of how many others there are. A metric sees a replicate as weights. All systems and
metrics see the same draws, so that differences are paired. The interval is the percentile one (Efron and Tibshirani
1993, chapter 13), its levels taken a little further out where the figure rests on few users (Hesterberg 2015, What
Teachers Should Know About the Bootstrap, the expanded percentile interval): plain percentiles are too narrow there, by
the factor of n − 1 against n and of the normal's quantile against Student's. How many users a figure rests on, the
influence function says (:class:`recmtl.evaluation.influence.Spread`). The interval says nothing about another training
seed or another week of data.
"""

import math
import os
from collections.abc import Hashable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from recmtl.evaluation.influence import Spread
from recmtl.metrics import METRICS, Examples
from recmtl.metrics.base import Additive, ByCluster, FloatArray
from recmtl.settings import Settings

__all__ = [
    "IntervalsConfig",
    "Resampled",
    "Sample",
    "bootstrap",
    "clusters_of",
    "interval",
    "p_value",
    "paired",
    "poisson_weights",
]

MAX_THREADS = 8
"""NumPy leaves the interpreter's lock for most of a metric, but not for all of it."""
_BLOCK = 4_000_000
"""Weights that are held at once: some replicates' of all users."""


class IntervalsConfig(Settings):
    """How sure each figure of an evaluation is said to be."""

    draws: int = Field(default=1000, ge=0)
    """Draws of the bootstrap; 0: no intervals at all. With 1000, an end of a 95 % interval is uncertain by about a
    twentieth of the interval's width."""
    confidence: float = Field(default=0.95, gt=0.5, lt=1)
    """Of all intervals."""
    seed: int = 0
    """Of the bootstrap."""
    bootstrap_rows: int = Field(default=200_000, ge=0)
    """Above so many rows a split's intervals come from influence functions clustered by user (one pass over the rows)
    in place of the bootstrap; 0: always."""
    memory_rows: int = Field(default=5_000_000, ge=1)
    """Above so many rows a split is evaluated from files on disk, sorted there, in memory that does not grow with the
    rows; exact all the same."""


Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True)
class Sample(Generic[Key]):
    """The predictions of one system for one target, and what to measure of them."""

    key: Key
    rows: Examples
    cluster: NDArray[np.intp]
    """(N,): which of the clusters a row belongs to, from 0."""
    metrics: Sequence[str]


Resampled = dict[tuple[Key, str], FloatArray]
"""(sample's key, metric) to (replicates,); NaN where a replicate leaves the metric undefined."""


def clusters_of(group: NDArray[np.int64] | None, rows: int) -> tuple[NDArray[np.intp], int]:
    """(rows,) cluster of each row, from 0, and how many there are; without users every row is its own."""
    if group is None:
        return np.arange(rows), rows
    users, cluster = np.unique(group, return_inverse=True)
    return cluster, users.size


def bootstrap(samples: Sequence[Sample[Key]], clusters: int, *, replicates: int, seed: int) -> Resampled[Key]:
    """Every metric of every sample on the same draws of clusters; NaN throughout where there are fewer than two.

    A draw is a function of ``seed`` and its number alone, so that threads share the work and change nothing. Metrics
    that are functions of sums see the sums of each cluster, weighted by its draw; the others see rows.
    """
    found: Resampled[Key] = {
        (sample.key, name): np.full(replicates, np.nan) for sample in samples for name in sample.metrics
    }
    if clusters < 2:
        return found
    by_sums: list[tuple[tuple[Key, str], Additive, slice]] = []
    by_rows: list[tuple[tuple[Key, str], ByCluster]] = []
    terms: list[FloatArray] = []  # of all metrics by sums: what a cluster adds to a sum each time that it is drawn
    for sample in samples:
        for name in sample.metrics:
            additive = METRICS[name].additive
            if additive is None or (additive.by_user and not _keeps_users_whole(sample)):
                by_rows.append(((sample.key, name), METRICS[name].by_cluster(sample.rows, sample.cluster)))
            else:
                start = len(terms)
                for of_row in additive.terms(sample.rows):
                    terms.append(np.bincount(sample.cluster, of_row, clusters).astype(np.float64, copy=False))
                by_sums.append(((sample.key, name), additive, slice(start, len(terms))))
    cluster_terms = np.stack(terms) if terms else np.empty((0, clusters))
    sums = np.empty((replicates, len(terms)))

    def draw(replicate: int) -> NDArray[np.uint8]:
        weight = poisson_weights(seed, replicate, clusters)
        for key, value_at in by_rows:
            value = value_at(weight)
            if value is not None:
                found[key][replicate] = value
        return weight

    block = max(1, _BLOCK // clusters)
    with ThreadPoolExecutor(min(MAX_THREADS, os.cpu_count() or 1), thread_name_prefix="recmtl-bootstrap") as threads:
        for first in range(0, replicates, block):
            weights = np.stack(list(threads.map(draw, range(first, min(first + block, replicates)))))
            # The one product by BLAS, while no thread of the pool works: see recmtl.metrics.base.dot.
            sums[first : first + block] = weights.astype(np.float64) @ cluster_terms.T
    for key, additive, columns in by_sums:
        found[key] = additive.values(sums[:, columns])
    return found


def poisson_weights(seed: int, replicate: int, clusters: int) -> NDArray[np.uint8]:
    """(clusters,) draws from Poisson(1): how often each cluster counts in a replicate; the same for the same numbers.

    Read from a table by 16 random bits, many times faster than drawing them one by one: every probability is right to
    within 2⁻¹⁷, the mean to 10⁻⁵.
    """
    bits = np.random.default_rng((seed, replicate)).integers(0, 1 << 16, clusters, np.uint16)
    weights: NDArray[np.uint8] = _POISSON[bits]
    return weights


def _table() -> NDArray[np.uint8]:
    probability, cumulative, ends = math.exp(-1), 0.0, []
    for count in range(1, 12):
        cumulative += probability
        ends.append(round(cumulative * (1 << 16)))
        probability /= count
    return np.searchsorted(np.array(ends), np.arange(1 << 16), side="right").astype(np.uint8)


_POISSON = _table()


def _keeps_users_whole(sample: Sample[Key]) -> bool:
    """Whether all rows of a user are in one cluster, so that they always have the same weight."""
    if sample.rows.group is None:
        return True
    order = np.argsort(sample.rows.group, kind="stable")
    group, cluster = sample.rows.group[order], sample.cluster[order]
    return bool(((group[1:] != group[:-1]) | (cluster[1:] == cluster[:-1])).all())


def interval(replicates: FloatArray, confidence: float, error: Spread | None = None) -> tuple[float, float] | None:
    """The percentile interval; None where the figure is undefined on more than one replicate in twenty.

    Args:
        replicates: (R,) the figure on each draw.
        confidence: of the interval.
        error: how the clusters pull at the figure: expands the percentiles by how few they are; None: plain ones.
    """
    defined = replicates[np.isfinite(replicates)]
    if defined.size < 2 or defined.size < 0.95 * replicates.size:
        return None
    level = (1 - confidence) / 2
    if error is not None and error.clusters > 1:
        from scipy.special import ndtr, stdtrit

        level = float(ndtr(stdtrit(error.freedom, level) * math.sqrt(error.clusters / (error.clusters - 1))))
    # The k-th of R draws is the k / (R + 1) quantile (Davison and Hinkley 1997, section 5.3): by NumPy's usual rule,
    # which spans 0 to 1, the interval of 200 draws held the truth one time in a hundred less often.
    low, high = np.quantile(defined, (level, 1 - level), method="weibull")
    return float(low), float(high)


def paired(replicates: Mapping[tuple[Key, str], FloatArray], one: Key, other: Key, metric: str) -> FloatArray:
    """(replicates,): one system's metric less another's, draw by draw."""
    difference: FloatArray = replicates[one, metric] - replicates[other, metric]
    return difference


def p_value(differences: FloatArray, error: Spread | None = None) -> float | None:
    """Two-sided, of no difference, from paired replicates; None where they have no interval.

    Twice the share of draws on the rarer side of 0, one draw added to either (Davison and Hinkley 1997, section 4.2.5),
    so that it is never 0, and expanded as the interval is: below 1 − confidence where that leaves out 0.
    """
    defined = differences[np.isfinite(differences)]
    if defined.size < 2 or defined.size < 0.95 * differences.size:
        return None
    rarer = min(int((defined <= 0).sum()), int((defined >= 0).sum()))
    one_sided = min(0.5, (rarer + 1) / (defined.size + 1))
    if error is not None and error.clusters > 1:
        from scipy.special import ndtri, stdtr

        there = float(ndtri(one_sided)) * math.sqrt((error.clusters - 1) / error.clusters)
        one_sided = float(stdtr(error.freedom, there))
    return 2 * one_sided
