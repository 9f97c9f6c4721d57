"""Tables in float16, and in host memory behind a cache: what FBGEMM's kernels do where, and what is kept of it."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from recmtl.batch import SparseBatch
from recmtl.capacity import GIB, Machine, plan
from recmtl.config import parse_config
from recmtl.errors import UserError
from recmtl.features import PlainTables, TableShape
from recmtl.features.fused import FusedTables
from recmtl.model import ModelConfig, build_model
from recmtl.training.optimizers import SparseOptimizerConfig, check_sparse_optimizer, fused_optimizer

sys.path.insert(0, str(Path(__file__).parents[1] / "training"))  # small_run.py is also run as a script
from small_run import InMemory, SmallRun

ROWS, WIDTH = 1000, 16
ADAGRAD, _ = fused_optimizer(SparseOptimizerConfig())
"""Row-wise."""
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device: FBGEMM has these kernels there")


def table(device: str = "cpu", optimizer: Any = torch.optim.SGD, **given: Any) -> FusedTables:
    shapes = {"items": TableShape(ROWS, WIDTH, ("item",))}
    return FusedTables(shapes, optimizer_type=optimizer, optimizer_kwargs={"lr": 1e-4}, device=device, **given)


def every_row(device: str = "cpu") -> SparseBatch:
    rows = torch.arange(ROWS)
    return SparseBatch(("item",), rows.to(device), torch.ones(ROWS, dtype=torch.int32, device=device))


def ten_small_steps(tables: FusedTables, device: str) -> torch.Tensor:
    """From weights of 1, ten steps of 1e-4: a fifth of the distance to the next float16."""
    tables.load_weights({"items": torch.ones(ROWS, WIDTH)})
    for _ in range(10):
        tables(every_row(device))["item"].sum().backward()
    return tables.weights()["items"].float()


def test_a_cpus_kernels_lose_small_steps_though_asked_to_round_stochastically() -> None:
    """The reason why the config refuses float16 on a CPU; were this to fail, it need not."""
    assert (ten_small_steps(table(precision="float16"), "cpu") == 1).all()
    assert (ten_small_steps(table(), "cpu") - (1 - 1e-3)).abs().max() < 1e-6


@pytest.mark.gpu
@needs_gpu
def test_a_gpus_kernels_keep_them_in_the_mean() -> None:
    weights = ten_small_steps(table("cuda", precision="float16"), "cuda")
    assert weights.unique().numel() > 1
    assert abs(float(weights.mean()) - (1 - 1e-3)) < 5e-5  # five standard deviations of a mean over 16,000


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"precision": "float16"}, "training.sparse.precision: float16 needs a GPU"),
        ({"placement": "managed_caching"}, "training.sparse.placement: managed_caching keeps tables in host memory"),
        ({"placement": {"item": "managed_caching"}}, "use device"),
    ],
)
def test_a_cpu_has_neither(given: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_sparse_optimizer(SparseOptimizerConfig(**given), "cpu")
    check_sparse_optimizer(SparseOptimizerConfig(**given), "cuda")


@pytest.mark.parametrize("given", [{"precision": "float16"}, {"placement": {"item": "managed_caching"}}])
def test_plain_tables_have_neither(given: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="exact_adam has plain float32 tables on the device"):
        SparseOptimizerConfig(optimizer="exact_adam", **given)


def test_a_placement_of_a_table_that_is_not_there_is_refused() -> None:
    config = SparseOptimizerConfig(placement={"items": "managed_caching"})
    with pytest.raises(
        UserError, match=r"training.sparse.placement.items: there is no table of this name; there are i"
    ):
        config.cached(["item", "user"])
    assert SparseOptimizerConfig(placement={"user": "managed_caching", "item": "device"}).cached(["item", "user"]) == (
        "user",
    )


def test_float16_tables_give_float32_embeddings_of_their_rounded_weights() -> None:
    quick = table(optimizer=ADAGRAD, precision="float16")
    weight = torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(1))
    quick.load_weights({"items": weight})
    assert quick.weights()["items"].dtype == torch.float16
    assert torch.equal(quick.weights()["items"], weight.half())
    out = quick(every_row())["item"]
    assert out.dtype == torch.float32
    assert torch.equal(out, weight.half().float())
    assert quick.optimizer_state()["items.momentum_1"].dtype == torch.float32
    pieces = quick.pieces()["items"]
    assert pieces.dtype == torch.float16
    plain = PlainTables({"items": TableShape(ROWS, WIDTH, ("item",))})
    plain.load_weights(quick.weights())  # as a package does
    assert torch.equal(plain(every_row())["item"], out)


def test_checkpoints_keep_float16_as_it_is(tmp_path: Path) -> None:
    run = SmallRun(rows=300)
    config = run.config(checkpoint={"every_steps": 1, "every_seconds": None})

    def model() -> Any:
        def half(shapes: Any) -> FusedTables:
            return FusedTables(shapes, optimizer_type=ADAGRAD, optimizer_kwargs={"lr": 0.1}, precision="float16")

        tower = ModelConfig(tower=run.tower)
        return build_model(tower, run.schema, run.tasks, run.statistics, seed=1, tables=half)

    class Stops(InMemory):
        def epoch(self, number: int, start: int = 0) -> Any:
            yield from (batch for batch, _ in zip(super().epoch(number, start), range(3), strict=False))
            raise KeyboardInterrupt

    alone = run.train(tmp_path / "alone", config, model=model()).model.tensors()
    with pytest.raises(KeyboardInterrupt):
        run.train(tmp_path / "stopped", config, model=model(), loader=Stops(run.rows, config.batch_size))
    resumed = run.train(tmp_path / "stopped", config, model=model()).model.tensors()
    assert alone["tables.user"].dtype == torch.float16
    for name, tensor in alone.items():
        assert torch.equal(resumed[name], tensor), name


def test_plan_halves_the_weights_and_moves_cached_tables_to_the_host() -> None:
    def of(**sparse: Any) -> Any:
        config = parse_config(
            {
                "name": "small",
                "data": {"source": {"kind": "table", "path": "rows.parquet"}, "prepared": "nowhere"},
                "features": [{"name": "user", "kind": "id", "embedding_dim": 8, "hash_buckets": 9_999_998}],
                "tasks": [{"name": "click", "kind": "binary", "label": "click"}],
                "training": {"device": "cuda", "sparse": sparse},
            }
        )
        return plan(config, Machine(ranks=1, memory=GIB, host_memory=2 * GIB))

    rows = 10_000_000
    whole, half = of(), of(precision="float16")
    assert (whole.rank.tables, whole.rank.table_optimizer) == (rows * 8 * 4, rows * 4)
    assert (half.rank.tables, half.rank.table_optimizer) == (rows * 8 * 2, rows * 4)
    assert half.step.read == whole.step.read / 2
    cached = of(placement={"user": "managed_caching"}, cache_load_factor=0.1)
    assert cached.fits
    assert cached.tables[0].placement == "managed_caching"
    assert cached.rank.host_tables == rows * (8 * 4 + 4)
    assert cached.rank.tables == int(0.1 * rows * (8 * 4 + 16)) + 4 * rows
    assert cached.rank.table_optimizer == 0


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_a_table_behind_a_cache_steps_as_one_on_the_device(precision: Any) -> None:
    kind = ADAGRAD
    # small: no managed memory beyond what any card has free
    cached = table("cuda", kind, precision=precision, cached=["items"], cache_load_factor=0.2)
    here = table("cuda", kind, precision=precision)
    start = torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(1))
    draws = torch.Generator().manual_seed(2)
    for tables in (cached, here):
        tables.load_weights({"items": start})
        tables.set_learning_rate(0.1)
    for _ in range(30):  # of 1000 rows 200 have room in the cache
        rows = torch.randint(0, ROWS, (300,), generator=draws).cuda()
        batch = SparseBatch(("item",), rows, torch.ones(300, dtype=torch.int32, device="cuda"))
        for tables in (cached, here):
            tables(batch)["item"].square().sum().backward()
    close = {"rtol": 1e-5, "atol": 1e-6} if precision == "float32" else {"rtol": 0.02, "atol": 0.02}
    torch.testing.assert_close(cached.weights()["items"].float().cpu(), here.weights()["items"].float().cpu(), **close)
    cached.reset_rows("items", torch.tensor([3, 999]))
    cached.load_weights({"items": (fresh := torch.full((ROWS, WIDTH), 0.5))})
    with torch.no_grad():
        assert torch.equal(cached(every_row("cuda"))["item"].cpu(), fresh)  # not what was in the cache
    cached.reset_rows("items", torch.tensor([3, 999]))
    with torch.no_grad():
        rows = cached(every_row("cuda"))["item"].cpu()
    assert not rows[[3, 999]].any()
    assert (rows[[0, 4, 998]] == 0.5).all()
