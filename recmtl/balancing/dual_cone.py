"""The projection that UPGrad needs, in the form that TorchJD takes it. Imports TorchJD."""

import torch
from torch import Tensor
from torchjd.linalg import DualConeProjector

__all__ = ["DualConeByLeastSquares"]


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
