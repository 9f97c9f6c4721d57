"""The only wiring of the rooms: config in; prepare, train, evaluate, register, promote, predict out.

The command line, the Python API and the pipelines are thin callers of these functions. Each stage notes in the run's
folder that it is done, so that the same call after a kill goes on where the last one was.

Where torchrun has started several ranks, each makes the same call: they train together, and what one process can do
rank 0 does while the others wait. Rank 0 alone holds the run's folder, speaks to the user and to the tracker.
"""

from recmtl.scoring import Predictions
from recmtl.stages.evaluating import evaluate
from recmtl.stages.exporting import export
from recmtl.stages.fusing import fuse
from recmtl.stages.job import Place, RunResult
from recmtl.stages.predicting import predict
from recmtl.stages.preparing import missing_input, prepare
from recmtl.stages.promoting import history, promote, rollback
from recmtl.stages.registering import sync
from recmtl.stages.training import run, train

__all__ = [
    "Place",
    "Predictions",
    "RunResult",
    "evaluate",
    "export",
    "fuse",
    "history",
    "missing_input",
    "predict",
    "prepare",
    "promote",
    "rollback",
    "run",
    "sync",
    "train",
]
