"""Evaluation: a model's predictions on validation and test to figures that say how much to trust them.

:func:`score` runs the model over a split; :func:`evaluate` measures it, and is what early stopping looks at;
:func:`evaluation_record` adds baseline, optimum and intervals for ``metrics.json``; :func:`write_report` makes a page
of it.
"""

from recmtl.evaluation.baseline import baseline
from recmtl.evaluation.evaluate import TaskMetrics, evaluate
from recmtl.evaluation.optimum import optimum
from recmtl.evaluation.record import evaluation_record
from recmtl.evaluation.report import summary_table, write_report
from recmtl.evaluation.score import Scored, score

__all__ = [
    "Scored",
    "TaskMetrics",
    "baseline",
    "evaluate",
    "evaluation_record",
    "optimum",
    "score",
    "summary_table",
    "write_report",
]
