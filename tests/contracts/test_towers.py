"""What every tower in TOWERS keeps to; a newcomer to the table is tested at once."""

import pytest
import torch

from recmtl.modules import generator
from recmtl.settings import Settings
from recmtl.towers import SHARED_GATE, TOWERS

TASKS = ("click", "purchase", "rating")
D = 9

pytestmark = pytest.mark.parametrize("name", TOWERS)


def build(name, *, seed=1, tasks=TASKS, **settings):
    kind = TOWERS[name]
    tower = kind.build(kind.config(**settings), input_dim=D, tasks=tasks, generator=generator(seed))
    gates = generator(seed, "gates")  # gates may start at zero, where some of what they read has no gradient yet
    with torch.no_grad():
        for parameter_name, parameter in tower.named_parameters():
            if "gate" in parameter_name:
                parameter.normal_(generator=gates)
    return tower


def inputs(rows=32):
    return torch.randn(rows, D, generator=generator(7))


def gradients(tower, task):
    """Parameter name to its gradient from one task's hidden vector."""
    names, parameters = zip(*tower.named_parameters(), strict=True)
    found = torch.autograd.grad(tower(inputs()).hidden[task].square().sum(), parameters, allow_unused=True)
    return {n: torch.zeros_like(p) if g is None else g for n, p, g in zip(names, parameters, found, strict=True)}


def test_the_config_is_settings_with_the_tables_kind(name):
    config = TOWERS[name].config
    assert issubclass(config, Settings)
    assert config().kind == name
    assert all(field.description for field in config.model_fields.values())


@pytest.mark.parametrize("norm", ["none", "layer", "batch"])
@pytest.mark.parametrize("rows", [1, 2, 32])
def test_hidden_vectors_are_finite_for_every_task_even_for_one_row(name, norm, rows):
    tower = build(name, norm=norm, dropout=0.1)
    output = tower(inputs(rows))
    assert list(output.hidden) == list(TASKS)
    for hidden in output.hidden.values():
        assert hidden.shape == (rows, tower.output_dim)
        assert hidden.isfinite().all()
    (sum(h.sum() for h in output.hidden.values()) + sum(output.auxiliary.values())).backward()
    assert all(p.grad.isfinite().all() for p in tower.parameters() if p.grad is not None)


def test_auxiliary_losses_are_finite_scalars_and_absent_when_scoring(name):
    tower = build(name)
    for loss in tower(inputs()).auxiliary.values():
        assert loss.shape == ()
        assert loss.isfinite()
    assert tower.eval()(inputs()).auxiliary == {}


def test_one_task_is_enough(name):
    tower = build(name, tasks=("click",))
    assert list(tower(inputs()).hidden) == ["click"]
    tower.shared_parameters()


def test_every_task_reaches_every_shared_parameter(name):
    tower = build(name)
    shared = {id(parameter) for parameter in tower.shared_parameters()}
    for task in TASKS:
        found = gradients(tower, task)
        for parameter_name, parameter in tower.named_parameters():
            if id(parameter) in shared:
                assert found[parameter_name].abs().sum() > 0, f"{task} does not reach {parameter_name}"


def test_shared_parameters_are_exactly_those_that_two_tasks_read(name):
    tower = build(name)
    shared = {id(parameter) for parameter in tower.shared_parameters()}
    by_task = [gradients(tower, task) for task in TASKS]
    for parameter_name, parameter in tower.named_parameters():
        read_by = sum((found[parameter_name] != 0).int() for found in by_task)
        assert (int(read_by.max()) > 1) == (id(parameter) in shared), parameter_name


def test_last_shared_parameters_are_shared(name):
    tower = build(name)
    last = tower.last_shared_parameters()
    assert last
    assert {id(parameter) for parameter in last} <= {id(parameter) for parameter in tower.shared_parameters()}


def test_nothing_idles_while_training(name):
    tower = build(name)
    output = tower(inputs())
    (sum(h.square().sum() for h in output.hidden.values()) + sum(output.auxiliary.values())).backward()
    assert [n for n, p in tower.named_parameters() if p.grad is None] == []


def test_the_seed_decides(name):
    same, again, other = build(name), build(name), build(name, seed=2)
    for left, right in zip(same.parameters(), again.parameters(), strict=True):
        assert torch.equal(left, right)
    assert not all(torch.equal(a, b) for a, b in zip(same.parameters(), other.parameters(), strict=True))


def test_building_leaves_the_global_generator_alone(name):
    before = torch.get_rng_state()
    TOWERS[name].build(TOWERS[name].config(), input_dim=D, tasks=TASKS, generator=generator(1))
    assert torch.equal(torch.get_rng_state(), before)


def test_state_dict_makes_an_equal_tower(name):
    tower, other = build(name, norm="batch"), build(name, seed=2, norm="batch")
    tower(inputs())
    other.load_state_dict(tower.state_dict())
    for task in TASKS:
        assert torch.equal(tower.eval()(inputs()).hidden[task], other.eval()(inputs()).hidden[task])


def test_rows_do_not_see_each_other_when_scoring(name):
    tower = build(name, norm="batch").eval()
    x = inputs()
    order = torch.randperm(len(x), generator=generator(3))
    for task in TASKS:
        torch.testing.assert_close(tower(x[order]).hidden[task], tower(x).hidden[task][order])
        torch.testing.assert_close(tower(x[:1]).hidden[task], tower(x).hidden[task][:1])


@pytest.mark.parametrize("norm", ["none", "layer", "batch"])
def test_bfloat16_autocast_is_finite_and_near(name, norm):
    tower = build(name, norm=norm).eval()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = tower(inputs()).hidden
    for task, hidden in tower(inputs()).hidden.items():
        torch.testing.assert_close(low[task].float(), hidden, atol=0.1, rtol=0.1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = tower.train()(inputs())
        loss = sum(h.float().square().mean() for h in output.hidden.values()) + sum(output.auxiliary.values())
    loss.backward()
    assert all(p.grad.isfinite().all() for p in tower.parameters() if p.grad is not None)


def test_the_gates_it_shows_sum_to_one_over_experts_it_shows(name):
    tower = build(name).eval()
    before = tower(inputs()).hidden
    for layer in tower.gated_layers(inputs()):
        for task, gate in layer.gates.items():
            assert task in (*TASKS, SHARED_GATE)
            assert gate.shares.shape == (32, len(gate.experts))
            assert set(gate.experts) <= layer.outputs.keys()
            torch.testing.assert_close(gate.shares.sum(1), torch.ones(32))
        assert {len(output) for output in layer.outputs.values()} == {32}
    for task, hidden in tower(inputs()).hidden.items():
        assert torch.equal(hidden, before[task])
