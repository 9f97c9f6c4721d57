"""Metrics of ranked lists, for all lists at once: NDCG, average precision, recall, reciprocal rank, AUC.

In: rows in groups (a request, a user), each with a score and a gain. Out: a number per group. All are expected values
over the orders of rows with equal scores, each order being as likely (McSherry and Najork 2008, Computing Information
Retrieval Performance Measures Efficiently in the Presence of Tied Scores): neither the order of the rows nor the
sorting decides, and a constant score is worth what a random order is worth on average.

Notation: a list has n rows, R of them positive; the rows of a score are a run, which has t rows, r of them positive,
stands after s rows and m positives, and takes the positions s + 1 … s + t.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recmtl.metrics.base import FloatArray

__all__ = [
    "Lists",
    "average_precision",
    "expected_places",
    "gini",
    "ideal_gain",
    "list_auc",
    "ndcg",
    "ranked",
    "recall",
    "reciprocal_rank",
]

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Lists:
    """G lists of N rows together, each sorted by falling score."""

    start: Ints
    """(G,): where each list begins; none is empty."""
    run_start: Ints
    """(T,): where each run of equal scores begins."""
    size: int
    """N."""

    @cached_property
    def lengths(self) -> Ints:
        """(G,) rows of each list."""
        return np.diff(self.start, append=self.size)

    @cached_property
    def list_of(self) -> Ints:
        """(N,) the list of each row."""
        return np.repeat(np.arange(self.start.size), self.lengths)

    @cached_property
    def run_lengths(self) -> Ints:
        """(T,) rows of each run."""
        return np.diff(self.run_start, append=self.size)

    @cached_property
    def list_of_run(self) -> Ints:
        """(T,) the list of each run."""
        return self.list_of[self.run_start]

    @cached_property
    def before(self) -> Ints:
        """(T,) rows of the list above each run: s."""
        return self.run_start - self.start[self.list_of_run]

    @cached_property
    def position(self) -> Ints:
        """(N,) from 1, as if the rows of a run stood in this order."""
        return np.arange(self.size) - self.start[self.list_of] + 1

    def totals(self, values: NDArray[Any]) -> FloatArray:
        """(N,) → (G,) sums over each list."""
        return _sums(values, self.start)

    def in_runs(self, values: NDArray[Any]) -> FloatArray:
        """(N,) → (T,) sums over each run."""
        return _sums(values, self.run_start)

    def of_runs(self, values: NDArray[Any]) -> FloatArray:
        """(T,) → (G,) sums over the runs of each list."""
        return np.asarray(np.bincount(self.list_of_run, values, minlength=self.start.size), np.float64)

    def taken(self, k: int) -> Ints:
        """(T,) how many of a run's positions are among the first k."""
        return np.clip(k - self.before, 0, self.run_lengths)

    def keep(self, rows: NDArray[np.bool_]) -> "Lists":
        """The lists without the other rows (N,), the order being the same; a list that loses all its rows is gone."""
        before = np.append(0, np.cumsum(rows))  # rows kept before each row
        size = int(before[-1])
        return Lists(_of_some(before[self.start], size), _of_some(before[self.run_start], size), size)


def ranked(group: NDArray[np.integer], score: NDArray[np.floating]) -> tuple[Ints, Lists]:
    """(N,) where the rows are in the lists, and the lists, by rising group and falling score.

    Args:
        group: (N,) which list a row is in: whole numbers, from 0.
        score: (N,) finite.
    """
    order = _order(group, score)
    sorted_group, sorted_score = group[order], score[order]
    begins = np.append(True, sorted_group[1:] != sorted_group[:-1])[: order.size]
    run_begins = begins.copy()
    run_begins[1:] |= sorted_score[1:] != sorted_score[:-1]
    return order, Lists(np.flatnonzero(begins), np.flatnonzero(run_begins), order.size)


def ndcg(lists: Lists, gain: FloatArray, ideal: FloatArray, k: int | None) -> FloatArray:
    """(G,) DCG@k / ideal DCG@k, DCG = Σ gain / log₂(1 + position) (Järvelin and Kekäläinen 2002); NaN where the ideal
    is 0.

    Args:
        lists: of N rows.
        gain: (N,) at least 0.
        ideal: (G,) of :func:`ideal_gain` for the same k.
        k: positions that count; None: all.
    """
    discount = np.append(0.0, np.cumsum(1 / np.log2(1 + np.arange(1, _longest(lists) + 1))))
    taken = lists.run_lengths if k is None else lists.taken(k)
    share = (discount[lists.before + taken] - discount[lists.before]) / lists.run_lengths
    return _over(lists.of_runs(lists.in_runs(gain) * share), ideal)


def ideal_gain(lists: Lists, gain: FloatArray, k: int | None) -> FloatArray:
    """(G,) DCG@k of the best order; arguments as for :func:`ndcg`."""
    order = np.lexsort((-gain, lists.list_of))
    position = lists.position
    worth = np.where(position <= k, gain[order], 0.0) if k is not None else gain[order]
    return lists.totals(worth / np.log2(1 + position))


def recall(lists: Lists, positive: NDArray[np.bool_], k: int) -> FloatArray:
    """(G,) share of a list's positives that are among its first k; NaN where it has none."""
    found = lists.in_runs(positive) * lists.taken(k) / lists.run_lengths
    return _over(lists.of_runs(found), lists.totals(positive))


