"""The adversarial tower: what its two losses say, and where their gradients go."""

import math

import torch
from torch import nn

from recmtl.modules import generator
from recmtl.towers.adversarial import AdversarialConfig, _overlap, build_adversarial

TASKS = ("click", "purchase", "rating")


def tower(**settings):
    config = AdversarialConfig(expert_widths=[8], head_widths=[4], discriminator_widths=[6], **settings)
    made = build_adversarial(config, input_dim=7, tasks=TASKS, generator=generator(1))
    nn.init.normal_(made.gate.weight, generator=generator(2))
    return made


def inputs(rows=16):
    return torch.randn(rows, 7, generator=generator(3))


def test_auxiliary_losses_are_there_while_training_alone():
    made = tower()
    assert set(made(inputs()).auxiliary) == {"adversarial", "orthogonality"}
    assert made.eval()(inputs()).auxiliary == {}


def test_tasks_that_mix_alike_cannot_be_told_apart():
    made = tower(adversarial_weight=1.0)
    nn.init.zeros_(made.gate.weight)
    nn.init.zeros_(made.guess.weight)
    nn.init.zeros_(made.guess.bias)
    torch.testing.assert_close(made(inputs()).auxiliary["adversarial"], torch.tensor(math.log(3)))
    # equal mixtures: no discriminator does better than chance
    optimizer = torch.optim.Adam([*made.discriminator.parameters(), *made.guess.parameters()], lr=0.05)
    for _ in range(50):
        optimizer.zero_grad()
        made(inputs()).auxiliary["adversarial"].backward()
        optimizer.step()
    assert made(inputs()).auxiliary["adversarial"] >= math.log(3) - 1e-4


def test_tasks_that_mix_differently_can_be_told_apart():
    made = tower(adversarial_weight=1.0, num_shared_experts=3)
    with torch.no_grad():
        made.gate.weight.zero_()
        made.gate.bias.copy_(5 * torch.eye(3).unsqueeze(1))
    optimizer = torch.optim.Adam([*made.discriminator.parameters(), *made.guess.parameters()], lr=0.05)
    for _ in range(200):
        optimizer.zero_grad()
        made(inputs()).auxiliary["adversarial"].backward()
        optimizer.step()
    assert made(inputs()).auxiliary["adversarial"] < 0.5 * math.log(3)


def test_the_gradient_is_reversed_below_the_discriminator_and_not_in_it():
    plain, reversed_ = tower(reversal_strength=1.0), tower(reversal_strength=2.0)
    for made in (plain, reversed_):
        made(inputs()).auxiliary["adversarial"].backward()
    torch.testing.assert_close(plain.guess.weight.grad, reversed_.guess.weight.grad)
    weight = lambda made: made.shared_experts.weights[0].grad  # noqa: E731
    torch.testing.assert_close(2 * weight(plain), weight(reversed_))
    assert all(parameter.grad is None for parameter in plain.private_experts.parameters())
    # a small step along minus the gradient makes the discriminator's loss worse
    before = plain(inputs()).auxiliary["adversarial"].item()
    with torch.no_grad():
        for parameter in plain.shared_experts.parameters():
            parameter -= 0.1 * parameter.grad / parameter.grad.norm()
    assert plain(inputs()).auxiliary["adversarial"].item() > before


def test_orthogonality_by_hand():
    shared = torch.tensor([[[1.0, 0.0], [2.0, 0.0]]])
    assert _overlap(shared, torch.tensor([[[3.0, 0.0], [1.0, 0.0]]]), 2) == 1.0  # the same direction on every row
    # rows (1,0)·(1,0)ᵀ and (1,0)·(0,1)ᵀ, mean [[.5, .5], [0, 0]], squared norm .5
    assert _overlap(shared, torch.tensor([[[3.0, 0.0], [0.0, 1.0]]]), 2) == 0.5
    assert _overlap(shared, torch.zeros(1, 2, 2), 2) == 0.0


def test_a_weight_scales_its_loss():
    one, two = tower(adversarial_weight=0.1, orthogonality_weight=0.3), tower()
    a, b = one(inputs()).auxiliary, two(inputs()).auxiliary
    torch.testing.assert_close(a["adversarial"] / 0.1, b["adversarial"] / 0.05)
    torch.testing.assert_close(a["orthogonality"] / 0.3, b["orthogonality"] / 0.01)
