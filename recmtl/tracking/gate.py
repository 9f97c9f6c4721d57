"""The registry's gate: what a model must show before it may be the champion.

In: a :class:`~recmtl.findings.Report` and a :class:`GateConfig`. Out: a :class:`~recmtl.findings.Verdict`, every check
in one sentence with its figures. Pure: it measures nothing and asks nobody.

A permitted loss is a test of non-inferiority: the worse end of the paired interval of the difference must stay within
it, so a model that nobody can tell apart from a much worse one does not pass. Where every comparison must succeed, none
needs a correction for their number (an intersection-union test, Berger 1982); where one alone may refuse, as slices
do, the intervals are widened for the number of slices (Bonferroni), or chance would refuse a good model.
"""

import difflib
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from statistics import NormalDist
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from recmtl.comparing import holm
from recmtl.errors import UserError
from recmtl.findings import Check, Difference, Drift, Figure, FigureRow, RankingRow, Report, SliceRow, Verdict
from recmtl.metrics import METRICS
from recmtl.settings import Settings
from recmtl.tasks import Tasks

__all__ = [
    "Bound",
    "CalibrationBounds",
    "CoherenceBounds",
    "Compare",
    "DriftBounds",
    "GateConfig",
    "LatencyBounds",
    "PackageChecks",
    "judge",
    "verdict_tags",
]

MODEL, CHAMPION, BASELINE = "model", "champion", "baseline"
"""Systems of a report."""
MAIN = ("auc", "macro_auc", "rmse")
"""What ``main`` stands for: the first of these that a target has."""
RANKING = ("ndcg", "map", "recall", "mrr")
"""Metrics of :class:`~recmtl.findings.RankingRow`, all better when higher."""
_TAG_LENGTH = 5000
_FAILED_TAGS = 30
_WEIGHT = ("guard", "package", "metric", "floor", "calibration", "slice", "coherence", "drift")
"""Groups of checks, the weightiest first."""


class _Rule(Settings):
    """What a rule is about."""

    metric: str
    """TARGET.METRIC, as in metrics.json: click.auc, stars.rmse, click.ndcg@10 (of a ranking). TARGET may be *, every
    task that has the metric; METRIC may be main: auc, macro_auc or rmse, by the kind of task."""
    slice: str | None = None
    """Judge it in the parts of this slice instead of all rows."""
    value: str | None = None
    """The one part of the slice; left out: every part."""
    by: Literal["request", "user"] | None = None
    """Of a ranking: within what rows are ranked; left out: every one that the report has."""
    scored_by: str | None = None
    """Of a ranking: by what, `fused` or a prediction column; left out: every one that the report has."""
    required: bool = False
    """Whether a lack of evidence (no rows, a slice too small, no interval) refuses. With no champion, a comparison
    never does."""

    @field_validator("metric")
    @classmethod
    def _a_metric(cls, metric: str) -> str:
        target, dot, name = metric.rpartition(".")
        bare, at, k = name.partition("@")
        if not dot or not target:
            raise ValueError(f"{metric!r}: expected TARGET.METRIC, such as click.auc or *.main")
        if bare in RANKING:
            if at and not k.isdecimal():
                raise ValueError(f"{metric!r}: expected {bare}@K, such as {bare}@10")
        elif at or (name not in METRICS and name != "main"):
            raise ValueError(f"{metric!r}: there is no metric {name!r}{_nearest(name, [*METRICS, *RANKING, 'main'])}")
        return metric

    @model_validator(mode="after")
    def _fits_together(self) -> "_Rule":
        if self.value is not None and self.slice is None:
            raise ValueError(f"{self.metric}: `value` names a part of a slice; say which with `slice`")
        if self.ranks and self.slice is not None:
            raise ValueError(f"{self.metric}: a ranking is not measured in slices")
        if not self.ranks and (self.by or self.scored_by):
            raise ValueError(f"{self.metric}: `by` and `scored_by` belong to rankings ({', '.join(RANKING)})")
        return self

    @property
    def target(self) -> str:
        """The target, or *."""
        return self.metric.rpartition(".")[0]

    @property
    def name(self) -> str:
        """The metric, without its k."""
        return self.metric.rpartition(".")[2].partition("@")[0]

    @property
    def k(self) -> int | None:
        """Of a ranking."""
        k = self.metric.partition("@")[2]
        return int(k) if k else None

    @property
    def ranks(self) -> bool:
        """Whether it is about a ranking."""
        return self.name in RANKING


