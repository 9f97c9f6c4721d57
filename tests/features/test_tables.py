"""Plain and fused tables: worked by hand, and equal to each other."""

import pytest
import torch

from recmtl.batch import SparseBatch
from recmtl.distributed.plan import ShardingConfig, TableSize, make_plan
from recmtl.errors import RunError, UserError
from recmtl.features import InMemory, PlainTables, TableShape, initial_blocks, initial_table, table_shapes
from recmtl.features.fused import FusedTables, sharded_tables
from recmtl.modules import generator
from recmtl.schema import Feature, Schema
from recmtl.statistics import Statistics


def rowwise_adagrad():
    from torchrec.optim import RowWiseAdagrad

    return RowWiseAdagrad


def fused(shapes, optimizer_type=torch.optim.SGD, device="cpu", **kwargs):
    return FusedTables(shapes, optimizer_type=optimizer_type, optimizer_kwargs={"lr": 0.1, **kwargs}, device=device)


def filled(tables, shapes):
    for name, shape in shapes.items():
        tables.load_weights({name: initial_table(shape, std=1.0, seed=1, name=name)})
    return tables


def test_shapes_follow_the_schema_and_the_vocabularies(world):
    assert table_shapes(world.schema, world.statistics) == {
        "user": TableShape(5, 4, ("user",)),
        "items": TableShape(7, 8, ("item", "history", "seen")),
        "topics": TableShape(4, 6, ("topics",), weighted=True),
        "type": TableShape(7, 4, ("type",)),
    }


@pytest.mark.parametrize("make", [PlainTables, fused])
def test_embeddings_are_weighted_sums_by_feature_name(make, world, batch):
    shapes = table_shapes(world.schema, world.statistics)
    tables = filled(make(shapes), shapes)
    weights, pooled = tables.weights(), tables(batch.sparse)
    assert set(pooled) == set(world.rows)
    for feature, examples in world.rows.items():
        table = weights[world.schema[feature].table]
        for number, rows in enumerate(examples):
            each = world.weights[feature][number] if feature in world.weights else [1.0] * len(rows)
            expected = sum((w * table[row] for w, row in zip(each, rows, strict=True)), torch.zeros(table.shape[1]))
            torch.testing.assert_close(pooled[feature][number], expected)


def test_plain_and_fused_are_equal_and_step_equally(world, batch):
    shapes = table_shapes(world.schema, world.statistics)
    plain, quick = filled(PlainTables(shapes), shapes), filled(fused(shapes), shapes)
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.1)
    for _ in range(3):
        ours, theirs = plain(batch.sparse), quick(batch.sparse)
        for feature in ours:
            torch.testing.assert_close(ours[feature], theirs[feature])
        optimizer.zero_grad()
        sum(value.square().sum() for value in ours.values()).backward()
        optimizer.step()
        sum(value.square().sum() for value in theirs.values()).backward()
    for name, weight in plain.weights().items():
        torch.testing.assert_close(weight, quick.weights()[name])


def test_unweighted_tables_ignore_nothing_and_need_no_weights(world):
    schema = Schema([world.schema["user"], world.schema["history"]])
    shapes = {"user": TableShape(5, 4, ("user",)), "items": TableShape(7, 16, ("history",))}
    batch = world.make_batch(schema, world.rows, {}, torch.zeros(3, 0))
    assert batch.sparse.weights is None
    ours, theirs = filled(PlainTables(shapes), shapes)(batch.sparse), filled(fused(shapes), shapes)(batch.sparse)
    for feature in ours:
        torch.testing.assert_close(ours[feature], theirs[feature])


@pytest.mark.parametrize("make", [PlainTables, fused])
def test_a_batch_of_one_and_a_batch_of_empty_bags(make, world):
    shapes = {"items": TableShape(7, 8, ("history",))}
    tables = filled(make(shapes), shapes)
    one = SparseBatch(("history",), torch.tensor([3]), torch.tensor([1], dtype=torch.int32))
    torch.testing.assert_close(tables(one)["history"], tables.weights()["items"][3:4].clone())
    none = SparseBatch(("history",), torch.zeros(0, dtype=torch.int64), torch.zeros(2, dtype=torch.int32))
    pooled = tables(none)["history"]
    assert torch.equal(pooled, torch.zeros(2, 8))
    pooled.sum().backward()


@pytest.mark.parametrize("make", [PlainTables, fused])
def test_a_row_out_of_bounds_stops_the_run(make, world):
    tables = make({"items": TableShape(7, 8, ("history",))})
    bad = SparseBatch(("history",), torch.tensor([7]), torch.tensor([1], dtype=torch.int32))
    with pytest.raises((RuntimeError, IndexError)):
        tables(bad)


