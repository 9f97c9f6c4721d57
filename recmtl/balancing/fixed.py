"""Fixed weights: Σ weight·loss, the baseline that every other balancer is measured against."""

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from recmtl.balancing.base import complete_weights
from recmtl.balancing.cut import Cut, weighted_backward
from recmtl.settings import Settings

__all__ = ["Fixed", "FixedConfig"]


class FixedConfig(Settings):
    """Fixed weights."""

    kind: Literal["fixed"] = "fixed"
    weights: dict[str, float] = {}
    """Task to the weight of its loss, 0 or more; a task that is not named has 1."""


class Fixed(nn.Module):
    """Weighs the losses by constants.

    Args:
        config: the weights.
        tasks: task names, in order.
        seed: unused; nothing here is random.

    Raises:
        UserError: a weight for an unknown task.
    """

    at_cut = False
    lr = None

    def __init__(self, config: FixedConfig, *, tasks: Sequence[str], seed: int) -> None:
        super().__init__()
        self._weights = complete_weights(config.weights, tasks, "balancing.weights")

    def backward(self, losses: Mapping[str, Tensor], auxiliary: Mapping[str, Tensor], cut: Cut) -> dict[str, Tensor]:
        """Backward of Σ weight·loss + Σ auxiliary."""
        weighted_backward(losses, self._weights, auxiliary, cut)
        return {task: torch.tensor(weight) for task, weight in self._weights.items()}

    def end_epoch(self, mean_losses: Mapping[str, float]) -> None:
        """Constants learn nothing."""
