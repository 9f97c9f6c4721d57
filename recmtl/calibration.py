"""Calibration: predicted probabilities to the rates at which things happen, by curves that keep the order of the rows.

In: probabilities with labels, to fit; probabilities alone, to apply. Out: :class:`Calibrations`, plain data that
travels in a package as ``calibration.json``, and calibrated predictions. How the curves are chosen is
:mod:`recmtl.evaluation.calibrating`'s business.

Four curves from a probability p to another:

- ``none``: p.
- ``platt``: σ(a · logit p + b), a > 0, fitted to smoothed targets (Platt 1999, "Probabilistic Outputs for Support
  Vector Machines", section 2.2).
- ``beta``: σ(a · ln p − b · ln(1 − p) + c), a, b ≥ 0 (Kull, Silva Filho and Flach 2017, "Beta calibration", the map of
  three parameters), with a weak prior at a = b = 1, the identity: where nothing is predicted near 1, as of a rare task,
  the rows do not say what b is, and without a prior it may be anything.
- ``isotonic``: the rising step function of least squares (Zadrozny and Elkan 2002), between its knots a straight line.

Where a log kept a share w of the negatives, p is first put right by q = p / (p + (1 − p) / w) (He et al. 2014,
"Practical Lessons from Predicting Clicks on Ads at Facebook", section 6.3), here with w the share *kept*: what the
curve then reads and what it is fitted to is the rate before sampling.

A task with a parent has no curve of its own: its conditional probability has one, and the prediction is the parent's
calibrated one times that, so that p(task) ≤ p(parent) holds however the curves are. Expectations (ordinal,
regression) and classes are left as they are: they are no probabilities of one event.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from recmtl.errors import UserError
from recmtl.settings import Settings
from recmtl.tasks import Task, Tasks

__all__ = [
    "CEILING",
    "FLOOR",
    "METHODS",
    "Beta",
    "Calibrations",
    "Curve",
    "Identity",
    "Isotonic",
    "Method",
    "Platt",
    "TargetCalibration",
    "correct",
    "fit_curve",
    "logit",
    "sigmoid",
    "target_of",
]

Method = Literal["none", "platt", "beta", "isotonic"]
METHODS: tuple[Method, ...] = ("none", "platt", "beta", "isotonic")
"""From the fewest parameters to the most."""

FloatArray: TypeAlias = NDArray[np.float64]

FLOOR = float(np.finfo(np.float32).tiny)
CEILING = 1 - 2.0**-24
"""Least and greatest normal float32 in (0, 1): what is predicted stays between them."""

PRIOR_SD = 2.0
"""Standard deviation of the normal prior on a and b of ``beta``, about 1. A curve that the rows determine has standard
errors of hundredths: the prior then moves nothing."""

_NEWTON_STEPS = 100
_HALVINGS = 40


def sigmoid(z: FloatArray) -> FloatArray:
    """σ(z), without overflow."""
    return np.asarray(1 / (1 + np.exp(-np.clip(z, -700, 700))))


def logit(p: FloatArray) -> FloatArray:
    """ln p − ln(1 − p)."""
    return np.asarray(np.log(p) - np.log1p(-p))


def correct(p: FloatArray, negative_rate: float) -> FloatArray:
    """The probability before sampling, where a share ``negative_rate`` of the negatives was kept (He et al. 2014)."""
    return np.asarray(p / (p + (1 - p) / negative_rate)) if negative_rate < 1 else p


class _Curve(Settings):
    def apply(self, p: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
        """Probabilities of any shape → float32 in (0, 1), in the same order."""
        return _as_float32(self.at(_inside(p)))

    def at(self, p: FloatArray) -> FloatArray:
        """In double precision, of probabilities between FLOOR and CEILING."""
        raise NotImplementedError


class Identity(_Curve):
    """No calibration."""

    kind: Literal["none"] = "none"

    def at(self, p: FloatArray) -> FloatArray:
        """P itself."""
        return p


class Platt(_Curve):
    """A line on the logit."""

    kind: Literal["platt"] = "platt"
    slope: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    """a: below 1 the model was too sure of itself."""
    intercept: Annotated[float, Field(allow_inf_nan=False)]
    """b: above 0 it predicted too little."""

    def at(self, p: FloatArray) -> FloatArray:
        """σ(a · logit p + b)."""
        return sigmoid(self.slope * logit(p) + self.intercept)


class Beta(_Curve):
    """Kull's three parameters."""

    kind: Literal["beta"] = "beta"
    a: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    b: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    c: Annotated[float, Field(allow_inf_nan=False)]

    @model_validator(mode="after")
    def _rises(self) -> "Beta":
        if self.a == 0 and self.b == 0:
            raise ValueError("a beta calibration needs `a` or `b` above 0, or every prediction is the same")
        return self

    def at(self, p: FloatArray) -> FloatArray:
        """σ(a · ln p − b · ln(1 − p) + c)."""
        return sigmoid(self.a * np.log(p) - self.b * np.log1p(-p) + self.c)


