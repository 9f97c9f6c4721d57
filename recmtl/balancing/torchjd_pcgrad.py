"""PCGrad: a gradient that conflicts with another task's loses that part (Yu et al., NeurIPS 2020), by TorchJD."""

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from recmtl.balancing.base import complete_weights
from recmtl.balancing.cut import Cut, TaskGradients
from recmtl.settings import Settings

__all__ = ["PCGrad", "PCGradConfig"]


class PCGradConfig(Settings):
    """Projecting conflicting gradients."""

    kind: Literal["pcgrad"] = "pcgrad"
    weights: dict[str, float] = {}
    """Task to the weight of its loss before the surgery, 0 or more; a task that is not named has 1."""


class PCGrad(nn.Module):
    """Algorithm 1 of the paper at the cut: each gradient is projected off those it conflicts with, in random order.

    Without a conflict this is the sum of the weighted gradients. The order is drawn from the seed and the step alone,
    so a resumed run draws what an uninterrupted one would have.

    Args:
        config: the weights.
        tasks: task names, in order.
        seed: of the projections' order.

    Raises:
        UserError: a weight for an unknown task.
    """

    at_cut = True
    lr = None
    step: Tensor

    def __init__(self, config: PCGradConfig, *, tasks: Sequence[str], seed: int) -> None:
        from torchjd.aggregation import PCGradWeighting  # takes a second to import, which every config would pay

        super().__init__()
        self._weights = complete_weights(config.weights, tasks, "balancing.weights")
        self._seed = seed
        self._weighting = PCGradWeighting()
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))

    def backward(self, losses: Mapping[str, Tensor], auxiliary: Mapping[str, Tensor], cut: Cut) -> dict[str, Tensor]:
        """T backwards down to the cut, one through the tables."""
        gradients = TaskGradients({task: self._weights[task] * loss for task, loss in losses.items()}, cut)
        gramian_TT = gradients.gramian().cpu()
        # TorchJD draws from torch's global generator, which is lent a state of ours for the call.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed((self._seed * 0x9E3779B97F4A7C15 + int(self.step)) % 2**63)
            surgery_T = self._weighting(gramian_TT).to(cut.leaf.device)
        self.step += 1
        gradients.backward(surgery_T, auxiliary)
        return {task: self._weights[task] * weight for task, weight in zip(losses, surgery_T.unbind(), strict=True)}

    def end_epoch(self, mean_losses: Mapping[str, float]) -> None:
        """Nothing is learned."""
