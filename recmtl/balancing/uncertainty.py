"""Homoscedastic uncertainty: the weights are learned with the model (Kendall, Gal and Cipolla, CVPR 2018)."""

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from recmtl.balancing.cut import Cut, weighted_backward
from recmtl.settings import Settings

__all__ = ["Uncertainty", "UncertaintyConfig"]


class UncertaintyConfig(Settings):
    """Weights from learned log variances."""

    kind: Literal["uncertainty"] = "uncertainty"
    lr: float | None = Field(default=None, gt=0)
    """Learning rate of the log variances; by default that of the dense parameters."""


class Uncertainty(nn.Module):
    """Minimises Σ exp(-s)·loss + s/2 over the model and the log variances s, one a task.

    This is equation 10 of the paper with s = log σ². Its equation 7, for squared errors, has half the weight: the same
    with s shifted by log 2, so one form serves every kind of task and only the start differs. s starts at 0 (weight 1)
    and settles where the weight is 1 / (2·loss). A task with no observed row in the batch leaves its s alone.

    Args:
        config: the learning rate.
        tasks: task names, in order.
        seed: unused; nothing here is random.
    """

    at_cut = False

    def __init__(self, config: UncertaintyConfig, *, tasks: Sequence[str], seed: int) -> None:
        super().__init__()
        self.lr = config.lr
        self._tasks = tuple(tasks)
        self.log_variances = nn.Parameter(torch.zeros(len(tasks)))

    def backward(self, losses: Mapping[str, Tensor], auxiliary: Mapping[str, Tensor], cut: Cut) -> dict[str, Tensor]:
        """Backward of Σ exp(-s)·loss + s/2 + auxiliary; the log variances get their gradient too."""
        log_variances = dict(zip(self._tasks, self.log_variances.unbind(), strict=True))
        weights = {task: torch.exp(-log_variances[task]) for task in losses}
        # A loss of exactly 0 is that of a task without an observed row; its s/2 alone would drive the weight up.
        present_T = cut.group.sum(torch.stack(list(losses.values()))) != 0
        shares = {task: present / (2 * cut.group.size) for task, present in zip(losses, present_T, strict=True)}
        halves = {f"s/{task}": log_variances[task] * share for task, share in shares.items()}
        weighted_backward(losses, weights, {**auxiliary, **halves}, cut)
        return {task: weight.detach() for task, weight in weights.items()}

    def end_epoch(self, mean_losses: Mapping[str, float]) -> None:
        """The variances learn by step, not by epoch."""
