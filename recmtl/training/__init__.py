"""Training: optimisers, schedules, checkpoints, and the loop. In: a model and batches. Out: a trained model."""

from recmtl.training.config import (
    CheckpointConfig,
    EarlyStoppingConfig,
    TrainingConfig,
    resolve_device,
    resolve_precision,
)
from recmtl.training.optimizers import DenseOptimizerConfig, SparseOptimizerConfig, make_tables
from recmtl.training.schedules import ScheduleConfig
from recmtl.training.trainer import Batches, TrackerLike, Trained, train

__all__ = [
    "Batches",
    "CheckpointConfig",
    "DenseOptimizerConfig",
    "EarlyStoppingConfig",
    "ScheduleConfig",
    "SparseOptimizerConfig",
    "TrackerLike",
    "Trained",
    "TrainingConfig",
    "make_tables",
    "resolve_device",
    "resolve_precision",
    "train",
]
