"""Binary metrics: worked by hand, and against scikit-learn on rows with many ties."""

import math

import numpy as np
import pytest
from sklearn import metrics as sklearn_metrics

from recmtl.metrics import METRICS, Examples
from recmtl.metrics.ece import reliability
from recmtl.metrics.log_loss import PROBABILITY_MARGIN
from recmtl.metrics.user_auc import users_with_both


def compute(name, prediction, label, **rest):
    return METRICS[name].compute(Examples(np.array(prediction), np.array(label), **rest))


def random_rows(seed, rows=500):
    """Predictions on a grid (so that ties are many), labels that follow them, weights with zeros."""
    random = np.random.default_rng(seed)
    prediction = np.round(random.beta(1, 3, rows), int(random.integers(1, 4))).clip(0.001, 0.999)
    label = (random.random(rows) < prediction).astype(float)
    weight = random.integers(0, 3, rows) * random.random(rows)
    return prediction, label, weight, random.integers(0, 60, rows)


# By hand: positives 0.8, 0.4; negatives 0.6, 0.4, 0.1. Of six pairs, 0.8 wins three; 0.4 loses to 0.6, ties 0.4, beats
# 0.1: 4.5 of 6.
PREDICTION, LABEL = [0.8, 0.6, 0.4, 0.4, 0.1], [1, 0, 1, 0, 0]


def test_auc_by_hand():
    assert compute("auc", PREDICTION, LABEL) == 4.5 / 6


def test_pr_auc_by_hand():
    # Thresholds 0.8, 0.6, 0.4, 0.1: recall 1/2, 1/2, 1, 1 at precision 1, 1/2, 2/4, 2/5.
    assert compute("pr_auc", PREDICTION, LABEL) == pytest.approx(0.5 * 1 + 0.5 * 0.5)


def test_log_loss_by_hand():
    expected = -(math.log(0.8) + math.log(0.4) + math.log(0.4) + math.log(0.6) + math.log(0.9)) / 5
    assert compute("log_loss", PREDICTION, LABEL) == pytest.approx(expected)


def test_normalised_entropy_by_hand():
    loss = -(math.log(0.8) + math.log(0.4) + math.log(0.4) + math.log(0.6) + math.log(0.9)) / 5
    entropy = -(0.4 * math.log(0.4) + 0.6 * math.log(0.6))
    assert compute("normalised_entropy", PREDICTION, LABEL) == pytest.approx(loss / entropy)


def test_knowing_the_rate_alone_has_normalised_entropy_one():
    assert compute("normalised_entropy", [0.25] * 4, [1, 0, 0, 0]) == pytest.approx(1)


def test_calibration_by_hand():
    assert compute("calibration", PREDICTION, LABEL) == pytest.approx(2.3 / 2)


def test_ece_by_hand():
    # Two runs of equal predictions, each in a bin of its own: 4 rows off by 0.25 - 0.2, 2 rows off by 0.9 - 0.5.
    assert compute("ece", [0.2] * 4 + [0.9] * 2, [1, 0, 0, 0, 1, 0]) == pytest.approx((4 * 0.05 + 2 * 0.4) / 6)


def test_ece_of_many_rows_is_that_of_bins_of_equal_mass():
    random = np.random.default_rng(2)
    prediction = random.permutation(15_000) / 15_000
    label = (random.random(15_000) < prediction).astype(float)
    order = np.argsort(prediction)
    expected = np.mean([abs(prediction[b].mean() - label[b].mean()) for b in order.reshape(15, 1000)])
    assert compute("ece", prediction, label) == pytest.approx(expected)


def test_user_auc_by_hand():
    # Ann: 0.9 over 0.1 and 0.2 (1), 3 rows. Bob: 0.3 under 0.5 (0), 2 rows. Cem has negatives alone.
    prediction, label = [0.9, 0.1, 0.2, 0.3, 0.5, 0.7], [1, 0, 0, 1, 0, 0]
    group = np.array([10, 10, 10, -3, -3, 99])
    rows = Examples(np.array(prediction), np.array(label), group)
    assert METRICS["user_auc"].compute(rows) == pytest.approx((3 * 1 + 2 * 0) / 5)
    assert users_with_both(rows) == 2


