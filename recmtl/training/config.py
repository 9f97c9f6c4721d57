"""How a run trains: optimisers, epochs, device, early stopping, checkpoints. In: YAML. Out: a frozen config."""

from collections.abc import Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from typing import Literal

import torch
from pydantic import Field, field_validator, model_validator

from recmtl.distributed.plan import ShardingConfig, check_sharding
from recmtl.errors import UserError
from recmtl.expansion import ExpandedText
from recmtl.metrics import METRICS
from recmtl.settings import Settings
from recmtl.training.optimizers import (
    SPARSE_OPTIMIZERS,
    DenseOptimizerConfig,
    SparseOptimizerConfig,
    check_sparse_optimizer,
)
from recmtl.training.schedules import ScheduleConfig

__all__ = [
    "CheckpointConfig",
    "EarlyStoppingConfig",
    "TrainingConfig",
    "products_in",
    "resolve_device",
    "resolve_precision",
]


class EarlyStoppingConfig(Settings):
    """When to stop before the last epoch, and which epoch's weights to keep."""

    monitor: dict[str, float] = Field(min_length=1)
    """TASK.METRIC of the validation split to its importance, above 0. The monitored score is the weighted sum, in which
    a metric counts negatively by itself where lower is better."""
    patience: int = Field(default=2, ge=1)
    """Stop after this many epochs in a row without a better score."""
    min_delta: float = Field(default=0.0, ge=0)
    """How much higher a score must be to count as better."""

    @field_validator("monitor")
    @classmethod
    def _importances(cls, monitor: dict[str, float]) -> dict[str, float]:
        for key, weight in monitor.items():
            task, dot, metric = key.rpartition(".")
            if not (task and dot and metric):
                raise ValueError(f"early_stopping.monitor: {key!r} must be TASK.METRIC, such as click.auc")
            if metric not in METRICS:
                near = get_close_matches(metric, METRICS, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(METRICS)}"
                raise ValueError(f"early_stopping.monitor.{key}: there is no metric named {metric!r}; {hint}")
            if METRICS[metric].higher_is_better is None:
                raise ValueError(
                    f"early_stopping.monitor.{key}: {metric} is better neither higher nor lower, so it cannot be "
                    "monitored"
                )
            if not 0 < weight < float("inf"):
                raise ValueError(
                    f"early_stopping.monitor.{key}: {weight:g} is refused; weights are importances above 0, and "
                    f"whether {metric} should rise or fall comes from the metric itself"
                )
        return monitor


class CheckpointConfig(Settings):
    """When to save, besides at the end of every epoch, and how much to keep."""

    every_steps: int | None = Field(default=None, ge=1)
    """Save whenever this many steps are done; by default not by steps."""
    every_seconds: float | None = Field(default=60.0, gt=0)
    """Save when this much time has passed since the last one; null: not by time."""
    keep: int = Field(default=2, ge=1)
    """How many of the newest to keep; a damaged newest falls back to the one before."""


