"""`recmtl plan`: its figures worked by hand, and held against the bytes of real tables, optimisers and tensors."""

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
import yaml

from recmtl import cli, stages
from recmtl.capacity import GIB, Capacity, Machine, _distinct, _LiveStorage, plan
from recmtl.config import RunConfig, parse_config
from recmtl.errors import UserError
from recmtl.features import TableShape
from recmtl.model import build_model
from recmtl.schema import Schema
from recmtl.tasks import Tasks
from recmtl.training import make_tables
from recmtl.training.optimizers import DenseOptimizer, SparseOptimizerConfig, sparse_optimizer


def config(**changes: Any) -> RunConfig:
    """A user table of 1000 rows of 6 (8 as stored), a bag of 5 tags from 20 rows of 4, one number: D = 12."""
    data: dict[str, Any] = {
        "name": "small",
        "data": {"source": {"kind": "table", "path": "rows.parquet"}, "prepared": "nowhere"},
        "features": [
            {"name": "user", "kind": "id", "embedding_dim": 6, "hash_buckets": 998},
            {"name": "tags", "kind": "bag", "embedding_dim": 4, "hash_buckets": 18, "max_length": 5},
            {"name": "price", "kind": "number"},
        ],
        "tasks": [{"name": "click", "kind": "binary", "label": "click"}],
        "model": {
            "tower": {"kind": "shared_bottom", "widths": [8], "head_widths": [4]},
            "inputs": {"interactions": "none"},
        },
        "training": {"device": "cpu"},
        "tracking": {"enabled": False},
    }
    return parse_config(data | changes)


def of(machine: Machine, **changes: Any) -> Capacity:
    return plan(config(**changes), machine, batch_size=100)


ONE_GPU = Machine(ranks=1, memory=GIB)
TWO_CPUS = Machine(ranks=2, memory=4 * GIB, device="cpu")


def test_tables_and_the_dense_part_by_hand() -> None:
    found = of(ONE_GPU)
    user, tags = found.tables
    assert (user.rows, user.rows_from, user.weight_bytes, user.optimizer_bytes) == (1000, "hash_buckets", 32000, 4000)
    assert (tags.rows, tags.values_per_row, tags.weight_bytes, tags.optimizer_bytes) == (20, 5.0, 320, 80)
    assert found.dense.parameters == (12 * 8 + 8) + (8 * 4 + 4) + (4 + 1) == 145
    products = 12 * 8 + 8 * 4 + 4 * 1
    assert found.dense.forward_flops == 2 * products
    assert found.dense.training_flops == 3 * 2 * products  # the weights' gradient and the input's are one product each
    assert found.rank.dense == 2 * 4 * 145
    assert found.rank.dense_optimizer == 2 * 4 * 145  # AdamW's two moments
    assert found.rank.exchange == found.rank.lookups == 0  # nobody to exchange with
    parts = vars(found.rank)
    assert found.rank.total == sum(size for name, size in parts.items() if name not in ("total", "host_tables"))


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_operations_of_experts_and_gates_by_hand(device: str) -> None:
    tower = {"kind": "mmoe", "num_experts": 3, "expert_widths": [10, 6], "head_widths": [4]}
    tasks = [{"name": name, "kind": "binary", "label": name} for name in ("click", "buy")]
    model = {"tower": tower, "inputs": {"interactions": "none"}}
    found = of(Machine(ranks=1, memory=4 * GIB, device=device), model=model, tasks=tasks)
    experts = 3 * (12 * 10 + 10 * 6)
    gates = 2 * 12 * 3 + 2 * 3 * 6  # and the mixing of three experts of width 6
    heads = 2 * (6 * 4 + 4 * 1)
    assert found.dense.forward_flops == 2 * (experts + gates + heads)
    assert found.dense.training_flops == 3 * 2 * (experts + gates + heads)


