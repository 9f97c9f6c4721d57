"""From a batch to x_BD: embeddings pooled and regrouped by feature name, then vectors, then numbers.

In: a :class:`recmtl.batch.Batch` as the schema encodes it. Out: (B, D) float32, its columns in this order::

    embeddings, in schema order │ projected vectors │ vectors as they are │ numbers
    └──────────── learned_dim ──────────────────────┘

The leading ``learned_dim`` columns depend on parameters (tables, projections), the others on the data alone.

Dimensions: B batch, W width of one embedding, N columns of ``Batch.dense``, D width of the output.
"""

import itertools
import math
from collections.abc import Iterator, Mapping
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from recmtl.batch import Batch
from recmtl.features.managed import IdMaps
from recmtl.features.tables import Tables, TableShape
from recmtl.modules import ByName, generator, linear
from recmtl.schema import UNSEEN, Feature, Schema, Table
from recmtl.settings import Settings
from recmtl.statistics import Statistics

__all__ = ["Features", "InputsConfig", "initial_blocks", "initial_table", "table_shapes"]


class InputsConfig(Settings):
    """How features enter the model."""

    embedding_std: float = Field(default=0.01, gt=0.0)
    """Standard deviation of the normal distribution that embeddings start from. Small: under a row-wise optimiser a
    row moves by about the learning rate at its first step, and what a rare id has not learned should not speak."""
    number_limit: float | None = Field(default=10.0, ge=1.0)
    """Standardised numbers are clamped to plus and minus this, so that an outlier cannot saturate the network; null
    for no limit."""
    vector_dim: int | None = Field(default=32, ge=1)
    """A vector longer than this is projected to this width by a learned linear map, so that a long content embedding
    does not outweigh the other inputs; null lets every vector enter as it is."""
    interactions: Literal["dot", "none"] = "dot"
    """dot: the tower also reads the inner product of every pair of embeddings and vectors (as in DLRM); none: it does
    not."""


def table_shapes(schema: Schema, statistics: Statistics) -> dict[str, TableShape]:
    """The shape of every embedding table: vocabularies, hash buckets, managed rows, each with the two reserved rows."""
    return {
        name: TableShape(
            rows=_rows(table, statistics),
            dim=table.embedding_dim,
            features=table.features,
            weighted=any(schema[feature].kind == "weighted_bag" for feature in table.features),
        )
        for name, table in schema.tables.items()
    }


def _rows(table: Table, statistics: Statistics) -> int:
    return statistics.tables[table.name].rows if table.stated_rows is None else table.stated_rows


def initial_table(shape: TableShape, *, std: float, seed: int, name: str) -> Tensor:
    """(rows, dim) float32: where a table starts, the same for every kind of tables.

    Normal around 0, but the row of unseen ids is exactly 0 and no training row moves it: an id that the model has
    never met says nothing, rather than something random. The row of missing ids is learned like any other.
    """
    return torch.cat(list(initial_blocks(shape, std=std, seed=seed, name=name)))


def initial_blocks(
    shape: TableShape, *, std: float, seed: int, name: str, block_rows: int = 1 << 18
) -> Iterator[Tensor]:
    """The same in blocks of rows, so that no process needs room for a whole table beside what it keeps of it.

    Args:
        shape: of the table.
        std: standard deviation.
        seed: of the run.
        name: of the table.
        block_rows: rows of a block, a multiple of 16; the last one has up to 16 more. torch draws normal numbers in
            groups of 16, which is why the values do not depend on it.
    """
    assert block_rows % _DRAWN_TOGETHER == 0
    draws = generator(seed, "tables", name)
    row = 0
    while row < shape.rows:
        rows = block_rows if shape.rows - row >= block_rows + _DRAWN_TOGETHER else shape.rows - row
        block = torch.empty(rows, shape.dim).normal_(0.0, std, generator=draws)
        if row <= UNSEEN < row + rows:
            block[UNSEEN - row] = 0.0
        yield block
        row += rows


