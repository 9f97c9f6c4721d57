"""Calibration curves: against scikit-learn and a search of the grid, and what must hold of any curve."""

import json

import numpy as np
import pytest
from pydantic import ValidationError
from scipy.optimize import minimize
from scipy.special import expit
from sklearn.calibration import CalibratedClassifierCV
from sklearn.frozen import FrozenEstimator
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression

from recmtl.calibration import (
    CEILING,
    FLOOR,
    METHODS,
    PRIOR_SD,
    Beta,
    Calibrations,
    Identity,
    Isotonic,
    Platt,
    TargetCalibration,
    correct,
    fit_curve,
    logit,
)
from recmtl.errors import UserError
from recmtl.tasks import Task, Tasks


def sample(rows: int = 4000, seed: int = 0, slope: float = 0.6, shift: float = 0.5) -> tuple[np.ndarray, np.ndarray]:
    """Predictions, and labels drawn from what they should have been."""
    random = np.random.default_rng(seed)
    z = random.normal(-1, 1.5, rows)
    return expit(z), random.random(rows) < expit(slope * z + shift)


# Against others


class OneColumn:
    """What scikit-learn calibrates: a classifier whose decision is its input."""

    classes_ = np.array([0, 1])

    def __sklearn_is_fitted__(self) -> bool:
        return True

    def fit(self, X: object, y: object) -> "OneColumn":
        return self

    def predict(self, X: np.ndarray) -> np.ndarray:
        return (np.asarray(X)[:, 0] > 0).astype(int)

    def decision_function(self, X: np.ndarray) -> np.ndarray:
        return np.asarray(X)[:, 0]

    def __sklearn_tags__(self) -> object:
        return LogisticRegression().__sklearn_tags__()


@pytest.mark.filterwarnings("ignore:Since FrozenEstimator does not appear to accept sample_weight")
@pytest.mark.parametrize("weighted", [False, True])
def test_platt_is_scikit_learns_sigmoid(weighted: bool) -> None:
    p, y = sample()
    weight = np.random.default_rng(1).uniform(0.2, 4, p.size) if weighted else None
    theirs = CalibratedClassifierCV(FrozenEstimator(OneColumn()), method="sigmoid", cv=2, ensemble=False)
    theirs.fit(logit(p)[:, None], y.astype(int), sample_weight=weight)
    ours = fit_curve("platt", p, y, weight)
    np.testing.assert_allclose(ours.apply(p), theirs.predict_proba(logit(p)[:, None])[:, 1], rtol=2e-4)


def test_platt_of_few_rows_by_hand() -> None:
    # Four rows, the prediction says nothing: the targets are 3/4 and 1/4, so half of either is a half.
    curve = fit_curve("platt", np.array([0.2, 0.2, 0.8, 0.8]), np.array([0, 1, 0, 1]))
    assert curve is None  # a level line keeps no order
    # Two rows apart: σ(a logit p + b) goes through the targets 1/3 and 2/3 of Platt's smoothing.
    curve = fit_curve("platt", np.array([0.2, 0.8]), np.array([0, 1]))
    np.testing.assert_allclose(curve.apply(np.array([0.2, 0.8])), [1 / 3, 2 / 3], rtol=1e-6)


@pytest.mark.parametrize("weighted", [False, True])
def test_isotonic_is_scikit_learns(weighted: bool) -> None:
    p, y = sample(1500)
    weight = np.random.default_rng(1).uniform(0.2, 4, p.size) if weighted else None
    theirs = IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip").fit(p, y, sample_weight=weight)
    ours = fit_curve("isotonic", p, y, weight).apply(p)
    expected = theirs.predict(p)
    inside = (expected > 0) & (expected < 1)
    assert inside.mean() > 0.5
    np.testing.assert_allclose(ours[inside], expected[inside], rtol=1e-5)
    assert (ours[~inside] == ours[~inside].clip(1e-6, 1 - 1e-6)).all()


def test_isotonic_blocks_of_one_class_by_hand() -> None:
    # Three rows without a positive, then a block of 1 in 2, then two rows without a negative.
    curve = fit_curve("isotonic", np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7]), np.array([0, 0, 0, 1, 0, 1, 1]))
    np.testing.assert_allclose(
        curve.apply(np.array([0.1, 0.3, 0.4, 0.5, 0.6, 0.7])), [0.125, 0.125, 0.5, 0.5, 5 / 6, 5 / 6], rtol=1e-6
    )