@pytest.mark.parametrize(("balancer", "passes"), [("fixed", 1), ("pcgrad", 2)])
def test_a_balancer_that_takes_a_gradient_per_task_has_each_counted(balancer: str, passes: int) -> None:
    tasks = [{"name": name, "kind": "binary", "label": name} for name in ("click", "buy")]
    found = of(ONE_GPU, tasks=tasks, balancing={"kind": balancer})
    bottom, heads = 12 * 8, 2 * (8 * 4 + 4 * 1)
    assert found.dense.forward_flops == 2 * (bottom + heads)
    # per task its own head alone and the bottom; then both, once, through everything
    apart = 0 if passes == 1 else 2 * (2 * 2 * bottom + 2 * heads // 2)
    assert found.dense.training_flops == 3 * 2 * (bottom + heads) + apart


def test_a_step_by_hand() -> None:
    step = of(ONE_GPU).step
    assert step.read == 100 * (1 * 8 * 4 + 5 * 4 * 4)
    user = 2 * 100 * (8 * 4 + 4) + 100 * 8 * 4  # 100 rows at most, of 1000
    tags = 2 * 20 * (4 * 4 + 4) + 500 * 4 * 4  # all 20
    assert step.updated == user + tags
    assert step.sent == step.reduced == 0
    assert step.flops == 792 * 100


def test_what_two_ranks_exchange_by_hand() -> None:
    found = of(TWO_CPUS)
    where = {table.name: table.ranks for table in found.tables}
    assert sorted(where.values()) == [(0,), (1,)], "the planner gives each rank a table"
    embeddings = {"user": 50 * 8 * 4, "tags": 50 * 4 * 4}
    ids = {"user": 50 * (8 * 1 + 4), "tags": 50 * (8 * 5 + 4)}
    # the rank of the user table sends embeddings of users, ids of tags, gradients of tags; the other the reverse
    assert found.step.sent == max(
        embeddings["user"] + ids["tags"] + embeddings["tags"], embeddings["tags"] + ids["user"] + embeddings["user"]
    )
    assert found.step.reduced == 2 * (1 / 2) * 4 * 145
    assert found.rank.exchange == 4 * 145


def test_bounds_follow_from_the_speeds() -> None:
    machine = Machine(ranks=2, memory=4 * GIB, device="cpu", flops=1e9, memory_bandwidth=1e8, interconnect=1e6)
    found = of(machine)
    assert found.bounds["compute"] == pytest.approx(2 * 1e9 / 792)
    assert found.bounds["memory"] == pytest.approx(100 * 1e8 / found.step.memory)
    assert found.bounds["interconnect"] == pytest.approx(100 * 1e6 / (found.step.sent + found.step.reduced))
    assert found.bounds["samples_per_second"] == found.bounds["interconnect"]
    assert of(ONE_GPU).bounds == {}


@pytest.mark.parametrize("optimizer", ["rowwise_adagrad", "adagrad", "sgd", "exact_adam"])
def test_tables_weigh_what_real_ones_weigh(optimizer: str) -> None:
    sparse = {"optimizer": optimizer}
    found = of(ONE_GPU, training={"device": "cpu", "sparse": sparse})
    settings = SparseOptimizerConfig.model_validate(sparse)
    tables = make_tables(settings, "cpu")(
        {"user": TableShape(1000, 6, ("user",)), "tags": TableShape(20, 4, ("tags",))}
    )
    stored = {name: weight.stride(0) * len(weight) * weight.element_size() for name, weight in tables.weights().items()}
    assert {table.name: table.weight_bytes for table in found.tables} == stored
    optimizer_ = sparse_optimizer(settings, tables)
    for parameter in tables.parameters():  # type: ignore[attr-defined]
        parameter.grad = torch.zeros_like(parameter)
    optimizer_.step()
    state = optimizer_.state()
    held = sum(
        (tensor if isinstance(tensor, torch.Tensor) else tensor.held[0].tensor).nbytes
        for name, tensor in state.items()
        if not name.endswith(("iter", "step"))
    )
    gradients = sum(stored.values()) if optimizer == "exact_adam" else 0
    assert sum(table.optimizer_bytes for table in found.tables) == held + gradients


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "adagrad"])
def test_the_dense_optimiser_weighs_what_a_real_one_weighs(optimizer: str) -> None:
    run = config(training={"device": "cpu", "dense": {"optimizer": optimizer}})
    assert run.explicit_features is not None
    from recmtl.capacity import _Facts

    facts = _Facts.of(run, {}, {})
    model = build_model(run.model, Schema(run.explicit_features), Tasks(run.tasks), facts.statistics, seed=1)
    dense = DenseOptimizer(run.training.dense, model.dense_parameters().items())
    for parameter in model.dense_parameters().values():
        parameter.grad = torch.zeros_like(parameter)
    dense.step()
    held = sum(tensor.nbytes for name, tensor in dense.state().items() if not name.endswith("step"))
    assert plan(run, ONE_GPU).rank.dense_optimizer == held


def test_live_storage_is_counted_while_it_lives() -> None:
    x = torch.ones(1000)
    with _LiveStorage() as live:
        y = x + 1
        z = y * 2
        view = z.view(10, 100)
        del y
        w = view + 1
        x.add_(1)
    assert live.now == 8000  # z under its view, and w
    assert live.peak == 8000  # y and z; then y's place was free for w
    del z, view, w
    assert live.now == 0


def test_distinct_rows_by_hand() -> None:
    import numpy as np

    assert _distinct(4, 2, np.array([3.0, 1.0])) == pytest.approx((1 - (1 / 4) ** 2) + (1 - (3 / 4) ** 2))
    assert _distinct(1000, 100, None) == 100
    assert _distinct(20, 500, None) == 20


BIG = {"user": 400_000_000}


