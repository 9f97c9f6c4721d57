"""What every metric in METRICS keeps to; a newcomer to the table is tested at once."""

import json
import math

import numpy as np
import pytest

from recmtl.metrics import METRICS, Examples, metrics_for
from recmtl.tasks import TaskKind

CASES = [(name, kind) for name, metric in METRICS.items() for kind in metric.kinds]
LEVELS = np.array([1.0, 2.0, 3.0, 4.0, 5.0])

pytestmark = pytest.mark.parametrize(("name", "kind"), CASES)


def some_rows(kind: TaskKind, rows: int = 300, seed: int = 0, **changes: object) -> Examples:
    """Rows with ties among predictions and labels, and users who have several."""
    random = np.random.default_rng(seed)
    group = random.integers(0, rows // 6 + 1, rows)
    levels = None
    if kind == "binary":
        prediction = random.integers(1, 20, rows) / 20
        label = (random.random(rows) < prediction).astype(float)
    elif kind == "multiclass":
        prediction = random.dirichlet(np.ones(3), rows)
        label = random.integers(0, 3, rows).astype(float)
    else:
        label = LEVELS[random.integers(0, 5, rows)]
        prediction = np.round(label * 0.6 + random.normal(1, 1, rows), 1)
        levels = LEVELS if kind == "ordinal" else None
    values = {"prediction": prediction, "label": label, "group": group, "levels": levels} | changes
    return Examples(**values)  # type: ignore[arg-type]


def take(rows: Examples, index: np.ndarray, weight: np.ndarray | None = None) -> Examples:
    group = None if rows.group is None else rows.group[index]
    return Examples(rows.prediction[index], rows.label[index], group, weight, rows.levels)


def compute(name: str, rows: Examples) -> float | None:
    return METRICS[name].compute(rows)


def test_its_line_in_the_table(name: str, kind: TaskKind) -> None:
    metric = METRICS[name]
    assert metric.name == name
    assert metric in metrics_for(kind)
    assert metric.meaning
    assert metric.higher_is_better in (True, False, None)


def test_a_finite_number_that_json_takes(name: str, kind: TaskKind) -> None:
    value = compute(name, some_rows(kind))
    assert isinstance(value, float)
    assert math.isfinite(value)
    json.dumps(value, allow_nan=False)


def test_the_order_of_the_rows_does_not_matter(name: str, kind: TaskKind) -> None:
    rows = some_rows(kind)
    shuffled = take(rows, np.random.default_rng(5).permutation(len(rows)))
    assert compute(name, shuffled) == pytest.approx(compute(name, rows), abs=1e-13)


def test_a_row_of_weight_two_is_two_rows(name: str, kind: TaskKind) -> None:
    rows = some_rows(kind)
    weight = np.random.default_rng(6).integers(0, 4, len(rows))
    repeated = np.repeat(np.arange(len(rows)), weight)
    weighted = take(rows, np.arange(len(rows)), weight.astype(float))
    assert compute(name, weighted) == pytest.approx(compute(name, take(rows, repeated)), abs=1e-12)


def test_the_scale_of_the_weights_does_not_matter(name: str, kind: TaskKind) -> None:
    rows = some_rows(kind)
    weight = np.random.default_rng(7).random(len(rows))
    every = np.arange(len(rows))
    once, thrice = take(rows, every, weight), take(rows, every, 3 * weight)
    assert compute(name, thrice) == pytest.approx(compute(name, once), abs=1e-12)


def test_prepared_once_it_is_a_function_of_the_weights(name: str, kind: TaskKind) -> None:
    rows, random = some_rows(kind), np.random.default_rng(8)
    by_weight = METRICS[name].by_weight(rows)
    for _ in range(3):
        weight = random.integers(0, 3, len(rows)).astype(float)
        assert by_weight(weight) == compute(name, take(rows, np.arange(len(rows)), weight))


def test_no_rows_is_undefined(name: str, kind: TaskKind) -> None:
    rows = some_rows(kind)
    assert compute(name, take(rows, np.array([], int))) is None
    assert compute(name, take(rows, np.arange(len(rows)), np.zeros(len(rows)))) is None


@pytest.mark.parametrize("label", [0.0, 1.0])
def test_one_label_alone_neither_fails_nor_is_nan(name: str, kind: TaskKind, label: float) -> None:
    rows = some_rows(kind)
    if kind == "ordinal":
        label = LEVELS[int(label)]
    value = compute(name, some_rows(kind, label=np.full(len(rows), label)))
    assert value is None or math.isfinite(value)


def test_one_prediction_alone_neither_fails_nor_is_nan(name: str, kind: TaskKind) -> None:
    rows = some_rows(kind)
    value = compute(name, some_rows(kind, prediction=np.repeat(rows.prediction[:1], len(rows), axis=0)))
    assert value is None or math.isfinite(value)


def test_one_row_neither_fails_nor_is_nan(name: str, kind: TaskKind) -> None:
    value = compute(name, take(some_rows(kind), np.array([0])))
    assert value is None or math.isfinite(value)


def test_certain_predictions_neither_fail_nor_are_infinite(name: str, kind: TaskKind) -> None:
    if kind not in ("binary", "multiclass"):
        pytest.skip("for probabilities")
    rows = some_rows(kind)
    certain = np.eye(3)[np.zeros(len(rows), int)] if kind == "multiclass" else np.arange(len(rows)) % 2
    value = compute(name, some_rows(kind, prediction=certain))
    assert value is not None
    assert math.isfinite(value)


def test_the_direction_is_right(name: str, kind: TaskKind) -> None:
    metric, rows = METRICS[name], some_rows(kind)
    if metric.higher_is_better is None:
        pytest.skip("best at one value")
    right = np.eye(3)[rows.label.astype(int)] if kind == "multiclass" else rows.label
    perfect = compute(name, some_rows(kind, prediction=right))
    usual = compute(name, rows)
    assert perfect is not None
    assert usual is not None
    assert perfect > usual if metric.higher_is_better else perfect < usual


def test_without_users_only_what_needs_them_is_undefined(name: str, kind: TaskKind) -> None:
    value = compute(name, some_rows(kind, group=None))
    assert (value is None) == (name == "user_auc")
