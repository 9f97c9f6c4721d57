"""The evaluation's part of metrics.json."""

import json
from dataclasses import replace

import numpy as np
import pytest

from recmtl.evaluation import baseline, evaluate, evaluation_record, optimum
from recmtl.evaluation.record import NOT_RESAMPLED


@pytest.fixture
def record(funnel, tasks, statistics):
    validation, _ = funnel(seed=1)
    test, truth = funnel(seed=2, noise=1.0)
    return evaluation_record(
        {"validation": validation, "test": test}, tasks, statistics, {"test": truth}, replicates=40
    )


def test_its_parts_are_those_of_the_single_functions(record, funnel, tasks, statistics):
    validation, _ = funnel(seed=1)
    test, truth = funnel(seed=2, noise=1.0)
    assert record["validation"] == evaluate(validation, tasks)
    assert record["test"] == evaluate(test, tasks)
    assert record["validation_baseline"] == baseline(validation, tasks, statistics)
    assert record["baseline"] == baseline(test, tasks, statistics)
    assert record["optimum"] == optimum(test, tasks, truth)
    assert "validation_optimum" not in record
    assert record["evaluated_on"] == "test"


def test_json_holds_it(record):
    assert json.loads(json.dumps(record, allow_nan=False)) == record


def test_figures_lie_within_their_intervals(record):
    for system, values in (("model", record["test"]), ("optimum", record["optimum"])):
        for key, metrics in record["intervals"][system].items():
            for name, ends in metrics.items():
                if ends is not None and name not in NOT_RESAMPLED:
                    assert ends[0] <= values[key][name] <= ends[1], (system, key, name)


def test_every_figure_but_the_stated_ones_has_an_interval(record):
    for key, values in record["test"].items():
        metrics = {name for name in values if name not in ("rows", "positives", "user_auc_users")}
        assert set(record["intervals"]["model"][key]) == metrics - NOT_RESAMPLED


def test_differences_are_paired_and_have_a_direction(record):
    intervals = record["intervals"]
    click = intervals["model_minus_optimum"]["click"]
    low, high = click["auc"]
    assert high < 0  # the model is noisier than the truth on the same rows ...
    model, best = intervals["model"]["click"]["auc"], intervals["optimum"]["click"]["auc"]
    assert model[1] > best[0]  # ... which the two intervals apart would not tell
    assert low <= record["test"]["click"]["auc"] - record["optimum"]["click"]["auc"] <= high
    assert "calibration" not in click


def test_share_of_attainable(record):
    share = record["share_of_attainable"]["click"]
    assert share == pytest.approx((record["test"]["click"]["auc"] - 0.5) / (record["optimum"]["click"]["auc"] - 0.5))
    low, high = record["intervals"]["share_of_attainable"]["click"]
    assert low <= share <= high
    assert set(record["share_of_attainable"]) == {"click", "purchase", "purchase_given_click"}
    assert record["main_effects"]["click"]["auc"] < record["optimum"]["click"]["auc"]


def test_reliability_adds_up(record):
    for key, bins in record["reliability"].items():
        assert sum(rows for rows, _, _ in bins) == record["test"][key]["rows"]
    assert len(record["reliability"]["click"]) == 10
    assert "mood" not in record["reliability"]


def test_validation_alone_is_what_is_evaluated_until_there_is_a_test(funnel, tasks, statistics):
    rows, truth = funnel()
    record = evaluation_record({"validation": rows}, tasks, statistics, {"validation": truth}, replicates=5)
    assert record["evaluated_on"] == "validation"
    assert record["baseline"] == record["validation_baseline"]
    assert record["optimum"] == record["validation_optimum"]
    assert "test" not in record


def test_real_logs_have_no_optimum(funnel, tasks, statistics):
    for truth in (None, {}, {"test": {}}):
        record = evaluation_record({"test": funnel()[0]}, tasks, statistics, truth, replicates=5)
        assert not record.keys() & {"optimum", "share_of_attainable", "main_effects"}
        assert record["intervals"].keys() == {"model", "baseline", "model_minus_baseline"}


def test_without_replicates_no_intervals(funnel, tasks, statistics):
    record = evaluation_record({"test": funnel()[0]}, tasks, statistics, replicates=0)
    assert "intervals" not in record


def test_without_users_rows_are_drawn(funnel, tasks, statistics):
    rows = replace(funnel()[0], group=None)
    record = evaluation_record({"test": rows}, tasks, statistics, replicates=5)
    assert record["bootstrap"]["drawn"] == "rows"
    assert record["bootstrap"]["clusters"] == 600


def test_nothing_observed_and_nothing_scored(funnel, tasks, statistics):
    rows, truth = funnel()
    blind = replace(rows, observed={name: np.zeros(600, bool) for name in tasks})
    record = evaluation_record({"test": blind}, tasks, statistics, {"test": truth}, replicates=5)
    assert record["intervals"]["model"]["click"]["auc"] is None
    assert record["share_of_attainable"]["click"] is None
    empty, _ = funnel(rows=0)
    assert evaluation_record({"test": empty}, tasks, statistics, replicates=5)["test"]["click"]["auc"] is None
    assert evaluation_record({}, tasks, statistics) == {}
