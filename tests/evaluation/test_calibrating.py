"""Choosing a calibration: on folds by user, `none` unless another is better, the product right, validation alone."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.special import expit, logit
from sklearn.metrics import log_loss

from recmtl import findings
from recmtl.calibration import METHODS, Calibrations, Platt, TargetCalibration, fit_curve
from recmtl.errors import UserError
from recmtl.evaluation import Scored
from recmtl.evaluation.calibrating import (
    CalibrationConfig,
    apply_to,
    calibration_figures,
    fit_calibration,
    row_weights,
)
from recmtl.tasks import Task, Tasks

TASKS = Tasks(
    [
        Task(name="buy", kind="binary", label="b", parent="click"),
        Task(name="click", kind="binary", label="c"),
        Task(name="like", kind="binary", label="l"),
        Task(name="stars", kind="ordinal", label="s", levels=(1, 2)),
    ]
)


def made(rows: int = 12_000, seed: int = 0, slope: float = 1.0, shift: float = 0.0, users: int = 400) -> Scored:
    """A funnel and its predictions: right ones, but their logits are stretched by ``slope`` and moved by ``shift``."""
    random = np.random.default_rng(seed)
    group = random.integers(0, users, rows)
    taste = random.normal(0, 0.7, users)[group]
    z_click, z_buy = -1 + taste + random.normal(0, 1, rows), -0.5 + random.normal(0, 1, rows)
    click = random.random(rows) < expit(z_click)
    buy = click & (random.random(rows) < expit(z_buy))
    like = random.random(rows) < expit(z_click - 1 + click)
    p, q = expit(slope * z_click + shift), expit(slope * z_buy + shift)
    return Scored(
        predictions={
            "buy": (p * q).astype(np.float32),
            "buy_given_click": q.astype(np.float32),
            "click": p.astype(np.float32),
            "like": expit(z_click - 0.5).astype(np.float32),
            "stars": (1 + p).astype(np.float32),
        },
        labels={
            name: values.astype(np.float32)
            for name, values in {"buy": buy, "click": click, "like": like, "stars": click}.items()
        },
        observed={name: np.ones(rows, bool) for name in TASKS},
        group=group,
        row=np.arange(rows),
    )


def by_name(lines: tuple[findings.Calibration, ...], target: str) -> dict[str, findings.Calibration]:
    return {("chosen " if line.chosen else "") + line.method: line for line in lines if line.target == target}


def chosen(lines: tuple[findings.Calibration, ...], target: str) -> findings.Calibration:
    [line] = [line for line in lines if line.target == target and line.chosen]
    return line


def kept(scored: Scored, rows: np.ndarray) -> Scored:
    return replace(
        scored,
        predictions={name: values[rows] for name, values in scored.predictions.items()},
        labels={name: values[rows] for name, values in scored.labels.items()},
        observed={name: values[rows] for name, values in scored.observed.items()},
        group=scored.group[rows],
        row=scored.row[rows],
    )


def test_a_right_model_is_left_alone() -> None:
    """Nine chances in ten and more, over seeds: the bar is noise, not certainty."""
    touched = 0
    for seed in range(8):
        calibrations, lines = fit_calibration(made(4000, seed), TASKS, CalibrationConfig(), seed=seed)
        touched += sum(chosen(lines, name).method != "none" for name in ("click", "buy_given_click"))
        assert list(calibrations.targets) == ["buy_given_click", "click", "like"]
    assert touched <= 2


def test_a_model_too_sure_of_itself_is_put_right_where_it_was_not_fitted() -> None:
    calibrations, lines = fit_calibration(made(slope=1.8, shift=0.8), TASKS, CalibrationConfig(), seed=0)
    assert {line.target for line in lines} == {"buy", "buy_given_click", "click", "like"}
    fresh = calibration_figures(made(seed=9, slope=1.8, shift=0.8), TASKS, calibrations)
    for name in ("buy", "buy_given_click", "click"):
        for found in (lines, fresh):
            before, after = by_name(found, name)["none"], chosen(found, name)
            assert after.log_loss < before.log_loss
            assert after.ece < before.ece / 3
            assert after.ratio == pytest.approx(1, abs=0.05)
        assert chosen(lines, name).fitted_on.startswith("validation, 5 folds by user")
        assert "figures on test" in chosen(fresh, name).fitted_on
        assert (chosen(lines, name).split, chosen(fresh, name).split) == (None, "test")
    assert chosen(lines, "click").rows == 12_000
    assert chosen(lines, "buy_given_click").rows == int(made().labels["click"].sum())


def test_figures_are_those_of_the_folds_by_hand() -> None:
    """The log loss of Platt's line is that of lines fitted to the other users' rows."""
    scored = made(3000, slope=1.8)
    settings = CalibrationConfig(folds=3)
    _, lines = fit_calibration(scored, TASKS, settings, seed=5)
    users = np.unique(scored.group)
    fold_of = dict(zip(users, np.random.default_rng(5).permutation(users.size) % 3, strict=True))
    fold = np.array([fold_of[user] for user in scored.group])
    y, p = scored.labels["click"], scored.predictions["click"].astype(float)
    out = np.empty(len(scored))
    for k in range(3):
        out[fold == k] = fit_curve("platt", p[fold != k], y[fold != k]).apply(p[fold == k])
    line = next(line for line in lines if line.target == "click" and line.method == "platt")
    assert line.log_loss == pytest.approx(log_loss(y, out), rel=1e-5)
    assert line.ratio == pytest.approx(out.sum() / y.sum(), rel=1e-5)


def test_what_is_served_is_fitted_on_all_of_validation() -> None:
    scored = made(3000, slope=1.8)
    calibrations, _ = fit_calibration(scored, TASKS, CalibrationConfig(methods=("platt",)), seed=0)
    all_of_it = fit_curve("platt", scored.predictions["click"].astype(float), scored.labels["click"])
    assert calibrations.targets["click"].curve == all_of_it
    rows = scored.labels["click"] == 1
    given = fit_curve("platt", scored.predictions["buy_given_click"][rows].astype(float), scored.labels["buy"][rows])
    assert calibrations.targets["buy_given_click"].curve == given


def test_the_shift_makes_the_mean_right() -> None:
    """Clicks are predicted too low for buyers: a dependence that no curve of one input can mend."""
    scored = made(20_000)
    random = np.random.default_rng(1)
    z = random.normal(0, 1.5, len(scored))
    click = random.random(len(scored)) < expit(z)
    buy = click & (random.random(len(scored)) < expit(z))
    p = np.full(len(scored), click.mean(), np.float32) + random.normal(0, 1e-3, len(scored)).astype(np.float32)
    q = expit(z).astype(np.float32)
    labels = {**scored.labels, "click": click.astype(np.float32), "buy": buy.astype(np.float32)}
    scored = replace(
        scored,
        predictions={**scored.predictions, "click": p, "buy": p * q, "buy_given_click": q},
        labels=labels,
    )
    calibrations, lines = fit_calibration(scored, TASKS, CalibrationConfig(), seed=0)
    assert calibrations.targets["buy_given_click"].shift > 0.2
    assert "so that the mean of buy is right" in chosen(lines, "buy_given_click").fitted_on
    assert chosen(lines, "buy").ratio == pytest.approx(1, abs=0.02)
    assert by_name(lines, "buy")["none"].ratio < 0.9
    others = [line for line in lines if line.target == "buy_given_click" and not line.chosen]
    assert not any("shifted" in line.fitted_on for line in others)
    # The rows whose parent is positive are right without the shift, and it is said what it costs them.
    assert by_name(lines, "buy_given_click")["none"].ratio == pytest.approx(1, abs=0.03)
    assert chosen(lines, "buy_given_click").ratio > 1.03
    only_none, _ = fit_calibration(scored, TASKS, CalibrationConfig(methods=("none",)), seed=0)
    assert all(target.changes_nothing for target in only_none.targets.values())


def test_calibrated_predictions_keep_the_order_of_tasks() -> None:
    for method in METHODS:
        scored = made(3000, slope=2.5, shift=-1)
        calibrations, _ = fit_calibration(scored, TASKS, CalibrationConfig(methods=(method,)), seed=0)
        found = apply_to(scored, calibrations, TASKS).predictions
        assert (found["buy"] <= found["click"]).all()
        np.testing.assert_allclose(found["buy"], found["click"] * found["buy_given_click"], rtol=1e-6)
        assert found["stars"] is scored.predictions["stars"]


def test_sampled_negatives() -> None:
    """A log that kept a tenth of the rows without a click, and a model trained on it: all is right on the whole log."""
    whole = made(80_000, users=2000)
    keep = (whole.labels["click"] == 1) | (np.random.default_rng(2).random(len(whole)) < 0.1)
    p = expit(logit(whole.predictions["click"].astype(float)) - np.log(0.1)).astype(np.float32)
    predictions = {**whole.predictions, "click": p, "buy": p * whole.predictions["buy_given_click"]}
    whole = replace(whole, predictions=predictions)
    settings = CalibrationConfig(negative_rate={"click": 0.1})
    calibrations, lines = fit_calibration(kept(whole, keep), TASKS, settings, seed=0)
    assert calibrations.targets["click"].negative_rate == 0.1
    assert calibrations.targets["like"].negative_rate == 1
    found = apply_to(whole, calibrations, TASKS).predictions
    for name in ("click", "buy", "like"):  # like's own labels hang on the click, so they were sampled too
        assert found[name].mean() / whole.labels[name].mean() == pytest.approx(1, abs=0.04)
        assert chosen(lines, name).ratio == pytest.approx(1, abs=0.04)
    assert whole.predictions["click"].mean() > 2 * found["click"].mean()


def test_row_weights_by_hand() -> None:
    scored = kept(made(), np.arange(4))
    labels = {"click": [0, 1, 1, 0], "buy": [0, 0, 1, 0], "like": [0, 0, 0, 0], "stars": [0, 0, 0, 0]}
    observed = {**scored.observed, "click": np.array([True, True, True, False])}
    scored = replace(
        scored, labels={name: np.array(values, np.float32) for name, values in labels.items()}, observed=observed
    )
    np.testing.assert_array_equal(row_weights(scored, TASKS, {}), [1, 1, 1, 1])
    np.testing.assert_array_equal(row_weights(scored, TASKS, {"click": 0.5}), [2, 1, 1, 1])
    np.testing.assert_array_equal(row_weights(scored, TASKS, {"click": 0.5, "buy": 0.25}), [2, 4, 1, 1])


# Edges


@pytest.mark.parametrize("rows", [0, 1, 2, 40])
def test_few_rows_are_left_alone(rows: int) -> None:
    calibrations, lines = fit_calibration(kept(made(), np.arange(rows)), TASKS, CalibrationConfig(), seed=0)
    assert all(target.changes_nothing for target in calibrations.targets.values())
    assert {line.method for line in lines} == {"none"}
    assert all(line.chosen for line in lines)


def test_one_class_one_user_and_no_users() -> None:
    scored = made(2000, slope=3)
    none = replace(scored, labels={**scored.labels, "click": np.zeros(len(scored), np.float32)})
    calibrations, lines = fit_calibration(none, TASKS, CalibrationConfig(), seed=0)
    assert calibrations.targets["click"].changes_nothing
    assert chosen(lines, "buy_given_click").rows == 0
    one = replace(scored, group=np.zeros(len(scored), np.int64))
    assert fit_calibration(one, TASKS, CalibrationConfig(), seed=0)[0].targets["click"].changes_nothing
    unknown = replace(scored, group=None)
    calibrations, lines = fit_calibration(unknown, TASKS, CalibrationConfig(), seed=0)
    assert chosen(lines, "click").method != "none"
    assert "5 folds by row" in chosen(lines, "click").fitted_on


def test_rows_of_whole_users_are_drawn() -> None:
    scored = made(6000, slope=2)
    calibrations, lines = fit_calibration(scored, TASKS, CalibrationConfig(max_rows=1000), seed=0)
    assert 700 < chosen(lines, "click").rows < 1300
    assert chosen(calibration_figures(scored, TASKS, calibrations, max_rows=1000), "click").rows < 1300
    assert fit_calibration(scored, TASKS, CalibrationConfig(max_rows=1000), seed=0)[0] == calibrations
    assert fit_calibration(scored, TASKS, CalibrationConfig(max_rows=1000), seed=1)[0] != calibrations


def test_methods_of_one_target() -> None:
    settings = CalibrationConfig(by_target={"click": ("isotonic",), "buy_given_click": ("none",)})
    calibrations, lines = fit_calibration(made(slope=2), TASKS, settings, seed=0)
    assert calibrations.targets["click"].curve.kind == "isotonic"
    assert calibrations.targets["buy_given_click"].changes_nothing
    assert list(by_name(lines, "click")) == ["chosen isotonic"]
    # The product moves with its parent all the same.
    assert by_name(lines, "buy")["none"].ratio != by_name(lines, "buy")["chosen none"].ratio


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"negative_rate": {"clik": 0.1}}, r"calibration\.negative_rate\.clik: there is no such target; known are buy"),
        ({"negative_rate": {"stars": 0.1}}, r"negative_rate\.stars"),
        ({"by_target": {"buy": ["platt"]}}, r"by_target\.buy: .*buy_given_click, click"),
    ],
)
def test_unknown_names(settings: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        fit_calibration(made(100), TASKS, CalibrationConfig.model_validate(settings), seed=0)


@pytest.mark.parametrize(
    "settings",
    [
        {"methods": []},
        {"methods": ["spline"]},
        {"by_target": {"click": []}},
        {"negative_rate": {"click": 0}},
        {"negative_rate": {"click": 1.5}},
        {"folds": 1},
    ],
)
def test_settings_that_cannot_be(settings: dict[str, object]) -> None:
    with pytest.raises(ValueError):
        CalibrationConfig.model_validate(settings)


def test_figures_of_a_package_without_some_targets() -> None:
    scored = made(500)
    calibrations = Calibrations(
        targets={"click": TargetCalibration(curve=Platt(slope=0.5, intercept=0.0))}, fitted_on="validation"
    )
    lines = calibration_figures(scored, TASKS, calibrations)
    assert list(by_name(lines, "like")) == ["chosen none"]
    assert list(by_name(lines, "click")) == ["none", "chosen platt"]
    assert list(by_name(lines, "buy")) == ["none", "chosen none"]  # its parent's alone
