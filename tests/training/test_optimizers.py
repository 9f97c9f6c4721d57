"""Optimisers: what FBGEMM does on this device, tried; state by name; weight decay where it belongs."""

import pytest
import torch
from torch import Tensor, nn

from recmtl.batch import SparseBatch
from recmtl.errors import RunError, UserError
from recmtl.features import InMemory, PlainTables, TableShape
from recmtl.features.fused import FusedTables
from recmtl.training.optimizers import (
    SPARSE_OPTIMIZERS,
    DenseOptimizer,
    DenseOptimizerConfig,
    SparseOptimizerConfig,
    check_sparse_optimizer,
    make_tables,
    sparse_optimizer,
)

SHAPES = {"user": TableShape(6, 4, ("user",)), "item": TableShape(5, 8, ("item", "last_item"))}
BATCH = SparseBatch(("user", "item", "last_item"), torch.tensor([2, 2, 3, 4, 4, 1]), torch.ones(6, dtype=torch.int32))
ON_CPU = [name for name, kind in SPARSE_OPTIMIZERS.items() if "cpu" in kind.devices]


def tables(config):
    made = make_tables(config, "cpu")(SHAPES)
    random = torch.Generator().manual_seed(0)
    made.load_weights({name: torch.randn(shape.rows, shape.dim, generator=random) for name, shape in SHAPES.items()})
    return made


def steps(made, optimizer, count, lr=0.1, start=0):
    for step in range(start, start + count):
        optimizer.set_lr(lr)
        optimizer.zero_grad()
        pooled = made(BATCH)
        sum((value * (number + step + 1)).square().sum() for number, value in enumerate(pooled.values())).backward()
        optimizer.step()


def saved(optimizer):
    state = optimizer.state().items()
    return InMemory({key: (part if isinstance(part, Tensor) else part.held[0].tensor).clone() for key, part in state})


def weights(made):
    return {name: weight.clone() for name, weight in made.weights().items()}


@pytest.mark.parametrize("name", [name for name, kind in SPARSE_OPTIMIZERS.items() if kind.fused])
def test_the_table_of_what_fbgemm_has_is_what_it_has_on_a_cpu(name):
    """Guards SPARSE_OPTIMIZERS against another FBGEMM: builds the operator past our own check."""
    from recmtl.training.optimizers import fused_optimizer

    kind, extra = fused_optimizer(SparseOptimizerConfig(optimizer=name))
    arguments = {"optimizer_type": kind, "optimizer_kwargs": {"lr": 0.1, **extra}, "device": "cpu"}
    if "cpu" not in SPARSE_OPTIMIZERS[name].devices:
        with pytest.raises(UserError, match=r"FBGEMM has no fused .* is not supported in CPU mode"):
            FusedTables(SHAPES, **arguments)
    else:
        assert FusedTables(SHAPES, **arguments)


@pytest.mark.parametrize("name", [name for name in ON_CPU if SPARSE_OPTIMIZERS[name].fused])
def test_fbgemms_cpu_kernels_ignore_weight_decay_which_is_why_it_is_refused(name):
    config = SparseOptimizerConfig(optimizer=name, weight_decay=0.5)
    with pytest.raises(UserError, match="ignores it on cpu"):
        check_sparse_optimizer(config, "cpu")
    from recmtl.training.optimizers import fused_optimizer

    results = []
    for decay in (0.0, 0.5):
        kind, extra = fused_optimizer(config.model_copy(update={"weight_decay": decay}))
        made = FusedTables(SHAPES, optimizer_type=kind, optimizer_kwargs={"lr": 0.1, **extra})
        made.load_weights({name: torch.ones(shape.rows, shape.dim) for name, shape in SHAPES.items()})
        steps(made, sparse_optimizer(config, made), 1)
        results.append(weights(made)["user"])
    assert torch.equal(*results)


def test_rowwise_adagrad_by_hand():
    made = tables(config := SparseOptimizerConfig(lr=0.1, eps=1e-8))
    before = weights(made)["user"]
    steps(made, sparse_optimizer(config, made), 1)
    after = weights(made)["user"]
    # Both examples read row 2; the gradient of square().sum() is twice the row for each.
    gradient = 2 * before[2] * 2
    scale = gradient.square().mean().sqrt() + 1e-8
    torch.testing.assert_close(after[2], before[2] - 0.1 * gradient / scale)
    for row in (0, 1, 3, 4, 5):
        assert torch.equal(after[row], before[row])


@pytest.mark.parametrize("name", ["exact_adam", "exact_adamw"])
def test_exact_adam_is_torchs_adam_over_the_whole_table(name):
    config = SparseOptimizerConfig(optimizer=name, lr=0.1, weight_decay=0.01, betas=(0.8, 0.9), eps=1e-6)
    made = tables(config)
    assert isinstance(made, PlainTables)
    mine = nn.ParameterDict({key: nn.Parameter(weight.clone()) for key, weight in made.weights().items()})
    kind = torch.optim.Adam if name == "exact_adam" else torch.optim.AdamW
    theirs = kind(mine.parameters(), lr=0.1, weight_decay=0.01, betas=(0.8, 0.9), eps=1e-6)
    optimizer = sparse_optimizer(config, made)
    steps(made, optimizer, 4)
    for step in range(4):
        theirs.zero_grad()
        values = BATCH.values.view(3, 2)
        read = [mine["user"][values[0]], mine["item"][values[1]], mine["item"][values[2]]]
        sum((value * (number + step + 1)).square().sum() for number, value in enumerate(read)).backward()
        theirs.step()
    for key, weight in made.weights().items():
        torch.testing.assert_close(weight, mine[key].detach())


