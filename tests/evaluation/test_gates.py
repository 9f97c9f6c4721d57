"""Gates by a plain loop over the rows, experts that are dead or the same, slices and rows in none."""

import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from recmtl.batch import Batch, SparseBatch
from recmtl.etl.slicing import SliceColumn
from recmtl.evaluation.gates import GatesConfig, gates, linear_cka
from recmtl.model import Model, ModelConfig, build_model
from recmtl.schema import Feature, Schema
from recmtl.statistics import LabelStatistics, NumberStatistics, Statistics, Vocabulary
from recmtl.tasks import Task, Tasks

TASKS = Tasks([Task(name=name, kind="binary", label=name) for name in ("click", "buy")])
SCHEMA = Schema([Feature(name="user", kind="id", embedding_dim=4), Feature(name="age", kind="number")])
STATISTICS = Statistics(
    tables={"user": Vocabulary(tuple("abcd"), (4, 3, 2, 1))},
    numbers={"age": NumberStatistics(10, 0, 0.0, 1.0, -1.0, 1.0)},
    labels={name: LabelStatistics(10, 0.3, 0.4) for name in TASKS},
)
TOWERS = {
    "mmoe": {"kind": "mmoe", "num_experts": 3, "expert_widths": [5], "head_widths": []},
    "ple": {"kind": "ple", "num_levels": 2, "num_task_experts": 1, "num_shared_experts": 2, "expert_widths": [5]},
    "adversarial": {"kind": "adversarial", "num_shared_experts": 3, "expert_widths": [5]},
    "shared_bottom": {"kind": "shared_bottom", "widths": [5]},
}


def made(kind: str, seed: int = 0) -> Model:
    model = build_model(ModelConfig(tower=TOWERS[kind]), SCHEMA, TASKS, STATISTICS, seed=seed)
    draws = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "gate" in name or "tables" in name:
                parameter.normal_(generator=draws)
    return model.eval()


