"""Embedding tables in 8 or 16 bits, for serving: a quarter or half of the memory, read in plain torch.

In and out: as :class:`recmtl.features.tables.Tables`. A row of an int8 table is what TorchRec's quantised collection
holds: scale and bias in float16, then a byte per value, x ≈ scale · byte + bias with bias the row's minimum and scale
its range / 255. Rows are dequantised when they are looked up, so a table is never whole in float32.

What is lost: half a step, (max - min) / 510, a value, and a little more where rounding bias and scale to float16 leaves
the ends of the range out. A row of zeros, as that of unseen ids is, stays exactly that.

Dimensions: B batch, N values in all, V rows of a table, W width of a table.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recmtl.batch import SparseBatch
from recmtl.errors import RunError
from recmtl.features.tables import Pieces, TableShape, check_weights
from recmtl.settings import Settings

__all__ = ["Precision", "Quantised", "QuantisedTables", "dequantise", "quantise", "row_scales"]

Precision = Literal["float16", "int8"]
"""How the values of a table are stored."""


class Quantised(Settings):
    """``quantised.json`` of a package: how its tables are stored, and what that costs."""

    precision: Precision
    """Of the tables; everything else is float32."""
    source: str
    """Digest of the package that it was made of."""
    bytes_before: int
    """Of all weights, as they were."""
    bytes_after: int
    """And as they are."""
    data: str | None = None
    """Fingerprint of the prepared data on whose validation rows the metrics were measured; null: nowhere."""
    rows: int = 0
    """How many those are."""
    before: Mapping[str, Mapping[str, float | int | None]] = {}
    """Task (or TASK_given_PARENT) to metrics of the package that it was made of."""
    after: Mapping[str, Mapping[str, float | int | None]] = {}
    """The same of this one."""


_HEAD = 4
"""Bytes of an int8 row before its values: scale and bias."""
_BLOCK = 1 << 18


def quantise(weight_VW: Tensor, precision: Precision) -> Tensor:
    """A table as it is stored: (V, W) float16, or (V, 4 + W) uint8.

    The arithmetic is FBGEMM's ``FloatOrHalfToFusedNBitRowwiseQuantizedSBHalf`` with 8 bits: values are counted in
    steps of the rounded scale from the rounded bias, ties to even.

    Raises:
        RunError: a value, or a row's range, is beyond what float16 holds.
    """
    blocks = torch.split(weight_VW.detach().float(), _BLOCK)
    return torch.cat([_quantised(block_VW, precision) for block_VW in blocks])


def _quantised(block_VW: Tensor, precision: Precision) -> Tensor:
    if precision == "float16":
        half = block_VW.half()
        if not half.isfinite().all():
            raise RunError("an embedding is beyond what float16 holds (65,504): this model cannot be stored in 16 bits")
        return half
    bias_V1 = block_VW.amin(dim=1, keepdim=True).half()
    scale_V1 = ((block_VW.amax(dim=1, keepdim=True) - bias_V1.float()) / 255).half()
    inverse_V1 = 1 / scale_V1.float()
    flat_V1 = inverse_V1.isinf()  # a row of one value: it is the bias, and counts no steps
    scale_V1, inverse_V1 = scale_V1.masked_fill(flat_V1, 1.0), inverse_V1.masked_fill(flat_V1, 1.0)
    head_V2 = torch.cat([scale_V1, bias_V1], dim=1)
    if not head_V2.isfinite().all():
        raise RunError("an embedding is beyond what float16 holds (65,504): this model cannot be stored in 8 bits")
    codes_VW = torch.round((block_VW - bias_V1.float()) * inverse_V1).clamp(0, 255).to(torch.uint8)
    return torch.cat([head_V2.view(torch.uint8), codes_VW], dim=1)


def dequantise(stored: Tensor) -> Tensor:
    """(N, W) float32 of rows as :func:`quantise` stores them."""
    if stored.dtype == torch.float16:
        return stored.float()
    head_N2 = row_scales(stored).float()
    return torch.addcmul(head_N2[:, 1:], stored[:, _HEAD:].float(), head_N2[:, :1])


def row_scales(stored: Tensor) -> Tensor:
    """(N, 2) float16, scale and bias of rows (N, 4 + W) as :func:`quantise` stores them in 8 bits."""
    return stored[:, :_HEAD].contiguous().view(torch.float16)


class QuantisedTables(nn.Module):
    """Tables that are read and never trained.

    Args:
        shapes: table name to shape.
        precision: how they are stored.
    """

    def __init__(self, shapes: Mapping[str, TableShape], precision: Precision) -> None:
        super().__init__()
        self._precision = precision
        self._table_of = {feature: name for name, shape in shapes.items() for feature in shape.features}
        dtype = torch.float16 if precision == "float16" else torch.uint8
        # Not registered by name: tables are named by the user's columns, and buffers may not be called `keys`.
        for name, shape in shapes.items():
            self._buffers[name] = torch.zeros(_stored((shape.rows, shape.dim), precision), dtype=dtype)

    def forward(self, sparse: SparseBatch) -> dict[str, Tensor]:
        """See :class:`recmtl.features.tables.Tables`.

        Raises:
            RuntimeError, IndexError: a table row out of bounds.
        """
        return {
            feature: self._pool(feature, values_N, lengths_B, weights_N)
            for feature, values_N, lengths_B, weights_N in sparse.by_feature()
        }

    def joined(self, sparse: SparseBatch, features: Sequence[str]) -> Tensor:
        """See :class:`recmtl.features.tables.Tables`."""
        pooled = self(sparse)
        return torch.cat([pooled[feature] for feature in features], dim=1)

    def _pool(self, feature: str, values_N: Tensor, lengths_B: Tensor, weights_N: Tensor | None) -> Tensor:
        rows_NW = dequantise(self._table(self._table_of[feature]).index_select(0, values_N))
        if weights_N is None and len(values_N) == len(lengths_B) and bool((lengths_B == 1).all()):
            return rows_NW
        starts_B = lengths_B.cumsum(0, dtype=torch.int64) - lengths_B
        each_N = torch.arange(len(values_N), device=values_N.device)
        return F.embedding_bag(each_N, rows_NW, starts_B, mode="sum", per_sample_weights=weights_N)

    def _table(self, name: str) -> Tensor:
        table = self._buffers[name]
        assert table is not None
        return table

    def weights(self) -> dict[str, Tensor]:
        """See :class:`recmtl.features.tables.Tables`; dequantised, and so no live view."""
        return {name: dequantise(self._table(name)) for name in self._buffers}

    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Copy in tables as :func:`quantise` stores them.

        Raises:
            RunError: a table that is not here, of another shape or stored otherwise.
        """
        check_weights({name: tuple(self._table(name).shape) for name in self._buffers}, weights)
        for name, stored in weights.items():
            if stored.dtype != self._table(name).dtype:
                raise RunError(f"table {name!r} is {self._table(name).dtype} in this model but {stored.dtype} there")
            self._table(name).copy_(stored)

    def pieces(self) -> dict[str, Tensor | Pieces]:
        """See :class:`recmtl.features.tables.Tables`: as they are stored."""
        return {name: self._table(name) for name in self._buffers}

    def load_pieces(self, read: Callable[[Mapping[str, Tensor | Pieces]], None]) -> None:
        """See :class:`recmtl.features.tables.Tables`."""
        read(self.pieces())

    def load_blocks(self, table: str, blocks: Iterable[Tensor]) -> None:
        """Nothing: these tables have no initial values, and no block is drawn."""


def _stored(shape: tuple[int, ...], precision: Precision) -> tuple[int, int]:
    """Shape of a stored table of (V, W)."""
    return (shape[0], shape[1] if precision == "float16" else _HEAD + shape[1])
