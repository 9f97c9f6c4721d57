"""AUC of every class against the rest, averaged over the classes that are present and not alone.

Every class counts the same, however rare. Undefined where all rows are of one class.
"""

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recmtl.metrics.auc import AUC
from recmtl.metrics.base import ByCluster, Examples, FloatArray, Metric, Weighted

__all__ = ["MACRO_AUC"]


def _prepare(examples: Examples) -> Weighted:
    one_against_rest = [
        AUC.by_weight(replace(examples, prediction=examples.prediction[:, index], label=examples.label == index))
        for index in range(examples.prediction.shape[1])
    ]

    def macro_auc(weight: FloatArray) -> float | None:
        values = [value for value in (auc(weight) for auc in one_against_rest) if value is not None]
        return float(np.mean(values)) if values else None

    return macro_auc


def _resample(examples: Examples, cluster: NDArray[np.intp]) -> ByCluster:
    one_against_rest = [
        AUC.by_cluster(
            replace(examples, prediction=examples.prediction[:, index], label=examples.label == index), cluster
        )
        for index in range(examples.prediction.shape[1])
    ]

    def macro_auc(weight: NDArray[Any]) -> float | None:
        values = [value for value in (auc(weight) for auc in one_against_rest) if value is not None]
        return float(np.mean(values)) if values else None

    return macro_auc


def _influence(examples: Examples) -> FloatArray | None:
    of_classes = (
        AUC.influences(replace(examples, prediction=examples.prediction[:, index], label=examples.label == index))
        for index in range(examples.prediction.shape[1])
    )
    defined = [influence for influence in of_classes if influence is not None]
    return np.asarray(np.mean(defined, axis=0)) if defined else None


MACRO_AUC = Metric(
    name="macro_auc",
    kinds=("multiclass",),
    higher_is_better=True,
    meaning="AUC of each class against the rest, averaged over classes",
    prepare=_prepare,
    influence=_influence,
    scale="logit",
    resample=_resample,
)
