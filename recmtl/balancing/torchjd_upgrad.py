"""UPGrad: a step that worsens no task, to first order (Quinton and Rey, 2024, arXiv:2406.16232), by TorchJD."""

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torchjd.aggregation import UPGradWeighting
from torchjd.linalg import DualConeProjector

from recmtl.balancing.base import complete_weights
from recmtl.balancing.cut import Cut, TaskGradients
from recmtl.settings import Settings

__all__ = ["DualConeByLeastSquares", "UPGrad", "UPGradConfig"]


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


class DualConeByLeastSquares(DualConeProjector):  # type: ignore[misc]
    """TorchJD's projection onto the dual cone, solved as non-negative least squares.

    With G = L·Lᵀ and v = u + s, the problem min vᵀGv over v ≥ u (Proposition 1 of the paper) is min |Lᵀs + Lᵀu| over
    s ≥ 0, which SciPy's ``nnls`` solves exactly for the few tasks there are. TorchJD's own projector wants two more
    packages and sets a small Gramian to zero, which ends the projection just when training converges.

    Args:
        regularisation: added to the diagonal of the Gramian, as a share of its trace.
    """

    def __init__(self, regularisation: float = 1e-6) -> None:
        self._regularisation = regularisation

    def __call__(self, U: Tensor, G: Tensor) -> Tensor:
        """Project.

        Args:
            U: (K, T), a row for each vector to project.
            G: (T, T), the Gramian.

        Returns:
            (K, T): weights of the projections; U itself where the Gramian is 0 or not finite.
        """
        from scipy.optimize import nnls

        trace = float(G.diagonal().sum())
        if not 0 < trace < float("inf"):
            return U
        gramian = G.double() / trace + self._regularisation * torch.eye(len(G), dtype=torch.float64)
        root_TT = torch.linalg.cholesky(gramian).T.numpy()
        slack = [torch.from_numpy(nnls(root_TT, -root_TT @ row)[0]) for row in U.double().numpy()]
        return U + torch.stack(slack).to(U)
