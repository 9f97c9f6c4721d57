"""Metrics of regression, ordinal and multiclass tasks: by hand, and against scikit-learn and SciPy."""

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as sklearn_metrics

from recmtl.metrics import METRICS, Examples

STARS = np.array([1.0, 2.0, 3.0, 4.0, 5.0])
HALVES = np.arange(1, 11) / 2


def compute(name, prediction, label, **rest):
    return METRICS[name].compute(Examples(np.array(prediction), np.array(label), **rest))


def random_ratings(seed, levels, rows=400):
    random = np.random.default_rng(seed)
    label = levels[random.integers(0, len(levels), rows)]
    prediction = np.round(label * 0.5 + random.normal(1, 1, rows), 1)
    return prediction, label, random.integers(0, 3, rows) * random.random(rows)


def test_errors_by_hand():
    assert compute("rmse", [1.0, 4.0, 3.0], [2, 2, 3]) == pytest.approx(np.sqrt(5 / 3))
    assert compute("mae", [1.0, 4.0, 3.0], [2, 2, 3]) == 1


def test_spearman_by_hand():
    # Ranks 1, 2.5, 2.5, 4 against 2, 1, 3, 4: covariance 2.25, variances 4.5 / 4 and 5 / 4 times 4.
    assert compute("spearman", [1.0, 2.0, 2.0, 9.0], [20, 10, 30, 40]) == pytest.approx(3.0 / np.sqrt(4.5 * 5))


def test_kappa_by_hand():
    # Levels predicted 1, 1, 2 and observed 1, 2, 2: E(a - b)² = 1/3; by chance 1/3 + 2/3 - 2 · 1/3 · 2/3 = 5/9.
    levels = np.array([1.0, 2.0])
    assert compute("kappa", [1.2, 1.4, 1.6], [1, 2, 2], levels=levels) == pytest.approx(1 - (1 / 3) / (5 / 9))


def test_kappa_takes_the_nearest_level_and_half_way_the_upper_one():
    same = compute("kappa", [1.0, 3.0, 5.0, 2.0], [1, 3, 4, 2], levels=STARS)
    assert compute("kappa", [-7.0, 2.5, 9.0, 2.49], [1, 3, 4, 2], levels=STARS) == same


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("levels", [STARS, HALVES])
def test_as_scikit_learn_and_scipy(seed, levels):
    p, y, w = random_ratings(seed, levels)
    for weight in (None, w):
        mse = sklearn_metrics.mean_squared_error(y, p, sample_weight=weight)
        mae = sklearn_metrics.mean_absolute_error(y, p, sample_weight=weight)
        assert compute("rmse", p, y, weight=weight) == pytest.approx(np.sqrt(mse), abs=1e-12)
        assert compute("mae", p, y, weight=weight) == pytest.approx(mae, abs=1e-12)
        a, b = (np.abs(np.subtract.outer(v, levels + 1e-9)).argmin(axis=1) for v in (p, y))
        kappa = sklearn_metrics.cohen_kappa_score(a, b, weights="quadratic", sample_weight=weight)
        upper = compute("kappa", p - 2e-9, y, weight=weight, levels=levels)  # a tie goes down in the oracle's argmin
        assert upper == pytest.approx(kappa, abs=1e-12)
    assert compute("spearman", p, y) == pytest.approx(stats.spearmanr(p, y).statistic, abs=1e-12)


def test_spearman_sees_ranks_alone():
    p, y, _ = random_ratings(1, STARS)
    assert compute("spearman", np.exp(p), y**3) == pytest.approx(compute("spearman", p, y))


@pytest.mark.parametrize(("prediction", "label"), [([2.0, 2.0], [1, 3]), ([1.0, 3.0], [2, 2]), ([1.0], [1])])
def test_nothing_to_correlate(prediction, label):
    assert compute("spearman", prediction, label) is None


def test_kappa_of_a_constant_is_chance_and_of_one_level_undefined():
    assert compute("kappa", [3.0, 3.0, 3.0], [1, 3, 5], levels=STARS) == pytest.approx(0)
    assert compute("kappa", [3.0, 3.0], [3, 3], levels=STARS) is None
    assert compute("kappa", [2.0, 2.0], [3, 3], levels=STARS) == 0


def test_an_error_too_large_for_a_float_is_undefined():
    with np.errstate(over="ignore"):
        assert compute("rmse", [1e300], [0]) is None


PROBABILITIES = np.array([[0.7, 0.2, 0.1], [0.3, 0.3, 0.4], [0.5, 0.5, 0.0], [0.1, 0.6, 0.3]])


def test_multiclass_by_hand():
    label = [0, 1, 1, 1]
    expected = -np.mean(np.log([0.7, 0.3, 0.5, 0.6]))
    assert compute("log_loss", PROBABILITIES, label) == pytest.approx(expected)
    assert compute("accuracy", PROBABILITIES, label) == 0.5  # the tie in row 3 goes to the first class
    # Class 0: 0.7 over all three: 1. Class 1: 0.3, 0.5, 0.6 all over 0.2: 1. Class 2 is absent.
    assert compute("macro_auc", PROBABILITIES, label) == 1


@pytest.mark.parametrize("seed", range(3))
def test_multiclass_as_scikit_learn(seed):
    random = np.random.default_rng(seed)
    p = random.dirichlet(np.ones(4), 300)
    y = random.integers(0, 4, 300)
    assert compute("log_loss", p, y) == pytest.approx(sklearn_metrics.log_loss(y, p), abs=1e-12)
    assert compute("accuracy", p, y) == sklearn_metrics.accuracy_score(y, p.argmax(axis=1))
    expected = sklearn_metrics.roc_auc_score(y, p, multi_class="ovr")
    assert compute("macro_auc", p, y) == pytest.approx(expected, abs=1e-12)