@pytest.mark.parametrize("name", ON_CPU)
def test_the_learning_rate_is_that_of_the_step(name):
    made = tables(config := SparseOptimizerConfig(optimizer=name, lr=0.5))
    optimizer = sparse_optimizer(config, made)
    before = weights(made)
    steps(made, optimizer, 1, lr=0.0)
    torch.testing.assert_close(weights(made), before)
    steps(made, optimizer, 1, lr=0.1)
    assert not torch.equal(weights(made)["item"], before["item"])


@pytest.mark.parametrize("name", ON_CPU)
def test_weights_and_state_are_all_that_resuming_needs(name):
    config = SparseOptimizerConfig(optimizer=name, lr=0.1)
    whole, begun, resumed = tables(config), tables(config), tables(config)
    steps(whole, sparse_optimizer(config, whole), 6)
    steps(begun, first := sparse_optimizer(config, begun), 3)
    state = saved(first)
    resumed.load_weights(begun.weights())
    second = sparse_optimizer(config, resumed)
    second.load_state(state)
    steps(resumed, second, 3, start=3)
    for key, weight in whole.weights().items():
        assert torch.equal(weight, resumed.weights()[key])


def test_the_state_of_another_optimizer_is_refused():
    adagrad, sgd = SparseOptimizerConfig(), SparseOptimizerConfig(optimizer="sgd")
    state = saved(sparse_optimizer(adagrad, tables(adagrad)))
    with pytest.raises(RunError, match="state of the tables' optimiser"):
        sparse_optimizer(sgd, tables(sgd)).load_state(state)


@pytest.mark.parametrize("name", ON_CPU)
def test_a_model_without_tables(name):
    config = SparseOptimizerConfig(optimizer=name)
    made = make_tables(config, "cpu")({})
    optimizer = sparse_optimizer(config, made)
    optimizer.set_lr(0.1)
    optimizer.zero_grad()
    optimizer.step()
    assert optimizer.state() == {}
    optimizer.load_state(saved(optimizer))


def parameters():
    random = torch.Generator().manual_seed(0)
    names = {"tower.layers.0.weight": (3, 2), "tower.layers.0.bias": (3,), "tower.biases.0": (2, 1, 3)}
    names |= {"tower.norms.0.scale": (2, 1, 3)}
    return {name: nn.Parameter(torch.randn(shape, generator=random)) for name, shape in names.items()}


DENSE = [
    DenseOptimizerConfig(optimizer="adam", weight_decay=0.1),
    DenseOptimizerConfig(optimizer="adamw", weight_decay=0.1, betas=(0.8, 0.9), eps=1e-6),
    DenseOptimizerConfig(optimizer="sgd", momentum=0.9, weight_decay=0.1),
    DenseOptimizerConfig(optimizer="adagrad", weight_decay=0.1),
]


def dense_steps(optimizer, named, count, start=0):
    for step in range(start, start + count):
        optimizer.set_factor(1.0 / (1 + step))
        optimizer.zero_grad()
        sum((p * (step + 1)).sin().sum() for p in named.values()).backward()
        optimizer.step()


@pytest.mark.parametrize("config", DENSE, ids=lambda config: config.optimizer)
def test_dense_state_resumes_bit_for_bit(config):
    whole, begun, resumed = parameters(), parameters(), parameters()
    dense_steps(DenseOptimizer(config, whole.items()), whole, 6)
    dense_steps(first := DenseOptimizer(config, begun.items()), begun, 3)
    state = {key: tensor.clone() for key, tensor in first.state().items()}
    for name, parameter in resumed.items():
        parameter.data.copy_(begun[name].data)
    second = DenseOptimizer(config, resumed.items())
    second.load_state(state)
    dense_steps(second, resumed, 3, start=3)
    for name, parameter in whole.items():
        assert torch.equal(parameter, resumed[name])
    with pytest.raises(RunError, match="which this model does not have"):
        second.load_state({"nowhere/exp_avg": torch.zeros(1)})


@pytest.mark.parametrize("config", DENSE, ids=lambda config: config.optimizer)
def test_weight_decay_is_for_weights_alone(config):
    named = parameters()
    before = {name: parameter.detach().clone() for name, parameter in named.items()}
    optimizer = DenseOptimizer(config, named.items())
    for parameter in named.values():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in named.items():
        assert torch.equal(parameter, before[name]) == (name != "tower.layers.0.weight")


def test_a_balancers_parameters_have_a_rate_of_their_own_and_no_decay():
    weight, own = nn.Parameter(torch.ones(1, 1)), nn.Parameter(torch.ones(2))
    config = DenseOptimizerConfig(optimizer="sgd", lr=0.1, weight_decay=1.0)
    optimizer = DenseOptimizer(config, [("w", weight)], [("s", own)], 0.5)
    optimizer.set_factor(0.5)
    weight.grad, own.grad = torch.ones(1, 1), torch.ones(2)
    optimizer.step()
    assert weight.item() == pytest.approx(1 - 0.05 * (1 + 1))
    assert own.tolist() == [0.75, 0.75]
    assert optimizer.clipped == [weight]