class TrainingConfig(Settings):
    """How the model is trained."""

    epochs: int = Field(default=5, ge=1)
    """Passes over the training split, at most."""
    batch_size: int = Field(default=4096, ge=1)
    """Rows per step, over all ranks; an epoch's last batch may be smaller."""
    sparse: SparseOptimizerConfig = SparseOptimizerConfig()
    """The embedding tables' optimiser."""
    dense: DenseOptimizerConfig = DenseOptimizerConfig()
    """Everything else's optimiser."""
    sharding: ShardingConfig = ShardingConfig()
    """How the embedding tables are cut over the ranks, where there are several."""
    schedule: ScheduleConfig = ScheduleConfig()
    """How both learning rates change; sparse.schedule and dense.schedule replace it."""
    clip_norm: float | None = Field(default=None, gt=0)
    """Scale the dense gradient down to this norm where it is larger; by default never. Tables are not clipped."""
    warm_start: ExpandedText | None = None
    """Begin at another model's values instead of initial ones: a package's or a run's folder, models:/NAME@ALIAS, or
    `champion`, the registered model's (recmtl.training.warm says what is carried). Optimisers begin anew. By default
    the model begins at initial values."""
    seed: int = Field(default=1, ge=0)
    """Of initial values, the order of rows, dropout and balancers that draw."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: a GPU where there is one."""
    precision: Literal["auto", "float32", "tf32", "bf16"] = "auto"
    """Of towers and heads while training; auto: bf16 autocast on a GPU that has it, else float32; tf32: float32 whose
    products a GPU's tensor cores round to 10 bits. Parameters, losses, evaluation and scoring are float32 always."""
    compile: bool = False
    """Towers and heads through torch.compile while training: half a minute at the start. On CPUs it was slower than
    recmtl's own products (benchmarks/NOTES.md)."""
    early_stopping: EarlyStoppingConfig | None = None
    """Without it all epochs are run and the last one's weights kept; with it the best one's."""
    checkpoint: CheckpointConfig = CheckpointConfig()
    """When to save."""
    log_every: int = Field(default=50, ge=1)
    """Steps between two points of the training curves."""
    log_conflicts_every: int = Field(default=250, ge=0)
    """Steps between two looks at how the tasks' gradients lie to each other, at the embeddings and what tasks share; 0:
    none. A look costs a backward through towers and heads for each task, about two steps for four tasks, and changes
    nothing that is trained."""
    window_rows: int = Field(default=1_000_000, ge=1)
    """Rows among which the loader shuffles: held in memory."""
    prefetch: int = Field(default=4, ge=0)
    """Batches that the loader prepares ahead, in the background; 0: none."""

    @model_validator(mode="after")
    def _the_device_can(self) -> "TrainingConfig":
        device = resolve_device(self.device, check=False).type
        check_sparse_optimizer(self.sparse, device)
        check_sharding(self.sharding, device)
        if self.sharding != ShardingConfig() and not SPARSE_OPTIMIZERS[self.sparse.optimizer].fused:
            raise ValueError(
                f"training.sharding: tables under {self.sparse.optimizer} are whole on every rank; remove sharding, or "
                "use an optimiser that steps inside backward, such as rowwise_adagrad"
            )
        plain = self.sparse.precision == "float32" and not self.sparse.is_cached and not self.sparse.weight_decay
        if self.sharding.replicates and not (plain and self.sparse.optimizer in ("rowwise_adagrad", "adagrad", "sgd")):
            raise ValueError(
                "training.sharding: data_parallel tables step by rowwise_adagrad, adagrad or sgd without weight_decay, "
                "in float32 and on the device; change training.sparse, or shard them another way"
            )
        return self


def resolve_device(device: str, *, check: bool = True) -> torch.device:
    """The device that a config's ``device`` means on this machine.

    Raises:
        UserError: ``cuda`` where torch sees no GPU (``check``).
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if check and device == "cuda" and not torch.cuda.is_available():
        raise UserError("training.device: cuda is asked for, but torch sees no GPU here; use auto or cpu")
    return torch.device(device)


def resolve_precision(precision: str, device: torch.device) -> torch.dtype:
    """float32 (``tf32`` too), or bfloat16 where towers and heads shall run under autocast.

    Raises:
        UserError: ``bf16`` on a GPU that has none; ``tf32`` without a GPU.
    """
    if precision == "tf32" and device.type != "cuda":
        raise UserError("training.precision: tf32 is a GPU's; use auto or float32 on a CPU")
    has_it = device.type == "cpu" or torch.cuda.is_bf16_supported(including_emulation=False)
    if precision == "bf16" and not has_it:
        raise UserError("training.precision: this GPU has no bf16; use auto or float32")
    if precision == "auto":
        return torch.bfloat16 if device.type == "cuda" and has_it else torch.float32
    return torch.bfloat16 if precision == "bf16" else torch.float32


@contextmanager
def products_in(precision: str) -> Iterator[None]:
    """Matrix products of float32 tensors on a GPU's tensor cores, rounded to TF32, where ``precision`` says so."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
