"""Which rows a task is judged on, in which units, beside which baseline and optimum."""

import json
from dataclasses import replace

import numpy as np
import pytest

from recmtl.errors import RunError
from recmtl.evaluation import Scored, baseline, evaluate, optimum
from recmtl.evaluation.optimum import main_effects, share_of_attainable
from recmtl.metrics import METRICS
from recmtl.statistics import LabelStatistics, Statistics
from recmtl.tasks import Observed, Task, Tasks

# Six rows: clicks on the first three; the last row's purchase was not mature, nor was the third's.
FUNNEL = Tasks(
    [
        Task(name="click", kind="binary", label="is_click"),
        Task(name="purchase", kind="binary", label="bought", parent="click"),
        Task(name="stars", kind="ordinal", label="stars", levels=(1, 2, 5), observed=Observed(when="click")),
    ]
)
SIX = Scored(
    predictions={
        "click": np.array([0.9, 0.8, 0.4, 0.5, 0.2, 0.1], np.float32),
        "purchase": np.array([0.5, 0.2, 0.2, 0.3, 0.1, 0.0], np.float32),
        "purchase_given_click": np.array([0.55, 0.25, 0.5, 0.6, 0.5, 0.1], np.float32),
        "stars": np.array([4.0, 2.0, 1.5, 3.0, 3.0, 3.0], np.float32),
    },
    labels={
        "click": np.array([1, 1, 1, 0, 0, 0], np.float32),
        "purchase": np.array([1, 0, 0, 0, 0, 0], np.float32),
        "stars": np.array([2, 0, 1, 0, 0, 0], np.float32),  # 5, 1 and 2 stars
    },
    observed={
        "click": np.ones(6, bool),
        "purchase": np.array([1, 1, 0, 1, 1, 0], bool),
        "stars": np.array([1, 1, 1, 0, 0, 0], bool),
    },
    group=np.array([1, 1, 2, 2, 3, 3]),
    row=np.arange(6),
)


def test_six_rows_by_hand() -> None:
    found = evaluate(SIX, FUNNEL)
    assert list(found) == ["click", "purchase", "purchase_given_click", "stars"]
    assert (found["click"]["rows"], found["click"]["positives"]) == (6, 3)
    assert found["click"]["auc"] == pytest.approx(8 / 9)  # 0.4 < 0.5 alone is wrong
    assert found["click"]["user_auc_users"] == 1  # user 2
    assert found["click"]["user_auc"] == 0
    # The product on all four rows that are mature; the conditional on the two of them that were clicked.
    assert (found["purchase"]["rows"], found["purchase"]["positives"]) == (4, 1)
    assert found["purchase"]["auc"] == 1
    assert found["purchase"]["calibration"] == pytest.approx(1.1)
    assert (found["purchase_given_click"]["rows"], found["purchase_given_click"]["positives"]) == (2, 1)
    assert found["purchase_given_click"]["calibration"] == pytest.approx(0.8)
    # Levels, not their positions: errors of 1, 1 and 0.5 stars.
    assert found["stars"]["rows"] == 3
    assert found["stars"]["rmse"] == pytest.approx(np.sqrt(2.25 / 3))
    assert found["stars"]["spearman"] == pytest.approx(0.5)
    assert "positives" not in found["stars"]


def test_the_conditional_needs_its_own_label_and_its_parents() -> None:
    unknown_parent = SIX.observed["click"] & (np.arange(6) != 0)
    found = evaluate(replace(SIX, observed={**SIX.observed, "click": unknown_parent}), FUNNEL)
    assert found["purchase_given_click"]["rows"] == 1


def test_a_chain_of_parents() -> None:
    tasks = Tasks([*FUNNEL.values(), Task(name="again", kind="binary", label="again", parent="purchase")])
    scored = replace(
        SIX,
        predictions={**SIX.predictions, "again": SIX.predictions["purchase"], "again_given_purchase": np.full(6, 0.5)},
        labels={**SIX.labels, "again": np.array([1, 0, 0, 0, 0, 0], np.float32)},
        observed={**SIX.observed, "again": SIX.observed["purchase"]},
    )
    found = evaluate(scored, tasks)
    assert found["again"]["rows"] == 4
    assert found["again_given_purchase"]["rows"] == 1


def test_every_metric_of_the_kind_is_there(funnel, tasks) -> None:
    found = evaluate(funnel()[0], tasks)
    for key, values in found.items():
        kind = tasks[key.split("_given_")[0]].kind
        expected = {name for name, metric in METRICS.items() if kind in metric.kinds}
        assert expected <= values.keys()
        assert None not in values.values()
    json.dumps(found, allow_nan=False)


def test_masked_rows_change_nothing(funnel, tasks) -> None:
    scored, _ = funnel()
    random = np.random.default_rng(1)
    labels = {
        name: np.where(scored.observed[name], values, random.integers(0, 2, len(scored))).astype(np.float32)
        for name, values in scored.labels.items()
    }
    predictions = {
        name: np.where(scored.observed[name.split("_")[0]], values, random.random(len(scored)))
        for name, values in scored.predictions.items()
    }
    assert evaluate(replace(scored, labels=labels, predictions=predictions), tasks) == evaluate(scored, tasks)


