"""The evaluation's part of ``metrics.json``: every split measured, beside the baseline and, where known, the optimum.

In: scored splits. Out: a dict of JSON's own types::

    validation, test                  {TASK: {metric: value}}: the model
    validation_baseline, _optimum     the same, for what predicts the train mean and for what knows the truth
    baseline, optimum                 the same, on the split that `evaluated_on` names: test, or validation before it
    main_effects                      synthetic: ranking metrics of the true main effects alone
    share_of_attainable               {TASK: (AUC − 0.5) / (optimum's AUC − 0.5)}
    intervals                         {SYSTEM: {TASK: {metric: [low, high]}}} for the systems model, baseline, optimum,
                                      model_minus_baseline, model_minus_optimum (paired), and
                                      {"share_of_attainable": {TASK: [low, high]}}
    reliability                       {TASK: [[rows, mean prediction, mean label], …]} by tenths of the predictions
    bootstrap                         what the intervals were made of

A value that is undefined is None.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from recmtl.evaluation.baseline import baseline, baseline_predictions
from recmtl.evaluation.evaluate import Target, TaskMetrics, evaluate, examples, targets
from recmtl.evaluation.intervals import Resampled, Sample, bootstrap, clusters_of, interval, paired
from recmtl.evaluation.optimum import Truth, main_effects, optimum, share_of_attainable, true_predictions
from recmtl.evaluation.score import Scored
from recmtl.metrics import METRICS, metrics_for
from recmtl.metrics.base import FloatArray
from recmtl.metrics.ece import reliability
from recmtl.statistics import Statistics
from recmtl.tasks import Tasks

__all__ = ["CONFIDENCE", "NOT_RESAMPLED", "REPLICATES", "evaluation_record"]

CONFIDENCE = 0.95
"""Of all intervals."""
REPLICATES = 300
"""Draws of the bootstrap: the ends of a 95 % interval are then uncertain by about a tenth of its width."""
RELIABILITY_BINS = 10
"""Rows of a calibration table."""
NOT_RESAMPLED = frozenset({"ece"})
"""A mean of absolute values, which a resampled noise only raises: its percentiles would lie above the figure."""
_RANKING = frozenset({"auc", "user_auc", "pr_auc", "spearman", "macro_auc"})
"""Constant where predictions are, as the baseline's: not worth resampling."""

_SYSTEMS = ("model", "baseline", "optimum")
_Key = tuple[str, str]


def evaluation_record(
    scored: Mapping[str, Scored],
    tasks: Tasks,
    statistics: Statistics,
    truth: Mapping[str, Truth] | None = None,
    *,
    replicates: int = REPLICATES,
    seed: int = 0,
) -> dict[str, Any]:
    """Measure every split, and the last one (test before validation) with intervals.

    Args:
        scored: ``validation`` and, or, ``test`` to its rows.
        tasks: the tasks.
        statistics: fitted on train: what the baseline predicts.
        truth: synthetic logs: split to truth, aligned with its rows.
        replicates: draws of the bootstrap; 0: no intervals.
        seed: of the bootstrap.
    """
    record: dict[str, Any] = {}
    for split, rows in scored.items():
        known = (truth or {}).get(split)
        record[split] = evaluate(rows, tasks)
        by_system = {"baseline": baseline(rows, tasks, statistics)}
        if known:
            by_system["optimum"] = optimum(rows, tasks, known)
        prefix = "" if split == "test" else f"{split}_"
        record |= {f"{prefix}{system}": values for system, values in by_system.items()}
    last = next((split for split in ("test", "validation") if split in scored), None)
    if last is None:
        return record
    if last != "test":
        record |= {system: record[f"{last}_{system}"] for system in _SYSTEMS[1:] if f"{last}_{system}" in record}
    return {**record, "evaluated_on": last} | _in_depth(
        record, scored[last], last, tasks, statistics, (truth or {}).get(last), replicates, seed
    )


def _in_depth(
    record: Mapping[str, Any],
    scored: Scored,
    split: str,
    tasks: Tasks,
    statistics: Statistics,
    truth: Truth | None,
    replicates: int,
    seed: int,
) -> dict[str, Any]:
    found: dict[str, Any] = {"reliability": _reliability(scored, tasks)}
    if truth:
        found["main_effects"] = main_effects(scored, tasks, truth)
        found["share_of_attainable"] = _shares(record[split], record["optimum"])
    if replicates:
        cluster, clusters = clusters_of(scored.group, len(scored))
        samples = []
        for target in targets(tasks):
            for system, prediction in _systems(scored, target, statistics, truth).items():
                skipped = NOT_RESAMPLED | (_RANKING if system == "baseline" else frozenset())
                names = [metric.name for metric in metrics_for(target.task.kind) if metric.name not in skipped]
                rows = examples(scored, target, prediction)
                samples.append(Sample((system, target.key), rows, cluster[target.rows(scored)], names))
        drawn = bootstrap(samples, clusters, replicates=replicates, seed=seed)
        found["intervals"] = _intervals(drawn, samples)
        found["bootstrap"] = {
            "replicates": replicates,
            "seed": seed,
            "confidence": CONFIDENCE,
            "drawn": "rows" if scored.group is None else "users",
            "clusters": clusters,
        }
    return found


def _systems(
    scored: Scored, target: Target, statistics: Statistics, truth: Truth | None
) -> dict[str, FloatArray | None]:
    """System → its predictions; None: the model's own, which the rows hold."""
    found: dict[str, FloatArray | None] = {"model": None}
    constant = baseline_predictions(len(scored), target, statistics)
    if constant is not None:
        found["baseline"] = constant
    true = None if not truth else true_predictions(scored, target, truth)
    if true is not None:
        found["optimum"] = true
    return found


def _intervals(drawn: Resampled[_Key], samples: list[Sample[_Key]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for sample in samples:
        system, key = sample.key
        for metric in sample.metrics:
            found.setdefault(system, {}).setdefault(key, {})[metric] = _ends(drawn[sample.key, metric])
            if system != "model" and METRICS[metric].higher_is_better is not None:
                difference = paired(drawn, ("model", key), sample.key, metric)
                found.setdefault(f"model_minus_{system}", {}).setdefault(key, {})[metric] = _ends(difference)
        if system == "optimum" and "auc" in sample.metrics:
            best = drawn[sample.key, "auc"] - 0.5
            share = (drawn[("model", key), "auc"] - 0.5) / np.where(best > 0, best, np.nan)
            found.setdefault("share_of_attainable", {})[key] = _ends(share)
    return found


def _ends(values: FloatArray) -> list[float] | None:
    found = interval(values, CONFIDENCE)
    return None if found is None else list(found)


def _shares(model: TaskMetrics, best: TaskMetrics) -> dict[str, float | None]:
    return {
        key: share_of_attainable(model[key]["auc"], values["auc"]) for key, values in best.items() if "auc" in values
    }


def _reliability(scored: Scored, tasks: Tasks) -> dict[str, list[list[float]]]:
    return {
        target.key: [list(one) for one in reliability(examples(scored, target), RELIABILITY_BINS)]
        for target in targets(tasks)
        if target.task.kind != "multiclass"
    }
