"""A model over a loader: every row once, in order, in float32, and the model left as it was."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from recmtl.batch import Batch, SparseBatch
from recmtl.errors import RunError
from recmtl.evaluation import score
from recmtl.manifest import Columns
from recmtl.progress import Silent
from recmtl.tasks import Task, Tasks

TASKS = Tasks(
    [
        Task(name="click", kind="binary", label="click", weight_column="importance"),
        Task(name="purchase", kind="binary", label="purchase", parent="click"),
    ]
)


class Rows:
    """A loader of ten rows whose only feature is their number, four to a batch."""

    def __init__(self, rows: int = 10, user: str | None = "user") -> None:
        self.rows = rows
        self.batch_size = 4
        self.split = "test"
        self.tasks = TASKS
        self.manifest = SimpleNamespace(columns=Columns(user=user))
        self.asked: list[int] = []

    def epoch(self, number: int, start: int = 0):
        self.asked.append(number)
        for first in range(0, self.rows, 4):
            row = torch.arange(first, min(first + 4, self.rows))
            yield Batch(
                size=len(row),
                sparse=SparseBatch((), torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.int32)),
                dense=row.float().unsqueeze(1),
                labels={"click": (row % 2).float(), "purchase": (row % 4 == 1).float()},
                observed={"click": row >= 0, "purchase": row < 8},
                weights={"click": row.float() / 2},
                group=row // 3,
                row=row + 100,
            )


class Tenth(nn.Module):
    """Predicts a tenth of the row's number, in bfloat16 if it is let to, with a dropout that must not act."""

    def __init__(self, broken_at: float = -1) -> None:
        super().__init__()
        self.linear = nn.Linear(1, 1, bias=False)
        nn.init.constant_(self.linear.weight, 0.1)
        self.dropout = nn.Dropout(0.9)
        self.broken_at = broken_at
        self.grad_modes: set[bool] = set()

    def forward(self, batch):
        self.grad_modes.add(torch.is_grad_enabled())
        out = self.dropout(self.linear(batch.dense)).squeeze(1)
        return torch.where(batch.dense.squeeze(1) == self.broken_at, torch.nan, out)

    def predictions(self, output):
        return {"click": output, "purchase": output**2, "purchase_given_click": output}


def test_every_row_once_in_order():
    scored = score(Tenth(), Rows())
    assert len(scored) == 10
    assert scored.row.tolist() == list(range(100, 110))
    tenths = np.arange(10, dtype=np.float32) * np.float32(0.1)
    assert scored.predictions["click"] == pytest.approx(tenths)
    assert scored.predictions["purchase"] == pytest.approx(tenths**2)
    assert scored.labels["click"].tolist() == [0, 1] * 5
    assert scored.observed["purchase"].tolist() == [True] * 8 + [False] * 2
    assert scored.weights["click"].tolist() == [number / 2 for number in range(10)]
    assert scored.group.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3]
    assert {values.dtype for values in scored.predictions.values()} == {np.dtype(np.float32)}


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_left_in_its_mode_and_without_gradients(training):
    model = Tenth().train(training)
    score(model, Rows())
    assert model.training is training
    assert model.grad_modes == {False}
    with pytest.raises(RunError):
        score(broken := Tenth(broken_at=5).train(training), Rows())
    assert broken.training is training


def test_float32_whatever_precision_is_around():
    expected = score(Tenth(), Rows()).predictions["click"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (score(Tenth(), Rows()).predictions["click"] == expected).all()


def test_the_same_order_every_time():
    loader = Rows()
    score(Tenth(), loader)
    score(Tenth(), loader)
    assert loader.asked == [0, 0]


def test_a_prediction_that_is_not_finite_stops_it():
    with pytest.raises(RunError, match="prediction click is not finite on 1 of 4 rows"):
        score(Tenth(broken_at=5), Rows())


def test_on_disk_as_in_memory(tmp_path):
    scored, spilled = score(Tenth(), Rows()), score(Tenth(), Rows(), spill=tmp_path / "columns")
    assert spilled.spilled
    assert not scored.spilled
    for role in ("predictions", "labels", "observed", "weights"):
        one, other = getattr(scored, role), getattr(spilled, role)
        assert one.keys() == other.keys()
        for name in one:
            assert other[name].dtype == one[name].dtype
            assert (other[name] == one[name]).all()
            with pytest.raises(ValueError, match="read-only"):
                other[name][0] = 0
    assert (spilled.group == scored.group).all()
    assert (spilled.row == scored.row).all()
    assert len(score(Tenth(), Rows(rows=0), spill=tmp_path / "nothing")) == 0


def test_no_rows():
    scored = score(Tenth(), Rows(rows=0))
    assert len(scored) == 0
    assert set(scored.predictions) == {"click", "purchase", "purchase_given_click"}
    assert scored.observed["click"].dtype == bool


def test_unknown_users_have_no_group():
    assert score(Tenth(), Rows(user=None)).group is None


def test_it_shows_its_progress():
    shown = []

    class Watching(Silent):
        def bar(self, title, total, unit="rows", done=0):
            shown.append((title, total))
            return super().bar(title, total, unit, done)

    score(Tenth(), Rows(), progress=Watching())
    assert shown == [("scoring test", 10)]


def test_a_real_model(sample):
    """The sample model of every kind of task gives every prediction column."""
    tasks = sample.tasks
    batch = Batch(
        size=2,
        sparse=SparseBatch(
            keys=tuple(feature.name for feature in sample.schema.sparse),
            values=torch.tensor([2, 1, 0, 2, 1, 1, 2, 2, 3, 0]),
            lengths=torch.ones(10, dtype=torch.int32),
            weights=torch.ones(10),
        ),
        dense=torch.zeros(2, sample.schema.dense_width),
        labels={name: torch.zeros(2) for name in tasks},
        observed={name: torch.ones(2, dtype=torch.bool) for name in tasks},
        weights={},
        group=torch.arange(2),
        row=torch.arange(2),
    )
    loader = SimpleNamespace(
        rows=2,
        batch_size=2,
        split="test",
        tasks=tasks,
        manifest=SimpleNamespace(columns=sample.columns),
        epoch=lambda n: iter([batch]),
    )
    scored = score(sample.model, loader)
    assert set(scored.predictions) == {name for task in tasks for name in tasks.prediction_columns(task)}
    p = scored.predictions
    assert p["purchase"] == pytest.approx(p["click"] * p["purchase_given_click"], abs=1e-6)
    assert p["mood_up"] + p["mood_down"] == pytest.approx(1)
