"""AUC grouped by user: how well each user's own rows are ranked, which is what a ranker does.

GAUC of Zhu et al. 2017 (Optimized Cost per Click in Taobao Display Advertising, equation 15): the mean of the users'
AUCs weighted by their rows, over the users who have both classes. Undefined where there is no such user.
"""

import numpy as np
from numpy.typing import NDArray

from recmtl.metrics.base import Additive, Examples, FloatArray, Metric, Weighted, dot

__all__ = ["USER_AUC", "Pairs", "users_with_both"]


class Pairs:
    """Each user's pairs of a positive and a negative row, over the U users who have both."""

    def __init__(self, group: NDArray[np.int64], examples: Examples) -> None:
        user, both = _users(group, examples.label)
        rows = np.flatnonzero(both[user])
        rows = rows[_order(user[rows], examples.prediction[rows])]
        user, prediction, positive = user[rows], examples.prediction[rows], examples.label[rows] == 1
        self.rows, self.user_of, self.positive = rows, _numbered(user), positive
        self.positives, self.negatives = rows[positive], rows[~positive]
        # Negatives before a row's user, before its run of equal predictions of one user, and up to the run's end.
        before = np.append(0, np.cumsum(~positive))
        starts = np.append(True, (user[1:] != user[:-1]) | (prediction[1:] != prediction[:-1]))[: rows.size]
        run = np.cumsum(starts) - 1
        edges = np.append(np.flatnonzero(starts), rows.size)
        self.below, self.up_to = before[edges[run[positive]]], before[edges[run[positive] + 1]]
        self.first = before[np.flatnonzero(np.append(True, user[1:] != user[:-1]))[: rows.size]]
        self.mine_of, self.theirs_of = self.user_of[positive], self.user_of[~positive]

    def at(self, weight: FloatArray) -> tuple[FloatArray, FloatArray]:
        """(U,) each: AUC and weight of a user; those who have one class alone at these weights are left out."""
        mine, theirs = weight[self.positives], weight[self.negatives]
        cumulative = np.append(0.0, np.cumsum(theirs))
        beaten = (cumulative[self.below] + cumulative[self.up_to]) / 2 - cumulative[self.first][self.mine_of]
        won = np.bincount(self.mine_of, mine * beaten)
        wins = np.asarray(np.bincount(self.mine_of, mine), np.float64)
        losses = np.asarray(np.bincount(self.theirs_of, theirs), np.float64)
        counted = (wins > 0) & (losses > 0)
        return won[counted] / (wins * losses)[counted], (wins + losses)[counted]

    def influence(self) -> FloatArray:
        """(rows,) d (mean of the users' AUCs) / d (weight of each row of ``self.rows``), at weight 1."""
        auc, size = self.at(np.ones(int(self.rows.max()) + 1))
        mean = dot(auc, size) / float(size.sum())
        wins = np.asarray(np.bincount(self.mine_of), np.float64)
        losses = size - wins
        first, cumulative = self.first[self.mine_of], np.arange(self.negatives.size + 1)
        beaten = (cumulative[self.below] + cumulative[self.up_to]) / 2 - first
        # The positives that are not above a negative (a level one half): those whose run begins, and ends, before it.
        edges = np.bincount(self.below, minlength=self.negatives.size + 1).astype(np.float64)
        edges += np.bincount(self.up_to, minlength=self.negatives.size + 1)
        not_above = np.cumsum(edges)[:-1] / 2 - np.append(0.0, np.cumsum(wins))[self.theirs_of]
        lost = wins[self.theirs_of] - not_above
        share = np.empty(self.rows.size)
        share[self.positive] = beaten / losses[self.mine_of]
        share[~self.positive] = lost / wins[self.theirs_of]
        own = np.where(self.positive, wins[self.user_of], losses[self.user_of])
        of_auc = (share - auc[self.user_of]) / own
        return (auc[self.user_of] - mean + size[self.user_of] * of_auc) / float(size.sum())


def _prepare(examples: Examples) -> Weighted:
    if examples.group is None:
        return lambda weight: None
    pairs = Pairs(examples.group, examples)

    def user_auc(weight: FloatArray) -> float | None:
        auc, size = pairs.at(weight)
        return dot(auc, size) / float(size.sum()) if size.size else None

    return user_auc


def _influence(examples: Examples) -> FloatArray | None:
    if examples.group is None:
        return None
    pairs = Pairs(examples.group, examples)
    if not pairs.rows.size:
        return None
    influence = np.zeros(len(examples))
    influence[pairs.rows] = pairs.influence()
    return influence


def _terms(examples: Examples) -> tuple[FloatArray, FloatArray]:
    """A row adds its user's AUC, and 1; nothing where that user has one class alone.

    A weight that all rows of a user share moves the user's part in the mean and not the AUC.
    """
    shares, counts = np.zeros((2, len(examples)))
    if examples.group is not None and len(examples):
        pairs = Pairs(examples.group, examples)
        auc, _ = pairs.at(np.ones(len(examples)))
        shares[pairs.rows], counts[pairs.rows] = auc[pairs.user_of], 1
    return shares, counts


def _numbered(sorted_users: NDArray[np.intp]) -> NDArray[np.intp]:
    """(N,) users, sorted, as 0, 0, 1, 2, 2, …"""
    return np.cumsum(np.append(False, sorted_users[1:] != sorted_users[:-1])[: sorted_users.size])


def _order(user: NDArray[np.intp], prediction: FloatArray) -> NDArray[np.intp]:
    """(N,) the rows by user, and by rising prediction within it; users are small numbers.

    Predictions that are float32, as models make them, sort with their user as one whole number: a third of the time.
    """
    single = prediction.astype(np.float32)
    if (single != prediction).any() or user.max(initial=0) >= 1 << 32:
        return np.lexsort((prediction, user))
    bits = single.view(np.uint32)
    rising = np.where(bits >> 31, ~bits, bits | np.uint32(1 << 31))  # negative numbers' bits fall
    return np.argsort((user.astype(np.uint64) << np.uint64(32)) | rising)


def users_with_both(examples: Examples) -> int | None:
    """How many users have both classes: those that the metric rests on; None where users are unknown."""
    if examples.group is None:
        return None
    kept = slice(None) if examples.weight is None else examples.weight > 0
    return int(_users(examples.group[kept], examples.label[kept])[1].sum())


def _users(group: NDArray[np.int64], label: FloatArray) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
    """(N,) each row's user, as a small number, and by that number whether a user has both classes."""
    low = int(group.min()) if group.size else 0
    if group.size and int(group.max()) - low <= 2 * group.size:
        user = (group - low).astype(np.intp, copy=False)
    else:
        _, user = np.unique(group, return_inverse=True)
    positives = np.bincount(user, label)
    return user, (positives > 0) & (positives < np.bincount(user))


USER_AUC = Metric(
    name="user_auc",
    kinds=("binary",),
    higher_is_better=True,
    meaning="AUC within each user's rows, averaged by rows over the users who have both classes",
    prepare=_prepare,
    influence=_influence,
    scale="logit",
    additive=Additive(_terms, finish=lambda sums: np.asarray(sums[:, 0] / sums[:, 1]), by_user=True),
)
