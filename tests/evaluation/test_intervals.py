"""The bootstrap over users: by brute force, by coverage, and where it is undefined."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from recmtl.evaluation import intervals
from recmtl.evaluation.influence import spread
from recmtl.evaluation.intervals import Sample, bootstrap, clusters_of, interval, p_value, paired, poisson_weights
from recmtl.metrics import METRICS, Examples, metrics_for


def sample_of(key, prediction, label, group, metrics):
    cluster, clusters = clusters_of(group, len(label))
    return Sample(key, Examples(prediction, label, group), cluster, metrics), clusters


def rows_of_users(seed, rows=200, users=15):
    random = np.random.default_rng(seed)
    prediction = np.round(random.random(rows), 1)
    label = (random.random(rows) < prediction).astype(float)
    return prediction, label, random.integers(0, users, rows) * 7 - 20


def rows_of_kind(kind, seed=0, rows=200, users=15):
    """Examples of one kind of task, with ties, of users who have rows of different worth."""
    random = np.random.default_rng(seed)
    if kind == "binary":
        return Examples(*rows_of_users(seed, rows, users))
    group = random.integers(0, users, rows) * 7 - 20
    if kind == "multiclass":
        return Examples(random.dirichlet(np.ones(4), rows), random.integers(0, 4, rows), group)
    label = random.integers(1, 6, rows).astype(float)
    prediction = np.round(label / 2 + random.normal(1, 1, rows), 1)
    return Examples(prediction, label, group, levels=np.arange(1.0, 6.0) if kind == "ordinal" else None)


@pytest.mark.parametrize("kind", ["binary", "regression", "ordinal", "multiclass"])
def test_every_replicate_is_the_metric_of_the_rows_of_the_drawn_users(kind):
    rows = rows_of_kind(kind)
    names = [metric.name for metric in metrics_for(kind)]
    cluster, clusters = clusters_of(rows.group, len(rows))
    found = bootstrap([Sample("model", rows, cluster, names)], clusters, replicates=5, seed=11)
    users = np.unique(rows.group)
    for replicate in range(5):
        drawn = np.repeat(np.arange(len(users)), poisson_weights(11, replicate, len(users)))
        parts = [np.flatnonzero(rows.group == users[user]) for user in drawn]
        taken = np.concatenate(parts)
        copies = np.concatenate([np.full(len(part), number) for number, part in enumerate(parts)])
        # A user who was drawn twice counts as two users with the same rows.
        resampled = Examples(rows.prediction[taken], rows.label[taken], copies, levels=rows.levels)
        for name in names:
            assert found["model", name][replicate] == pytest.approx(METRICS[name].compute(resampled), abs=1e-12), name


def test_clusters_that_split_users_weigh_their_rows_apart():
    rows = rows_of_kind("binary")
    names = ["user_auc", "log_loss"]
    found = bootstrap([Sample("model", rows, np.arange(200), names)], 200, replicates=3, seed=2)
    for replicate in range(3):
        drawn = poisson_weights(2, replicate, 200)
        for name in names:
            expected = METRICS[name].compute(replace(rows, weight=drawn))
            assert found["model", name][replicate] == pytest.approx(expected, abs=1e-12)


def test_a_target_without_rows_is_undefined_beside_one_that_has_some():
    rows = rows_of_kind("binary")
    cluster, clusters = clusters_of(rows.group, len(rows))
    names = [metric.name for metric in metrics_for("binary")]
    nothing = Examples(np.empty(0), np.empty(0), np.empty(0, np.int64))
    samples = [Sample("none", nothing, cluster[:0], names), Sample("some", rows, cluster, names)]
    found = bootstrap(samples, clusters, replicates=3, seed=0)
    for name in names:
        assert np.isnan(found["none", name]).all()
        assert np.isfinite(found["some", name]).all()


def test_the_same_seed_gives_the_same_draws_and_another_others():
    sample, clusters = sample_of("model", *rows_of_users(1), ["auc"])
    one, again, other = (bootstrap([sample], clusters, replicates=20, seed=seed) for seed in (3, 3, 4))
    assert (one["model", "auc"] == again["model", "auc"]).all()
    assert (one["model", "auc"] != other["model", "auc"]).any()


def test_systems_see_the_same_draws():
    prediction, label, group = rows_of_users(2)
    model, clusters = sample_of("model", prediction, label, group, ["auc", "log_loss"])
    twin, _ = sample_of("twin", prediction**3, label, group, ["auc", "log_loss"])
    found = bootstrap([model, twin], clusters, replicates=30, seed=0)
    assert np.abs(paired(found, "model", "twin", "auc")).max() < 1e-12  # the same ranking
    assert np.abs(paired(found, "model", "twin", "log_loss")).min() > 0


def test_rows_are_their_own_clusters_without_users():
    cluster, clusters = clusters_of(None, 4)
    assert clusters == 4
    assert cluster.tolist() == [0, 1, 2, 3]
    cluster, clusters = clusters_of(np.array([9, -1, 9, 5]), 4)
    assert clusters == 3
    assert cluster.tolist() == [2, 0, 2, 1]


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    """200 logs of 60 users with 10 rows each, whose rates differ: drawing rows would cover some two times in three."""
    covered = {"users": 0, "rows": 0}
    for seed in range(200):
        random = np.random.default_rng(seed)
        users = np.repeat(np.arange(60), 10)
        label = (random.random(600) < random.beta(1.0, 1.0, 60)[users]).astype(float)  # the rate is 0.5 in truth
        for drawn, group in (("users", users), ("rows", None)):
            sample, clusters = sample_of("model", np.full(600, 0.5), label, group, ["calibration"])
            found = interval(bootstrap([sample], clusters, replicates=60, seed=seed)["model", "calibration"], 0.9)
            assert found is not None
            covered[drawn] += found[0] <= 1 <= found[1]  # predicted over observed is 1 in truth
    assert 0.83 <= covered["users"] / 200 <= 0.96
    assert covered["rows"] / 200 < 0.75


def test_percentiles():
    # Of 99 draws the 5th and the 95th are the 5 % and 95 % quantiles.
    assert interval(np.arange(1.0, 100), 0.9) == pytest.approx((5, 95))
    few_undefined = np.append(np.arange(1.0, 100), np.nan)
    assert interval(few_undefined, 0.9) == pytest.approx((5, 95))
    assert interval(np.append(np.arange(20.0), [np.nan] * 2), 0.9) is None
    assert interval(np.full(10, np.nan), 0.9) is None
    assert interval(np.empty(0), 0.9) is None


@pytest.mark.parametrize("users", [0, 1])
def test_one_user_has_no_interval(users):
    prediction, label, _ = rows_of_users(3, rows=10 * users)
    sample, clusters = sample_of("model", prediction, label, np.zeros(10 * users, int), ["auc"])
    assert np.isnan(bootstrap([sample], clusters, replicates=4, seed=0)["model", "auc"]).all()


def test_a_draw_without_positives_is_undefined():
    # The one positive is one user's: more than a third of the draws miss that user.
    sample, clusters = sample_of("model", np.linspace(0, 1, 8), np.eye(8)[7], np.arange(8), ["auc"])
    found = bootstrap([sample], clusters, replicates=200, seed=0)["model", "auc"]
    assert 0.2 < np.isnan(found).mean() < 0.5
    assert interval(found, 0.95) is None


def test_the_weights_are_poisson():
    drawn = poisson_weights(1, 2, 1_000_000)
    assert drawn.mean() == pytest.approx(1, abs=0.004)
    assert drawn.var() == pytest.approx(1, abs=0.01)
    expected = stats.poisson(1).pmf(np.arange(7))
    assert np.bincount(drawn)[:7] / drawn.size == pytest.approx(expected, abs=0.002)
    assert (poisson_weights(1, 2, 50) == drawn[:50]).all()  # a user's draw does not depend on how many others there are
    assert (poisson_weights(1, 3, 50) != drawn[:50]).any()


def test_blocks_of_replicates_change_nothing(monkeypatch):
    rows = rows_of_kind("ordinal")
    sample = Sample("model", rows, *clusters_of(rows.group, len(rows))[:1], ["rmse", "kappa", "spearman"])
    whole = bootstrap([sample], 15, replicates=7, seed=3)
    monkeypatch.setattr(intervals, "_BLOCK", 30)
    for key, values in bootstrap([sample], 15, replicates=7, seed=3).items():
        assert values == pytest.approx(whole[key], abs=1e-13)


def test_p_value():
    assert p_value(np.linspace(0.1, 1, 999)) == pytest.approx(2 / 1000)
    assert p_value(-np.linspace(0.1, 1, 999)) == pytest.approx(2 / 1000)
    assert p_value(np.append(np.ones(975), -np.ones(24))) == pytest.approx(2 * 25 / 1000)
    assert p_value(np.zeros(99)) == 1
    assert p_value(np.linspace(-1, 1, 100)) == 1
    assert p_value(np.append(np.ones(9), np.nan)) is None
    assert p_value(np.empty(0)) is None


def test_few_users_widen_the_percentiles():
    draws = np.random.default_rng(0).normal(0, 1, 200_000)
    few, many = spread(np.array([1.0, -1.0] * 5)), spread(np.array([1.0, -1.0] * 50_000))
    assert interval(draws, 0.95, many) == pytest.approx(interval(draws, 0.95), abs=0.01)
    low, high = interval(draws, 0.95, few)
    assert high == pytest.approx(stats.t.ppf(0.975, 9) * np.sqrt(10 / 9), abs=0.03)
    assert low == pytest.approx(-high, abs=0.05)
    shifted = draws + 2.2
    assert p_value(shifted, few) == pytest.approx(2 * stats.t.sf(2.2 * np.sqrt(9 / 10), 9), rel=0.02)
    assert p_value(shifted) < 0.03 < 0.05 < p_value(shifted, few)
    assert p_value(draws, few) == pytest.approx(1, abs=0.02)
