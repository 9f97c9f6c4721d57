"""Every figure of an evaluation, with its interval: all targets, metrics and systems on the same rows.

In: the rows as each system scored them. Out: :class:`Measurements`: the report's table (its ``figures()``), and the
values and intervals of ``metrics.json`` (:mod:`recmtl.evaluation.record`), from one computation.

How sure a figure is comes from one of two methods, and each row of the table says which: the Poisson bootstrap over
users (:mod:`recmtl.evaluation.intervals`), or, above a stated number of rows, influence functions clustered by user
(:mod:`recmtl.evaluation.influence`). Where the rows are too many for memory, the same numbers come from files
(:mod:`recmtl.evaluation.external`). The expected calibration error has no interval: it is a mean of absolute values,
which a resampled noise only raises, so that its percentiles would lie above the figure.
"""

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from recmtl.comparing import holm
from recmtl.errors import RunError
from recmtl.evaluation.baseline import baseline_predictions
from recmtl.evaluation.evaluate import (
    Target,
    TaskMetrics,
    Values,
    examples,
    measure,
    predictions,
    targets,
)
from recmtl.evaluation.external import BUCKET_ROWS, Stream, cluster_numbers, measure_stream
from recmtl.evaluation.influence import Spread, difference_of, figure_of, spread
from recmtl.evaluation.intervals import IntervalsConfig, Sample, bootstrap, clusters_of, interval, p_value
from recmtl.evaluation.optimum import RANKING, Truth, share_of_attainable, true_predictions
from recmtl.evaluation.score import Scored
from recmtl.evaluation.spill import Spill, pieces, read
from recmtl.findings import Difference, Figure, FigureRow
from recmtl.metrics import METRICS, Examples, metrics_for
from recmtl.metrics.base import FloatArray
from recmtl.metrics.ece import Bin, reliability
from recmtl.statistics import Statistics
from recmtl.tasks import TaskKind, Tasks

__all__ = ["HEADLINE", "NOT_RESAMPLED", "Measurements", "measure_systems"]

NOT_RESAMPLED = frozenset({"ece"})
"""Metrics without an interval."""
HEADLINE: Mapping[TaskKind, frozenset[str]] = {
    "binary": frozenset({"auc", "log_loss", "normalised_entropy", "calibration"}),
    "regression": frozenset({"rmse", "mae", "spearman"}),
    "ordinal": frozenset({"rmse", "mae", "spearman", "kappa"}),
    "multiclass": frozenset({"log_loss", "accuracy", "macro_auc"}),
}
"""Kind of task to the metrics that stand in the table at the top."""
CERTAIN = frozenset({"auc", "user_auc", "macro_auc"})
"""What the baseline has without error: a constant prediction ranks as chance on whatever rows."""
RELIABILITY_BINS = 10
"""Rows of a calibration table."""

_Source = Callable[[int, int], NDArray[np.floating]]
"""(start, stop) of a piece of the split's rows → what a system predicts for them."""


@dataclass(frozen=True)
class Estimate:
    """A metric of one system: its value, and what its error is made of."""

    value: float | None
    draws: FloatArray | None = None
    """(R,) the bootstrap's replicates, where that makes the interval; NaN where undefined."""
    pulls: FloatArray | None = None
    """(U,) the influence summed over the rows of each cluster."""


@dataclass(frozen=True)
class Measured:
    """A target on its rows."""

    target: Target
    values: Mapping[str, Values]
    """System → what :func:`recmtl.evaluation.evaluate.measure` gives."""
    rows: tuple[FigureRow, ...]
    """A line for each metric."""
    reliability: tuple[Bin, ...]
    """The model's calibration table."""


@dataclass(frozen=True)
class Measurements:
    """All targets of a split."""

    measured: tuple[Measured, ...]
    settings: IntervalsConfig
    method: str
    """What made the intervals, for a person."""
    clusters: int
    by_user: bool
    """Clusters are users; rows otherwise."""
    main_effects: TaskMetrics = field(default_factory=dict)
    """Synthetic logs: ranking metrics of the true main effects alone."""

    def figures(self) -> tuple[FigureRow, ...]:
        """The report's rows, in order of target and metric."""
        return tuple(row for measured in self.measured for row in measured.rows)

    def values(self, system: str) -> TaskMetrics:
        """Target to counts and metrics; a target that the system does not predict is left out."""
        return {one.target.key: dict(one.values[system]) for one in self.measured if system in one.values}


