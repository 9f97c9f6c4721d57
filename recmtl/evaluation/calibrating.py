"""Which calibration a model needs, chosen and fitted on validation alone, and what it does on rows that it never saw.

In: validation as the model scored it. Out: :class:`~recmtl.calibration.Calibrations` for the package, and a line of the
report for every target and method.

**Choosing.** Users are cut into folds; the curves fitted on the other folds predict each fold, and the methods are
compared by log loss on all of it. They are tried from the fewest parameters to the most (none, Platt, beta, isotonic);
one replaces what is held only if its mean loss is lower by more than :data:`NOISE` standard errors, clustered by user.
The curve that is chosen is then fitted on all of validation. The figures that are reported are those of the folds.

**Tasks with a parent.** The conditional probability is calibrated on the rows whose parent is positive. With the
parent's own calibration that is the maximum likelihood of both labels, but it makes the *product* right only if the
parent's errors have nothing to do with the conditional: where the product's mean on its own rows is off by more than
noise, the conditional's logit is shifted by the one number that puts it right.

**Sampled negatives.** A stated share of kept negatives is put right by He et al.'s formula before anything is fitted,
and a row that stands for 1 / w counts that often: for its own task's curve, for those of the other tasks (a row without
a click is rare in such a log whatever its other labels are) and in the figures, which are thus of the log before
sampling.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, field_validator

from recmtl import findings
from recmtl.calibration import (
    CEILING,
    FLOOR,
    METHODS,
    Calibrations,
    Identity,
    Method,
    TargetCalibration,
    correct,
    fit_curve,
    logit,
    sigmoid,
    target_of,
)
from recmtl.errors import UserError
from recmtl.evaluation.evaluate import Target, targets
from recmtl.evaluation.score import Scored
from recmtl.metrics import METRICS, Examples
from recmtl.metrics.log_loss import row_losses
from recmtl.settings import Name, Settings
from recmtl.tasks import Task, Tasks

__all__ = [
    "FEWEST",
    "NOISE",
    "CalibrationConfig",
    "apply_to",
    "calibration_figures",
    "drawn",
    "fit_calibration",
    "row_weights",
]

NOISE = 1.96
"""Standard errors by which a method must be better than a simpler one, and a product's mean off to be shifted."""
FEWEST = 30
"""Rows of either class below which nothing is fitted."""
_BLOCK = 1 << 21
"""Rows that are calibrated at a time: a split may be larger than memory."""
_FURTHEST = 10.0
"""The largest shift of a logit."""

Bools = NDArray[np.bool_]
FloatArray = NDArray[np.float64]


class CalibrationConfig(Settings):
    """What is tried, and what the log is known to lack."""

    methods: Annotated[tuple[Method, ...], Field(min_length=1)] = METHODS
    """Tried for every target; one alone is used without being compared."""
    by_target: dict[Name, tuple[Method, ...]] = {}
    """TASK, or TASK_given_PARENT, to its own methods."""
    negative_rate: dict[Name, Annotated[float, Field(gt=0, le=1)]] = {}
    """Task to the share of its negatives that the log kept, of all its splits alike; of a task with a parent: among the
    rows whose parent is positive. Left out: all of them."""
    folds: Annotated[int, Field(ge=2)] = 5
    """Parts into which users are cut to compare the methods."""
    max_rows: Annotated[int, Field(ge=1000)] = 1_000_000
    """About as many rows are read, of users drawn by the seed: more would not move a curve."""

    @field_validator("by_target")
    @classmethod
    def _some_method(cls, given: dict[str, tuple[Method, ...]]) -> dict[str, tuple[Method, ...]]:
        for name, methods in given.items():
            if not methods:
                raise ValueError(f"by_target.{name}: name at least one of {', '.join(METHODS)}")
        return given

    def check(self, tasks: Tasks) -> None:
        """Refuse names that these tasks do not have.

        Raises:
            UserError: an unknown target or task.
        """
        binary = [name for name, task in tasks.items() if task.kind == "binary"]
        for field, given, known in (
            ("by_target", self.by_target, [target_of(tasks, name) for name in binary]),
            ("negative_rate", self.negative_rate, binary),
        ):
            for name in given:
                if name not in known:
                    raise UserError(
                        f"evaluation.calibration.{field}.{name}: there is no such target; known are {', '.join(known)}"
                    )


