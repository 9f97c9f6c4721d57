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

A value that is undefined is None. The figures are those of :mod:`recmtl.evaluation.figures`, measured here where they
are not given.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from recmtl.evaluation.figures import NOT_RESAMPLED, Measurements, measure_systems
from recmtl.evaluation.intervals import IntervalsConfig
from recmtl.evaluation.optimum import Truth
from recmtl.evaluation.score import Scored
from recmtl.findings import Figure, FigureRow
from recmtl.statistics import Statistics
from recmtl.tasks import Tasks

__all__ = ["CONFIDENCE", "NOT_RESAMPLED", "REPLICATES", "evaluation_record"]

CONFIDENCE = 0.95
"""Of all intervals."""
REPLICATES = 300
"""Draws of the bootstrap where no settings are given."""
_RANKING = frozenset({"auc", "user_auc", "pr_auc", "spearman", "macro_auc"})
"""The baseline's intervals of these are left out: they would say nothing."""
_SYSTEMS = ("model", "baseline", "optimum")


def evaluation_record(
    scored: Mapping[str, Scored],
    tasks: Tasks,
    statistics: Statistics,
    truth: Mapping[str, Truth] | None = None,
    *,
    replicates: int = REPLICATES,
    seed: int = 0,
    measured: Mapping[str, Measurements] | None = None,
    folder: Path | None = None,
) -> dict[str, Any]:
    """Measure every split, and the last one (test before validation) with intervals.

    Args:
        scored: ``validation`` and, or, ``test`` to its rows.
        tasks: the tasks.
        statistics: fitted on train: what the baseline predicts.
        truth: synthetic logs: split to truth, aligned with its rows.
        replicates: draws of the bootstrap; 0: no intervals.
        seed: of the bootstrap.
        measured: split to what was measured of it already, with the model as system ``model``: nothing is computed for
            it again, and ``replicates`` and ``seed`` are not read.
        folder: where files are sorted if the rows are too many for memory.
    """
    last = next((split for split in ("test", "validation") if split in scored), None)
    measurements: dict[str, Measurements] = {}
    record: dict[str, Any] = {}
    for split, rows in scored.items():
        known = (measured or {}).get(split)
        if known is None:
            draws = replicates if split == last else 0
            settings = IntervalsConfig(draws=draws, seed=seed, confidence=CONFIDENCE)
            known = measure_systems(
                {"model": rows}, tasks, statistics, (truth or {}).get(split), settings, folder=folder
            )
        measurements[split] = known
        record[split] = known.values("model")
        by_system = {"baseline": known.values("baseline")}
        if (truth or {}).get(split):
            by_system["optimum"] = known.values("optimum")
        prefix = "" if split == "test" else f"{split}_"
        record |= {f"{prefix}{system}": values for system, values in by_system.items()}
    if last is None:
        return record
    if last != "test":
        record |= {system: record[f"{last}_{system}"] for system in _SYSTEMS[1:] if f"{last}_{system}" in record}
    return {**record, "evaluated_on": last} | _in_depth(measurements[last], bool((truth or {}).get(last)))


def _in_depth(measured: Measurements, known: bool) -> dict[str, Any]:
    rows = measured.figures()
    found: dict[str, Any] = {
        "reliability": {
            one.target.key: [list(each) for each in one.reliability]
            for one in measured.measured
            if one.target.task.kind != "multiclass"
        }
    }
    if known:
        found["main_effects"] = measured.main_effects
        found["share_of_attainable"] = {
            row.target: None if row.share_of_attainable is None else row.share_of_attainable.value
            for row in rows
            if row.metric == "auc" and "optimum" in row.systems
        }
    settings = measured.settings
    if settings.draws:
        found["intervals"] = _intervals(rows)
        found["bootstrap"] = {
            "replicates": settings.draws,
            "seed": settings.seed,
            "confidence": settings.confidence,
            "drawn": "users" if measured.by_user else "rows",
            "clusters": measured.clusters,
            "method": measured.method,
        }
    return found


def _intervals(rows: Sequence[FigureRow]) -> dict[str, Any]:
    found: dict[str, Any] = {}

    def put(system: str, row: FigureRow, figure: Figure) -> None:
        ends = None if figure.low is None or figure.high is None else [figure.low, figure.high]
        found.setdefault(system, {}).setdefault(row.target, {})[row.metric] = ends

    for row in rows:
        for system in _SYSTEMS:
            if system not in row.systems or row.metric in NOT_RESAMPLED:
                continue
            if system == "baseline" and row.metric in _RANKING:
                continue
            put(system, row, row.systems[system])
            if system in row.differences:
                put(f"model_minus_{system}", row, row.differences[system])
        if row.metric == "auc" and "optimum" in row.systems:
            share = row.share_of_attainable or Figure()
            ends = None if share.low is None or share.high is None else [share.low, share.high]
            found.setdefault("share_of_attainable", {})[row.target] = ends
    return found
