"""AUC grouped by user: how well each user's own rows are ranked, which is what a ranker does.

GAUC of Zhu et al. 2017 (Optimized Cost per Click in Taobao Display Advertising, equation 15): the mean of the users'
AUCs weighted by their rows, over the users who have both classes. Undefined where there is no such user.
"""

import numpy as np
from numpy.typing import NDArray

from recmtl.metrics.base import Examples, FloatArray, Metric, Weighted

__all__ = ["USER_AUC", "users_with_both"]


def _prepare(examples: Examples) -> Weighted:
    if examples.group is None:
        return lambda weight: None
    user, both = _users(examples.group, examples.label)
    rows = np.flatnonzero(both[user])
    rows = rows[np.lexsort((examples.prediction[rows], user[rows]))]
    user, prediction, positive = user[rows], examples.prediction[rows], examples.label[rows] == 1
    positives, negatives = rows[positive], rows[~positive]
    # Negatives before a row's user, before its run of equal predictions of one user, and up to the run's end.
    before = np.append(0, np.cumsum(~positive))
    starts = np.append(True, (user[1:] != user[:-1]) | (prediction[1:] != prediction[:-1]))[: rows.size]
    run = np.cumsum(starts) - 1
    edges = np.append(np.flatnonzero(starts), rows.size)
    below, up_to = before[edges[run[positive]]], before[edges[run[positive] + 1]]
    first = before[np.searchsorted(user, np.unique(user))]
    mine_of, theirs_of = _numbered(user[positive]), _numbered(user[~positive])

    def user_auc(weight: FloatArray) -> float | None:
        mine, theirs = weight[positives], weight[negatives]
        cumulative = np.append(0.0, np.cumsum(theirs))
        won = np.bincount(mine_of, mine * ((cumulative[below] + cumulative[up_to]) / 2 - cumulative[first][mine_of]))
        wins, losses = np.bincount(mine_of, mine), np.bincount(theirs_of, theirs)
        counted = (wins > 0) & (losses > 0)
        if not counted.any():
            return None
        size = (wins + losses)[counted]
        return float(size @ (won[counted] / (wins * losses)[counted]) / size.sum())

    return user_auc


def _numbered(sorted_users: NDArray[np.intp]) -> NDArray[np.intp]:
    """(N,) users, sorted, as 0, 0, 1, 2, 2, …"""
    return np.unique(sorted_users, return_inverse=True)[1]


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