class Compare(_Rule):
    """The model against the champion on the same rows, by the paired interval of their difference."""

    margin: float | None = Field(default=None, ge=0.0)
    """It must be better by more than this, in the metric's units: the worse end of the interval lies beyond it. 0:
    significantly better."""
    permitted_loss: float | None = Field(default=None, ge=0.0)
    """It may be worse by this much, in the metric's units, and not more."""
    relative_loss: float | None = Field(default=None, ge=0.0, lt=1.0)
    """The same as a share of the champion's figure: 0.01 is one per cent of it."""
    unsure: Literal["refuse", "pass"] | None = None
    """When the interval reaches past the permitted loss but does not lie beyond it, so that nobody can tell: refuse or
    pass. Left out: refuse over all rows; pass in slices, whose intervals are wide."""

    @model_validator(mode="after")
    def _asks_something(self) -> "Compare":
        if self.margin is None and self.permitted_loss is None and self.relative_loss is None:
            raise ValueError(f"{self.metric}: give `margin`, `permitted_loss` or `relative_loss`")
        if self.permitted_loss is not None and self.relative_loss is not None:
            raise ValueError(f"{self.metric}: give `permitted_loss` or `relative_loss`, not both")
        if not self.ranks and self.name != "main" and METRICS[self.name].higher_is_better is None:
            raise ValueError(
                f"{self.metric}: neither direction of {self.name} is better; bound it instead of comparing"
            )
        return self


class Bound(_Rule):
    """The model's own figure against a number."""

    at_least: float | None = None
    """Lowest figure that passes."""
    at_most: float | None = None
    """Highest figure that passes."""
    judged_on: Literal["value", "interval"] = "value"
    """The figure itself, or the worse end of its interval."""

    @model_validator(mode="after")
    def _asks_something(self) -> "Bound":
        if self.at_least is None and self.at_most is None:
            raise ValueError(f"{self.metric}: give `at_least` or `at_most`")
        if self.at_least is not None and self.at_most is not None and self.at_least > self.at_most:
            raise ValueError(f"{self.metric}: `at_least` is above `at_most`, so nothing passes")
        return self


class CalibrationBounds(Settings):
    """How far the probabilities may be off."""

    of: Literal["raw", "calibrated", "both"] = "raw"
    """The probabilities as the model predicts them, as the package's calibration changes them (which scoring gives when
    asked for), or both. Calibrated figures are of the log before any sampling of negatives, and have no interval."""
    targets: tuple[str, ...] | None = None
    """Which; left out: every one that has these figures."""
    ratio: tuple[float, float] | None = (0.9, 1.1)
    """Lowest and highest mean prediction over mean label."""
    ece: float | None = Field(default=None, ge=0.0)
    """Highest expected calibration error."""
    judged_on: Literal["value", "interval"] = "value"
    """The figure itself, or both ends of its interval."""
    required: bool = False
    """Whether a lack of evidence refuses."""

    @model_validator(mode="after")
    def _has_what_it_judges(self) -> "CalibrationBounds":
        if self.of != "raw" and self.judged_on == "interval":
            raise ValueError("`judged_on: interval` goes with `of: raw`: calibrated figures have no interval")
        return self


class CoherenceBounds(Settings):
    """How often there may be what cannot be."""

    predictions: float | None = Field(default=0.01, ge=0.0, le=1.0)
    """Highest share of rows with predictions that exclude each other, such as p(purchase) above p(click)."""
    labels: float | None = Field(default=None, ge=0.0, le=1.0)
    """Highest share of rows with labels that do."""


class DriftBounds(Settings):
    """How far the evaluated rows may be from the champion's training data (with no champion, from the model's own)."""

    psi: float | None = Field(default=0.25, ge=0.0)
    """Highest population stability index of a feature."""
    unseen: float | None = Field(default=None, ge=0.0, le=1.0)
    """Highest share of a feature's values that the training's vocabulary lacks."""
    label_change: float | None = Field(default=None, ge=0.0)
    """Highest relative change of a target's mean label: 0.5 is by half."""


class LatencyBounds(Settings):
    """Milliseconds that a batch may take in a fresh process on this machine; what is left out is shown, not judged."""

    one_row_p50: float | None = Field(default=None, gt=0.0)
    """Median of a batch of one row."""
    one_row_p99: float | None = Field(default=None, gt=0.0)
    """99th percentile of a batch of one row."""
    hundred_rows_p50: float | None = Field(default=None, gt=0.0)
    """Median of a batch of a hundred rows."""
    hundred_rows_p99: float | None = Field(default=None, gt=0.0)
    """99th percentile of a batch of a hundred rows."""


class PackageChecks(Settings):
    """The package itself, tried in a process that has only it (:func:`recmtl.tracking.trial.trial`)."""

    tolerance: float = Field(default=1e-4, ge=0.0)
    """Largest difference from what the evaluation predicted, relative to the prediction where that is above 1."""
    rows: int = Field(default=1000, ge=1)
    """Rows to predict again."""
    seconds: float = Field(default=300.0, gt=0.0)
    """Longest that the whole trial may take."""
    latency: LatencyBounds | None = LatencyBounds()
    """Bounds of its latency; null does not measure it."""