def beta_loss(parameters: np.ndarray, p: np.ndarray, y: np.ndarray) -> float:
    a, b, c = parameters
    z = a * np.log(p) - b * np.log1p(-p) + c
    return float((np.logaddexp(0, z) - y * z).sum() + ((a - 1) ** 2 + (b - 1) ** 2) / (2 * PRIOR_SD**2))


def test_beta_has_the_least_loss_of_a_grid() -> None:
    p, y = sample(800)
    curve = fit_curve("beta", p, y)
    found = beta_loss(np.array([curve.a, curve.b, curve.c]), p, y)
    grid = np.array(np.meshgrid(*[np.linspace(0, 2.5, 26)] * 2, np.linspace(-1.5, 2.5, 41))).reshape(3, -1).T
    losses = [beta_loss(point, p, y) for point in grid]
    assert found <= min(losses)
    np.testing.assert_allclose(grid[int(np.argmin(losses))], [curve.a, curve.b, curve.c], atol=0.15)


@pytest.mark.parametrize("power", [(0.0, 1.5), (1.5, 0.0)])
def test_beta_on_the_edge_is_the_constrained_optimum(power: tuple[float, float]) -> None:
    """Labels of a curve that wants a negative a, or b: then it is 0, and the others are the best beside it."""
    random = np.random.default_rng(4)
    p = random.uniform(0.01, 0.99, 3000)
    a, b = (power[0] or -0.4), (power[1] or -0.4)
    y = random.random(p.size) < expit(a * np.log(p) - b * np.log1p(-p))
    curve = fit_curve("beta", p, y)
    theirs = minimize(beta_loss, [1.0, 1.0, 0.0], (p, y), "L-BFGS-B", bounds=[(0, None), (0, None), (None, None)])
    np.testing.assert_allclose([curve.a, curve.b, curve.c], theirs.x, atol=2e-3)
    assert min(curve.a, curve.b) == 0


def test_beta_finds_the_curve_that_made_the_labels() -> None:
    random = np.random.default_rng(2)
    p = random.uniform(0.001, 0.999, 200_000)
    y = random.random(p.size) < expit(0.7 * np.log(p) - 1.3 * np.log1p(-p) + 0.2)
    curve = fit_curve("beta", p, y)
    np.testing.assert_allclose([curve.a, curve.b, curve.c], [0.7, 1.3, 0.2], atol=0.04)


def test_beta_of_a_rare_task_stays_tame_where_nothing_was_seen() -> None:
    """All predictions are below a thousandth, so the rows say nothing of b: the prior does."""
    random = np.random.default_rng(3)
    p = 1e-3 * random.random(50_000)
    curve = fit_curve("beta", p, random.random(p.size) < 2 * p)
    assert abs(curve.b - 1) < 0.2
    np.testing.assert_allclose(curve.apply(np.array([5e-4]))[0], 1e-3, rtol=0.4)


# What holds of any curve


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_order_range_and_type(method: str, dtype: type) -> None:
    curve = fit_curve(method, *sample())
    p = np.sort(np.concatenate([np.random.default_rng(5).random(20_000), 10.0 ** -np.arange(46), [1 - 2.0**-24, 1.0]]))
    found = curve.apply(np.append(p, 0.0).astype(dtype))
    assert found.dtype == np.float32
    assert ((found > 0) & (found < 1)).all()
    assert (np.diff(found[:-1]) >= 0).all()
    assert curve.apply(np.empty(0, dtype)).shape == (0,)
    assert curve.apply(p[:6].reshape(2, 3)).shape == (2, 3)


@pytest.mark.parametrize("method", METHODS)
def test_a_weight_is_that_many_rows(method: str) -> None:
    p, y = sample(300)
    weight = np.random.default_rng(6).integers(0, 4, p.size)
    repeated = fit_curve(method, np.repeat(p, weight), np.repeat(y, weight))
    grid = np.linspace(p[weight > 0].min(), p[weight > 0].max(), 500)
    np.testing.assert_allclose(
        fit_curve(method, p, y, weight.astype(float)).apply(grid), repeated.apply(grid), rtol=1e-4
    )


