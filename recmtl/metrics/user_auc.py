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
    order = np.lexsort((examples.prediction, examples.group))
    group, prediction = examples.group[order], examples.prediction[order]
    positive = examples.label[order]
    negative = 1 - positive
    user_ends = run_ends(group)
    user_starts = np.append(0, user_ends[:-1] + 1)
    ends = np.union1d(run_ends(prediction), user_ends)  # of runs of equal predictions of one user
    user_of_run = np.searchsorted(user_ends, ends)

    def user_auc(weight: FloatArray) -> float | None:
        sorted_weight = weight[order]
        positive_weight, negative_weight = sorted_weight * positive, sorted_weight * negative
        positives = np.add.reduceat(positive_weight, user_starts)
        negatives = np.add.reduceat(negative_weight, user_starts)
        both = (positives > 0) & (negatives > 0)
        if not both.any():
            return None
        cumulative = np.cumsum(negative_weight)
        before_user = cumulative[user_starts] - negative_weight[user_starts]
        at_run = cumulative[ends]
        below = at_run - np.diff(at_run, prepend=0) / 2 - before_user[user_of_run]
        in_run = np.diff(np.cumsum(positive_weight)[ends], prepend=0)
        won = np.bincount(user_of_run, in_run * below, minlength=user_ends.size)[both]
        rows = (positives + negatives)[both]
        return float(rows @ (won / (positives * negatives)[both]) / rows.sum())

    return user_auc


def users_with_both(examples: Examples) -> int | None:
    """How many users have both classes: those that the metric rests on; None where users are unknown."""
    if examples.group is None:
        return None
    _, user = np.unique(examples.group, return_inverse=True)
    kept: NDArray[np.bool_] = np.ones(len(examples), bool) if examples.weight is None else examples.weight > 0
    positives = np.bincount(user[kept], examples.label[kept])
    return int(((positives > 0) & (positives < np.bincount(user[kept]))).sum())


USER_AUC = Metric(
    name="user_auc",
    kinds=("binary",),
    higher_is_better=True,
    meaning="AUC within each user's rows, averaged by rows over the users who have both classes",
    prepare=_prepare,
)
