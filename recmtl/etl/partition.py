"""Cut a log into buckets by key, so that what belongs together can be worked out one bucket at a time.

In: a lazy frame and the columns of the key. Out: lazy frames on disk; equal keys are in the same bucket of every log
that was cut by columns of the same names and types into the same number of buckets. Rows keep their order.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

import polars as pl

from recmtl.failures import writing

__all__ = ["BUCKET_BYTES", "bucket_count", "partition"]

BUCKET_BYTES = 1 << 29
"""Aimed size of a bucket of all logs together, as CSV; in memory it is up to some four times that."""

_PARQUET_RATIO = 4


def bucket_count(paths: Iterable[Path], bucket_bytes: int = BUCKET_BYTES) -> int:
    """How many buckets the logs in these files need, by their sizes (a byte of Parquet counts as four of CSV)."""
    size = sum(path.stat().st_size * (_PARQUET_RATIO if path.suffix == ".parquet" else 1) for path in paths)
    return max(1, -(-size // bucket_bytes))


def partition(frame: pl.LazyFrame, by: Sequence[str], count: int, folder: Path) -> list[pl.LazyFrame]:
    """Cut a frame into ``count`` buckets by the hash of the columns ``by``; one bucket is the frame itself.

    Args:
        frame: any rows.
        by: the key's columns, without nulls.
        count: how many buckets.
        folder: does not exist yet; the buckets' files go there.
    """
    if count == 1:
        return [frame]
    schema = frame.collect_schema()
    bucket = (pl.struct(by).hash() % count).cast(pl.Int32).alias("bucket")
    with writing(folder):
        frame.sink_parquet(
            pl.PartitionBy(folder, key=bucket, include_key=False),
            compression="lz4",
            mkdir=True,
        )
    buckets = []
    for number in range(count):
        parts = sorted((folder / f"bucket={number}").glob("*.parquet"))
        empty = pl.LazyFrame(schema=schema)
        buckets.append(pl.scan_parquet(parts, hive_partitioning=False, glob=False) if parts else empty)
    return buckets