@pytest.mark.parametrize("method", ["platt", "beta", "isotonic"])
def test_nothing_is_fitted_to_what_has_no_order(method: str) -> None:
    p, y = sample(500)
    assert fit_curve(method, p, np.zeros(p.size)) is None
    assert fit_curve(method, p, np.ones(p.size)) is None
    assert fit_curve(method, p[:0], y[:0]) is None
    assert fit_curve(method, p[:1], y[:1]) is None
    assert fit_curve(method, 1 - p, y) is None  # the wrong way round
    assert fit_curve(method, np.full(p.size, 0.25), y) is None or method != "isotonic"


@pytest.mark.parametrize("method", ["platt", "beta"])
def test_separated_classes_stay_finite(method: str) -> None:
    p = np.array([0.1] * 50 + [0.9] * 50)
    found = fit_curve(method, p, p > 0.5).apply(p)
    assert found[0] < 0.05
    assert found[-1] > 0.95


def test_saturated_predictions_are_read() -> None:
    p, y = sample(500)
    p[:5], p[5:10] = 0.0, 1.0
    for method in METHODS:
        assert np.isfinite(fit_curve(method, p, y).apply(p)).all()


# Sampling


def test_he_et_al_by_hand() -> None:
    # Of 100 rows 10 are positive; a tenth of the 90 negatives is kept: 10 in 19.
    np.testing.assert_allclose(correct(np.array([10 / 19]), 0.1), [0.1])
    # On the logit it is a shift by ln w.
    p = np.linspace(0.01, 0.99, 50)
    np.testing.assert_allclose(logit(correct(p, 0.25)) - logit(p), np.log(0.25))
    assert correct(p, 1.0) is p


def test_correct_then_weigh_restores_the_rate() -> None:
    """Fitted on a log that kept a tenth of the negatives, of a model trained on it: right on the log that lost none."""
    random = np.random.default_rng(7)
    z = random.normal(-3, 1, 300_000)
    y = random.random(z.size) < expit(z)
    sampled = expit(0.8 * (z - np.log(0.1)))  # a model of the sampled rates, not sure enough
    kept = y | (random.random(z.size) < 0.1)
    p = correct(sampled[kept], 0.1)
    for method in ("platt", "beta", "isotonic"):
        curve = fit_curve(method, p, y[kept], np.where(y[kept], 1.0, 10.0))
        served = TargetCalibration(curve=curve, negative_rate=0.1).apply(sampled)
        assert served.mean() / y.mean() == pytest.approx(1, abs=0.02)
        top = z > np.quantile(z, 0.9)
        assert served[top].mean() / y[top].mean() == pytest.approx(1, abs=0.04)


# Tasks with parents

TASKS = Tasks(
    [
        Task(name="buy", kind="binary", label="b", parent="click"),
        Task(name="click", kind="binary", label="c"),
        Task(name="keep", kind="binary", label="k", parent="buy"),
        Task(name="stars", kind="ordinal", label="s", levels=(1, 2)),
    ]
)


def predictions(rows: int = 5000) -> dict[str, np.ndarray]:
    p, q, r = np.random.default_rng(8).beta(0.3, 0.5, (3, rows)).clip(1e-30, 1).astype(np.float32)
    return {
        "buy": p * q,
        "buy_given_click": q,
        "click": p,
        "keep": p * q * r,
        "keep_given_buy": r,
        "stars": 1 + p,
        "other": q,
    }


def test_the_product_stays_below_its_parent() -> None:
    steep = Calibrations(
        targets={
            "click": TargetCalibration(curve=Platt(slope=3.0, intercept=2.0)),
            "buy_given_click": TargetCalibration(curve=Beta(a=0.1, b=9.0, c=4.0), shift=3.0),
            "keep_given_buy": TargetCalibration(curve=Isotonic(x=(0.5,), y=(0.999,)), negative_rate=0.5),
        },
        fitted_on="validation",
    )
    raw = predictions()
    found = steep.apply(raw, TASKS)
    assert list(found) == list(raw)
    assert (found["buy"] <= found["click"]).all()
    assert (found["keep"] <= found["buy"]).all()
    np.testing.assert_array_equal(
        found["buy"], np.maximum(found["click"] * found["buy_given_click"], np.float32(FLOOR))
    )
    np.testing.assert_array_equal(found["keep"], np.maximum(found["buy"] * found["keep_given_buy"], np.float32(FLOOR)))
    assert all(((found[name] > 0) & (found[name] <= CEILING)).all() for name in ("click", "buy", "keep"))
    np.testing.assert_array_equal(found["stars"], raw["stars"])
    np.testing.assert_array_equal(found["other"], raw["other"])


