"""The whole model: from a batch to predictions and losses, over plain and fused tables."""

import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from pydantic import ValidationError

from recmtl.batch import Batch, SparseBatch
from recmtl.errors import RunError
from recmtl.features import PlainTables
from recmtl.features.fused import FusedTables
from recmtl.model import ModelConfig, build_model
from recmtl.modules import generator
from recmtl.schema import Feature, Schema
from recmtl.statistics import LabelStatistics, Statistics, Vocabulary
from recmtl.tasks import Task, Tasks
from recmtl.towers import TOWERS

SCHEMA = Schema(
    [
        Feature(name="user", kind="id", embedding_dim=8),
        Feature(name="type", kind="bag", table="items", embedding_dim=8),
        Feature(name="tag", kind="weighted_bag", table="items"),
        Feature(name="age", kind="number"),
        Feature(name="text", kind="vector", dim=40),
    ]
)
TASKS = Tasks(
    [
        Task(name="purchase", kind="binary", label="p", parent="click"),
        Task(name="click", kind="binary", label="c"),
        Task(name="rating", kind="ordinal", label="r", levels=(1, 2, 3)),
        Task(name="train", kind="ordinal", label="r", levels=(1, 2, 3), link="corn"),
        Task(name="watched", kind="regression", label="w"),
        Task(name="reason", kind="multiclass", label="x", classes=("a", "b")),
    ]
)
ROWS = 50


def statistics():
    vocabulary = Vocabulary(tuple(map(str, range(ROWS - 2))), (1,) * (ROWS - 2))
    labels = {name: LabelStatistics(100, 0.3, 0.5, (0.2, 0.3, 0.5)) for name in TASKS}
    labels["reason"] = LabelStatistics(100, None, None, (0.4, 0.6))
    return Statistics({"user": vocabulary, "items": vocabulary}, {}, labels, {"purchase": labels["purchase"]})


def batch(size=16, seed=1):
    random = generator(seed)
    lengths = torch.stack(
        [torch.ones(size), *(torch.randint(0, 4, (size,), generator=random) for _ in range(2))]
    ).flatten()
    values = torch.randint(0, ROWS, (int(lengths.sum()),), generator=random)
    sparse = SparseBatch(("user", "type", "tag"), values, lengths.int(), torch.rand(len(values), generator=random))
    row = torch.arange(size)
    return Batch(
        size,
        sparse,
        torch.randn(size, SCHEMA.dense_width, generator=random),
        {name: torch.randint(0, 2, (size,), generator=random).float() for name in TASKS},
        {name: torch.rand(size, generator=random) > 0.3 for name in TASKS},
        {"click": torch.rand(size, generator=random)},
        row,
        row,
    )


def fused(shapes):
    return FusedTables(shapes, optimizer_type=torch.optim.SGD, optimizer_kwargs={"lr": 0.1})


def build(kind="mmoe", *, seed=1, tables=None, schema=SCHEMA, **settings):
    config = ModelConfig.model_validate({"tower": {"kind": kind}, **settings})
    return build_model(config, schema, TASKS, statistics(), seed=seed, tables=tables)


def total(model, rows):
    output = model(rows)
    return sum(model.losses(output, rows).values()) + sum(output.auxiliary.values())


def test_importing_the_model_imports_neither_torchrec_nor_fbgemm():
    code = "import sys, recmtl.model; sys.exit(bool({'torchrec', 'fbgemm_gpu'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("kind", TOWERS)
def test_every_tower_by_its_kind_gives_every_column_and_loss(kind):
    model, rows = build(kind), batch()
    assert type(model.tower).__module__ == f"recmtl.towers.{kind}"
    output = model(rows)
    found = model.predictions(output)
    assert list(found) == [column for name in TASKS for column in TASKS.prediction_columns(name)]
    for column in found.values():
        assert column.shape == (16,)
        assert column.dtype == torch.float32
        assert column.isfinite().all()
    losses = model.losses(output, rows)
    assert list(losses) == list(TASKS)
    assert all(loss.shape == () and loss.isfinite() for loss in losses.values())
    total(model, rows).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("kind", TOWERS)
def test_a_batch_of_one(kind):
    model = build(kind, input_norm="batch")
    model.train()
    total(model, batch(1)).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_an_unknown_tower_is_refused():
    with pytest.raises(ValidationError, match="shared_bottom"):
        build("shared_botom")


def test_forward_is_decide_after_embed():
    model, rows = build("adversarial"), batch()
    x = model.embed(rows)
    leaf = x.detach().requires_grad_()
    direct, cut = model(rows), model.decide(leaf)
    for task in TASKS:
        assert torch.equal(direct.logits[task], cut.logits[task])
    # the gradient of the leaf, sent through the embedding, is the gradient of the whole
    sum(model.losses(cut, rows).values()).backward()
    x.backward(leaf.grad)
    through = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    sum(model.losses(model(rows), rows).values()).backward()
    for name, parameter in model.named_parameters():
        if name in through:
            torch.testing.assert_close(through[name], parameter.grad)


def test_plain_and_fused_tables_give_equal_outputs_and_names():
    plain, quick, rows = build(), build(tables=fused), batch()
    assert isinstance(plain.tables, PlainTables)
    for task, logits in plain(rows).logits.items():
        torch.testing.assert_close(logits, quick(rows).logits[task])
    assert plain.tensors().keys() == quick.tensors().keys()
    assert {"tables.user", "tables.items"} < plain.tensors().keys()
    assert plain.dense_parameters().keys() == quick.dense_parameters().keys()
    assert {name for name, _ in quick.named_parameters()} == quick.dense_parameters().keys()


