"""UPGrad: a step that worsens no task, to first order (Quinton and Rey, 2024, arXiv:2406.16232), by TorchJD."""

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from recmtl.balancing.base import complete_weights
from recmtl.balancing.cut import Cut, TaskGradients
from recmtl.settings import Settings

__all__ = ["UPGrad", "UPGradConfig"]


class UPGradConfig(Settings):
    """Unconflicting projection of gradients."""

    kind: Literal["upgrad"] = "upgrad"
    weights: dict[str, float] = {}
    """Task to the weight of its loss before the projection, 0 or more; a task that is not named has 1."""


class UPGrad(nn.Module):
    """Projects each task's gradient onto the cone of directions that harm no task, and sums them (equation 4).

    The weights are the paper's preference vector; without a conflict this is the sum of the weighted gradients.

    Args:
        config: the weights.
        tasks: task names, in order.
        seed: unused; nothing here is random.

    Raises:
        UserError: a weight for an unknown task.
    """

    at_cut = True
    lr = None

    def __init__(self, config: UPGradConfig, *, tasks: Sequence[str], seed: int) -> None:
        from torchjd.aggregation import UPGradWeighting  # takes a second to import, which every config would pay

        from recmtl.balancing.dual_cone import DualConeByLeastSquares

        super().__init__()
        self._weights = complete_weights(config.weights, tasks, "balancing.weights")
        self._weighting = UPGradWeighting(
            torch.ones(len(tasks), dtype=torch.float64), projector=DualConeByLeastSquares()
        )

    def backward(self, losses: Mapping[str, Tensor], auxiliary: Mapping[str, Tensor], cut: Cut) -> dict[str, Tensor]:
        """T backwards down to the cut, one through the tables."""
        gradients = TaskGradients({task: self._weights[task] * loss for task, loss in losses.items()}, cut)
        weights_T = self._weighting(gradients.gramian().cpu()).to(cut.leaf.device)
        gradients.backward(weights_T, auxiliary)
        return {task: self._weights[task] * weight for task, weight in zip(losses, weights_T.unbind(), strict=True)}

    def end_epoch(self, mean_losses: Mapping[str, float]) -> None:
        """Nothing is learned."""
