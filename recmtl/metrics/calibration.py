"""Calibration ratio: positives predicted (sum of the probabilities) over positives observed; undefined without any.

It has no direction, 1 being best, so it cannot be monitored.
"""

from recmtl.metrics.base import Examples, FloatArray, Metric, Weighted

__all__ = ["CALIBRATION"]


def _prepare(examples: Examples) -> Weighted:
    def calibration(weight: FloatArray) -> float | None:
        observed = float(weight @ examples.label)
        return float(weight @ examples.prediction) / observed if observed > 0 else None

    return calibration


CALIBRATION = Metric(
    name="calibration",
    kinds=("binary",),
    higher_is_better=None,
    meaning="positives predicted over positives observed; 1 is right",
    prepare=_prepare,
)
