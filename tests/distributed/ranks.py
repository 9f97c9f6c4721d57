"""Small trainings whose result must not depend on the number of ranks; as a script, one rank of such a job.

python ranks.py FOLDER DEVICE (under torchrun's environment): every case, rank 0's results go to FOLDER.
"""

import json
import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).parents[1] / "training"))
from small_run import InMemory, Recorder, SmallRun, take

from recmtl.distributed import joined
from recmtl.group import ONE

ROWS, BATCH = 201, 50
"""The last batch has one row: of two ranks the second has none."""

MMOE = {"kind": "mmoe", "num_experts": 2, "expert_widths": [8], "head_widths": [4]}
CASES = {
    **{
        f"{balancer}-sgd": {"balancer": balancer, "sparse": {"optimizer": "sgd", "lr": 1.0}}
        for balancer in ("fixed", "uncertainty", "dwa", "gradnorm", "pcgrad", "upgrad")
    },
    "fixed-rowwise_adagrad": {"balancer": "fixed", "sparse": {"optimizer": "rowwise_adagrad", "lr": 0.1}},
    "upgrad-rowwise_adagrad": {"balancer": "upgrad", "sparse": {"optimizer": "rowwise_adagrad", "lr": 0.1}},
    "fixed-exact_adam": {"balancer": "fixed", "sparse": {"optimizer": "exact_adam", "lr": 0.01}},
    "batch-norm": {"balancer": "pcgrad", "tower": {**MMOE, "norm": "batch"}, "sparse": {"optimizer": "sgd", "lr": 1.0}},
    "adversarial": {
        "balancer": "uncertainty",
        "tower": {
            "kind": "adversarial",
            "num_shared_experts": 2,
            "expert_widths": [8],
            "head_widths": [4],
            "adversarial_weight": 0.5,
            "orthogonality_weight": 0.5,
        },
        "sparse": {"optimizer": "sgd", "lr": 1.0},
    },
    "looked-at": {"balancer": "fixed", "sparse": {"optimizer": "rowwise_adagrad", "lr": 0.1}, "log_conflicts_every": 1},
    "clipped": {"balancer": "dwa", "sparse": {"optimizer": "sgd", "lr": 1.0}, "clip_norm": 0.05},
}


class Part(InMemory):
    """A rank's part of every batch, in a fixed order."""

    def __init__(self, rows, batch_size, group=ONE):
        super().__init__(rows, batch_size)
        self.group = group

    def epoch(self, number, start=0):
        for batch in range(start, self.batches):
            index = np.arange(batch * self.batch_size, min((batch + 1) * self.batch_size, self.rows))
            yield take(self.whole, torch.from_numpy(np.array_split(index, self.group.size)[self.group.rank]))


def small_run() -> SmallRun:
    """A rating is observed in the first half of every batch alone: by the first rank of two."""
    small = SmallRun(rows=ROWS)
    first_half = torch.arange(ROWS) % BATCH < BATCH // 2
    observed = {**small.rows.observed, "rating": small.rows.observed["rating"] & first_half}
    weights = {"click": 0.5 + torch.arange(ROWS) % 3}
    small.rows = replace(small.rows, observed=observed, weights=weights)
    return small


def train_case(name, folder, group=ONE, **settings):
    """The case's curves, history and final weights."""
    case = CASES[name]
    small = small_run()
    config = small.config(
        batch_size=BATCH,
        log_every=1,
        sparse=case["sparse"],
        dense={"optimizer": "sgd", "lr": 0.2},
        clip_norm=case.get("clip_norm"),
        log_conflicts_every=case.get("log_conflicts_every", 0),
        **settings,
    )
    small.tower = case.get("tower", MMOE)
    made = small.train(
        folder / name,
        config,
        model=small.model(config, group=group),
        balancer=small.balancer(case["balancer"]),
        loader=Part(small.rows, BATCH, group),
        tracker=small.tracker if group.rank == 0 else Recorder(),
        group=group,
    )
    curves = [{**values, "step": step} for step, values in small.tracker.points]
    for point in curves:
        point.pop("train/rows_per_second", None)
    tensors = {key: tensor.cpu().clone().contiguous() for key, tensor in made.model.tensors().items()}
    return {"curves": curves, "history": made.history}, tensors


def start(script, size, arguments, **environment):
    """The processes of a job, as torchrun would start them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    job = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(size),
        "LOCAL_WORLD_SIZE": str(size),
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo",
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    return [
        subprocess.Popen(
            [sys.executable, "-W", "error::UserWarning", str(script), *map(str, arguments)],
            env={**os.environ, **job, "RANK": str(rank), "LOCAL_RANK": str(rank), **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(size)
    ]


def finish(processes, timeout=300):
    """What each said, once all ended well."""
    said = [process.communicate(timeout=timeout) for process in processes]
    assert all(process.returncode == 0 for process in processes), "\n".join(error[-3000:] for _, error in said)
    return said


if __name__ == "__main__":
    out, device = Path(sys.argv[1]), sys.argv[2]
    torch.set_num_threads(1)
    with joined() as group:
        for name in CASES:
            told, tensors = train_case(name, out / "checkpoints", group, device=device)
            if group.rank == 0:
                (out / f"{name}.json").write_text(json.dumps(told))
                save_file(tensors, out / f"{name}.safetensors")