class GateConfig(Settings):
    """What a model must pass to be the champion.

    Left as it is: no task's main metric may be worse than the baseline's, or than the champion's by more than 1 % of
    it; one must be significantly better than the baseline's, and one than the champion's; no guard may fail, and the
    package must work.
    """

    compare: tuple[Compare, ...] = (Compare(metric="*.main", relative_loss=0.01),)
    """Against the champion; with no champion none of these is judged, and the other checks decide."""
    at_least_one_better: Literal["significantly", "on average", "no"] = "significantly"
    """Whether one of the comparisons over all rows must be better: significantly (p below 1 − confidence, corrected
    over them), or by its figure alone. Without it, small permitted losses add up from champion to champion."""
    baseline: bool = True
    """Whether no target's main metric may be significantly worse than the baseline's, which knows train's means alone,
    and one must be significantly better; champion or not."""
    bounds: tuple[Bound, ...] = ()
    """Floors and ceilings, champion or not."""
    calibration: CalibrationBounds | None = None
    """Bounds of the calibration."""
    coherence: CoherenceBounds | None = None
    """Bounds of what cannot be."""
    drift: DriftBounds | None = None
    """Bounds of how far the data have moved."""
    guards: bool = True
    """Whether a guard of the evaluation that failed refuses."""
    package: PackageChecks | None = PackageChecks()
    """Whether the package is tried, and what it must show; null: not tried."""

    def check(self, tasks: Tasks) -> None:
        """Refuse targets that no task of the config has, and metrics of another kind of task.

        Raises:
            ValueError: naming the field and the nearest name.
        """
        kinds: dict[str, str] = {name: task.kind for name, task in tasks.items()}
        kinds |= {f"{name}_given_{task.parent}": task.kind for name, task in tasks.items() if task.parent}
        for where, rule in self._rules():
            if rule.target == "*":
                continue
            if rule.target not in kinds:
                raise ValueError(
                    f"{where}.metric: {rule.metric}: there is no task {rule.target!r}{_nearest(rule.target, kinds)}"
                )
            if not rule.ranks and rule.name != "main" and kinds[rule.target] not in METRICS[rule.name].kinds:
                known = [name for name, metric in METRICS.items() if kinds[rule.target] in metric.kinds]
                raise ValueError(
                    f"{where}.metric: {rule.metric}: a task of kind {kinds[rule.target]} has no {rule.name}"
                    f"{_nearest(rule.name, known)}"
                )
        for target in (self.calibration and self.calibration.targets) or ():
            if target not in kinds:
                raise ValueError(
                    f"registry.gate.calibration.targets: there is no task {target!r}{_nearest(target, kinds)}"
                )

    def _rules(self) -> Iterator[tuple[str, _Rule]]:
        for field in ("compare", "bounds"):
            for number, rule in enumerate(getattr(self, field)):
                yield f"registry.gate.{field}.{number}", rule


def judge(report: Report, gate: GateConfig, package_checks: Sequence[Check] = ()) -> Verdict:
    """What the gate makes of a report.

    Args:
        report: what the evaluation found; its ``about.systems`` says whether there is a champion. Its own verdict is
            not read.
        gate: what a model must pass.
        package_checks: of :func:`recmtl.tracking.trial.trial`.

    Returns:
        promote or refuse, every check, and the reasons, the weightiest first.

    Raises:
        UserError: the gate names a target, metric or slice that the report cannot have.
    """
    judged = _Judged(report, gate, package_checks)
    checks = tuple(sorted(judged.checks, key=lambda check: _WEIGHT.index(check.group)))
    failed = [check.text for check in checks if check.passed is False]
    lacking = [check.text for check in checks if check.passed is None and check.name in judged.required]
    if failed or lacking:
        return Verdict(decision="refuse", reasons=(*failed, *lacking), checks=checks)
    skipped = [check for check in checks if check.passed is None and check.group != "package"]  # no bound, no question
    reasons = [*judged.praise]
    if not judged.has_champion:
        reasons.append("There is no champion to compare with, so the absolute checks alone decide.")
        skipped = [check for check in skipped if not check.name.endswith(" vs champion")]
    reasons.append(f"{_count(sum(check.passed is True for check in checks), 'check')} passed and none failed.")
    if skipped:
        reasons.append(f"Not judged: {_listed([check.name for check in skipped])}.")
    return Verdict(decision="promote", reasons=tuple(reasons), checks=checks)


class _Row:
    """A figure of the report that a rule is about, whatever section it is from."""

    def __init__(self, name: str, target: str, metric: str, *, higher: bool | None, slice_: str | None = None) -> None:
        self.name, self.target, self.metric, self.higher, self.slice = name, target, metric, higher, slice_
        self.model: Figure | None = None
        self.champion: Figure | None = None
        self.difference: Difference | None = None
        self.small: str | None = None
        """Why there is too little of it to judge."""


