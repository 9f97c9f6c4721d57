"""PLE against a plain loop."""

import torch
from torch import nn

from recmtl.modules import generator
from recmtl.towers.ple import PLEConfig, build_ple

TASKS = ("click", "purchase", "rating")


def tower(levels):
    config = PLEConfig(num_levels=levels, num_task_experts=2, num_shared_experts=3, expert_widths=[5], head_widths=[])
    made = build_ple(config, input_dim=7, tasks=TASKS, generator=generator(1))
    for name, parameter in made.named_parameters():
        if "gate" in name:
            nn.init.normal_(parameter, generator=generator(2, name))
    return made


def expert(bank, number, x):
    for weight, bias in zip(bank.weights, bank.biases, strict=True):
        x = torch.relu(x @ weight[number] + bias[number])
    return x


def mix(gate, number, x, candidates):
    shares = torch.softmax(x @ gate.weight[number] + gate.bias[number], dim=-1)
    return sum(shares[:, e : e + 1] * h for e, h in enumerate(candidates))


def test_ple_equals_a_loop_over_levels_tasks_and_experts():
    ple = tower(3)
    x = torch.randn(4, 7, generator=generator(3))
    tasks, shared = [x] * 3, x
    for number, level in enumerate(ple.levels):
        own = [[expert(level.task_experts, 2 * t + e, tasks[t]) for e in range(2)] for t in range(3)]
        common = [expert(level.shared_experts, e, shared) for e in range(3)]
        mixed = [mix(level.task_gate, t, tasks[t], own[t] + common) for t in range(3)]
        if number < 2:
            shared = mix(level.shared_gate, 0, shared, [h for hs in own for h in hs] + common)
        tasks = mixed
    hidden = ple(x).hidden
    for task, expected in zip(TASKS, tasks, strict=True):
        torch.testing.assert_close(hidden[task], expected)


def test_the_last_level_has_no_shared_gate():
    assert [level.shared_gate is None for level in tower(2).levels] == [False, True]


def test_on_one_level_a_task_reads_no_other_tasks_experts():
    ple = tower(1)
    hidden = ple(torch.randn(4, 7, generator=generator(3))).hidden
    (gradient,) = torch.autograd.grad(hidden["purchase"].sum(), [ple.levels[0].task_experts.weights[0]])
    assert gradient[2:4].abs().sum() > 0
    assert gradient[[0, 1, 4, 5]].abs().sum() == 0
