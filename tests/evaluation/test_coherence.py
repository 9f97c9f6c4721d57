"""Audits by hand: predictions that contradict each other, labels that were masked because they cannot be."""

from dataclasses import replace

import numpy as np
import pytest

from recmtl.evaluation import Scored
from recmtl.evaluation.coherence import coherence, event_audits, label_audits, prediction_audits
from recmtl.manifest import Columns, Manifest, SplitSummary, TaskSummary
from recmtl.schema import Feature
from recmtl.tasks import Observed, Task, Tasks

TASKS = Tasks(
    [
        Task(name="click", kind="binary", label="c"),
        Task(name="order", kind="binary", label="o", parent="click"),
        Task(name="share", kind="binary", label="s", observed=Observed(when="click")),
        Task(name="stars", kind="ordinal", label="r", levels=(1, 2, 5)),
        Task(name="watched", kind="regression", label="w", range=(0, 1)),
        Task(name="dwell", kind="regression", label="d"),
        Task(name="mood", kind="multiclass", label="m", classes=("up", "down")),
    ]
)


def scored(rows=4, **predictions):
    usual = {
        "click": [0.5] * rows,
        "order": [0.5] * rows,
        "order_given_click": [1.0] * rows,
        "share": [0.9] * rows,
        "stars": [3.0] * rows,
        "watched": [0.5] * rows,
        "dwell": [-7.0] * rows,
        "mood_up": [0.25] * rows,
        "mood_down": [0.75] * rows,
    }
    columns = {name: np.array(values, np.float32) for name, values in (usual | predictions).items()}
    nothing = {name: np.zeros(rows, np.float32) for name in TASKS}
    return Scored(columns, nothing, {name: np.zeros(rows, bool) for name in TASKS}, None, np.arange(rows))


def wrong(**predictions):
    return {one.text: one.rows for one in prediction_audits({"model": scored(**predictions)}, TASKS) if one.rows}


def test_what_is_looked_at():
    found = list(prediction_audits({"model": scored()}, TASKS))
    assert [one.text for one in found] == [
        "a prediction of click outside 0 to 1",
        "p(order) > p(click)",
        "a prediction of order outside 0 to 1",
        "a prediction of share outside 0 to 1",
        "a prediction of stars outside 1 to 5",
        "a prediction of watched outside 0 to 1",
        "the probabilities of mood do not sum to 1",
    ]
    assert all((one.kind, one.system, one.rows, one.of, one.share) == ("prediction", "model", 0, 4, 0) for one in found)


@pytest.mark.parametrize(
    ("predictions", "expected"),
    [
        ({"order": [0.6, 0.5, 0.4, 0.51]}, {"p(order) > p(click)": 2}),
        ({"order": [0.5 + 3e-8, 0.5, 0.5, 0.5]}, {}),
        ({"stars": [0.9, 5.1, 5.0, 1.0]}, {"a prediction of stars outside 1 to 5": 2}),
        ({"watched": [1.5, 0.0, 1.0, -0.5]}, {"a prediction of watched outside 0 to 1": 2}),
        ({"mood_up": [0.25, 0.3, 0.25, 0.25]}, {"the probabilities of mood do not sum to 1": 1}),
    ],
)
def test_predictions_that_cannot_be(predictions, expected):
    assert wrong(**predictions) == expected


def test_each_system_is_asked_about_what_it_predicts():
    model, other = scored(), scored(order=[0.9] * 4)
    alone = replace(other, predictions={"order": other.predictions["order"]})
    assert [one.text for one in prediction_audits({"o": alone}, TASKS)] == ["a prediction of order outside 0 to 1"]
    other = replace(other, predictions={name: other.predictions[name] for name in ("click", "order")})
    found = {
        one.system: one.share for one in prediction_audits({"model": model, "other": other}, TASKS) if ">" in one.text
    }
    assert found == {"model": 0, "other": 1}


def test_no_rows_have_no_share():
    assert all(one.share is None for one in prediction_audits({"model": scored(rows=0)}, TASKS))


def manifest(**masked):
    summaries = {name: TaskSummary(observed=90, masked=masked.get(name, {"missing": 10})) for name in TASKS}
    split = SplitSummary(rows=100, shards=(), tasks=summaries)
    return Manifest(
        name="m",
        source="table",
        fingerprint="0",
        statistics="0",
        features=(Feature(name="user", kind="id"),),
        tasks=tuple(TASKS.values()),
        columns=Columns(),
        splits={"train": split, "test": split},
    )


def test_labels_that_cannot_be():
    masked = {
        "order": {"immature": 5, "contradiction": 10},
        "stars": {"missing": 2, "invalid": 4, "not_applicable": 6},
    }
    found = {one.text: one for one in label_audits(manifest(**masked), "test")}
    assert list(found) == ["an order without a click (test)", "a label of stars that is none of its values (test)"]
    order, stars = found.values()
    assert (order.kind, order.system, order.rows, order.of) == ("label", None, 10, 100)
    assert order.share == pytest.approx(0.1)
    assert (stars.rows, stars.of) == (4, 100)


def test_events_that_follow_nothing():
    log = manifest().model_copy(
        update={
            "read": {"impression": 900, "order": 40},
            "unattributed": {"order": {"no click of its key": 3, "outside the window after the click": 9}, "click": {}},
        }
    )
    (found,) = event_audits(log)
    assert (found.text, found.rows, found.of) == ("order events: no click of its key", 3, 40)
    assert found in coherence({"model": scored()}, TASKS, log, "test")


def test_all_of_it():
    found = coherence({"model": scored()}, TASKS, manifest(), "test")
    assert [one.text for one in found if one.kind == "label"] == [
        "an order without a click (test)",
        "an order without a click (train)",
    ]
    assert sum(one.kind == "prediction" for one in found) == 7
    assert len(coherence({"model": scored()}, TASKS, manifest(), "train")) == 8
    assert not list(label_audits(manifest(), "validation"))
