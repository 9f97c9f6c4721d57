"""Tables cut up over ranks step as whole ones do, and what some ranks saved any number of them goes on from."""

import json
import signal
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).parent))
import sharded
from sharded import CASES, OPTIMIZERS, SHAPES, SIZES, codes, resume_all, save_and_die, start, train_all

from recmtl.distributed.plan import Plan, ShardingConfig, TableSize, make_plan
from recmtl.features import PlainTables, initial_table


@pytest.fixture(scope="module")
def jobs(tmp_path_factory):
    """Folders of results and checkpoints: of one rank, of two, of two from one's checkpoints, of four from two's."""
    folders = {name: tmp_path_factory.mktemp(name) for name in ("one", "two", "one-to-two", "two-to-four")}
    for optimizer, sharding in CASES:
        case = f"{optimizer}-{sharding}"
        for step, result in zip((3, 5), sharded.train(optimizer, sharding, folders["one"] / case), strict=True):
            torch.save(result, folders["one"] / f"{case}-{step}.pt")
    assert codes(start(train_all, 2, folders["two"])) == [0] * 2
    assert codes(start(resume_all, 2, folders["one"], folders["one-to-two"])) == [0] * 2
    assert codes(start(resume_all, 4, folders["two"], folders["two-to-four"])) == [0] * 4
    return folders


def results(folder, case, step):
    return load_file(folder / f"{case}-{step}.safetensors")


def of_tables(result):
    return {name: tensor for name, tensor in result.items() if not name.startswith("state.")}


def by_hand(optimizer, cuts, steps):
    """Plain tables, whole batches, and the optimiser written out; a row-wise state for every cut of columns."""
    made = PlainTables(SHAPES)
    made.load_weights({name: initial_table(shape, std=1.0, seed=1, name=name) for name, shape in SHAPES.items()})
    lr, eps = OPTIMIZERS[optimizer][1]["lr"], 1e-8
    state = {}
    for step in range(steps):
        made.zero_grad()
        sharded.loss(made(sharded.batch(step)), SIZES[step]).backward()
        for name, table in made.named_parameters():
            gradient = table.grad
            if optimizer == "sgd":
                table.data -= lr * gradient
                continue
            for low, high in cuts[name] if optimizer == "rowwise_adagrad" else [(0, table.shape[1])]:
                part = gradient[:, low:high]
                square = part.square()
                if optimizer == "rowwise_adagrad":
                    square = square.sum(dim=1, keepdim=True) / (high - low)  # the padding counts as zeros
                total = state[name, low] = state.get((name, low), 0.0) + square
                table.data[:, low:high] -= lr * part / (total.sqrt() + eps)
    weights = {f"weight.{name}": weight for name, weight in made.weights().items()}
    with torch.no_grad():
        pooled = made(sharded.batch(0))
    return {**weights, "predictions": torch.cat([pooled[feature] for feature in sharded.FEATURES], dim=1)}


