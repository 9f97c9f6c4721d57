"""The table of figures: its values, its intervals by either method, from memory and from files."""

from dataclasses import replace

import numpy as np
import pytest

from recmtl.comparing import holm
from recmtl.errors import RunError
from recmtl.evaluation import evaluate, evaluation_record
from recmtl.evaluation.evaluate import examples, targets
from recmtl.evaluation.figures import measure_systems
from recmtl.evaluation.influence import clustered, clustered_difference
from recmtl.evaluation.intervals import IntervalsConfig
from recmtl.evaluation.spill import Spill
from recmtl.metrics import metrics_for

BOOTSTRAP = IntervalsConfig(draws=60)
INFLUENCE = IntervalsConfig(bootstrap_rows=0)


def figures(*arguments, **options):
    return measure_systems(*arguments, **options).figures()


@pytest.fixture
def systems(funnel):
    """The model, and a champion on the same rows that is noisier and lacks a task."""
    model, truth = funnel(seed=2, noise=0.4)
    noisy = {
        name: np.clip(values + np.random.default_rng(7).normal(0, 0.1, values.size), 0.001, 0.999).astype(np.float32)
        for name, values in model.predictions.items()
        if name != "stars"
    }
    return {"model": model, "champion": replace(model, predictions=noisy)}, truth


def by_key(rows):
    return {(row.target, row.metric): row for row in rows}


def test_every_target_metric_and_system(systems, tasks, statistics):
    scored, truth = systems
    rows = figures(scored, tasks, statistics, truth, BOOTSTRAP)
    expected = [(target.key, metric.name) for target in targets(tasks) for metric in metrics_for(target.task.kind)]
    assert [(row.target, row.metric) for row in rows] == expected
    values = evaluate(scored["model"], tasks)
    for row in rows:
        assert row.systems["model"].value == values[row.target][row.metric]
        assert row.rows == values[row.target]["rows"]
        assert row.positives == values[row.target].get("positives")
        assert next(iter(row.systems)) == "model"
        assert set(row.differences) <= row.systems.keys() - {"model"}
    click = by_key(rows)["click", "auc"]
    assert list(click.systems) == ["model", "champion", "baseline", "optimum"]
    assert click.headline
    assert click.method == "Poisson bootstrap over users, 60 draws"
    assert click.users == 40
    assert click.task == "click"
    assert list(by_key(rows)["stars", "rmse"].systems) == ["model", "baseline"]
    assert by_key(rows)["click", "calibration"].differences == {}
    ece = by_key(rows)["click", "ece"]
    assert (ece.method, ece.systems["model"].low) == ("none", None)
    baseline = click.systems["baseline"]
    assert (baseline.value, baseline.low, baseline.high) == (0.5, 0.5, 0.5)


@pytest.mark.parametrize("settings", [BOOTSTRAP, INFLUENCE])
def test_differences_are_paired_and_corrected_over_the_targets(systems, tasks, statistics, settings):
    scored, truth = systems
    rows = by_key(figures(scored, tasks, statistics, truth, settings))
    click = rows["click", "auc"]
    against = click.differences["champion"]
    assert against.value == click.systems["model"].value - click.systems["champion"].value
    assert against.low <= against.value <= against.high
    assert click.differences["optimum"].value < 0
    p_values = {
        key: row.differences["champion"].p_value
        for key, row in rows.items()
        if key[1] == "log_loss" and "champion" in row.differences
    }
    corrected = holm(p_values)
    assert len(corrected) == 4
    for key, value in corrected.items():
        assert rows[key].differences["champion"].p_corrected == value
    share = click.share_of_attainable
    assert share.value == pytest.approx(
        (click.systems["model"].value - 0.5) / (click.systems["optimum"].value - 0.5), abs=1e-12
    )
    assert share.low < share.value < share.high


def test_the_influence_function_is_that_of_the_module(systems, tasks, statistics):
    scored, _ = systems
    rows = by_key(figures(scored, tasks, statistics, None, INFLUENCE))
    target = targets(tasks)[0]
    one, other = (examples(system, target) for system in scored.values())
    for name in ("auc", "pr_auc", "user_auc", "log_loss"):
        row = rows["click", name]
        assert row.method == "influence function clustered by user"
        alone = clustered(one, name, one.group)
        assert (row.systems["model"].low, row.systems["model"].high) == pytest.approx((alone.low, alone.high))
        difference = clustered_difference(one, other, name, one.group)
        assert row.differences["champion"].p_value == pytest.approx(difference.p_value)


