"""The cut: through it or not, fixed weights are the same step; what is shared is balanced, the rest summed."""

import pytest
import torch
from torch import nn

from recmtl.balancing import Cut, build_balancer
from recmtl.balancing.cut import TaskGradients
from recmtl.balancing.fixed import Fixed, FixedConfig
from recmtl.batch import Batch, SparseBatch
from recmtl.model import ModelConfig, build_model
from recmtl.schema import Feature, Schema
from recmtl.statistics import LabelStatistics, Statistics, Vocabulary
from recmtl.tasks import Task, Tasks
from recmtl.training import SparseOptimizerConfig, make_tables

WEIGHTS = {"a": 0.5, "b": 2.0, "c": 1.0}


class OwnGradients(nn.Module):
    """Fixed weights as a gradient balancer: every task's gradient by itself, then their weighted sum."""

    at_cut = True
    lr = None

    def __init__(self, weights):
        super().__init__()
        self.weights = weights

    def backward(self, losses, auxiliary, cut):
        gradients = TaskGradients({task: self.weights[task] * loss for task, loss in losses.items()}, cut)
        gradients.backward(torch.ones(len(losses)), auxiliary)
        return {}

    def end_epoch(self, mean_losses):
        """Nothing."""


def fixed(weights, at_cut):
    balancer = build_balancer(FixedConfig(weights=weights), tasks=tuple(weights), seed=0)
    balancer.at_cut = at_cut
    return balancer


@pytest.mark.parametrize("balancer", [fixed(WEIGHTS, False), fixed(WEIGHTS, True), OwnGradients(WEIGHTS)])
def test_fixed_weights_give_the_gradient_of_the_weighted_sum_with_the_cut_and_without(toy, balancer):
    expected = toy.plain(WEIGHTS, auxiliary=0.1)
    toy.step(balancer, auxiliary=0.1)
    assert toy.backwards == 1
    for name, gradient in toy.gradients().items():
        torch.testing.assert_close(gradient, expected[name])


def test_what_is_shared_is_combined_and_what_is_not_is_summed(toy):
    class Weighted(OwnGradients):
        def backward(self, losses, auxiliary, cut):
            TaskGradients(losses, cut).backward(torch.tensor([0.5, 2.0, 1.0]), auxiliary)
            return {}

    toy.step(Weighted(None), auxiliary=0.1)
    weighted, summed = toy.plain(WEIGHTS, auxiliary=0.1), toy.plain(dict.fromkeys("abc", 1.0), auxiliary=0.1)
    for name, gradient in toy.gradients().items():
        torch.testing.assert_close(gradient, (weighted if name in ("table", "shared") else summed)[name])


def test_the_gramian_leaves_out_columns_that_train_nothing(toy):
    found = {}

    class Look(OwnGradients):
        def backward(self, losses, auxiliary, cut):
            gradients = TaskGradients(losses, cut)
            found["gramian"] = gradients.gramian()
            return {}

    rows = toy.task_rows()
    toy.step(Look(None))
    torch.testing.assert_close(found["gramian"], (rows @ rows.T).double(), rtol=1e-5, atol=1e-5)
    toy.step(Look(None), learned_dim=2)
    kept = torch.cat([rows[:, :12].view(3, 4, 3)[..., :2].flatten(1), rows[:, 12:]], 1)
    torch.testing.assert_close(found["gramian"], (kept @ kept.T).double(), rtol=1e-5, atol=1e-5)


def test_without_tables_there_is_nothing_to_go_through():
    layer = nn.Parameter(torch.tensor([2.0]))
    x = torch.tensor([[3.0]])
    leaf = x.detach().requires_grad_()
    cut = Cut(x, leaf, (layer,), (), (layer,))
    TaskGradients({"a": (leaf @ layer).sum()}, cut).backward(torch.ones(1), {})
    assert layer.grad.item() == 3.0


SCHEMA = Schema([Feature(name="user", kind="id", embedding_dim=8), Feature(name="item", kind="id", embedding_dim=4)])
TASKS = Tasks([Task(name="click", kind="binary", label="click"), Task(name="rating", kind="regression", label="r")])


def real_model(optimizer):
    statistics = Statistics(
        tables={name: Vocabulary(("1", "2", "3"), (1, 1, 1)) for name in ("user", "item")},
        numbers={},
        labels={"click": LabelStatistics(10, 0.3, 0.4), "rating": LabelStatistics(10, 3.0, 1.0)},
    )
    tower = {"kind": "mmoe", "num_experts": 2, "expert_widths": [6], "head_widths": [4]}
    sparse = SparseOptimizerConfig(optimizer=optimizer, lr=0.1)
    model = build_model(
        ModelConfig(tower=tower, inputs={"embedding_std": 1.0}),
        SCHEMA,
        TASKS,
        statistics,
        seed=1,
        tables=make_tables(sparse, "cpu"),
    )
    return model.train()


BATCH = Batch(
    size=3,
    sparse=SparseBatch(("user", "item"), torch.tensor([2, 3, 2, 4, 4, 0]), torch.ones(6, dtype=torch.int32)),
    dense=torch.empty(3, 0),
    labels={"click": torch.tensor([1.0, 0.0, 1.0]), "rating": torch.tensor([5.0, 0.0, 1.0])},
    observed={"click": torch.tensor([True, True, True]), "rating": torch.tensor([True, False, True])},
    weights={},
    group=torch.zeros(3, dtype=torch.int64),
    row=torch.arange(3),
)


@pytest.mark.parametrize("optimizer", ["rowwise_adagrad", "adagrad", "sgd"])
def test_fused_tables_step_once_and_equally_with_the_cut_and_without(optimizer):
    tables, dense = [], []
    weights = {"click": 1.0, "rating": 0.5}
    for balancer in (fixed(weights, False), fixed(weights, True), OwnGradients(weights)):
        model = real_model(optimizer)
        for _ in range(3):
            model.zero_grad()
            x_BD = model.embed(BATCH)
            leaf_BD = x_BD.detach().requires_grad_() if balancer.at_cut else x_BD
            output = model.decide(leaf_BD)
            shared = tuple(model.shared_parameters())
            kept = {id(p) for p in shared}
            specific = tuple(p for p in model.dense_parameters().values() if id(p) not in kept)
            cut = Cut(x_BD, leaf_BD, shared, specific, tuple(model.last_shared_parameters()))
            balancer.backward(model.losses(output, BATCH), output.auxiliary, cut)
        tables.append({name: weight.clone() for name, weight in model.tables.weights().items()})
        dense.append({name: p.grad.clone() for name, p in model.dense_parameters().items()})
    start = real_model(optimizer).tables.weights()
    assert not torch.equal(start["user"][2], tables[0]["user"][2])
    for other in (1, 2):
        torch.testing.assert_close(tables[0], tables[other], rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(dense[0], dense[other], rtol=1e-5, atol=1e-6)


def test_a_weight_for_an_unknown_task_is_refused():
    with pytest.raises(
        ValueError, match=r"balancing\.weights\.clik: there is no task named 'clik'; did you mean 'click'"
    ):
        Fixed(FixedConfig(weights={"clik": 1.0}), tasks=("click", "buy"), seed=0)
    with pytest.raises(ValueError, match="it must be 0 or more"):
        Fixed(FixedConfig(weights={"click": -1.0}), tasks=("click",), seed=0)