class Rows:
    """A loader over rows in memory."""

    split = "test"

    def __init__(self, rows: int, batch_size: int = 7) -> None:
        draws = torch.Generator().manual_seed(3)
        self.rows, self.batch_size, self.batches = rows, batch_size, -(-rows // batch_size)
        self.user = torch.randint(0, 6, (rows,), generator=draws)
        self.age = torch.randn(rows, generator=draws)
        self.read = 0

    def batch(self, start: int, end: int) -> Batch:
        user, age = self.user[start:end], self.age[start:end]
        size = len(user)
        return Batch(
            size=size,
            sparse=SparseBatch(("user",), user, torch.ones(size, dtype=torch.int32)),
            dense=torch.stack([age, torch.zeros(size)], 1),
            labels={},
            observed={},
            weights={},
            group=user,
            row=torch.arange(start, start + size),
        )

    def epoch(self, number: int, start: int = 0) -> Iterator[Batch]:
        for first in range(0, self.rows, self.batch_size):
            self.read += 1
            yield self.batch(first, min(first + self.batch_size, self.rows))


def towers_input(model: Model, rows: Rows) -> torch.Tensor:
    with torch.no_grad():
        x: torch.Tensor = model.input_norm(model.interactions(model.embed(rows.batch(0, rows.rows))))
    return x


def test_mean_gates_and_entropies_are_those_of_a_plain_loop() -> None:
    model, rows = made("mmoe"), Rows(40)
    column = SliceColumn("age", ("low", "none", "high"), np.where(rows.age < 0, 0, 2).astype(np.int32))
    column.codes[::5] = -1
    found, _ = gates(model, rows, [column])
    weight, bias = model.tower.gate.weight.detach(), model.tower.gate.bias.detach()
    x = towers_input(model, rows)
    for number, task in enumerate(TASKS):
        shares = []
        for row in x:
            logits = [float(row @ weight[number, :, e] + bias[number, 0, e]) for e in range(3)]
            total = sum(math.exp(logit) for logit in logits)
            shares.append([math.exp(logit) / total for logit in logits])
        entropies = [-sum(p * math.log(p) for p in row) / math.log(3) for row in shares]
        for code, label in ((None, None), (0, "low"), (2, "high")):
            here = [n for n in range(40) if code is None or column.codes[n] == code]
            (gate,) = [g for g in found if g.task == task and g.value == label]
            assert gate.rows == len(here)
            assert gate.slice == (None if label is None else "age")
            assert gate.experts == ("expert 1", "expert 2", "expert 3")
            assert gate.mean == pytest.approx(np.mean([shares[n] for n in here], axis=0), abs=1e-6)
            assert gate.entropy == pytest.approx(np.mean([entropies[n] for n in here]), abs=1e-6)
    assert len(found) == 6, "a slice without rows has no gate, rows in no slice count among all"


def test_every_level_of_a_ple_names_own_and_shared_experts() -> None:
    model, rows = made("ple"), Rows(20)
    found, _ = gates(model, rows)
    experts = {(gate.layer, gate.task): gate.experts for gate in found}
    common = ("shared expert 1", "shared expert 2")
    assert experts == {
        ("level 1", "click"): ("click 1", *common),
        ("level 1", "buy"): ("buy 1", *common),
        ("level 1", "(shared)"): ("click 1", "buy 1", *common),
        ("level 2", "click"): ("click 1", *common),
        ("level 2", "buy"): ("buy 1", *common),
    }
    assert all(sum(gate.mean) == pytest.approx(1) for gate in found)


@pytest.mark.parametrize("kind", ["mmoe", "ple", "adversarial"])
def test_what_a_tower_shows_is_what_it_computes_with(kind: str) -> None:
    """The task's mixture of what is shown, by hand, gives the tower's own hidden vectors."""
    model, rows = made(kind), Rows(20)
    x = towers_input(model, rows)
    with torch.no_grad():
        layer = model.tower.gated_layers(x)[-1]
        for task, layers in model.tower.task_layers.items():
            gate = layer.gates[task]
            mixed = sum(gate.shares[:, [k]] * layer.outputs[name] for k, name in enumerate(gate.experts))
            if kind == "adversarial":
                private = model.tower.private_experts(x)[list(TASKS).index(task)]
                mixed = torch.cat([mixed, private], dim=1)
            torch.testing.assert_close(layers(mixed), model.tower(x).hidden[task])


def test_a_tower_without_gates_has_none_and_reads_nothing() -> None:
    rows = Rows(20)
    assert gates(made("shared_bottom"), rows) == ((), ())
    assert gates(made("mmoe"), rows, config=GatesConfig(enabled=False)) == ((), ())
    assert rows.read == 0


def test_an_expert_that_no_gate_takes_is_dead() -> None:
    model, rows = made("mmoe"), Rows(30)
    with torch.no_grad():
        model.tower.gate.weight[..., 1] = 0.0
        model.tower.gate.bias[:, :, 1] = -9.0
    _, experts = gates(model, rows)
    assert [(expert.expert, expert.dead) for expert in experts] == [("expert 2", True)]
    with torch.no_grad():
        model.tower.gate.bias[0, :, 1] = 3.0
    assert gates(model, rows)[1] == (), "one task takes it"


def test_units_that_never_speak_are_counted() -> None:
    model, rows = made("mmoe"), Rows(30)
    experts = model.tower.experts
    with torch.no_grad():
        experts.weights[0][2][:, :4] = 0.0
        experts.biases[0][2, :, :4] = -1.0
        experts.biases[0][2, :, 4] = 9.0
    (found,) = gates(model, rows)[1]
    assert (found.expert, found.dead, found.duplicate_of) == ("expert 3", False, None)
    assert found.units_dead == pytest.approx(0.8)


def test_an_expert_that_is_another_ones_copy_is_its_duplicate() -> None:
    model, rows = made("mmoe"), Rows(64)
    experts = model.tower.experts
    with torch.no_grad():  # the same units in another order, twice as loud
        for parameter in (experts.weights[0], experts.biases[0]):
            parameter[2] = 2 * parameter[0].flip(-1)
    (found,) = gates(model, rows)[1]
    assert (found.expert, found.duplicate_of) == ("expert 3", "expert 1")
    assert found.similarity == pytest.approx(1)


def test_linear_cka_is_hsic_with_centred_kernels() -> None:
    draws = np.random.default_rng(0)
    x, y = draws.normal(size=(50, 4)), draws.normal(size=(50, 3))
    y[:, 0] += x[:, 1]
    centre = np.eye(50) - 1 / 50

    def hsic(k: np.ndarray, m: np.ndarray) -> float:
        return float(np.trace(k @ centre @ m @ centre))

    k, m = x @ x.T, y @ y.T
    assert linear_cka(x, y) == pytest.approx(hsic(k, m) / math.sqrt(hsic(k, k) * hsic(m, m)))
    rotated = x @ np.linalg.qr(draws.normal(size=(4, 4)))[0] * 3 + 7
    assert linear_cka(x, rotated) == pytest.approx(1)
    assert linear_cka(x, np.ones((50, 2))) is None


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_batches_change_nothing(batch_size: int) -> None:
    model, rows = made("ple"), Rows(50, batch_size)
    column = SliceColumn("user", tuple("abcdef"), rows.user.numpy().astype(np.int32))
    found, experts = gates(model, rows, [column])
    whole, same = gates(model, Rows(50, 50), [column])
    assert [gate.model_dump(exclude={"mean", "entropy"}) for gate in found] == [
        gate.model_dump(exclude={"mean", "entropy"}) for gate in whole
    ]
    for one, other in zip(found, whole, strict=True):
        assert one.mean == pytest.approx(other.mean, abs=1e-6)
        assert one.entropy == pytest.approx(other.entropy, abs=1e-6)
    assert [expert.expert for expert in experts] == [expert.expert for expert in same]


def test_many_rows_are_looked_at_in_even_parts_and_the_model_stays_in_its_mode() -> None:
    model, rows = made("mmoe"), Rows(70)
    model.train()
    found, _ = gates(model, rows, config=GatesConfig(max_rows=20))
    assert {gate.rows for gate in found} == {21}  # every fourth of ten batches of seven
    assert model.training


def test_of_a_column_with_many_values_the_largest_are_told_in_their_order() -> None:
    codes = np.array([0] * 3 + [1] * 9 + [2] * 1 + [3] * 7, np.int32)
    column = SliceColumn("city", ("a", "b", "c", "d"), codes)
    found, _ = gates(made("mmoe"), Rows(20), [column], config=GatesConfig(max_values=2))
    assert [(gate.value, gate.rows) for gate in found if gate.task == "click"] == [(None, 20), ("b", 9), ("d", 7)]


def test_one_row_and_none() -> None:
    model = made("mmoe")
    found, _ = gates(model, Rows(1))
    assert {gate.rows for gate in found} == {1}
    assert gates(model, Rows(0))[0] == ()


def test_one_expert_has_no_entropy() -> None:
    tower = {"kind": "mmoe", "num_experts": 1, "expert_widths": [5]}
    model = build_model(ModelConfig(tower=tower), SCHEMA, TASKS, STATISTICS, seed=0)
    found, experts = gates(model, Rows(9))
    assert {(gate.mean, gate.entropy) for gate in found} == {((1.0,), 0.0)}
    assert not any(expert.dead for expert in experts)
