"""A job of two ranks in which the second goes wrong while the first waits for it; as a script, one of the ranks.

python failing.py HOW FOLDER (under torchrun's environment)
"""

import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

import torch
from ranks import BATCH, Part, small_run

from recmtl.cli import exit_code_of
from recmtl.distributed import joined
from recmtl.errors import UserError
from recmtl.tracking import NullTracker


def not_finite(folder, group):
    """The second rank's numbers are broken in one batch; both train."""
    small = small_run()
    config = small.config(batch_size=BATCH, sparse={"optimizer": "sgd"})
    if group.rank == 1:
        broken = small.rows.dense.clone()
        broken[2 * BATCH : 3 * BATCH] = torch.nan
        small.rows = replace(small.rows, dense=broken)
    loader = Part(small.rows, BATCH, group)
    small.train(folder, config, model=small.model(config, group), loader=loader, tracker=NullTracker(), group=group)


if __name__ == "__main__":
    how, folder = sys.argv[1], Path(sys.argv[2])
    torch.set_num_threads(1)
    with exit_code_of(), joined() as group:
        group.barrier()
        if how == "loss":
            not_finite(folder, group)
        if group.rank == 1:
            if how == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            raise UserError("this column is not there")
        group.sum(torch.ones(3))
