"""Intervals by the bootstrap over users: how much a figure depends on which users happened to be in the split.

A replicate draws as many users as there are, with replacement, and takes all of their rows (Efron and Tibshirani 1993,
An Introduction to the Bootstrap, chapters 8 and 13; drawing rows would take a user's rows for independent, which they
are not). A metric sees a replicate as weights. All systems and metrics see the same draws, so that differences are
paired. The interval is the percentile one. It says nothing about another training seed or another week of data.
"""

import os
from collections.abc import Hashable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from recmtl.metrics import METRICS, Examples
from recmtl.metrics.base import Additive, FloatArray, Weighted

__all__ = ["Resampled", "Sample", "bootstrap", "clusters_of", "interval", "paired"]

MAX_THREADS = 8
"""NumPy leaves the interpreter's lock for most of a metric, but not for all of it."""

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
    that are functions of sums see the sums of each cluster, weighted by how often it was drawn; the others see rows.
    """
    found: Resampled[Key] = {
        (sample.key, name): np.full(replicates, np.nan) for sample in samples for name in sample.metrics
    }
    if clusters < 2:
        return found
    by_sums: list[tuple[tuple[Key, str], Additive, slice]] = []
    by_rows: list[tuple[Sample[Key], list[tuple[str, Weighted]]]] = []
    terms: list[FloatArray] = []  # of all metrics by sums: what a cluster adds to a sum each time that it is drawn
    for sample in samples:
        others = []
        for name in sample.metrics:
            additive = METRICS[name].additive
            if additive is None or (additive.by_user and not _keeps_users_whole(sample)):
                others.append((name, METRICS[name].by_weight(sample.rows)))
            else:
                start = len(terms)
                for of_row in additive.terms(sample.rows):
                    terms.append(np.bincount(sample.cluster, of_row, clusters).astype(np.float64, copy=False))
                by_sums.append(((sample.key, name), additive, slice(start, len(terms))))
        if others:
            by_rows.append((sample, others))
    cluster_terms = np.stack(terms) if terms else np.empty((0, clusters))
    sums = np.empty((replicates, len(terms)))

    def draw(replicate: int) -> None:
        random = np.random.default_rng((seed, replicate))
        drawn = np.bincount(random.integers(0, clusters, clusters), minlength=clusters).astype(np.float64)
        np.einsum("kc,c->k", cluster_terms, drawn, out=sums[replicate])  # without BLAS: see recmtl.metrics.base.dot
        for sample, metrics in by_rows:
            weight = drawn[sample.cluster]
            for name, value_at in metrics:
                value = value_at(weight)
                if value is not None:
                    found[sample.key, name][replicate] = value

    with ThreadPoolExecutor(min(MAX_THREADS, os.cpu_count() or 1), thread_name_prefix="recmtl-bootstrap") as threads:
        for _ in threads.map(draw, range(replicates)):
            pass
    for key, additive, columns in by_sums:
        found[key] = additive.values(sums[:, columns])
    return found


def _keeps_users_whole(sample: Sample[Key]) -> bool:
    """Whether all rows of a user are in one cluster, so that they always have the same weight."""
    if sample.rows.group is None:
        return True
    order = np.argsort(sample.rows.group, kind="stable")
    group, cluster = sample.rows.group[order], sample.cluster[order]
    return bool(((group[1:] != group[:-1]) | (cluster[1:] == cluster[:-1])).all())


def interval(replicates: FloatArray, confidence: float) -> tuple[float, float] | None:
    """The percentile interval; None where the figure is undefined on more than one replicate in twenty."""
    defined = replicates[np.isfinite(replicates)]
    if defined.size < 2 or defined.size < 0.95 * replicates.size:
        return None
    low, high = np.quantile(defined, ((1 - confidence) / 2, (1 + confidence) / 2))
    return float(low), float(high)


def paired(replicates: Mapping[tuple[Key, str], FloatArray], one: Key, other: Key, metric: str) -> FloatArray:
    """(replicates,): one system's metric less another's, draw by draw."""
    difference: FloatArray = replicates[one, metric] - replicates[other, metric]
    return difference
