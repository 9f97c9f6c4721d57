"""A training with managed tables, whose result must not depend on the number of ranks; as a script, one rank of it.

python managed_ranks.py FOLDER STEPS (under torchrun's environment): trains in FOLDER/checkpoints, to the end or until
STEPS batches are done (0: to the end); rank 0 writes what came out to FOLDER/ended.
"""

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "training"))
from ranks import BATCH, MMOE, ROWS, Part
from small_run import Recorder
from test_managed_training import ManagedRun, everything

from recmtl.distributed import joined
from recmtl.group import ONE


class Stops(Part):
    """A rank's part of every batch, up to a number of batches."""

    def __init__(self, rows, batch_size, group, after):
        super().__init__(rows, batch_size, group)
        self.after = after

    def epoch(self, number, start=0):
        for batch in super().epoch(number, start):
            if self.after == 0:
                raise KeyboardInterrupt
            self.after -= 1
            yield batch


def run(folder, group=ONE, steps=-1):
    """The final weights, maps and candidates; None if it stopped after so many steps."""
    managed = ManagedRun(rows=ROWS)
    managed.tower = MMOE
    config = managed.config(
        batch_size=BATCH,
        sparse={"optimizer": "sgd", "lr": 1.0},  # which shows a wrong scale of gradients
        dense={"optimizer": "sgd", "lr": 0.2},
        checkpoint={"every_steps": 1, "every_seconds": None},
    )
    try:
        made = managed.train(
            folder / "checkpoints",
            config,
            model=managed.model(config, group=group),
            loader=Stops(managed.rows, BATCH, group, steps),
            tracker=Recorder(),
            group=group,
        )
    except KeyboardInterrupt:
        return None
    return {name: tensor.clone().contiguous() for name, tensor in everything(made.model).items()}


if __name__ == "__main__":
    torch.set_num_threads(1)
    out = Path(sys.argv[1])
    with joined() as ranks:
        ended = run(out, ranks, int(sys.argv[2]) or -1)
        if ranks.rank == 0 and ended is not None:
            save_file(ended, out / "ended")
