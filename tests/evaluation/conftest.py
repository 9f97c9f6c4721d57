"""Rows as :func:`recmtl.evaluation.score` gives them, from a small funnel whose truth is known."""

from collections.abc import Callable

import numpy as np
import pytest

from recmtl.evaluation import Scored
from recmtl.statistics import LabelStatistics, Statistics
from recmtl.tasks import Observed, Task, Tasks

TASKS = Tasks(
    [
        Task(name="click", kind="binary", label="is_click"),
        Task(name="purchase", kind="binary", label="bought", parent="click"),
        Task(name="stars", kind="ordinal", label="stars", levels=(1, 2, 5), observed=Observed(when="click")),
        Task(name="watched", kind="regression", label="share"),
        Task(name="mood", kind="multiclass", label="mood", classes=("up", "down", "flat")),
    ]
)
STATISTICS = Statistics(
    tables={},
    numbers={},
    labels={
        "click": LabelStatistics(100, 0.3, 0.4),
        "purchase": LabelStatistics(100, 0.1, 0.3),
        "stars": LabelStatistics(30, 2.5, 1.5, (0.3, 0.3, 0.4)),
        "watched": LabelStatistics(100, 0.5, 0.2),
        "mood": LabelStatistics(100, None, None, (0.2, 0.5, 0.3)),
    },
    conditional_labels={"purchase": LabelStatistics(30, 0.33, 0.4)},
)


Funnel = Callable[..., tuple[Scored, dict[str, np.ndarray]]]


@pytest.fixture
def tasks() -> Tasks:
    return TASKS


@pytest.fixture
def statistics() -> Statistics:
    return STATISTICS


@pytest.fixture
def funnel() -> Funnel:
    """(rows, users, seed, noise) → rows scored by a noisy model, and their truth."""
    return make_funnel


def make_funnel(
    rows: int = 600, users: int = 40, seed: int = 0, noise: float = 0.5
) -> tuple[Scored, dict[str, np.ndarray]]:
    """A split's rows scored by a noisy model, and their truth."""
    random = np.random.default_rng(seed)
    group = random.integers(0, users, rows)
    clicks = 1 / (1 + np.exp(1 - random.normal(0, 1, users)[group] - random.normal(0, 1, rows)))
    buys = 1 / (1 + np.exp(1 - random.normal(0, 1, rows)))
    click = random.random(rows) < clicks
    bought = click & (random.random(rows) < buys)
    share = random.beta(2, 2, rows)
    stars = random.integers(0, 3, rows)

    def noisy(p: np.ndarray) -> np.ndarray:
        return 1 / (1 + np.exp(-np.log(p / (1 - p)) - noise * random.normal(0, 1, rows)))

    guessed_clicks, guessed_buys = noisy(clicks), noisy(buys)
    mood = random.dirichlet(np.ones(3), rows)
    predictions = {
        "click": guessed_clicks,
        "purchase": guessed_clicks * guessed_buys,
        "purchase_given_click": guessed_buys,
        "stars": 1.5 + stars + random.normal(0, 1, rows),
        "watched": share + random.normal(0, 0.1, rows),
        **{f"mood_{name}": mood[:, index] for index, name in enumerate(("up", "down", "flat"))},
    }
    mature = np.arange(rows) < 0.8 * rows
    labels = {"click": click, "purchase": bought & mature, "stars": stars * click, "watched": share}
    labels["mood"] = random.integers(0, 3, rows)
    observed = {"click": np.ones(rows, bool), "purchase": mature, "stars": click, "watched": share > 0.1}
    observed["mood"] = np.ones(rows, bool)
    truth = {
        "label:is_click": clicks,
        "label:bought": clicks * buys,
        "given:bought": buys,
        "label:share": np.full(rows, 0.5),
        "main:is_click": clicks + random.normal(0, 0.2, rows),
    }
    scored = Scored(
        predictions={name: values.astype(np.float32) for name, values in predictions.items()},
        labels={name: values.astype(np.float32) for name, values in labels.items()},
        observed=observed,
        group=group,
        row=np.arange(rows),
    )
    return scored, truth