def measure_systems(
    scored: Mapping[str, Scored],
    tasks: Tasks,
    statistics: Statistics | None = None,
    truth: Truth | None = None,
    settings: IntervalsConfig | None = None,
    *,
    folder: Path | None = None,
    bucket_rows: int = BUCKET_ROWS,
) -> Measurements:
    """Measure several systems on the same rows.

    Args:
        scored: system to the split's rows as it scored them, the same rows in the same order; the first one, ``model``,
            is the one that the others are compared with, and its labels count. Others may lack tasks.
        tasks: what is judged.
        statistics: fitted on train: what the system ``baseline`` predicts; None: no baseline.
        truth: synthetic logs: what the system ``optimum`` predicts, aligned with the rows.
        settings: of the intervals.
        folder: where files are sorted when the rows are too many for memory, some 60 bytes a row for a while; by
            default where the system keeps temporary files.
        bucket_rows: rows that are sorted at once then.

    Raises:
        RunError: the systems scored different rows.
    """
    settings = settings or IntervalsConfig()
    systems = _Systems(scored, statistics, truth)
    if len(systems.model) > settings.memory_rows or any(one.spilled for one in scored.values()):
        with tempfile.TemporaryDirectory(prefix="recmtl-evaluation-", dir=folder) as place:
            return _from_files(systems, tasks, settings, Path(place), bucket_rows)
    return _in_memory(systems, tasks, settings)


class _Systems:
    """Who predicts what on the split's rows."""

    def __init__(self, scored: Mapping[str, Scored], statistics: Statistics | None, truth: Truth | None) -> None:
        self.first, self.model = next(iter(scored.items()))
        self.scored, self.statistics, self.truth = scored, statistics, truth
        for system, rows in scored.items():
            same = rows is self.model or (
                len(rows) == len(self.model)
                and all(
                    (read(rows.row, start, stop) == read(self.model.row, start, stop)).all()
                    for start, stop in pieces(len(rows))
                )
            )
            if not same:
                raise RunError(f"{system} scored other rows than {self.first}: score both on the same split")

    def of(self, target: Target) -> dict[str, _Source]:
        """The systems that predict a target, the model first."""
        found: dict[str, _Source] = {
            system: _columns(rows, target)
            for system, rows in self.scored.items()
            if all(column in rows.predictions for column in target.columns)
        }
        statistics = self.statistics
        if statistics is not None and baseline_predictions(0, target, statistics) is not None:
            found["baseline"] = lambda start, stop: _known(baseline_predictions(stop - start, target, statistics))
        true = self._true(target)
        if true is not None:
            found["optimum"] = true
        return found

    def main_effects(self, target: Target) -> _Source | None:
        """What the truth's main effects alone predict; None where they are not known."""
        return self._true(target, "main") if target.given is None else None

    def _true(self, target: Target, role: str | None = None) -> _Source | None:
        true = None if not self.truth else true_predictions(self.model, target, self.truth, role=role)
        return None if true is None else lambda start, stop: true[start:stop]


def _columns(rows: Scored, target: Target) -> _Source:
    return lambda start, stop: predictions(rows, target, start, stop)


def _known(prediction: FloatArray | None) -> FloatArray:
    assert prediction is not None
    return prediction