class _Judged:
    """The checks of one report as they are made."""

    def __init__(self, report: Report, gate: GateConfig, package_checks: Sequence[Check]) -> None:
        self.report = report
        self.checks: list[Check] = []
        self.required: set[str] = set()
        """Names of checks that were not judged and had to be."""
        self.praise: list[str] = []
        self.has_champion = CHAMPION in report.about.systems
        self._figures: dict[str, dict[str, FigureRow]] = {}
        for figure in report.figures:
            self._figures.setdefault(figure.target, {})[figure.metric] = figure
        self._compare(gate)
        if gate.baseline:
            self._baseline()
        for number, bound in enumerate(gate.bounds):
            for row in self._rows(bound, f"registry.gate.bounds.{number}"):
                self._bound(bound, row)
        if gate.calibration is not None:
            self._calibration(gate.calibration)
        if gate.coherence is not None:
            self._coherence(gate.coherence)
        if gate.drift is not None:
            self._drift(gate.drift)
        if gate.guards:
            self._guards()
        if gate.package is not None:
            self._package(package_checks)

    # Against the champion

    def _compare(self, gate: GateConfig) -> None:
        overall: list[tuple[_Row, Difference]] = []
        judged = 0
        for number, rule in enumerate(gate.compare):
            rows = self._rows(rule, f"registry.gate.compare.{number}")
            known = [row for row in rows if self.has_champion and row.small is None and _interval(row.difference)]
            unsure = rule.unsure or ("pass" if rule.slice is not None else "refuse")
            widening = _widening(len(known) if unsure == "pass" else 1, self.report.about.confidence)
            for row in rows:
                if row not in known:
                    self._not_compared(rule, row)
                    continue
                assert row.difference is not None
                judged += 1
                if rule.slice is None:
                    overall.append((row, row.difference))
                if rule.margin is not None:
                    self._margin(rule.margin, row, row.difference)
                if rule.permitted_loss is not None or rule.relative_loss is not None:
                    self._loss(rule, row, row.difference, unsure, widening)
        if not self.has_champion or not gate.compare:
            return
        if not judged:
            self._add(
                "anything vs champion",
                "metric",
                False,
                "Nothing could be compared with the champion, so nobody can tell whether the model is better.",
            )
        elif gate.at_least_one_better != "no" and any(rule.slice is None for rule in gate.compare):
            self._one_better(gate.at_least_one_better, overall)

    def _one_better(self, how: str, rows: Sequence[tuple[_Row, Difference]]) -> None:
        alpha = 1.0 - self.report.about.confidence
        better = []
        names = {row.name for row, _ in rows}
        wider = _widening(len(names), self.report.about.confidence)
        # Over what is compared here, whatever the metrics: the report corrects each metric over its targets.
        known = {row.name: difference.p_value for row, difference in rows}
        corrected = holm(known) if None not in known.values() else dict.fromkeys(known)
        for row, difference in rows:
            p_value = corrected[row.name]
            low, _ = _gain(difference, row.higher, wider if p_value is None else 1.0)
            surely = low > 0 and (p_value is None or p_value < alpha)
            if surely or (how == "on average" and _signed(difference.value, row.higher) > 0):
                better.append((row, difference))
        better = list({row.name: (row, difference) for row, difference in better}.values())
        if better:
            told = [f"{row.name} ({self._against(row, difference)})" for row, difference in better]
            text = f"{how.capitalize()} better than the champion in {_listed(told)}."
            self.praise.append(text)
        elif names:
            text = f"Not {how} better than the champion in {_listed(sorted(names))}."
        else:
            text = "No figure over all rows could be compared with the champion's, so none is known to be better."
        self._add("better than champion", "metric", bool(better), text)

    def _not_compared(self, rule: Compare, row: _Row) -> None:
        if not self.has_champion:
            why = "there is no champion to compare with"
        elif row.small is not None:
            why = row.small
        elif row.model is None or row.model.value is None:
            why = "there is no evidence, no row on which it is defined"
        elif row.difference is None or row.difference.value is None:
            why = "the champion has no such figure"
        else:
            why = "the difference from the champion has no interval"
        name = f"{row.name} vs champion"
        self._add(name, "slice" if row.slice else "metric", None, f"{row.name} against the champion: {why}.", row)
        if rule.required and self.has_champion:
            self.required.add(name)

    def _margin(self, margin: float, row: _Row, difference: Difference) -> None:
        low, high = _gain(difference, row.higher)
        what = f"by more than {_number(margin)}" if margin else "significantly"
        if low > margin:
            end = f"better {what}, as required"
        elif high <= margin:
            end = f"not better {what}, as required"
        else:
            end = f"it may be better {what}, as required, but nobody can tell"
        text = f"{row.name}: {self._against(row, difference)}: {end}."
        name, group = f"{row.name} better than champion", "slice" if row.slice else "metric"
        self._add(name, group, low > margin, text, row, difference, margin)

    def _loss(self, rule: Compare, row: _Row, difference: Difference, unsure: str, widening: float) -> None:
        if rule.permitted_loss is not None:
            permitted = rule.permitted_loss
        else:
            assert rule.relative_loss is not None
            if row.champion is None or row.champion.value is None:
                self._not_compared(rule, row)
                return
            permitted = rule.relative_loss * abs(row.champion.value)
        low, high = _gain(difference, row.higher, widening)
        worse_for_sure, within = high < -permitted, low >= -permitted
        if within:
            passed, end = True, f"within the permitted loss of {_number(permitted)}"
        elif worse_for_sure:
            passed, end = False, f"worse than the permitted loss of {_number(permitted)}"
        elif unsure == "pass":
            passed = True
            end = f"not shown to be worse than the permitted loss of {_number(permitted)}"
        else:
            passed = False
            end = (
                f"nobody can tell whether it is within the permitted loss of {_number(permitted)}: it may be worse by "
                f"{_number(-low)}; more rows would tell"
            )
        if widening > 1.0:
            end += f" (interval widened for {row.slice}'s number of parts: gain {_signed_number(low)} to "
            end += f"{_signed_number(high)})"
        text = f"{row.name}: {self._against(row, difference)}: {end}."
        group = "slice" if row.slice else "metric"
        self._add(f"{row.name} vs champion", group, passed, text, row, difference, -permitted)

    def _against(self, row: _Row, difference: Difference) -> str:
        figures = ""
        if row.model is not None and row.champion is not None and None not in (row.model.value, row.champion.value):
            figures = f"{_number(row.model.value)} against the champion's {_number(row.champion.value)}, "
        interval = f"{_signed_number(difference.low)} to {_signed_number(difference.high)}"
        direction = " (lower is better)" if row.higher is False else ""
        return (
            f"{figures}{_signed_number(difference.value)}{direction}, {self.report.about.confidence:.0%} interval "
            f"{interval}"
        )

    # Against numbers

    def _baseline(self) -> None:
        better = []
        mains = {
            target: next((metrics[name] for name in MAIN if name in metrics), None)
            for target, metrics in self._figures.items()
        }
        shown = {target: row for target, row in mains.items() if row is not None and BASELINE in row.systems}
        for target, row in shown.items():
            name, difference = f"{target}.{row.metric}", row.differences.get(BASELINE)
            model, baseline = row.systems.get(MODEL, Figure()).value, row.systems[BASELINE].value
            if model is None or baseline is None or difference is None or not _interval(difference):
                text = f"The model's {name} against the baseline's: there is no evidence, so it is not judged."
                self._add(f"{name} vs baseline", "floor", None, text)
                continue
            low, high = _gain(difference, row.higher_is_better)
            passed = True if low > 0 else False if high < 0 else None
            better += [target] if passed else []
            end = {True: "significantly better", False: "significantly worse", None: "nobody can tell which is better"}
            text = f"The model's {name} is {_number(model)}, the baseline's {_number(baseline)}: {end[passed]}."
            self._add(f"{name} vs baseline", "floor", passed, text, value=model, bound=baseline)
        if shown and not better:
            text = "In no task is the model significantly better than the baseline, which knows train's means alone."
            self._add("anything vs baseline", "floor", False, text)

    def _bound(self, bound: Bound, row: _Row) -> None:
        for limit, word, sign in ((bound.at_least, "at least", 1.0), (bound.at_most, "at most", -1.0)):
            if limit is None:
                continue
            name, group = f"{row.name} {word} {_number(limit)}", "slice" if row.slice else "floor"
            figure = row.model
            why = row.small or "there is no evidence, no row on which it is defined"
            on = None if figure is None else figure.value
            if on is not None and figure is not None and bound.judged_on == "interval":
                on = figure.low if sign > 0 else figure.high
                why = row.small or "it has no interval"
            if row.small is not None or on is None or figure is None:
                self._add(name, group, None, f"{row.name}: {why}, so {word} {_number(limit)} is not judged.", row)
                if bound.required:
                    self.required.add(name)
                continue
            passed = sign * on >= sign * limit
            end = f"{word} {_number(limit)}" if passed else f"not {word} {_number(limit)}, as required"
            if bound.judged_on == "interval":
                end = f"the {'lower' if sign > 0 else 'upper'} end is {end}"
            text = f"{row.name}: {_figure(figure, self.report.about.confidence)}: {end}."
            self._add(name, group, passed, text, row, figure, limit)

    def _calibration(self, bounds: CalibrationBounds) -> None:
        wanted: list[tuple[str, float | None, float | None]] = []
        if bounds.ratio is not None:
            wanted.append(("calibration", bounds.ratio[0], bounds.ratio[1]))
        if bounds.ece is not None:
            wanted.append(("ece", None, bounds.ece))
        targets = bounds.targets or tuple(
            target for target, metrics in self._figures.items() if {"calibration", "ece"} & metrics.keys()
        )
        for target in targets:
            self._known_target(target, "registry.gate.calibration.targets")
            for metric, lowest, highest in wanted:
                for of in ("raw", "calibrated") if bounds.of == "both" else (bounds.of,):
                    self._calibrated(bounds, of, target, metric, lowest, highest)

    def _calibrated(
        self, bounds: CalibrationBounds, of: str, target: str, metric: str, lowest: float | None, highest: float | None
    ) -> None:
        name = f"calibration of {target}" if metric == "calibration" else f"{target}.{metric}"
        if of == "calibrated":
            name += ", calibrated"
            figure = self._calibrated_figure(target, metric)
        else:
            figure_row = self._figures.get(target, {}).get(metric)
            figure = figure_row.systems.get(MODEL) if figure_row else None
        ends: tuple[float | None, float | None] = (None, None)
        if figure is not None:
            ends = (figure.low, figure.high) if bounds.judged_on == "interval" else (figure.value, figure.value)
        low, high = ends
        required = f"at most {_number(highest)}" if lowest is None else f"{_number(lowest)} to {_number(highest)}"
        row = _Row(name, target, metric, higher=None)
        if figure is None or low is None or high is None:
            why = f"there is no figure of the {of} predictions"
            self._add(name, "calibration", None, f"{name}: {why}, so {required} is not judged.", row)
            if bounds.required:
                self.required.add(name)
            return
        assert highest is not None
        passed = (lowest is None or low >= lowest) and high <= highest
        said = {"calibration": "mean prediction over mean label", "ece": "expected calibration error"}[metric]
        end = f"within {required}" if passed else f"not within {required}, as required"
        text = f"{name}: {said}, {of} predictions, {_figure(figure, self.report.about.confidence)}: {end}."
        outside = lowest if lowest is not None and low < lowest else highest
        self._add(name, "calibration", passed, text, row, figure, outside)

    def _calibrated_figure(self, target: str, metric: str) -> Figure | None:
        """What the package's calibration gives on the rows of the report; None without a calibration."""
        for line in self.report.calibration:
            if line.target == target and line.chosen and line.split == self.report.about.split:
                return Figure(value=line.ratio if metric == "calibration" else line.ece)
        return None

    # What cannot be, what has moved, what the evaluation refused

    def _coherence(self, bounds: CoherenceBounds) -> None:
        for kind, limit in (("prediction", bounds.predictions), ("label", bounds.labels)):
            if limit is None:
                continue
            rows = [row for row in self.report.coherence if row.kind == kind and row.system in (None, MODEL)]
            if not rows:
                self._add(f"coherence of {kind}s", "coherence", None, f"No {kind}s were checked for coherence.")
            for row in rows:
                share = row.share
                if share is None:
                    self._add(row.text, "coherence", None, f"{row.text}: there are no rows to judge.")
                    continue
                end = f"{'at most' if share <= limit else 'more than'} the permitted {limit:.4g}"
                text = f"{row.text}: on {row.rows:,} of {row.of:,} rows, a share of {share:.4g}, {end}."
                self._add(row.text, "coherence", share <= limit, text, value=share, bound=limit)

    def _drift(self, bounds: DriftBounds) -> None:
        drifts = {drift.against: drift for drift in self.report.drift}
        drift = drifts.get(CHAMPION) or drifts.get(MODEL)
        for field, limit, what in (
            ("psi", bounds.psi, "population stability index"),
            ("unseen", bounds.unseen, "share of unseen values"),
            ("label_change", bounds.label_change, "relative change of the mean label"),
        ):
            if limit is None:
                continue
            values = [] if drift is None else _moved(drift, field)
            name = f"drift: {what}"
            if drift is None or not values:
                self._add(name, "drift", None, f"{name}: there is nothing to judge.")
                continue
            values.sort(key=lambda item: -item[1])
            over = [f"{where} {_number(value)}" for where, value in values if value > limit]
            worst, value = values[0]
            end = (
                f"above the permitted {_number(limit)} in {_listed(over)}"
                if over
                else f"highest in {worst} with {_number(value)}, permitted {_number(limit)}"
            )
            text = f"{name} against the training data of the {drift.against}: {end}."
            self._add(name, "drift", not over, text, value=value, bound=limit)

    def _guards(self) -> None:
        guards = self.report.guards
        if not guards:
            self._add("guards", "guard", None, "No guard of the protocol was looked at.")
            return
        failed = [guard for guard in guards if guard.status == "failed"]
        for guard in failed:
            self._add(f"guard {guard.name}", "guard", False, f"Guard {guard.name} failed: {guard.text}")
        if not failed:
            allowed = [f"{guard.name} ({guard.reason})" for guard in guards if guard.status == "allowed"]
            text = f"None of {_count(len(guards), 'guard')} failed"
            text += f"; allowed by the config: {_listed(allowed)}." if allowed else "."
            self._add("guards", "guard", True, text)

    def _package(self, checks: Sequence[Check]) -> None:
        self.checks += checks
        if not checks:
            self._add("package", "package", None, "The package was not tried in a process of its own.")
            self.required.add("package")

    # What a rule is about

    def _rows(self, rule: _Rule, where: str) -> list[_Row]:
        if rule.ranks:
            return list(self._ranking_rows(rule, where))
        if rule.target == "*":
            targets = [name for name in self._figures if "_given_" not in name or name in self._tasks()]
        else:
            self._known_target(rule.target, where)
            targets = [rule.target]
        rows: list[_Row] = []
        for target in targets:
            metric = self._metric(rule, target, where)
            if metric is None:
                continue
            if rule.slice is None:
                rows.append(self._row(target, metric))
            else:
                rows += self._slice_rows(rule, where, target, metric)
        return rows

    def _metric(self, rule: _Rule, target: str, where: str) -> str | None:
        """The metric that a rule means for a target; None where * meets a target without it."""
        there = self._figures.get(target, {})
        if rule.name == "main":
            return next((name for name in MAIN if name in there), None if rule.target == "*" else "main")
        if rule.name in there:
            return rule.name
        if rule.target == "*":
            return None
        kind = self._tasks().get(target)
        if there and (kind is None or kind not in METRICS[rule.name].kinds):
            raise UserError(f"{where}.metric: {target} has no metric {rule.name!r}{_nearest(rule.name, there)}")
        return rule.name

    def _row(self, target: str, metric: str) -> _Row:
        known = METRICS.get(metric)
        row = _Row(f"{target}.{metric}", target, metric, higher=known.higher_is_better if known else None)
        found = self._figures.get(target, {}).get(metric)
        if found is not None:
            row.model, row.champion = found.systems.get(MODEL), found.systems.get(CHAMPION)
            row.difference = found.differences.get(CHAMPION)
        return row

    def _slice_rows(self, rule: _Rule, where: str, target: str, metric: str) -> Iterator[_Row]:
        slices = {row.slice for row in self.report.slices}
        if rule.slice not in slices:
            known = _nearest(str(rule.slice), sorted(slices)) or "; the evaluation cut none"
            raise UserError(f"{where}.slice: the report has no slice {rule.slice!r}{known}")
        found = [row for row in self.report.slices if row.slice == rule.slice and row.target == target]
        if rule.value is not None:
            found = [row for row in found if row.value == rule.value] or [
                SliceRow(slice=rule.slice, value=rule.value, target=target, rows=0, small=True, systems={})
            ]
        for part in found:
            name = f"{target}.{metric} in {part.slice}={part.value}"
            row = _Row(name, target, metric, higher=self._row(target, metric).higher, slice_=part.slice)
            row.model = part.systems.get(MODEL, {}).get(metric)
            row.champion = part.systems.get(CHAMPION, {}).get(metric)
            row.difference = part.differences.get(CHAMPION, {}).get(metric)
            if part.small:
                row.small = f"the slice is too small ({_count(part.rows, 'row')}" + (
                    ")" if part.positives is None else f", {_count(part.positives, 'positive')})"
                )
            yield row

    def _ranking_rows(self, rule: _Rule, where: str) -> Iterator[_Row]:
        if rule.target != "*":
            self._known_target(rule.target, where)

        def meant(row: RankingRow) -> bool:
            return (
                rule.target in ("*", row.objective)
                and row.metric == rule.name
                and row.k == rule.k
                and rule.by in (None, row.by)
                and rule.scored_by in (None, row.scored_by)
            )

        found = [row for row in self.report.ranking if meant(row)]
        if self.report.ranking and not found:
            known = sorted({_ranked(row) for row in self.report.ranking})
            raise UserError(f"{where}.metric: the report has no ranking {rule.metric!r}{_nearest(rule.metric, known)}")
        if not found:
            yield _Row(rule.metric, rule.target, rule.name, higher=True)
        for ranking in found:
            name = f"{_ranked(ranking)} of {ranking.scored_by} by {ranking.by}"
            row = _Row(name, ranking.objective, ranking.metric, higher=True)
            row.model, row.champion = ranking.systems.get(MODEL), ranking.systems.get(CHAMPION)
            row.difference = ranking.differences.get(CHAMPION)
            yield row

    def _known_target(self, target: str, where: str) -> None:
        known = {**self._tasks(), **dict.fromkeys(self._figures)}
        if target not in known:
            raise UserError(f"{where}: there is no target {target!r} in the report{_nearest(target, known)}")

    def _tasks(self) -> Mapping[str, Any]:
        """Tasks of the report's config to their kinds: one without a figure is without evidence, and not unknown."""
        tasks = self.report.config.get("tasks") or ()
        return {task["name"]: task.get("kind") for task in tasks if isinstance(task, Mapping) and "name" in task}

    def _add(
        self,
        name: str,
        group: Any,
        passed: bool | None,
        text: str,
        row: _Row | None = None,
        figure: Figure | None = None,
        bound: float | None = None,
        *,
        value: float | None = None,
    ) -> None:
        self.checks.append(
            Check(
                name=name,
                group=group,
                passed=passed,
                text=text[:1].upper() + text[1:] if row is None else text,
                target=row.target if row else None,
                metric=row.metric if row else None,
                slice=row.slice if row else None,
                value=figure.value if figure else value,
                low=figure.low if figure else None,
                high=figure.high if figure else None,
                bound=bound,
            )
        )


