"""Balancers that weigh losses, each against its formula worked by hand or by autograd."""

import math

import pytest
import torch

from recmtl.balancing import build_balancer
from recmtl.balancing.dwa import DynamicWeightAverageConfig
from recmtl.balancing.gradnorm import GradNormConfig
from recmtl.balancing.uncertainty import UncertaintyConfig

TASKS = ("a", "b", "c")


def test_uncertainty_is_the_gradient_of_the_papers_objective(toy):
    balancer = build_balancer(UncertaintyConfig(), tasks=TASKS, seed=0)
    balancer.log_variances.data = torch.tensor([0.0, math.log(2), -1.0])
    weights, losses = toy.step(balancer)
    assert [weights[task].item() for task in TASKS] == pytest.approx([1.0, 0.5, math.e])
    # d/ds (exp(-s)·L + s/2) = 1/2 - exp(-s)·L
    expected = [0.5 - float(weights[task]) * losses[task] for task in TASKS]
    torch.testing.assert_close(balancer.log_variances.grad, torch.tensor(expected))
    plain = toy.plain({task: float(weights[task]) for task in TASKS})
    for name, gradient in toy.gradients().items():
        torch.testing.assert_close(gradient, plain[name])


def test_uncertainty_leaves_the_variance_of_an_absent_task_alone(toy):
    balancer = build_balancer(UncertaintyConfig(), tasks=TASKS, seed=0)
    toy.step(balancer, absent=("b",))
    assert balancer.log_variances.grad[1] == 0
    assert balancer.log_variances.grad[0] != 0


def test_uncertainty_settles_at_one_over_twice_the_loss(toy):
    balancer = build_balancer(UncertaintyConfig(), tasks=TASKS, seed=0)
    optimizer = torch.optim.SGD(balancer.parameters(), lr=0.1)
    for _ in range(300):
        optimizer.zero_grad()
        weights, losses = toy.step(balancer)
        optimizer.step()
    assert [weights[task].item() * losses[task] for task in TASKS] == pytest.approx([0.5] * 3, rel=1e-3)


def test_dwa_by_hand(toy):
    balancer = build_balancer(DynamicWeightAverageConfig(temperature=2.0), tasks=TASKS, seed=0)
    assert [weight.item() for weight in toy.step(balancer)[0].values()] == [1.0, 1.0, 1.0]
    balancer.end_epoch({"a": 1.0, "b": 2.0, "c": 4.0})
    assert [weight.item() for weight in toy.step(balancer)[0].values()] == [1.0, 1.0, 1.0]
    balancer.end_epoch({"a": 0.5, "b": 2.0, "c": 5.0})
    powers = [math.exp(ratio / 2) for ratio in (0.5, 1.0, 1.25)]
    expected = [3 * power / sum(powers) for power in powers]
    weights, _ = toy.step(balancer)
    assert [weight.item() for weight in weights.values()] == pytest.approx(expected)
    plain = toy.plain(dict(zip(TASKS, expected, strict=True)))
    torch.testing.assert_close(toy.gradients()["table"], plain["table"])


def test_dwa_counts_an_epoch_without_labels_as_no_change():
    balancer = build_balancer(DynamicWeightAverageConfig(), tasks=("a", "b"), seed=0)
    balancer.end_epoch({"a": 1.0, "b": math.nan})
    balancer.end_epoch({"a": 1.0, "b": 0.7})
    assert balancer.weights.tolist() == [1.0, 1.0]
    balancer.end_epoch({"a": 1.0, "b": math.nan})
    assert balancer.weights.tolist() == [1.0, 1.0]


def test_gradnorm_is_the_gradient_of_the_papers_objective(toy):
    balancer = build_balancer(GradNormConfig(alpha=1.5), tasks=TASKS, seed=0)
    with torch.no_grad():
        balancer.logits.copy_(torch.tensor([0.3, -0.2, 0.1]))
        balancer.first_losses.copy_(torch.tensor([4.0, 5.0, 6.0]))
    # An oracle by double differentiation: the norms of the gradients of w·L themselves.
    logits = balancer.logits.detach().clone().requires_grad_()
    w = 3 * torch.softmax(logits, 0)
    losses = toy.losses(toy.table[toy.index].detach())
    norms = []
    for weight, loss in zip(w, losses.values(), strict=True):
        (gradient,) = torch.autograd.grad(weight * loss, toy.shared, create_graph=True)
        norms.append(gradient.norm())
    ratio = torch.stack(list(losses.values())).detach() / torch.tensor([4.0, 5.0, 6.0])
    target = torch.stack(norms).mean().detach() * (ratio / ratio.mean()) ** 1.5
    (expected,) = torch.autograd.grad((torch.stack(norms) - target).abs().sum(), logits)

    weights, _ = toy.step(balancer)
    torch.testing.assert_close(balancer.logits.grad, expected)
    assert sum(weights.values()).item() == pytest.approx(3)
    plain = toy.plain({task: float(weights[task]) for task in TASKS})
    for name, gradient in toy.gradients().items():
        torch.testing.assert_close(gradient, plain[name])


def test_gradnorm_evens_out_the_norms(make_toy):
    toy = make_toy(scales=(1.0, 30.0, 0.1))
    balancer = build_balancer(GradNormConfig(alpha=0.0), tasks=TASKS, seed=0)
    optimizer = torch.optim.Adam(balancer.parameters(), lr=0.05)
    for _ in range(300):
        optimizer.zero_grad()
        weights, _ = toy.step(balancer)
        optimizer.step()
    rows = [toy.plain({**dict.fromkeys(TASKS, 0.0), task: float(weights[task])})["shared"].norm() for task in TASKS]
    assert max(rows) / min(rows) < 1.5


def test_gradnorm_without_a_shared_layer_looks_at_the_embeddings(make_toy):
    toy = make_toy(last_shared=False)
    balancer = build_balancer(GradNormConfig(), tasks=TASKS, seed=0)
    toy.step(balancer)
    assert balancer.logits.grad.abs().sum() > 0


def test_gradnorm_passes_over_an_absent_task_and_starts_it_when_it_comes(toy):
    balancer = build_balancer(GradNormConfig(), tasks=TASKS, seed=0)
    toy.step(balancer, absent=("c",))
    assert balancer.first_losses[2].isnan()
    assert balancer.logits.grad.isfinite().all()
    _, losses = toy.step(balancer)
    assert balancer.first_losses[2].item() == pytest.approx(losses["c"])
