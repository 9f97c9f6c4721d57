"""Metrics: one a file, exact, in float64. In: :class:`Examples`. Out: a number, or None where it is undefined.

Adding a metric is one file and one line in :data:`METRICS`.
"""

from collections.abc import Mapping

from recmtl.metrics.accuracy import ACCURACY
from recmtl.metrics.auc import AUC
from recmtl.metrics.base import Examples, Metric
from recmtl.metrics.calibration import CALIBRATION
from recmtl.metrics.ece import ECE
from recmtl.metrics.kappa import KAPPA
from recmtl.metrics.log_loss import LOG_LOSS
from recmtl.metrics.macro_auc import MACRO_AUC
from recmtl.metrics.mae import MAE
from recmtl.metrics.normalised_entropy import NORMALISED_ENTROPY
from recmtl.metrics.pr_auc import PR_AUC
from recmtl.metrics.rmse import RMSE
from recmtl.metrics.spearman import SPEARMAN
from recmtl.metrics.user_auc import USER_AUC
from recmtl.tasks import TaskKind

__all__ = ["METRICS", "Examples", "Metric", "metrics_for"]

METRICS: Mapping[str, Metric] = {
    metric.name: metric
    for metric in (
        AUC,
        USER_AUC,
        PR_AUC,
        LOG_LOSS,
        NORMALISED_ENTROPY,
        CALIBRATION,
        ECE,
        RMSE,
        MAE,
        SPEARMAN,
        KAPPA,
        ACCURACY,
        MACRO_AUC,
    )
}
"""Every metric by the name that it has in ``metrics.json`` and in ``early_stopping.monitor``, in order of report."""


def metrics_for(kind: TaskKind) -> tuple[Metric, ...]:
    """The metrics of one kind of task, in order of report."""
    return tuple(metric for metric in METRICS.values() if kind in metric.kinds)
