"""Dynamic weight averaging: tasks whose loss falls slowly weigh more (Liu, Johns and Davison, CVPR 2019)."""

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from recmtl.balancing.cut import Cut, weighted_backward
from recmtl.settings import Settings

__all__ = ["DynamicWeightAverage", "DynamicWeightAverageConfig"]


class DynamicWeightAverageConfig(Settings):
    """Weights from the rate at which each task's mean loss fell from one epoch to the next."""

    kind: Literal["dwa"] = "dwa"
    temperature: float = Field(default=2.0, gt=0)
    """The softmax's temperature: the higher, the more even the weights."""


class DynamicWeightAverage(nn.Module):
    """Weighs by T·softmax(r / temperature), r the ratio of a task's last two epoch losses (equation 7 of the paper).

    The weights are 1 for the first two epochs. A ratio that is not defined (a task without an observed row in an epoch,
    a loss of 0) counts as 1, a loss that neither falls nor rises.

    Args:
        config: the temperature.
        tasks: task names, in order.
        seed: unused; nothing here is random.
    """

    at_cut = False
    lr = None
    weights: Tensor
    last_losses: Tensor

    def __init__(self, config: DynamicWeightAverageConfig, *, tasks: Sequence[str], seed: int) -> None:
        super().__init__()
        self._tasks = tuple(tasks)
        self._temperature = config.temperature
        self.register_buffer("weights", torch.ones(len(tasks)))
        self.register_buffer("last_losses", torch.full((len(tasks),), float("nan"), dtype=torch.float64))

    def backward(self, losses: Mapping[str, Tensor], auxiliary: Mapping[str, Tensor], cut: Cut) -> dict[str, Tensor]:
        """Backward of Σ weight·loss + Σ auxiliary."""
        weights = dict(zip(self._tasks, self.weights.unbind(), strict=True))
        weighted_backward(losses, weights, auxiliary, cut)
        return {task: weight.clone() for task, weight in weights.items()}

    def end_epoch(self, mean_losses: Mapping[str, float]) -> None:
        """Set the next epoch's weights."""
        losses = torch.tensor([mean_losses[task] for task in self._tasks], dtype=torch.float64)
        losses = losses.to(self.last_losses.device)
        ratios = torch.nan_to_num(losses / self.last_losses, nan=1.0, posinf=1.0)
        self.weights.copy_(len(self._tasks) * torch.softmax(ratios / self._temperature, 0))
        self.last_losses.copy_(losses)