@pytest.mark.parametrize("make", [PlainTables, fused])
def test_weights_are_live_and_load_checks_them(make):
    shapes = {"items": TableShape(7, 6, ("history",)), "keys": TableShape(3, 4, ("keys",))}
    tables = filled(make(shapes), shapes)
    view = tables.weights()["items"]
    tables.load_weights({"items": torch.full((7, 6), 2.0)})
    assert (view == 2.0).all()
    assert not view.requires_grad
    with pytest.raises(RunError, match="no table 'other'"):
        tables.load_weights({"other": torch.zeros(1, 1)})
    with pytest.raises(RunError, match=r"\(7, 6\).*\(7, 8\)"):
        tables.load_weights({"items": torch.zeros(7, 8)})


def test_initial_tables_are_seeded_small_and_neutral_for_the_unseen():
    shape = TableShape(1000, 8, ("f",))
    weight = initial_table(shape, std=0.01, seed=1, name="f")
    assert weight.std().item() == pytest.approx(0.01, rel=0.05)
    assert (weight[1] == 0).all()
    assert (weight[0] != 0).any()
    assert torch.equal(weight, initial_table(shape, std=0.01, seed=1, name="f"))
    assert not torch.equal(weight, initial_table(shape, std=0.01, seed=1, name="g"))
    assert not torch.equal(weight, initial_table(shape, std=0.01, seed=2, name="f"))


def test_plain_tables_may_have_sparse_gradients(world, batch):
    tables = PlainTables(table_shapes(world.schema, world.statistics), sparse=True)
    schema_batch = SparseBatch(("user",), torch.tensor([2, 3]), torch.tensor([1, 1], dtype=torch.int32))
    tables(schema_batch)["user"].sum().backward()
    (gradient,) = [parameter.grad for parameter in tables.parameters() if parameter.grad is not None]
    assert gradient.is_sparse


def test_fused_tables_are_no_parameters_and_step_inside_backward():
    shapes = {"items": TableShape(7, 8, ("item",))}
    tables = filled(fused(shapes), shapes)
    assert list(tables.parameters()) == []
    assert tables.state_dict() == {}
    before = tables.weights()["items"].clone()
    batch = SparseBatch(("item",), torch.tensor([3, 3]), torch.tensor([1, 1], dtype=torch.int32))
    tables(batch)["item"].sum().backward()
    moved = tables.weights()["items"] - before
    torch.testing.assert_close(moved[3], torch.full((8,), -0.2))
    assert moved[[0, 1, 2, 4, 5, 6]].abs().sum() == 0


def test_the_learning_rate_can_be_scheduled():
    shapes = {"items": TableShape(7, 8, ("item",))}
    tables = filled(fused(shapes), shapes)
    batch = SparseBatch(("item",), torch.tensor([3]), torch.tensor([1], dtype=torch.int32))
    for lr in (0.0, 0.5):
        tables.set_learning_rate(lr)
        before = tables.weights()["items"].clone()
        tables(batch)["item"].sum().backward()
        torch.testing.assert_close(before[3] - tables.weights()["items"][3], torch.full((8,), lr))


def test_rowwise_adagrad_by_hand():
    # all of a row's 8 gradients are 2, so the mean square is 4 and the first step is lr · 2 / (√4 + eps)
    shapes = {"items": TableShape(7, 8, ("item",))}
    tables = filled(fused(shapes, rowwise_adagrad(), eps=0.0), shapes)
    before = tables.weights()["items"].clone()
    batch = SparseBatch(("item",), torch.tensor([3]), torch.tensor([1], dtype=torch.int32))
    (2 * tables(batch)["item"]).sum().backward()
    torch.testing.assert_close(before[3] - tables.weights()["items"][3], torch.full((8,), 0.1))
    assert tables.optimizer_state()["items.momentum_1"].tolist() == [0, 0, 0, 4, 0, 0, 0]


@pytest.mark.parametrize("optimizer", [rowwise_adagrad, lambda: torch.optim.Adagrad, lambda: torch.optim.SGD])
def test_optimizer_state_resumes_exactly(optimizer, world, batch):
    shapes = table_shapes(world.schema, world.statistics)

    def step(tables):
        sum(value.square().sum() for value in tables(batch.sparse).values()).backward()

    straight = filled(fused(shapes, optimizer()), shapes)
    for _ in range(4):
        step(straight)
    first, second = filled(fused(shapes, optimizer()), shapes), fused(shapes, optimizer())
    for _ in range(2):
        step(first)
    second.load_weights({name: weight.clone() for name, weight in first.weights().items()})
    second.load_optimizer_state({name: tensor.clone() for name, tensor in first.optimizer_state().items()})
    for _ in range(2):
        step(second)
    for name, weight in straight.weights().items():
        assert torch.equal(weight, second.weights()[name])
    for name, tensor in straight.optimizer_state().items():
        assert torch.equal(tensor, second.optimizer_state()[name])
    with pytest.raises(RunError, match="another optimiser"):
        first.load_optimizer_state({"iter": torch.zeros(1), "elsewhere.momentum_1": torch.zeros(3)})


