"""What every balancer of the table must do."""

import math
from typing import Literal, get_args, get_origin

import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from torch import nn

from recmtl.balancing import BALANCERS, AnyBalancer, Cut, build_balancer

TASKS = ("click", "buy", "rating")


class Problem:
    """A table of five rows, a shared layer, a head a task; SGD on all of it."""

    def __init__(self, kind: str, lr: float = 0.05) -> None:
        random = torch.Generator().manual_seed(1)
        self.table = nn.Parameter(torch.randn(5, 4, generator=random))
        self.shared = nn.Parameter(torch.randn(4, 3, generator=random))
        self.heads = {task: nn.Parameter(torch.randn(3, generator=random)) for task in TASKS}
        self.targets = {task: torch.randn(6, generator=random) for task in TASKS}
        self.index = torch.tensor([0, 1, 2, 2, 3, 4])
        self.balancer = build_balancer(BALANCERS[kind].config(), tasks=TASKS, seed=0)
        self.own = [self.table, self.shared, *self.heads.values()]
        self.lr = lr
        self.backwards = 0

    def losses(self, x, absent=()):
        return {
            task: (x @ self.shared @ head - self.targets[task]).square().mean() * (0.0 if task in absent else 1.0)
            for task, head in self.heads.items()
        }

    def step(self, absent=()):
        pooled = self.table[self.index]
        pooled.register_hook(self._count)
        leaf = pooled.detach().requires_grad_() if self.balancer.at_cut else pooled
        cut = Cut(pooled, leaf, (self.shared,), tuple(self.heads.values()), (self.shared,))
        weights = self.balancer.backward(self.losses(leaf, absent), {"own": 0.01 * leaf.square().sum()}, cut)
        with torch.no_grad():
            for parameter in (*self.own, *self.balancer.parameters()):
                if parameter.grad is not None:
                    parameter -= self.lr * parameter.grad
                    parameter.grad = None
        return weights

    def total(self):
        return sum(loss.item() for loss in self.losses(self.table[self.index]).values())

    def _count(self, gradient):
        self.backwards += 1


@pytest.fixture(params=BALANCERS)
def kind(request):
    return request.param


def test_its_config_is_known_by_its_kind_and_documented(kind):
    config = BALANCERS[kind].config
    annotation = config.model_fields["kind"].annotation
    assert get_origin(annotation) is Literal
    assert get_args(annotation) == (kind,)
    assert config().kind == kind, "every field has a default"
    for name, field in config.model_fields.items():
        assert name == "kind" or field.description, f"{kind}.{name} has no sentence under it"
    assert isinstance(TypeAdapter(AnyBalancer).validate_python({"kind": kind}), config)
    with pytest.raises(ValidationError):
        TypeAdapter(AnyBalancer).validate_python({"kind": kind, "no_such_field": 1})


def test_one_backward_through_the_tables_and_a_weight_for_every_task(kind):
    problem = Problem(kind)
    weights = problem.step()
    assert problem.backwards == 1
    assert tuple(weights) == TASKS
    assert all(not weight.requires_grad and math.isfinite(weight) for weight in weights.values())


def test_it_trains(kind):
    problem = Problem(kind)
    start = problem.total()
    for _ in range(4):
        for _ in range(25):
            problem.step()
        problem.balancer.end_epoch(
            {task: loss.item() for task, loss in problem.losses(problem.table[problem.index]).items()}
        )
    assert problem.total() < start / 2


@pytest.mark.parametrize("absent", [("rating",), ("click", "rating"), TASKS])
def test_tasks_without_an_observed_row_leave_everything_finite(kind, absent):
    problem = Problem(kind)
    for step in range(4):
        weights = problem.step(absent if step % 2 == 0 else ())
        assert all(math.isfinite(weight) for weight in weights.values())
    problem.balancer.end_epoch({task: math.nan if task in absent else 1.0 for task in TASKS})
    problem.balancer.end_epoch(dict.fromkeys(TASKS, 1.0))
    problem.step()
    for parameter in (*problem.own, *problem.balancer.parameters()):
        assert parameter.isfinite().all()
    for buffer in problem.balancer.state_dict().values():
        assert buffer.dtype == torch.int64 or not buffer.isinf().any()


def test_its_state_dict_is_all_that_resuming_needs(kind):
    def go(problem, steps):
        for _ in range(steps):
            problem.step()
        problem.balancer.end_epoch({"click": 1.0 / steps, "buy": 2.0, "rating": 0.3 * steps})

    whole, begun, resumed = Problem(kind), Problem(kind), Problem(kind)
    for steps in (3, 4, 5):
        go(whole, steps)
    for steps in (3, 4):
        go(begun, steps)
    torch.manual_seed(1234)
    resumed.balancer.load_state_dict({name: tensor.clone() for name, tensor in begun.balancer.state_dict().items()})
    for mine, theirs in zip(resumed.own, begun.own, strict=True):
        mine.data.copy_(theirs.data)
    go(resumed, 5)
    for mine, theirs in zip(
        (*resumed.own, *resumed.balancer.parameters()), (*whole.own, *whole.balancer.parameters()), strict=True
    ):
        assert torch.equal(mine, theirs)


def test_it_leaves_torchs_global_randomness_alone(kind):
    problem = Problem(kind)
    before = torch.random.get_rng_state()
    problem.step()
    assert torch.equal(torch.random.get_rng_state(), before)


def test_one_task_alone_works(kind):
    balancer = build_balancer(BALANCERS[kind].config(), tasks=("only",), seed=0)
    table = nn.Parameter(torch.ones(2, 2))
    leaf = table.detach().requires_grad_() if balancer.at_cut else table * 1.0
    pooled = table * 1.0 if balancer.at_cut else leaf
    balancer.backward({"only": leaf.square().sum()}, {}, Cut(pooled, leaf, (), (), ()))
    torch.testing.assert_close(table.grad, torch.full((2, 2), 2.0))