def test_shuffled_rows_change_nothing(funnel, tasks) -> None:
    scored, _ = funnel()
    order = np.random.default_rng(1).permutation(len(scored))

    def shuffled(columns):
        return {name: values[order] for name, values in columns.items()}

    other = Scored(
        shuffled(scored.predictions), shuffled(scored.labels), shuffled(scored.observed), scored.group[order], order
    )
    for key, values in evaluate(other, tasks).items():
        assert values == pytest.approx(evaluate(scored, tasks)[key], abs=1e-12)


def test_a_task_without_an_observed_row_has_null_metrics(funnel, tasks) -> None:
    scored, _ = funnel()
    nothing = {**scored.observed, "purchase": np.zeros(len(scored), bool)}
    found = evaluate(replace(scored, observed=nothing), tasks)
    for key in ("purchase", "purchase_given_click"):
        counts = {"rows", "positives", "user_auc_users"}
        assert {found[key][name] for name in counts} == {0}
        assert {value for name, value in found[key].items() if name not in counts} == {None}


def test_no_rows_at_all(funnel, tasks, statistics) -> None:
    scored, truth = funnel(rows=0)
    none = {name: np.empty(0) for name in truth}
    for found in (evaluate(scored, tasks), baseline(scored, tasks, statistics), optimum(scored, tasks, none)):
        assert {values["rows"] for values in found.values()} == {0}


def test_without_users_no_user_auc(funnel, tasks) -> None:
    found = evaluate(replace(funnel()[0], group=None), tasks)
    assert found["click"]["user_auc"] is None
    assert found["click"]["user_auc_users"] is None


def test_the_baseline_predicts_the_training_mean(funnel, tasks, statistics) -> None:
    scored, _ = funnel()
    found = baseline(scored, tasks, statistics)
    rate = scored.labels["click"].mean()
    assert found["click"]["auc"] == 0.5
    assert found["click"]["log_loss"] == pytest.approx(-rate * np.log(0.3) - (1 - rate) * np.log(0.7))
    share = scored.labels["watched"][scored.observed["watched"]].astype(float)
    assert found["watched"]["rmse"] == pytest.approx(np.sqrt(((share - 0.5) ** 2).mean()))
    assert found["watched"]["spearman"] is None
    assert found["purchase"]["calibration"] == pytest.approx(
        0.1 * found["purchase"]["rows"] / found["purchase"]["positives"]
    )
    given = found["purchase_given_click"]
    assert given["calibration"] == pytest.approx(0.33 * given["rows"] / given["positives"])
    mood = scored.labels["mood"].astype(int)
    assert found["mood"]["log_loss"] == pytest.approx(-np.log(np.array([0.2, 0.5, 0.3])[mood]).mean())
    assert found["mood"]["accuracy"] == pytest.approx((mood == 1).mean())


def test_no_baseline_where_train_has_no_label(funnel, tasks, statistics) -> None:
    unknown = Statistics({}, {}, {**statistics.labels, "watched": LabelStatistics(0, None, None)})
    found = baseline(funnel()[0], tasks, unknown)
    assert "watched" not in found
    assert "purchase_given_click" not in found
    assert "click" in found


def test_the_optimum_is_the_truths_metrics_on_the_observed_rows(funnel, tasks) -> None:
    scored, truth = funnel()
    found = optimum(scored, tasks, truth)
    assert list(found) == ["click", "purchase", "purchase_given_click", "watched"]
    perfect = {"click": "label:is_click", "purchase": "label:bought", "purchase_given_click": "given:bought"}
    perfect["watched"] = "label:share"
    model = replace(scored, predictions={**scored.predictions, **{key: truth[name] for key, name in perfect.items()}})
    expected = evaluate(model, tasks)
    assert found == {key: expected[key] for key in perfect}


def test_no_model_is_better_than_the_truth_by_more_than_noise(funnel, tasks) -> None:
    scored, truth = funnel(rows=20_000, users=2_000)
    model, best = evaluate(scored, tasks), optimum(scored, tasks, truth)
    for key in ("click", "purchase", "purchase_given_click"):
        assert model[key]["auc"] < best[key]["auc"]
        assert model[key]["log_loss"] > best[key]["log_loss"]


def test_a_truth_that_lacks_observed_rows_is_refused(funnel, tasks) -> None:
    scored, truth = funnel()
    holed = {**truth, "label:bought": np.where(scored.observed["purchase"], truth["label:bought"], np.nan)}
    assert optimum(scored, tasks, holed) == optimum(scored, tasks, truth)  # where it is not observed it may be missing
    holed["label:is_click"] = np.where(np.arange(len(scored)) == 7, np.nan, truth["label:is_click"])
    with pytest.raises(RunError, match="'label:is_click' is missing on 1 rows"):
        optimum(scored, tasks, holed)
    with pytest.raises(RunError, match="has 3 rows, but 600 were scored"):
        optimum(scored, tasks, {"label:is_click": np.zeros(3)})


def test_main_effects_are_judged_by_their_ranking_alone(funnel, tasks) -> None:
    scored, truth = funnel()
    found = main_effects(scored, tasks, truth)
    assert list(found) == ["click"]
    assert set(found["click"]) == {"auc", "user_auc", "pr_auc"}


@pytest.mark.parametrize(
    ("auc", "best", "share"), [(0.7, 0.9, 0.5), (0.4, 0.6, -1), (0.5, 0.5, None), (None, 0.8, None), (0.6, None, None)]
)
def test_share_of_attainable(auc, best, share) -> None:
    assert share_of_attainable(auc, best) == (None if share is None else pytest.approx(share))