def test_scoring_does_not_count_as_a_step(world, batch):
    tables = fused(table_shapes(world.schema, world.statistics), rowwise_adagrad())
    with torch.no_grad():
        tables(batch.sparse)
    assert tables.optimizer_state()["iter"].item() == 0
    tables(batch.sparse)["user"].sum().backward()
    assert tables.optimizer_state()["iter"].item() == 1


def test_a_width_that_is_no_multiple_of_four(world):
    shapes = {"items": TableShape(7, 5, ("item",))}
    plain, quick = filled(PlainTables(shapes), shapes), filled(fused(shapes), shapes)
    batch = SparseBatch(("item",), torch.tensor([3, 2]), torch.tensor([1, 1], dtype=torch.int32))
    assert quick(batch)["item"].shape == (2, 5)
    torch.testing.assert_close(plain(batch)["item"], quick(batch)["item"])
    assert quick.weights()["items"].shape == (7, 5)


def test_fbgemms_cpu_kernels_refuse_adam():
    with pytest.raises(UserError, match="no fused Adam"):
        fused({"items": TableShape(7, 8, ("item",))}, torch.optim.Adam)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("optimizer", [rowwise_adagrad, lambda: torch.optim.Adam, lambda: torch.optim.SGD])
def test_fused_tables_on_a_gpu_equal_plain_ones(optimizer, world, batch):
    shapes = table_shapes(world.schema, world.statistics)
    plain, quick = filled(PlainTables(shapes), shapes), filled(fused(shapes, optimizer(), device="cuda"), shapes)
    ours, theirs = plain(batch.sparse), quick(batch.to("cuda").sparse)
    for feature in ours:
        torch.testing.assert_close(ours[feature], theirs[feature].cpu())
    before = {name: weight.clone() for name, weight in quick.weights().items()}
    sum(value.square().sum() for value in theirs.values()).backward()
    for name, weight in quick.weights().items():
        assert weight.is_cuda
        assert not torch.equal(weight, before[name])
    state = {name: tensor.clone() for name, tensor in quick.optimizer_state().items()}
    quick.load_optimizer_state(state)


@pytest.mark.parametrize("config", [{"default": "data_parallel"}, {"tables": {"user": "data_parallel"}}])
def test_tables_that_every_rank_holds_whole_are_tables_like_the_others(config, world, batch):
    shapes = table_shapes(world.schema, world.statistics)
    arguments = {"optimizer_type": rowwise_adagrad(), "optimizer_kwargs": {"lr": 0.1, "eps": 1e-8}}
    sharded = filled(FusedTables(shapes, **arguments), shapes)
    whole = filled(sharded_tables(shapes, sharding=ShardingConfig(**config), **arguments), shapes)
    assert list(whole.parameters()) == []
    assert [table.table for table in whole.plan.tables] == list(shapes)
    assert {table.table: table.sharding for table in whole.plan.tables}["user"] == "data_parallel"

    def step(tables):
        features = list(reversed(batch.sparse.keys))
        tables.joined(batch.sparse, features).square().sum().backward()

    for _ in range(2):
        step(sharded)
        step(whole)
    again = sharded_tables(shapes, sharding=ShardingConfig(**config), **arguments)
    again.load_pieces(InMemory({name: part.clone() for name, part in whole.weights().items()}).read)
    again.load_optimizer_pieces(InMemory({name: part.clone() for name, part in whole.optimizer_state().items()}))
    for tables in (sharded, whole, again):
        tables.reset_rows("user", torch.tensor([2, 4]))
        tables.set_learning_rate(0.05)
        step(tables)
    for other in (whole, again):
        torch.testing.assert_close(other.weights(), sharded.weights())
        torch.testing.assert_close(other.optimizer_state(), sharded.optimizer_state())
    with pytest.raises(RunError, match="another optimiser"):
        again.load_optimizer_pieces(InMemory({"iter": torch.zeros(1), "elsewhere.momentum_1": torch.zeros(3)}))
    with pytest.raises(RunError, match="no table 'other'"):
        again.load_weights({"other": torch.zeros(1, 1)})


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device; TorchRec shards these ways on GPUs only")
@pytest.mark.parametrize("sharding", ["table_wise", "column_wise", "row_wise", "table_row_wise", "grid"])
def test_every_sharding_of_a_gpu_steps_as_plain_tables(sharding, world, batch):
    shapes = table_shapes(world.schema, world.statistics)
    config = ShardingConfig(default=sharding)
    arguments = {"optimizer_type": torch.optim.Adagrad, "optimizer_kwargs": {"lr": 0.1, "eps": 1e-8}}
    quick = filled(FusedTables(shapes, **arguments, device="cuda", sharding=config), shapes)
    plain = filled(PlainTables(shapes), shapes)
    optimizer = torch.optim.Adagrad(plain.parameters(), lr=0.1, eps=1e-8)
    for _ in range(3):
        optimizer.zero_grad()
        sum(value.square().sum() for value in plain(batch.sparse).values()).backward()
        optimizer.step()
        sum(value.square().sum() for value in quick(batch.to("cuda").sparse).values()).backward()
    for name, weight in plain.weights().items():
        torch.testing.assert_close(weight, quick.weights()[name].cpu())
    again = filled(FusedTables(shapes, **arguments, device="cuda", sharding=config), shapes)
    again.load_optimizer_state({name: tensor.clone() for name, tensor in quick.optimizer_state().items()})
    for name, tensor in quick.optimizer_state().items():
        assert torch.equal(tensor, again.optimizer_state()[name])