@pytest.mark.parametrize("kind", TOWERS)
def test_tensors_carry_a_model_from_fused_to_plain_tables(kind):
    trained, rows = build(kind, tables=fused, input_norm="batch"), batch()
    total(trained, rows).backward()
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter -= 0.01 * parameter.grad
    served = build(kind, seed=2, input_norm="batch")
    served.load_tensors({name: tensor.clone() for name, tensor in trained.tensors().items()})
    trained.eval(), served.eval()
    with torch.no_grad():
        expected, found = trained.predictions(trained(rows)), served.predictions(served(rows))
    for column, value in expected.items():
        torch.testing.assert_close(found[column], value)


def test_tensors_of_another_model_are_refused():
    model = build()
    tensors = model.tensors()
    with pytest.raises(RunError, match="user"):
        model.load_tensors({name: tensor for name, tensor in tensors.items() if name != "tables.user"})
    with pytest.raises(RunError, match="extra"):
        model.load_tensors({**tensors, "extra": torch.zeros(1)})
    for name in ("tables.user", "heads.by_task.click.linear.weight"):
        before = {key: tensor.clone() for key, tensor in tensors.items()}
        with pytest.raises(RunError, match="shape"):
            model.load_tensors({**{k: t + 1 for k, t in before.items()}, name: torch.zeros(3, 3)})
        assert all(torch.equal(tensor, before[key]) for key, tensor in model.tensors().items())


def test_the_seed_decides_and_the_global_generator_does_not():
    torch.manual_seed(1)
    one = build(tables=fused)
    torch.manual_seed(2)
    two, other = build(tables=fused), build(seed=2)
    assert all(torch.equal(tensor, two.tensors()[name]) for name, tensor in one.tensors().items())
    assert not torch.equal(one.tensors()["tables.user"], other.tensors()["tables.user"])


def test_initial_values_of_a_table_do_not_depend_on_other_features():
    fewer = Schema([SCHEMA["user"], SCHEMA["age"]])
    assert torch.equal(build(schema=fewer).tensors()["tables.user"], build().tensors()["tables.user"])


def test_interactions_may_be_left_out():
    model = build(inputs={"interactions": "none"})
    assert model.tower.experts.weights[0].shape[1] == model.features.output_dim
    pairs = 4 * 3 // 2  # of three embeddings and a vector
    assert build().tower.experts.weights[0].shape[1] == model.features.output_dim + pairs
    assert total(model, batch()).isfinite()


def test_a_masked_label_has_no_gradient_anywhere():
    model, rows = build(), batch()
    nothing = replace(
        rows,
        observed={name: torch.zeros(16, dtype=torch.bool) for name in TASKS},
        labels={name: torch.full((16,), float("nan")) for name in TASKS},
    )
    loss = total(model, nothing)
    assert loss.item() == 0
    loss.backward()
    assert all((p.grad == 0).all() for p in model.parameters())


def test_shared_parameters_are_all_that_stands_between_the_cut_and_the_tasks():
    model = build(input_norm="layer")
    shared = {id(p) for p in model.shared_parameters()}
    names = {name for name, p in model.named_parameters() if id(p) in shared}
    assert {name.split(".")[0] for name in names} == {"tower", "input_norm", "interactions"}
    assert {id(p) for p in model.last_shared_parameters()} <= shared


@pytest.mark.parametrize("kind", TOWERS)
@pytest.mark.parametrize("tables", [None, fused])
def test_bfloat16_autocast_trains_with_heads_in_float32(kind, tables):
    model, rows = build(kind, tables=tables, input_norm="layer"), batch()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(rows)
        losses = model.losses(output, rows)
    assert all(value.dtype == torch.float32 for value in output.logits.values())
    assert all(value.dtype == torch.float32 for value in losses.values())
    for task, value in model(rows).logits.items():
        torch.testing.assert_close(output.logits[task], value, atol=0.1, rtol=0.1)
    (sum(losses.values()) + sum(output.auxiliary.values())).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("kind", ["number", "id"])
def test_a_schema_with_dense_or_sparse_features_alone(kind):
    schema = Schema([next(feature for feature in SCHEMA.values() if feature.kind == kind)])
    model, rows = build(schema=schema), batch()
    sparse = SparseBatch(("user",), rows.sparse.values[:16], rows.sparse.lengths[:16])
    if kind == "number":
        sparse = SparseBatch((), torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int32))
    rows = replace(rows, sparse=sparse, dense=rows.dense[:, : schema.dense_width])
    assert total(model, rows).isfinite()
    assert model.embed(rows).requires_grad == (kind == "id")


@pytest.mark.parametrize("kind", TOWERS)
def test_the_model_learns_what_there_is_to_learn(kind):
    model, rows = build(kind), batch(64)
    yes = (rows.dense[:, 0] > 0).float()
    rows = replace(
        rows,
        labels={name: 2 * yes if task.kind == "ordinal" else yes for name, task in TASKS.items()},
        observed={name: torch.ones(64, dtype=torch.bool) for name in TASKS},
        weights={},
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    start = model.losses(model(rows), rows)
    for _ in range(60):
        optimizer.zero_grad()
        total(model, rows).backward()
        optimizer.step()
    end = model.losses(model(rows), rows)
    for task in TASKS:
        assert end[task] < 0.2 * start[task], task