def apply_to(scored: Scored, calibrations: Calibrations, tasks: Tasks) -> Scored:
    """The same rows with calibrated predictions, equal to what ``Package.predict(calibrated=True)`` gives for them.

    Columns that no calibration touches are those of ``scored``; the others are new, and in memory.
    """
    found: dict[str, NDArray[np.float32]] = {}
    for start in range(0, len(scored), _BLOCK):
        part = {name: np.asarray(values[start : start + _BLOCK]) for name, values in scored.predictions.items()}
        for name, values in calibrations.apply(part, tasks).items():
            if values is not part[name]:
                whole = found.setdefault(name, np.empty(len(scored), np.float32))
                whole[start : start + _BLOCK] = values
    return replace(scored, predictions={**scored.predictions, **found})


def row_weights(scored: Scored, tasks: Tasks, rates: Mapping[str, float]) -> FloatArray:
    """How many rows of the log before sampling each row stands for: 1 / w for every label that is a kept negative.

    Args:
        scored: N rows.
        tasks: the tasks.
        rates: task to its share of kept negatives.
    """
    weight = np.ones(len(scored))
    for target in targets(tasks):
        if target.key == target_of(tasks, target.task.name) and rates.get(target.task.name, 1.0) < 1:
            weight[target.rows(scored) & (scored.labels[target.task.name] == 0)] /= rates[target.task.name]
    return weight


def fit_calibration(
    validation: Scored, tasks: Tasks, settings: CalibrationConfig, *, seed: int, fitted_on: str = "validation"
) -> tuple[Calibrations, tuple[findings.Calibration, ...]]:
    """Choose and fit a curve for every binary task, or for its probability given its parent.

    Args:
        validation: uncalibrated predictions; never the rows that the calibration is judged on afterwards.
        tasks: the model's.
        settings: what to try.
        seed: of the folds, and of the users that are drawn where there are too many.
        fitted_on: what the rows are, for the package and the report.

    Returns:
        For the package; and, for the report, every method's figures on folds that it was not fitted on.

    Raises:
        UserError: the settings name a target that the tasks do not have.
    """
    settings.check(tasks)
    rows = drawn(validation, settings.max_rows, seed)
    search = _Search(rows, tasks, settings, fitted_on, seed)
    fitted = {task.name: search.fit(task) for task in tasks.parents_first() if task.kind == "binary"}
    in_order = [name for name in tasks if name in fitted]
    return (
        Calibrations(
            targets={target_of(tasks, name): fitted[name].calibration for name in in_order}, fitted_on=fitted_on
        ),
        tuple(line for name in in_order for line in fitted[name].lines),
    )


def calibration_figures(
    scored: Scored,
    tasks: Tasks,
    calibrations: Calibrations,
    *,
    split: str = "test",
    max_rows: int = 1_000_000,
    seed: int = 0,
) -> tuple[findings.Calibration, ...]:
    """What a fitted calibration does on other rows: for every target the figures without it and with it.

    Args:
        scored: uncalibrated predictions.
        tasks: the model's.
        calibrations: as fitted, or as a package has them.
        split: what the rows are, for the report.
        max_rows: about as many are read, of users drawn by the seed.
        seed: of that.
    """
    scored = drawn(scored, max_rows, seed)
    rates = {
        name: calibrations.targets[target_of(tasks, name)].negative_rate
        for name, task in tasks.items()
        if task.kind == "binary" and target_of(tasks, name) in calibrations.targets
    }
    weight = row_weights(scored, tasks, rates)
    said = f"{calibrations.fitted_on}; these figures on {split}"
    with_it = apply_to(scored, calibrations, tasks)
    lines = []
    for target in targets(tasks):
        if target.task.kind != "binary":
            continue
        calibration = calibrations.targets.get(target_of(tasks, target.task.name), TargetCalibration())
        method = calibration.curve.kind
        before, after = (_probabilities(rows, target.key) for rows in (scored, with_it))
        if not calibration.changes_nothing or not np.array_equal(before, after):
            lines.append(_line(target, "none", False, scored, before, weight, f"not calibrated; on {split}", split))
        lines.append(_line(target, method, True, scored, after, weight, said, split))
    return tuple(lines)


class _Fitted(NamedTuple):
    """A task's calibration, and what the tasks below it need."""

    calibration: TargetCalibration
    held_out: FloatArray
    """(N,) p(task), calibrated by curves that were fitted without the row's user."""
    served: FloatArray
    """(N,) p(task), calibrated as the package does."""
    uncalibrated: FloatArray
    """(N,) p(task), put right for sampling alone."""
    lines: tuple[findings.Calibration, ...]


