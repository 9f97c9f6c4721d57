"""MMoE against a plain loop, and against the shared bottom that it becomes with one expert."""

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from recmtl.modules import generator
from recmtl.towers.mmoe import MMoEConfig, build_mmoe
from recmtl.towers.shared_bottom import SharedBottomConfig, build_shared_bottom

TASKS = ("click", "purchase")


def tower(**settings):
    settings = {"num_experts": 3, "expert_widths": [6, 5], "head_widths": [4], **settings}
    made = build_mmoe(MMoEConfig(**settings), input_dim=7, tasks=TASKS, generator=generator(1))
    nn.init.normal_(made.gate.weight, generator=generator(2))
    return made


def test_mmoe_equals_a_loop_over_rows_tasks_and_experts():
    mmoe = tower()
    x = torch.randn(4, 7, generator=generator(3))
    hidden = mmoe(x).hidden
    for t, task in enumerate(TASKS):
        for row in range(4):
            logits = x[row] @ mmoe.gate.weight[t] + mmoe.gate.bias[t, 0]
            shares = logits.exp() / logits.exp().sum()
            mixed = torch.zeros(5)
            for e in range(3):
                h = x[row]
                for weight, bias in zip(mmoe.experts.weights, mmoe.experts.biases, strict=True):
                    h = torch.relu(h @ weight[e] + bias[e, 0])
                mixed = mixed + shares[e] * h
            (layer,) = mmoe.task_layers[task].layers
            expected = torch.relu(layer.weight @ mixed + layer.bias)
            torch.testing.assert_close(hidden[task][row], expected)


def test_mmoe_of_one_expert_is_a_shared_bottom():
    mmoe = tower(num_experts=1)
    config = SharedBottomConfig(widths=[6, 5], head_widths=[4])
    bottom = build_shared_bottom(config, input_dim=7, tasks=TASKS, generator=generator(9))
    for layer, weight, bias in zip(bottom.bottom.layers, mmoe.experts.weights, mmoe.experts.biases, strict=True):
        layer.load_state_dict({"weight": weight[0].T, "bias": bias[0, 0]})
    bottom.task_layers.load_state_dict(mmoe.task_layers.state_dict())
    x = torch.randn(5, 7, generator=generator(3))
    for task in TASKS:
        torch.testing.assert_close(mmoe(x).hidden[task], bottom(x).hidden[task])


def test_impossible_settings_are_refused():
    for settings in (
        {"num_experts": 0},
        {"expert_widths": []},
        {"expert_widths": [0]},
        {"dropout": 1.0},
        {"norm": "x"},
    ):
        with pytest.raises(ValidationError):
            MMoEConfig(**settings)