def verdict_tags(report: Report) -> dict[str, str]:
    """A verdict as tags of a run or a version: the decision, every check with its figures, each failed one by name."""
    verdict = report.verdict
    marks = {True: "passed", False: "failed", None: "not judged"}
    ordered = sorted(verdict.checks, key=lambda check: (check.passed is not False, check.passed is not None))
    lines = [f"{marks[check.passed]} · {check.name} · {check.text}" for check in ordered]
    tags = {
        "recmtl.gate": verdict.decision,
        "recmtl.gate.reasons": _cut(list(verdict.reasons), "reason") or "none",
        "recmtl.gate.checks": _cut(lines, "check") or "none",
    }
    failed = [check for check in verdict.checks if check.passed is False]
    for check in failed[:_FAILED_TAGS]:
        name = re.sub(r"[^\w.\- :/]", "_", check.name)
        tags[f"recmtl.gate.failed.{name}"[:250]] = check.text[:_TAG_LENGTH]
    return tags


def _cut(lines: Sequence[str], what: str) -> str:
    """As many whole lines as a tag takes, and how many there are more."""
    text = "\n".join(lines)
    kept = len(lines)
    while len(text) > _TAG_LENGTH and kept:
        kept -= 1
        text = "\n".join([*lines[:kept], f"and {_count(len(lines) - kept, 'more ' + what)} in report.json"])
    return text[:_TAG_LENGTH]