class _Search:
    """Task by task, parents before those that name them."""

    def __init__(self, rows: Scored, tasks: Tasks, settings: CalibrationConfig, fitted_on: str, seed: int) -> None:
        self._rows, self._tasks, self._settings = rows, tasks, settings
        self._weight = row_weights(rows, tasks, settings.negative_rate)
        # Without users every row is its own.
        group = np.arange(len(rows)) if rows.group is None else rows.group
        users, self._cluster = np.unique(group, return_inverse=True)
        folds = min(settings.folds, users.size)
        self._fold = (np.random.default_rng(seed).permutation(users.size) % max(folds, 1))[self._cluster]
        self._folds = range(folds)
        self._said = f"{fitted_on}, {folds} folds by {'row' if rows.group is None else 'user'}"
        self._by_key = {target.key: target for target in targets(tasks)}
        self._done: dict[str, _Fitted] = {}

    def fit(self, task: Task) -> _Fitted:
        """A binary task whose parent has been fitted."""
        column = target_of(self._tasks, task.name)
        target, rate = self._by_key[column], self._settings.negative_rate.get(task.name, 1.0)
        here, label = target.rows(self._rows), self._rows.labels[task.name] == 1
        p = _inside(correct(_probabilities(self._rows, column), rate))
        tried = self._out_of_fold(p, label, here, self._settings.by_target.get(column, self._settings.methods))
        method = self._choose(tried, label, here)
        curve = fit_curve(method, p[here], label[here], self._weight[here])
        calibration = TargetCalibration(curve=curve or Identity(), negative_rate=rate)
        held_out, served, said = tried[method], _inside(calibration.curve.at(p)), self._said
        lines = [self._line(target, name, False, values, said) for name, values in tried.items() if name != method]
        parent = None if task.parent is None else self._done[task.parent]
        if parent is not None and set(tried) != {"none"}:
            product = self._by_key[task.name].rows(self._rows)
            shifts, shift = self._shifts(parent, held_out, served, label, product)
            if shift:
                calibration = calibration.model_copy(update={"shift": shift})
                held_out, served = sigmoid(logit(held_out) + shifts), sigmoid(logit(served) + shift)
                said += f"; its logit shifted by {shift:+.3f}, so that the mean of {task.name} is right"
                if method == "none":
                    lines.insert(0, self._line(target, method, False, p, self._said))
        lines.append(self._line(target, method, True, held_out, said))
        lines.sort(key=lambda line: METHODS.index(line.method))
        fitted = _Fitted(calibration, held_out, served, p, tuple(lines))
        if parent is not None:
            fitted = self._product(task, column, parent, fitted)
        self._done[task.name] = fitted
        return fitted

    def _product(self, task: Task, column: str, parent: _Fitted, given: _Fitted) -> _Fitted:
        """p(parent) · p(task | parent), of what was found for both."""
        target, method = self._by_key[task.name], given.calibration.curve.kind
        uncalibrated = parent.uncalibrated * given.uncalibrated
        held_out, served = parent.held_out * given.held_out, parent.served * given.served
        said = f"{self._said}; the product of {task.parent} and {column} as calibrated"
        lines = [self._line(target, method, True, held_out, said)]
        if not np.array_equal(uncalibrated, held_out):
            lines.insert(0, self._line(target, "none", False, uncalibrated, f"{self._said}; neither is calibrated"))
        return _Fitted(given.calibration, held_out, served, uncalibrated, (*lines, *given.lines))

    def _line(self, target: Target, method: Method, chosen: bool, p: FloatArray, said: str) -> findings.Calibration:
        return _line(target, method, chosen, self._rows, p, self._weight, said)

    def _out_of_fold(
        self, p: FloatArray, label: Bools, here: Bools, methods: Sequence[Method]
    ) -> dict[Method, FloatArray]:
        """Method → (N,) p calibrated by curves that were fitted without the row's user; what cannot be fitted is left
        out, and what is left then is ``none``."""
        tried: dict[Method, FloatArray] = {}
        for method in METHODS:
            found = self._cross_fitted(method, p, label, here) if method in methods else None
            if found is not None:
                tried[method] = found
        return tried or {"none": p}

    def _cross_fitted(self, method: Method, p: FloatArray, label: Bools, here: Bools) -> FloatArray | None:
        if method == "none":
            return p
        if len(self._folds) < 2:
            return None
        found = np.empty(p.size)
        for fold in self._folds:
            out = self._fold == fold
            rows = here & ~out
            positives = int(label[rows].sum())
            if min(positives, int(rows.sum()) - positives) < FEWEST:
                return None
            curve = fit_curve(method, p[rows], label[rows], self._weight[rows])
            if curve is None:
                return None
            found[out] = curve.at(p[out])
        return _inside(found)

    def _choose(self, tried: Mapping[Method, FloatArray], label: Bools, here: Bools) -> Method:
        """The simplest method that no other beats by more than noise."""
        y, w = label[here].astype(np.float64), self._weight[here]
        losses = {method: w * row_losses(Examples(values[here], y)) for method, values in tried.items()}
        best, *others = tried
        for method in others:
            gain, error = self._total(losses[best] - losses[method], here)
            if gain > NOISE * error:
                best = method
        return best

    def _total(self, values: FloatArray, here: Bools) -> tuple[float, float]:
        """The sum of what rows have, and its standard error where users were drawn at random."""
        sums = np.bincount(self._cluster[here], values)[np.unique(self._cluster[here])]
        users = sums.size
        error = float(np.sqrt(users / (users - 1) * ((sums - sums.mean()) ** 2).sum())) if users > 1 else np.inf
        return float(sums.sum()), error

    def _shifts(
        self, parent: _Fitted, held_out: FloatArray, served: FloatArray, label: Bools, here: Bools
    ) -> tuple[FloatArray, float]:
        """What the conditional's logit lacks for the product's mean to be right: (N,) as found without the row's user,
        and as found on all rows; 0 where it is right but for noise."""
        y, w = label[here].astype(np.float64), self._weight[here]
        off, error = self._total(w * (parent.held_out[here] * held_out[here] - y), here)
        if int(y.sum()) < FEWEST or len(self._folds) < 2 or abs(off) <= NOISE * error:
            return np.zeros(label.size), 0.0
        shifts = np.zeros(label.size)
        for fold in self._folds:
            rows = here & (self._fold != fold)
            shifts[self._fold == fold] = _shift(parent.held_out[rows], held_out[rows], label[rows], self._weight[rows])
        return shifts, _shift(parent.served[here], served[here], label[here], w)


