"""Rows to parts on disk, and parts to shards: what bounds the memory to one part at a time.

In: the labelled log and a split. Out: for every split a list of staged parts, each of which fits in memory: train rows
scattered over parts by a seeded hash of their row number, validation and test rows cut into parts in source order.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl

from recmtl.etl.split import SPLIT_TYPE, mixed
from recmtl.failures import writing
from recmtl.manifest import ROW, SPLITS, Shard, file_hash

__all__ = ["ROW_GROUP_ROWS", "StagedPart", "load_part", "stage_parts", "write_shard"]

ROW_GROUP_ROWS = 32_768
"""Rows of a row group: the unit in which the loader reads and skips."""

_SPLIT, _PART = "recmtl:split", "recmtl:part"


@dataclass(frozen=True)
class StagedPart:
    """One part of one split: raw rows, not yet in order."""

    split: str
    number: int
    files: tuple[Path, ...]
    rows: int


def stage_parts(
    frame: pl.LazyFrame, split: pl.Expr, columns: Sequence[str], *, seed: int, rows_per_part: int, folder: Path
) -> dict[str, list[StagedPart]]:
    """Write the rows into parts, by one streaming pass over them.

    Args:
        frame: the labelled log's rows, with :data:`~recmtl.manifest.ROW`.
        split: names each row's split.
        columns: those to keep, the row's number among them.
        seed: scatters the train rows.
        rows_per_part: validation and test: rows of a part, but for the last; train: on average.
        folder: where to.
    """
    rows = frame.select(pl.col(ROW), split.alias(_SPLIT)).collect(engine="streaming")
    part = pl.lit(0, pl.UInt32)
    for name in SPLITS:
        inside = rows.filter(pl.col(_SPLIT) == pl.lit(name, SPLIT_TYPE))[ROW].sort()
        parts = max(1, -(-len(inside) // rows_per_part))
        if parts == 1:
            continue
        if name == "train":
            # The high half of the hash, scaled: 32 bits leave the product room.
            number = ((mixed(pl.col(ROW), seed, 1) // 2**32) * parts // 2**32).cast(pl.UInt32)
        else:
            first = inside.to_numpy()[rows_per_part::rows_per_part]
            number = pl.col(ROW).map_batches(
                partial(_part_of, first=first), return_dtype=pl.UInt32, is_elementwise=True
            )
        part = pl.when(split == pl.lit(name, SPLIT_TYPE)).then(number).otherwise(part)
    wanted = frame.select(*columns, split.cast(pl.String).alias(_SPLIT), part.alias(_PART))
    with writing(folder):
        wanted.sink_parquet(
            pl.PartitionBy(folder, key=[_SPLIT, _PART], include_key=False),
            mkdir=True,
            compression="lz4",
            engine="streaming",
        )
    found: dict[str, list[StagedPart]] = {}
    for name in SPLITS:
        found[name] = []
        for path in sorted((folder / f"{_SPLIT}={name}").glob(f"{_PART}=*"), key=lambda p: int(p.name.split("=")[1])):
            files = tuple(sorted(path.rglob("*.parquet")))
            size = pl.scan_parquet(list(files), glob=False).select(pl.len()).collect().item()
            found[name].append(StagedPart(name, int(path.name.split("=")[1]), files, size))
    return found


def _part_of(row: pl.Series, first: npt.NDArray[np.int64]) -> pl.Series:
    # Polars hands in nulls for rows that a `when` around this does not ask for.
    return pl.Series(row.name, np.searchsorted(first, row.fill_null(0).to_numpy(), side="right"), dtype=pl.UInt32)


def load_part(part: StagedPart, *, seed: int) -> pl.DataFrame:
    """A part's rows in their final order: train by the seeded hash, validation and test by row."""
    frame = pl.read_parquet(list(part.files), glob=False)
    if part.split != "train":
        return frame.sort(ROW)
    return frame.sort(mixed(pl.col(ROW), seed, 1))


def write_shard(frame: pl.DataFrame, folder: Path, name: str) -> Shard:
    """Write one shard as ``folder / name``, in row groups of :data:`ROW_GROUP_ROWS`."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    with writing(path):
        frame.write_parquet(path, compression="lz4", row_group_size=ROW_GROUP_ROWS)
    return Shard(path=name, rows=frame.height, sha256=file_hash(path))
