"""Curves: against scikit-learn, the calibration table, the bootstrap, and by hand."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from scipy.stats import beta
from sklearn.metrics import precision_recall_curve, roc_auc_score, roc_curve

from recmtl.evaluation import Scored
from recmtl.evaluation.curves import POINTS, curves, thinned
from recmtl.evaluation.evaluate import examples, targets
from recmtl.metrics.ece import reliability
from recmtl.tasks import Task, Tasks

approx = partial(pytest.approx, rel=1e-5)
"""Curves have six digits."""
CLICK = Tasks([Task(name="click", kind="binary", label="click")])


def scored_by(prediction, label, group=None):
    label = np.asarray(label)
    return Scored(
        {"click": np.asarray(prediction, np.float32)},
        {"click": label.astype(np.float32)},
        {"click": np.ones(label.size, bool)},
        group,
        np.arange(label.size),
    )


def one(found, kind, target="click", system="model"):
    (curve,) = [curve for curve in found if (curve.kind, curve.target, curve.system) == (kind, target, system)]
    return curve


def area(x, y):
    return float(np.trapezoid(y, x))


def sample(rows, seed=0, signal=1.0, rate=-2.0, digits=None):
    random = np.random.default_rng(seed)
    logit = random.normal(rate, signal, rows)
    label = random.random(rows) < 1 / (1 + np.exp(-logit))
    prediction = (1 / (1 + np.exp(-logit - random.normal(0, 0.3, rows)))).astype(np.float32)
    return prediction if digits is None else np.round(prediction, digits), label, random.integers(0, rows // 5, rows)


@pytest.mark.parametrize(
    "settings", [{}, {"signal": 0.0}, {"rate": -6.0}, {"digits": 2}, {"rows": 50}, {"rows": 60_000}]
)
def test_areas_are_those_of_all_rows(settings):
    prediction, label, group = sample(**{"rows": 20_000, **settings})
    found = curves({"model": scored_by(prediction, label, group)}, CLICK)
    roc, pr, lift = (one(found, kind) for kind in ("roc", "pr", "lift"))
    assert all(len(curve.x) <= POINTS for curve in (roc, pr, lift))
    assert all((np.diff(curve.x) >= 0).all() for curve in (roc, pr, lift))
    assert area(roc.x, roc.y) == pytest.approx(roc_auc_score(label, prediction), abs=1e-3)
    precision, recall, _ = precision_recall_curve(label, prediction)
    # scikit-learn begins at precision 1, we at that of the first rows.
    whole = np.append(precision[:-1], precision[-2])[::-1], recall[::-1]
    assert area(pr.x, pr.y) == pytest.approx(area(whole[1], whole[0]), abs=1e-3)
    taken = np.arange(1, label.size + 1)
    order = np.argsort(-prediction, kind="stable")
    last = np.append(np.diff(prediction[order]) != 0, True)
    rate = np.cumsum(label[order])[last] / taken[last] / label.mean()
    expected = area(np.append(0, taken[last]) / label.size, np.append(rate[0], rate))
    assert area(lift.x, lift.y) == pytest.approx(expected, rel=1e-3, abs=1e-3)


def test_a_roc_of_few_predictions_is_scikit_learns():
    prediction, label, group = sample(300, digits=1)
    roc = one(curves({"model": scored_by(prediction, label, group)}, CLICK), "roc")
    false, true, _ = roc_curve(label, prediction, drop_intermediate=False)
    assert roc.x == approx(false)
    assert roc.y == approx(true)


def test_no_thinned_line_is_far_from_the_whole():
    prediction, label, _ = sample(30_000)
    roc = one(curves({"model": scored_by(prediction, label)}, CLICK), "roc")
    false, true, _ = roc_curve(label, prediction)
    assert np.abs(np.interp(false, roc.x, roc.y) - true).max() < 0.01


def test_lift_by_hand():
    found = curves({"model": scored_by([0.9, 0.8, 0.8, 0.1], [1, 1, 0, 0])}, CLICK)
    assert one(found, "lift").x == (0, 0.25, 0.75, 1)
    assert one(found, "lift").y == approx((2, 2, 4 / 3, 1))
    assert one(found, "pr").x == (0, 0.5, 1, 1)
    assert one(found, "pr").y == approx((1, 1, 2 / 3, 1 / 2))


def test_calibration_is_the_table_of_bins_with_intervals(funnel, tasks):
    model, _ = funnel(rows=3000, users=200)
    found = curves({"model": model}, tasks, bins=8)
    for target in targets(tasks):
        if target.task.kind == "multiclass":
            assert not [curve for curve in found if curve.target == target.key]
            continue
        curve = one(found, "calibration", target.key)
        table = reliability(examples(model, target), 8)
        assert curve.x == approx([bin.predicted for bin in table])
        assert curve.y == approx([bin.observed for bin in table])
        assert curve.rows == tuple(bin.rows for bin in table)
        assert all(low <= y <= high for low, y, high in zip(curve.low, curve.y, curve.high, strict=True))
        assert {curve.kind for curve in found if curve.target == target.key} == (
            {"calibration", "roc", "pr", "lift"} if target.task.kind == "binary" else {"calibration"}
        )


def test_a_bins_interval_is_as_wide_as_users_make_it():
    """Users whose rates differ: against the bootstrap over users of a ratio."""
    random = np.random.default_rng(0)
    users = 400
    rate = random.beta(1, 3, users)
    group = np.repeat(np.arange(users), random.integers(1, 12, users))
    label = (random.random(group.size) < rate[group]).astype(float)
    curve = one(curves({"model": scored_by(np.full(group.size, 0.25), label, group)}, CLICK), "calibration")
    assert len(curve.x) == 1
    weights = random.poisson(1, (3000, users))
    rows, hits = np.bincount(group), np.bincount(group, label)
    draws = (weights @ hits) / (weights @ rows)
    assert (curve.low[0], curve.high[0]) == pytest.approx(np.quantile(draws, (0.025, 0.975)), abs=0.004)


def test_a_bin_without_a_positive_says_how_many_there_could_be():
    label = np.append(np.zeros(40), np.tile([0, 1], 20))
    prediction = np.append(np.full(40, 0.01), np.full(40, 0.5))
    group = np.append(np.arange(40) // 2, np.arange(40))
    curve = one(curves({"model": scored_by(prediction, label, group)}, CLICK), "calibration")
    assert (curve.y[0], curve.low[0]) == (0, 0)
    assert curve.high[0] == approx(beta.ppf(0.975, 1, 20))  # 20 users, none of 20 a success


def test_many_rows_are_counted_at_quantiles(funnel, tasks):
    systems = {"model": funnel(rows=6000, users=300)[0]}
    systems["champion"] = replace(systems["model"], predictions=funnel(rows=6000, users=300, noise=1.5)[0].predictions)
    whole, pieced = curves(systems, tasks), curves(systems, tasks, most_rows=1000)
    assert len(whole) == len(pieced)
    for one_, other in zip(whole, pieced, strict=True):
        assert (one_.kind, one_.target, one_.system) == (other.kind, other.target, other.system)
        if one_.kind == "calibration":
            assert np.abs(np.subtract(one_.rows, other.rows)).max() <= 4
            assert one_.x == pytest.approx(other.x, abs=5e-3)
            assert one_.y == pytest.approx(other.y, abs=1e-2)
            assert one_.high == pytest.approx(other.high, abs=2e-2)
        else:
            assert area(one_.x, one_.y) == pytest.approx(area(other.x, other.y), abs=2e-3)


@pytest.mark.parametrize(
    ("label", "kinds"), [([1, 1], {"calibration", "pr", "lift"}), ([0, 0], {"calibration"}), ([], set())]
)
def test_what_is_undefined_is_left_out(label, kinds):
    found = curves({"model": scored_by(np.full(len(label), 0.5), label)}, CLICK)
    assert {curve.kind for curve in found} == kinds


def test_thinning_keeps_ends_and_corners():
    x = np.linspace(0, 1, 10_001)
    y = np.where(x < 0.3, 0.0, 1.0)
    a, b = thinned(x, y, 5)
    assert len(a) == 5
    assert (a[0], b[0], a[-1], b[-1]) == (0, 0, 1, 1)
    assert area(a, b) == pytest.approx(0.7, abs=1e-3)
    same = thinned(x[:50], y[:50], 200)
    assert np.array_equal(same[0], x[:50])


def test_without_users_every_row_is_drawn_by_itself():
    label = np.tile([0, 0, 1], 200)
    curve = one(curves({"model": scored_by(np.full(600, 0.3), label)}, CLICK), "calibration")
    rate, error = 1 / 3, np.sqrt(1 / 3 * 2 / 3 / 600)
    logit = np.log(rate / (1 - rate))
    low, high = (1 / (1 + np.exp(-logit - sign * 1.96 * error / (rate * (1 - rate)))) for sign in (-1, 1))
    assert (curve.low[0], curve.high[0]) == pytest.approx((low, high), abs=3e-4)
