"""The truth of a synthetic log, row by row of a prepared split.

In: a prepared dataset whose source was ``synthetic``. Out: arrays aligned with the split's rows, for the optimum that
evaluation prints beside the model.
"""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl

from recmtl.errors import RunError
from recmtl.manifest import Manifest, inside

__all__ = ["read_truth"]


def read_truth(folder: Path, manifest: Manifest, split: str) -> dict[str, npt.NDArray[np.float64]]:
    """What was known about the labels of a split's rows.

    Args:
        folder: the prepared dataset's.
        manifest: the prepared dataset's; ``truth`` names the file.
        split: validation or test, whose raw rows are kept.

    Returns:
        The truth's columns, (rows,) each, in the order of the split's shards: ``label:COLUMN`` (probability or mean),
        ``given:COLUMN`` (probability given the parent), ``main:COLUMN`` (a score). Empty without a truth.

    Raises:
        RunError: the file is gone or is not a truth, the split keeps no raw rows, or a row is not in the file.
    """
    if manifest.truth is None:
        return {}
    summary = manifest.splits.get(split)
    if summary is None:
        raise RunError(f"{folder}: there is no split {split!r}")
    if summary.rows and not summary.raw_shards:
        raise RunError(f"{folder}: the split {split!r} keeps no raw rows, so their truth cannot be looked up")
    named = manifest.columns
    pairs = {"request_id": named.request, "user_id": named.user, "item_id": named.item}
    keys = {true: raw for true, raw in pairs.items() if raw is not None}
    if not {"request_id", "item_id"} <= keys.keys():
        raise RunError(f"{folder}: the truth is found by request and item, but the dataset has no such columns")
    try:
        truth = pl.scan_parquet(manifest.truth, glob=False).cast(dict.fromkeys(keys, pl.String))
        columns = [name for name in truth.collect_schema().names() if name not in pairs]
        if truth.select(pl.struct(list(keys)).is_duplicated().any()).collect().item():
            raise RunError(f"{manifest.truth}: a request shows an item twice, so its truth is ambiguous")
        if not summary.raw_shards:
            return {name: np.empty(0) for name in columns}
        rows = pl.concat(
            pl.scan_parquet(inside(folder, shard.path), glob=False).select(
                pl.col(raw).cast(pl.String).alias(true) for true, raw in keys.items()
            )
            for shard in summary.raw_shards
        )
        found = rows.join(
            truth.with_columns(known=True), on=list(keys), how="left", maintain_order="left", nulls_equal=True
        ).collect(engine="streaming")
    except FileNotFoundError as error:
        raise RunError(f"{manifest.truth}: the truth of {folder} is gone; prepare again to write it anew") from error
    except (OSError, pl.exceptions.PolarsError) as error:
        raise RunError(f"{manifest.truth}: this is not the truth of {folder}: {error}") from error
    unknown = found["known"].null_count()
    if unknown or found.height != summary.rows:
        raise RunError(
            f"{manifest.truth}: {unknown or abs(found.height - summary.rows):,} of the {summary.rows:,} rows of "
            f"{split} have no truth there; prepare again, so that both are of the same logs"
        )
    return {name: found[name].to_numpy().astype(np.float64) for name in columns}