def test_ties_between_users_are_no_ties():
    rows = Examples(np.array([0.5, 0.5, 0.5, 0.5]), np.array([1, 0, 1, 0]), np.array([1, 2, 2, 1]))
    assert METRICS["user_auc"].compute(rows) == 0.5
    shifted = Examples(np.array([0.5, 0.5, 0.6, 0.4]), np.array([1, 0, 1, 0]), np.array([1, 2, 2, 1]))
    assert METRICS["user_auc"].compute(shifted) == 1


@pytest.mark.parametrize("seed", range(8))
def test_as_scikit_learn(seed):
    p, y, w, _ = random_rows(seed)
    for name, oracle in [
        ("auc", sklearn_metrics.roc_auc_score),
        ("pr_auc", sklearn_metrics.average_precision_score),
    ]:
        assert compute(name, p, y) == pytest.approx(oracle(y, p), abs=1e-12)
        assert compute(name, p, y, weight=w) == pytest.approx(oracle(y, p, sample_weight=w), abs=1e-12)
    assert compute("log_loss", p, y) == pytest.approx(sklearn_metrics.log_loss(y, p), abs=1e-12)
    expected = sklearn_metrics.log_loss(y, p, sample_weight=w)
    assert compute("log_loss", p, y, weight=w) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("seed", range(4))
def test_user_auc_as_a_loop_over_users(seed):
    p, y, w, g = random_rows(seed)
    scores, sizes = [], []
    for user in np.unique(g):
        rows = (g == user) & (w > 0)
        if 0 < y[rows].sum() < rows.sum():
            scores.append(sklearn_metrics.roc_auc_score(y[rows], p[rows], sample_weight=w[rows]))
            sizes.append(w[rows].sum())
    assert compute("user_auc", p, y, group=g, weight=w) == pytest.approx(np.average(scores, weights=sizes), abs=1e-12)
    assert users_with_both(Examples(p, y, g, w)) == len(scores)


@pytest.mark.parametrize("name", ["auc", "pr_auc", "user_auc"])
def test_ranking_sees_the_order_alone(name):
    p, y, _, g = random_rows(3)
    logit = np.log(p / (1 - p))
    assert compute(name, logit * 7 - 3, y, group=g) == compute(name, p, y, group=g)


def test_the_reversed_ranking_has_the_other_auc():
    p, y, _, g = random_rows(4)
    for name in ("auc", "user_auc"):
        assert compute(name, -p, y, group=g) == pytest.approx(1 - compute(name, p, y, group=g))


def test_one_user_has_the_plain_auc():
    p, y, _, _ = random_rows(5)
    assert compute("user_auc", p, y, group=np.zeros(len(p), int)) == pytest.approx(compute("auc", p, y))


def test_a_constant_prediction_ranks_as_chance():
    assert compute("auc", [0.3] * 4, [1, 0, 0, 1]) == 0.5
    assert compute("pr_auc", [0.3] * 4, [1, 0, 0, 1]) == 0.5


@pytest.mark.parametrize(
    ("name", "label", "expected"),
    [
        ("auc", 0, None),
        ("auc", 1, None),
        ("user_auc", 0, None),
        ("user_auc", 1, None),
        ("pr_auc", 0, None),
        ("pr_auc", 1, 1),
        ("normalised_entropy", 0, None),
        ("normalised_entropy", 1, None),
        ("calibration", 0, None),
        ("calibration", 1, 0.5),
        ("log_loss", 0, math.log(2)),
        ("ece", 0, 0.5),
    ],
)
def test_one_class_alone(name, label, expected):
    value = compute(name, [0.5, 0.5, 0.5], [label] * 3, group=np.array([1, 1, 2]))
    assert value is None if expected is None else value == pytest.approx(expected)


def test_a_saturated_wrong_prediction_costs_what_float32_can_say():
    assert compute("log_loss", [0.0], [1]) == pytest.approx(-math.log(PROBABILITY_MARGIN))
    assert np.float32(1 - PROBABILITY_MARGIN) == np.nextafter(np.float32(1), np.float32(0))


def test_reliability_is_a_table_of_the_bins_that_are_not_empty():
    rows = Examples(np.array([0.1] * 6 + [0.8, 0.9]), np.array([0, 0, 0, 1, 0, 0, 1, 0]))
    bins = reliability(rows, 4)
    assert [b.rows for b in bins] == [6, 2]  # the run of six lies in the middle of its mass; 7th and 8th share a bin
    assert [b.predicted for b in bins] == pytest.approx([0.1, 0.85])
    assert [b.observed for b in bins] == pytest.approx([1 / 6, 1 / 2])
    assert reliability(Examples(np.empty(0), np.empty(0)), 4) == ()
