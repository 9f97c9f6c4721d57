"""Heads: where they start, what their probabilities are, and the product over parents."""

import itertools
import math

import pytest
import torch
from torch.nn import functional as F

from recmtl.heads import Heads
from recmtl.modules import generator
from recmtl.statistics import LabelStatistics, Statistics
from recmtl.tasks import Task, Tasks

H = 6
CLICK = Task(name="click", kind="binary", label="c")
PURCHASE = Task(name="purchase", kind="binary", label="p", parent="click")
RETURN = Task(name="return_", kind="binary", label="r", parent="purchase")
STARS = Task(name="stars", kind="ordinal", label="s", levels=(1, 2, 3, 5))
CORN = Task(name="corn", kind="ordinal", label="s", levels=(1, 2, 3, 5), link="corn")
WATCHED = Task(name="watched", kind="regression", label="w", range=(0, 1))
REASON = Task(name="reason", kind="multiclass", label="r", classes=("a", "b", "c"))
LABELS = {
    "click": LabelStatistics(10_000, 0.2, 0.4),
    "purchase": LabelStatistics(10_000, 0.02, 0.14),
    "stars": LabelStatistics(10_000, 3.3, 1.4, (0.1, 0.3, 0.2, 0.4)),
    "corn": LabelStatistics(10_000, 3.3, 1.4, (0.1, 0.3, 0.2, 0.4)),
    "watched": LabelStatistics(10_000, 0.6, 0.3),
    "reason": LabelStatistics(10_000, None, None, (0.5, 0.3, 0.2)),
}
CONDITIONAL = {"purchase": LabelStatistics(2_000, 0.1, 0.3), "return_": LabelStatistics(200, 0.05, 0.2)}


def heads(*tasks, labels=LABELS, conditional=CONDITIONAL, seed=1):
    return Heads(Tasks(tasks), H, Statistics({}, {}, labels, conditional), seed=seed)


def hidden(made, rows=5, scale=1.0):
    return {task: scale * torch.randn(rows, H, generator=generator(3, task)) for task, _ in made.by_task.items()}


def neutral(made):
    return {task: torch.zeros(1, H) for task, _ in made.by_task.items()}


def test_heads_start_at_the_training_base_rates():
    made = heads(CLICK, PURCHASE, RETURN, STARS, CORN, WATCHED, REASON)
    found = {name: value.item() for name, value in made.predictions(made(neutral(made))).items()}
    expected = {
        "click": 0.2,
        "purchase": 0.02,
        "purchase_given_click": 0.1,
        "return_": 0.001,
        "return__given_purchase": 0.05,
        "stars": 0.1 + 0.6 + 0.6 + 2.0,
        "corn": 3.3,
        "watched": 0.6,
        "reason_a": 0.5,
        "reason_b": 0.3,
        "reason_c": 0.2,
    }
    assert found == pytest.approx(expected, rel=0.06)
    assert list(found) == list(expected)


@pytest.mark.parametrize("task", [STARS, CORN])
def test_ordinal_heads_start_at_the_shares_of_the_levels(task):
    made = heads(task)
    shares = made.outcomes(made(neutral(made)))[task.name].exp()
    torch.testing.assert_close(shares, torch.tensor([[0.1, 0.3, 0.2, 0.4]]), atol=1e-3, rtol=0)


@pytest.mark.parametrize("rate", [0.0, 1.0, None])
def test_degenerate_statistics_start_somewhere_finite(rate):
    distribution = {1.0: (0.0, 0.0, 0.0, 1.0), 0.0: (1.0, 0.0, 0.0, 0.0), None: ()}[rate]
    stars = LabelStatistics(100 if rate is not None else 0, rate, 0.0, distribution)
    binary = LabelStatistics(100 if rate is not None else 0, rate, rate and 0.0)
    three = LabelStatistics(stars.observed, None, None, distribution[1:])
    labels = {"click": binary, "stars": stars, "corn": stars, "watched": binary, "reason": three}
    made = heads(CLICK, PURCHASE, STARS, CORN, WATCHED, REASON, labels=labels, conditional={"purchase": binary})
    outcomes = made.outcomes(made(hidden(made)))
    assert all(outcome.isfinite().all() for outcome in outcomes.values())
    sum(outcome.sum() for outcome in outcomes.values()).backward()
    assert all(parameter.grad.isfinite().all() for parameter in made.parameters())
    start = made.predictions(made(neutral(made)))["click"].item()
    assert start == pytest.approx({0.0: 0.5 / 101, 1.0: 100.5 / 101, None: 0.5}[rate])


def test_no_statistics_at_all_start_at_one_half():
    made = heads(CLICK, PURCHASE, REASON, STARS, labels={}, conditional={})
    found = made.predictions(made(neutral(made)))
    assert found["purchase"].item() == pytest.approx(0.25)
    assert found["reason_a"].item() == pytest.approx(1 / 3)
    assert found["stars"].item() == pytest.approx((1 + 2 + 3 + 5) / 4)


