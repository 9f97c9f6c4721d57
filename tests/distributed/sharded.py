"""Tables that step on batches which ranks share, and jobs of several ranks that train, save and resume them."""

import multiprocessing
import os
import signal
import socket
import sys
import warnings

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from recmtl import durable
from recmtl.batch import SparseBatch
from recmtl.distributed import joined
from recmtl.distributed.plan import ShardingConfig
from recmtl.errors import RunError
from recmtl.features import TableShape, initial_blocks
from recmtl.features.fused import sharded_tables
from recmtl.group import ONE
from recmtl.progress import Silent
from recmtl.training import storage
from recmtl.training.checkpoint import Checkpoints

with warnings.catch_warnings():  # FBGEMM's CPU build warns on import
    warnings.simplefilter("ignore")
    from torchrec.optim import RowWiseAdagrad

SHAPES = {
    "user": TableShape(11, 16, ("user",)),
    "items": TableShape(7, 8, ("item", "history")),
    "topics": TableShape(5, 6, ("topics",), weighted=True),  # stored 8 wide
    "type": TableShape(3, 4, ("type",)),
}
"""Rows that no number of ranks divides, two features on one table, a padded width, one too narrow to cut."""
FEATURES = ("history", "type", "user", "topics", "item")
OPTIMIZERS = {
    "sgd": (torch.optim.SGD, {"lr": 0.5}),
    "adagrad": (torch.optim.Adagrad, {"lr": 0.3, "eps": 1e-8}),
    "rowwise_adagrad": (RowWiseAdagrad, {"lr": 0.3, "eps": 1e-8}),
}
SHARDINGS = {
    "table_wise": ShardingConfig(default="table_wise"),
    "column_wise": ShardingConfig(default="column_wise"),
    "mixed": ShardingConfig(default="table_wise", tables={"items": "data_parallel", "topics": "data_parallel"}),
}
CASES = [(optimizer, sharding) for optimizer in OPTIMIZERS for sharding in SHARDINGS]
SIZES = (9, 6, 1, 7, 5)
"""Rows of each step's batch; of the third only the first rank has any."""


def tables(optimizer, sharding, group=ONE):
    kind, arguments = OPTIMIZERS[optimizer]
    made = sharded_tables(
        SHAPES,
        optimizer_type=kind,
        optimizer_kwargs=arguments,
        sharding=SHARDINGS[sharding],
        batch_size=8,
        group=group,
    )
    for name, shape in SHAPES.items():
        made.load_blocks(name, initial_blocks(shape, std=1.0, seed=1, name=name, block_rows=16))
    return made


def batch(step, rank=0, size=1):
    """A rank's part of a step's batch."""
    random = np.random.default_rng(step)
    rows = SIZES[step]
    mine = np.array_split(np.arange(rows), size)[rank]
    values, lengths, weights = [], [], []
    table_of = {feature: shape for shape in SHAPES.values() for feature in shape.features}
    for feature in FEATURES:
        counts = random.integers(0, 4, rows) if feature in ("history", "topics") else np.ones(rows, dtype=int)
        each = [random.integers(0, table_of[feature].rows, count) for count in counts]
        shares = [random.random(count) if feature == "topics" else np.ones(count) for count in counts]
        values += [value for row in mine for value in each[row]]
        weights += [share for row in mine for share in shares[row]]
        lengths += [counts[row] for row in mine]
    return SparseBatch(
        FEATURES,
        torch.tensor(values, dtype=torch.int32 if step % 2 else torch.int64),
        torch.tensor(lengths, dtype=torch.int32),
        torch.tensor(weights, dtype=torch.float32),
    )


def loss(pooled, rows):
    """This rank's part of a mean over all rows."""
    return sum((number + 1) * (pooled[name] - 0.1).square().sum() for number, name in enumerate(FEATURES)) / rows


def run(made, steps, group=ONE):
    for step in steps:
        with torch.no_grad():
            made(batch(step, group.rank, group.size))  # scoring in between counts as no step
        loss(made(batch(step, group.rank, group.size)), SIZES[step]).backward()


def predictions(made, group=ONE):
    """(rows, widths) of all ranks, in the batch's order."""
    with torch.no_grad():
        pooled = made(batch(0, group.rank, group.size))
    return torch.from_numpy(group.gather(torch.cat([pooled[feature] for feature in FEATURES], dim=1).numpy()))


