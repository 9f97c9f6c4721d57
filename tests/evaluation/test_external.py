"""Files against memory: the same values and the same influence, with ties, in small buckets and small pieces."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recmtl.evaluation import external
from recmtl.evaluation.external import Spill, cluster_numbers, measure_stream
from recmtl.metrics import METRICS, Examples, metrics_for
from recmtl.metrics.ece import reliability
from recmtl.metrics.user_auc import users_with_both

KINDS = ["binary", "regression", "ordinal", "multiclass"]


def rows_of(kind, seed, rows, distinct):
    """Rows whose predictions take few or many values; a few users have many of them."""
    random = np.random.default_rng(seed)
    group = (random.random(rows) ** 2 * (rows // 5 + 1)).astype(np.int64)
    prediction = random.integers(0, distinct, rows) / distinct
    if kind == "binary":
        return Examples(prediction, random.random(rows) < prediction * 0.5, group)
    if kind == "multiclass":
        return Examples(random.dirichlet(np.ones(3), rows).round(2), random.integers(0, 3, rows), group)
    levels = np.array([1.0, 2, 4, 5])
    label = (
        levels[random.integers(0, 4, rows)]
        if kind == "ordinal"
        else np.round(prediction + random.normal(0, 1, rows), 2)
    )
    return Examples(prediction * 5, label, group, levels=levels if kind == "ordinal" else None)


def measured(rows, kind, folder, piece=37, bucket_rows=50, **rest):
    cluster = np.unique(rows.group, return_inverse=True)[1].astype(np.int32)

    def stream():
        for start in range(0, len(rows), piece):
            here = slice(start, start + piece)
            yield Examples(rows.prediction[here], rows.label[here], levels=rows.levels), cluster[here]

    names = [metric.name for metric in metrics_for(kind)]
    clusters = int(cluster.max(initial=-1)) + 1
    found = measure_stream(stream, kind, clusters, folder, influence=names, table=10, bucket_rows=bucket_rows, **rest)
    return found, cluster, clusters


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    rows=st.integers(1, 400),
    distinct=st.sampled_from([1, 2, 5, 40, 10**6]),
    bucket_rows=st.sampled_from([1, 10, 90, 10**6]),
)
def test_as_in_memory(tmp_path_factory, kind, seed, rows, distinct, bucket_rows):
    examples = rows_of(kind, seed, rows, distinct)
    folder = tmp_path_factory.mktemp("sorted")
    found, cluster, clusters = measured(examples, kind, folder, bucket_rows=bucket_rows)
    assert found.clusters == clusters
    for metric in metrics_for(kind):
        expected = metric.compute(examples)
        assert found.values[metric.name] == (None if expected is None else pytest.approx(expected, abs=1e-9)), (
            metric.name
        )
        influence = metric.influences(examples)
        if influence is None:
            assert metric.name not in found.pulls
        else:
            of_cluster = np.bincount(cluster, influence, clusters)
            assert found.pulls[metric.name] == pytest.approx(of_cluster, abs=1e-9), metric.name
    if kind == "binary":
        assert found.values["positives"] == examples.label.sum()
        assert found.values["user_auc_users"] == users_with_both(examples)
    if kind != "multiclass":
        for one, other in zip(found.bins, reliability(examples, 10), strict=True):
            assert one == pytest.approx(other, abs=1e-9)


def test_files_are_gone_but_for_the_pulls(tmp_path):
    rows = rows_of("ordinal", 0, 300, 40)
    found, _, _ = measured(rows, "ordinal", tmp_path)
    left = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(left) == len(found.pulls)


def test_counts_alone_and_some_metrics_alone(tmp_path):
    rows = rows_of("binary", 1, 200, 40)
    found, _, _ = measured(rows, "binary", tmp_path, names=("auc", "pr_auc"))
    assert set(found.values) == {"auc", "pr_auc"}
    assert found.values["auc"] == pytest.approx(METRICS["auc"].compute(rows), abs=1e-12)


def test_nothing(tmp_path):
    rows = rows_of("binary", 0, 10, 4)
    nothing = Examples(rows.prediction[:0], rows.label[:0], rows.group[:0])
    found, _, _ = measured(nothing, "binary", tmp_path)
    assert found.values["rows"] == 0
    assert found.values["auc"] is None
    assert found.pulls == {}


def test_one_class_and_no_users(tmp_path):
    rows = rows_of("binary", 0, 100, 10)
    found, _, _ = measured(replace(rows, label=np.ones(100)), "binary", tmp_path)
    assert (found.values["auc"], found.values["pr_auc"], found.values["user_auc"]) == (None, 1, None)
    found, _, _ = measured(rows, "binary", tmp_path, by_user=False)
    assert found.values["user_auc"] is None
    assert found.values["user_auc_users"] is None


def test_users_get_numbers(tmp_path, monkeypatch):
    monkeypatch.setattr(external, "PIECE", 10)
    group = np.random.default_rng(0).integers(-(10**15), 10**15, 40)[np.random.default_rng(1).integers(0, 40, 5000)]
    monkeypatch.setattr(external, "pieces", lambda rows: ((at, min(at + 70, rows)) for at in range(0, rows, 70)))
    with Spill(tmp_path / "a") as spill:
        column, clusters = cluster_numbers(group, 5000, spill)
    users, expected = np.unique(group, return_inverse=True)
    assert clusters == users.size
    assert (column == expected).all()
    with Spill(tmp_path / "b") as spill:
        column, clusters = cluster_numbers(None, 100, spill)
    assert column.tolist() == list(range(100))
    assert clusters == 100
