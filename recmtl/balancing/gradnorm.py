"""GradNorm: the weights learn to keep the tasks' gradients of like size (Chen et al., ICML 2018)."""

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from recmtl.balancing.cut import Cut, weighted_backward
from recmtl.settings import Settings

__all__ = ["GradNorm", "GradNormConfig"]


class GradNormConfig(Settings):
    """Weights that even out the norms of the tasks' gradients at the last shared layer."""

    kind: Literal["gradnorm"] = "gradnorm"
    alpha: float = Field(default=1.5, ge=0)
    """Strength of the pull towards tasks that train slowly; 0 asks for equal gradient norms."""
    lr: float | None = Field(default=0.025, gt=0)
    """Learning rate of the weights; null: that of the dense parameters."""


class GradNorm(nn.Module):
    """Weighs the losses; the weights w learn from L_grad = Σ |w·n - mean(w·n)·r^alpha| (equation 2 of the paper).

    n is the norm of a task's gradient at the last shared layer (at the pooled embeddings for a tower without one), and
    r the task's inverse training rate: its loss over its first loss, divided by the mean of these ratios. The target is
    a constant for the gradient, as in the paper. The paper rescales the weights to sum to T after every step; here they
    are T·softmax(logits), which always does and cannot turn negative. A task without an observed row in the batch takes
    no part in the means and gets no gradient of its own.

    Args:
        config: alpha and the learning rate.
        tasks: task names, in order.
        seed: unused; nothing here is random.
    """

    at_cut = False
    first_losses: Tensor

    def __init__(self, config: GradNormConfig, *, tasks: Sequence[str], seed: int) -> None:
        super().__init__()
        self._tasks = tuple(tasks)
        self._alpha = config.alpha
        self.lr = config.lr
        self.logits = nn.Parameter(torch.zeros(len(tasks)))
        self.register_buffer("first_losses", torch.full((len(tasks),), float("nan")))

    def backward(self, losses: Mapping[str, Tensor], auxiliary: Mapping[str, Tensor], cut: Cut) -> dict[str, Tensor]:
        """Backward of Σ weight·loss + Σ auxiliary; the weights' logits get the gradient of L_grad."""
        weights_T = len(self._tasks) * torch.softmax(self.logits, 0)
        norms_T = self._norms([losses[task] for task in self._tasks], cut)
        losses_T = cut.group.sum(torch.stack([losses[task] for task in self._tasks])).float()
        (self._balance(weights_T, norms_T, losses_T) / cut.group.size).backward()  # type: ignore[no-untyped-call]
        weights = dict(zip(self._tasks, weights_T.detach().unbind(), strict=True))
        weighted_backward(losses, weights, auxiliary, cut)
        return weights

    def _norms(self, losses: Sequence[Tensor], cut: Cut) -> Tensor:
        """(T,) float32: norms of the gradients of the whole batch's losses."""
        gradients = [_gradients(loss, cut.last_shared or (cut.leaf,)) for loss in losses]
        if cut.last_shared:  # every rank has a part of each gradient; of a leaf, rows of its own
            found = iter(cut.group.sums([gradient for of_task in gradients for gradient in of_task]))
            gradients = [[next(found) for _ in of_task] for of_task in gradients]
        none = torch.zeros((), device=losses[0].device)
        squares_T = torch.stack([sum((g.float().square().sum() for g in of_task), none) for of_task in gradients])
        return (squares_T if cut.last_shared else cut.group.sum(squares_T)).sqrt()

    def _balance(self, weights_T: Tensor, norms_T: Tensor, losses_T: Tensor) -> Tensor:
        present_T = losses_T != 0
        self.first_losses.copy_(torch.where(self.first_losses.isnan() & present_T, losses_T, self.first_losses))
        count = present_T.sum().clamp(min=1)
        ratios_T = torch.where(present_T, losses_T / self.first_losses, 0.0)
        mean_ratio = ratios_T.sum() / count
        rates_T = ratios_T / torch.where(mean_ratio == 0, 1.0, mean_ratio)
        sizes_T = weights_T * norms_T
        mean_size = torch.where(present_T, sizes_T.detach(), 0.0).sum() / count
        # A negative ratio (a loss below 0) has no power; its task is asked for a gradient norm of 0.
        target_T = mean_size * rates_T.clamp(min=0) ** self._alpha
        return torch.where(present_T, (sizes_T - target_T).abs(), 0.0).sum()

    def end_epoch(self, mean_losses: Mapping[str, float]) -> None:
        """The weights learn by step, not by epoch."""


def _gradients(loss: Tensor, at: tuple[Tensor, ...]) -> list[Tensor]:
    """The loss's gradients at those tensors that it reaches."""
    if not loss.requires_grad or not any(tensor.requires_grad for tensor in at):
        return []
    gradients = torch.autograd.grad(loss, at, retain_graph=True, allow_unused=True)
    return [gradient for gradient in gradients if gradient is not None]