def _in_memory(systems: _Systems, tasks: Tasks, settings: IntervalsConfig) -> Measurements:
    model = systems.model
    cluster, clusters = clusters_of(model.group, len(model))
    resampled = len(model) <= settings.bootstrap_rows
    method = _method(settings, resampled, model.group is not None)
    found, effects = [], {}
    for target in targets(tasks):
        rows = {system: examples(model, target, source(0, len(model))) for system, source in systems.of(target).items()}
        values = {system: measure(one, target.task) for system, one in rows.items()}
        estimates = {system: _without_errors(target, of_system) for system, of_system in values.items()}
        cluster_of = cluster[target.rows(model)]
        samples = [Sample(system, one, cluster_of, _with_interval(target, system)) for system, one in rows.items()]
        if settings.draws and resampled:
            drawn = bootstrap(samples, clusters, replicates=settings.draws, seed=settings.seed)
            for (system, name), draws in drawn.items():
                estimates[system][name] = replace(estimates[system][name], draws=draws)
        if settings.draws:
            for sample in samples:
                for name in sample.metrics:
                    influence = METRICS[name].influences(sample.rows)
                    if influence is not None:
                        pulls = np.asarray(np.bincount(cluster_of, influence, clusters), np.float64)
                        estimates[sample.key][name] = replace(estimates[sample.key][name], pulls=pulls)
        if target.task.kind == "multiclass" or systems.first not in rows:
            bins: tuple[Bin, ...] = ()
        else:
            bins = reliability(rows[systems.first], RELIABILITY_BINS)
        present = int(np.count_nonzero(np.bincount(cluster_of, minlength=1)))
        found.append(_measured(target, systems.first, values, estimates, present, settings, method, bins))
        main = systems.main_effects(target)
        if main is not None:
            effects[target.key] = measure(examples(model, target, main(0, len(model))), target.task, RANKING)
    return Measurements(_corrected(found), settings, method, clusters, model.group is not None, effects)


def _from_files(
    systems: _Systems, tasks: Tasks, settings: IntervalsConfig, folder: Path, bucket_rows: int
) -> Measurements:
    model, by_user = systems.model, systems.model.group is not None
    with Spill(folder / "clusters") as spill:
        cluster, clusters = cluster_numbers(model.group, len(model), spill)
    method = _method(settings, False, by_user)
    found, effects = [], {}
    for target in targets(tasks):
        kind, values, estimates, present = target.task.kind, {}, {}, 0
        bins: tuple[Bin, ...] = ()
        with tempfile.TemporaryDirectory(dir=folder) as place:
            for system, source in systems.of(target).items():
                is_first = system == systems.first
                streamed = measure_stream(
                    _stream(model, target, source, cluster),
                    kind,
                    clusters,
                    Path(place),
                    by_user=by_user,
                    influence=_with_interval(target, system) if settings.draws else (),
                    table=RELIABILITY_BINS if is_first and kind != "multiclass" else 0,
                    bucket_rows=bucket_rows,
                )
                values[system], present = streamed.values, streamed.clusters
                estimates[system] = {
                    name: replace(estimate, pulls=streamed.pulls.get(name))
                    for name, estimate in _without_errors(target, streamed.values).items()
                }
                bins = streamed.bins or bins
            found.append(_measured(target, systems.first, values, estimates, present, settings, method, bins))
            main = systems.main_effects(target)
            if main is not None:
                stream = _stream(model, target, main, cluster)
                one = measure_stream(
                    stream, kind, clusters, Path(place), by_user=by_user, names=RANKING, bucket_rows=bucket_rows
                )
                effects[target.key] = one.values
    return Measurements(_corrected(found), settings, method, clusters, by_user, effects)


def _stream(model: Scored, target: Target, source: _Source, cluster: NDArray[np.int32]) -> Stream:
    def rows() -> Iterator[tuple[Examples, NDArray[np.int32]]]:
        for start, stop in pieces(len(model)):
            kept = target.rows(model, start, stop)
            if kept.any():
                yield (
                    examples(model, target, source(start, stop), start=start, stop=stop),
                    read(cluster, start, stop)[kept],
                )

    return rows


def _method(settings: IntervalsConfig, resampled: bool, by_user: bool) -> str:
    whom = "users" if by_user else "rows"
    if not settings.draws:
        return "none"
    if resampled:
        return f"Poisson bootstrap over {whom}, {settings.draws} draws"
    return f"influence function clustered by {'user' if by_user else 'row'}"


def _with_interval(target: Target, system: str) -> list[str]:
    """The metrics whose error is asked for; the baseline's ranking has none."""
    left_out = NOT_RESAMPLED | (CERTAIN if system == "baseline" else frozenset())
    return [metric.name for metric in metrics_for(target.task.kind) if metric.name not in left_out]


def _without_errors(target: Target, values: Values) -> dict[str, Estimate]:
    return {metric.name: Estimate(values[metric.name]) for metric in metrics_for(target.task.kind)}