def same(one, other):
    """Two tables to 1e-9."""
    assert len(one) == len(other)
    for row, twin in zip(one, other, strict=True):
        left, right = row.model_dump(), twin.model_dump()
        for name in ("systems", "differences"):
            assert left[name].keys() == right[name].keys()
            for system in left[name]:
                assert left[name][system] == pytest.approx(right[name][system], abs=1e-9), (row.target, row.metric)
            del left[name], right[name]
        share, twin_share = left.pop("share_of_attainable"), right.pop("share_of_attainable")
        assert share == (None if twin_share is None else pytest.approx(twin_share, abs=1e-9))
        assert left == right


@pytest.mark.parametrize("users", [True, False])
def test_files_and_memory_agree(systems, tasks, statistics, tmp_path, users):
    scored, truth = systems
    if not users:
        scored = {name: replace(rows, group=None) for name, rows in scored.items()}
    whole = measure_systems(scored, tasks, statistics, truth, INFLUENCE)
    streaming = INFLUENCE.model_copy(update={"memory_rows": 10})
    found = measure_systems(scored, tasks, statistics, truth, streaming, folder=tmp_path, bucket_rows=70)
    same(found.figures(), whole.figures())
    assert list(tmp_path.iterdir()) == []
    for system in ("model", "champion", "baseline", "optimum"):
        one, other = found.values(system), whole.values(system)
        assert one.keys() == other.keys()
        for key in one:
            assert one[key] == pytest.approx(other[key], abs=1e-9)
    for key, values in found.main_effects.items():
        assert values == pytest.approx(whole.main_effects[key], abs=1e-9)
    for one, other in zip(found.measured, whole.measured, strict=True):
        assert np.array(one.reliability) == pytest.approx(np.array(other.reliability), abs=1e-9)


def test_columns_on_disk_are_streamed(systems, tasks, statistics, tmp_path):
    scored, _ = systems
    spilled = {}
    for name, rows in scored.items():
        with Spill(tmp_path / name) as spill:
            for role in ("predictions", "labels", "observed"):
                for column, values in getattr(rows, role).items():
                    spill.append(f"{role}:{column}", values)
            spill.append("group", rows.group)
            spill.append("row", rows.row)
        spilled[name] = replace(
            rows,
            predictions={key: spill.column(f"predictions:{key}", "float32") for key in rows.predictions},
            labels={key: spill.column(f"labels:{key}", "float32") for key in rows.labels},
            observed={key: spill.column(f"observed:{key}", "bool") for key in rows.observed},
            group=spill.column("group", "int64"),
            row=spill.column("row", "int64"),
        )
    found = figures(spilled, tasks, statistics, None, None, folder=tmp_path)
    same(found, figures(scored, tasks, statistics, None, INFLUENCE))


def test_no_draws_no_intervals(systems, tasks, statistics, tmp_path):
    scored, truth = systems
    for memory_rows in (10, 10**6):
        settings = IntervalsConfig(draws=0, memory_rows=memory_rows)
        for row in figures(scored, tasks, statistics, truth, settings, folder=tmp_path):
            assert row.method == "none"
            assert {figure.low for figure in row.systems.values()} == {None}


def test_the_record_is_made_of_what_was_measured(systems, tasks, statistics):
    scored, truth = systems
    only = {"model": scored["model"]}
    measured = measure_systems(only, tasks, statistics, truth, IntervalsConfig(draws=40))
    alone = evaluation_record({"test": scored["model"]}, tasks, statistics, {"test": truth}, replicates=40)
    given = evaluation_record(
        {"test": scored["model"]}, tasks, statistics, {"test": truth}, measured={"test": measured}
    )
    assert given == alone


def test_other_rows_are_refused(systems, tasks, statistics):
    scored, _ = systems
    moved = {**scored, "champion": replace(scored["champion"], row=scored["champion"].row + 1)}
    with pytest.raises(RunError, match="champion scored other rows than model"):
        figures(moved, tasks, statistics)
    fewer = replace(scored["champion"], row=scored["champion"].row[:-1])
    with pytest.raises(RunError, match="other scored other rows"):
        figures({"model": scored["model"], "other": fewer}, tasks, statistics)


@pytest.mark.parametrize("memory_rows", [1, 10**6])
def test_nothing_observed_and_no_rows(funnel, tasks, statistics, memory_rows):
    settings = IntervalsConfig(draws=5, memory_rows=memory_rows)
    scored, truth = funnel()
    blind = replace(scored, observed={name: np.zeros(600, bool) for name in tasks})
    for rows, known in ((blind, truth), (funnel(rows=0)[0], None)):
        for row in figures({"model": rows}, tasks, statistics, known, settings):
            assert row.rows == 0
            assert row.systems["model"].value is None
            assert row.systems["model"].low is None
