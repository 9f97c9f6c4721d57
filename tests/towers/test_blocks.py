"""The blocks of towers, against plain loops and worked by hand."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from recmtl.modules import ByName, generator, linear
from recmtl.towers.blocks import MLP, BatchNorm, ExpertBank, Gate, LayerNorm, reverse_gradient


def bank(norm="none", experts=3, dropout=0.0):
    return ExpertBank(experts, 4, (6, 5), norm=norm, dropout=dropout, generator=generator(1))


def looped(experts: ExpertBank, inputs):
    """The same experts, one at a time."""
    outputs = []
    for e, x in enumerate(inputs):
        h = x
        for weight, bias in zip(experts.weights, experts.biases, strict=True):
            h = torch.relu(h @ weight[e] + bias[e])
        outputs.append(h)
    return torch.stack(outputs)


def test_expert_bank_equals_a_loop_over_experts():
    experts, x = bank(), torch.randn(7, 4, generator=generator(2))
    torch.testing.assert_close(experts(x), looped(experts, [x] * 3))


def test_expert_bank_with_an_input_for_each_expert_equals_a_loop():
    experts, x = bank(), torch.randn(3, 7, 4, generator=generator(2))
    torch.testing.assert_close(experts(x), looped(experts, x))


def test_every_expert_starts_differently():
    for parameter in bank().parameters():
        for e in range(3):
            assert not torch.equal(parameter[e], parameter[(e + 1) % 3])


def test_expert_bank_of_one_equals_an_mlp_with_its_weights():
    experts = bank(experts=1)
    mlp = MLP(4, (6, 5), norm="none", dropout=0.0, generator=generator(3))
    for layer, weight, bias in zip(mlp.layers, experts.weights, experts.biases, strict=True):
        layer.load_state_dict({"weight": weight[0].T, "bias": bias[0, 0]})
    x = torch.randn(7, 4, generator=generator(2))
    torch.testing.assert_close(experts(x)[0], mlp(x))


def test_gates_sum_to_one_and_start_at_the_mean():
    gate = Gate(2, 4, 3)
    x = torch.randn(7, 4, generator=generator(2))
    torch.testing.assert_close(gate(x), torch.full((2, 7, 3), 1 / 3))
    nn.init.normal_(gate.weight, generator=generator(3))
    torch.testing.assert_close(gate(x).sum(-1), torch.ones(2, 7))
    torch.testing.assert_close(gate(x)[1], torch.softmax(x @ gate.weight[1] + gate.bias[1], -1))
    torch.testing.assert_close(gate(x), gate(x.expand(2, 7, 4)))


@pytest.mark.parametrize("shape", [(9, 4), (3, 9, 4)])
def test_layer_norm_is_torchs(shape):
    norm = LayerNorm(4, shape[0] if len(shape) == 3 else None)
    x = torch.randn(shape, generator=generator(1))
    torch.testing.assert_close(norm(x), F.layer_norm(x, (4,)))


def test_batch_norm_is_torchs_for_every_expert():
    norm = BatchNorm(4, 3)
    x = torch.randn(3, 9, 4, generator=generator(1))
    oracles = [nn.BatchNorm1d(4) for _ in range(3)]
    for _ in range(2):
        expected = torch.stack([oracle(h) for oracle, h in zip(oracles, x, strict=True)])
        torch.testing.assert_close(norm(x), expected)
    norm.eval()
    expected = torch.stack([oracle.eval()(h) for oracle, h in zip(oracles, x, strict=True)])
    torch.testing.assert_close(norm(x), expected)


def test_batch_norm_of_a_batch_of_one_uses_and_keeps_the_running_statistics():
    norm = BatchNorm(4)
    norm(torch.randn(9, 4, generator=generator(1)))
    before = norm.running_mean.clone()
    x = torch.randn(1, 4, generator=generator(2))
    torch.testing.assert_close(norm(x), norm.eval()(x))
    assert torch.equal(norm.running_mean, before)


def test_an_mlp_without_layers_is_the_identity():
    mlp = MLP(4, (), norm="layer", dropout=0.5, generator=generator(1))
    x = torch.randn(2, 4)
    assert mlp(x) is x
    assert mlp.output_dim == 4
    assert mlp.last_layer() == []


def test_dropout_acts_in_training_alone():
    mlp = MLP(4, (64,), norm="none", dropout=0.5, generator=generator(1))
    x = torch.randn(8, 4, generator=generator(2))
    assert (mlp(x) == 0).sum() > (mlp.eval()(x) == 0).sum()
    torch.testing.assert_close(mlp(x), mlp(x))


def test_gradient_reversal_turns_the_gradient_and_nothing_else():
    x = torch.tensor([1.0, 2.0], requires_grad=True)
    y = reverse_gradient(x, 0.5)
    assert torch.equal(y, x)
    (y * torch.tensor([3.0, 4.0])).sum().backward()
    assert x.grad.tolist() == [-1.5, -2.0]


def test_initial_values_leave_the_global_generator_alone():
    before = torch.get_rng_state()
    bank(norm="batch")
    MLP(4, (3,), norm="layer", dropout=0.1, generator=generator(1))
    linear(4, 2, generator(1))
    assert torch.equal(torch.get_rng_state(), before)


def test_streams_differ_by_name_and_seed():
    draws = {float(torch.rand(1, generator=generator(*key))) for key in [(1,), (2,), (1, "a"), (1, "b"), (1, "a", "b")]}
    assert len(draws) == 5


def test_by_name_takes_names_that_module_dict_refuses():
    modules = ByName({name: nn.Linear(1, 1) for name in ("type", "train", "items", "float")})
    assert sorted(modules.state_dict())[0] == "float.bias"
    assert modules["type"].in_features == 1
    assert len(modules) == 4
    with pytest.raises(NotImplementedError):
        modules(torch.zeros(1))