def everything(made, group=ONE):
    """Weights, state and predictions, whole."""
    return {
        **{f"weight.{name}": weight.clone() for name, weight in made.weights().items()},
        **{f"state.{name}": tensor.clone() for name, tensor in made.optimizer_state().items()},
        "predictions": predictions(made, group),
    }


def checkpoints(folder, group=ONE):
    return Checkpoints(folder, keep=2, identity="a", progress=Silent(), group=group)


def save(made, folder, group=ONE):
    parts = {**{f"model/{name}": part for name, part in made.pieces().items()}}
    parts.update({f"sparse/{name}": part for name, part in made.optimizer_pieces().items()})
    checkpoints(folder, group).save(3, parts, {"step": 3})


def load(made, folder, group=ONE):
    saved = checkpoints(folder, group).newest().tensors
    saved.part("model").read(made.pieces())
    made.load_optimizer_pieces(saved.part("sparse"))


def train(optimizer, sharding, folder, group=ONE):
    """What there is after 3 steps, which are saved, and after 5."""
    made = tables(optimizer, sharding, group)
    run(made, range(3), group)
    save(made, folder, group)
    at_3 = everything(made, group)
    run(made, range(3, 5), group)
    return at_3, everything(made, group)


def resume(optimizer, sharding, folder, group=ONE):
    """The same from a checkpoint."""
    made = tables(optimizer, sharding, group)
    load(made, folder, group)
    at_3 = everything(made, group)
    run(made, range(3, 5), group)
    return at_3, everything(made, group)


def die_while_writing(path):
    path.write_bytes(path.read_bytes()[:100])
    os.kill(os.getpid(), signal.SIGKILL)


class Dying(durable.Files):
    """The process is killed when the first file that it has written is to be flushed."""

    def fsync(self, path):
        die_while_writing(path)


def one_rank(job, rank, size, port, folders):
    """What one process of a job does."""
    os.environ.update(
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        WORLD_SIZE=str(size),
        LOCAL_WORLD_SIZE=str(size),
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        GLOO_SOCKET_IFNAME="lo",
    )
    torch.set_num_threads(1)
    with joined() as group:
        job(group, *folders)


def train_all(group, folder):
    """Every case: 3 steps, a checkpoint, 2 more steps."""
    for case in CASES:
        write(group, folder, case, train(*case, folder / name_of(case), group))


def resume_all(group, before, folder):
    """Every case: that checkpoint, perhaps of another number of ranks, and 2 more steps."""
    for case in CASES:
        write(group, folder, case, resume(*case, before / name_of(case), group))


def save_and_die(group, folder):
    """A checkpoint; then rank 1 dies while it writes the next."""
    made = tables("adagrad", "column_wise", group)
    save(made, folder, group)
    if group.rank == 1:
        durable.files = Dying()
    save(made, folder, group)


def meet_a_full_disk(group, folder):
    """Rank 1's disk is full once; both ranks say so, and what was saved before is still the newest."""

    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    made = tables("adagrad", "column_wise", group)
    save(made, folder, group)
    real = storage.save_file
    if group.rank == 1:
        storage.save_file = full
    with pytest.raises(RunError, match=r"cannot save a checkpoint: .*No space left"):
        save(made, folder, group)
    storage.save_file = real
    assert checkpoints(folder, group).newest().state["step"] == 3
    save(made, folder, group)


def write(group, folder, case, results):
    if group.rank == 0:
        for step, result in zip((3, 5), results, strict=True):
            save_file(result, folder / f"{name_of(case)}-{step}.safetensors")


def name_of(case):
    return "-".join(case)


def start(job, size, *folders):
    """The processes of a job, forked from one that has imported everything."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [context.Process(target=one_rank, args=(job, rank, size, port, folders)) for rank in range(size)]
    before = os.environ.get("PYTHONPATH", "")
    os.environ["PYTHONPATH"] = os.pathsep.join(sys.path)  # all that the fork server has to find this file by
    try:
        for process in processes:
            process.start()
    finally:
        os.environ["PYTHONPATH"] = before
    return processes


def codes(processes):
    for process in processes:
        process.join(300)
    return [process.exitcode for process in processes]
