"""A small problem for the trainer's tests; as a script, a training run that is killed and started again.

python small_run.py FOLDER BALANCER SPARSE_OPTIMIZER KILLS SEED
"""

import json
import os
import random
import signal
import sys
import time
import traceback
from pathlib import Path

import torch
from safetensors.torch import save_file

from recmtl.balancing import BALANCERS, build_balancer
from recmtl.batch import Batch, SparseBatch
from recmtl.group import ONE
from recmtl.model import ModelConfig, build_model
from recmtl.progress import Silent
from recmtl.schema import Feature, Schema
from recmtl.statistics import LabelStatistics, Statistics, Vocabulary
from recmtl.tasks import Task, Tasks
from recmtl.training import TrainingConfig, make_tables, train


class InMemory:
    """A loader over tensors: the rows in an order that seed and epoch fix."""

    def __init__(self, rows: Batch, batch_size: int) -> None:
        self.whole = rows
        self.batch_size = batch_size
        self.rows = rows.size
        self.batches = -(-rows.size // batch_size)

    def epoch(self, number, start=0):
        order = torch.randperm(self.rows, generator=torch.Generator().manual_seed(number))
        for batch in range(start, self.batches):
            yield take(self.whole, order[batch * self.batch_size : (batch + 1) * self.batch_size])


def take(rows: Batch, index: torch.Tensor) -> Batch:
    keys = rows.sparse.keys
    values = rows.sparse.values.view(len(keys), -1)[:, index].reshape(-1)
    lengths = torch.ones(len(keys) * len(index), dtype=torch.int32)
    return Batch(
        size=len(index),
        sparse=SparseBatch(keys, values, lengths),
        dense=rows.dense[index],
        labels={name: column[index] for name, column in rows.labels.items()},
        observed={name: column[index] for name, column in rows.observed.items()},
        weights={},
        group=rows.group[index],
        row=rows.row[index],
    )


class Recorder:
    """A tracker that remembers what it was told."""

    def __init__(self) -> None:
        self.points: list[tuple[int, dict[str, float]]] = []
        self.flushed = 0

    def metrics(self, values, step):
        self.points.append((step, dict(values)))

    def flush(self):
        self.flushed = len(self.points)


class SmallRun:
    """Rows of two ids and a number: click depends on both ids, buy comes after it, rating is seen where click is 1."""

    def __init__(self, rows: int = 1000, seed: int = 5) -> None:
        draw = torch.Generator().manual_seed(seed)
        self.schema = Schema(
            [
                Feature(name="user", kind="id", embedding_dim=8),
                Feature(name="item", kind="id", embedding_dim=4),
                Feature(name="age", kind="number"),
            ]
        )
        self.tasks = Tasks(
            [
                Task(name="click", kind="binary", label="click"),
                Task(name="buy", kind="binary", label="buy", parent="click"),
                Task(name="rating", kind="regression", label="rating"),
            ]
        )
        users, items = torch.randint(2, 52, (rows,), generator=draw), torch.randint(2, 22, (rows,), generator=draw)
        age = torch.randn(rows, generator=draw)
        taste, charm = torch.randn(52, generator=draw), torch.randn(22, generator=draw)
        click = (taste[users] + charm[items] + torch.randn(rows, generator=draw) > 0).float()
        buy = click * (charm[items] + age + torch.randn(rows, generator=draw) > 0).float()
        rating = 3 + charm[items] + 0.3 * torch.randn(rows, generator=draw)
        self.rows = Batch(
            size=rows,
            sparse=SparseBatch(("user", "item"), torch.cat([users, items]), torch.ones(2 * rows, dtype=torch.int32)),
            dense=torch.stack([age, torch.zeros(rows)], 1),
            labels={"click": click, "buy": buy, "rating": torch.where(click > 0, rating, 0.0)},
            observed={
                "click": torch.ones(rows, dtype=torch.bool),
                "buy": torch.ones(rows, dtype=torch.bool),
                "rating": click > 0,
            },
            weights={},
            group=users,
            row=torch.arange(rows),
        )
        self.statistics = Statistics(
            tables={
                "user": Vocabulary(tuple(map(str, range(50))), (1,) * 50),
                "item": Vocabulary(tuple(map(str, range(20))), (1,) * 20),
            },
            numbers={},
            labels={
                "click": LabelStatistics(rows, float(click.mean()), 0.5),
                "buy": LabelStatistics(rows, float(buy.mean()), 0.4),
                "rating": LabelStatistics(int(click.sum()), 3.0, 1.0),
            },
            conditional_labels={"buy": LabelStatistics(int(click.sum()), 0.5, 0.5)},
            train_rows=rows,
        )
        self.tower = {"kind": "mmoe", "num_experts": 2, "expert_widths": [8], "head_widths": [4], "dropout": 0.2}
        self.tracker = Recorder()
        self.progress = Silent()

    def config(self, **settings) -> TrainingConfig:
        return TrainingConfig(**{"epochs": 2, "batch_size": 64, "device": "cpu", "log_every": 5, **settings})

    def model(self, config: TrainingConfig, group=ONE, **tower):
        return build_model(
            ModelConfig(tower={**self.tower, **tower}),
            self.schema,
            self.tasks,
            self.statistics,
            seed=config.seed,
            tables=make_tables(config.sparse, config.device, batch_size=config.batch_size, group=group),
        )

    def balancer(self, kind: str = "fixed", **settings):
        return build_balancer(BALANCERS[kind].config(**settings), tasks=tuple(self.tasks), seed=1)

    def validate(self, model):
        """RMSE of the rating and a click 'auc' that rises with the likelihood."""
        with torch.no_grad():
            assert not model.training
            rows = self.rows.to(next(model.parameters()).device)
            losses = model.losses(model(rows), rows)
        return {"click": {"auc": 1 - float(losses["click"])}, "rating": {"rmse": float(losses["rating"]) ** 0.5}}

    def train(self, folder: Path, config: TrainingConfig | None = None, **given):
        config = config or self.config()
        given = {
            "balancer": self.balancer(),
            "loader": InMemory(self.rows, config.batch_size),
            "tracker": self.tracker,
            "validate": self.validate,
            "progress": self.progress,
            "identity": "a",
            **given,
        }
        model = given.pop("model", None) or self.model(config)
        return train(model, given.pop("balancer"), given.pop("loader"), config, folder=folder, **given)


def finish(folder: Path, out: Path, balancer: str, optimizer: str) -> None:
    """Train in a folder to the end, resuming what lies there; the final weights and history go to ``out``."""
    torch.set_num_threads(1)  # forked: OpenMP's threads do not survive that
    small = SmallRun(rows=500)
    config = small.config(
        epochs=4,
        sparse={"optimizer": optimizer},
        dense={"optimizer": "adagrad" if optimizer == "adagrad" else "adamw"},
        schedule={"kind": "cosine", "warmup_steps": 4},
        early_stopping={"monitor": {"click.auc": 1.0, "rating.rmse": 0.1}, "patience": 4},
        checkpoint={"every_steps": 3, "every_seconds": 0.05},
        clip_norm=1.0,
    )
    trained = small.train(folder, config, balancer=small.balancer(balancer))
    tensors = {name: tensor.contiguous() for name, tensor in trained.model.tensors().items()}
    made = out.with_name(f"{out.name}.making")  # renamed whole: a kill may come while it is written
    made.mkdir(exist_ok=True)
    save_file(tensors, made / "weights")
    (made / "history.json").write_text(json.dumps([trained.history, trained.best_epoch, trained.steps]))
    made.rename(out)


def fork(folder: Path, out: Path, balancer: str, optimizer: str) -> int:
    child = os.fork()
    if child == 0:
        try:
            finish(folder, out, balancer, optimizer)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return child


def _stopped_while_saving(child: int, folder: Path) -> bool:
    """Stop the process at a moment at which a checkpoint is half written; True when it ended before."""
    while True:
        if not any(folder.glob(".unfinished*")):
            if os.waitpid(child, os.WNOHANG)[0]:
                return True
            time.sleep(0.0005)
            continue
        os.kill(child, signal.SIGSTOP)
        _, status = os.waitpid(child, os.WUNTRACED)
        if not os.WIFSTOPPED(status):
            return True
        if any(folder.glob(".unfinished*")):
            return False
        os.kill(child, signal.SIGCONT)


def main(work: Path, balancer: str, optimizer: str, kills: int, seed: int) -> None:
    """One run left alone, one killed again and again: ``alone/``, ``killed/``; prints where the kills found it."""
    started = time.monotonic()
    _, status = os.waitpid(fork(work / "checkpoints-alone", work / "alone", balancer, optimizer), 0)
    assert status == 0
    whole = time.monotonic() - started
    moments = random.Random(seed)
    caught = []
    folder = work / "checkpoints-killed"
    while len(caught) < kills:
        child = fork(folder, work / "killed", balancer, optimizer)
        time.sleep(moments.uniform(0.05, 0.6) * whole)
        while_saving = len(caught) % 2 == 1
        if _stopped_while_saving(child, folder) if while_saving else os.waitpid(child, os.WNOHANG)[0]:
            break  # it was faster
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        caught.append([path.name for path in folder.glob("*")] if folder.exists() else [])
    if not (work / "killed").exists():
        _, status = os.waitpid(fork(folder, work / "killed", balancer, optimizer), 0)
        assert status == 0
    print(json.dumps(caught))


if __name__ == "__main__":
    from recmtl.features import fused  # noqa: F401 - once, before the forks
    from recmtl.training import storage  # noqa: F401 - the same

    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4]), int(sys.argv[5]))
