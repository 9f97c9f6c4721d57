"""Pairwise products of features (DLRM: Naumov et al. 2019, "Deep Learning Recommendation Model", section 2.1.3).

In: x_BD. Out: x_BD with, appended, the inner product of every pair of its fields: embeddings and vectors. A perceptron
learns a product of two embeddings slowly and badly; given it, it learns whom an item suits far sooner.

Fields of another width than most are first projected to the usual one by a learned linear map.

Dimensions: B batch, D width of the input, F fields, K their common width, P = F·(F - 1) / 2 pairs.
"""

from collections import Counter
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from recmtl.modules import ByName, linear

__all__ = ["Interactions"]


class Interactions(nn.Module):
    """See the file's head.

    Args:
        fields: feature name to its columns in x_BD.
        input_dim: D.
        generator: initial values of the projections are drawn from it.
    """

    first: Tensor
    second: Tensor

    def __init__(self, fields: Mapping[str, slice], input_dim: int, *, generator: torch.Generator) -> None:
        super().__init__()
        widths = {name: columns.stop - columns.start for name, columns in fields.items()}
        counts = Counter(widths.values())
        common = max(counts, key=lambda width: (counts[width], width), default=0)
        self._fields = dict(fields)
        self.projections = ByName(
            {
                name: linear(width, common, generator, bias=False)
                for name, width in widths.items()
                if width != common and len(fields) > 1
            }
        )
        first, second = torch.triu_indices(len(fields), len(fields), offset=1)
        self.register_buffer("first", first, persistent=False)
        self.register_buffer("second", second, persistent=False)
        self.output_dim = input_dim + len(first)

    def forward(self, x_BD: Tensor) -> Tensor:
        """(B, D) to (B, D + P)."""
        if len(self.first) == 0:
            return x_BD
        projections = dict(self.projections.items())
        fields_BFK = torch.stack(
            [
                projections[name](x_BD[:, columns]) if name in projections else x_BD[:, columns]
                for name, columns in self._fields.items()
            ],
            dim=1,
        )
        products_BFF = fields_BFK @ fields_BFK.transpose(1, 2)
        return torch.cat([x_BD, products_BFF[:, self.first, self.second].to(x_BD.dtype)], dim=1)
