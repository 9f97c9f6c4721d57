"""AUC grouped by user: how well each user's own rows are ranked, which is what a ranker does.

GAUC of Zhu et al. 2017 (Optimized Cost per Click in Taobao Display Advertising, equation 15): the mean of the users'
AUCs weighted by their rows, over the users who have both classes. Undefined where there is no such user.
"""

import numpy as np
from numpy.typing import NDArray

from recmtl.metrics.base import Examples, FloatArray, Metric, Weighted, run_ends

__all__ = ["USER_AUC", "users_with_both"]


def _prepare(examples: Examples) -> Weighted:
    if examples.group is None:
        return lambda weight: None
    user, both = _users(examples.group, examples.label)
    rows = np.flatnonzero(both[user])
    if not rows.size:
        return lambda weight: None
    order = rows[np.lexsort((examples.prediction[rows], user[rows]))]
    user_ends = run_ends(user[order])
    user_starts = np.append(0, user_ends[:-1] + 1)
    ends = np.union1d(run_ends(examples.prediction[order]), user_ends)  # of runs of equal predictions of one user
    starts = np.append(0, ends[:-1] + 1)
    first_run = np.searchsorted(ends, user_starts)
    runs = np.diff(np.append(first_run, ends.size))
    positive = examples.label[order]
    negative = 1 - positive

    def user_auc(weight: FloatArray) -> float | None:
        sorted_weight = weight[order]
        in_run = np.add.reduceat(sorted_weight * positive, starts)
        against = np.add.reduceat(sorted_weight * negative, starts)
        positives, negatives = np.add.reduceat(in_run, first_run), np.add.reduceat(against, first_run)
        counted = (positives > 0) & (negatives > 0)
        if not counted.any():
            return None
        below = np.cumsum(against)
        before_user = np.repeat(below[first_run] - against[first_run], runs)
        won = np.add.reduceat(in_run * (below - against / 2 - before_user), first_run)[counted]
        size = (positives + negatives)[counted]
        return float(size @ (won / (positives * negatives)[counted]) / size.sum())

    return user_auc


def users_with_both(examples: Examples) -> int | None:
    """How many users have both classes: those that the metric rests on; None where users are unknown."""
    if examples.group is None:
        return None
    kept = slice(None) if examples.weight is None else examples.weight > 0
    return int(_users(examples.group[kept], examples.label[kept])[1].sum())


def _users(group: NDArray[np.int64], label: FloatArray) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
    """(N,) each row's user, from 0, and (users,) whether a user has both classes."""
    _, user = np.unique(group, return_inverse=True)
    positives = np.bincount(user, label)
    return user, (positives > 0) & (positives < np.bincount(user))


USER_AUC = Metric(
    name="user_auc",
    kinds=("binary",),
    higher_is_better=True,
    meaning="AUC within each user's rows, averaged by rows over the users who have both classes",
    prepare=_prepare,
)
