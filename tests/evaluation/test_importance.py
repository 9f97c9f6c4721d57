"""Importance: the encoded feature shuffled, AUC by scikit-learn, a linear model's attributions by hand."""

import math
from collections.abc import Callable, Iterator, Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor

from recmtl.batch import Batch, SparseBatch
from recmtl.etl.encode import Encoder
from recmtl.evaluation import importance as module
from recmtl.evaluation.importance import ImportanceConfig, importance
from recmtl.findings import Importance
from recmtl.loading import to_batch
from recmtl.metrics import Examples
from recmtl.tasks import Observed, Task, Tasks

CLICK = Task(name="click", kind="binary", label="click")


class Linear:
    """A model whose x_BD is the batch's numbers, a feature a column (``wide`` two)."""

    def __init__(self, predict: Callable[[Tensor], Mapping[str, Tensor]], features: Mapping[str, int]) -> None:
        edges = np.cumsum([0, *features.values()]).tolist()
        columns = {name: slice(a, b) for name, a, b in zip(features, edges, edges[1:], strict=False)}
        self.features = SimpleNamespace(columns=columns)
        self.training = True
        self.predict = predict

    def embed(self, batch: Batch) -> Tensor:
        assert not self.training
        return batch.dense

    def decide(self, x_BD: Tensor) -> Tensor:
        return x_BD

    def predictions(self, x_BD: Tensor) -> Mapping[str, Tensor]:
        return self.predict(x_BD)

    def eval(self) -> None:
        self.training = False

    def train(self, mode: bool) -> None:
        self.training = mode


class Rows:
    """A loader over rows in memory."""

    split = "test"

    def __init__(self, x: Tensor, labels: Mapping[str, Any], users: Any, observed: Mapping[str, Any] = {}) -> None:
        self.x, self.users = x, torch.as_tensor(users)
        self.labels = {name: torch.as_tensor(values).float() for name, values in labels.items()}
        self.observed = {name: torch.as_tensor(observed.get(name, np.ones(len(x), bool))) for name in labels}
        self.rows, self.batch_size = len(x), 64
        self.batches = -(-self.rows // 64)

    def epoch(self, number: int, start: int = 0) -> Iterator[Batch]:
        for first in range(0, self.rows, 64):
            here = slice(first, first + 64)
            yield Batch(
                size=len(self.x[here]),
                sparse=SparseBatch((), torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.int32)),
                dense=self.x[here],
                labels={name: values[here] for name, values in self.labels.items()},
                observed={name: values[here] for name, values in self.observed.items()},
                weights={},
                group=self.users[here],
                row=torch.arange(first, first + len(self.x[here])),
            )


WEIGHTS = torch.tensor([2.0, -0.7, 0.0, 0.5, 0.5])
FEATURES = {"strong": 1, "weak": 1, "idle": 1, "wide": 2}


def clicks(rows: int = 900, seed: int = 0) -> tuple[Tensor, np.ndarray, np.ndarray]:
    draws = np.random.default_rng(seed)
    x = torch.from_numpy(draws.normal(size=(rows, 5)).astype(np.float32))
    chance = torch.sigmoid(x @ WEIGHTS).numpy()
    return x, (draws.random(rows) < chance).astype(int), draws.integers(0, 120, rows)


def logistic() -> Linear:
    return Linear(lambda x: {"click": torch.sigmoid(x @ WEIGHTS)}, FEATURES)


def measured(
    model: Any, rows: Any, tasks: Tasks, **config: Any
) -> tuple[dict[tuple[str, str, str], Importance], tuple[str, ...]]:
    found, notes = importance(model, rows, tasks, config=ImportanceConfig(**config))
    return {(row.method, row.target, row.feature): row for row in found}, notes


def test_permutation_is_the_loss_of_scikit_learns_auc() -> None:
    x, click, users = clicks()
    model = logistic()
    found, notes = measured(model, Rows(x, {"click": click}, users), Tasks([CLICK]), repeats=2, gradient_rows=0)
    assert notes == ()
    assert [feature for _, _, feature in found] == list(FEATURES)
    whole = roc_auc_score(click, x @ WEIGHTS)
    for name, columns in model.features.columns.items():
        losses = []
        for repeat in range(2):
            order = np.random.default_rng((0, repeat, *name.encode())).permutation(len(x))
            moved = x.clone()
            moved[:, columns] = x[order, columns]
            losses.append(whole - roc_auc_score(click, torch.sigmoid(moved @ WEIGHTS)))
        row = found["permutation", "click", name]
        assert row.figure.value == pytest.approx(np.mean(losses), abs=1e-9)
        assert row.metric == "auc"
        assert row.figure.low <= row.figure.value <= row.figure.high
    idle = found["permutation", "click", "idle"].figure
    assert (idle.value, idle.low, idle.high) == (0.0, 0.0, 0.0), "it moves no prediction"
    assert found["permutation", "click", "strong"].figure.low > 0.1
    assert model.training, "as it was"


