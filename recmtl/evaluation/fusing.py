"""The weights of a fused score: searched on validation for the NDCG of every objective at once.

In: what a model predicts for validation, which rows are ranked together, a formula (:mod:`recmtl.fusion`). Out: the
:class:`~recmtl.fusion.Fusion` for the package, and the search for the report.

Objectives pull apart: weights that put purchases on top put clicks lower. So the search (Optuna's NSGA-II, Deb et al.
2002) looks for all weights that no others beat in every objective, the Pareto front, starting from each objective's own
prediction alone and from even weights; one point of the front is then taken by a stated preference: the largest sum of
preference · NDCG / the best NDCG that any point has in that objective.

``sum`` and ``product`` rank the same when all their weights are doubled, so theirs sum to 1; those of ``sum`` are
searched in units of one over each column's mean, as a purchase's probability is a hundredth of a click's.

NDCG is that of :mod:`recmtl.evaluation.ranking`: over the rows of a group on which the objective's label is observed,
groups of two such rows or more in which something is gained, each group counting once, ties worth their mean.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from recmtl import findings
from recmtl.calibration import Calibrations
from recmtl.errors import UserError
from recmtl.evaluation.ranking import gains
from recmtl.evaluation.score import Scored
from recmtl.fusion import NAMED, SCORE, Formula, Fusion, expanded, parse_formula
from recmtl.metrics.ranking import ideal_gain, ndcg, ranked
from recmtl.progress import Progress, Silent
from recmtl.settings import Name, Settings
from recmtl.tasks import Tasks

__all__ = ["FEWEST_GROUPS", "FusionConfig", "FusionSearch", "fused_score", "objective_values", "search_fusion"]

By = Literal["request", "user"]
FloatArray: TypeAlias = NDArray[np.float64]
Bools: TypeAlias = NDArray[np.bool_]

FEWEST_GROUPS = 20
"""Groups below which an objective that nobody named is left out."""
_BLOCK = 1 << 21
"""Rows that are worked on at a time where a split may be larger than memory."""
_RANGE = (0.0, 3.0)
"""Of a weight of a stated formula."""
_DIGITS = 6
"""Significant digits of weights: what the report shows is what the package has."""
_POPULATION = 40


class FusionConfig(Settings):
    """How the predictions become one score."""

    formula: str = "product"
    """product: Π p_t ** w_t; sum: Σ w_t · p_t, both over the objectives; or an expression of prediction columns and
    weights, such as `click**a * (1 + purchase)**b`."""
    objectives: tuple[Name, ...] | None = None
    """The tasks whose NDCG counts; left out: all but multiclass ones, where validation has groups to judge them by."""
    by: Literal["auto", "request", "user"] = "auto"
    """What makes a ranked list. auto: the request, where at least half of the rows share theirs with others; else the
    user."""
    k: Annotated[int, Field(ge=1)] = 10
    """How many rows from the top count."""
    trials: Annotated[int, Field(ge=1)] = 200
    """Choices of weights that are tried."""
    prefer: dict[Name, Annotated[float, Field(ge=0, allow_inf_nan=False)]] = {}
    """Objective to how much it counts when a point of the front is chosen; those that are not named count nothing.
    Empty: all alike."""
    ranges: dict[str, tuple[float, float]] = {}
    """Weight of an expression to the lowest and highest value that is tried; by default 0 to 3."""
    choose: dict[str, Annotated[float, Field(allow_inf_nan=False)]] | None = None
    """Take these weights, whatever is preferred: a point that an earlier search showed."""
    calibrated: bool | None = None
    """Whether the formula reads calibrated predictions; left out: where the package has a calibration."""
    max_rows: Annotated[int, Field(ge=1000)] = 500_000
    """Rows that are ranked, of groups drawn by the seed."""

    @model_validator(mode="after")
    def _ranges_rise(self) -> "FusionConfig":
        for name, (low, high) in self.ranges.items():
            if not (np.isfinite([low, high]).all() and low < high):
                raise ValueError(f"ranges.{name}: expected [lowest, highest], got [{low}, {high}]")
        if self.ranges and self.formula in NAMED:
            raise ValueError(f"ranges: the weights of {self.formula} sum to 1; ranges belong to an expression")
        return self

    def check(self, tasks: Tasks) -> None:
        """Refuse what these tasks cannot fill.

        Raises:
            UserError: an unknown objective; an impossible formula; a range or a chosen value of a weight that there is
                not; a prediction that is called ``score`` already.
        """
        known = _rankable(tasks)
        for field, names in (("objectives", self.objectives or ()), ("prefer", self.prefer)):
            for name in names:
                if name not in known:
                    raise UserError(
                        f"evaluation.fusion.{field}: {name!r} is no objective; known are {', '.join(known)}"
                    )
        objectives = self.objectives or known
        if self.prefer and not any(self.prefer.get(name) for name in objectives):
            raise UserError("evaluation.fusion.prefer: at least one objective must count more than 0")
        if self.formula not in NAMED:
            _formula(tasks, self, objectives)


@dataclass(frozen=True)
class FusionSearch:
    """What was found."""

    fusion: Fusion
    """For the package."""
    finding: findings.Fusion
    """For the report."""
    notes: tuple[str, ...] = ()
    """What was left out, and why; how many groups each objective is judged in."""


def fused_score(scored: Scored, fusion: Fusion, tasks: Tasks, calibration: Calibrations | None) -> NDArray[np.float32]:
    """(N,) the scores that a package gives these rows.

    Args:
        scored: uncalibrated predictions.
        fusion, tasks, calibration: the package's.
    """
    found = np.empty(len(scored), np.float32)
    for start in range(0, len(scored), _BLOCK):
        part = {name: np.asarray(values[start : start + _BLOCK]) for name, values in scored.predictions.items()}
        if fusion.calibrated:
            assert calibration is not None, "checked when the fusion went into the package"
            part = calibration.apply(part, tasks)
        found[start : start + _BLOCK] = fusion.apply(part, tasks)
    return found


def objective_values(
    scored: Scored,
    groups: NDArray[np.int32],
    tasks: Tasks,
    score: NDArray[np.floating],
    *,
    objectives: Sequence[str],
    k: int,
    max_rows: int | None = None,
    seed: int = 0,
) -> dict[str, float | None]:
    """Objective → mean NDCG@k of a ranking, None where no group can be judged.

    Args:
        scored: N rows with labels.
        groups: (N,) from 0: which rows are ranked together; −1: in no group.
        tasks: the tasks.
        score: (N,) what sorts the rows.
        objectives: tasks.
        k: rows from the top that count.
        max_rows: at most as many are ranked, of groups drawn by the seed; None: all.
        seed: of that.
    """
    if max_rows is not None:
        rows = _drawn(scored, groups, tasks, objectives, max_rows, seed)
        scored, groups, score = scored.take(rows), groups[rows], score[rows]
    judges = {name: _Judge.of(scored, groups, tasks, name, k) for name in objectives}
    return {name: judge.value(groups, score) if judge.groups else None for name, judge in judges.items()}


def search_fusion(
    scored: Scored,
    groups: NDArray[np.int32],
    by: By,
    tasks: Tasks,
    config: FusionConfig,
    *,
    seed: int,
    calibration: Calibrations | None = None,
    split: str = "validation",
    progress: Progress | None = None,
) -> FusionSearch:
    """Search a formula's weights.

    Args:
        scored: N rows of validation with uncalibrated predictions; never the rows that the score is judged on after.
        groups: (N,) from 0: which rows are ranked together; −1: in no group.
        by: what the groups are.
        tasks: the model's.
        config: formula, objectives, trials, preference.
        seed: of the search, and of the groups that are drawn where there are too many.
        calibration: the package's; read where ``config.calibrated`` says so.
        split: what the rows are, for the report.
        progress: shows trials.

    Raises:
        UserError: an impossible formula or objective; weights to choose that the formula has not; nothing to rank.
    """
    calibrated = calibration is not None if config.calibrated is None else config.calibrated
    if calibrated and calibration is None:
        raise UserError("evaluation.fusion.calibrated: this package has no calibration")
    objectives, notes = _objectives(scored, groups, tasks, config)
    formula = _formula(tasks, config, objectives)
    rows = _drawn(scored, groups, tasks, objectives, config.max_rows, seed)
    scored, groups = scored.take(rows), groups[rows]
    predictions = (
        calibration.apply(scored.predictions, tasks)
        if calibration is not None and calibrated
        else dict(scored.predictions)
    )
    judges = {name: _Judge.of(scored, groups, tasks, name, config.k) for name in objectives}

    def judged(weights: Mapping[str, float]) -> dict[str, float]:
        score = formula(predictions, weights).astype(np.float32)
        return {name: judge.value(groups, score) for name, judge in judges.items()}

    space = _Space.of(formula, config, objectives, predictions)
    tried = _search(space, judged, list(judges), config, seed, progress or Silent())
    points = _points(tried, config, list(judges))
    [chosen] = [point for point in points if point.chosen]
    values = ", ".join(f"{name} {value:.4f}" for name, value in chosen.objectives.items())
    fusion = Fusion(
        formula=formula.text,
        weights=chosen.weights,
        calibrated=calibrated,
        chosen_on=f"{split}: NDCG@{config.k} by {by} {values}; {len(points)} choices tried",
    )
    fusion.check(tasks)
    finding = findings.Fusion(
        formula=formula.text, split=split, by=by, k=config.k, points=points, weights=chosen.weights
    )
    judged_in = ", ".join(f"{name} is judged in {judge.groups:,}" for name, judge in judges.items())
    return FusionSearch(fusion, finding, (*notes, f"fusion, of the groups by {by}: {judged_in}"))


# What is judged


@dataclass(frozen=True)
class _Judge:
    """One objective's NDCG, as a function of the score."""

    rows: Bools
    """(N,): in a group that can be judged, and observed."""
    gain: FloatArray
    """(N,)."""
    ideal: FloatArray
    """(groups,) by rising group."""
    k: int

    @classmethod
    def of(cls, scored: Scored, groups: NDArray[np.int32], tasks: Tasks, objective: str, k: int) -> "_Judge":
        rows = (groups >= 0) & scored.observed[objective]
        gain = np.where(rows, gains(tasks[objective], np.where(rows, scored.labels[objective], 0)), 0.0)
        count = int(groups.max(initial=-1)) + 1
        kept = np.flatnonzero(rows)
        enough = np.bincount(groups[kept], minlength=count) >= 2
        gained = np.bincount(groups[kept], gain[kept], minlength=count) > 0
        rows[kept] = (enough & gained)[groups[kept]]
        order, lists = ranked(groups[rows], np.zeros(int(rows.sum()), np.float32))
        return cls(rows, gain, ideal_gain(lists, gain[rows][order], k), k)

    @property
    def groups(self) -> int:
        return self.ideal.size

    def value(self, groups: NDArray[np.int32], score: NDArray[np.floating]) -> float:
        order, lists = ranked(groups[self.rows], score[self.rows])
        return float(ndcg(lists, self.gain[self.rows][order], self.ideal, self.k).mean())