def cuts_of(optimizer, sharding, ranks):
    sizes = {
        name: TableSize(shape.rows, -(-shape.dim // 4) * 4, shape.features, shape.weighted)
        for name, shape in SHAPES.items()
    }
    kind = OPTIMIZERS[optimizer][0]
    plan = make_plan(sizes, sharded.SHARDINGS[sharding], optimizer_type=kind, ranks=ranks, device="cpu", batch_size=8)
    return {
        table.table: sorted({(shard.column, shard.column + shard.columns) for shard in table.shards})
        for table in plan.tables
    }


@pytest.mark.parametrize(("optimizer", "sharding"), CASES)
def test_two_ranks_step_as_whole_tables_on_whole_batches(jobs, optimizer, sharding):
    cuts = cuts_of(optimizer, sharding, 2)
    assert cuts["user"] == ([(0, 8), (8, 16)] if sharding == "column_wise" else [(0, 16)])
    for step in (3, 5):
        together = results(jobs["two"], f"{optimizer}-{sharding}", step)
        torch.testing.assert_close(of_tables(together), by_hand(optimizer, cuts, step))
        assert together["state.iter"].item() == step


@pytest.mark.parametrize(("optimizer", "sharding"), CASES)
def test_what_one_rank_saved_two_go_on_from(jobs, optimizer, sharding):
    case = f"{optimizer}-{sharding}"
    at_3, at_5 = (torch.load(jobs["one"] / f"{case}-{step}.pt") for step in (3, 5))
    resumed = results(jobs["one-to-two"], case, 3)
    torch.testing.assert_close(of_tables(resumed), of_tables(at_3), rtol=0, atol=0)
    if case != "rowwise_adagrad-column_wise":  # which divides the one state of a row: another optimiser from here on
        torch.testing.assert_close(resumed, at_3, rtol=0, atol=0)
        torch.testing.assert_close(results(jobs["one-to-two"], case, 5), at_5)
    else:
        for cut in ("[0:8]", "[8:16]"):
            torch.testing.assert_close(resumed[f"state.user.momentum_1{cut}"], at_3["state.user.momentum_1"])


@pytest.mark.parametrize(("optimizer", "sharding"), CASES)
def test_what_two_ranks_saved_one_goes_on_from(jobs, optimizer, sharding):
    case = f"{optimizer}-{sharding}"
    at_3, at_5 = sharded.resume(optimizer, sharding, jobs["two"] / case)
    saved = results(jobs["two"], case, 3)
    torch.testing.assert_close(of_tables(at_3), of_tables(saved))
    if case != "rowwise_adagrad-column_wise":
        torch.testing.assert_close(at_3, saved)
        torch.testing.assert_close(at_5, results(jobs["two"], case, 5))
    else:  # the mean square over a row is the mean of those over its halves
        halves = [saved[f"state.user.momentum_1{cut}"] for cut in ("[0:8]", "[8:16]")]
        torch.testing.assert_close(at_3["state.user.momentum_1"], (halves[0] + halves[1]) / 2)


@pytest.mark.parametrize(("optimizer", "sharding"), CASES)
def test_what_two_ranks_saved_four_go_on_from(jobs, optimizer, sharding):
    case = f"{optimizer}-{sharding}"
    resumed, saved = results(jobs["two-to-four"], case, 3), results(jobs["two"], case, 3)
    torch.testing.assert_close(of_tables(resumed), of_tables(saved))
    if case != "rowwise_adagrad-column_wise":
        torch.testing.assert_close(resumed, saved)
        torch.testing.assert_close(results(jobs["two-to-four"], case, 5), results(jobs["two"], case, 5))
    else:
        for old, new in (("[0:8]", "[0:4]"), ("[0:8]", "[4:8]"), ("[8:16]", "[8:12]"), ("[8:16]", "[12:16]")):
            torch.testing.assert_close(
                resumed[f"state.user.momentum_1{new}"], saved[f"state.user.momentum_1{old}"], rtol=0, atol=0
            )


def test_every_rank_writes_its_part_and_none_of_it_is_a_pickle(jobs):
    (folder,) = (jobs["two"] / "adagrad-column_wise").glob("step-*")
    files = sorted(path.name for path in folder.iterdir())
    hashes = json.loads((folder / "hashes.json").read_text())
    assert {"tensors-00000.safetensors", "tensors-00001.safetensors"} < set(files)
    assert sorted([*hashes, "hashes.json"]) == files
    for path in folder.glob("*.safetensors"):
        load_file(path)
    sizes = [path.stat().st_size for path in folder.glob("tensors-0000[01].safetensors")]
    assert max(sizes) < 2 * min(sizes)


def test_a_rank_killed_while_it_writes_leaves_the_checkpoint_before(tmp_path):
    survivor, killed = codes(start(save_and_die, 2, tmp_path))
    assert killed == -signal.SIGKILL
    assert survivor != 0
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"newest", "step-000000003-00", ".unfinished-step-000000003-01"}
    assert sharded.checkpoints(tmp_path).newest().state["step"] == 3
    assert {path.name for path in tmp_path.iterdir()} == {"newest", "step-000000003-00"}


def test_a_disk_that_is_full_for_one_rank_is_so_for_all(tmp_path):
    assert codes(start(sharded.meet_a_full_disk, 2, tmp_path)) == [0, 0]
    assert {path.name for path in tmp_path.iterdir()} == {"newest", "step-000000003-00", "step-000000003-01"}


def test_a_plan_survives_its_json():
    sizes = {"user": TableSize(1000, 16, ("user",)), "items": TableSize(70, 8, ("item", "last"), weighted=True)}
    config = ShardingConfig(default="column_wise", tables={"items": "table_wise"})
    plan = make_plan(sizes, config, optimizer_type=torch.optim.Adagrad, ranks=2, device="cpu")
    assert Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan
    assert sum(plan.bytes_of(rank) for rank in range(2)) == 2 * 4 * (1000 * 16 + 70 * 8)  # weights and their state