def test_the_interval_is_as_wide_as_the_bootstrap_over_users_says() -> None:
    x, click, users = clicks(2000)
    found, _ = measured(logistic(), Rows(x, {"click": click}, users), Tasks([CLICK]), repeats=1, gradient_rows=0)
    figure = found["permutation", "click", "weak"].figure
    order = np.random.default_rng((0, 0, *b"weak")).permutation(len(x))
    moved = x.clone()
    moved[:, 1] = x[order, 1]
    before, after = (x @ WEIGHTS).numpy(), (moved @ WEIGHTS).numpy()
    draws, losses = np.random.default_rng(1), []
    for _ in range(400):
        weight = draws.poisson(1, 120)[users]
        losses.append(
            roc_auc_score(click, before, sample_weight=weight) - roc_auc_score(click, after, sample_weight=weight)
        )
    half = (figure.high - figure.low) / 2
    assert half == pytest.approx(1.98 * np.std(losses), rel=0.15)


@pytest.mark.parametrize("name", ["user", "tag", "genre", "likes", "price", "content"])
def test_moving_columns_of_the_input_is_shuffling_the_encoded_feature(sample: Any, name: str) -> None:
    rows = 40
    draws = np.random.default_rng(2)
    frame = pl.DataFrame(
        {
            "user_id": draws.choice([1, 2, 3, 9, None], rows).tolist(),
            "item_id": draws.choice(["a", "b", "z"], rows).tolist(),
            "tag": draws.choice(["x,y", "y", "", None, "q,x,x"], rows).tolist(),
            "genre": draws.choice(["p:0.3,q:0.7", "q:2", None], rows).tolist(),
            "likes": [[7, 8], [8], [], None] * 10,
            "price": draws.choice([None, 1.0, 5.0, 40.0], rows).tolist(),
            "age": draws.choice([None, 20, 50], rows).tolist(),
            "content": [[0.5, float(n), 1.0] if n % 5 else None for n in range(rows)],
        },
        strict=False,
    )
    encoder, model = Encoder(sample.schema, sample.statistics), sample.model.eval()
    column = sample.schema[name].column
    order = np.random.default_rng(3).permutation(rows)
    shuffled = frame.with_columns(frame[column][order.tolist()])

    def inputs(of: pl.DataFrame) -> Tensor:
        with torch.no_grad():
            return model.embed(to_batch(encoder.rows(of), sample.schema, None))

    (moved,) = module._moved(inputs(frame), model.features.columns[name], torch.from_numpy(order))
    torch.testing.assert_close(moved, inputs(shuffled))
    assert not torch.equal(moved, inputs(frame))


def test_a_linear_models_attributions_are_its_weights_times_the_distance_from_the_mean() -> None:
    x, _, users = clicks(300)
    task = Task(name="stars", kind="regression", label="stars")
    model = Linear(lambda x: {"stars": 3 + x @ WEIGHTS}, FEATURES)
    rows = Rows(x, {"stars": (x @ WEIGHTS).numpy() + 3}, users)
    found, notes = measured(model, rows, Tasks([task]), gradient_steps=1)
    assert notes == ()
    parts = (x - x.mean(0)) * WEIGHTS
    size = {
        "strong": parts[:, 0].abs(),
        "weak": parts[:, 1].abs(),
        "idle": parts[:, 2].abs(),
        "wide": parts[:, 3:].sum(1).abs(),
    }
    total = sum(float(values.sum()) for values in size.values())
    for name, values in size.items():
        row = found["integrated_gradients", "stars", name]
        assert row.figure.value == pytest.approx(float(values.sum()) / total, rel=1e-5)
        assert row.metric == "attribution"
    shares = [row.figure.value for key, row in found.items() if key[0] == "integrated_gradients"]
    assert sum(shares) == pytest.approx(1)
    assert found["permutation", "stars", "strong"].metric == "rmse"
    # The predictions are exact, so what is lost is all that the shuffled part moves: √2 times its deviation.
    lost = found["permutation", "stars", "strong"].figure.value
    assert lost == pytest.approx(math.sqrt(2) * 2 * float(x[:, 0].std()), rel=0.05)


def test_attributions_that_do_not_add_up_are_said() -> None:
    x, click, users = clicks(200)
    steep = Linear(lambda x: {"click": torch.sigmoid(40 * x[:, 0])}, FEATURES)
    _, notes = measured(steep, Rows(x, {"click": click}, users), Tasks([CLICK]), gradient_steps=1)
    assert len(notes) == 1
    assert "the integrated gradients of click miss" in notes[0]
    assert "gradient_steps" in notes[0]
    _, notes = measured(steep, Rows(x, {"click": click}, users), Tasks([CLICK]), gradient_steps=400)
    assert notes == ()