def _measured(
    target: Target,
    first: str,
    values: Mapping[str, Values],
    estimates: Mapping[str, Mapping[str, Estimate]],
    clusters: int,
    settings: IntervalsConfig,
    method: str,
    bins: tuple[Bin, ...],
) -> Measured:
    lines, kind = [], target.task.kind
    each = {system: dict(of_system) for system, of_system in estimates.items()}
    for name in CERTAIN & each.get("baseline", {}).keys():
        one, like = each["baseline"][name], each[first][name] if first in each else None
        if one.value is not None and like is not None:
            each["baseline"][name] = Estimate(
                one.value,
                draws=None if like.draws is None else np.full(like.draws.size, one.value),
                pulls=None if like.pulls is None else np.zeros(like.pulls.size),
            )
    counts: Values = next(iter(values.values()), {"rows": 0})
    for metric in metrics_for(kind):
        name = metric.name
        of = {system: of_system[name] for system, of_system in each.items()}
        model, best = of.get(first), of.get("optimum")
        compared = model is not None and metric.higher_is_better is not None
        line = FigureRow(
            target=target.key,
            task=target.task.name,
            metric=name,
            higher_is_better=metric.higher_is_better,
            headline=name in HEADLINE[kind],
            rows=int(counts["rows"] or 0),
            positives=None if kind != "binary" else int(counts.get("positives") or 0),
            users=clusters,
            systems={system: _figure(one, name, clusters, settings) for system, one in of.items()},
            differences={
                system: _difference(model, one, clusters, settings)
                for system, one in of.items()
                if compared and model is not None and system != first
            },
            share_of_attainable=(_share(model, best, clusters, settings) if name == "auc" and model and best else None),
            method="none" if name in NOT_RESAMPLED else method,
        )
        lines.append(line)
    return Measured(target, values, tuple(lines), bins)


def _figure(one: Estimate, metric: str, clusters: int, settings: IntervalsConfig) -> Figure:
    error = None if one.pulls is None else spread(one.pulls, clusters)
    if one.draws is not None:
        return Figure(value=one.value, **_ends(one.draws, error, settings))
    return figure_of(one.value, error, METRICS[metric].scale, settings.confidence)


def _difference(model: Estimate, other: Estimate, clusters: int, settings: IntervalsConfig) -> Difference:
    if model.value is None or other.value is None:
        return Difference()
    value = model.value - other.value
    error = None
    if model.pulls is not None and other.pulls is not None:
        error = spread(model.pulls - other.pulls, clusters)
    if model.draws is not None and other.draws is not None:
        draws = model.draws - other.draws
        return Difference(value=value, p_value=p_value(draws, error), **_ends(draws, error, settings))
    return difference_of(value, error, settings.confidence)


def _share(model: Estimate, best: Estimate, clusters: int, settings: IntervalsConfig) -> Figure:
    """(AUC − 0.5) / (optimum's AUC − 0.5), paired."""
    value = share_of_attainable(model.value, best.value)
    if value is None or best.value is None:
        return Figure(value=value)
    error = None
    if model.pulls is not None and best.pulls is not None:
        error = spread((model.pulls - value * best.pulls) / (best.value - 0.5), clusters)
    if model.draws is not None and best.draws is not None:
        reach = best.draws - 0.5
        draws = (model.draws - 0.5) / np.where(reach > 0, reach, np.nan)
        return Figure(value=value, **_ends(draws, error, settings))
    return figure_of(value, error, "linear", settings.confidence)


def _ends(draws: FloatArray, error: Spread | None, settings: IntervalsConfig) -> dict[str, float]:
    found = interval(draws, settings.confidence, error)
    return {} if found is None else {"low": found[0], "high": found[1]}


def _corrected(measured: Sequence[Measured]) -> tuple[Measured, ...]:
    """The same with the p-values of each metric and system corrected over the targets."""
    p_values: dict[tuple[str, str], dict[str, float | None]] = {}
    for one in measured:
        for line in one.rows:
            for system, difference in line.differences.items():
                p_values.setdefault((line.metric, system), {})[line.target] = difference.p_value
    corrected = {key: holm(of_targets) for key, of_targets in p_values.items()}

    def line_of(line: FigureRow) -> FigureRow:
        differences = {
            system: difference.model_copy(update={"p_corrected": corrected[line.metric, system][line.target]})
            for system, difference in line.differences.items()
        }
        return line.model_copy(update={"differences": differences})

    return tuple(replace(one, rows=tuple(line_of(line) for line in one.rows)) for one in measured)