def test_what_no_calibration_touches_is_the_same() -> None:
    raw = predictions()
    none = Calibrations(targets={"click": TargetCalibration(curve=Identity())}, fitted_on="validation")
    for name, values in none.apply(raw, TASKS).items():
        np.testing.assert_array_equal(values, raw[name])
    below = Calibrations(targets={"keep_given_buy": TargetCalibration(shift=1.0)}, fitted_on="validation")
    found = below.apply(raw, TASKS)
    for name in ("buy", "click"):
        np.testing.assert_array_equal(found[name], raw[name])
    assert (found["keep"] > raw["keep"]).mean() > 0.9


def test_a_parent_of_0_that_nobody_calibrates() -> None:
    raw = {name: np.zeros(3, np.float32) for name in predictions(1)}
    only = Calibrations(targets={"buy_given_click": TargetCalibration(shift=1.0)}, fitted_on="validation")
    found = only.apply(raw, TASKS)
    assert (found["buy"] <= found["click"]).all()
    assert (found["keep"] <= found["buy"]).all()


def test_a_parents_curve_moves_the_product_below_it() -> None:
    raw = predictions()
    half = Calibrations(targets={"click": TargetCalibration(negative_rate=0.5)}, fitted_on="validation")
    found = half.apply(raw, TASKS)
    np.testing.assert_array_equal(found["buy_given_click"], raw["buy_given_click"])
    assert (found["keep"] <= found["buy"]).all()
    assert (found["buy"] <= np.maximum(raw["buy"], np.float32(FLOOR)) * (1 + 1e-6)).all()


# As data


def test_it_comes_back_from_json_bit_for_bit() -> None:
    p, y = sample()
    whole = Calibrations(
        targets={
            "click": TargetCalibration(curve=fit_curve("isotonic", p, y), negative_rate=0.1),
            "buy_given_click": TargetCalibration(curve=fit_curve("beta", p, y), shift=0.1),
            "keep_given_buy": TargetCalibration(curve=fit_curve("platt", p, y)),
        },
        fitted_on="validation",
    )
    again = Calibrations.model_validate_json(whole.model_dump_json(indent=2))
    assert again == whole
    for name, values in whole.apply(predictions(), TASKS).items():
        np.testing.assert_array_equal(again.apply(predictions(), TASKS)[name], values)
    whole.check(TASKS)


@pytest.mark.parametrize(
    "curve",
    [
        {"kind": "platt", "slope": 0, "intercept": 0},
        {"kind": "platt", "slope": -1, "intercept": 0},
        {"kind": "beta", "a": -0.1, "b": 1, "c": 0},
        {"kind": "beta", "a": 0, "b": 0, "c": 0},
        {"kind": "isotonic", "x": [0.1, 0.2], "y": [0.5]},
        {"kind": "isotonic", "x": [0.1, 0.1], "y": [0.5, 0.6]},
        {"kind": "isotonic", "x": [0.1, 0.2], "y": [0.6, 0.5]},
        {"kind": "isotonic", "x": [0.1, 0.2], "y": [0.0, 0.5]},
        {"kind": "isotonic", "x": [], "y": []},
        {"kind": "spline"},
    ],
)
def test_what_would_break_the_order_is_refused(curve: dict[str, object]) -> None:
    text = json.dumps({"targets": {"click": {"curve": curve}}, "fitted_on": "validation"})
    with pytest.raises(ValidationError):
        Calibrations.model_validate_json(text)


@pytest.mark.parametrize("name", ["buy", "stars", "nothing"])
def test_targets_that_there_are_not(name: str) -> None:
    with pytest.raises(UserError, match=rf"calibration\.{name}: there is no such target; known are buy_given_click"):
        Calibrations(targets={name: TargetCalibration()}, fitted_on="validation").check(TASKS)