_DRAWN_TOGETHER = 16


class Features(nn.Module):
    """See the file's head.

    Args:
        schema: what the batch holds.
        tables: the embedding tables of its sparse features.
        config: how features enter.
        generator: initial values of the vectors' projections are drawn from it.
    """

    def __init__(self, schema: Schema, tables: Tables, config: InputsConfig, *, generator: torch.Generator) -> None:
        super().__init__()
        limit = config.vector_dim or max((feature.dim or 0 for feature in schema.dense), default=0)
        vectors = schema.of_kind("vector")
        projected = {feature.name: (feature.dim or 0) + 1 for feature in vectors if (feature.dim or 0) > limit}
        self.tables = tables
        self.id_maps = IdMaps(schema)
        """Of the managed tables: hashed ids to rows."""
        self.projections = ByName({name: linear(width, limit, generator) for name, width in projected.items()})
        self._sparse = tuple(feature.name for feature in schema.sparse)
        self._means = tuple(feature.name for feature in schema.of_kind("bag") if feature.pooling == "mean")
        self._vectors = tuple(feature.name for feature in vectors if feature.name not in projected)
        self._numbers = tuple(feature.name for feature in schema.of_kind("number"))
        self._number_limit = math.inf if config.number_limit is None else config.number_limit
        self._dense_names = tuple(feature.name for feature in schema.dense)
        self._dense_widths = [_width(feature) for feature in schema.dense]
        widths = {feature.name: schema.tables[feature.table or ""].embedding_dim for feature in schema.sparse}
        widths.update(dict.fromkeys(projected, limit))
        self.learned_dim = sum(widths.values())
        """Leading columns of the output that depend on parameters."""
        widths.update({name: _width(schema[name]) for name in (*self._vectors, *self._numbers)})
        self.output_dim = sum(widths.values())
        """D."""
        self.columns = dict(zip(widths, itertools.starmap(slice, itertools.pairwise(_starts(widths))), strict=True))
        """Feature name to its columns in the output, in their order."""

    def forward(self, batch: Batch) -> Tensor:
        """(B, D) float32."""
        return torch.cat([*self._pooled(batch), *self.beside(batch.dense)], dim=1)

    def _pooled(self, batch: Batch) -> list[Tensor]:
        """The embeddings, (B, W) each or all in one."""
        if not self._sparse:
            return []
        sparse = self.id_maps(batch.sparse)
        if not self._means:
            return [self.tables.joined(sparse, self._sparse)]
        embeddings = self.tables(sparse)
        keys = sparse.keys
        lengths_FB = sparse.lengths.view(len(keys), batch.size).clamp(min=1)  # the mean of an empty bag is 0
        return [
            # Weights of a weighted mean already sum to 1; a plain mean is divided here.
            embeddings[name] / lengths_FB[keys.index(name)].unsqueeze(1) if name in self._means else embeddings[name]
            for name in self._sparse
        ]

    def beside(self, dense_BN: Tensor) -> list[Tensor]:
        """Vectors and numbers of ``Batch.dense``, (B, W) each, in the output's order."""
        limit = self._number_limit
        if not (self.projections or self._vectors):
            return [dense_BN.clamp(-limit, limit)] if self._numbers else []
        dense = dict(zip(self._dense_names, torch.split(dense_BN, self._dense_widths, dim=1), strict=True))
        return [
            *(project(dense[name]).float() for name, project in self.projections.items()),
            *(dense[name] for name in self._vectors),
            *(dense[name].clamp(-limit, limit) for name in self._numbers),
        ]


def _starts(widths: Mapping[str, int]) -> list[int]:
    return list(itertools.accumulate(widths.values(), initial=0))


def _width(feature: Feature) -> int:
    """Columns of a number or vector in ``Batch.dense``: its values and the missing indicator."""
    return 2 if feature.kind == "number" else (feature.dim or 0) + 1