def _interval(difference: Difference | None) -> bool:
    if difference is None:
        return False
    ends = (difference.value, difference.low, difference.high)
    return all(end is not None and math.isfinite(end) for end in ends)


def _gain(difference: Difference, higher: bool | None, widening: float = 1.0) -> tuple[float, float]:
    """The interval of how much better the model is, whichever direction is better, widened about the figure."""
    assert difference.value is not None
    assert difference.low is not None
    assert difference.high is not None
    low = difference.value - widening * (difference.value - difference.low)
    high = difference.value + widening * (difference.high - difference.value)
    return (-high, -low) if higher is False else (low, high)


def _signed(value: float | None, higher: bool | None) -> float:
    return 0.0 if value is None else -value if higher is False else value


def _widening(comparisons: int, confidence: float) -> float:
    """How much wider an interval of a normal figure is at the level of Bonferroni for so many comparisons."""
    tail = (1.0 - confidence) / 2.0
    return NormalDist().inv_cdf(1.0 - tail / max(comparisons, 1)) / NormalDist().inv_cdf(1.0 - tail)


def _moved(drift: Drift, field: str) -> list[tuple[str, float]]:
    if field == "psi":
        return [(one.feature, one.psi) for one in drift.features if one.psi is not None]
    if field == "unseen":
        return [(one.feature, one.unseen_now) for one in drift.features if one.unseen_now is not None]
    return [
        (one.target, abs(one.now - one.before) / abs(one.before))
        for one in drift.labels
        if one.now is not None and one.before
    ]


def _ranked(row: RankingRow) -> str:
    return f"{row.objective}.{row.metric}" + (f"@{row.k}" if row.k is not None else "")


def _figure(figure: Figure, confidence: float) -> str:
    if figure.low is None or figure.high is None:
        return _number(figure.value)
    return f"{_number(figure.value)} ({confidence:.0%} interval {_number(figure.low)} to {_number(figure.high)})"


def _number(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.4g}"


def _signed_number(value: float | None) -> str:
    return "undefined" if value is None else f"{value:+.4g}"


def _count(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def _listed(items: Sequence[str], most: int = 6) -> str:
    shown = list(items[:most])
    if len(items) > most:
        shown.append(f"{len(items) - most} more")
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}" if shown else "none"


def _nearest(name: str, known: Any) -> str:
    names = [str(one) for one in known]
    found = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    if found:
        return f"; did you mean {found[0]!r}?"
    return f"; known are {', '.join(names)}" if names else ""