def _objectives(
    scored: Scored, groups: NDArray[np.int32], tasks: Tasks, config: FusionConfig
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The objectives, and a sentence for each that is left out."""
    config.check(tasks)
    found, notes = [], []
    for name in config.objectives or _rankable(tasks):
        count = _groups_with_gain(scored, groups, tasks, name).sum()
        if config.objectives is None and name not in config.prefer and count < FEWEST_GROUPS:
            notes.append(f"fusion: {name} is no objective, as it can be judged in {count} groups alone")
        elif not count:
            raise UserError(
                f"evaluation.fusion.objectives: no group has two rows on which {name} is observed and something to "
                "gain; leave it out"
            )
        else:
            found.append(name)
    if not found:
        raise UserError("evaluation.fusion: no objective can be judged: there are too few groups of two rows or more")
    return tuple(found), tuple(notes)


def _rankable(tasks: Tasks) -> tuple[str, ...]:
    return tuple(name for name, task in tasks.items() if task.kind != "multiclass")


def _groups_with_gain(scored: Scored, groups: NDArray[np.int32], tasks: Tasks, objective: str) -> Bools:
    """(groups,): two observed rows, and something to gain; a block of rows at a time."""
    count = int(groups.max(initial=-1)) + 1
    rows, total = np.zeros(count, np.int64), np.zeros(count)
    for start in range(0, len(scored), _BLOCK):
        part = slice(start, start + _BLOCK)
        group = groups[part]
        here = np.flatnonzero((group >= 0) & scored.observed[objective][part])
        rows += np.bincount(group[here], minlength=count)
        gain = gains(tasks[objective], np.asarray(scored.labels[objective][part])[here])
        total += np.bincount(group[here], gain, minlength=count)
    return (rows >= 2) & (total > 0)


def _drawn(
    scored: Scored, groups: NDArray[np.int32], tasks: Tasks, objectives: Sequence[str], most: int, seed: int
) -> NDArray[np.intp]:
    """The rows of the groups that some objective can be judged in, or of as many of them, drawn, as may be ranked."""
    useful = np.any([_groups_with_gain(scored, groups, tasks, name) for name in objectives], axis=0)
    size = np.bincount(groups[groups >= 0], minlength=useful.size) * useful
    if size.sum() > most:
        order = np.random.default_rng((seed, 2)).permutation(useful.size)
        useful[order[np.cumsum(size[order]) > most]] = False
    return np.flatnonzero((groups >= 0) & np.append(useful, False)[groups])


# What is tried


def _formula(tasks: Tasks, config: FusionConfig, objectives: Sequence[str]) -> Formula:
    columns = tuple(column for name in tasks for column in tasks.prediction_columns(name))
    if SCORE in columns:
        raise UserError(f"a prediction of this model is called {SCORE!r}, as the fused score would be: rename the task")
    formula = parse_formula(expanded(config.formula, objectives), columns)
    for field, names in (("ranges", config.ranges), ("choose", config.choose or {})):
        for name in names:
            if name not in formula.weights:
                raise UserError(
                    f"evaluation.fusion.{field}: the formula has no weight {name!r}; it has "
                    f"{', '.join(formula.weights) or 'none'}"
                )
    lacking = [name for name in formula.weights if config.choose is not None and name not in config.choose]
    if lacking:
        raise UserError(f"evaluation.fusion.choose: no value for {', '.join(lacking)}")
    return formula


@dataclass(frozen=True)
class _Space:
    """Where weights are looked for."""

    ranges: dict[str, tuple[float, float]]
    """Weight → lowest and highest."""
    unit: dict[str, float] | None
    """``sum`` and ``product``: what a weight is measured in, before all are made to sum to 1."""
    starts: tuple[dict[str, float], ...]
    """What is tried first."""

    @classmethod
    def of(
        cls,
        formula: Formula,
        config: FusionConfig,
        objectives: Sequence[str],
        predictions: Mapping[str, NDArray[np.float32]],
    ) -> "_Space":
        names = formula.weights
        if config.formula not in NAMED:
            ranges = {name: config.ranges.get(name, _RANGE) for name in names}
            even = {name: min(max(1.0, low), high) for name, (low, high) in ranges.items()}
            return cls(ranges, None, (even,))
        sizes = [1.0] * len(names)
        if config.formula == "sum":
            means = [float(np.abs(predictions[objective], dtype=np.float64).mean()) for objective in objectives]
            sizes = [1 / max(mean, 1e-12) for mean in means]
        alone = [{other: float(other == name) for other in names} for name in names]
        return cls(
            dict.fromkeys(names, (0.0, 1.0)), dict(zip(names, sizes, strict=True)), (dict.fromkeys(names, 1.0), *alone)
        )

    def weights(self, found: Mapping[str, float]) -> dict[str, float]:
        """A point of the space as the formula's weights."""
        if self.unit is None:
            return {name: _rounded(value) for name, value in found.items()}
        scaled = {name: value * self.unit[name] for name, value in found.items()}
        total = sum(scaled.values())
        if not total > 0:
            return self.weights(dict.fromkeys(found, 1.0))
        return {name: _rounded(value / total) for name, value in scaled.items()}


def _rounded(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")


_Tried: TypeAlias = list[tuple[dict[str, float], dict[str, float]]]
"""Weights and the objectives' values, in the order in which they were tried."""


def _search(
    space: _Space,
    judged: Callable[[Mapping[str, float]], dict[str, float]],
    objectives: Sequence[str],
    config: FusionConfig,
    seed: int,
    progress: Progress,
) -> _Tried:
    tried: dict[tuple[float, ...], dict[str, float]] = {}

    def value(weights: dict[str, float]) -> dict[str, float]:
        point = tuple(weights.values())
        if point not in tried:
            tried[point] = judged(weights)
        return tried[point]

    names = list(space.ranges)
    if config.choose is not None:
        value({name: config.choose[name] for name in names})
    if not names:
        value({})
    else:
        import optuna

        before = optuna.logging.get_verbosity()
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        try:
            study = optuna.create_study(
                directions=["maximize"] * len(objectives),
                sampler=optuna.samplers.NSGAIISampler(population_size=_POPULATION, seed=seed),
            )
            for start in space.starts:
                study.enqueue_trial(start)
            distributions: dict[str, Any] = {
                name: optuna.distributions.FloatDistribution(low, high) for name, (low, high) in space.ranges.items()
            }
            with progress.bar("fusing", config.trials, "trials") as bar:
                for _ in range(config.trials):
                    trial = study.ask(distributions)
                    study.tell(trial, list(value(space.weights(trial.params)).values()))
                    bar.advance(1)
        finally:
            optuna.logging.set_verbosity(before)
    return [(dict(zip(names, point, strict=True)), values) for point, values in tried.items()]


def _points(tried: _Tried, config: FusionConfig, objectives: Sequence[str]) -> tuple[findings.FusionPoint, ...]:
    values = np.array([[found[name] for name in objectives] for _, found in tried])
    front = _front(values)
    if config.choose is not None:
        chosen = 0  # it was tried first
    else:
        best = values.max(axis=0)
        prefer = np.array([config.prefer.get(name, 0.0) if config.prefer else 1.0 for name in objectives])
        worth = (values / np.where(best > 0, best, 1)) @ prefer
        chosen = int(np.argmax(np.where(front, worth, -np.inf)))
    return tuple(
        findings.FusionPoint(weights=weights, objectives=found, on_front=bool(front[at]), chosen=at == chosen)
        for at, (weights, found) in enumerate(tried)
    )


def _front(values: FloatArray) -> Bools:
    """(P,): no other point (P, objectives) is at least as good in all and better in one."""
    no_worse = (values[:, None] >= values[None]).all(axis=2)
    better = (values[:, None] > values[None]).any(axis=2)
    return np.asarray(~(no_worse & better).any(axis=0))