def _shift(parent: FloatArray, conditional: FloatArray, label: Bools, weight: FloatArray) -> float:
    """δ with Σ w · parent · σ(logit conditional + δ) = Σ w · label; at most ±_FURTHEST."""
    from scipy.optimize import brentq

    z, mass, wanted = logit(conditional), weight * parent, float((weight * label).sum())

    def off(shift: float) -> float:
        return float((mass * sigmoid(z + shift)).sum()) - wanted

    if off(-_FURTHEST) >= 0:
        return -_FURTHEST
    return _FURTHEST if off(_FURTHEST) <= 0 else float(brentq(off, -_FURTHEST, _FURTHEST, xtol=1e-9))


def _line(
    target: Target,
    method: Method,
    chosen: bool,
    scored: Scored,
    p: FloatArray,
    weight: FloatArray,
    said: str,
    split: str | None = None,
) -> findings.Calibration:
    here = target.rows(scored)
    rows = Examples(p[here], scored.labels[target.task.name][here].astype(np.float64), weight=weight[here])
    return findings.Calibration(
        target=target.key,
        method=method,
        chosen=chosen,
        log_loss=METRICS["log_loss"].compute(rows),
        ece=METRICS["ece"].compute(rows),
        ratio=METRICS["calibration"].compute(rows),
        rows=len(rows),
        fitted_on=said,
        split=split,
    )


def drawn(scored: Scored, most: int, seed: int) -> Scored:
    """All rows of users drawn by a hash, about ``most`` rows together; without users, of rows."""
    if len(scored) <= most:
        return scored
    keys, share = scored.row if scored.group is None else scored.group, most / len(scored)
    taken = [
        start + np.flatnonzero(_uniform(np.asarray(keys[start : start + _BLOCK]), seed) < share)
        for start in range(0, len(scored), _BLOCK)
    ]
    return scored.take(np.concatenate(taken))


def _uniform(keys: NDArray[np.int64], seed: int) -> FloatArray:
    """(N,) a number in [0, 1) of each key and the seed: SplitMix64's output function (Steele et al. 2014)."""
    z = keys.astype(np.uint64) + np.uint64((seed * 2 + 1) * 0x9E3779B97F4A7C15 % 2**64)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(((z ^ (z >> np.uint64(31))) >> np.uint64(11)) / 2.0**53)


def _probabilities(scored: Scored, column: str) -> FloatArray:
    return _inside(scored.predictions[column].astype(np.float64))


def _inside(p: FloatArray) -> FloatArray:
    return np.clip(p, FLOOR, CEILING)
