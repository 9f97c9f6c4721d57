"""Area under the ROC curve: the chance that a positive row is ranked above a negative one, a tie counting half.

The Mann-Whitney statistic, exact: every positive row wins against the negative ones below it, and half against those
that are level with it. Undefined where one class is absent. Its influence function is made of the placement values of
DeLong, DeLong and Clarke-Pearson 1988: which share of the other class a row beats, less the AUC.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from recmtl.metrics.base import ByCluster, Examples, FloatArray, Metric, Weighted, by_class, dot

__all__ = ["AUC"]


def _prepare(examples: Examples) -> Weighted:
    positives, negatives = by_class(examples)
    ranked = examples.prediction[negatives]
    below = np.searchsorted(ranked, examples.prediction[positives], side="left")
    up_to = np.searchsorted(ranked, examples.prediction[positives], side="right")

    def auc(weight: FloatArray) -> float | None:
        mine, theirs = weight[positives], np.append(0.0, np.cumsum(weight[negatives]))
        total = mine.sum() * theirs[-1]
        return dot(mine, theirs[below] + theirs[up_to]) / (2 * total) if total > 0 else None

    return auc


def _resample(examples: Examples, cluster: NDArray[np.intp]) -> ByCluster:
    """As above with the rows' clusters sorted once; whole weights, so that the sums of pairs are exact."""
    positives, negatives = by_class(examples)
    ranked, rising = examples.prediction[negatives], examples.prediction[positives]
    below, up_to = (np.searchsorted(ranked, rising, side=side) for side in ("left", "right"))
    of_positives, of_negatives = cluster[positives], cluster[negatives]
    cumulative = np.zeros(negatives.size + 1, np.int64)

    def auc(weight: NDArray[Any]) -> float | None:
        counted = cumulative.copy()  # threads share the function
        np.cumsum(weight[of_negatives], out=counted[1:])
        mine = weight[of_positives]
        total = int(mine.sum(dtype=np.int64)) * int(counted[-1])
        return float((mine * (counted[below] + counted[up_to])).sum()) / (2 * total) if total > 0 else None

    return auc


def _influence(examples: Examples) -> FloatArray | None:
    positives, negatives = by_class(examples)
    if not (positives.size and negatives.size):
        return None
    mine, theirs = examples.prediction[positives], examples.prediction[negatives]
    beaten = (np.searchsorted(theirs, mine, "left") + np.searchsorted(theirs, mine, "right")) / (2 * theirs.size)
    not_above = (np.searchsorted(mine, theirs, "left") + np.searchsorted(mine, theirs, "right")) / (2 * mine.size)
    auc = beaten.mean()
    influence = np.empty(len(examples))
    influence[positives] = (beaten - auc) / mine.size
    influence[negatives] = (1 - not_above - auc) / theirs.size
    return influence


AUC = Metric(
    name="auc",
    kinds=("binary",),
    higher_is_better=True,
    meaning="chance that a positive row is ranked above a negative one; 0.5 is chance",
    prepare=_prepare,
    influence=_influence,
    scale="logit",
    resample=_resample,
)
