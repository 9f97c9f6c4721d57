"""Influence functions: the derivative by each row's weight, against finite differences and DeLong's variance."""

from itertools import product

import numpy as np
import pytest

from recmtl.metrics import METRICS, Examples, metrics_for

KINDS = ("binary", "regression", "ordinal", "multiclass")
CASES = [(metric.name, kind) for kind in KINDS for metric in metrics_for(kind) if metric.has_influence]


def rows_of(kind, seed, rows=120, ties=True):
    random = np.random.default_rng(seed)
    group = random.integers(0, 15, rows)
    levels = np.array([1.0, 2, 3, 5, 8]) if kind == "ordinal" else None
    if kind == "binary":
        prediction = random.integers(1, 12, rows) / 12 if ties else random.random(rows)
        return Examples(prediction, random.random(rows) < prediction, group)
    if kind == "multiclass":
        prediction = random.dirichlet(np.ones(4), rows)
        return Examples(np.round(prediction, 1) if ties else prediction, random.integers(0, 4, rows), group)
    label = levels[random.integers(0, 5, rows)] if kind == "ordinal" else random.normal(3, 1, rows)
    prediction = label / 2 + random.normal(1, 1, rows)
    return Examples(np.round(prediction, 1) if ties else prediction, label, group, levels=levels)


def finite_differences(metric, rows, step=1e-4):
    value_at, found = metric.by_weight(rows), np.empty(len(rows))
    for row in range(len(rows)):
        each = np.zeros(len(rows))
        each[row] = step
        ends = [value_at(np.ones(len(rows)) + times * each) for times in (-2, -1, 1, 2)]
        found[row] = (ends[0] - 8 * ends[1] + 8 * ends[2] - ends[3]) / (12 * step)
    return found


@pytest.mark.parametrize(("name", "kind"), CASES)
@pytest.mark.parametrize("ties", [True, False])
def test_as_finite_differences(name, kind, ties):
    for seed in range(3):
        rows = rows_of(kind, seed, ties=ties)
        found = METRICS[name].influences(rows)
        expected = finite_differences(METRICS[name], rows)
        assert found == pytest.approx(expected, rel=1e-6, abs=1e-6 * np.abs(expected).max())
        assert abs(found.sum()) < 1e-12  # the scale of the weights does not matter (Euler)


def test_ece_has_none_and_says_so():
    assert not METRICS["ece"].has_influence
    assert METRICS["ece"].influences(rows_of("binary", 0)) is None


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_undefined_together(name, kind):
    rows = rows_of(kind, 1)
    constant = np.broadcast_to(rows.prediction[0], rows.prediction.shape)
    for label in np.unique(rows.label)[:3]:
        for prediction in (rows.prediction, constant):
            one_label = Examples(prediction, np.full(len(rows), label), rows.group, levels=rows.levels)
            if METRICS[name].compute(one_label) is None:
                assert METRICS[name].influences(one_label) is None
    nothing = Examples(rows.prediction[:0], rows.label[:0], levels=rows.levels)
    assert METRICS[name].influences(nothing) is None


def test_user_auc_of_unknown_users_has_none():
    rows = rows_of("binary", 0)
    assert METRICS["user_auc"].influences(Examples(rows.prediction, rows.label)) is None


def placements(prediction, label):
    """V10 and V01 of DeLong et al. 1988, pair by pair."""
    positives, negatives = prediction[label == 1], prediction[label == 0]
    wins = np.array([[(p > n) + 0.5 * (p == n) for n in negatives] for p in positives])
    return wins.mean(axis=1), wins.mean(axis=0)


@pytest.mark.parametrize("seed", range(4))
def test_auc_as_delong(seed):
    """Row by row: DeLong divides by n − 1 where the jackknife has n, in each class."""
    rows = rows_of("binary", seed)
    own, theirs = placements(rows.prediction, rows.label)
    influence = METRICS["auc"].influences(rows)
    positive = rows.label == 1
    delong = own.var(ddof=1) / own.size + theirs.var(ddof=1) / theirs.size
    corrected = sum((influence[part] ** 2).sum() * part.sum() / (part.sum() - 1) for part in (positive, ~positive))
    assert corrected == pytest.approx(delong, rel=1e-12)


@pytest.mark.parametrize("seed", range(4))
def test_difference_of_two_models_as_delong(seed):
    rows = rows_of("binary", seed)
    other = np.random.default_rng((seed, 1)).permutation(rows.prediction) * 0.3 + rows.prediction
    variance = 0.0
    for side in (0, 1):
        both = np.stack([placements(prediction, rows.label)[side] for prediction in (rows.prediction, other)])
        covariance = np.cov(both) / both.shape[1]
        variance += covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1]
    one = METRICS["auc"].influences(rows)
    difference = one - METRICS["auc"].influences(Examples(other, rows.label))
    positive = rows.label == 1
    found = sum((difference[part] ** 2).sum() * part.sum() / (part.sum() - 1) for part in (positive, ~positive))
    assert found == pytest.approx(variance, rel=1e-10)


@pytest.mark.parametrize(("kind", "seed"), list(product(KINDS, range(2))))
def test_by_cluster_is_by_weight(kind, seed):
    rows, random = rows_of(kind, seed), np.random.default_rng(seed)
    for metric in metrics_for(kind):
        by_cluster, by_weight = metric.by_cluster(rows, rows.group), metric.by_weight(rows)
        for _ in range(5):
            weight = random.poisson(1, 15).astype(np.uint8)
            expected = by_weight(weight[rows.group].astype(float))
            assert by_cluster(weight) == pytest.approx(expected, abs=1e-13), metric.name
        assert by_cluster(np.zeros(15, np.uint8)) is None