def average_precision(lists: Lists, positive: NDArray[np.bool_], k: int | None) -> FloatArray:
    """(G,) Σ over the positives among the first k of the precision at their position, over min(R, k); NaN where R is 0.

    The divisor makes a perfect order 1 for every k. With ties: the position s + j holds a positive with probability
    r / t, and then m + 1 + (j − 1)(r − 1) / (t − 1) positives are expected down to it.
    """
    positives = lists.in_runs(positive)
    total = lists.totals(positive)
    above = np.cumsum(positives) - positives - (np.cumsum(total) - total)[lists.list_of_run]
    run = np.repeat(np.arange(lists.run_start.size), lists.run_lengths)
    r, t, m = positives[run], lists.run_lengths[run], above[run]
    inside = np.arange(lists.size) - lists.run_start[run]  # j − 1
    expected = m + 1 + inside * (r - 1) / np.maximum(t - 1, 1)
    worth = r / t * expected / lists.position
    if k is not None:
        worth = np.where(lists.position <= k, worth, 0.0)
    return _over(lists.totals(worth), total if k is None else np.minimum(total, k))


def reciprocal_rank(lists: Lists, positive: NDArray[np.bool_]) -> FloatArray:
    """(G,) 1 / the position of the first positive (Voorhees 1999); NaN where there is none.

    The first of the r positives of a run stands at its j-th position with probability C(t − j, r − 1) / C(t, r).
    """
    positives = lists.in_runs(positive)
    runs = np.flatnonzero(positives)
    if runs.size:
        runs = runs[np.append(True, np.diff(lists.list_of_run[runs]) > 0)]  # the first of each list
    r, t, s = positives[runs].astype(np.int64), lists.run_lengths[runs], lists.before[runs]
    value = np.full(lists.start.size, np.nan)
    single = t == r  # the first position is a positive: most runs have one row
    value[lists.list_of_run[runs[single]]] = 1 / (s[single] + 1)
    runs, r, t, s = (part[~single] for part in (runs, r, t, s))
    if runs.size:
        from scipy.special import gammaln

        places = t - r + 1  # where the first positive can stand
        of = np.repeat(np.arange(runs.size), places)
        j = np.arange(of.size) - np.repeat(np.cumsum(places) - places, places) + 1
        left, all_of, chosen = (t[of] - j).astype(np.float64), t[of].astype(np.float64), r[of].astype(np.float64)
        # log C(t − j, r − 1) − log C(t, r)
        log_p = gammaln(left + 1) - gammaln(chosen) - gammaln(left - chosen + 2)
        log_p -= gammaln(all_of + 1) - gammaln(chosen + 1) - gammaln(all_of - chosen + 1)
        value[lists.list_of_run[runs]] = np.bincount(of, np.exp(log_p) / (s[of] + j), minlength=runs.size)
    return value


def list_auc(lists: Lists, positive: NDArray[np.bool_]) -> FloatArray:
    """(G,) the chance that a positive row stands above another one of its list, a tie counting half; NaN where the
    list has one kind alone."""
    positives = lists.in_runs(positive)
    negatives = lists.run_lengths - positives
    total, others = lists.totals(positive), lists.totals(~positive)
    above = np.cumsum(negatives) - negatives - (np.cumsum(others) - others)[lists.list_of_run]
    beaten = others[lists.list_of_run] - above - negatives / 2
    return _over(lists.of_runs(positives * beaten), total * others)


def expected_places(lists: Lists, k: int) -> FloatArray:
    """(N,) the probability that a row is among the first k of its list."""
    return np.repeat(lists.taken(k) / lists.run_lengths, lists.run_lengths)


def gini(values: FloatArray) -> float | None:
    """The Gini coefficient of numbers that are not negative: 0 all alike, 1 − 1 / n all but one are 0; None where their
    sum is 0."""
    total, n = float(values.sum()), values.size
    if not total > 0:
        return None
    rank = np.arange(1, n + 1)
    return float(((2 * rank - n - 1) * np.sort(values)).sum() / (n * total))


def _order(group: NDArray[np.integer], score: NDArray[np.floating]) -> NDArray[np.intp]:
    if score.dtype != np.float32 or not group.size or group.max() >= 2**31:
        return np.lexsort((-score, group))
    # Both in one whole number, whose sorting is several times as fast: a float32's bits rise with its size once those
    # of negative numbers are turned round.
    bits = (score + np.float32(0)).view(np.int32).astype(np.int64)  # adding 0 makes -0 one
    rising = np.where(bits < 0, -(2**31) - 1 - bits, bits)
    return np.argsort((group.astype(np.int64) << 32) - rising)


def _sums(values: NDArray[Any], start: Ints) -> FloatArray:
    if not start.size:
        return np.empty(0)
    return np.asarray(np.add.reduceat(np.asarray(values, np.float64), start), np.float64)


def _of_some(first: Ints, size: int) -> Ints:
    """Of where parts begin, rising: those of the parts that are not empty."""
    return first[np.diff(first, append=size) > 0]


def _longest(lists: Lists) -> int:
    return int(lists.lengths.max(initial=0))


def _over(part: FloatArray, whole: FloatArray) -> FloatArray:
    return np.asarray(np.divide(part, whole, out=np.full(whole.size, np.nan), where=whole > 0), np.float64)
