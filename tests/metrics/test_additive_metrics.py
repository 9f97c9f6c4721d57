"""Metrics that are functions of sums: the same from the rows, from the sums of users, and from rows written out."""

import ast
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import recmtl.metrics
from recmtl.metrics import METRICS, Examples

USERS = 12
ADDITIVE = [(kind, metric) for metric in METRICS.values() if metric.additive for kind in metric.kinds]


def rows_of(kind, seed, rows=150):
    random = np.random.default_rng(seed)
    user = random.integers(0, USERS, rows)
    if kind == "multiclass":
        return Examples(random.dirichlet(np.ones(4), rows), random.integers(0, 4, rows), user)
    if kind == "binary":
        prediction = np.round(random.random(rows), 1)
        return Examples(prediction, random.random(rows) < prediction, user)
    label = random.integers(1, 6, rows)
    levels = np.arange(1.0, 6.0) if kind == "ordinal" else None
    return Examples(np.round(label / 2 + random.normal(1, 1, rows), 1), label, user, levels=levels)


def by_sums_of_users(metric, rows, weight_of_user):
    sums = [weight_of_user @ np.bincount(rows.group, term, USERS) for term in metric.additive.terms(rows)]
    return metric.additive.values(np.array([sums]))[0]


def test_those_that_rank_rows_are_the_ones_that_need_them():
    assert {name for name, metric in METRICS.items() if not metric.additive} == {
        "auc",
        "pr_auc",
        "ece",
        "spearman",
        "macro_auc",
    }


@pytest.mark.parametrize(("kind", "metric"), ADDITIVE, ids=lambda part: getattr(part, "name", part))
def test_rows_sums_and_copies_agree(kind, metric):
    for seed in range(5):
        rows = rows_of(kind, seed)
        weight = np.random.default_rng((seed, 1)).integers(0, 4, USERS)
        copies = np.repeat(np.arange(len(rows)), weight[rows.group])
        written_out = Examples(rows.prediction[copies], rows.label[copies], rows.group[copies], levels=rows.levels)
        value = metric.compute(replace(rows, weight=weight[rows.group]))
        assert by_sums_of_users(metric, rows, weight) == pytest.approx(value, abs=1e-12)
        assert metric.compute(written_out) == pytest.approx(value, abs=1e-12)
        halves = metric.compute(replace(rows, weight=weight[rows.group] / 2))
        assert halves == pytest.approx(value, abs=1e-12)


@pytest.mark.parametrize(("kind", "metric"), ADDITIVE, ids=lambda part: getattr(part, "name", part))
def test_rows_and_sums_are_undefined_together(kind, metric):
    rows = rows_of(kind, 7)
    constant = replace(rows, prediction=np.broadcast_to(rows.prediction[0], rows.prediction.shape))
    for label in np.unique(rows.label):
        for case in (
            replace(constant, label=np.full(len(rows), label)),
            replace(rows, label=np.full(len(rows), label)),
        ):
            for weight in (np.ones(USERS), np.eye(USERS)[3] * 0.1, np.zeros(USERS)):
                value = metric.compute(replace(case, weight=weight[case.group]))
                summed = by_sums_of_users(metric, case, weight)
                assert np.isnan(summed) if value is None else summed == pytest.approx(value, abs=1e-12)
    assert metric.compute(replace(rows, weight=np.zeros(len(rows)))) is None


def test_several_replicates_at_once_are_each_alone():
    metric, rows = METRICS["kappa"], rows_of("ordinal", 3)
    weights = np.random.default_rng(4).random((6, len(rows)))
    sums = weights @ np.stack(metric.additive.terms(rows), axis=1)
    each = [metric.compute(replace(rows, weight=weight)) for weight in weights]
    assert metric.additive.values(sums) == pytest.approx(each, abs=1e-12)


def test_no_metric_uses_the_threads_of_blas():
    """They wait by spinning: from the threads of the bootstrap that costs many times the work (metrics.base.dot)."""
    for file in Path(recmtl.metrics.__file__).parent.glob("*.py"):
        assert not any(isinstance(node, ast.MatMult) for node in ast.walk(ast.parse(file.read_text()))), file.name