@pytest.mark.parametrize("scale", [1.0, 30.0, 1000.0])
def test_products_are_coherent_and_their_log_probabilities_finite(scale):
    made = heads(RETURN, PURCHASE, CLICK)  # children first in the config
    vectors = hidden(made, rows=200, scale=scale)
    for tensor in vectors.values():
        tensor.requires_grad_()
    logits = made(vectors)
    outcomes, found = made.outcomes(logits), made.predictions(logits)
    assert (found["return_"] <= found["purchase"]).all()
    assert (found["purchase"] <= found["click"]).all()
    for outcome in outcomes.values():
        assert outcome.isfinite().all()
        torch.testing.assert_close(outcome.exp().sum(1), torch.ones(200))
    sum(outcome.sum() for outcome in outcomes.values()).backward()
    assert all(tensor.grad.isfinite().all() for tensor in vectors.values())


def test_the_product_is_the_product():
    made = heads(CLICK, PURCHASE, RETURN)
    logits = {task: value.double() for task, value in made(hidden(made)).items()}
    p = {task: torch.sigmoid(value) for task, value in logits.items()}
    outcome = made.outcomes(logits)["return_"]
    torch.testing.assert_close(outcome[:, 1], (p["click"] * p["purchase"] * p["return_"]).log())
    torch.testing.assert_close(outcome[:, 0], (1 - p["click"] * p["purchase"] * p["return_"]).log())


def test_a_certain_product_still_has_a_finite_loss_when_wrong():
    made = heads(CLICK, PURCHASE)
    logits = {"click": torch.tensor([200.0]), "purchase": torch.tensor([200.0])}
    assert made.outcomes(logits)["purchase"][0, 0].item() == pytest.approx(-200 + math.log(2))


@pytest.mark.parametrize("task", [STARS, CORN])
@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_ordinal_probabilities_sum_to_one_and_give_the_expectation(task, scale):
    made = heads(task)
    logits = made(hidden(made, rows=50, scale=scale))
    log_shares = made.outcomes(logits)[task.name]
    assert log_shares.isfinite().all()
    torch.testing.assert_close(log_shares.exp().sum(1), torch.ones(50), atol=1e-4, rtol=0)
    expected = log_shares.exp() @ torch.tensor([1.0, 2.0, 3.0, 5.0])
    torch.testing.assert_close(made.predictions(logits)[task.name], expected)


def test_cumulative_shares_are_differences_of_the_cumulative_probability():
    made = heads(STARS)
    logits = made(hidden(made))["stars"].double()
    exceed = torch.cat([torch.ones(5, 1), torch.sigmoid(logits), torch.zeros(5, 1)], dim=1)
    torch.testing.assert_close(
        made.outcomes({"stars": logits})["stars"].exp(), exceed[:, :-1] - exceed[:, 1:], rtol=1e-5, atol=1e-7
    )


def test_thresholds_rise_whatever_is_learned():
    head = heads(STARS).by_task["stars"]
    with torch.no_grad():
        head.gap.fill_(-50.0)
    thresholds = head.thresholds().tolist()
    assert all(low < high for low, high in itertools.pairwise(thresholds))


def test_two_levels_have_one_threshold():
    two = Task(name="stars", kind="ordinal", label="s", levels=(0, 1))
    made = heads(two, labels={"stars": LabelStatistics(1000, 0.3, 0.4, (0.7, 0.3))})
    assert made.predictions(made(neutral(made)))["stars"].item() == pytest.approx(0.3, abs=1e-3)


def test_corn_by_hand():
    # P(y>1)=.8, P(y>2|y>1)=.5, P(y>3|y>2)=.25 on levels 1, 2, 3, 5
    made = heads(CORN)
    logits = torch.tensor([[0.8, 0.5, 0.25]]).logit()
    torch.testing.assert_close(made.outcomes({"corn": logits})["corn"].exp(), torch.tensor([[0.2, 0.4, 0.3, 0.1]]))


def test_regression_is_in_label_units_and_clipped_in_predictions_alone():
    made = heads(WATCHED)
    logits = {"watched": torch.tensor([0.0, 1.0, 3.0, -4.0])}
    torch.testing.assert_close(made.predictions(logits)["watched"], torch.tensor([0.6, 0.9, 1.0, 0.0]))
    assert made.outcomes(logits)["watched"] is logits["watched"]


def test_multiclass_is_softmax():
    made = heads(REASON)
    logits = made(hidden(made))
    torch.testing.assert_close(made.outcomes(logits)["reason"], F.log_softmax(logits["reason"], 1))
    found = torch.stack(list(made.predictions(logits).values()), 1)
    torch.testing.assert_close(found, torch.softmax(logits["reason"], 1))


def test_heads_compute_in_float32_under_autocast():
    made = heads(CLICK, PURCHASE, STARS)
    vectors = hidden(made)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = made({task: value.bfloat16() for task, value in vectors.items()})
    plain = made({task: value.bfloat16().float() for task, value in vectors.items()})
    for task, value in low.items():
        assert value.dtype == torch.float32
        assert torch.equal(value, plain[task])


def test_a_task_more_leaves_the_others_initial_values():
    one, two = heads(CLICK), heads(STARS, CLICK)
    assert torch.equal(one.by_task["click"].linear.weight, two.by_task["click"].linear.weight)
    assert not torch.equal(one.by_task["click"].linear.weight, heads(CLICK, seed=2).by_task["click"].linear.weight)
