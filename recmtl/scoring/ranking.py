"""The best rows of each group: the k highest scores of every user, request or value of a column.

In: scored pieces. Out: rows sorted by group and falling score, with their ``rank`` from 1. In two steps, so that it
fits in memory whatever there is: a piece keeps its own k best rows of each group (no other row can be among the k best
of all), sorted by group; then the range of group keys is cut where about as many rows lie between cuts as a part of the
output holds, and each stretch is read from all pieces and ranked. Equal scores are ordered by the item's key, then by
the order of the inputs; a score that is no number comes last.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import polars as pl
import pyarrow.parquet as pq

from recmtl.errors import UserError
from recmtl.settings import Settings

__all__ = ["RANK", "TopK", "best", "cuts", "ranked", "stretch"]

RANK = "rank"
"""The column that is added: Int32, 1 for the highest score of its group."""


class TopK(Settings):
    """What to keep of the scored rows."""

    k: int
    """Rows of each group."""
    by: str
    """The column whose equal values are a group."""
    score: str
    """The prediction that orders a group."""
    item: str | None = None
    """The column that orders equal scores, rising."""


def best(frame: pl.DataFrame, top: TopK) -> pl.DataFrame:
    """The k best rows of each group, sorted by group, falling score and item; rows without a group are left out.

    Raises:
        UserError: the column of the groups holds lists or the like.
    """
    dtype = frame.schema[top.by]
    if dtype.is_nested() or dtype == pl.Object:
        raise UserError(f"--by {top.by}: this column holds {dtype}, by which rows cannot be grouped")
    if isinstance(dtype, (pl.Categorical, pl.Enum)):
        frame = frame.with_columns(pl.col(top.by).cast(pl.String))
    keys = [pl.col(top.by), pl.col(top.score).fill_nan(None)]
    falling = [False, True]
    if top.item is not None and top.item != top.by and not frame.schema[top.item].is_nested():
        keys.append(pl.col(top.item))
        falling.append(False)
    # A frame's own sort keeps the order of equal rows, which is the inputs'.
    rows = frame.filter(pl.col(top.by).is_not_null()).sort(
        keys, descending=falling, nulls_last=True, maintain_order=True
    )
    return rows.filter(pl.int_range(pl.len()).over(top.by) < top.k)


def ranked(frame: pl.DataFrame, top: TopK) -> pl.DataFrame:
    """:func:`best` of rows of several pieces, in their order, with :data:`RANK`."""
    return best(frame, top).with_columns(pl.int_range(1, pl.len() + 1, dtype=pl.Int32).over(top.by).alias(RANK))


def cuts(pieces: Sequence[Path], top: TopK, rows: int) -> list[object]:
    """Group keys at which to cut, rising: about ``rows`` rows between two of them."""
    total = sum(pq.read_metadata(path).num_rows for path in pieces)
    wanted = math.ceil(total / rows) - 1
    if wanted < 1:
        return []
    every = max(1, rows // 64)
    sampled = [
        pl.scan_parquet(path, glob=False).select(pl.col(top.by).gather_every(every)).collect() for path in pieces
    ]
    keys = pl.concat(sampled)[top.by].sort()
    at = [round(len(keys) * place / (wanted + 1)) for place in range(1, wanted + 1)]
    return keys.gather([min(place, len(keys) - 1) for place in at]).unique(maintain_order=True).to_list()


def stretch(pieces: Sequence[Path], top: TopK, between: Sequence[object], number: int) -> pl.DataFrame:
    """The rows of all pieces, in their order, whose group lies from one cut up to the next."""
    low, high = list(pairwise([None, *between, None]))[number]
    inside = pl.lit(True)
    if low is not None:
        inside &= pl.col(top.by) >= pl.lit(low)
    if high is not None:
        inside &= pl.col(top.by) < pl.lit(high)
    return pl.concat([pl.scan_parquet(path, glob=False).filter(inside).collect() for path in pieces])