def test_what_does_not_fit_says_so_and_what_would_help() -> None:
    small = plan(config(), Machine(ranks=1, memory=8 * GIB), rows=BIG)
    assert not small.fits
    assert small.rank.tables + small.rank.table_optimizer == 400_000_000 * (8 * 4 + 4) + 400
    assert f"needs at least {small.rank.total / GIB:.2f} GiB on each" in small.verdict
    assert any(advice.startswith("2 GPUs: fits") for advice in small.advice)
    larger = plan(config(), Machine(ranks=4, memory=8 * GIB), rows=BIG)
    assert larger.fits
    assert larger.tables[0].sharding == "row_wise"
    assert larger.tables[0].ranks == (0, 1, 2, 3)
    assert sum(table.weight_bytes for table in larger.tables) == 400_000_000 * 32 + 320


def test_a_replicated_table_is_no_smaller_on_more_ranks() -> None:
    exact = config(training={"device": "cpu", "sparse": {"optimizer": "exact_adam"}})
    found = plan(exact, Machine(ranks=4, memory=8 * GIB), rows=BIG)
    assert not found.fits
    assert found.tables[0].sharding == "replicated"
    assert found.tables[0].weight_bytes == 400_000_000 * 6 * 4
    assert found.rank.table_optimizer > found.rank.tables * 2.9  # two moments and a dense gradient
    assert any("rowwise_adagrad): fits" in advice for advice in found.advice)


def test_a_size_that_nothing_says_is_asked_for() -> None:
    features = [{"name": "user", "kind": "id"}, {"name": "tags", "kind": "bag"}]
    with pytest.raises(UserError, match=r"--rows user=1000000"):
        of(ONE_GPU, features=features)
    with pytest.raises(UserError, match=r"--length tags=5"):
        plan(config(features=features), ONE_GPU, rows={"user": 10, "tags": 10})
    with pytest.raises(UserError, match="--rows item: there is no table of this name; there are user, tags"):
        plan(config(), ONE_GPU, rows={"item": 10})
    with pytest.raises(UserError, match="holds none prepared yet"):
        of(ONE_GPU, features="auto")


def test_prepared_data_say_rows_lengths_and_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rows = pl.DataFrame(
        {
            "user": [f"u{number % 7}" for number in range(200)],
            "tags": [["a", "b"] if number % 2 else ["a", "b", "c", "d"] for number in range(200)],
            "price": [1.0] * 200,
            "click": [number % 3 == 0 for number in range(200)],
        }
    )
    rows.write_parquet("rows.parquet")
    features = [{"name": "user", "kind": "id"}, {"name": "tags", "kind": "bag"}, {"name": "price", "kind": "number"}]
    data = {"source": {"kind": "table", "path": "rows.parquet"}, "prepared": "ready", "split": {"by": "random"}}
    run = config(features=features, data=data)
    stages.prepare(run)
    found = plan(run, ONE_GPU, batch_size=10)
    user, tags = found.tables
    assert (user.rows, user.rows_from) == (7 + 2, "prepared data")
    assert 2.5 < tags.values_per_row < 3.5
    assert user.distinct == pytest.approx(7 * (1 - (6 / 7) ** 10), rel=0.05)
    changed = config(features=[*features[:2], {"name": "price", "kind": "number", "transform": "log1p"}], data=data)
    with pytest.raises(UserError, match="--rows user"):
        plan(changed, ONE_GPU)


def test_the_verb_answers_in_tables_in_json_and_by_its_exit_code(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(config().resolved()))

    def ask(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as left:
            cli.main(["plan", str(path), *arguments])
        said = capsys.readouterr()
        return int(left.value.code or 0), said.out, said.err

    code, out, _ = ask("--gpus", "1", "--memory", "1", "--gflops", "1000")
    assert code == 0
    assert "fits: the fullest of 1 × 1 GiB" in out
    assert "samples a second, at most, by" in out
    code, out, _ = ask("--gpus", "1", "--memory", "8", "--rows", "user=4e8", "--json")
    assert code == 3
    assert json.loads(out)["fits"] is False
    code, _, error = ask("--gpus", "1", "--rows", "user")
    assert code == 2
    assert "--rows user: expected NAME=NUMBER" in error
    assert ask("--gpus", "1", "--device", "cpu")[0] == 2


def test_a_data_parallel_table_is_whole_on_every_rank_and_its_gradient_is_exchanged() -> None:
    spread = of(TWO_CPUS)
    found = of(TWO_CPUS, training={"device": "cpu", "sharding": {"tables": {"tags": "data_parallel"}}})
    tags = found.tables[1]
    assert (tags.sharding, tags.ranks) == ("data_parallel", (0, 1))
    assert (tags.weight_bytes, tags.optimizer_bytes) == (320, 80 + 320)  # its state, and a gradient of all of it
    assert found.rank.exchange == 4 * 145 + 320
    assert found.step.reduced == 4 * 145 + 320
    ids, embeddings = 50 * (8 * 1 + 4), 50 * 8 * 4
    assert found.step.sent == ids + embeddings  # of the users alone; the rank that holds them sends embeddings
    assert found.step.sent < spread.step.sent