def test_each_target_is_judged_on_its_own_rows() -> None:
    x, click, users = clicks()
    tasks = Tasks(
        [
            CLICK,
            Task(name="buy", kind="binary", label="buy", parent="click"),
            Task(name="mood", kind="multiclass", label="mood", classes=("up", "down")),
            Task(name="stars", kind="ordinal", label="stars", levels=(1, 3), observed=Observed(when="click")),
        ]
    )
    draws = np.random.default_rng(5)
    buy = click * (draws.random(len(x)) < torch.sigmoid(3 * x[:, 1]).numpy())
    mood, stars = (x[:, 3] < 0).int().numpy(), (x[:, 4] > 0).int().numpy()

    def predict(x: Tensor) -> dict[str, Tensor]:
        given = torch.sigmoid(3 * x[:, 1])
        up = torch.sigmoid(4 * x[:, 3])
        both = torch.sigmoid(x @ WEIGHTS)
        return {
            "click": both,
            "buy": both * given,
            "buy_given_click": given,
            "mood_up": up,
            "mood_down": 1 - up,
            "stars": 2 + x[:, 4].clamp(-1, 1),
        }

    labels = {"click": click, "buy": buy, "mood": mood, "stars": stars}
    rows = Rows(x, labels, users, {"stars": click == 1})
    found, notes = measured(Linear(predict, FEATURES), rows, tasks, gradient_rows=100)
    assert notes == ()
    given = click == 1
    auc = roc_auc_score(buy[given], x[given, 1])
    lost = found["permutation", "buy_given_click", "weak"].figure.value
    assert lost == pytest.approx(auc - 0.5, abs=0.06)
    assert found["permutation", "buy_given_click", "strong"].figure.value == 0
    assert found["permutation", "buy", "strong"].figure.value > 0.02
    assert found["permutation", "mood", "wide"].metric == "log_loss"
    assert found["permutation", "mood", "wide"].figure.low > 0.1
    assert found["integrated_gradients", "mood", "wide"].figure.value == pytest.approx(1)
    assert found["permutation", "stars", "wide"].metric == "rmse"
    assert found["permutation", "stars", "wide"].figure.value > 0.1
    assert {key[1] for key in found} == {"click", "buy", "buy_given_click", "mood", "stars"}


def test_the_seed_decides_and_the_sample_is_even() -> None:
    x, click, users = clicks()
    rows = Rows(x, {"click": click}, users)
    one, again, other = (
        measured(logistic(), rows, Tasks([CLICK]), gradient_rows=0, seed=seed)[0] for seed in (1, 1, 2)
    )
    assert one == again
    assert one != other
    sample = module._sampled(logistic_in_evaluation(), rows, 100, "cpu")
    torch.testing.assert_close(sample.rows, x[::9])
    assert len(sample.user) == 100


def logistic_in_evaluation() -> Linear:
    model = logistic()
    model.eval()
    return model


def test_many_features_mean_fewer_rows() -> None:
    x, click, users = clicks(3000)
    seen: list[int] = []

    def predict(x: Tensor) -> dict[str, Tensor]:
        seen.append(len(x))
        return {"click": torch.sigmoid(x @ WEIGHTS)}

    rows = Rows(x, {"click": click}, users)
    importance(
        Linear(predict, FEATURES),
        rows,
        Tasks([CLICK]),
        config=ImportanceConfig(max_scored=4 * 3 * 1500, gradient_rows=0),
    )
    assert set(seen) == {1500}


def test_an_undefined_metric_is_a_note_and_no_rows_are_nothing() -> None:
    x, _, users = clicks(50)
    found, notes = measured(logistic(), Rows(x, {"click": np.zeros(50)}, users), Tasks([CLICK]), gradient_rows=0)
    assert found == {}
    assert notes == ("what features contribute to click is not known: its metric is undefined on the sample",)
    nothing = Rows(x[:0], {"click": np.zeros(0)}, users[:0])
    assert measured(logistic(), nothing, Tasks([CLICK])) == ({}, ())
    assert measured(logistic(), Rows(x, {"click": np.ones(50)}, users), Tasks([CLICK]), enabled=False) == ({}, ())


def test_one_user_has_no_interval() -> None:
    x, click, _ = clicks(100)
    found, _ = measured(logistic(), Rows(x, {"click": click}, np.zeros(100, int)), Tasks([CLICK]))
    assert all(row.figure.low is None for row in found.values())


def test_examples_are_those_of_the_evaluation(funnel: Any, tasks: Tasks) -> None:
    from recmtl.evaluation.evaluate import examples, targets

    scored, _ = funnel()
    sample = module._Sample(torch.empty(len(scored), 0), scored.labels, scored.observed, scored.group)
    for target in targets(tasks):
        rows = module._rows_of(sample, target)
        mine, theirs = module._examples(sample, target, rows, scored.predictions), examples(scored, target)
        assert isinstance(mine, Examples)
        np.testing.assert_array_equal(mine.prediction, theirs.prediction)
        np.testing.assert_array_equal(mine.label, theirs.label)
        np.testing.assert_array_equal(mine.group, theirs.group)