class Isotonic(_Curve):
    """Knots with straight lines between them, level beyond the ends."""

    kind: Literal["isotonic"] = "isotonic"
    x: Annotated[tuple[float, ...], Field(min_length=1)]
    """Predictions, rising."""
    y: tuple[float, ...]
    """What becomes of them, in (0, 1), not falling."""

    @model_validator(mode="after")
    def _rises(self) -> "Isotonic":
        x, y = np.array(self.x), np.array(self.y)
        if x.shape != y.shape or not (np.isfinite(x).all() and (np.diff(x) > 0).all() and (np.diff(y) >= 0).all()):
            raise ValueError("an isotonic calibration needs as many `y` as `x`, the one rising, the other not falling")
        if not ((y > 0) & (y < 1)).all():
            raise ValueError("the `y` of an isotonic calibration lie between 0 and 1")
        return self

    def at(self, p: FloatArray) -> FloatArray:
        """By linear interpolation."""
        return np.asarray(np.interp(p, self.x, self.y))


Curve = Identity | Platt | Beta | Isotonic


class TargetCalibration(Settings):
    """What becomes of one column of probabilities."""

    curve: Annotated[Curve, Field(discriminator="kind")] = Identity()
    negative_rate: Annotated[float, Field(gt=0, le=1)] = 1.0
    """The share of negatives that the log kept, stated in the config; put right before the curve."""
    shift: Annotated[float, Field(allow_inf_nan=False)] = 0.0
    """Added to the logit after the curve; of a conditional: so that the product's mean is right."""

    @property
    def changes_nothing(self) -> bool:
        """Whether what goes in comes out."""
        return isinstance(self.curve, Identity) and self.negative_rate == 1 and self.shift == 0

    def apply(self, p: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
        """Probabilities of any shape → float32 in (0, 1), in the same order."""
        return _as_float32(self.at(_inside(p)))

    def at(self, p: FloatArray) -> FloatArray:
        """In double precision, of probabilities between FLOOR and CEILING."""
        found = self.curve.at(_clip(correct(p, self.negative_rate)))
        return sigmoid(logit(_clip(found)) + self.shift) if self.shift else found


class Calibrations(Settings):
    """``calibration.json``: what becomes of every column of probabilities."""

    targets: dict[str, TargetCalibration]
    """TASK, or TASK_given_PARENT for a task with a parent; a binary task that is not named stays as it is."""
    fitted_on: str
    """Which rows, for a person: the split and its fingerprint."""

    def check(self, tasks: Tasks) -> None:
        """Refuse targets that these tasks do not have.

        Raises:
            UserError: a target is none of a binary task.
        """
        known = {target_of(tasks, name) for name, task in tasks.items() if task.kind == "binary"}
        for name in self.targets:
            if name not in known:
                raise UserError(f"calibration.{name}: there is no such target; known are {', '.join(sorted(known))}")

    def apply(self, predictions: Mapping[str, NDArray[np.float32]], tasks: Tasks) -> dict[str, NDArray[np.float32]]:
        """Calibrate a model's predictions.

        Args:
            predictions: every column of ``Tasks.prediction_columns`` to (N,); others pass through.
            tasks: the model's.

        Returns:
            The same columns, in the same order. p(task) ≤ p(parent) holds, and p(task) is p(parent) ·
            p(task | parent) rounded; columns that no calibration touches are the same, bit for bit.
        """
        found = dict(predictions)
        changed = set()
        for task in _chain_order(tasks):
            target = target_of(tasks, task.name)
            own = self.targets.get(target, TargetCalibration())
            if not own.changes_nothing:
                found[target] = own.apply(predictions[target])
            if not own.changes_nothing or task.parent in changed:
                changed.add(task.name)
                if task.parent is not None:
                    product = np.maximum(found[task.parent] * found[target], np.float32(FLOOR))
                    found[task.name] = np.minimum(product, found[task.parent])  # a parent left alone may be 0
        return found


def target_of(tasks: Tasks, name: str) -> str:
    """The column of a binary task that has a curve: its probability, or, with a parent, the conditional one."""
    return tasks.prediction_columns(name)[-1]


def _chain_order(tasks: Tasks) -> list[Task]:
    return [task for task in tasks.parents_first() if task.kind == "binary"]


def _inside(p: NDArray[np.floating[Any]]) -> FloatArray:
    return _clip(np.asarray(p, np.float64))


def _clip(p: FloatArray) -> FloatArray:
    return np.clip(p, FLOOR, CEILING)


def _as_float32(p: FloatArray) -> NDArray[np.float32]:
    return _clip(p).astype(np.float32)


# Fitting


def fit_curve(method: Method, p: FloatArray, label: NDArray[Any], weight: FloatArray | None = None) -> Curve | None:
    """Fit one curve.

    Args:
        method: which.
        p: (N,) probabilities, already put right for sampling.
        label: (N,) 0 or 1.
        weight: (N,) not negative; None counts every row once.

    Returns:
        None where the rows determine none: one class only, or the better the prediction, the rarer the event, so that
        the best rising curve is level.
    """
    p, y = _inside(p), np.asarray(label, np.float64)
    w = np.ones(p.size) if weight is None else np.asarray(weight, np.float64)
    if method == "none":
        return Identity()
    positives, rows = float((w * y).sum()), float(w.sum())
    if not 0 < positives < rows:
        return None
    if method == "platt":
        return _platt(p, y, w, positives, rows - positives)
    return _beta(p, y, w) if method == "beta" else _isotonic(p, y, w)


def _platt(p: FloatArray, y: FloatArray, w: FloatArray, positives: float, negatives: float) -> Platt | None:
    targets = np.where(y == 1, (positives + 1) / (positives + 2), 1 / (negatives + 2))  # Platt 1999, section 2.2
    slope, intercept = _logistic(np.stack([logit(p), np.ones(p.size)], axis=1), targets, w, np.zeros(2), np.zeros(2))
    return Platt(slope=slope, intercept=intercept) if slope > 0 else None


def _beta(p: FloatArray, y: FloatArray, w: FloatArray) -> Beta | None:
    """The best of the constrained optima: a convex loss has its minimum over a, b ≥ 0 inside, or on a side."""
    columns = {"a": np.log(p), "b": -np.log1p(-p), "c": np.ones(p.size)}
    precision = {"a": PRIOR_SD**-2, "b": PRIOR_SD**-2, "c": 0.0}
    for free in (("a", "b", "c"), ("a", "c"), ("b", "c")):
        held = [name for name in ("a", "b") if name not in free]
        found = _logistic(
            np.stack([columns[name] for name in free], axis=1),
            y,
            w,
            np.array([float(name != "c") for name in free]),
            np.array([precision[name] for name in free]),
        )
        values = dict.fromkeys(held, 0.0) | dict(zip(free, found, strict=True))
        if values["a"] >= 0 and values["b"] >= 0 and _is_best(values, held, columns, y, w):
            return Beta(**values) if values["a"] > 0 or values["b"] > 0 else None
    return None


def _is_best(
    values: Mapping[str, float], held: list[str], columns: Mapping[str, FloatArray], y: FloatArray, w: FloatArray
) -> bool:
    """Whether the loss would only rise by freeing what is held at 0 (the Karush–Kuhn–Tucker condition)."""
    residual = w * (sigmoid(sum((values[name] * column for name, column in columns.items()), np.zeros(y.size))) - y)
    return all((residual * columns[name]).sum() - PRIOR_SD**-2 >= 0 for name in held)


def _isotonic(p: FloatArray, y: FloatArray, w: FloatArray) -> Isotonic | None:
    """Scikit-learn's knots. A block without a positive has half of one in one row more, at most what the next block
    has; a block without a negative likewise: no rate of finitely many rows is 0 or 1."""
    from sklearn.isotonic import IsotonicRegression

    fitted = IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip").fit(p, y, sample_weight=w)
    knots_x, knots_y = fitted.X_thresholds_.astype(np.float64), fitted.y_thresholds_.astype(np.float64)
    inner = knots_y[(knots_y > 0) & (knots_y < 1)]
    low, high = (inner.min(), inner.max()) if inner.size else (0.5, 0.5)
    at_zero, at_one = (
        w[p <= knots_x[knots_y <= 0].max(initial=-1)].sum(),
        w[p >= knots_x[knots_y >= 1].min(initial=2)].sum(),
    )
    bottom, top = min(0.5 / (at_zero + 1), low), max(1 - 0.5 / (at_one + 1), high)
    levels = np.clip(knots_y, bottom, top)
    if levels.size == 1 or levels[0] == levels[-1]:
        return None
    return Isotonic(x=tuple(knots_x.tolist()), y=tuple(levels.tolist()))


def _logistic(
    X: FloatArray, target: FloatArray, weight: FloatArray, centre: FloatArray, precision: FloatArray
) -> FloatArray:
    """Coefficients (K,) of the logistic regression of targets (N,) in [0, 1] on columns (N, K), by damped Newton steps.

    Args:
        X: the columns.
        target: what to hit.
        weight: (N,) of the rows.
        centre, precision: (K,) of the normal priors; precision 0: none.
    """
    total = weight.sum()

    def loss(coefficients: FloatArray) -> float:
        z = X @ coefficients
        off = coefficients - centre
        return float((weight * (np.logaddexp(0, z) - target * z)).sum() + (precision * off * off).sum() / 2)

    # Columns of ln p are large where p is small; scaled, the steps are well conditioned.
    scale = np.maximum(np.sqrt((weight[:, None] * X * X).sum(axis=0) / total), 1e-12)
    here = centre.copy()
    current = loss(here)
    for _ in range(_NEWTON_STEPS):
        q = sigmoid(X @ here)
        gradient = X.T @ (weight * (q - target)) + precision * (here - centre)
        if np.abs(gradient / scale).max() <= 1e-10 * total:
            break
        hessian = (X * (weight * q * (1 - q))[:, None]).T @ X + np.diag(precision)
        scaled = hessian / np.outer(scale, scale)
        step = np.linalg.lstsq(scaled, gradient / scale, rcond=1e-14)[0] / scale
        for halving in range(_HALVINGS):
            there = here - step / 2**halving
            reached = loss(there)
            if reached < current:
                break
        else:
            break
        here, current = there, reached
    return here