@pytest.mark.parametrize(("rows", "dim"), [(1, 1), (3, 5), (17, 1), (47, 1), (33, 3), (1000, 7), (64, 16)])
def test_initial_values_do_not_depend_on_the_blocks_they_are_drawn_in(rows, dim):
    shape = TableShape(rows, dim, ("f",))
    whole = torch.empty(rows, dim).normal_(0.0, 0.5, generator=generator(3, "tables", "f"))
    whole[1:2] = 0.0
    blocks = list(initial_blocks(shape, std=0.5, seed=3, name="f", block_rows=16))
    assert max(len(block) for block in blocks) < 32
    assert torch.equal(torch.cat(blocks), whole)
    assert torch.equal(initial_table(shape, std=0.5, seed=3, name="f"), whole)


@pytest.mark.parametrize("make", [PlainTables, fused])
def test_a_table_filled_block_by_block_is_the_whole_one(make):
    shapes = {"items": TableShape(50, 6, ("item",)), "types": TableShape(3, 4, ("type",))}
    made = make(shapes)
    for name, shape in shapes.items():
        made.load_blocks(name, initial_blocks(shape, std=1.0, seed=1, name=name, block_rows=16))
    for name, weight in filled(make(shapes), shapes).weights().items():
        assert torch.equal(weight, made.weights()[name])


def test_a_table_that_does_not_exist_cannot_be_sharded():
    with pytest.raises(UserError, match="there is no table 'other'; the tables are items"):
        FusedTables(
            {"items": TableShape(7, 8, ("item",))},
            optimizer_type=torch.optim.SGD,
            optimizer_kwargs={"lr": 0.1},
            sharding=ShardingConfig(tables={"other": "table_wise"}),
        )


def test_tables_that_do_not_fit_are_said_to():
    sizes = {"items": TableSize(10_000_000, 64, ("item",))}
    with pytest.raises(UserError, match=r"2\.56 GB of weights.* do not fit 2 rank\(s\) of 1\.00 GB"):
        make_plan(sizes, ShardingConfig(), optimizer_type=torch.optim.SGD, ranks=2, device="cpu", memory=1_000_000_000)
    halves = make_plan(
        sizes, ShardingConfig(), optimizer_type=torch.optim.SGD, ranks=2, device="cpu", memory=2_000_000_000
    )
    assert [(shard.rank, shard.columns) for shard in halves.tables[0].shards] == [(0, 32), (1, 32)]


def test_a_schema_without_tables_needs_none():
    schema = Schema([Feature(name="age", kind="number")])
    assert table_shapes(schema, Statistics({}, {}, {})) == {}
    empty = SparseBatch((), torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int32))
    assert PlainTables({})(empty) == {}


@pytest.mark.parametrize("lengths", [[1, 1, 1, 1], [2, 0, 1, 1], [0, 2, 2, 0]])
def test_scoring_looks_up_what_training_does(lengths):
    tables = PlainTables({"t": TableShape(5, 3, ("a", "b"))})
    tables.load_weights({"t": torch.randn(5, 3, generator=torch.Generator().manual_seed(1))})
    sparse = SparseBatch(("a", "b"), torch.tensor([4, 0, 2, 2]), torch.tensor(lengths, dtype=torch.int32))
    training = tables.joined(sparse, ["b", "a"]).detach()
    with torch.no_grad():
        assert torch.equal(tables.joined(sparse, ["b", "a"]), training)
