"""Clustered influence functions: by hand, against the bootstrap over users, and where they are undefined."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from recmtl.evaluation.influence import (
    Spread,
    by_part,
    clustered,
    clustered_difference,
    difference_of,
    figure_of,
    spread,
)
from recmtl.metrics import METRICS, Examples, metrics_for


def rows_of_users(seed=0, users=300, each=8):
    """Binary rows of users who differ in their rate, so that rows of a user are alike."""
    random = np.random.default_rng(seed)
    user = np.repeat(np.arange(users), random.integers(1, 2 * each, users))
    taste = random.normal(-1, 1, users)[user]
    score = random.normal(0, 1, user.size)
    truth = 1 / (1 + np.exp(-taste - score))
    prediction = np.round(1 / (1 + np.exp(-0.7 * taste - 0.8 * score)), 2).clip(0.01, 0.99)
    return Examples(prediction, random.random(user.size) < truth, user)


def test_the_error_of_a_mean_by_hand():
    # Errors 1, 3 | 2 | 6 of three users, mean 3: the users pull by (−2 + 0, −1, 3) / 4.
    rows = Examples(np.zeros(4), np.array([1.0, 3, 2, 6]))
    found = clustered(rows, "mae", np.array([0, 0, 1, 2]))
    variance = 3 / 2 * ((2 / 4) ** 2 + (1 / 4) ** 2 + (3 / 4) ** 2)
    fourths = (2 / 4) ** 4 + (1 / 4) ** 4 + (3 / 4) ** 4
    squares = variance * 2 / 3
    freedom = min(2 * squares**2 / (fourths - squares**2 / 3), 2)
    half = stats.t.ppf(0.975, freedom) * np.sqrt(variance) / 3
    assert found.value == 3
    assert (found.low, found.high) == pytest.approx((3 * np.exp(-half), 3 * np.exp(half)))


@pytest.mark.parametrize("name", [metric.name for metric in metrics_for("binary") if metric.has_influence])
def test_as_the_bootstrap_over_users(name):
    rows = rows_of_users()
    random, by_cluster = np.random.default_rng(1), METRICS[name].by_cluster(rows, rows.group)
    drawn = np.array([by_cluster(random.poisson(1, 300)) for _ in range(1500)])
    found = clustered(rows, name, rows.group)
    low, high = np.quantile(drawn, (0.025, 0.975))
    assert found.high - found.low == pytest.approx(high - low, rel=0.12)
    assert (found.high + found.low) / 2 == pytest.approx((high + low) / 2, abs=0.12 * (high - low))


def test_rows_alone_would_say_too_little():
    rows = rows_of_users()
    blind = replace(rows, prediction=np.full(len(rows), rows.label.mean()))  # a user's errors have the same sign
    users, alone = (clustered(blind, "calibration", cluster) for cluster in (rows.group, np.arange(len(rows))))
    assert alone.high - alone.low < 0.75 * (users.high - users.low)


def test_a_paired_difference_as_the_bootstrap():
    rows = rows_of_users()
    other = replace(
        rows, prediction=np.clip(rows.prediction + np.random.default_rng(2).normal(0, 0.1, len(rows)), 0, 1)
    )
    random = np.random.default_rng(3)
    one, two = (METRICS["auc"].by_cluster(examples, rows.group) for examples in (rows, other))
    draws = [random.poisson(1, 300) for _ in range(1500)]
    drawn = np.array([one(weight) - two(weight) for weight in draws])
    found = clustered_difference(rows, other, "auc", rows.group)
    assert found.value == METRICS["auc"].compute(rows) - METRICS["auc"].compute(other)
    assert (found.low, found.high) == pytest.approx(np.quantile(drawn, (0.025, 0.975)), abs=0.12 * drawn.std() * 2)
    alone = clustered(rows, "auc", rows.group)
    assert found.high - found.low < alone.high - alone.low
    assert (found.p_value < 0.05) == (not found.low < 0 < found.high)


@pytest.mark.parametrize("kind", ["binary", "multiclass", "ordinal"])
def test_parts_are_their_rows_alone(kind):
    random = np.random.default_rng(4)
    rows = rows_of_users(users=60)
    levels = None
    if kind == "multiclass":
        rows = Examples(random.dirichlet(np.ones(3), len(rows)), random.integers(0, 3, len(rows)), rows.group)
    if kind == "ordinal":
        levels = np.array([1.0, 2, 4])
        rows = Examples(
            random.normal(2, 1, len(rows)), levels[random.integers(0, 3, len(rows))], rows.group, levels=levels
        )
    shuffled = random.permutation(rows.prediction)
    other = replace(rows, prediction=shuffled)
    codes = random.integers(-1, 4, len(rows))
    codes[codes == 2] = -1  # a part without rows
    names = [metric.name for metric in metrics_for(kind)]
    parts = by_part({"model": rows, "other": other}, names, rows.group, codes, 4, binary=kind == "binary")
    assert parts[2].rows == 0
    for code in (0, 1, 3):
        kept = codes == code
        mine, theirs = (
            Examples(examples.prediction[kept], rows.label[kept], rows.group[kept], levels=levels)
            for examples in (rows, other)
        )
        assert parts[code].rows == kept.sum()
        assert parts[code].clusters == np.unique(rows.group[kept]).size
        assert parts[code].positives == (rows.label[kept].sum() if kind == "binary" else None)
        for name in names:
            alone, found = clustered(mine, name, rows.group[kept]), parts[code].systems["model"][name]
            assert found.value == pytest.approx(METRICS[name].compute(mine), abs=1e-12)
            if alone.low is None:
                assert found.low is None
            else:
                assert (found.low, found.high) == pytest.approx((alone.low, alone.high), abs=1e-12)
            both = clustered_difference(mine, theirs, name, rows.group[kept])
            paired = parts[code].differences["other"][name]
            assert paired.value == pytest.approx(both.value, abs=1e-12)
            assert paired.p_value == (both.p_value if both.p_value is None else pytest.approx(both.p_value))


def test_an_interval_stays_within_the_range():
    rows = Examples(np.array([0.9, 0.8, 0.7, 0.75, 0.2, 0.1, 0.3]), np.array([1, 1, 1, 0, 0, 0, 0]))
    found = clustered(rows, "auc", np.arange(7))
    assert 0 < found.low < found.value < found.high < 1


def test_perfection_on_a_few_rows_has_no_interval():
    rows = Examples(np.array([0.9, 0.8, 0.1]), np.array([1, 1, 0]))
    assert clustered(rows, "auc", np.arange(3)) == figure_of(1.0, None, "logit", 0.95)
    constant = replace(rows, prediction=np.full(3, 0.3))
    found = clustered(constant, "auc", np.arange(3))  # whatever the rows, a constant ranks as chance
    assert (found.value, found.low, found.high) == (0.5, 0.5, 0.5)


def test_few_users_with_positives_count_as_few():
    pulls = np.zeros(1000)
    pulls[:10] = 1.0
    assert spread(pulls).freedom == pytest.approx(20, rel=0.02)
    assert spread(np.random.default_rng(0).normal(size=1000)).freedom > 800
    assert spread(np.ones(2)).freedom == 1


def test_no_difference_and_no_error():
    assert difference_of(0.0, spread(np.zeros(5)), 0.95).p_value == 1
    assert difference_of(0.1, spread(np.zeros(5)), 0.95).p_value is None
    assert difference_of(None, spread(np.ones(5)), 0.95).value is None
    assert difference_of(0.1, Spread(1, 0.0, 0.0), 0.95).low is None
    rows = rows_of_users(users=40)
    same = clustered_difference(rows, rows, "auc", rows.group)
    assert (same.value, same.low, same.high, same.p_value) == (0, 0, 0, 1)


def test_one_user_no_rows_and_one_class():
    rows = rows_of_users(users=1)
    assert clustered(rows, "log_loss", rows.group).low is None
    nothing = Examples(np.empty(0), np.empty(0))
    assert clustered(nothing, "auc", np.empty(0, int)).value is None
    one_class = replace(rows_of_users(users=9), label=np.zeros(len(rows_of_users(users=9))))
    assert clustered(one_class, "auc", one_class.group).value is None
    assert clustered(one_class, "ece", one_class.group).low is None


def test_cluster_numbers_may_be_anything():
    rows = rows_of_users(users=50)
    strange = rows.group * 10**12 - 7
    assert clustered(rows, "auc", strange) == clustered(rows, "auc", rows.group)


def test_a_part_without_positives_has_no_error_and_raises_no_warning():
    """The slope of a ratio over no positive is infinite, for both systems; their difference is nothing at all."""
    rows = rows_of_users(seed=3, users=60)
    codes = (rows.label == 1).astype(int)  # part 0: negatives alone
    other = replace(rows, prediction=np.sqrt(rows.prediction))
    names = [metric.name for metric in metrics_for("binary")]
    negatives = by_part({"model": rows, "other": other}, names, rows.group, codes, 2, binary=True)[0]
    assert negatives.positives == 0
    for name in ("auc", "calibration", "normalised_entropy"):
        assert negatives.systems["model"][name].low is None
        assert negatives.differences["other"][name].value is None
    assert negatives.differences["other"]["log_loss"].low is not None
