"""What a metric reads, and what it is: prepared once on a set of rows, then a function of the row weights.

The split in two is what makes intervals cheap: a bootstrap replicate is a vector of row weights (how often each row was
drawn), and everything that does not depend on it, such as sorting by prediction, is done once.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from recmtl.tasks import TaskKind

__all__ = ["Examples", "FloatArray", "Metric", "Weighted", "by_class", "run_ends"]

FloatArray = NDArray[np.float64]
Weighted = Callable[[FloatArray], float | None]
"""Row weights (N,), not negative, of positive sum → the metric's value; None where it is undefined."""


@dataclass(frozen=True)
class Examples:
    """N rows on which a task is observed; converted to float64 when made."""

    prediction: FloatArray
    """(N,): binary a probability, regression and ordinal in label units; multiclass (N, C) probabilities. Finite."""
    label: FloatArray
    """(N,): binary 0 or 1, regression and ordinal in label units, multiclass the index of the class."""
    group: NDArray[np.int64] | None = None
    """(N,): equal for rows of the same user; None where users are unknown."""
    weight: FloatArray | None = None
    """(N,): not negative; None counts every row once. A row of weight 2 is worth two equal rows."""
    levels: FloatArray | None = None
    """(L,): ordinal alone: the rising label values."""

    def __post_init__(self) -> None:
        for field in ("prediction", "label", "weight", "levels"):
            if getattr(self, field) is not None:
                object.__setattr__(self, field, np.asarray(getattr(self, field), np.float64))
        rows = self.label.shape
        assert len(rows) == 1, "labels have one dimension"
        assert self.prediction.shape[:1] == rows, "a prediction for every label"
        assert self.group is None or self.group.shape == rows, "a group for every label"
        assert self.weight is None or self.weight.shape == rows, "a weight for every label"

    def __len__(self) -> int:
        return self.label.size


class Metric(NamedTuple):
    """A line of the table of metrics."""

    name: str
    kinds: tuple[TaskKind, ...]
    """The kinds of task that it is defined for."""
    higher_is_better: bool | None
    """None: neither direction is better (calibration is best at 1), so it cannot be monitored."""
    meaning: str
    """One line for the report's legend."""
    prepare: Callable[[Examples], Weighted]
    """Does what does not depend on the weights; without rows, or with weights that sum to 0, use :meth:`by_weight`."""

    def by_weight(self, examples: Examples) -> Weighted:
        """The metric as a function of the row weights: None, never NaN or infinite, wherever it is undefined."""
        if not len(examples):
            return _undefined
        value_at = self.prepare(examples)

        def by_weight(weight: FloatArray) -> float | None:
            if not weight.sum() > 0:
                return None
            value = value_at(weight)
            return float(value) if value is not None and math.isfinite(value) else None

        return by_weight

    def compute(self, examples: Examples) -> float | None:
        """The metric on these rows; None where it is undefined (no rows, one class only, nothing to correlate)."""
        weight = np.ones(len(examples)) if examples.weight is None else examples.weight
        return self.by_weight(examples)(weight)


def _undefined(weight: FloatArray) -> None:
    return None


def run_ends(values: NDArray[Any]) -> NDArray[np.intp]:
    """Of sorted values (N,), N ≥ 1: the position of the last row of every run of equal ones."""
    return np.append(np.flatnonzero(values[1:] != values[:-1]), values.size - 1)


def by_class(examples: Examples) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """The positive and the negative rows of a binary task, each by rising prediction."""
    positives, negatives = np.flatnonzero(examples.label == 1), np.flatnonzero(examples.label != 1)
    return (
        positives[np.argsort(examples.prediction[positives], kind="stable")],
        negatives[np.argsort(examples.prediction[negatives], kind="stable")],
    )
